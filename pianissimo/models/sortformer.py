"""Streaming Sortformer: who speaks in each 80 ms, up to four people, who may overlap.

A FastConformer over the whole step, then Transformer layers without positions, with the norm behind
each branch. Paper: Park et al. 2024 (arXiv 2409.06656). Numerics follow NeMo 3.0.

Shape legend: T mel frames, F mel bins, N encoder frames, D width of the encoder, E width of the
Transformer, S speakers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.audio.features import FeatureConfig, MelFeatures
from pianissimo.errors import OptionError
from pianissimo.models.fastconformer import EncoderConfig, FastConformerEncoder
from pianissimo.models.speaker_cache import CacheConfig, StepSizes


@dataclass(frozen=True)
class SortformerConfig:
    """Sizes of the network, and how streams are cut."""

    features: FeatureConfig
    encoder: EncoderConfig
    cache: CacheConfig
    offline: StepSizes
    live: tuple[StepSizes, ...]
    dim: int = 192
    layers: int = 18
    heads: int = 8
    ff_dim: int = 768

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise OptionError(f"a width of {self.dim} is not divisible by {self.heads} heads")


class Layer(nn.Module):
    """Attention and feed-forward, each with a norm behind it: (N, E) -> (N, E)."""

    def __init__(self, config: SortformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.norm_attention = nn.LayerNorm(config.dim)
        self.up = nn.Linear(config.dim, config.ff_dim)
        self.down = nn.Linear(config.ff_dim, config.dim)
        self.norm_ff = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(1, (self.heads, -1)).transpose(0, 1)[None]  # (1, H, N, E / H)
            for part in self.qkv(x).chunk(3, dim=1)
        )
        heads = F.scaled_dot_product_attention(q, k, v)[0]
        x = self.norm_attention(x + self.out(heads.transpose(0, 1).flatten(1)))
        return self.norm_ff(x + self.down(F.relu(self.up(x))))


class Sortformer(nn.Module):
    """A `SpeakerNetwork`; weights only. Silence in the cache is the mean of the stream's own."""

    silence: None = None
    scores_per_frame = 1

    def __init__(self, config: SortformerConfig) -> None:
        super().__init__()
        self.config, self.dim = config, config.encoder.dim
        self.cache, self.offline, self.live = config.cache, config.offline, config.live
        self.subsampling = config.encoder.subsampling_factor
        with torch.device("cpu"):  # constants, which a meta model has as well
            self.features = MelFeatures(config.features)
        self.encoder = FastConformerEncoder(config.encoder)
        self.project = nn.Linear(config.encoder.dim, config.dim)
        blocks = [Layer(config) for _ in range(config.layers)]
        self.layers = cast("Iterable[Layer]", nn.ModuleList(blocks))
        self.hidden = nn.Linear(config.dim, config.dim)
        self.out = nn.Linear(config.dim, config.cache.speakers)

    def embed(self, mel: Tensor) -> Tensor:
        """(T, F) mel frames -> (N, D): subsampled as if nothing were before and after them."""
        frames, _ = self.encoder.subsampling(mel[None], torch.tensor([len(mel)]))
        return frames[0]

    def score(self, frames: Tensor) -> Tensor:
        """(N, D) embedded frames -> (N, S) probabilities."""
        counts = torch.tensor([len(frames)])
        x = self.project(self.encoder.encode(frames[None], counts)[0])
        for layer in self.layers:
            x = layer(x)
        return torch.sigmoid(self.out(F.relu(self.hidden(F.relu(x)))))
