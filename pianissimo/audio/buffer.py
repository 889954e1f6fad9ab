"""The samples of a live stream that may still be read, addressed from the stream's beginning."""

import numpy as np
import numpy.typing as npt

from pianissimo.errors import StreamError

STEP_SAMPLES = 4096
"""Room is made in steps of this size, not doubled: there is one buffer per stream."""


class SampleBuffer:
    """Append at the end, read any range that was not forgotten; float32 mono.

    Positions count samples from the beginning of the stream. What was used may be remembered for a
    while in half precision, in case it is wanted again. Memory is that of the samples kept.
    """

    def __init__(self, first: int = 0) -> None:
        self.start = first
        """The position of the oldest sample that is kept."""
        self.end = first
        """The position after the newest sample."""
        self._first = first
        self._count = 0
        self._samples = np.zeros(STEP_SAMPLES, np.float32)
        self._past = np.zeros(0, np.float16)

    def append(self, samples: npt.NDArray[np.float32]) -> None:
        needed = self._count + len(samples)
        if needed > len(self._samples):
            grown = np.zeros(-(-needed // STEP_SAMPLES) * STEP_SAMPLES, np.float32)
            grown[: self._count] = self._samples[: self._count]
            self._samples = grown
        self._samples[self._count : needed] = samples
        self._count, self.end = needed, self.end + len(samples)

    def read(self, start: int, end: int, *, floor: int = 0) -> npt.NDArray[np.float32]:
        """A copy of the samples at start..end - 1; zeros before `floor` and after the newest.

        Raises StreamError for samples that were forgotten.
        """
        out = np.zeros(end - start, np.float32)
        a, b = max(start, floor), min(end, self.end)
        if a >= b:
            return out
        if a < self.start:
            raise StreamError(f"sample {a} was forgotten: the oldest kept is {self.start}")
        old = min(b, self._first)
        if a < old:
            out[a - start : old - start] = self._past[a - self.start : old - self.start]
        new = max(a, self._first)
        if new < b:
            out[new - start : b - start] = self._samples[new - self._first : b - self._first]
        return out

    def forget(self, before: int, *, remember: int = 0) -> None:
        """Drop the samples before this position, but for the last `remember` of them."""
        dropped = min(max(0, before - self._first), self._count)
        if dropped < STEP_SAMPLES // 2 and dropped < self._count:
            return  # moving the rest to the front is worth it only now and then
        past = np.concatenate([self._past, self._samples[:dropped].astype(np.float16)])
        self._past = past[max(0, len(past) - remember) :].copy()
        kept = self._count - dropped
        room = max(1, -(-kept // STEP_SAMPLES)) * STEP_SAMPLES
        samples = np.zeros(room, np.float32) if room < len(self._samples) else self._samples
        samples[:kept] = self._samples[dropped : self._count].copy()
        self._samples, self._count, self._first = samples, kept, self._first + dropped
        self.start = self._first - len(self._past)
