import numpy as np
import pytest
from spoken import pink, speech
from tiny import cut

from pianissimo.audio.filters import OffsetState, remove_offset
from pianissimo.audio.front_end import FrontEnd, export_state, import_state
from pianissimo.audio.gain import GAIN_MODES
from pianissimo.audio.level import measure_levels
from pianissimo.audio.vad import VoiceDetector
from pianissimo.hallucination.evidence import Intake


def leveled(samples, mode, live):
    front_end = FrontEnd(mode)
    state = front_end.start(live=live)
    parts = [front_end.push(samples, state), front_end.finish(state)]
    return np.concatenate([part.samples for part in parts])


@pytest.mark.parametrize("sizes", [[0, 1, 7, 100], [1023], [1024], [160], [5000]])
def test_the_bits_do_not_depend_on_the_blocks(sizes):
    samples = speech(3, -50) + np.float32(0.05)
    whole = remove_offset(samples, OffsetState())
    state = OffsetState()
    parts = [remove_offset(samples[part], state) for part in cut(len(samples), sizes)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_it_is_a_high_pass_of_first_order():
    samples = speech(2, -30)
    ratio, last, y, expected = np.exp(-2 * np.pi * 10 / 16_000), float(samples[0]), 0.0, []
    for x in samples.astype(np.float64):
        y = ratio * y + x - last
        last = x
        expected.append(y)
    np.testing.assert_allclose(remove_offset(samples, OffsetState()), expected, atol=1e-7)


def test_a_constant_becomes_exact_silence():
    assert not remove_offset(np.full(20_000, 0.1, np.float32), OffsetState()).any()


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("mode", GAIN_MODES)
@pytest.mark.parametrize("offset", [0.05, -0.1])
def test_soft_speech_on_an_offset_is_leveled_as_without(mode, live, offset):
    samples = speech(8, -50) + pink(8, -90)
    expected = leveled(samples, mode, live)
    out = leveled(samples + np.float32(offset), mode, live)
    assert abs(float(out.mean())) < 1e-4
    error = np.sqrt(np.mean((out - expected) ** 2))
    assert error < 1e-3 * np.sqrt(np.mean(expected**2)) + 1e-5


def test_a_step_of_the_offset_is_gone_after_a_tenth_of_a_second():
    samples = np.zeros(16_000, np.float32)
    samples[8_000:] = 0.1
    assert np.abs(remove_offset(samples, OffsetState())[9_600:]).max() < 3e-4


@pytest.mark.parametrize("mode", [*GAIN_MODES, None])
def test_the_detector_beside_a_recognizer_hears_no_offset(mode):
    front_end = None if mode is None else FrontEnd(mode)
    samples = speech(6, -50) + pink(6, -90)

    def heard(offset):
        intake = Intake(front_end, VoiceDetector())
        out = np.concatenate([intake.push(samples + np.float32(offset)), intake.push(None)])
        return out, intake.evidence

    (expected, without), (out, evidence) = heard(0.0), heard(0.1)
    assert evidence.speech_seconds == pytest.approx(without.speech_seconds, abs=0.05)
    assert evidence.peak == pytest.approx(without.peak, rel=0.05)
    if mode is None:  # such a model has a normalization of its own
        np.testing.assert_array_equal(out, samples + np.float32(0.1))
    else:
        assert measure_levels(out).rms_db == pytest.approx(measure_levels(expected).rms_db, abs=0.1)


def test_the_filter_goes_on_from_a_stored_state_and_from_one_of_version_0_1():
    front_end, samples = FrontEnd("off"), speech(2, -50) + np.float32(0.05)
    expected = front_end.whole(samples).samples
    state = front_end.start(live=True)
    first = front_end.push(samples[:10_001], state).samples
    stored = export_state(state)
    rest = front_end.push(samples[10_001:], import_state(stored)).samples
    np.testing.assert_array_equal(np.concatenate([first, rest]), expected)
    del stored["offset"]
    rest = front_end.push(samples[10_001:], import_state(stored)).samples
    assert abs(float(rest[1_600:].mean())) < 1e-4
