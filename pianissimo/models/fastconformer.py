"""FastConformer encoder: offline and cache-aware streaming with the same code.

Shape legend: B batch, T mel frames, F mel bins, S encoder frames, D width, H heads, K head width,
A = H * K, L left context, C chunk (lookahead + 1), Q queries of an attention window, W its keys.

Papers: Gulati et al. 2020 (Conformer), Rekesh et al. 2023 (FastConformer, arXiv 2305.05084),
Noroozi et al. 2023 (cache-aware streaming, arXiv 2312.17279). Numerics follow NeMo 3.0.

Streaming law: `forward` over a whole utterance, `step` over its chunks, and a batch or a lone
stream all give the same numbers. Chunking exists only in the attention: encoder frame i belongs to
chunk i // C and sees its own chunk and at most the L frames before that chunk. Keys and values of
those L frames are cached, so no frame is encoded twice. The modules hold weights only; what a
stream remembers is an `EncoderState` that the caller owns.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.errors import OptionError

KERNEL, STRIDE = 3, 2
QUERIES_PER_WINDOW = 16
"""Offline, short chunks share an attention window until it has about this many queries."""
ATTENTION_CELLS = 1 << 24
"""Most (query, key) scores held at once per layer with unlimited context."""
MASKED_SCORE = -1e4
FRAMES_PER_BLOCK = 3200
"""Mel frames that go through the subsampling at once."""
ROWS_PER_BLOCK = 4096
"""Encoder frames that go through a feed-forward at once, as it widens them."""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the encoder. Lengths in encoder frames unless said otherwise.

    `left_context` and `lookaheads` describe chunk-limited attention; the first lookahead is the
    default. Both None / empty mean that every frame sees the whole utterance. `conv_norm` "folded"
    is a batch norm whose running statistics were folded into the depthwise convolution. With
    `depthwise_subsampling` False its convolutions mix channels, as those of the first Conformers
    (Gulati et al. 2020, arXiv 2005.08100) do. Heads share `dim` among them, or are `head_width`
    wide each, where some were removed.
    """

    n_mels: int = 128
    dim: int = 1024
    layers: int = 24
    heads: int = 8
    ff_dim: int = 4096
    conv_kernel: int = 9
    conv_norm: Literal["layer", "folded"] = "layer"
    causal_conv: bool = True
    subsampling_factor: int = 8
    subsampling_channels: int = 256
    causal_subsampling: bool = True
    attention_bias: bool = False
    conv_bias: bool = False
    scale_input: bool = False
    left_context: int | None = 70
    lookaheads: tuple[int, ...] = (13, 6, 1, 0)
    dropout: float = 0.0
    head_width: int | None = None
    depthwise_subsampling: bool = True

    def __post_init__(self) -> None:
        sizes = ("n_mels", "dim", "layers", "heads", "ff_dim", "conv_kernel")
        for name in (*sizes, "subsampling_channels"):
            if getattr(self, name) < 1:
                raise OptionError(f"encoder {name} is {getattr(self, name)}, expected 1 or more")
        if not 0 <= self.dropout < 1 or min(self.lookaheads, default=0) < 0:
            raise OptionError(
                f"encoder dropout {self.dropout} or lookaheads {self.lookaheads} are out of range"
            )
        if self.head_width is not None and self.head_width < 1:
            raise OptionError(f"encoder head_width is {self.head_width}, expected 1 or more")
        if self.head_width is None and self.dim % self.heads:
            raise OptionError(f"encoder width {self.dim} is not divisible by {self.heads} heads")
        if self.subsampling_factor & (self.subsampling_factor - 1) or self.subsampling_factor < 2:
            raise OptionError(
                f"subsampling factor {self.subsampling_factor} is not a power of two from 2 on"
            )
        if (self.left_context is None) != (not self.lookaheads):
            raise OptionError("left_context and lookaheads are given together or not at all")
        for lookahead in self.lookaheads:
            if self.left_context is not None and self.left_context % (lookahead + 1):
                raise OptionError(
                    f"left context {self.left_context} is not a multiple of the chunk of "
                    f"{lookahead + 1} frames (lookahead {lookahead})"
                )

    @property
    def head_dim(self) -> int:
        return self.head_width or self.dim // self.heads

    @property
    def attention_dim(self) -> int:
        """The width of all heads together."""
        return self.heads * self.head_dim

    @property
    def streams(self) -> bool:
        """Whether the encoder can run chunk by chunk with the same result as offline."""
        return self.left_context is not None and self.causal_conv and self.causal_subsampling

    @property
    def subsampling_stages(self) -> int:
        return self.subsampling_factor.bit_length() - 1

    def chunk(self, lookahead: int) -> int:
        """Encoder frames per chunk at this lookahead; raises OptionError if unsupported."""
        if lookahead not in self.lookaheads:
            known = ", ".join(map(str, self.lookaheads)) or "none: it sees whole utterances"
            raise OptionError(f"lookahead {lookahead} is not one this model has ({known})")
        return lookahead + 1


@dataclass
class SubsamplingState:
    """Input frames each stride-2 stage has not used up, how many it was given, and the output."""

    caches: list[Tensor]
    counts: list[int]
    emitted: int = 0


@dataclass
class EncoderState:
    """Everything a stream (or a batch of streams in lockstep) remembers in the encoder.

    key, value: (layers, B, H, L, K), newest frame last; conv: (layers, B, kernel - 1, D).
    `frames` counts the encoder frames that went through the layers, `pending` (B, <C, D) holds
    subsampled frames of a chunk that is not complete.
    """

    subsampling: SubsamplingState
    key: Tensor
    value: Tensor
    conv: Tensor
    pending: Tensor
    frames: int = 0


@dataclass(frozen=True)
class ChunkPlan:
    """What every step at one lookahead shares: the chunk and each layer's relative keys.

    `relative` is (layers, H, K, L + 2Q - 1), the projected sinusoids from the largest distance
    (L + Q - 1) down to -(Q - 1) for the widest window of Q queries. They depend on the weights
    alone, so they are computed once.
    """

    chunk: int
    left: int
    queries: int
    relative: Tensor


class Subsampling(nn.Module):
    """Striding convolutions, depthwise or plain: (B, T, F) mel -> (B, about T / factor, D).

    Each stage pads the frequency axis and time by zeros; the causal form pads time on the left
    only, so encoder frame s never reads a mel frame later than factor * s.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.channels = channels = config.subsampling_channels
        self.left = KERNEL - 1 if config.causal_subsampling else KERNEL // 2
        self.right = STRIDE - 1 if config.causal_subsampling else KERNEL // 2
        stages = config.subsampling_stages
        self.depthwise = config.depthwise_subsampling
        groups = channels if self.depthwise else 1
        self.conv = nn.ModuleList(
            [nn.Conv2d(1, channels, KERNEL, STRIDE)]
            + [
                nn.Conv2d(channels, channels, KERNEL, STRIDE, groups=groups)
                for _ in range(stages - 1)
            ]
        )
        self.pointwise = nn.ModuleList(
            [nn.Conv2d(channels, channels, 1) for _ in range(stages - 1 if self.depthwise else 0)]
        )
        bins = config.n_mels
        self.bins = [bins]
        for _ in range(stages):
            bins = (bins + self.left + self.right - KERNEL) // STRIDE + 1
            self.bins.append(bins)
        self.out = nn.Linear(channels * bins, config.dim)

    @property
    def weight(self) -> Tensor:
        """A weight that is never packed: it has the device and the dtype of the model."""
        return cast("nn.Conv2d", self.conv[0]).weight

    def output_length(self, frames: Tensor) -> Tensor:
        """Encoder frames of finished utterances of that many mel frames, (B,); 0 for 0."""
        for _ in self.conv:
            frames = self._stage_length(frames)
        return frames

    def start(self, batch: int) -> SubsamplingState:
        """The state of `batch` streams before their first frame: zeros stand to the left."""
        weight = self.weight
        caches = [
            weight.new_zeros(batch, self.channels if stage else 1, self.left, self.bins[stage])
            for stage in range(len(self.conv))
        ]
        return SubsamplingState(caches, [0] * len(caches))

    def step(
        self,
        mel: Tensor,
        state: SubsamplingState,
        *,
        lengths: Tensor | None = None,
        final: bool = False,
    ) -> Tensor:
        """Further mel frames (B, T, F), T >= 0 -> the frames that they complete (B, S, D). Mutates
        `state`.

        `lengths` (B,), counted from the start of the stream, masks rows of a padded batch that end
        earlier. `final` emits what the end of the utterance completes.
        """
        x = mel.unsqueeze(1)
        valid = lengths
        for stage, conv in enumerate(self.conv):
            if valid is not None:
                x = self._mask(x, state.counts[stage], valid)
            state.counts[stage] += x.shape[2]
            x = torch.cat([state.caches[stage], x], dim=2)
            if final and state.counts[stage] and x.shape[2] % STRIDE == 0:
                x = F.pad(x, (0, 0, 0, 1))  # the last window reaches one frame past the end
            outputs = max(0, (x.shape[2] - KERNEL) // STRIDE + 1)
            state.caches[stage] = x[:, :, STRIDE * outputs :].clone()
            if valid is not None:
                valid = self._stage_length(valid)
            if outputs == 0:
                x = x.new_zeros(x.shape[0], self.channels, 0, self.bins[stage + 1])
                continue
            x = conv(F.pad(x, (self.left, self.right)))
            if stage and self.depthwise:
                x = self.pointwise[stage - 1](x)
            x = F.relu(x)
        if valid is not None:
            x = self._mask(x, state.emitted, valid)
        state.emitted += x.shape[2]
        B, channels, S, bins = x.shape
        return self.out(x.transpose(1, 2).reshape(B, S, channels * bins))

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, S, D), (B,): a batch of finished utterances.

        Goes through time in blocks, for the first stages are wide: their memory does not grow.
        """
        state = self.start(mel.shape[0])
        blocks = mel.split(FRAMES_PER_BLOCK, dim=1)
        parts = [
            self.step(block, state, lengths=lengths, final=i == len(blocks) - 1)
            for i, block in enumerate(blocks)
        ]
        return torch.cat(parts, dim=1), self.output_length(lengths)

    def _stage_length(self, n: Tensor) -> Tensor:
        return torch.where(n > 0, (n + self.left + self.right - KERNEL) // STRIDE + 1, n)

    @staticmethod
    def _mask(x: Tensor, first: int, lengths: Tensor) -> Tensor:
        """Zero the (B, channels, T, bins) frames at or past each row's length."""
        index = torch.arange(first, first + x.shape[2], device=x.device)
        return x * (index < lengths[:, None])[:, None, :, None]


class LayerPast(Protocol):
    """What one layer reads besides its input: what lies before each row, and what a frame sees.

    The layer is the same for whole utterances (`WholePast`), blocks of streams in lockstep
    (`CachedPast`) and rows of an arena (`engine/slot_encoder.py`). Both methods mutate the past
    where it has a next block: it then keeps what that block needs.
    """

    def attend(
        self, attention: "RelativeAttention", query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Projected frames (B, S, A) -> the heads side by side (B, S, A)."""
        ...

    def convolve(self, conv: "ConvModule", x: Tensor) -> Tensor:
        """The depthwise convolution of gated frames: (B, S, D) -> (B, S, D)."""
        ...


class FeedForward(nn.Module):
    """Linear, SiLU, linear: (..., D) -> (..., D)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.ff_dim, bias=config.attention_bias)
        self.down = nn.Linear(config.ff_dim, config.dim, bias=config.attention_bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for block in x.split(ROWS_PER_BLOCK, dim=1):
            wide = F.silu(self.up(block))
            parts.append(self.down(self.dropout(wide) if self.training else wide))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


class RelativeAttention(nn.Module):
    """Multi-head attention with relative positions (Transformer-XL, Dai et al. 2019).

    score(i, j) = ((q_i + u) . k_j + (q_i + v) . p_{i-j}) / sqrt(K), p the projected sinusoids.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        D, A, bias = config.dim, config.attention_dim, config.attention_bias
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = nn.Linear(D, 3 * A, bias=bias)
        self.out = nn.Linear(A, D, bias=bias)
        self.position = nn.Linear(D, A, bias=False)
        self.bias_u = nn.Parameter(torch.zeros(self.heads, self.head_dim))
        self.bias_v = nn.Parameter(torch.zeros(self.heads, self.head_dim))

    def forward(self, x: Tensor, past: LayerPast) -> Tensor:
        """(B, S, D) -> (B, S, D); mutates `past`."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return self.out(past.attend(self, query, key, value))

    def relative_keys(self, sinusoids: Tensor) -> Tensor:
        """(R, D) sinusoids -> (H, K, R) keys of those distances."""
        projected = self.position(sinusoids)
        return projected.view(len(sinusoids), self.heads, self.head_dim).permute(1, 2, 0)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, relative: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention of whole windows.

        q (B, H, n, Q, K); k, v (B, H, n, W, K); relative (H, K, Q + W - 1), largest distance first;
        mask, broadcastable to (B, H, n, Q, W), is true where a key may be seen.
        Returns (B, n * Q, A), the heads side by side; a query that may see nothing gets zeros.
        """
        u, w = self.bias_u[:, None, None, :], self.bias_v[:, None, None, :]
        position = skew((q + w) @ relative[:, None], k.shape[-2])
        scores = ((q + u) @ k.transpose(-2, -1) + position) / math.sqrt(self.head_dim)
        if mask is None:
            heads = torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype) @ v
        else:
            scores = scores.masked_fill(~mask, MASKED_SCORE)
            weights = torch.softmax(scores, -1, dtype=torch.float32)
            heads = weights.masked_fill(~mask, 0.0).to(v.dtype) @ v
        B, H, n, Q, K = heads.shape
        return heads.permute(0, 2, 3, 1, 4).reshape(B, n * Q, H * K)


class ConvModule(nn.Module):
    """Pointwise, GLU, depthwise, norm, SiLU, pointwise: (B, S, D) -> (B, S, D).

    Pointwise convolutions are linear layers, so that whatever works on linears works on them.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        D, bias = config.dim, config.conv_bias
        self.kernel = config.conv_kernel
        self.history = self.kernel - 1 if config.causal_conv else self.kernel // 2
        self.up = nn.Linear(D, 2 * D, bias=bias)
        # Folding a batch norm into the depthwise convolution leaves a bias behind.
        folded = config.conv_norm == "folded"
        self.depthwise = nn.Conv1d(D, D, self.kernel, groups=D, bias=bias or folded)
        self.norm = nn.Identity() if folded else nn.LayerNorm(D)
        self.down = nn.Linear(D, D, bias=bias)

    def forward(self, x: Tensor, past: LayerPast) -> Tensor:
        """(B, S, D) -> (B, S, D); mutates `past`."""
        x = past.convolve(self, F.glu(self.up(x), dim=-1))
        return self.down(F.silu(self.norm(x)))


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, norm; (B, S, D) throughout."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        D = config.dim
        self.norm_ff1, self.ff1 = nn.LayerNorm(D), FeedForward(config)
        self.norm_attention, self.attention = nn.LayerNorm(D), RelativeAttention(config)
        self.norm_conv, self.conv = nn.LayerNorm(D), ConvModule(config)
        self.norm_ff2, self.ff2 = nn.LayerNorm(D), FeedForward(config)
        self.norm_out = nn.LayerNorm(D)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, past: LayerPast) -> Tensor:
        """Frames (B, S, D) and what lies before them -> (B, S, D); mutates `past`."""
        branches: tuple[tuple[nn.Module, nn.Module, float, tuple[LayerPast, ...]], ...] = (
            (self.norm_ff1, self.ff1, 0.5, ()),
            (self.norm_attention, self.attention, 1.0, (past,)),
            (self.norm_conv, self.conv, 1.0, (past,)),
            (self.norm_ff2, self.ff2, 0.5, ()),
        )
        for norm, module, share, beside in branches:
            branch = module(norm(x), *beside)
            x = x.add(self.dropout(branch) if self.training else branch, alpha=share)
        return self.norm_out(x)


@dataclass(frozen=True)
class WholePast:
    """Finished utterances: nothing lies before them, and nothing is kept.

    relative (H, K, 2S - 1); visible (1 or B, 1, 1, S or 1, S) is true where a query may see a key;
    valid (B, S) is true on the frames of each row, None where all rows are full.
    """

    relative: Tensor
    visible: Tensor | None
    valid: Tensor | None

    def attend(
        self, attention: RelativeAttention, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """In blocks of queries, so that memory is linear in S."""
        B, S, _ = query.shape
        split = (attention.heads, attention.head_dim)
        q, k, v = (
            x.unflatten(-1, split).transpose(1, 2)[:, :, None]  # (B, S, A) -> (B, H, 1, S, K)
            for x in (query, key, value)
        )
        visible = self.visible
        block = max(1, ATTENTION_CELLS // max(1, B * attention.heads * S))
        parts = []
        for a in range(0, S, block):
            b = min(S, a + block)
            mask = visible if visible is None or visible.shape[3] == 1 else visible[:, :, :, a:b]
            near = self.relative[:, :, S - b : 2 * S - 1 - a]
            parts.append(attention.attend(q[:, :, :, a:b], k, v, near, mask))
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def convolve(self, conv: ConvModule, x: Tensor) -> Tensor:
        """Zeros on both sides, and in place of frames that are not valid."""
        if self.valid is not None:
            x = x * self.valid[:, :, None]
        x = F.pad(x.transpose(1, 2), (conv.history, conv.kernel - 1 - conv.history))
        return conv.depthwise(x).transpose(1, 2)


@dataclass
class CachedPast:
    """Blocks of n * Q frames of streams in lockstep, and caches of the frames before them.

    key, value (B, H, L, K) and conv (B, kernel - 1, D) are replaced by what the next block needs.
    relative (H, K, L + 2Q - 1); mask, broadcastable to (B, H, n, Q, L + Q), is true where a query
    may see a key; valid (B, n * Q) is as in `WholePast`.
    """

    key: Tensor
    value: Tensor
    conv: Tensor
    relative: Tensor
    queries: int
    mask: Tensor | None
    valid: Tensor | None

    def attend(
        self, attention: RelativeAttention, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        split = (attention.heads, attention.head_dim)
        query, key, value = (
            x.unflatten(-1, split).transpose(1, 2)  # (B, S, A) -> (B, H, S, K)
            for x in (query, key, value)
        )
        keys = torch.cat([self.key, key], dim=2)
        values = torch.cat([self.value, value], dim=2)
        kept = keys.shape[2] - self.key.shape[2]
        self.key, self.value = keys[:, :, kept:], values[:, :, kept:]
        q = query.unflatten(2, (-1, self.queries))
        wide = self.key.shape[2] + self.queries
        if keys.shape[2] == wide:
            k, v = keys[:, :, None], values[:, :, None]
        else:  # overlapping windows: (B, H, L + n * Q, K) -> (B, H, n, L + Q, K)
            k = keys.unfold(2, wide, self.queries).transpose(-2, -1)
            v = values.unfold(2, wide, self.queries).transpose(-2, -1)
        return attention.attend(q, k, v, self.relative, self.mask)

    def convolve(self, conv: ConvModule, x: Tensor) -> Tensor:
        if self.valid is not None:
            x = x * self.valid[:, :, None]
        x = torch.cat([self.conv, x], dim=1)
        self.conv = x[:, x.shape[1] - self.conv.shape[1] :]
        return conv.depthwise(x.transpose(1, 2)).transpose(1, 2)


class FastConformerEncoder(nn.Module):
    """Mel frames to encoder frames, whole or chunk by chunk."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.subsampling = Subsampling(config)
        blocks = [ConformerLayer(config) for _ in range(config.layers)]
        self.layers = cast("Iterable[ConformerLayer]", nn.ModuleList(blocks))
        self.scale = math.sqrt(config.dim) if config.scale_input else 1.0

    # -- whole utterances ------------------------------------------------------------------------

    def forward(
        self, mel: Tensor, lengths: Tensor, lookahead: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """A padded batch of finished utterances, attention by mask: for training and short clips.

        mel (B, T, F), lengths (B,) -> (B, S, D), (B,). `lookahead` defaults to the model's first;
        memory grows with S squared.
        """
        x, counts = self.subsampling(mel, lengths)
        return self.encode(x, counts, lookahead), counts

    def encode(self, x: Tensor, counts: Tensor, lookahead: int | None = None) -> Tensor:
        """The layers over subsampled frames of finished utterances.

        x (B, S, D), valid frames (B,) -> (B, S, D); `lookahead` as in `forward`.
        """
        x = x * self.scale
        S = x.shape[1]
        if S == 0:
            return x
        valid: Tensor | None = torch.arange(S, device=x.device) < counts[:, None]
        if bool((counts == S).all()):
            valid = None
        visible = self._visible(S, lookahead, x.device)
        if valid is not None:
            seen = valid[:, None, None, None, :]
            visible = seen if visible is None else visible & seen
        sinusoids = self._sinusoids(S - 1, -(S - 1))
        for layer in self.layers:
            x = layer(x, WholePast(layer.attention.relative_keys(sinusoids), visible, valid))
        return x

    def _visible(self, S: int, lookahead: int | None, device: torch.device) -> Tensor | None:
        """The chunk mask (1, 1, 1, S, S) of the offline form, None without chunks."""
        if self.config.left_context is None:
            if lookahead is not None:
                self.config.chunk(lookahead)
            return None
        lookahead = self.config.lookaheads[0] if lookahead is None else lookahead
        chunk = torch.arange(S, device=device) // self.config.chunk(lookahead)
        behind = chunk[:, None] - chunk[None, :]
        chunks_back = self.config.left_context // (lookahead + 1)
        return ((behind >= 0) & (behind <= chunks_back))[None, None, None]

    def _sinusoids(self, first: int, last: int) -> Tensor:
        """Sinusoids (first - last + 1, D) of the distances first, first - 1, ..., last."""
        weight = self.subsampling.weight
        half = torch.arange(0, self.config.dim, 2, device=weight.device, dtype=torch.float32)
        rates = torch.exp(half * -(math.log(10000.0) / self.config.dim))
        distances = torch.arange(first, last - 1, -1, device=weight.device, dtype=torch.float32)
        angles = distances[:, None] * rates
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).to(weight.dtype)

    # -- streams -----------------------------------------------------------------------------------

    def plan(self, lookahead: int) -> ChunkPlan:
        """The constants of streaming at one lookahead; raises OptionError if it cannot stream."""
        config = self.config
        if not config.streams or config.left_context is None:
            raise OptionError(
                "this encoder is not causal with chunk-limited attention, so it cannot stream; "
                "transcribe whole recordings with it, or choose a streaming model"
            )
        chunk, left = config.chunk(lookahead), config.left_context
        queries = chunk * max(1, QUERIES_PER_WINDOW // chunk)
        return ChunkPlan(chunk, left, queries, self.relative_keys(left, queries))

    def relative_keys(self, left: int, queries: int) -> Tensor:
        """Each layer's keys of the distances left + queries - 1, ..., 1 - queries of a window:
        (layers, H, K, left + 2 * queries - 1)."""
        sinusoids = self._sinusoids(left + queries - 1, -(queries - 1))
        return torch.stack([layer.attention.relative_keys(sinusoids) for layer in self.layers])

    def start(self, batch: int = 1) -> EncoderState:
        """The state of `batch` streams before their first frame."""
        config, weight = self.config, self.subsampling.weight
        left = config.left_context or 0
        keys = (config.layers, batch, config.heads, left, config.head_dim)
        return EncoderState(
            subsampling=self.subsampling.start(batch),
            key=weight.new_zeros(keys),
            value=weight.new_zeros(keys),
            conv=weight.new_zeros(config.layers, batch, config.conv_kernel - 1, config.dim),
            pending=weight.new_zeros(batch, 0, config.dim),
        )

    def step(
        self,
        mel: Tensor,
        state: EncoderState,
        plan: ChunkPlan,
        *,
        lengths: Tensor | None = None,
        final: bool = False,
    ) -> Tensor:
        """Take (B, T, F) further mel frames, any T >= 0, and return the (B, S, D) they complete.

        Whole chunks come out; frames of an unfinished chunk wait in `state.pending` until `final`
        flushes them. `lengths` (B,) in mel frames since the start of the stream masks the rows of
        a padded batch that end earlier. Mutates `state`.
        """
        x = self.subsampling.step(mel, state.subsampling, lengths=lengths, final=final)
        x = torch.cat([state.pending, x * self.scale], dim=1)
        ready = x.shape[1] if final else x.shape[1] - x.shape[1] % plan.chunk
        state.pending = x[:, ready:].clone()
        counts = None
        if lengths is not None:
            counts = self.subsampling.output_length(lengths)
        whole = ready - ready % plan.chunk
        parts = []
        if whole:
            parts.append(self.step_layers(x[:, :whole], state, plan, counts))
        if ready > whole:
            parts.append(self.step_layers(x[:, whole:ready], state, plan, counts))
        if not parts:
            return x[:, :0]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def step_layers(
        self, x: Tensor, state: EncoderState, plan: ChunkPlan, counts: Tensor | None = None
    ) -> Tensor:
        """Run the layers over (B, S, D) subsampled frames: S is n chunks, or one short last chunk.
        Mutates `state`.

        `counts` (B,) are the valid encoder frames of each row since the start of the stream.
        """
        S = x.shape[1]
        chunk = min(plan.chunk, S)
        queries = min(plan.queries, S)
        tail = S % queries
        if tail:
            head = self.step_layers(x[:, : S - tail], state, plan, counts)
            return torch.cat([head, self.step_layers(x[:, S - tail :], state, plan, counts)], 1)
        cut = plan.queries - queries
        relative = plan.relative[..., cut : plan.relative.shape[-1] - cut]
        mask, valid = self._masks(x, state.frames, chunk, queries, plan.left, counts)
        keys, values, convs = [], [], []
        for i, layer in enumerate(self.layers):
            past = CachedPast(
                state.key[i], state.value[i], state.conv[i], relative[i], queries, mask, valid
            )
            x = layer(x, past)
            keys.append(past.key)
            values.append(past.value)
            convs.append(past.conv)
        state.key, state.value = torch.stack(keys), torch.stack(values)
        state.conv = torch.stack(convs)
        state.frames += S
        return x

    @staticmethod
    def _masks(
        x: Tensor, frames: int, chunk: int, queries: int, left: int, counts: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which keys a query of a block may see and, in a padded batch, the valid frames (B, S)."""
        S, device = x.shape[1], x.device
        mask = valid = None
        if queries > chunk:
            own = torch.arange(queries, device=device) // chunk * chunk
            key = torch.arange(left + queries, device=device)
            mask = (key >= own[:, None]) & (key < own[:, None] + left + chunk)
            mask = mask[None, None, None]
        position = torch.arange(frames - left, frames + S, device=device)
        if counts is not None and int(counts.min()) < frames + S:
            known = (position >= 0) & (position < counts[:, None])
            valid = known[:, left:]
        elif frames < left:
            known = (position >= 0)[None]
        else:
            return mask, None
        seen = known.unfold(1, left + queries, queries)[:, None, :, None, :]
        return seen if mask is None else mask & seen, valid


def skew(scores: Tensor, keys: int) -> Tensor:
    """Scores by distance -> scores by key: (..., Q, Q + W - 1) -> (..., Q, W).

    Query q reads W entries from Q - 1 - q on. Read flat, in rows one shorter, that is a slice.
    """
    *lead, Q, R = scores.shape
    if Q == 1:
        return scores
    flat = scores.reshape(*lead, Q * R)[..., Q - 1 : -1]
    return flat.reshape(*lead, Q, R - 1)[..., :keys]
