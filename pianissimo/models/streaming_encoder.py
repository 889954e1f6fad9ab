"""The interface between an encoder and the engine: live streams of any encoder, chunk by chunk.

Shape legend: B rows of a step, N samples, T feature frames, F feature bins, Q encoder frames of a
step, D encoder width, S slots.

A `StreamingEncoder` computes and never stores: it declares what a stream remembers as named
`SlotTensor`s, reads them from the arena by slot, and returns what they become. The runner commits
the changes once the whole step has succeeded.

The three laws of streams hold if, for each row, the result depends on that row's slot and input
alone, and if a slot of zeros with 0 frames is a new stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from pianissimo.streaming.grid import ChunkGrid

Memory = Mapping[str, Tensor]
"""Tensors by name: those of the arena, or their new values for the rows of a step."""


@dataclass(frozen=True)
class SlotTensor:
    """What one stream remembers under one name; `shape` is that of one stream, of one layer.

    The arena holds (S, *shape), or (layers, S, *shape) where `layers` is given. A `ring` holds the
    last shape[0] encoder frames, frame t at t mod shape[0]; a step returns its new frames (Q along
    that axis, at most shape[0]), which replace the oldest. Any other tensor is replaced as a whole.
    `dtype` None is the dtype of the encoder.
    """

    shape: tuple[int, ...]
    layers: int | None = None
    ring: bool = False
    dtype: torch.dtype | None = None

    @cached_property
    def axis(self) -> int:
        """The axis of the slots; that of a ring follows it."""
        return 0 if self.layers is None else 1

    def allocate(self, slots: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Zeros for that many slots."""
        shape = (slots, *self.shape)
        if self.layers is not None:
            shape = (self.layers, *shape)
        return torch.zeros(shape, device=device, dtype=self.dtype or dtype)


@dataclass(frozen=True)
class Rows:
    """The rows of a step: the slot of each, and the encoder frames its stream has had before.

    slots, frames: (B,). `counts` are the frames known to the host, `first` is the first slot where
    the slots are consecutive; both are None inside a CUDA graph, which serves any rows.
    """

    slots: Tensor
    frames: Tensor
    counts: tuple[int, ...] | None = None
    first: int | None = None


class Features(Protocol):
    """Samples to feature frames, statelessly; `MelFeatures` is one."""

    def frames(self, windows: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, N) samples of `ChunkGrid.window` or `ChunkGrid.rest` -> (B, T, F) float32.

        The first sample serves the pre-emphasis and may be ignored. `valid` (B,) says how many
        samples of a finished row are audio: what follows them is silence.
        """
        ...


class StreamingEncoder(Protocol):
    """An encoder as runner, arena and engine use it. All methods leave `memory` unchanged."""

    @property
    def features(self) -> Features: ...

    @property
    def slot_tensors(self) -> Mapping[str, SlotTensor]:
        """What the arena holds for each stream."""
        ...

    @property
    def lookaheads(self) -> tuple[int, ...]:
        """The latency modes, in encoder frames after the current one."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def grid(self, lookahead: int) -> ChunkGrid:
        """The chunks of one latency mode; OptionError naming the modes for any other."""
        ...

    def subsample(
        self, features: Tensor, slots: Tensor, memory: Memory, *, first: bool
    ) -> tuple[Tensor, Memory]:
        """The features of a whole chunk (B, T, F) -> frames (B, Q, D) and changes of `memory`.

        `first` says that these are the first chunks of their streams, which have fewer features
        (`ChunkGrid.first_frame`) and nothing before them.
        """
        ...

    def encode(self, x: Tensor, rows: Rows, memory: Memory, chunk: int) -> tuple[Tensor, Memory]:
        """Subsampled frames of one chunk (B, chunk, D) -> encoder frames and changes of `memory`.

        The frames of the stream before the chunk are `rows.frames`: absolute positions count from
        there, and start at 0 when the slot is cleared.
        """
        ...

    def tail(
        self, features: Sequence[Tensor | None], rows: Rows, memory: Memory, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """What streams have left where they end or are locked: features (T, F) of each row, or None
        -> encoder frames (B, Q, D) and their number in each row (B,). Nothing is remembered.

        The rows may end in frames of silence that the decoder needs; `Decoder.finish` knows them.
        """
        ...
