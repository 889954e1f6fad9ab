"""FastConformer as a `StreamingEncoder`: its layers over the slots of an arena.

Shape legend: B rows of the step, Q frames per row, L left context, W = L + Q keys, D width,
H heads, K head width, A = H * K, R = L + 2Q - 1 distances, N layers.

The layers are those of `FastConformerEncoder`, and so are the numbers. What differs is where the
past lies: each row reads the ring of its own slot, at its own phase. The order of keys does not
matter to attention as long as each one gets the score of its distance, so rows at different phases
differ by an index alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.models.fastconformer import (
    MASKED_SCORE,
    ConformerLayer,
    ConvModule,
    RelativeAttention,
    SubsamplingState,
)
from pianissimo.models.packed import packed
from pianissimo.models.streaming_encoder import Memory, Rows, SlotTensor
from pianissimo.streaming.grid import ChunkGrid


class SlotEncoder:
    """Features, subsampling and layers of one model for streams in slots; holds no stream's state.

    Slot tensors: rings `key` and `value` (N, S, L, A), `conv` (N, S, k - 1, D), and for stage i of
    the subsampling the one input frame kept between chunks, `subsampling.i` (S, channels, 1, bins).
    `taps` are the depthwise convolutions of the layers, (k, D) each.
    """

    def __init__(self, model: AsrModel) -> None:
        self.config: AsrConfig = model.config
        self.features, self.device, self.dtype = model.features, model.device, model.dtype
        self.encoder = packed(model.encoder, "float32")
        config = self.encoder.config
        assert config.left_context is not None
        self.left, self.lookaheads = config.left_context, config.lookaheads
        self.layers: list[ConformerLayer] = list(self.encoder.layers)
        ring = SlotTensor((self.left, config.attention_dim), config.layers, ring=True)
        self.slot_tensors = {
            "key": ring,
            "value": ring,
            "conv": SlotTensor((config.conv_kernel - 1, config.dim), config.layers),
        }
        caches = self.encoder.subsampling.start(1).caches
        self._stages = [f"subsampling.{i}" for i in range(len(caches))]
        for name, cache in zip(self._stages, caches, strict=True):
            self.slot_tensors[name] = SlotTensor((cache.shape[1], 1, cache.shape[3]))
        weights = [layer.conv.depthwise.weight.detach() for layer in self.layers]
        self.taps = [weight[:, 0].T.contiguous() for weight in weights]
        self._relative: dict[int, Tensor] = {}

    def grid(self, lookahead: int) -> ChunkGrid:
        return self.config.grid(lookahead)

    def subsample(
        self,
        features: Tensor,
        slots: Tensor,
        memory: Memory,
        *,
        first: bool,
        final: bool = False,
    ) -> tuple[Tensor, Memory]:
        """See `StreamingEncoder.subsample`; `final` gives what the end of the streams completes."""
        subsampling = self.encoder.subsampling
        if first:
            state = subsampling.start(len(slots))
        else:
            caches = [memory[name][slots] for name in self._stages]
            state = SubsamplingState(caches, [1] * len(caches))
        x = subsampling.step(features, state, final=final)
        return x * self.encoder.scale, dict(zip(self._stages, state.caches, strict=True))

    def encode(
        self, x: Tensor, rows: Rows, memory: Memory, chunk: int, counts: Tensor | None = None
    ) -> tuple[Tensor, Memory]:
        """See `StreamingEncoder.encode`. At the end of streams x has what is left of the longest,
        `counts` (B,) are the valid frames of each row, and the changes are of no use."""
        past = SlotPast(self, rows, memory, x.shape[1], chunk, counts)
        for layer in self.layers:
            x = layer(x, past)
        return x, {
            "key": torch.stack(past.keys),
            "value": torch.stack(past.values),
            "conv": torch.stack(past.convs),
        }

    def tail(
        self, features: Sequence[Tensor | None], rows: Rows, memory: Memory, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """See `StreamingEncoder.tail`."""
        assert rows.counts is not None
        config = self.encoder.config
        tails = []
        for i, mel in enumerate(features):
            first = rows.counts[i] == 0
            if mel is None and first:
                tails.append(memory["key"].new_zeros(0, config.dim))
                continue
            if mel is None:
                mel = memory["key"].new_zeros(0, config.n_mels)
            slot = rows.slots[i : i + 1]
            x, _ = self.subsample(mel[None], slot, memory, first=first, final=True)
            tails.append(x[0])
        counts = torch.tensor([len(x) for x in tails], device=self.device)
        x = torch.nn.utils.rnn.pad_sequence(tails, batch_first=True)
        return (self.encode(x, rows, memory, chunk, counts)[0] if x.shape[1] else x), counts

    def relative_keys(self, queries: int) -> Tensor:
        """The scaled keys of the R distances of a window of Q queries: (N, H, K, R)."""
        if queries not in self._relative:
            scale: float = self.encoder.config.head_dim**-0.5
            keys = self.encoder.relative_keys(self.left, queries) * scale
            self._relative[queries] = keys.contiguous()
        return self._relative[queries]


class SlotPast:
    """The `LayerPast` of one step of rows in slots, for all layers in their order.

    Mutated: each layer appends what it would change, `keys` and `values` (B, Q, A) and `convs`
    (B, k - 1, D). The slots themselves are left unchanged.
    """

    def __init__(
        self,
        encoder: SlotEncoder,
        rows: Rows,
        memory: Memory,
        queries: int,
        chunk: int,
        counts: Tensor | None,
    ) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.convs: list[Tensor] = []
        self._encoder, self._rows, self._memory = encoder, rows, memory
        self._relative = encoder.relative_keys(queries)
        B, Q, L, A = len(rows.slots), queries, encoder.left, memory["key"].shape[-1]
        # All layers share one window, small enough to stay in the processor's cache.
        self._window = memory["key"].new_empty(2, B, L + Q, A)
        frames, device = rows.frames[:, None, None], rows.slots.device
        query, new = torch.arange(Q, device=device)[:, None], torch.arange(Q, device=device)
        age = (torch.arange(L, device=device) - frames) % L  # 0 for the oldest frame of the ring
        past = Q - 1 - query + age
        own = (L + Q - 1 - query + new).expand(B, Q, Q)
        self._distance = torch.cat([past, own], dim=2)[None]  # (1, B, Q, W) into the R distances
        self._mask: Tensor | None = None  # (B, 1, Q, W), added to the scores
        full = rows.counts is not None and min(rows.counts) >= L
        if counts is None and Q <= chunk and full:
            return
        # A query sees its own chunk and the L frames before that chunk, as far as they exist.
        begin = query // chunk * chunk
        seen = (age >= begin) & (frames - L + age >= 0)
        seen_own = (new < begin + chunk).expand(B, Q, Q)
        if counts is not None:
            seen_own = seen_own & (new < counts[:, None, None])
        mask = torch.cat([seen, seen_own], dim=2)
        # Rows past the end of a stream see themselves, so that their numbers stay finite.
        self._mask = torch.where(mask, 0.0, MASKED_SCORE).to(memory["key"].dtype)[:, None]

    def attend(
        self, attention: RelativeAttention, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """The heads of each row over the ring of its slot and its new frames: (B, Q, A)."""
        B, Q, A = query.shape
        H, K, layer, rows = attention.heads, attention.head_dim, len(self.keys), self._rows
        L, W = self._encoder.left, self._distance.shape[-1]
        query = query.view(B, Q, H, K)
        by_distance = (query + attention.bias_v).view(B * Q, H, K).transpose(0, 1)
        scores = torch.bmm(by_distance, self._relative[layer]).view(H, B, Q, -1)
        bias = scores.gather(3, self._distance.expand(H, B, Q, W)).transpose(0, 1)
        if self._mask is not None:
            bias = bias + self._mask
        for window, name, new in zip(self._window, ("key", "value"), (key, value), strict=True):
            ring = self._memory[name][layer]
            if rows.first is None:
                torch.index_select(ring, 0, rows.slots, out=window[:, :L])
            else:
                window[:, :L] = ring[rows.first : rows.first + B]
            window[:, L:] = new
        self.keys.append(key)
        self.values.append(value)
        keys, values = self._window.view(2, B, W, H, K).transpose(2, 3)
        heads = F.scaled_dot_product_attention(
            (query + attention.bias_u).transpose(1, 2),
            keys,
            values,
            attn_mask=bias,
            scale=K**-0.5,
        )
        return heads.transpose(1, 2).reshape(B, Q, A)

    def convolve(self, conv: ConvModule, x: Tensor) -> Tensor:
        """Tap by tap: the convolution kernels of a few frames cost ten times their arithmetic."""
        layer, Q = len(self.convs), x.shape[1]
        taps = self._encoder.taps[layer]
        x = torch.cat([self._memory["conv"][layer].index_select(0, self._rows.slots), x], dim=1)
        self.convs.append(x[:, Q:])
        y = x[:, :Q] * taps[0]
        for j in range(1, len(taps)):
            y.addcmul_(x[:, j : j + Q], taps[j])
        if conv.depthwise.bias is not None:
            y += conv.depthwise.bias
        return y
