"""The wav2vec 2.0 family with a CTC head: XLSR, XLS-R, MMS, HuBERT, Data2Vec-Audio, WavLM.

wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477), HuBERT (Hsu et al. 2021, arXiv 2106.07447),
data2vec (Baevski et al. 2022, arXiv 2202.03555), WavLM (Chen et al. 2022, arXiv 2110.13900) and MMS
(Pratap et al. 2023, arXiv 2305.13516) are one network whose config switches norms and positions.

Shape legend: B batch, N samples, S encoder frames, C channels, D width, H heads, V outputs with the
blank.

Padding does not change the result of a clip: statistics over time exclude it, and it is set to zero
before each convolution that reads it.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import OptionError

LEVEL_GUARD = 1e-7
"""Variance added before a waveform is scaled to unit variance, for the sake of silence."""


@dataclass(frozen=True)
class Wav2Vec2Config:
    """Shape and switches; the defaults are wav2vec2-base.

    `outputs` counts the symbols with the blank. `conv_norm` "group" norms each channel of the first
    convolution over time, "layer" every convolution over its channels. `position_layers` None is
    one convolution of positions, a number a stack of them with norms (Data2Vec-Audio).
    `relative_buckets` above 0 adds gated relative positions (WavLM), `adapter_dim` above 0 a small
    network per layer and language (MMS).
    """

    outputs: int
    dim: int = 768
    layers: int = 12
    heads: int = 12
    ff_dim: int = 3072
    norm_eps: float = 1e-5
    norm_first: bool = False
    conv_dims: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: Literal["group", "layer"] = "group"
    norm_projection: bool = True
    position_kernel: int = 128
    position_groups: int = 16
    position_layers: int | None = None
    relative_buckets: int = 0
    relative_distance: int = 800
    adapter_dim: int = 0
    normalize: bool = True
    name: str = "unnamed"
    language: str | None = None

    def __post_init__(self) -> None:
        if not len(self.conv_dims) == len(self.conv_kernels) == len(self.conv_strides) > 0:
            raise OptionError("conv_dims, conv_kernels and conv_strides must have equal lengths")
        if self.dim % self.heads or self.dim % self.position_groups:
            raise OptionError(
                f"a width of {self.dim} does not divide into {self.heads} heads and "
                f"{self.position_groups} groups of the positional convolution"
            )
        if self.relative_buckets % 4:
            raise OptionError(
                f"relative_buckets must be a multiple of 4, not {self.relative_buckets}"
            )
        if self.adapter_dim and not self.norm_first:
            raise OptionError("adapter_dim needs norm_first")

    @property
    def hop_samples(self) -> int:
        """Samples between encoder frames."""
        return math.prod(self.conv_strides)

    @property
    def frame_seconds(self) -> float:
        """Seconds of audio per encoder frame."""
        return self.hop_samples / SAMPLE_RATE

    @property
    def least_samples(self) -> int:
        """The samples of one frame; shorter recordings have none."""
        reach = 1
        for kernel, stride in zip(
            reversed(self.conv_kernels), reversed(self.conv_strides), strict=True
        ):
            reach = (reach - 1) * stride + kernel
        return reach

    def frames(self, samples: int) -> int:
        """The number of encoder frames of `samples` samples."""
        return max(0, (samples - self.least_samples) // self.hop_samples + 1)


class ConvStem(nn.Module):
    """Samples to frames by convolutions without padding."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        shapes = zip(
            (1, *config.conv_dims),
            config.conv_dims,
            config.conv_kernels,
            config.conv_strides,
            strict=False,
        )
        self.convs = nn.ModuleList(
            nn.Conv1d(inner, outer, kernel, stride, bias=config.conv_bias)
            for inner, outer, kernel, stride in shapes
        )
        if config.conv_norm == "group":
            first = config.conv_dims[0]
            self.norms = nn.ModuleList([nn.GroupNorm(first, first)])
        else:
            self.norms = nn.ModuleList(nn.LayerNorm(width) for width in config.conv_dims)

    def forward(self, samples: Tensor, lengths: list[int]) -> Tensor:
        """(B, N) samples, each row's valid number -> (B, S, C) frames."""
        x = samples[:, None]
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.config.conv_norm == "layer":
                x = self.norms[i](x.transpose(1, 2)).transpose(1, 2)
            elif i == 0:
                kernel, stride = self.config.conv_kernels[0], self.config.conv_strides[0]
                x = self._over_time(x, [(n - kernel) // stride + 1 for n in lengths])
            x = F.gelu(x)
        return x.transpose(1, 2)

    def _over_time(self, x: Tensor, valid: list[int]) -> Tensor:
        """Norm each channel over the valid frames of its row: (B, C, T) -> (B, C, T)."""
        norm = self.norms[0]
        if min(valid) == x.shape[2]:
            return norm(x)
        for row, count in enumerate(valid):
            if count > 1:
                x[row : row + 1, :, :count] = norm(x[row : row + 1, :, :count])
        return x


class Positions(nn.Module):
    """Positions by grouped convolutions over the surroundings of a frame."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.normed = config.position_layers is not None
        kernel = config.position_kernel
        self.convs = nn.ModuleList(
            nn.Conv1d(
                config.dim,
                config.dim,
                kernel,
                padding=kernel // 2,
                groups=config.position_groups,
            )
            for _ in range(config.position_layers or 1)
        )

    def forward(self, frames: Tensor, padding: Tensor | None) -> Tensor:
        """(B, S, D), (B, S, 1) true on padding -> (B, S, D)."""
        _, S, D = frames.shape
        x = frames
        for conv in self.convs:
            x = conv(x.transpose(1, 2))[:, :, :S].transpose(1, 2)  # an even kernel gives one more
            x = F.gelu(F.layer_norm(x, (D,)) if self.normed else x)
            if padding is not None:
                x = x.masked_fill(padding, 0.0)
        return x


class RelativeGate(nn.Module):
    """The gate of relative positions for each frame: (B, S, D) -> (B, H, S, 1) (WavLM, eq. 4)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.linear = nn.Linear(config.dim // config.heads, 8)
        self.scale = nn.Parameter(torch.ones(config.heads))

    def forward(self, frames: Tensor) -> Tensor:
        B, S, _ = frames.shape
        per_head = frames.view(B, S, self.heads, -1).transpose(1, 2)
        gates = self.linear(per_head).view(B, self.heads, S, 2, 4).sum(-1).sigmoid()
        update, reset = gates.split(1, dim=-1)
        return update * (reset * self.scale[:, None, None] - 1.0) + 2.0


class Adapter(nn.Module):
    """An adapter for one language: (B, S, D) -> (B, S, D)."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.down = nn.Linear(config.dim, config.adapter_dim)
        self.up = nn.Linear(config.adapter_dim, config.dim)

    def forward(self, frames: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(self.norm(frames))))


class Wav2Vec2EncoderLayer(nn.Module):
    """Attention over the whole clip and a feed-forward network, normed before or after."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.heads, self.norm_first = config.heads, config.norm_first
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.gate = RelativeGate(config) if config.relative_buckets else None
        self.norm_attention = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.up = nn.Linear(config.dim, config.ff_dim)
        self.down = nn.Linear(config.ff_dim, config.dim)
        self.norm_ff = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.adapter = Adapter(config) if config.adapter_dim else None

    def forward(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        """(B, S, D), (B, 1, 1, S) added to the scores, (H, S, S) relative -> (B, S, D)."""
        if not self.norm_first:
            x = self.norm_attention(x + self._attend(x, mask, positions))
            return self.norm_ff(x + self.down(F.gelu(self.up(x))))
        x = x + self._attend(self.norm_attention(x), mask, positions)
        x = x + self.down(F.gelu(self.up(self.norm_ff(x))))
        return x if self.adapter is None else x + self.adapter(x)

    def _attend(self, x: Tensor, mask: Tensor | None, positions: Tensor | None) -> Tensor:
        B, S, D = x.shape
        q, k, v = self.qkv(x).view(B, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, S, d)
        if self.gate is not None:
            assert positions is not None
            gated = self.gate(x) * positions
            mask = gated if mask is None else gated + mask
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(B, S, D))


class Wav2Vec2(nn.Module):
    """The whole network: samples to the logits of a CTC head."""

    def __init__(self, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.stem = ConvStem(config)
        width = config.conv_dims[-1]
        self.norm_projection = (
            nn.LayerNorm(width, eps=config.norm_eps) if config.norm_projection else None
        )
        self.projection = nn.Linear(width, config.dim)
        self.positions = Positions(config)
        self.relative = (
            nn.Embedding(config.relative_buckets, config.heads) if config.relative_buckets else None
        )
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.layers = nn.ModuleList(Wav2Vec2EncoderLayer(config) for _ in range(config.layers))
        self.head = nn.Linear(config.dim, config.outputs)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, samples: Tensor, lengths: list[int]) -> tuple[Tensor, list[int]]:
        """(B, N) float32 samples, each row's valid number -> (B, S, V) logits, each row's frames.

        Every row needs `least_samples`. Logits after a row's frames are undefined.
        """
        counts = [self.config.frames(n) for n in lengths]
        assert min(counts) > 0, "a row without a frame"
        x = self.stem(samples.to(self.dtype), lengths)
        x = self.projection(x if self.norm_projection is None else self.norm_projection(x))
        padding = mask = None
        if min(counts) < x.shape[1]:
            ends = torch.tensor(counts, device=x.device)[:, None]
            padding = (torch.arange(x.shape[1], device=x.device) >= ends)[:, :, None]  # (B, S, 1)
            x = x.masked_fill(padding, 0.0)
            mask = x.new_zeros(padding.shape).masked_fill(padding, -torch.inf)
            mask = mask.transpose(1, 2)[:, None]  # (B, 1, 1, S)
        x = x + self.positions(x, padding)
        if not self.config.norm_first:
            x = self.norm(x)
        relative = self._relative(x.shape[1])
        for layer in self.layers:
            x = layer(x, mask, relative)
        return self.head(self.norm(x) if self.config.norm_first else x), counts

    def _relative(self, frames: int) -> Tensor | None:
        """The bias of each head for each pair of frames: (H, S, S)."""
        if self.relative is None:
            return None
        at = torch.arange(frames, device=self.device)
        buckets = relative_buckets(at - at[:, None], self.config)
        return self.relative(buckets).permute(2, 0, 1)


def relative_buckets(distances: Tensor, config: Wav2Vec2Config) -> Tensor:
    """Frames from query to key -> bucket: exact when near, logarithmic when far, by direction."""
    side = config.relative_buckets // 2
    exact = side // 2
    away = distances.abs()
    growth = torch.log(away.clamp(min=1).float() / exact)
    far = (exact + growth / math.log(config.relative_distance / exact) * (side - exact)).long()
    return torch.where(away < exact, away, far.clamp(max=side - 1)) + (distances > 0) * side


def normalize_waveform(samples: Tensor) -> Tensor:
    """Zero mean and unit variance over (N,) samples."""
    centered = samples - samples.mean()
    return centered / (centered.square().mean() + LEVEL_GUARD).sqrt()
