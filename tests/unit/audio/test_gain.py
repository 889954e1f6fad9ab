import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spoken import as_int16, pink, scaled, speech, with_click
from tiny import cut

from pianissimo.audio.features import FeatureConfig, MelFeatures, normalize_per_feature
from pianissimo.audio.filters import OffsetState, remove_offset
from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.gain import GainOptions, GainReading, StreamGain
from pianissimo.audio.level import measure_levels
from pianissimo.audio.resample import StreamingResampler
from pianissimo.errors import AudioValueError, OptionError

CEILING = 10 ** (-1 / 20)
GOLDEN = Path(__file__).parent / "golden_gain.json"


def run(samples, sizes=(), *, gain=None, state=None):
    """Everything that comes out, and the readings."""
    gain = gain or StreamGain()
    state = state or gain.start()
    parts = []
    start = 0
    for size in sizes:
        parts.append(gain.push(samples[start : start + size], state))
        start += size
    parts.append(gain.push(samples[start:], state))
    parts.append(gain.finish(state))
    out = np.concatenate([part.samples for part in parts])
    return out, [reading for part in parts for reading in part.readings]


def gains(samples, **options):
    return [reading.gain_db for reading in run(samples, **options)[1]]


# -- one and the same output ---------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 60_000),
    st.lists(st.integers(0, 5_000), max_size=30),
    st.sampled_from(["on", "auto", "off"]),
    st.sampled_from([-60.0, -45.0, -20.0, 4.0]),
)
def test_split_anywhere_gives_the_same_bits(n, sizes, mode, level_db):
    samples = speech(4, level_db)[:n]
    gain = StreamGain(mode)
    whole, readings = run(samples, gain=gain)
    parts, same = run(samples, sizes, gain=gain)
    assert len(whole) == n
    np.testing.assert_array_equal(parts, whole)
    assert same == readings


@pytest.mark.parametrize("sizes", [[1, 7, 480], [999], [48_000]])
def test_split_before_the_resampler_gives_the_same_bits(sizes):
    samples = scaled(np.repeat(speech(4, -45), 3), 0)

    def chained(slices):
        resampler, gain = StreamingResampler(48_000, 16_000), StreamGain()
        state = gain.start()
        parts = [gain.push(resampler.push(samples[part]), state).samples for part in slices]
        parts.append(gain.push(resampler.finish(), state).samples)
        return np.concatenate([*parts, gain.finish(state).samples])

    np.testing.assert_array_equal(
        chained(cut(len(samples), sizes)), chained([slice(0, len(samples))])
    )


def test_off_passes_every_bit_at_once():
    gain = StreamGain("off")
    state = gain.start()
    samples = scaled(speech(1), 20)
    np.testing.assert_array_equal(gain.push(samples, state).samples, samples)
    assert len(gain.finish(state).samples) == 0


def test_no_gain_changes_no_bit():
    samples = speech(6, -26)
    np.testing.assert_array_equal(run(samples, gain=StreamGain("auto"))[0], samples)


def test_samples_come_out_at_most_fifteen_milliseconds_late():
    gain = StreamGain()
    state = gain.start()
    sent = 0
    for k, part in enumerate(cut(32_000, [160]), start=1):
        sent += len(gain.push(speech(2)[part], state).samples)
        assert k * 160 - sent <= 240


# -- level ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain_db", [-50, -37, -20, 0])
def test_any_input_level_gives_the_same_output_level(gain_db):
    loud = speech(22, -16)
    second_half = slice(11 * 16_000, None)
    exact = StreamGain(dead_zone_db=0.0)
    for gain, tolerance in ((StreamGain(), 3.0), (exact, 0.5)):
        reference = measure_levels(run(loud, gain=gain)[0][second_half]).speech_db
        out = run(scaled(loud, gain_db), gain=gain)[0]
        assert measure_levels(out[second_half]).speech_db == pytest.approx(reference, abs=tolerance)


@pytest.mark.parametrize("level_db", [-60, -45, -38, -20])
def test_speech_comes_near_the_target(level_db):
    samples = as_int16(speech(22, level_db) + pink(22, level_db - 30))
    out = run(samples)[0][11 * 16_000 :]
    assert measure_levels(out).speech_db == pytest.approx(-26.0, abs=3.5)


@pytest.mark.parametrize("level_db", [-70, -71])
def test_soft_speech_is_raised_from_its_first_second_on(level_db):
    first = gains(speech(3, level_db))[0]
    assert first > 17.0


def test_auto_acts_on_quiet_speech_only():
    assert set(gains(speech(11, -30), gain=StreamGain("auto"))) == {0.0}
    assert gains(speech(11, -50), gain=StreamGain("auto"))[-1] == pytest.approx(24, abs=4)


@pytest.mark.parametrize("level_db", [-80, -70, -60, -50, -45])
@pytest.mark.parametrize("seed", range(3))
def test_noise_alone_is_never_raised(level_db, seed):
    for mode in ("on", "auto"):
        noise = pink(10, level_db, seed)
        assert max(gains(noise, gain=StreamGain(mode))) <= 0.0


def test_silence_stays_silence():
    out, readings = run(np.zeros(160_000, np.float32))
    assert not out.any()
    assert [r.gain_db for r in readings] == [0.0] * 10
    assert all(r.speech_db is None and not r.speech for r in readings)


def test_noise_under_speech_is_not_raised_above_its_bound():
    out, readings = run(speech(11, -45) + pink(11, -52))
    assert readings[-1].gain_db <= 13
    assert measure_levels(out).noise_db < -38


# -- movement ------------------------------------------------------------------------------------


def test_the_gain_does_not_pump_in_pauses():
    sentence = speech(3.0, -40)
    pause = np.zeros(2 * 16_000, np.float32)
    samples = np.concatenate([sentence, pause] * 4) + pink(20, -72)
    gain = StreamGain()
    state = gain.start()
    trace = []
    for part in cut(len(samples), [160]):
        gain.push(samples[part], state)
        trace.append(state.gain_db)
    # From half a second after each sentence to the next one; the first teaches the level.
    for start in (8.5, 13.5, 18.5):
        during = trace[round(start * 100) : round((start + 1.4) * 100)]
        assert np.std(during) < 1.0
        assert during[-1] - during[0] < 1.0


@pytest.mark.parametrize(("step_db", "seconds"), [(20, 3.5), (30, 3.5), (-20, 7.0), (-30, 7.0)])
def test_another_talker_is_followed(step_db, seconds):
    first = -50 if step_db > 0 else -20
    samples = np.concatenate([scaled(speech(12, 0), first), scaled(speech(14, 0), first + step_db)])
    out = run(samples)[0]
    assert np.abs(out).max() <= CEILING
    settled = measure_levels(out[round((12 + seconds) * 16_000) :]).speech_db
    assert settled == pytest.approx(-26, abs=3.5)


@pytest.mark.parametrize("at_seconds", [0.7, 4.2])
def test_a_click_does_not_move_the_gain(at_seconds):
    quiet = speech(11, -45) + pink(11, -75)
    undisturbed, clicked = gains(quiet), gains(with_click(quiet, at_seconds))
    after = math.ceil(at_seconds) + 1
    assert max(abs(a - b) for a, b in zip(undisturbed, clicked, strict=True)) < 0.5
    assert clicked[after] > 10


def test_a_warm_start_is_loud_from_the_first_word():
    samples = speech(5.5, -50)
    gain = StreamGain()
    state = gain.start()
    gain.push(samples, state)
    learned = state.gain_db
    cold = run(samples)[0][: 16_000 * 3 // 4]
    warm = run(samples, state=gain.start(gain_db=learned))[0][: 16_000 * 3 // 4]
    assert measure_levels(warm).active_db == pytest.approx(-26, abs=4)
    assert measure_levels(warm).active_db > measure_levels(cold).active_db + 1


def test_a_warm_start_into_noise_gives_way():
    loud_room = pink(3, -45)
    state = StreamGain().start(gain_db=30.0)
    assert run(loud_room, state=state)[1][0].gain_db <= 5.5


@pytest.mark.parametrize("gain_db", [41.0, -13.0, math.nan])
def test_an_impossible_warm_start_is_refused(gain_db):
    with pytest.raises(OptionError, match="not within"):
        StreamGain().start(gain_db=gain_db)


# -- peaks and bad input -------------------------------------------------------------------------


def overdriven():
    n = np.arange(48_000)
    rng = np.random.default_rng(0)
    return {
        "square": np.sign(np.sin(n / 20)) * 1.0,
        "square +12 dBFS": np.sign(np.sin(n / 20)) * 3.98,
        "noise": rng.standard_normal(48_000) * 2,
        "impulses": np.where(rng.random(48_000) < 0.001, 15.0, 0.0),
        "speech +14 dB over": scaled(speech(3), 30),
        "constant": np.full(48_000, 3.0),
    }


@pytest.mark.parametrize("name", overdriven())
def test_nothing_passes_the_ceiling(name):
    samples = overdriven()[name].astype(np.float32)
    for mode in ("on", "auto"):
        out = run(samples, gain=StreamGain(mode))[0]
        assert np.abs(out).max() <= CEILING
        assert np.isfinite(out).all()


def test_a_limited_second_says_so():
    samples = with_click(speech(4, -45), 2.5)
    assert [reading.limited for reading in run(samples)[1]] == [False, False, True, False]


def test_the_limiter_falls_before_the_peak_and_recovers():
    samples = np.full(16_000, 0.5, np.float32)
    samples[8_000] = 5.0
    out = run(samples, gain=StreamGain("auto"))[0]
    assert out[8_000] == pytest.approx(CEILING, abs=1e-6)
    assert out[7_920] == out[7_900] == 0.5
    assert np.abs(out[7_921:8_000]).max() < 0.1
    recovery = out[8_001:]
    assert (np.diff(recovery) >= 0).all()
    assert recovery[-1] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    "bad",
    [
        np.array([0.0, np.nan]),
        np.array([np.inf]),
        np.zeros(10, np.int16),
        np.zeros((10, 2)),
        np.array([20_000.0, -20_000.0]),
    ],
    ids=["nan", "inf", "integers", "stereo", "unscaled"],
)
def test_a_bad_block_is_refused_and_leaves_the_stream_as_it_was(bad):
    samples = speech(3, -45)
    gain = StreamGain()
    state = gain.start()
    first = gain.push(samples[:20_000], state).samples
    with pytest.raises(AudioValueError):
        gain.push(bad, state)
    rest = gain.push(samples[20_000:], state).samples
    out = np.concatenate([first, rest, gain.finish(state).samples])
    np.testing.assert_array_equal(out, run(samples)[0])


@pytest.mark.parametrize("n", [0, 1, 79, 80, 81, 159, 160, 161, 1600, 4000, 8000])
def test_short_streams_lose_no_sample(n):
    samples = speech(2, -50)[8000:][:n]
    out, _ = run(samples)
    assert len(out) == n
    assert np.isfinite(out).all()
    state = StreamGain().start()
    StreamGain().push(samples, state)
    assert state.gain_db <= 40


def test_an_offset_is_no_speech_and_does_not_hide_any():
    assert gains(np.full(80_000, 0.3, np.float32)) == [0.0] * 5
    shifted = gains(speech(5, -45) + np.float32(0.2))
    assert shifted[-1] == pytest.approx(gains(speech(5, -45))[-1], abs=0.5)


def test_the_dead_zone_must_be_a_width():
    with pytest.raises(OptionError, match="dead_zone_db"):
        StreamGain(dead_zone_db=-1.0)


# -- what the recognizer sees --------------------------------------------------------------------


def families():
    """Log-mel features as the families of recognizers compute them: frames (T, F)."""
    mel = MelFeatures(FeatureConfig(n_mels=128))
    guard = mel.config.log_guard

    def power(samples):
        return torch.exp(mel.whole(torch.from_numpy(samples))) - guard

    def log10(samples, least=1e-10):
        return power(samples).clamp(min=least).log10()

    def whisper(samples):
        frames = log10(samples)
        return (torch.maximum(frames, frames.max() - 8) + 4) / 4

    return {
        "parakeet": lambda x: normalize_per_feature(mel.whole(torch.from_numpy(x))),
        "nemotron": lambda x: mel.whole(torch.from_numpy(x)),
        "whisper, glm": whisper,
        "voxtral": lambda x: (log10(x).clamp(min=1.5 - 8) + 4) / 4,
        "lasr": lambda x: power(x).clamp(min=1e-5).log(),
        "kaldi": lambda x: power(x).clamp(min=1.2e-7).log(),
    }


@pytest.mark.parametrize("family", families())
def test_quiet_16_bit_speech_gives_the_features_of_loud_speech(family):
    features = families()[family]
    loud = speech(11, -26) + pink(11, -66)
    quiet = as_int16(scaled(loud, -19))

    def residual(a, b):
        """Deviation between features where there is speech, in deviations of the feature."""
        energy = families()["nemotron"](loud).mean(1)
        busy = energy > energy.median()
        a, b = features(a)[busy], features(b)[busy]
        return float(((a - b) - (a - b).mean()).std() / a.std())

    front_end = FrontEnd("on")
    compensated = front_end.whole(quiet).samples
    assert residual(front_end.whole(loud).samples, compensated) < 0.1
    assert residual(remove_offset(loud, OffsetState()), compensated) < 0.1


# -- pinned --------------------------------------------------------------------------------------


def golden_input():
    """Half speech-like, half noise, from sines and a fixed generator: no file can change it."""
    n = np.arange(6 * 16_000)
    seconds = n / 16_000
    voice = sum(np.sin(2 * np.pi * 130 * k * seconds) / k for k in range(1, 20))
    voice *= np.clip(np.sin(2 * np.pi * 1.3 * seconds), 0, None) * (seconds % 3 < 2)
    noise = np.random.default_rng(11).standard_normal(len(n))
    return (0.004 * voice + 0.00003 * noise).astype(np.float32)


def golden_output():
    samples = golden_input()
    stream, readings = run(samples)
    recording = FrontEnd("on").whole(samples)
    return {
        "gains_db": [reading.gain_db for reading in readings],
        "noise_db": [reading.noise_db for reading in readings],
        "stream": stream[::1999].astype(float).tolist(),
        "recording_gain_db": recording.readings[0].gain_db,
        "recording": recording.samples[::1999].astype(float).tolist(),
    }


def test_the_numbers_are_those_on_record():
    expected = json.loads(GOLDEN.read_text())
    for name, values in golden_output().items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-7, err_msg=name)


def test_readings_say_what_happened():
    readings = run(speech(3, -40))[1]
    assert [reading.seconds for reading in readings] == [1.0, 2.0, 3.0]
    last = readings[-1]
    assert isinstance(last, GainReading)
    assert last.speech
    assert last.speech_db == pytest.approx(-40, abs=3)
    assert last.noise_db < -60


def test_options_reach_the_gain():
    options = GainOptions(target_db=-30.0, max_gain_db=10.0)
    assert gains(speech(8, -60), gain=StreamGain(options=options))[-1] == pytest.approx(10.0)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_output(), indent=1) + "\n")
