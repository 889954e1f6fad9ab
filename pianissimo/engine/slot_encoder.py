"""One encoder step for many independent streams: the layers over the rings of the arena.

Shape legend: B rows of the step, Q frames per row, L left context, W = L + Q keys, D width,
H heads, K head width, A = H * K, R = L + 2Q - 1 distances.

The numbers are those of `FastConformerEncoder.step` for each stream alone. What differs is where
the past lies: here each row reads the ring of its own slot, at its own phase. The order of keys
does not matter to attention as long as each one gets the score of its distance, so rows at
different phases are told apart by an index alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pianissimo.engine.arena import Arena
from pianissimo.models.fastconformer import (
    MASKED_SCORE,
    ConformerLayer,
    FastConformerEncoder,
    SubsamplingState,
)


@dataclass(frozen=True)
class Rows:
    """The rows of a step: the slot of each, and how many frames its stream has behind it.

    `first` is the first slot where they are consecutive; `full` says that all rings are.
    """

    slots: Tensor  # (B,)
    frames: Tensor  # (B,)
    first: int | None
    full: bool

    @classmethod
    def of(cls, slots: list[int], frames: list[int], left: int, device: torch.device) -> "Rows":
        """Rows whose numbers are known to the host, which may spare the device some work."""
        first = slots[0]
        together = slots == list(range(first, first + len(slots)))
        return cls(
            torch.tensor(slots, device=device),
            torch.tensor(frames, device=device),
            first if together else None,
            min(frames) >= left,
        )


@dataclass(frozen=True)
class Written:
    """What a step would change in the arena: nothing is written until it is committed.

    key, value: (layers, B, Q, D); conv: (layers, B, k - 1, D).
    """

    key: Tensor
    value: Tensor
    conv: Tensor


@dataclass(frozen=True)
class _View:
    """How all layers of one step see the past."""

    rows: Rows
    distance: Tensor  # (1, B, Q, W) into the R distances
    mask: Tensor | None  # (B, 1, Q, W), added to the scores


class SlotEncoder:
    """Runs an encoder's subsampling and layers for rows of an arena; holds no state of streams."""

    def __init__(self, encoder: FastConformerEncoder, arena: Arena) -> None:
        self.encoder, self.arena = encoder, arena
        self.layers: list[ConformerLayer] = list(encoder.layers)
        self.scale = encoder.config.head_dim**-0.5
        self._device = arena.key.device
        self._relative: dict[int, Tensor] = {}
        self._depthwise = [
            layer.conv.depthwise.weight[:, 0].T.contiguous() for layer in self.layers
        ]
        self.scratch = arena.key.new_zeros(0)

    def relative(self, queries: int) -> Tensor:
        """The scaled keys of the R distances for Q queries: (layers, H, K, R)."""
        if queries not in self._relative:
            keys = self.encoder.relative_keys(self.arena.left, queries) * self.scale
            self._relative[queries] = keys.contiguous()
        return self._relative[queries]

    # -- subsampling -------------------------------------------------------------------------------

    def subsample(self, mel: Tensor, slots: Tensor, *, first: bool) -> tuple[Tensor, list[Tensor]]:
        """(B, T, F) mel frames of a whole chunk -> (B, Q, D), and the stages' caches after it.

        `first` says that these are the first chunks of their streams.
        """
        state = self._subsampling_state(slots, first)
        x = self.encoder.subsampling.step(mel, state)
        return x * self.encoder.scale, state.caches

    def subsample_last(self, mel: Tensor, slots: Tensor, *, first: bool) -> Tensor:
        """(B, T, F), T >= 0, up to the end of the streams -> (B, Q, D); nothing is remembered."""
        state = self._subsampling_state(slots, first)
        return self.encoder.subsampling.step(mel, state, final=True) * self.encoder.scale

    def _subsampling_state(self, slots: Tensor, first: bool) -> SubsamplingState:
        if first:
            return self.encoder.subsampling.start(len(slots))
        caches = [cache[slots] for cache in self.arena.subsampling]
        return SubsamplingState(caches, [1] * len(caches))

    # -- layers ------------------------------------------------------------------------------------

    def step(
        self, x: Tensor, rows: Rows, chunk: int, counts: Tensor | None = None
    ) -> tuple[Tensor, Written]:
        """Run the layers over (B, Q, D) subsampled frames of B streams.

        Q is one chunk. At the end of streams it is what is left of the longest, and `counts` (B,)
        are the valid frames of each row; what it would write is then of no use.
        """
        Q = x.shape[1]
        view = self._view(rows, Q, chunk, counts)
        relative = self.relative(Q)
        keys, values, convs = [], [], []
        for i, layer in enumerate(self.layers):
            x, key, value, conv = self._layer(i, layer, x, relative[i], view)
            keys.append(key)
            values.append(value)
            convs.append(conv)
        return x, Written(torch.stack(keys), torch.stack(values), torch.stack(convs))

    def commit(self, rows: Rows, written: Written, caches: list[Tensor]) -> None:
        """Write what a step of whole chunks left behind, in place of the oldest frames.

        Counting the frames is left to the caller.
        """
        arena, slots, (N, B, Q, D) = self.arena, rows.slots, written.key.shape
        ring = (rows.frames[:, None] + torch.arange(Q, device=self._device)) % arena.left
        index = (slots[:, None] * arena.left + ring).flatten()
        arena.key.view(N, -1, D).index_copy_(1, index, written.key.view(N, B * Q, D))
        arena.value.view(N, -1, D).index_copy_(1, index, written.value.view(N, B * Q, D))
        arena.conv.index_copy_(1, slots, written.conv)
        for cache, new in zip(arena.subsampling, caches, strict=True):
            cache.index_copy_(0, slots, new)

    def _view(self, rows: Rows, Q: int, chunk: int, counts: Tensor | None) -> _View:
        L, device = self.arena.left, self._device
        frames = rows.frames[:, None, None]
        query = torch.arange(Q, device=device)[:, None]
        ring = torch.arange(L, device=device)
        age = (ring - frames) % L  # 0 for the oldest frame of the ring
        past = Q - 1 - query + age
        own = (L + Q - 1 - query + torch.arange(Q, device=device)).expand(len(rows.slots), Q, Q)
        distance = torch.cat([past, own], dim=2)[None]
        if counts is None and Q <= chunk and rows.full:
            return _View(rows, distance, None)
        # A query sees its own chunk and the L frames before that chunk, as far as they exist.
        begin = query // chunk * chunk
        seen = (age >= begin) & (frames - L + age >= 0)
        new = torch.arange(Q, device=device)
        seen_own = (new < begin + chunk).expand(len(rows.slots), Q, Q)
        if counts is not None:
            seen_own = seen_own & (new < counts[:, None, None])
        mask = torch.cat([seen, seen_own], dim=2)
        # Rows past the end of a stream see themselves, so that their numbers stay finite.
        scores = torch.where(mask, 0.0, MASKED_SCORE).to(self.arena.key.dtype)
        return _View(rows, distance, scores[:, None])

    def _layer(
        self, i: int, layer: ConformerLayer, x: Tensor, relative: Tensor, view: _View
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One layer: (B, Q, D) -> the same, and its new keys, values and convolution cache."""
        x = x.add(layer.ff1(layer.norm_ff1(x)), alpha=0.5)
        query, key, value = layer.attention.qkv(layer.norm_attention(x)).chunk(3, dim=-1)
        heads = self._attend(i, layer, query, key, value, relative, view)
        x = x + layer.attention.out(heads)
        convolved, conv = self._convolve(i, layer, layer.norm_conv(x), view.rows.slots)
        x = x + convolved
        x = x.add(layer.ff2(layer.norm_ff2(x)), alpha=0.5)
        return layer.norm_out(x), key, value, conv

    def _attend(
        self,
        i: int,
        layer: ConformerLayer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        relative: Tensor,
        view: _View,
    ) -> Tensor:
        attention = layer.attention
        B, Q, A = query.shape  # all heads
        H, K = attention.heads, attention.head_dim
        query = query.view(B, Q, H, K)
        by_distance = (query + attention.bias_v).view(B * Q, H, K).transpose(0, 1)
        scores = torch.bmm(by_distance, relative).view(H, B, Q, -1)
        W = view.distance.shape[-1]
        bias = scores.gather(3, view.distance.expand(H, B, Q, W)).transpose(0, 1)
        if view.mask is not None:
            bias = bias + view.mask
        keys, values = self._windows(i, view, key, value)
        heads = F.scaled_dot_product_attention(
            (query + attention.bias_u).transpose(1, 2),
            keys.view(B, W, H, K).transpose(1, 2),
            values.view(B, W, H, K).transpose(1, 2),
            attn_mask=bias,
            scale=self.scale,
        )
        return heads.transpose(1, 2).reshape(B, Q, A)

    def _windows(self, i: int, view: _View, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's ring with its new frames behind it, keys and values: (B, W, A).

        They share one buffer for all layers, small enough to stay in the processor's cache.
        """
        B, Q, A = key.shape
        L = self.arena.left
        cells = 2 * B * (L + Q) * A
        if self.scratch.numel() < cells:
            self.scratch = self.arena.key.new_zeros(cells)
        keys, values = self.scratch[:cells].view(2, B, L + Q, A)
        for window, ring, new in (
            (keys, self.arena.key[i], key),
            (values, self.arena.value[i], value),
        ):
            if view.rows.first is None:
                torch.index_select(ring, 0, view.rows.slots, out=window[:, :L])
            else:
                window[:, :L] = ring[view.rows.first : view.rows.first + B]
            window[:, L:] = new
        return keys, values

    def _convolve(
        self, i: int, layer: ConformerLayer, x: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        conv, taps = layer.conv, self._depthwise[i]
        Q = x.shape[1]
        x = torch.cat([self.arena.conv[i].index_select(0, slots), F.glu(conv.up(x), dim=-1)], dim=1)
        # Tap by tap: the convolution kernels of a few frames cost ten times their arithmetic.
        y = x[:, :Q] * taps[0]
        for j in range(1, len(taps)):
            y.addcmul_(x[:, j : j + Q], taps[j])
        if conv.depthwise.bias is not None:
            y += conv.depthwise.bias
        return conv.down(F.silu(conv.norm(y))), x[:, Q:]
