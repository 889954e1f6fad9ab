"""Wav2Vec2-BERT 2.0 with a CTC head: a Conformer on Kaldi's mel features.

Barrault et al. 2023 (arXiv 2312.05187), Chung et al. 2021 (arXiv 2108.06209). Two mel frames of
10 ms make one encoder frame; convolutions see the past only, positions are relative and bounded.

Shape legend: B batch, N samples, T mel frames, F mel bins, S encoder frames, D width, H heads, V
outputs with the blank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import OptionError

WINDOW_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512
STACKED = 2
"""Mel frames per encoder frame."""
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
INTEGER_SCALE = 32768.0
"""Kaldi's features are those of 16-bit integers."""
MEL_FLOOR = 2.0**-23
VARIANCE_GUARD = 1e-7


@dataclass(frozen=True)
class Wav2Vec2BertConfig:
    """Shape; the defaults are those of w2v-BERT 2.0.

    `outputs` counts the symbols with the blank. `left` and `right` bound the relative positions, in
    frames. `adapter_layers` above 0 shorten the sequence by 2 each, `adapter_dim` wide.
    """

    outputs: int
    mels: int = 80
    dim: int = 1024
    layers: int = 24
    heads: int = 16
    ff_dim: int = 4096
    norm_eps: float = 1e-5
    conv_kernel: int = 31
    left: int = 64
    right: int = 8
    adapter_layers: int = 0
    adapter_dim: int = 1024
    name: str = "unnamed"
    language: str | None = None
    normalize: bool = False
    """False: the features are normalized instead of the waveform."""

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.adapter_dim % self.heads:
            raise OptionError(
                f"widths of {self.dim} and {self.adapter_dim} do not divide into {self.heads} heads"
            )
        if self.conv_kernel % 2 == 0:
            raise OptionError(f"the convolution's kernel must be odd, not {self.conv_kernel}")

    @property
    def hop_samples(self) -> int:
        """Samples between encoder frames."""
        return int(HOP_SAMPLES * STACKED * 2**self.adapter_layers)

    @property
    def frame_seconds(self) -> float:
        """Seconds of audio per encoder frame."""
        return self.hop_samples / SAMPLE_RATE

    def frames(self, samples: int) -> int:
        """The number of encoder frames of `samples` samples."""
        count = self.encoder_frames(samples)
        for _ in range(self.adapter_layers):
            count = (count + 1) // 2
        return count

    def encoder_frames(self, samples: int) -> int:
        """The same before the adapter."""
        return max(0, (samples - WINDOW_SAMPLES) // HOP_SAMPLES + 1) // STACKED


class KaldiMel(nn.Module):
    """Kaldi's log-mel filterbank, each bin normalized over the clip, frames in pairs."""

    window: Tensor
    filterbank: Tensor

    def __init__(self, mels: int) -> None:
        super().__init__()
        povey = torch.hann_window(WINDOW_SAMPLES, periodic=False, dtype=torch.float64) ** 0.85
        self.register_buffer("window", povey.float(), persistent=False)
        self.register_buffer("filterbank", kaldi_filterbank(mels), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KaldiMel":
        """Move to a device without changing the dtype: spectra need more than half precision."""
        exact = (self.window, self.filterbank)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = self.window.device
        self.window, self.filterbank = (constant.to(device) for constant in exact)
        return self

    def forward(self, samples: Tensor) -> Tensor:
        """(N,) samples in [-1, 1] -> (S, 2 F)."""
        frames = (samples.float() * INTEGER_SCALE).unfold(0, WINDOW_SAMPLES, HOP_SAMPLES)
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        frames = (frames - PREEMPHASIS * before) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frames, FFT_SAMPLES))
        power = spectrum.square().sum(-1)
        mel = (power @ self.filterbank.T).clamp(min=MEL_FLOOR).log()
        deviation = (mel.var(0) + VARIANCE_GUARD).sqrt()
        normed = (mel - mel.mean(0)) / deviation
        pairs = len(normed) // STACKED
        return normed[: pairs * STACKED].reshape(pairs, -1)  # (S, 2 F)


def kaldi_filterbank(mels: int) -> Tensor:
    """(F, fft // 2 + 1) triangles that are even on the mel scale, from 20 Hz to 8 kHz."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    limits = mel(torch.tensor([LOWEST_HZ, SAMPLE_RATE / 2], dtype=torch.float64))
    edges = torch.linspace(float(limits[0]), float(limits[1]), mels + 2, dtype=torch.float64)
    bins = torch.arange(FFT_SAMPLES // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / FFT_SAMPLES
    at = mel(bins)
    rising = (at - edges[:-2, None]) / edges.diff()[:-1, None]
    falling = (edges[2:, None] - at) / edges.diff()[1:, None]
    return torch.minimum(rising, falling).clamp(min=0).float()


class Wav2Vec2BertFeedForward(nn.Module):
    """(B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, ff_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, ff_dim)
        self.down = nn.Linear(ff_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


class Wav2Vec2BertAttention(nn.Module):
    """Attention over the whole clip; with positions, each head weights the distance of frames."""

    def __init__(self, dim: int, heads: int, positions: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.positions = nn.Embedding(positions, dim // heads) if positions else None

    def forward(self, x: Tensor, mask: Tensor | None, distances: Tensor | None = None) -> Tensor:
        """(B, S, D), (B, 1, 1, S) added to the scores, (S, S) rows of positions -> (B, S, D)."""
        B, S, D = x.shape
        q, k, v = self.qkv(x).view(B, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, S, d)
        if self.positions is not None:
            assert distances is not None
            scores = q @ self.positions.weight.T * q.shape[-1] ** -0.5  # (B, H, S, positions)
            bias = scores.gather(-1, distances.expand(B, self.heads, S, S))
            mask = bias if mask is None else bias + mask
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(B, S, D))


class CausalConv(nn.Module):
    """Gated depthwise convolution over the past: (B, S, D) -> (B, S, D)."""

    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__()
        D = config.dim
        self.norm_in = nn.LayerNorm(D, eps=config.norm_eps)
        self.up = nn.Linear(D, 2 * D, bias=False)
        self.depthwise = nn.Conv1d(D, D, config.conv_kernel, groups=D, bias=False)
        self.norm = nn.LayerNorm(D, eps=config.norm_eps)
        self.down = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.up(self.norm_in(x))).transpose(1, 2)
        x = self.depthwise(F.pad(x, (self.depthwise.kernel_size[0] - 1, 0))).transpose(1, 2)
        return self.down(F.silu(self.norm(x)))


class Wav2Vec2BertConformerLayer(nn.Module):
    """Half a feed-forward network, attention, convolution, and the other half."""

    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__()
        D, eps = config.dim, config.norm_eps
        self.norm_ff1, self.ff1 = (
            nn.LayerNorm(D, eps=eps),
            Wav2Vec2BertFeedForward(D, config.ff_dim),
        )
        self.norm_attention = nn.LayerNorm(D, eps=eps)
        self.attention = Wav2Vec2BertAttention(D, config.heads, config.left + config.right + 1)
        self.conv = CausalConv(config)
        self.norm_ff2, self.ff2 = (
            nn.LayerNorm(D, eps=eps),
            Wav2Vec2BertFeedForward(D, config.ff_dim),
        )
        self.norm_out = nn.LayerNorm(D, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None, distances: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D); see `Wav2Vec2BertAttention`."""
        x = x + 0.5 * self.ff1(self.norm_ff1(x))
        x = x + self.attention(self.norm_attention(x), mask, distances)
        x = x + self.conv(x)
        x = x + 0.5 * self.ff2(self.norm_ff2(x))
        return self.norm_out(x)


class AdapterLayer(nn.Module):
    """Halves the frames by two gated convolutions, one of them followed by attention."""

    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__()
        A, eps = config.adapter_dim, config.norm_eps
        self.norm_residual = nn.LayerNorm(A, eps=eps)
        self.conv_residual = nn.Conv1d(A, 2 * A, 3, stride=2, padding=1)
        self.norm_attention = nn.LayerNorm(A, eps=eps)
        self.conv_attention = nn.Conv1d(A, 2 * A, 3, stride=2, padding=1)
        self.attention = Wav2Vec2BertAttention(A, config.heads)
        self.norm_ff = nn.LayerNorm(A, eps=eps)
        self.up = nn.Linear(A, config.ff_dim)
        self.down = nn.Linear(config.ff_dim, A)

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """(B, S, A), each row's frames before -> (B, S', A)."""
        residual = self._halved(self.conv_residual, self.norm_residual(x), counts)
        x = self._halved(self.conv_attention, self.norm_attention(x), counts)
        halved = [(count + 1) // 2 for count in counts]
        x = residual + self.attention(x, score_mask(halved, x))
        return x + self.down(torch.relu(self.up(self.norm_ff(x))))

    def _halved(self, conv: nn.Module, x: Tensor, counts: list[int]) -> Tensor:
        # The convolution reads one frame ahead, which must be zero after the clip.
        padding = padding_mask(counts, x)
        x = x if padding is None else x.masked_fill(padding[:, :, None], 0.0)
        return F.glu(conv(x.transpose(1, 2)), dim=1).transpose(1, 2)


class Wav2Vec2Bert(nn.Module):
    """The whole network: samples to the logits of a CTC head."""

    def __init__(self, config: Wav2Vec2BertConfig) -> None:
        super().__init__()
        self.config = config
        with torch.device("cpu"):  # constants that are computed, so also a meta model has them
            self.features = KaldiMel(config.mels)
        inputs, A = STACKED * config.mels, config.adapter_dim
        self.norm_projection = nn.LayerNorm(inputs, eps=config.norm_eps)
        self.projection = nn.Linear(inputs, config.dim)
        self.layers = nn.ModuleList(
            Wav2Vec2BertConformerLayer(config) for _ in range(config.layers)
        )
        self.narrow: nn.Linear | None = None
        self.norm_narrow: nn.LayerNorm | None = None
        if config.adapter_layers and config.dim != A:
            self.narrow = nn.Linear(config.dim, A)
            self.norm_narrow = nn.LayerNorm(A, eps=config.norm_eps)
        self.adapter = nn.ModuleList(AdapterLayer(config) for _ in range(config.adapter_layers))
        self.head = nn.Linear(A if config.adapter_layers else config.dim, config.outputs)

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

        Every row needs a frame. Logits after a row's frames are undefined.
        """
        counts = [self.config.encoder_frames(n) for n in lengths]
        assert min(counts) > 0, "a row without a frame"
        rows = [self.features(row[:n]) for row, n in zip(samples, lengths, strict=True)]
        x = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.dtype)
        x = self.projection(self.norm_projection(x))
        mask, distances = score_mask(counts, x), self._distances(x.shape[1])
        for layer in self.layers:
            x = layer(x, mask, distances)
        if self.narrow is not None and self.norm_narrow is not None:
            x = self.norm_narrow(self.narrow(x))
        for layer in self.adapter:
            x = layer(x, counts)
            counts = [(count + 1) // 2 for count in counts]
        return self.head(x), counts

    def _distances(self, frames: int) -> Tensor:
        """(S, S) rows of the position table: frames from query to key, bounded."""
        at = torch.arange(frames, device=self.device)
        away = (at - at[:, None]).clamp(-self.config.left, self.config.right)
        return away + self.config.left


def padding_mask(counts: list[int], x: Tensor) -> Tensor | None:
    """(B, S) true on padding; None if there is none."""
    if min(counts) == x.shape[1]:
        return None
    ends = torch.tensor(counts, device=x.device)[:, None]
    return torch.arange(x.shape[1], device=x.device) >= ends


def score_mask(counts: list[int], x: Tensor) -> Tensor | None:
    """(B, 1, 1, S) to add to attention scores: minus infinity on padding; None if there is none."""
    padding = padding_mask(counts, x)
    if padding is None:
        return None
    return x.new_zeros(padding.shape).masked_fill(padding, -torch.inf)[:, None, None]
