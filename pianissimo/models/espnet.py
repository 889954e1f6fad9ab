"""ESPnet2 recognizers: Conformer encoder, CTC head, Transformer decoder; and a recurrent LM.

Watanabe et al. 2018 (arXiv 1804.00015), Guo et al. 2021 (arXiv 2010.13956). Modules have the names
that they have in a checkpoint, so that its tensors need no table.

Shape legend: B batch, N samples, T mel frames, F mel bins, S encoder frames, D width, H heads, K
width of a head, R hypotheses, U tokens, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import OptionError

MEL_FLOOR = 1e-10
NORM_EPS = 1e-12
LEGACY_FIRST = 5000
"""The length of the table of legacy positions, which are read from its end."""
LEAST_FRAMES = 7
"""The mel frames of the first encoder frame after subsampling."""

KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class FeaturesConfig:
    """Log-mel spectra: sizes in samples, `mels` bins, and how they are normalized.

    `normalize` is by the statistics of the training data ("global") or of the recording.
    """

    fft: int = 512
    window: int = 512
    hop: int = 128
    mels: int = 80
    normalize: Literal["global", "utterance"] | None = None
    means: bool = True
    variances: bool = True

    def __post_init__(self) -> None:
        if self.window > self.fft:
            raise OptionError(f"a window of {self.window} samples does not fit into {self.fft}")


@dataclass(frozen=True)
class DecoderConfig:
    """The attention decoder; as wide as the encoder."""

    heads: int = 4
    ff_dim: int = 2048
    layers: int = 6


@dataclass(frozen=True)
class EspnetConfig:
    """A whole model. `tokens` are its vocabulary by id, the blank first.

    `spelling` is the kind of tokens: pieces with `▁` for a space, characters with
    `space` for one, or words. `start` and `end` are the ids around a text. `legacy` selects the
    first form of relative positions, which ESPnet replaced in 2021.
    """

    tokens: tuple[str, ...]
    start: int
    end: int
    features: FeaturesConfig
    decoder: DecoderConfig | None
    dim: int = 256
    heads: int = 4
    ff_dim: int = 2048
    layers: int = 6
    conv_kernel: int | None = 31
    macaron: bool = False
    legacy: bool = False
    spelling: Literal["bpe", "char", "word"] = "bpe"
    space: str = "<space>"
    name: str = "unnamed"

    def __post_init__(self) -> None:
        for heads in (self.heads, self.decoder.heads if self.decoder else 1):
            if self.dim % heads:
                raise OptionError(f"a width of {self.dim} does not divide into {heads} heads")
        if self.conv_kernel is not None and self.conv_kernel % 2 == 0:
            raise OptionError(f"conv_kernel must be odd, not {self.conv_kernel}")
        if self.features.mels < LEAST_FRAMES:
            raise OptionError(f"{self.features.mels} mel bins are too few to subsample")

    def frames(self, samples: int) -> int:
        """The number of encoder frames of `samples` samples."""
        return max(0, ((samples // self.features.hop) // 2 - 1) // 2)

    @property
    def frame_seconds(self) -> float:
        """Seconds from one encoder frame to the next."""
        return 4 * self.features.hop / SAMPLE_RATE

    @property
    def least_samples(self) -> int:
        """The shortest audio that becomes an encoder frame."""
        return max((LEAST_FRAMES - 1) * self.features.hop, self.features.fft // 2 + 1)


@dataclass(frozen=True)
class LmConfig:
    """A recurrent language model; `kind` is the name of a layer of PyTorch."""

    vocab_size: int
    dim: int = 650
    hidden: int = 650
    layers: int = 2
    kind: Literal["LSTM", "GRU"] = "LSTM"


# -- layers ----------------------------------------------------------------------------------------


class LogMel(nn.Module):
    """Samples to natural logarithms of mel powers; the mel matrix is part of a checkpoint."""

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__()
        self.config = config
        self.logmel = nn.Module()
        self.logmel.register_buffer("melmat", torch.zeros(config.fft // 2 + 1, config.mels))

    def forward(self, samples: Tensor) -> Tensor:
        """(B, N) at 16 kHz -> (B, T, F), one frame more than hops fit into N."""
        config = self.config
        window = torch.hann_window(config.window, device=samples.device)
        spectrum = torch.stft(
            samples, config.fft, config.hop, config.window, window, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        melmat = self.logmel.get_buffer("melmat")
        return (power.transpose(1, 2) @ melmat).clamp(min=MEL_FLOOR).log()


class GlobalNorm(nn.Module):
    """Features by the mean and deviation of the training data."""

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.mels))
        self.register_buffer("std", torch.ones(config.mels))

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, F)."""
        if self.config.means:
            features = features - self.get_buffer("mean")
        return features / self.get_buffer("std") if self.config.variances else features


class UtteranceNorm(nn.Module):
    """Features by the mean and deviation of each recording."""

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, F); no row may be padded."""
        centered = features - features.mean(1, keepdim=True)
        scaled = centered if self.config.means else features
        if self.config.variances:
            deviation = centered.square().mean(1, keepdim=True).sqrt()
            scaled = scaled / deviation.clamp(min=1e-20)
        return scaled


class EspnetSubsampling(nn.Module):
    """Two strided convolutions: a quarter of the frames."""

    def __init__(self, mels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, dim, 3, 2), nn.ReLU(), nn.Conv2d(dim, dim, 3, 2), nn.ReLU()
        )
        self.out = nn.Sequential(nn.Linear(dim * (((mels - 1) // 2 - 1) // 2), dim))

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, F) -> (B, S, D)."""
        x = self.conv(features[:, None])
        hidden: Tensor = self.out(x.transpose(1, 2).flatten(2))  # (B, S, D)
        return hidden


def positions(places: Tensor, dim: int) -> Tensor:
    """Sines and cosines, interleaved, of (P,) places: (P, D)."""
    rates = torch.exp(torch.arange(0, dim, 2, device=places.device) * -(math.log(10000.0) / dim))
    angles = places[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim]


class EspnetAttention(nn.Module):
    """Multi-head attention; keys and values are separate, so that a caller may store them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (
            nn.Linear(dim, dim) for _ in range(4)
        )

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, K)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> KeysValues:
        """(B, T, D) -> twice (B, H, T, K)."""
        return self.split(self.linear_k(x)), self.split(self.linear_v(x))

    def forward(self, x: Tensor, past: KeysValues, causal: bool = False) -> Tensor:
        """(B, T, D) queries over keys and values -> (B, T, D)."""
        query = self.split(self.linear_q(x))
        keys, values = (kept.expand(len(x), -1, -1, -1) for kept in past)
        attended = F.scaled_dot_product_attention(query, keys, values, is_causal=causal)
        out: Tensor = self.linear_out(attended.transpose(1, 2).flatten(2))  # (B, T, D)
        return out


class EspnetRelativeAttention(EspnetAttention):
    """Attention with relative positions (Dai et al. 2019, arXiv 1901.02860, section 3.3)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.linear_pos = nn.Linear(dim, dim, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, dim // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, dim // heads))

    def attend(self, x: Tensor, places: Tensor) -> Tensor:
        """(B, T, D) over itself; `places` (P, D) encode distances, falling -> (B, T, D)."""
        query, (keys, values) = self.split(self.linear_q(x)), self.keys_values(x)
        near = self.split(self.linear_pos(places)[None])  # (1, H, P, K)
        distances = (query + self.pos_bias_v[:, None]) @ near.transpose(2, 3)
        scale = 1 / math.sqrt(query.shape[-1])
        attended = F.scaled_dot_product_attention(
            query + self.pos_bias_u[:, None], keys, values, _shifted(distances) * scale
        )
        out: Tensor = self.linear_out(attended.transpose(1, 2).flatten(2))  # (B, T, D)
        return out


def _shifted(scores: Tensor) -> Tensor:
    """(B, H, T, P) by distance -> (B, H, T, T) by place.

    With P = T, the legacy form, later places get the scores of other rows, as in training.
    """
    B, H, T, P = scores.shape
    padded = F.pad(scores, (1, 0)).view(B, H, P + 1, T)
    return padded[:, :, 1:].reshape(B, H, T, P)[..., :T]


class EspnetFeedForward(nn.Module):
    def __init__(self, dim: int, ff_dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(dim, ff_dim), nn.Linear(ff_dim, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.w_2(self.activation(self.w_1(x)))
        return out


class EspnetConvolution(nn.Module):
    """Gated pointwise and depthwise convolutions (Gulati et al. 2020, arXiv 2005.08100)."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(dim, 2 * dim, 1)
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.BatchNorm1d(dim)
        self.pointwise_conv2 = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        gated = F.glu(self.pointwise_conv1(x.transpose(1, 2)), dim=1)
        mixed = F.silu(self.norm(self.depthwise_conv(gated)))
        out: Tensor = self.pointwise_conv2(mixed).transpose(1, 2)
        return out


# -- encoder ---------------------------------------------------------------------------------------


class EspnetEncoderLayer(nn.Module):
    def __init__(self, config: EspnetConfig) -> None:
        super().__init__()
        dim = config.dim

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(dim, eps=NORM_EPS)

        self.self_attn = EspnetRelativeAttention(dim, config.heads)
        self.feed_forward = EspnetFeedForward(dim, config.ff_dim, nn.SiLU())
        self.norm_ff, self.norm_mha = norm(), norm()
        self.macaron = config.macaron
        if config.macaron:
            self.feed_forward_macaron = EspnetFeedForward(dim, config.ff_dim, nn.SiLU())
            self.norm_ff_macaron = norm()
        self.convolves = config.conv_kernel is not None
        if config.conv_kernel is not None:
            self.conv_module = EspnetConvolution(dim, config.conv_kernel)
            self.norm_conv, self.norm_final = norm(), norm()

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """(B, S, D), and (P, D) encoded distances -> (B, S, D)."""
        scale = 0.5 if self.macaron else 1.0
        if self.macaron:
            x = x + scale * self.feed_forward_macaron(self.norm_ff_macaron(x))
        x = x + self.self_attn.attend(self.norm_mha(x), places)
        if self.convolves:
            x = x + self.conv_module(self.norm_conv(x))
        x = x + scale * self.feed_forward(self.norm_ff(x))
        return self.norm_final(x) if self.convolves else x


class EspnetEncoder(nn.Module):
    def __init__(self, config: EspnetConfig) -> None:
        super().__init__()
        self.legacy = config.legacy
        self.embed = EspnetSubsampling(config.features.mels, config.dim)
        self.encoders = nn.ModuleList(EspnetEncoderLayer(config) for _ in range(config.layers))
        self.after_norm = nn.LayerNorm(config.dim, eps=NORM_EPS)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, F) of equal length, T at least `LEAST_FRAMES` -> (B, S, D)."""
        x = self.embed(features)
        S, D = x.shape[1:]
        if self.legacy:
            first = max(S, LEGACY_FIRST)
            places = torch.arange(first - 1, first - 1 - S, -1, device=x.device)
        else:
            places = torch.arange(S - 1, -S, -1, device=x.device)
        encoded = positions(places, D).to(x.dtype)
        x = x * math.sqrt(D)
        for layer in self.encoders:
            x = layer(x, encoded)
        out: Tensor = self.after_norm(x)
        return out


class EspnetCtcHead(nn.Module):
    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.ctc_lo = nn.Linear(dim, vocab_size)

    def forward(self, encoded: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, V) log-probabilities."""
        logits: Tensor = self.ctc_lo(encoded)
        return logits.log_softmax(-1)


# -- decoder ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DecoderState:
    """The state of decoding by layer: `memory` of the audio, `past` of the tokens so far.

    memory: (1, H, S, K); past: (R, H, U, K) once there are tokens.
    """

    memory: tuple[KeysValues, ...]
    past: tuple[KeysValues, ...] = ()

    def select(self, rows: Tensor) -> "DecoderState":
        """The state of some hypotheses, (R',) of them by number."""
        return DecoderState(self.memory, tuple((k[rows], v[rows]) for k, v in self.past))


class DecoderLayer(nn.Module):
    def __init__(self, dim: int, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn = EspnetAttention(dim, config.heads)
        self.src_attn = EspnetAttention(dim, config.heads)
        self.feed_forward = EspnetFeedForward(dim, config.ff_dim, nn.ReLU())
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, eps=NORM_EPS) for _ in range(3))

    def forward(
        self, x: Tensor, memory: KeysValues, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """(R, U, D) tokens after those in `past` -> (R, U, D), and the past with them."""
        normed = self.norm1(x)
        now = self.self_attn.keys_values(normed)
        if past is not None:
            now = torch.cat([past[0], now[0]], dim=2), torch.cat([past[1], now[1]], dim=2)
        x = x + self.self_attn(normed, now, causal=past is None)
        x = x + self.src_attn(self.norm2(x), memory)
        return x + self.feed_forward(self.norm3(x)), now


class Decoder(nn.Module):
    """Predicts the next token from the audio and the earlier tokens."""

    def __init__(self, vocab_size: int, dim: int, config: DecoderConfig) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Embedding(vocab_size, dim))
        self.decoders = nn.ModuleList(DecoderLayer(dim, config) for _ in range(config.layers))
        self.after_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.output_layer = nn.Linear(dim, vocab_size)

    def start(self, encoded: Tensor) -> DecoderState:
        """The state before the first token, for one recording's (S, D) encoder frames."""
        memory = encoded[None]
        return DecoderState(tuple(layer.src_attn.keys_values(memory) for layer in self.layers))

    def forward(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """(R, U) further tokens -> (R, U, V) log-probabilities after each, and the next state.

        U may be above 1 only at the start.
        """
        before = state.past[0][0].shape[2] if state.past else 0
        x = self.embed(tokens)
        U, D = x.shape[1:]
        places = torch.arange(before, before + U, device=x.device)
        x = x * math.sqrt(D) + positions(places, D).to(x.dtype)
        past = []
        for i, layer in enumerate(self.layers):
            x, kept = layer(x, state.memory[i], state.past[i] if state.past else None)
            past.append(kept)
        scores = self.output_layer(self.after_norm(x)).log_softmax(-1)
        return scores, DecoderState(state.memory, tuple(past))

    @property
    def layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.decoders if isinstance(layer, DecoderLayer)]


# -- whole models ----------------------------------------------------------------------------------


class EspnetModel(nn.Module):
    """A recognizer without its search."""

    def __init__(self, config: EspnetConfig) -> None:
        super().__init__()
        self.config = config
        vocab_size = len(config.tokens)
        self.frontend = LogMel(config.features)
        if config.features.normalize is not None:
            kinds = {"global": GlobalNorm, "utterance": UtteranceNorm}
            self.normalize = kinds[config.features.normalize](config.features)
        self.encoder = EspnetEncoder(config)
        self.ctc = EspnetCtcHead(config.dim, vocab_size)
        self.decoder = None
        if config.decoder is not None:
            self.decoder = Decoder(vocab_size, config.dim, config.decoder)

    @property
    def device(self) -> torch.device:
        return self.encoder.after_norm.weight.device

    def features(self, samples: Tensor) -> Tensor:
        """(B, N) at 16 kHz, of equal length -> (B, T, F), normalized."""
        features: Tensor = self.frontend(samples)
        if self.config.features.normalize is not None:
            features = self.normalize(features)
        return features

    def encode(self, samples: Tensor) -> Tensor:
        """(B, N) at 16 kHz, of equal length, N at least `config.least_samples` -> (B, S, D)."""
        encoded: Tensor = self.encoder(self.features(samples))
        return encoded

    def ctc_log_probs(self, encoded: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, V); the blank has id 0."""
        log_probs: Tensor = self.ctc(encoded)
        return log_probs


class RecurrentLm(nn.Module):
    """ESPnet's sequential language model."""

    def __init__(self, config: LmConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Embedding(config.vocab_size, config.dim)
        kind = nn.LSTM if config.kind == "LSTM" else nn.GRU
        self.rnn = kind(config.dim, config.hidden, config.layers, batch_first=True)
        self.decoder = nn.Linear(config.hidden, config.vocab_size)

    def forward(
        self, tokens: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(R,) tokens after `state`, None at the start -> (R, V) log-probabilities, state then.

        A state is (layers, R, width) once for a GRU, twice for an LSTM.
        """
        embedded = self.encoder(tokens[:, None])
        if state is None:
            zeros = embedded.new_zeros(self.config.layers, len(tokens), self.config.hidden)
            state = (zeros, zeros)
        out, after = self.rnn(embedded, state if self.config.kind == "LSTM" else state[0])
        kept = tuple(after) if self.config.kind == "LSTM" else (after,)
        return self.decoder(out[:, 0]).log_softmax(-1), kept
