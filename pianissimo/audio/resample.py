"""Sample-rate conversion in blocks: pushed piece by piece, the result equals the whole at once."""

import math
from typing import TYPE_CHECKING, SupportsInt, TypedDict

import numpy as np
import numpy.typing as npt

from pianissimo.errors import AudioValueError, StreamError

if TYPE_CHECKING:
    import soxr

MIN_SAMPLE_RATE = 1_000
MAX_SAMPLE_RATE = 384_000


def check_sample_rate(rate: SupportsInt, owner: str) -> int:
    """Return `rate` in Hz as an int, or raise AudioValueError naming its `owner`."""
    try:
        hertz = int(rate)
        usable = hertz == rate and MIN_SAMPLE_RATE <= hertz <= MAX_SAMPLE_RATE
    except (TypeError, ValueError, OverflowError):
        usable = False
    if not usable:
        raise AudioValueError(
            f"{owner}: a sample rate of {rate!r} Hz is not usable; "
            f"it must be a whole number from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}"
        )
    return hertz


class SavedResampler(TypedDict):
    """The state of a `StreamingResampler`: counts of samples, and the last input (n,)."""

    received: int
    emitted: int
    recent: npt.NDArray[np.float32]


class StreamingResampler:
    """Converts one mono stream from `source_rate` to `target_rate`, both in Hz.

    Output is aligned in time with the input: sample k stands at k / target_rate seconds. Of n
    samples in come `round(n * target_rate / source_rate)` out (halves round up), some of them only
    from `finish`, because the filter looks ahead. Equal rates pass through at once, unchanged.

    Raises AudioValueError for a rate outside 1..384 kHz.
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        self.source_rate = check_sample_rate(source_rate, "source_rate")
        self.target_rate = check_sample_rate(target_rate, "target_rate")
        self._filter: soxr.ResampleStream | None = None  # unless the rates are equal
        self._received = 0
        self._emitted = 0
        self._finished = False
        self._recent = np.zeros(0, np.float32)  # the input that a restored filter needs again
        # What a restored filter gave sooner than the one before it, or how much later it is.
        self._early = np.zeros(0, np.float32)
        self._late = 0
        if self.source_rate != self.target_rate:
            self._filter = self._new_filter()

    def _new_filter(self) -> "soxr.ResampleStream":
        import soxr

        return soxr.ResampleStream(
            self.source_rate, self.target_rate, 1, dtype="float32", quality="HQ"
        )

    def push(self, block: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Take float32 samples (n,) and return those that are ready (m,), in a new array.

        Raises StreamError after `finish` and AudioValueError for a block that is not 1-D.
        """
        self._check_open("push")
        samples = np.array(block, dtype=np.float32)
        if samples.ndim != 1:
            raise AudioValueError(
                f"a block must be mono, of shape (samples,), but has shape {samples.shape}"
            )
        self._received += len(samples)
        if self._filter is None:
            return samples
        self._remember(samples)
        return self._emit(self._filter.resample_chunk(samples))

    def finish(self) -> npt.NDArray[np.float32]:
        """Return the samples still inside the filter (m,) and end the stream.

        Raises StreamError when called twice.
        """
        self._check_open("finish")
        self._finished = True
        nothing = np.zeros(0, dtype=np.float32)
        if self._filter is None:
            return nothing
        tail = self._filter.resample_chunk(nothing, last=True)
        doubled = 2 * self._received * self.target_rate + self.source_rate
        missing = doubled // (2 * self.source_rate) - self._emitted
        return self._emit(np.pad(tail[:missing], (0, max(0, missing - len(tail)))))

    def save(self) -> "SavedResampler":
        """What `restore` needs to continue this stream elsewhere."""
        return {
            "received": self._received,
            "emitted": self._emitted,
            "recent": self._recent,
        }

    def restore(self, saved: "SavedResampler") -> None:
        """Go on where `save` was called on a resampler of the same rates.

        The filter gets the last input again, so its output may differ in the last bit. Raises
        ValueError for counts that cannot be.
        """
        received, emitted = int(saved["received"]), int(saved["emitted"])
        recent = np.asarray(saved["recent"], np.float32)
        if not 0 <= len(recent) <= received or emitted < 0:
            raise ValueError("the counts of a saved resampler do not fit together")
        self._received, self._emitted, self._recent = received, emitted, recent
        if self._filter is not None:
            self._filter = self._new_filter()
            # `recent` begins where an output sample falls onto an input sample.
            before = (received - len(recent)) * self.target_rate // self.source_rate
            given = self._filter.resample_chunk(recent)
            self._early, self._late = given[emitted - before :], emitted - before - len(given)

    def _remember(self, samples: npt.NDArray[np.float32]) -> None:
        """Keep a quarter of a second, from a sample on that falls onto one of the output."""
        recent = np.concatenate([self._recent, samples])
        period = self.source_rate // math.gcd(self.source_rate, self.target_rate)
        surplus = len(recent) - self.source_rate // 4
        self._recent = recent[max(0, surplus) // period * period :]

    def _emit(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if len(self._early):
            samples, self._early = np.concatenate([self._early, samples]), self._early[:0]
        elif self._late > 0:
            dropped = min(self._late, len(samples))
            samples, self._late = samples[dropped:], self._late - dropped
        self._emitted += len(samples)
        return samples

    def _check_open(self, action: str) -> None:
        if self._finished:
            raise StreamError(
                f"cannot {action}: this resampler is finished; make a new one for a new stream"
            )
