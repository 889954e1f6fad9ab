"""A client's samples on their way to the model: channels, rates, and a state that is saved."""

import numpy as np
import pytest
from spoken import pink, speech

from pianissimo.streaming.input import StreamInput

RATE = 16_000


def stereo(seconds: float) -> np.ndarray:
    left = speech(seconds, -26)
    return np.stack([left, -left + pink(seconds, -50, seed=2)], axis=1)


def heard(input: StreamInput, samples: np.ndarray, size: int) -> np.ndarray:
    parts = [input.push(samples[i : i + size]) for i in range(0, len(samples), size)]
    return np.concatenate([*parts, input.finish()])


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_stereo_in_opposite_phase_is_heard_whatever_the_blocks(rate: int) -> None:
    samples = stereo(3)
    whole = heard(StreamInput(rate, RATE), samples, len(samples))
    assert len(whole) == pytest.approx(len(samples) * RATE / rate, abs=1)
    assert np.abs(whole).max() > 0.7 * np.abs(samples[:, 0]).max()
    for size in (160, 1001):
        np.testing.assert_array_equal(heard(StreamInput(rate, RATE), samples, size), whole)


def test_a_saved_stereo_stream_goes_on_bit_by_bit() -> None:
    samples = stereo(3)
    whole = heard(StreamInput(RATE, RATE), samples, 777)
    first, second = StreamInput(RATE, RATE), StreamInput(RATE, RATE)
    parts = [first.push(samples[:20_001])]
    second.restore(first.save())
    rest = heard(second, samples[20_001:], 777)
    np.testing.assert_array_equal(np.concatenate([*parts, rest]), whole)


def test_a_client_may_change_its_channels() -> None:
    input, left = StreamInput(RATE, RATE), speech(2, -26)
    parts = [input.push(np.stack([left, left], axis=1)), input.push(left), input.finish()]
    np.testing.assert_array_equal(np.concatenate(parts), np.concatenate([left, left]))
