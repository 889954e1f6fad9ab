"""Chunk arithmetic of one stream: which samples each chunk needs, and the work made of them.

Positions are samples at the model's rate, counted from the beginning of the encoder's state.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Framing(Protocol):
    """How features divide samples into frames; `FeatureConfig` has these attributes."""

    @property
    def sample_rate(self) -> int: ...

    @property
    def hop_samples(self) -> int: ...

    @property
    def fft_samples(self) -> int: ...

    @property
    def reach_samples(self) -> int:
        """Samples that a frame needs after its center."""
        ...


@dataclass(frozen=True)
class ChunkGrid:
    """Where the chunks of a stream begin and end, in samples of the model's rate.

    Chunk k, counted from 0, has `chunk` encoder frames; its features are the feature frames
    first_frame(k) to first_frame(k + 1) - 1. Encoder frame s reads no feature frame after
    `factor` * s + `ahead`. With `partial` a last feature frame that is not full counts in a rest.
    """

    chunk: int
    factor: int
    features: Framing
    ahead: int = 0
    partial: bool = False

    @cached_property
    def chunk_samples(self) -> int:
        return self.chunk * self.factor * self.features.hop_samples

    @cached_property
    def chunk_seconds(self) -> float:
        return self.chunk_samples / self.features.sample_rate

    def first_frame(self, k: int) -> int:
        """The first feature frame that chunk k reads and no earlier chunk does."""
        return max(0, (self.chunk * k - 1) * self.factor + self.ahead) + 1 if k else 0

    def needed(self, k: int) -> int:
        """The number of samples, from the beginning, that complete chunk k."""
        last = self.first_frame(k + 1) - 1
        return last * self.features.hop_samples + self.features.reach_samples

    def window(self, k: int) -> tuple[int, int]:
        """The samples [start, end) from which the features of chunk k are computed."""
        hop, fft = self.features.hop_samples, self.features.fft_samples
        first, last = self.first_frame(k), self.first_frame(k + 1) - 1
        # One sample more on the left, for the pre-emphasis.
        return first * hop - fft // 2 - 1, last * hop - fft // 2 + fft

    def rest(self, k: int, samples: int) -> tuple[int, int, int]:
        """What a stream of `samples` samples has from chunk k on: the samples [start, end) and
        the number of their feature frames."""
        hop, fft = self.features.hop_samples, self.features.fft_samples
        first = self.first_frame(k)
        known = -(-samples // hop) if self.partial else samples // hop
        frames = max(0, known - first)
        start = first * hop - fft // 2 - 1
        return start, start + (1 + (frames - 1) * hop + fft if frames else 0), frames


@dataclass(frozen=True)
class ChunkWork:
    """The next chunk of one stream: `samples` are those of `ChunkGrid.window`."""

    slot: int
    samples: npt.NDArray[np.float32]


@dataclass(frozen=True)
class TailWork:
    """What one stream has after its complete chunks: `samples` are those of `ChunkGrid.rest`.

    `valid` of them are audio, the others lie after the end. With `continues` the stream continues
    as if the tail had not been encoded, but its frames are not searched again. With `again` all
    audio since the state began is encoded and decoded a second time, see `SecondPass`.
    """

    slot: int
    samples: npt.NDArray[np.float32]
    mel_frames: int
    valid: int
    continues: bool
    again: bool = False
