"""FastPitch: FastSpeech2 with Transformer layers, in NeMo's form.

Łańcucki, FastPitch (2006.06873). Shapes: T phonemes, F mel frames, M mel bins, D width, H heads.
One sentence at a time, as in `fastspeech2`, whose predictors and vocoder it shares.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pianissimo.models.fastspeech2 import (
    ConvFeedForward,
    Predictor,
    PredictorConfig,
    VarianceEmbedding,
)


@dataclass(frozen=True)
class FastPitchConfig:
    """The shape of the acoustic model.

    Pairs are those of encoder and decoder. `frames` bounds the duration of a phoneme.
    """

    vocabulary: int
    mels: int
    width: int
    layers: tuple[int, int]
    heads: tuple[int, int]
    head_widths: tuple[int, int]
    inner: tuple[int, int]
    kernels: tuple[int, int]
    duration: PredictorConfig
    pitch: PredictorConfig
    pitch_kernel: int
    frames: tuple[int, int]


class SelfAttention(nn.Module):
    """Self-attention whose heads need not fill the width."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, D)."""
        _, T, _ = x.shape
        query, key, value = self.qkv(x).view(T, 3, self.heads, -1).permute(1, 2, 0, 3)
        weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)  # (H, T, T)
        return self.out((weights @ value).transpose(0, 1).reshape(1, T, -1))


class TransformerLayer(nn.Module):
    """Attention and two convolutions, each with a residual and then a layer norm."""

    def __init__(self, config: FastPitchConfig, side: int) -> None:
        super().__init__()
        width = config.width
        self.attention = SelfAttention(width, config.heads[side], config.head_widths[side])
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = ConvFeedForward(width, config.inner[side], config.kernels[side])
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, D)."""
        x = self.attention_norm(x + self.attention(x))
        return self.feed_forward_norm(x + self.feed_forward(x))


class Transformer(nn.Module):
    """Encoder (`side` 0, with an embedding) or decoder (1)."""

    def __init__(self, config: FastPitchConfig, side: int) -> None:
        super().__init__()
        if side == 0:
            self.embed = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(
            TransformerLayer(config, side) for _ in range(config.layers[side])
        )

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, D)."""
        _, T, D = x.shape
        rates = torch.arange(0.0, D, 2.0, device=x.device) / D
        angles = torch.arange(T, device=x.device)[:, None] / 10_000**rates
        x = x + torch.cat((angles.sin(), angles.cos()), 1).to(x.dtype)
        for layer in self.layers:
            x = layer(x)
        return x


class FastPitch(nn.Module):
    """Phonemes to mel frames."""

    def __init__(self, config: FastPitchConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Transformer(config, 0)
        self.duration_predictor = Predictor(config.width, config.duration)
        self.pitch_predictor = Predictor(config.width, config.pitch)
        self.pitch_embed = VarianceEmbedding(config.width, config.pitch_kernel)
        self.decoder = Transformer(config, 1)
        self.out = nn.Linear(config.width, config.mels)

    def forward(self, ids: Tensor, speed: float = 1.0) -> tuple[Tensor, Tensor]:
        """Phoneme ids (T,) -> mel frames (F, M), natural logarithm, and durations (T,) in frames.

        `speed` divides durations.
        """
        x = self.encoder(self.encoder.embed(ids)[None])
        predicted = torch.nan_to_num(self.duration_predictor(x)[0, :, 0].exp() - 1)
        durations = (predicted.clamp(*self.config.frames) / speed + 0.5).floor()
        if durations.sum() == 0:
            durations = torch.ones_like(durations)
        durations = durations.long()
        x = x + self.pitch_embed(self.pitch_predictor(x))
        frames = self.decoder(x.repeat_interleave(durations, dim=1))
        return self.out(frames)[0], durations
