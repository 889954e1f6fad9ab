import math
from itertools import pairwise

import numpy as np
import pytest
from spoken import as_int16, at_level, pink, scaled, speech, with_click

from pianissimo.audio.filters import HighPass, HighPassState
from pianissimo.audio.gain import GainOptions, constant_gain
from pianissimo.audio.level import (
    SILENCE_DB,
    active_speech_level,
    check_samples,
    measure_levels,
    peak_level,
    quietest_point,
    rms_level,
)
from pianissimo.errors import AudioValueError, OptionError


def tone(seconds, amplitude=1.0, hertz=997):
    n = round(seconds * 16_000)
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(n) / 16_000)).astype(np.float32)


def p56_by_the_book(x, rate=16_000):
    """ITU-T P.56 method B, sample by sample."""
    g = math.exp(-1 / (rate * 0.03))
    hang = round(0.2 * rate)
    thresholds = [2.0**-j for j in range(25)]
    active, since = [0] * 25, [hang] * 25
    p = q = energy = 0.0
    for value in x.astype(np.float64):
        energy += value * value
        p = g * p + (1 - g) * abs(value)
        q = g * q + (1 - g) * p
        for j, threshold in enumerate(thresholds):
            if q >= threshold:
                active[j] += 1
                since[j] = 0
            elif since[j] < hang:
                active[j] += 1
                since[j] += 1
    levels = [
        (10 * math.log10(energy / a), t) for a, t in zip(active, thresholds, strict=True) if a
    ]
    margins = [(level, level - 20 * math.log10(t)) for level, t in levels]
    for (a0, d0), (a1, d1) in pairwise(margins):
        if d0 < 15.9 <= d1:
            return a0 + (a1 - a0) * (15.9 - d0) / (d1 - d0)
    raise AssertionError("no crossing")


def test_a_full_scale_sine_is_at_minus_three():
    assert rms_level(tone(1)) == pytest.approx(-3.01, abs=0.01)
    assert peak_level(tone(1)) == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("gain_db", [0.0, -23.3, -60.0])
def test_the_active_level_is_that_of_the_standard(gain_db):
    samples = scaled(speech(4), gain_db)
    assert active_speech_level(samples)[0] == pytest.approx(p56_by_the_book(samples), abs=1e-6)


def test_pauses_do_not_lower_the_active_level():
    burst = at_level(speech(5), -26)
    paused = np.concatenate([burst, np.zeros(80_000, np.float32)])
    level, activity = active_speech_level(burst)
    half_level, half_activity = active_speech_level(paused)
    assert half_level == pytest.approx(level, abs=0.5)
    assert half_activity == pytest.approx(activity / 2, abs=0.05)
    assert rms_level(paused) == pytest.approx(rms_level(burst) - 3.01, abs=0.01)


@pytest.mark.parametrize("milliseconds", [1, 5, 20])
def test_a_click_moves_only_the_plain_level(milliseconds):
    quiet = speech(3, -45)
    clicked = with_click(quiet, 1.2, milliseconds)
    plain = active_speech_level(clicked)[0] - active_speech_level(quiet)[0]
    assert plain > 5.0
    moved = measure_levels(clicked).speech_db - measure_levels(quiet).speech_db
    assert abs(moved) < 0.5
    gains = [constant_gain(measure_levels(x)) for x in (quiet, clicked)]
    assert abs(gains[0] - gains[1]) < 0.5


def test_the_robust_level_agrees_with_the_plain_one_on_clean_speech():
    levels = measure_levels(speech(11))
    assert levels.speech_db == pytest.approx(levels.active_db, abs=0.5)


def test_the_level_follows_the_gain_exactly():
    reference = measure_levels(speech(5.5, -16)).speech_db
    for gain_db in np.arange(-50.0, 0.1, 3.7):
        level = measure_levels(scaled(speech(5.5, -16), gain_db)).speech_db
        assert level - gain_db == pytest.approx(reference, abs=1e-3)


@pytest.mark.parametrize("snr_db", [5, 10, 20, 30])
def test_noise_is_measured_and_kept_out_of_the_level(snr_db):
    noisy = speech(11, -40) + pink(11, -40 - snr_db)
    levels = measure_levels(noisy)
    assert levels.noise_db == pytest.approx(-40 - snr_db, abs=2.0)
    assert levels.speech_db == pytest.approx(-40, abs=2.5)
    assert levels.snr_db == pytest.approx(snr_db, abs=4.0)


@pytest.mark.parametrize("level_db", [-80, -60, -45])
def test_noise_alone_is_no_speech_and_gets_no_gain(level_db):
    levels = measure_levels(pink(10, level_db))
    assert not levels.has_speech
    assert constant_gain(levels) == 0.0


def test_rumble_and_offset_do_not_count():
    quiet = speech(5, -45)
    hum = tone(5, 0.02, hertz=20)
    shifted = measure_levels(quiet + hum + np.float32(0.1))
    assert shifted.speech_db == pytest.approx(measure_levels(quiet).speech_db, abs=1.0)
    assert shifted.rms_db > -21


def test_clipping_is_counted():
    assert measure_levels(speech(2)).clipped == 0.0
    assert measure_levels(np.clip(tone(1, 2.0), -1, 1)).clipped == pytest.approx(0.67, abs=0.02)
    assert measure_levels(as_int16(np.clip(tone(1, 2.0), -1, 1))).clipped > 0.6


def test_the_gain_reaches_the_target_within_its_bounds():
    for level, gain in [(-26, 0.0), (-45, 19.0), (-16, -10.0), (-80, 40.0), (-6, -12.0)]:
        assert constant_gain(measure_levels(speech(5, level))) == pytest.approx(gain, abs=0.5)


def test_noise_is_not_raised_above_its_bound():
    levels = measure_levels(speech(11, -45) + pink(11, -50))
    gain = constant_gain(levels)
    assert gain == pytest.approx(-40 - levels.noise_db, abs=1e-9)
    assert 8 < gain < 12
    louder = measure_levels(speech(11, -30) + pink(11, -35))
    assert constant_gain(louder) == 0.0


def test_loud_speech_stays_below_the_ceiling_without_the_limiter():
    levels = measure_levels(scaled(speech(5), 21))
    assert levels.peak_db > 10
    assert levels.loud_peak_db + constant_gain(levels) <= -1.0


@pytest.mark.parametrize(("level", "acts"), [(-26, False), (-35, False), (-38, True), (-8, True)])
def test_auto_leaves_ordinary_levels_alone(level, acts):
    assert (constant_gain(measure_levels(speech(5, level)), "auto") != 0) == acts
    assert constant_gain(measure_levels(speech(5, level)), "off") == 0.0


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.35, 0.5])
def test_short_clips_have_a_level(seconds):
    clip = speech(2, -50)[8000:][: round(seconds * 16_000)]
    gain = constant_gain(measure_levels(clip))
    assert math.isfinite(gain)
    assert 0 <= gain <= 40


@pytest.mark.parametrize("samples", [[], [0.0], [0.5], np.zeros(50_000), np.full(200, 0.1)])
def test_next_to_nothing_has_defined_levels(samples):
    levels = measure_levels(np.asarray(samples, np.float32))
    assert all(math.isfinite(value) for value in vars(levels).values())
    assert constant_gain(levels) == 0.0
    assert len(samples) or levels.rms_db == SILENCE_DB


def test_unusable_samples_are_refused_with_the_reason():
    with pytest.raises(AudioValueError, match="not a finite number at sample 7"):
        check_samples(np.array([0.0] * 7 + [np.nan]))
    with pytest.raises(AudioValueError, match="not a finite number at sample 0"):
        measure_levels(np.array([-np.inf, 0.0]))
    with pytest.raises(AudioValueError, match="from_array"):
        check_samples(np.zeros(10, np.int16))
    with pytest.raises(AudioValueError, match="divide by 32768 for int16"):
        check_samples(np.array([0.0, -12_000.0]))
    with pytest.raises(AudioValueError, match=r"shape \(10, 2\)"):
        check_samples(np.zeros((10, 2)))


def test_overdriven_floats_are_fine():
    assert measure_levels(tone(1, 3.98)).peak_db == pytest.approx(12.0, abs=0.1)


def test_the_quietest_point_is_in_the_pause():
    samples = pink(4, -30)
    samples[30_000:34_000] *= 0.01
    assert 30_800 <= quietest_point(samples, 16_000, 64_000, 1600) <= 33_200


@pytest.mark.parametrize(
    "options",
    [
        {"target_db": math.nan},
        {"min_gain_db": 3.0},
        {"max_gain_db": -1.0},
        {"ceiling_db": 1.0},
        {"auto_below_db": -20.0},
    ],
)
def test_contradictory_options_are_refused(options):
    with pytest.raises(OptionError):
        GainOptions(**options)


def test_the_high_pass_is_the_textbook_filter():
    signal = pytest.importorskip("scipy.signal", reason="scipy is the oracle here")
    x = np.random.default_rng(0).standard_normal(16_000)
    b, a = signal.butter(2, 80, "high", fs=16_000)
    expected = signal.lfilter(b, a, x, zi=signal.lfilter_zi(b, a) * x[0])[0]
    highpass = HighPass(160)
    y = highpass.push_many(x.reshape(1, -1, 160), [HighPassState()])
    np.testing.assert_allclose(y.reshape(-1), expected, atol=1e-11)
