"""The samples of a live stream that are still needed, addressed from the stream's beginning."""

import numpy as np
import numpy.typing as npt

from pianissimo.errors import StreamError

GROWTH_SAMPLES = 16_384


class SampleBuffer:
    """Append at the end, read any range that was not forgotten; float32 mono.

    Positions count samples from the beginning of the stream. Memory is that of the samples kept.
    """

    def __init__(self, first: int = 0) -> None:
        self._first = first
        self._count = 0
        self._samples = np.zeros(GROWTH_SAMPLES, np.float32)

    @property
    def start(self) -> int:
        """The position of the oldest sample that is kept."""
        return self._first

    @property
    def end(self) -> int:
        """The position after the newest sample."""
        return self._first + self._count

    def append(self, samples: npt.NDArray[np.float32]) -> None:
        needed = self._count + len(samples)
        if needed > len(self._samples):
            grown = np.zeros(max(needed, 2 * len(self._samples)), np.float32)
            grown[: self._count] = self._samples[: self._count]
            self._samples = grown
        self._samples[self._count : needed] = samples
        self._count = needed

    def read(self, start: int, end: int, *, floor: int = 0) -> npt.NDArray[np.float32]:
        """A copy of the samples at start..end - 1; zeros before `floor` and after the newest.

        Raises StreamError for samples that were forgotten.
        """
        out = np.zeros(end - start, np.float32)
        a, b = max(start, floor), min(end, self.end)
        if a >= b:
            return out
        if a < self._first:
            raise StreamError(f"sample {a} was forgotten: the oldest kept is {self._first}")
        out[a - start : b - start] = self._samples[a - self._first : b - self._first]
        return out

    def forget(self, before: int) -> None:
        """Drop the samples before this position."""
        dropped = min(max(0, before - self._first), self._count)
        # Moving the rest to the front is worth it only when most of the room is stale.
        if dropped * 2 < self._count and dropped < GROWTH_SAMPLES:
            return
        kept = self._count - dropped
        room = max(GROWTH_SAMPLES, kept)
        samples = np.zeros(room, np.float32) if room < len(self._samples) // 4 else self._samples
        samples[:kept] = self._samples[dropped : self._count].copy()
        self._samples, self._count, self._first = samples, kept, self._first + dropped
