import random

import numpy as np
import pytest

from pianissimo.audio.buffer import STEP_SAMPLES, SampleBuffer
from pianissimo.errors import StreamError

TOTAL = 100_000


def ramp(start: int, end: int) -> np.ndarray:
    """Samples that say their own position, in a way that half precision keeps."""
    return (np.arange(start, end) % 2048).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_was_not_forgotten_is_read_back(seed: int) -> None:
    rng, buffer, pushed, kept = random.Random(seed), SampleBuffer(), 0, 0
    while pushed < TOTAL:
        step = rng.choice([0, 1, 160, 1280, 20_000])
        buffer.append(ramp(pushed, pushed + step))
        pushed += step
        if rng.random() < 0.5:
            kept = rng.randint(kept, pushed)
            buffer.forget(kept, remember=5000)
        assert buffer.end == pushed
        assert buffer.start <= kept
        start = rng.randint(max(buffer.start, kept - 5000), pushed)
        end = rng.randint(start, pushed)
        np.testing.assert_array_equal(buffer.read(start, end), ramp(start, end))


def test_outside_there_are_zeros() -> None:
    buffer = SampleBuffer()
    buffer.append(ramp(0, 10) + 1)
    assert buffer.read(-2, 12).tolist() == [0, 0, *range(1, 11), 0, 0]
    assert buffer.read(0, 4, floor=2).tolist() == [0, 0, 3, 4]
    assert buffer.read(20, 22).tolist() == [0, 0]


def test_what_was_forgotten_is_an_error() -> None:
    buffer = SampleBuffer()
    buffer.append(ramp(0, 50_000))
    buffer.forget(40_000)
    with pytest.raises(StreamError, match="forgotten"):
        buffer.read(39_000, 39_001)
    assert buffer.read(39_000, 40_001, floor=40_000)[-1] == ramp(40_000, 40_001)[0]


def test_memory_does_not_grow_with_the_stream() -> None:
    buffer = SampleBuffer()
    for start in range(0, 3_000_000, 1280):
        buffer.append(ramp(start, start + 1280))
        buffer.forget(start, remember=16_000)
    assert len(buffer._samples) <= 2 * STEP_SAMPLES
    assert len(buffer._past) == 16_000


def test_a_buffer_may_begin_in_the_middle() -> None:
    buffer = SampleBuffer(1000)
    buffer.append(ramp(1000, 1010))
    assert buffer.start == 1000
    np.testing.assert_array_equal(buffer.read(1000, 1010), ramp(1000, 1010))
