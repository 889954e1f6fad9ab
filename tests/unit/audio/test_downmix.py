import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from spoken import pink, scaled, speech
from tiny import cut

from pianissimo.audio.downmix import Downmix, LiveDownmix
from pianissimo.audio.io import from_array, load_audio, stream_audio

RATE = 16_000
CASES = Path(__file__).parents[4] / "shared" / "cases"


def wav(channels):
    file = io.BytesIO()
    soundfile.write(file, channels, RATE, format="WAV", subtype="FLOAT")
    return file.getvalue()


def mixed(channels, sizes=(7_777,)):
    notes = set()
    downmix = Downmix(channels.shape[1], RATE, notes)
    parts = [downmix.push(channels[part]) for part in cut(len(channels), sizes)]
    return np.concatenate([*parts, downmix.finish()]), notes


def likeness(a, b):
    return float(np.corrcoef(a, b)[0, 1])


def test_ordinary_stereo_is_averaged_bit_by_bit():
    left = speech(25, -26)
    right = np.roll(scaled(left, -4), 70_000)
    for channels in (
        np.stack([left, left], axis=1),
        np.stack([left, right], axis=1),
        np.stack([left, np.zeros_like(left)], axis=1),
        np.stack([left + pink(25, -60, seed=3), right + pink(25, -50, seed=4)], axis=1),
    ):
        out, notes = mixed(channels)
        np.testing.assert_array_equal(out, (channels[:, 0] + channels[:, 1]) / np.float32(2))
        assert notes == set()


@pytest.mark.parametrize("gain", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("noise_db", [-120, -50])
def test_channels_in_opposite_phase_do_not_cancel(gain, noise_db):
    left = speech(13, -26)
    right = np.float32(-gain) * left + pink(13, noise_db, seed=5)
    out, notes = mixed(np.stack([left, right], axis=1))
    assert notes == {"opposite_phase"}
    assert abs(likeness(out, left)) > 0.98
    assert np.abs(out).max() > 0.7 * np.abs(left).max()


def test_a_pause_does_not_turn_a_channel_back():
    left = np.concatenate([speech(10, -26), np.zeros(10 * RATE, np.float32), speech(10, -26)])
    noise = [pink(30, -70, seed=seed) for seed in (1, 2)]
    out, _ = mixed(np.stack([left + noise[0], -left + noise[1]], axis=1))
    assert abs(likeness(out, left)) > 0.98


@pytest.mark.parametrize("hum", [False, True])
def test_a_channel_of_loud_noise_is_left_out(hum):
    said = speech(12, -30) + pink(12, -80, seed=3)
    seconds = np.arange(len(said)) / RATE
    noise = np.random.default_rng(2).normal(0, 0.3, len(said))
    if hum:
        noise = np.sign(np.sin(2 * np.pi * 50 * seconds)) * 0.5
    for order in ([0, 1], [1, 0]):
        channels = np.stack([said, noise.astype(np.float32)], axis=1)[:, order]
        out, notes = mixed(channels)
        assert notes == {"one_channel"}
        np.testing.assert_array_equal(out, said)


def test_of_several_channels_only_the_noisy_one_is_left_out():
    said = speech(5, -30)
    noise = np.random.default_rng(1).normal(0, 0.2, len(said)).astype(np.float32)
    out, notes = mixed(np.stack([said, noise, -said], axis=1))
    assert notes == {"opposite_phase", "one_channel"}
    np.testing.assert_allclose(out, said, atol=1e-6)


def test_the_bits_do_not_depend_on_the_blocks():
    left = speech(33.3, -26)
    channels = np.stack([left, -left + pink(33.3, -50, seed=5)], axis=1)
    whole, _ = mixed(channels, [len(channels)])
    for sizes in ([1, 0, 999], [160_000], [44_100]):
        np.testing.assert_array_equal(mixed(channels, sizes)[0], whole)


def test_files_and_arrays_are_mixed_alike_and_tell():
    left = speech(12, -26)
    channels = np.stack([left, -left], axis=1)
    results = []
    for read in (
        lambda notes: load_audio(wav(channels), notes=notes),
        lambda notes: np.concatenate(list(stream_audio(wav(channels), notes=notes))),
        lambda notes: from_array(channels, RATE, notes=notes),
    ):
        notes = set()
        results.append(read(notes))
        assert notes == {"opposite_phase"}
    for result in results:
        np.testing.assert_array_equal(result, left)


def test_the_failing_case_has_its_speech_again():
    path = CASES / "stereo-opposite-phase.flac"
    if not path.exists():
        pytest.skip("the shared cases are not here")
    assert np.abs(load_audio(path)).max() > 0.05


# -- live ------------------------------------------------------------------------------------------


def live(channels, sizes=(7_777,)):
    downmix = LiveDownmix(channels.shape[1], RATE)
    parts = [downmix.push(channels[part]) for part in cut(len(channels), sizes)]
    return np.concatenate([*parts, downmix.finish()])


def test_ordinary_live_stereo_is_averaged_bit_by_bit():
    left = speech(12, -26)
    for right in (left, np.zeros_like(left), np.roll(scaled(left, -4), 70_000)):
        channels = np.stack([left, right], axis=1)
        np.testing.assert_array_equal(live(channels), (left + right) / np.float32(2))


@pytest.mark.parametrize("gain", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("noise_db", [-120, -50])
def test_live_channels_in_opposite_phase_do_not_cancel(gain, noise_db):
    left = speech(8, -26)
    right = np.float32(-gain) * left + pink(8, noise_db, seed=5)
    out = live(np.stack([left, right], axis=1))
    for part in (slice(0, RATE), slice(RATE, None)):  # the first second, too
        assert abs(likeness(out[part], left[part])) > 0.95
        assert np.abs(out[part]).max() > 0.7 * np.abs(left[part]).max()


def test_a_noisy_channel_of_a_live_stream_is_left_out_after_a_while():
    left = speech(20, -26)
    channels = np.stack([left, pink(20, -20, seed=6)], axis=1)
    out = live(channels)
    np.testing.assert_array_equal(out[12 * RATE :], left[12 * RATE :])


def test_live_blocks_of_any_size_and_a_saved_state_give_the_same_bits():
    left = speech(5, -26)
    channels = np.stack([left, -left + pink(5, -40, seed=7), pink(5, -30, seed=8)], axis=1)
    whole = live(channels, (len(channels),))
    for sizes in ((1, 319, 320, 321), (16_000,), (13,)):
        np.testing.assert_array_equal(live(channels, sizes), whole)
    first, at = LiveDownmix(3, RATE), 33_333
    parts = [first.push(channels[:at])]
    second = LiveDownmix.restored(first.save(), RATE)
    parts += [second.push(channels[at:]), second.finish()]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
