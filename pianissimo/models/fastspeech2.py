"""FastSpeech2 with Conformer blocks, and the HiFi-GAN vocoder that makes its mel frames audible.

Ren et al., FastSpeech 2 (2006.04558), in ESPnet's form; Kong et al., HiFi-GAN (2010.05646). Shapes:
T phonemes, F mel frames, M mel bins, D width, H heads. One sentence at a time: convolutions would
read the padding of a batch. Modules are named as in Transformers, so that its tensors fit.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

LONGEST_PHONEME_FRAMES = 500
"""Of the predicted durations, before the speed: weights that are not a voice's must not fill the
memory. Real ones stay below 100."""


@dataclass(frozen=True)
class PredictorConfig:
    """A stack of convolutions over phonemes."""

    layers: int
    channels: int
    kernel: int


@dataclass(frozen=True)
class FastSpeech2Config:
    """The shape of the acoustic model; the defaults are those of the published checkpoint."""

    vocabulary: int = 78
    mels: int = 80
    width: int = 384
    heads: tuple[int, int] = (2, 2)
    """Of encoder and decoder, as in the next fields."""
    layers: tuple[int, int] = (4, 4)
    inner: tuple[int, int] = (1536, 1536)
    kernels: tuple[int, int] = (7, 31)
    normalize_before: tuple[bool, bool] = (False, False)
    final_norm: tuple[bool, bool] = (False, False)
    """A layer norm behind all layers, which ESPnet adds with `normalize_before`."""
    position_kernel: int = 3
    duration: PredictorConfig = PredictorConfig(2, 256, 3)
    pitch: PredictorConfig = PredictorConfig(5, 256, 5)
    energy: PredictorConfig = PredictorConfig(2, 256, 3)
    pitch_kernel: int = 1
    energy_kernel: int = 1
    postnet: PredictorConfig = PredictorConfig(5, 256, 5)


@dataclass(frozen=True)
class HifiGanConfig:
    """The shape of the vocoder; the defaults are HiFi-GAN v1."""

    mels: int = 80
    channels: int = 512
    rates: tuple[int, ...] = (8, 8, 2, 2)
    kernels: tuple[int, ...] = (16, 16, 4, 4)
    block_kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    slope: float = 0.1
    normalize_before: bool = False

    @property
    def hop(self) -> int:
        """Samples of a mel frame."""
        return math.prod(self.rates)

    @property
    def context_frames(self) -> int:
        """Mel frames on each side of a frame that its samples depend on."""
        samples, reach = 1, 3.0  # of the last convolution, in samples
        for rate, kernel in zip(reversed(self.rates), reversed(self.kernels), strict=True):
            blocks = (
                sum((size - 1) // 2 * (dilation + 1) for dilation in dilations)
                for size, dilations in zip(self.block_kernels, self.dilations, strict=True)
            )
            reach += samples * max(blocks)
            samples *= rate
            reach += samples / rate * math.ceil(kernel / 2)
        return math.ceil(reach / samples) + 3  # and the first convolution, in frames


def _conv(inputs: int, outputs: int, kernel: int, **options: bool | int) -> nn.Conv1d:
    """A convolution that keeps the length."""
    return nn.Conv1d(inputs, outputs, kernel, padding=(kernel - 1) // 2, **options)  # type: ignore[arg-type]


class RelativeAttention(nn.Module):
    """Self-attention with relative positions, after Transformer-XL (1901.02860)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x (1, T, D), positions (2T-1, D) from distance T-1 down to -(T-1) -> (1, T, D)."""
        _, T, D = x.shape
        shape = (-1, self.heads, D // self.heads)
        query = self.linear_q(x).view(shape)  # (T, H, D/H)
        key = self.linear_k(x).view(shape).permute(1, 2, 0)
        value = self.linear_v(x).view(shape).transpose(0, 1)
        position = self.linear_pos(positions).view(shape).permute(1, 2, 0)  # (H, D/H, 2T-1)
        by_content = (query + self.pos_bias_u).transpose(0, 1) @ key
        by_distance = (query + self.pos_bias_v).transpose(0, 1) @ position  # (H, T, 2T-1)
        # Row t needs the distances t, t-1, ... t-T+1: column T-1-t and the T-1 behind it.
        columns = torch.arange(T, device=x.device)
        columns = T - 1 - columns[:, None] + columns
        by_distance = by_distance.gather(2, columns.expand(self.heads, T, T))
        weights = ((by_content + by_distance) / math.sqrt(D // self.heads)).softmax(-1)
        return self.linear_out((weights @ value).transpose(0, 1).reshape(1, T, D))


class ConvFeedForward(nn.Module):
    """Two convolutions over time with ReLU between them."""

    def __init__(self, width: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = _conv(width, inner, kernel)
        self.conv2 = _conv(inner, width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, D)."""
        return self.conv2(self.conv1(x.transpose(1, 2)).relu()).transpose(1, 2)


class ConvolutionModule(nn.Module):
    """Pointwise, gate, depthwise, batch norm, SiLU, pointwise."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1)
        self.depthwise_conv = _conv(width, width, kernel, groups=width)
        self.norm = nn.BatchNorm1d(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, D)."""
        x = functional.glu(self.pointwise_conv1(x.transpose(1, 2)), dim=1)
        return self.pointwise_conv2(functional.silu(self.norm(self.depthwise_conv(x)))).mT


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward; each with a residual.

    `normalize_before` puts each layer norm before its block, else it follows the residual.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        position_kernel: int,
        kernel: int,
        normalize_before: bool,
    ) -> None:
        super().__init__()
        self.normalize_before = normalize_before
        self.feed_forward_macaron = ConvFeedForward(width, inner, position_kernel)
        self.self_attn = RelativeAttention(width, heads)
        self.conv_module = ConvolutionModule(width, kernel)
        self.feed_forward = ConvFeedForward(width, inner, position_kernel)
        self.ff_macaron_layer_norm = nn.LayerNorm(width)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.conv_layer_norm = nn.LayerNorm(width)
        self.ff_layer_norm = nn.LayerNorm(width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(1, T, D), positions (2T-1, D) -> (1, T, D)."""
        if self.normalize_before:
            x = x + 0.5 * self.feed_forward_macaron(self.ff_macaron_layer_norm(x))
            x = x + self.self_attn(self.self_attn_layer_norm(x), positions)
            x = x + self.conv_module(self.conv_layer_norm(x))
            x = x + 0.5 * self.feed_forward(self.ff_layer_norm(x))
        else:
            x = self.ff_macaron_layer_norm(x + 0.5 * self.feed_forward_macaron(x))
            x = self.self_attn_layer_norm(x + self.self_attn(x, positions))
            x = self.conv_layer_norm(x + self.conv_module(x))
            x = self.ff_layer_norm(x + 0.5 * self.feed_forward(x))
        return self.final_layer_norm(x)


class Conformer(nn.Module):
    """Encoder (`side` 0, with an embedding) or decoder (1)."""

    def __init__(self, config: FastSpeech2Config, side: int) -> None:
        super().__init__()
        self.width = config.width
        if side == 0:
            self.embed = nn.Embedding(config.vocabulary, config.width, padding_idx=0)
        self.conformer_layers = nn.ModuleList(
            ConformerLayer(
                config.width,
                config.heads[side],
                config.inner[side],
                config.position_kernel,
                config.kernels[side],
                config.normalize_before[side],
            )
            for _ in range(config.layers[side])
        )
        if config.final_norm[side]:
            self.after_norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, D)."""
        _, T, D = x.shape
        distances = torch.arange(T - 1, -T, -1, device=x.device, dtype=torch.float32)
        rates = torch.arange(0, D, 2, device=x.device, dtype=torch.float32)
        angles = distances[:, None] * torch.exp(rates * -(math.log(10_000.0) / D))
        positions = torch.stack((angles.sin(), angles.cos()), -1).flatten(1).to(x.dtype)
        x = x * math.sqrt(self.width)
        for layer in self.conformer_layers:
            x = layer(x, positions)
        return self.after_norm(x) if hasattr(self, "after_norm") else x


class PredictorLayer(nn.Module):
    """Convolution, ReLU, layer norm over channels."""

    def __init__(self, inputs: int, config: PredictorConfig) -> None:
        super().__init__()
        self.conv = _conv(inputs, config.channels, config.kernel)
        self.layer_norm = nn.LayerNorm(config.channels)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, C) -> (1, T, channels)."""
        return self.layer_norm(self.conv(x.mT).relu().mT)


class Predictor(nn.Module):
    """One number for each phoneme: its pitch, its energy, or the logarithm of its duration."""

    def __init__(self, width: int, config: PredictorConfig) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(
            PredictorLayer(config.channels if index else width, config)
            for index in range(config.layers)
        )
        self.linear = nn.Linear(config.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, D) -> (1, T, 1)."""
        for layer in self.conv_layers:
            x = layer(x)
        return self.linear(x)


class VarianceEmbedding(nn.Module):
    """A convolution from one number to a vector."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = _conv(1, width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(1, T, 1) -> (1, T, D)."""
        return self.conv(x.mT).mT


class PostnetLayer(nn.Module):
    """Convolution without bias, batch norm, and tanh but in the last layer."""

    def __init__(self, inputs: int, outputs: int, kernel: int, last: bool) -> None:
        super().__init__()
        self.conv = _conv(inputs, outputs, kernel, bias=False)
        self.batch_norm = nn.BatchNorm1d(outputs)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, F) -> (1, outputs, F)."""
        x = self.batch_norm(self.conv(x))
        return x if self.last else x.tanh()


class Postnet(nn.Module):
    """Mel frames, and their correction by convolutions."""

    def __init__(self, config: FastSpeech2Config) -> None:
        super().__init__()
        net = config.postnet
        self.feat_out = nn.Linear(config.width, config.mels)
        self.layers = nn.ModuleList(
            PostnetLayer(
                net.channels if index else config.mels,
                config.mels if index == net.layers - 1 else net.channels,
                net.kernel,
                index == net.layers - 1,
            )
            for index in range(net.layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(1, F, D) -> (1, F, M)."""
        before = self.feat_out(x)
        correction = before.mT
        for layer in self.layers:
            correction = layer(correction)
        return before + correction.mT


class FastSpeech2(nn.Module):
    """Phonemes to mel frames."""

    def __init__(self, config: FastSpeech2Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Conformer(config, 0)
        self.duration_predictor = Predictor(config.width, config.duration)
        self.pitch_predictor = Predictor(config.width, config.pitch)
        self.energy_predictor = Predictor(config.width, config.energy)
        self.pitch_embed = VarianceEmbedding(config.width, config.pitch_kernel)
        self.energy_embed = VarianceEmbedding(config.width, config.energy_kernel)
        self.decoder = Conformer(config, 1)
        self.speech_decoder_postnet = Postnet(config)

    def forward(self, ids: Tensor, speed: float = 1.0) -> tuple[Tensor, Tensor]:
        """Phoneme ids (T,) -> mel frames (F, M), natural logarithm, and durations (T,) in frames.

        `speed` divides durations.
        """
        x = self.encoder(self.encoder.embed(ids)[None])
        predicted = torch.nan_to_num(self.duration_predictor(x)[0, :, 0].exp() - 1)
        durations = torch.round(predicted).clamp(0, LONGEST_PHONEME_FRAMES)
        if speed != 1.0:
            durations = torch.round(durations / speed)
        if durations.sum() == 0:
            durations = torch.ones_like(durations)
        durations = durations.long()
        pitch, energy = self.pitch_predictor(x), self.energy_predictor(x)
        x = x + self.pitch_embed(pitch) + self.energy_embed(energy)
        frames = self.decoder(x.repeat_interleave(durations, dim=1))
        return self.speech_decoder_postnet(frames)[0], durations


class ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution."""

    def __init__(
        self, channels: int, kernel: int, dilations: tuple[int, ...], slope: float
    ) -> None:
        super().__init__()
        self.slope = slope
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=each, padding=(kernel - 1) * each // 2)
            for each in dilations
        )
        self.convs2 = nn.ModuleList(_conv(channels, channels, kernel) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, N) -> (1, C, N)."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            y = dilated(functional.leaky_relu(x, self.slope))
            x = x + plain(functional.leaky_relu(y, self.slope))
        return x


class HifiGan(nn.Module):
    """Mel frames to samples; the mean of several residual blocks follows each upsampling."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: HifiGanConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.mels))
        self.register_buffer("scale", torch.ones(config.mels))
        self.conv_pre = _conv(config.mels, config.channels, 7)
        self.upsampler = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        channels = config.channels
        for rate, kernel in zip(config.rates, config.kernels, strict=True):
            self.upsampler.append(
                nn.ConvTranspose1d(
                    channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2
                )
            )
            channels //= 2
            for size, dilations in zip(config.block_kernels, config.dilations, strict=True):
                self.resblocks.append(ResidualBlock(channels, size, dilations, config.slope))
        self.conv_post = _conv(channels, 1, 7)

    def forward(self, mel: Tensor) -> Tensor:
        """Mel frames (F, M) -> samples (F * hop,) within ±1."""
        if self.config.normalize_before:
            mel = (mel - self.mean) / self.scale
        x = self.conv_pre(mel.mT[None])
        count = len(self.config.block_kernels)
        for index, upsample in enumerate(self.upsampler):
            x = upsample(functional.leaky_relu(x, self.config.slope))
            blocks = self.resblocks[index * count : (index + 1) * count]
            x = sum((block(x) for block in blocks), torch.zeros_like(x)) / count
        # PyTorch's default slope here, as in the original.
        return self.conv_post(functional.leaky_relu(x)).tanh()[0, 0]

    def chunks(self, mel: Tensor, first: int = 16, later: int = 48) -> Iterator[Tensor]:
        """The samples of `forward` in chunks of `first`, then `later` frames of mel (F, M).

        Each chunk is computed with the frames beside it that its samples depend on, so the chunks
        joined equal the whole.
        """
        context, hop = self.config.context_frames, self.config.hop
        start, size = 0, first
        while start < len(mel):
            end = min(start + size, len(mel))
            left = max(0, start - context)
            samples = self(mel[left : end + context])
            yield samples[(start - left) * hop : (end - left) * hop]
            start, size = end, later
