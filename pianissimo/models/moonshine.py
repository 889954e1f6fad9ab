"""Moonshine Streaming: a front end on the waveform, an encoder with sliding windows, a decoder.

Shape legend: B batch, N samples, T waveform frames of 5 ms and F samples, S encoder
frames of 20 ms, E encoder width, D decoder width, H heads, K head width, U tokens, V vocabulary.

Weights and numbers are those of `MoonshineStreamingForConditionalGeneration` in Transformers. Each
waveform frame is normalized by itself and compressed by asinh; two causal convolutions of stride 2
make encoder frames of them. The encoder has no positions: layer l sees `left` frames, the current
one included, and fewer than `right` later ones. The adapter adds absolute positions, so a stream
restarts at pauses. The decoder has rotary positions, and one cache for its text.

The modules hold weights only. What a text in the making remembers is a `DecoderState`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.errors import OptionError
from pianissimo.models.whisper import CrossAttention, TextDecoder

KERNEL, STRIDE = 5, 2
STEM_STRIDE = STRIDE * STRIDE
"""Waveform frames of an encoder frame."""
CARRIED = KERNEL - STRIDE
"""Inputs of a convolution that its next outputs read again."""
NORM_EPS = 1e-6


@dataclass(frozen=True)
class MoonshineConfig:
    """Sizes of a Moonshine Streaming; `windows` are (left, right) of each encoder layer.

    `rotary` of the `dim // decoder_heads` numbers of a head are rotated, with periods up to about
    `rotary_base` tokens. `dim` is the width of the decoder.
    """

    vocab_size: int = 32768
    dim: int = 320
    ff_dim: int = 1280
    decoder_layers: int = 6
    decoder_heads: int = 8
    encoder_dim: int = 320
    encoder_ff_dim: int = 1280
    encoder_heads: int = 8
    windows: tuple[tuple[int, int], ...] = ((16, 4), (16, 4), (16, 0), (16, 0), (16, 4), (16, 4))
    frame_samples: int = 80
    positions: int = 4096
    rotary: int = 32
    rotary_base: float = 10000.0
    attention_bias: bool = False
    encoder_attention_bias: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise OptionError(f"Moonshine's {name} is {value}, expected 1 or more")
        if self.dim % self.decoder_heads or self.encoder_dim % self.encoder_heads:
            raise OptionError(
                f"Moonshine's widths {self.dim} and {self.encoder_dim} must be divisible by its "
                f"{self.decoder_heads} and {self.encoder_heads} heads"
            )
        if self.rotary % 2 or self.rotary > self.dim // self.decoder_heads:
            raise OptionError(
                f"{self.rotary} rotated numbers must be even and fit into a head of "
                f"{self.dim // self.decoder_heads}"
            )
        if not self.windows or min(left for left, _ in self.windows) < 1:
            raise OptionError("each encoder layer needs a window that holds its own frame")

    @property
    def rights(self) -> tuple[int, ...]:
        """Frames after its own that each encoder layer sees."""
        return tuple(max(0, right - 1) for _, right in self.windows)

    @property
    def lookahead(self) -> int:
        """Frames after its own on which an encoder frame depends."""
        return sum(self.rights)

    @property
    def text_positions(self) -> int:
        """The longest text in tokens."""
        return self.positions

    @property
    def audio_positions(self) -> int:
        """The longest recording in encoder frames."""
        return self.positions


class UnitOffsetNorm(nn.Module):
    """Layer norm without a bias, whose stored weights lie around 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * (self.gamma + 1.0)


class MoonshineStem(nn.Module):
    """Waveform frames to encoder frames."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        dim = config.encoder_dim
        self.log_scale = nn.Parameter(torch.tensor(0.0))
        self.linear = nn.Linear(config.frame_samples, dim, bias=False)
        self.conv1 = nn.Conv1d(dim, 2 * dim, KERNEL, STRIDE)
        self.conv2 = nn.Conv1d(2 * dim, dim, KERNEL, STRIDE)

    def wave(self, frames: Tensor) -> Tensor:
        """(B, T, F) samples -> (B, T, E). A frame of zeros gives zeros."""
        centered = frames - frames.mean(-1, keepdim=True)
        rms = (centered.pow(2).mean(-1, keepdim=True) + NORM_EPS).sqrt()
        return F.silu(self.linear(torch.asinh(self.log_scale.exp() * (centered / rms))))

    def convolved(
        self, wave: Tensor, before: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(B, T, E) -> encoder frames (B, S, E), and what the next ones need as `before`: the last
        `CARRIED` inputs of both convolutions, (B, 3, E) and (B, 3, 2 * E).

        `before` None is the beginning, in front of which there are zeros.
        """
        x, first = _strided(self.conv1, wave, None if before is None else before[0])
        y, second = _strided(self.conv2, F.silu(x), None if before is None else before[1])
        return y, (first, second)


def _strided(conv: nn.Conv1d, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """A causal convolution of (B, T, C), and the inputs that its next outputs read again."""
    if before is None:
        before = x.new_zeros(len(x), KERNEL - 1, x.shape[2])
    whole = torch.cat([before, x], dim=1)
    made = max(0, (whole.shape[1] - KERNEL) // STRIDE + 1)
    if made:
        y = conv(whole.transpose(1, 2)).transpose(1, 2)
    else:
        y = whole.new_zeros(len(x), 0, conv.out_channels)
    return y, whole[:, STRIDE * made :]


class MoonshineEncoderLayer(nn.Module):
    """Attention over a sliding window, without positions, and a feed-forward network."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        dim = config.encoder_dim
        self.heads = config.encoder_heads
        self.attention_norm, self.ff_norm = UnitOffsetNorm(dim), UnitOffsetNorm(dim)
        self.query = nn.Linear(dim, dim, bias=config.encoder_attention_bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=config.encoder_attention_bias)
        self.out = nn.Linear(dim, dim, bias=config.encoder_attention_bias)
        self.up = nn.Linear(dim, config.encoder_ff_dim)
        self.down = nn.Linear(config.encoder_ff_dim, dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, E) -> keys and values (B, S, E)."""
        key, value = self.key_value(self.attention_norm(x)).chunk(2, dim=-1)
        return key, value

    def attend(self, x: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Frames (B, Q, E) over keys and values (B, W, E); visible (B or 1, Q, W) -> (B, Q, E)."""
        q, k, v = (
            each.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for each in (self.query(self.attention_norm(x)), key, value)
        )
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None])
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ff_norm(x))))


class MoonshineEncoder(nn.Module):
    """Samples to encoder frames with positions, as the decoder attends to them."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = MoonshineStem(config)
        blocks = [MoonshineEncoderLayer(config) for _ in config.windows]
        self.layers = cast("Sequence[MoonshineEncoderLayer]", nn.ModuleList(blocks))
        self.norm = UnitOffsetNorm(config.encoder_dim)
        self.positions = nn.Parameter(torch.zeros(config.positions, config.encoder_dim))
        self.adapter: nn.Module = nn.Identity()
        if config.encoder_dim != config.dim:
            self.adapter = nn.Linear(config.encoder_dim, config.dim, bias=False)

    def frames(self, samples: Tensor) -> Tensor:
        """(B, N) samples -> (B, T, F). A last frame that is not full becomes zeros."""
        size = self.config.frame_samples
        full = samples.shape[1] // size * size
        padded = F.pad(samples[:, :full], (0, size if full < samples.shape[1] else 0))
        return padded.unflatten(1, (-1, size))

    def encoded(self, samples: Tensor) -> Tensor:
        """Whole recordings (B, N) of one length -> (B, S, E), before the adapter."""
        x, _ = self.stem.convolved(self.stem.wave(self.frames(samples)), None)
        at = torch.arange(x.shape[1], device=x.device)
        ahead = at - at[:, None]
        for layer, (left, _), right in zip(
            self.layers, self.config.windows, self.config.rights, strict=True
        ):
            visible = (ahead > -left) & (ahead <= right)
            x = layer.attend(x, *layer.project(x), visible[None])
        return cast(Tensor, self.norm(x))

    def adapted(self, encoded: Tensor, first: Tensor) -> Tensor:
        """(B, S, E) frames from positions `first` (B,) on -> (B, S, D)."""
        at = first[:, None] + torch.arange(encoded.shape[1], device=encoded.device)
        most = self.config.positions - 1
        return cast(Tensor, self.adapter(encoded + self.positions[at.clamp(0, most)]))

    def forward(self, samples: Tensor) -> Tensor:
        """Whole recordings (B, N) of one length -> (B, S, D)."""
        encoded = self.encoded(samples)
        if encoded.shape[1] > self.config.positions:
            raise OptionError(
                f"{encoded.shape[1]} frames are more than the {self.config.positions} positions "
                "of this Moonshine; cut the recording at a pause"
            )
        first = torch.zeros(len(samples), dtype=torch.long, device=encoded.device)
        return self.adapted(encoded, first)


class RotaryAttention(nn.Module):
    """The decoder's attention to the text so far."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.rotary = config.decoder_heads, config.rotary
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.attention_bias)
        self.out = nn.Linear(dim, dim, bias=False)
        self.rotary_base = config.rotary_base

    def step(
        self, x: Tensor, key: Tensor, value: Tensor, place: Tensor, visible: Tensor | None
    ) -> Tensor:
        """As `CachedAttention.step` of Whisper."""
        B, U, D = x.shape
        q, k, v = self.qkv(x).view(B, U, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        q, k = self._rotated(q, place), self._rotated(k, place)
        row = torch.arange(B, device=x.device)[:, None]
        key[row, :, place], value[row, :, place] = k.transpose(1, 2), v.transpose(1, 2)
        seen = visible.shape[-1] if visible is not None else int(place[0, -1]) + 1
        heads = F.scaled_dot_product_attention(
            q, key[:, :, :seen], value[:, :, :seen], attn_mask=visible
        )
        return cast(Tensor, self.out(heads.transpose(1, 2).flatten(2)))

    def _rotated(self, x: Tensor, place: Tensor) -> Tensor:
        """(B, H, U, K) with pairs of the first `rotary` numbers turned by their place (B, U)."""
        R = self.rotary
        powers = torch.arange(0, R, 2, device=x.device, dtype=torch.float32) / R
        angles = place[..., None].float() * (1.0 / self.rotary_base**powers)  # (B, U, R / 2)
        cos, sin = (part.to(x.dtype)[:, None] for part in (angles.cos(), angles.sin()))
        even, odd = x[..., 0:R:2], x[..., 1:R:2]
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
        return torch.cat([turned, x[..., R:]], dim=-1)


class MoonshineDecoderLayer(nn.Module):
    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        dim = config.dim
        self.attention_norm, self.cross_norm, self.ff_norm = (
            nn.LayerNorm(dim, bias=False) for _ in range(3)
        )
        self.attention = RotaryAttention(config)
        bias = config.attention_bias
        self.cross = CrossAttention(dim, config.decoder_heads, bias=bias, out_bias=False)
        self.up = nn.Linear(dim, 2 * config.ff_dim)
        self.down = nn.Linear(config.ff_dim, dim)

    def after(
        self, x: Tensor, key: Tensor, value: Tensor, heard: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What follows the attention to the text: (B, U, D), and where each head looked."""
        crossed, looked = self.cross(self.cross_norm(x), key, value, heard)
        x = x + crossed
        hidden, gate = self.up(self.ff_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * hidden), looked


class MoonshineDecoder(TextDecoder):
    """Tokens and encoder frames to the logits of the next token."""

    config: MoonshineConfig

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        blocks = [MoonshineDecoderLayer(config) for _ in range(config.decoder_layers)]
        self.layers = cast("Iterable[MoonshineDecoderLayer]", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(config.dim, bias=False)
        self.logits = nn.Linear(config.dim, config.vocab_size, bias=False)

    def embedded(self, tokens: Tensor, place: Tensor) -> Tensor:
        """See `TextDecoder.embedded`; positions are rotations in the attention."""
        return cast(Tensor, self.embedding(tokens))


class Moonshine(nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MoonshineEncoder(config)
        self.decoder = MoonshineDecoder(config)

    @property
    def device(self) -> torch.device:
        return self.encoder.positions.device

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.positions.dtype
