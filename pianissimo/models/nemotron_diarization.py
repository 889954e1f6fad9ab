"""Nemotron 3 Diarization: who speaks in each 10 ms, up to eight people, who may overlap.

Eight mel frames side by side are an encoder frame. Pre-norm Transformer layers with rotary
positions (Su et al. 2021, arXiv 2104.09864) see all frames of a step. A sub-pixel convolution (Shi
et al. 2016, arXiv 1609.05158) goes back to mel frames. Numerics follow Transformers 5.23.

Shape legend: T mel frames, F mel bins, N encoder frames, D width, H heads, W width of a head,
S speakers, R mel frames per encoder frame.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.audio.features import FeatureConfig, MelFeatures
from pianissimo.errors import OptionError
from pianissimo.models.speaker_cache import CacheConfig, StepSizes


@dataclass(frozen=True)
class NemotronDiarizationConfig:
    """Sizes of the network, and how streams are cut. `rotary_share` of each head is rotated."""

    features: FeatureConfig
    cache: CacheConfig
    offline: StepSizes
    live: tuple[StepSizes, ...]
    dim: int = 512
    layers: int = 31
    heads: int = 8
    ff_dim: int = 2048
    rotary_base: float = 10_000.0
    rotary_share: float = 0.5
    head_dim: int = 192
    subsampling: int = 8

    def __post_init__(self) -> None:
        rotary = self.dim // self.heads * self.rotary_share
        if self.dim % self.heads or not 0 < self.rotary_share <= 1 or int(rotary) % 2:
            raise OptionError(
                f"{self.heads} heads of a width of {self.dim} with {self.rotary_share} rotated do "
                "not divide evenly"
            )


class Attention(nn.Module):
    """Attention of all frames to all frames, with rotary positions."""

    def __init__(self, config: NemotronDiarizationConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """(N, D) frames, (N, rotated) angles -> (N, D)."""
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).transpose(0, 1)  # (H, N, W)
            for part in self.qkv(x).chunk(3, dim=1)
        )
        q, k = (rotated(part, cosine, sine) for part in (q, k))
        heads = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        return self.out(heads.transpose(0, 1).flatten(1))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm: (N, D) -> (N, D)."""

    def __init__(self, config: NemotronDiarizationConfig) -> None:
        super().__init__()
        self.norm_attention, self.attention = nn.LayerNorm(config.dim), Attention(config)
        self.norm_ff = nn.LayerNorm(config.dim)
        self.up = nn.Linear(config.dim, config.ff_dim)
        self.down = nn.Linear(config.ff_dim, config.dim)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x), cosine, sine)
        return x + self.down(F.gelu(self.up(self.norm_ff(x))))


class NemotronDiarization(nn.Module):
    """A `SpeakerNetwork`; weights only."""

    silence: Tensor

    def __init__(self, config: NemotronDiarizationConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.dim
        self.cache, self.offline, self.live = config.cache, config.offline, config.live
        self.subsampling = self.scores_per_frame = config.subsampling
        with torch.device("cpu"):  # constants, which a meta model has as well
            self.features = MelFeatures(config.features)
        stacked = config.subsampling * config.features.n_mels
        self.project = nn.Linear(stacked, config.dim, bias=False)
        self.norm_in = nn.LayerNorm(config.dim)
        blocks = [Layer(config) for _ in range(config.layers)]
        self.layers = cast("Iterable[Layer]", nn.ModuleList(blocks))
        self.norm_out = nn.LayerNorm(config.dim)
        self.narrow = nn.Linear(config.dim, config.head_dim)
        self.widen = nn.Conv1d(
            config.head_dim, config.head_dim * config.subsampling, kernel_size=3, padding=1
        )
        self.hidden = nn.Linear(config.head_dim, config.head_dim)
        self.out = nn.Linear(config.head_dim, config.cache.speakers)
        self.silence = nn.Parameter(torch.zeros(config.dim))

    def embed(self, mel: Tensor) -> Tensor:
        """(T, F) mel frames -> (ceil(T / R), D); the last group is filled with zeros."""
        missing = -len(mel) % self.subsampling
        groups = F.pad(mel, (0, 0, 0, missing)).reshape(-1, self.project.in_features)
        return self.project(groups)

    def score(self, frames: Tensor) -> Tensor:
        """(N, D) embedded frames -> (N * R, S) probabilities; positions count from the first."""
        cosine, sine = self._angles(len(frames))
        x = self.norm_in(frames)
        for layer in self.layers:
            x = layer(x, cosine, sine)
        wide = self.widen(self.narrow(self.norm_out(x)).T).T  # (N, R * head)
        x = wide.reshape(len(frames) * self.subsampling, -1)
        return torch.sigmoid(self.out(F.relu(self.hidden(F.relu(x)))))

    def _angles(self, count: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (N, rotated) of the rotations of the first frames."""
        width = int(self.config.dim // self.config.heads * self.config.rotary_share)
        steps = torch.arange(0, width, 2, device=self.project.weight.device, dtype=torch.float32)
        rates = 1.0 / self.config.rotary_base ** (steps / width)
        angles = torch.arange(count, device=rates.device)[:, None] * rates
        angles = torch.cat([angles, angles], dim=1)
        return angles.cos(), angles.sin()


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Heads (H, N, W) with the first (N, rotated) of W turned by their position."""
    width = cosine.shape[1]
    turning, rest = x[..., :width], x[..., width:]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cosine + torch.cat([-second, first], dim=-1) * sine
    return torch.cat([turned, rest], dim=-1)
