"""A client's samples on their way to the model: channels, rates, and a state that is saved."""

import numpy as np
import pytest
from spoken import pink, speech

from pianissimo.audio.front_end import FrontEnd
from pianissimo.errors import AudioValueError
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


def test_pieces_of_many_streams_in_one_call_are_those_of_each_alone() -> None:
    """Other rates, channels and types, and one whose samples are unusable."""
    front_end, left = FrontEnd("on"), speech(2, -45)
    whole = np.round(left * 32767).astype(np.int16)
    pieces = [left, whole, np.stack([whole, whole], axis=1), np.full(160, np.nan), left]
    rates = [RATE, RATE, RATE, RATE, 8000]
    many = [StreamInput(rate, RATE, front_end) for rate in rates]
    alone = [StreamInput(rate, RATE, front_end) for rate in rates]
    for start, end in ((0, 4001), (4001, 12_000), (12_000, 32_000)):
        found = StreamInput.push_many(many, [piece[start:end] for piece in pieces])
        for input, piece, samples in zip(alone, pieces, found, strict=True):
            if isinstance(samples, Exception):
                with pytest.raises(AudioValueError):
                    input.push(piece[start:end])
            else:
                np.testing.assert_array_equal(samples, input.push(piece[start:end]))
        assert [isinstance(samples, AudioValueError) for samples in found] == (
            [False, False, False, start == 0, False]
        )
