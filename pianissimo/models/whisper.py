"""Whisper: an encoder for whole recordings or for cached chunks, and its decoder.

Shape legend: B batch, T mel frames (10 ms), F mel bins, S encoder frames (20 ms), D width, H heads,
K head width, L left context, U tokens, P most tokens, V vocabulary.

Paper: Radford et al. 2022, arXiv 2212.04356. Numerics follow the official weights.

Whole, every frame sees every other one, as published. In chunks, frame i of a stream sees its own
chunk and the L frames before that chunk, whose keys and values are cached: no frame is encoded
twice. `step` over the chunks of a stream, `chunked` over all of it, a batch and a lone stream
all give the same numbers. Positions are absolute and in the weights, so a stream holds
at most `audio_positions` frames (30 s); a longer one restarts at a pause. The modules hold
weights only; what a stream remembers is an `EncoderState` or a `DecoderState` that the caller owns.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.errors import OptionError

MELS_PER_FRAME = 2
FRAME_SECONDS = 0.02
SILENCE_FRAMES = 500
"""10 s: with less the decoder does not always see that a text is over."""
QUERIES_PER_WINDOW = 112
"""Frames of several chunks that share an attention window where a whole stream is known."""


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes of a Whisper; encoder and decoder share their widths."""

    n_mels: int = 80
    dim: int = 384
    ff_dim: int = 1536
    encoder_heads: int = 6
    decoder_heads: int = 6
    encoder_layers: int = 4
    decoder_layers: int = 4
    vocab_size: int = 51864
    audio_positions: int = 1500
    text_positions: int = 448

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise OptionError(f"Whisper's {name} is {value}, expected 1 or more")
        if self.dim % 2 or self.dim % self.encoder_heads or self.dim % self.decoder_heads:
            raise OptionError(
                f"Whisper's width {self.dim} must be even and divisible by its "
                f"{self.encoder_heads} and {self.decoder_heads} heads"
            )


@dataclass(frozen=True)
class TextRules:
    """What belongs to published weights beside them.

    `suppressed` are tokens that are never written, `suppressed_first` those that no text begins
    with; `alignment_heads` are pairs of decoder layer and head that follow the speech (none: all
    heads of the upper half), whose attention is smoothed over `median_width` frames. Only a
    `multilingual` model is told a language and a task.
    """

    multilingual: bool = False
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    alignment_heads: tuple[tuple[int, int], ...] = ()
    median_width: int = 7


@dataclass(frozen=True)
class LiveConfig:
    """How an encoder was made to live: frames of left context, and its sizes of chunks, the usual
    one first."""

    left_frames: int = 280
    chunk_frames: tuple[int, ...] = (56,)

    def __post_init__(self) -> None:
        if self.left_frames < 0 or not self.chunk_frames or min(self.chunk_frames) < 1:
            raise OptionError(
                f"a live Whisper needs chunks of 1 frame or more and a left context, not {self}"
            )


@dataclass
class EncoderState:
    """What streams remember in the encoder between two chunks; all of one size for ever.

    mel (B, 1, F): the last mel frame; stem (B, 1, D): the last output of the first convolution;
    key, value (layers, B, H, L, K): the last L frames, newest last; position (B,): frames that went
    through. Zeros everywhere are a stream that has heard nothing.
    """

    mel: Tensor
    stem: Tensor
    key: Tensor
    value: Tensor
    position: Tensor


@dataclass
class DecoderState:
    """What texts in the making remember in the decoder.

    key, value (layers, R, H, P, K): self-attention of R texts; cross_key, cross_value
    (layers, B, H, S, K) of the encoder frames of B recordings; frames (B,): how many of the S each
    may see, None for all; length (R,): tokens that went through. Recording b has the R / B texts
    from b * R / B on, which share what was heard.
    """

    key: Tensor
    value: Tensor
    cross_key: Tensor
    cross_value: Tensor
    frames: Tensor | None
    length: Tensor

    def rows(self, index: Tensor) -> "DecoderState":
        """The recordings `index` (N,) with their texts, as a state of its own."""
        beams = len(self.length) // self.cross_key.shape[1]
        texts = (index[:, None] * beams + torch.arange(beams, device=index.device)).flatten()
        return DecoderState(
            self.key[:, texts],
            self.value[:, texts],
            self.cross_key[:, index],
            self.cross_value[:, index],
            None if self.frames is None else self.frames[index],
            self.length[texts],
        )

    def texts(self, index: Tensor) -> "DecoderState":
        """The texts `index` (R',) in their place, R' / B for each recording; they may repeat."""
        return replace(
            self, key=self.key[:, index], value=self.value[:, index], length=self.length[index]
        )


class EncoderAttention(nn.Module):
    """Self-attention with one product for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None = None, visible: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, D) -> (B, S, D), and the keys and values (B, H, W, K) that it attends to: those of
        the `past`, then its own. Every frame sees what `visible` shows, or all."""
        B, S, D = x.shape
        q, k, v = self.qkv(x).view(B, S, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.out(heads.transpose(1, 2).flatten(2)), k, v

    def windowed(self, x: Tensor, visible: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D), in N windows of Q queries; `visible` (N, 1, Q, W)."""
        N, _, Q, W = visible.shape
        (B, S, D), H = x.shape, self.heads
        K = D // H
        q, k, v = self.qkv(x).view(B, S, 3, H, K).permute(2, 0, 3, 1, 4)
        behind = N * Q - S
        queries = F.pad(q, (0, 0, 0, behind)).view(B, H, N, Q, K).transpose(1, 2).flatten(0, 1)
        keys, values = (
            F.pad(t, (0, 0, W - Q, behind)).unfold(2, W, Q).permute(0, 2, 1, 4, 3).flatten(0, 1)
            for t in (k, v)
        )
        heads = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=visible.repeat(B, 1, 1, 1)
        )
        joined = heads.view(B, N, H, Q, K).transpose(2, 3).reshape(B, N * Q, H * K)[:, :S]
        return cast(Tensor, self.out(joined))


class FeedForward(nn.Module):
    def __init__(self, dim: int, ff_dim: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, ff_dim)
        self.down = nn.Linear(ff_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.gelu(self.up(x))))


class EncoderLayer(nn.Module):
    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        dim, heads = config.dim, config.encoder_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = EncoderAttention(dim, heads)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, config.ff_dim)

    def forward(self, x: Tensor, windows: Tensor | None) -> Tensor:
        """(B, S, D) -> (B, S, D); every frame sees all, or what its window (N, 1, Q, W) shows."""
        text = self.attention_norm(x)
        attended = (
            self.attention(text)[0] if windows is None else self.attention.windowed(text, windows)
        )
        x = x + attended
        return cast(Tensor, x + self.ff(self.ff_norm(x)))

    def step(
        self, x: Tensor, key: Tensor, value: Tensor, visible: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A chunk (B, C, D) with the cached keys and values (B, H, L, K), and the next caches."""
        attended, k, v = self.attention(self.attention_norm(x), (key, value), visible)
        x = x + attended
        kept = slice(k.shape[2] - key.shape[2], None)
        return x + self.ff(self.ff_norm(x)), k[:, :, kept], v[:, :, kept]


class WhisperEncoder(nn.Module):
    """Mel frames to encoder frames of 20 ms, whole or chunk by chunk."""

    positions: Tensor

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv1d(config.n_mels, config.dim, 3)
        self.conv2 = nn.Conv1d(config.dim, config.dim, 3, stride=MELS_PER_FRAME)
        self.register_buffer("positions", sinusoids(config.audio_positions, config.dim))
        blocks = [EncoderLayer(config) for _ in range(config.encoder_layers)]
        self.layers = cast("Iterable[EncoderLayer]", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(config.dim)

    # -- whole recordings --------------------------------------------------------------------------

    def forward(self, mel: Tensor, windows: Tensor | None = None) -> Tensor:
        """(B, T, F) -> (B, S, D), S = T / 2 rounded up, of at most 30 s; every frame sees all, or
        what its window (N, 1, Q, W) shows."""
        x = F.gelu(self.conv1(F.pad(mel.transpose(1, 2), (1, 1))))
        x = F.gelu(self.conv2(F.pad(x, (1, 1)))).transpose(1, 2)  # (B, S, D)
        if x.shape[1] > len(self.positions):
            raise self._too_long(x.shape[1])
        x = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, windows)
        return cast(Tensor, self.norm(x))

    def chunked(self, mel: Tensor, chunk: int, left: int) -> Tensor:
        """What `step` makes of the chunks of a stream, all at once: (B, T, F) -> (B, S, D)."""
        frames = -(-mel.shape[1] // MELS_PER_FRAME)
        return self.forward(mel, chunk_windows(frames, chunk, left).to(mel.device))

    # -- streams -----------------------------------------------------------------------------------

    def start(self, batch: int, left: int) -> EncoderState:
        """The state of `batch` streams that have heard nothing, with `left` frames of context."""
        config, zeros = self.config, self.positions.new_zeros
        width = config.dim // config.encoder_heads
        caches = (config.encoder_layers, batch, config.encoder_heads, left, width)
        return EncoderState(
            mel=zeros(batch, 1, config.n_mels),
            stem=zeros(batch, 1, config.dim),
            key=zeros(caches),
            value=zeros(caches),
            position=torch.zeros(batch, dtype=torch.long, device=self.positions.device),
        )

    def step(self, mel: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """One chunk of C frames from (B, 2 * C + 1, F) mel frames: (B, C, D), and the next state.

        The last mel frame is the 10 ms that the convolutions look ahead; the next chunk begins with
        it again. Behind the end of a recording mel frames of zeros stand for nothing, as for
        `forward`. `state` stays as it is, so a stream can be tried and taken back. Raises
        OptionError where a row would go beyond `audio_positions`.
        """
        C = (mel.shape[1] - 1) // MELS_PER_FRAME
        last = int(state.position.max())
        if last + C > len(self.positions):
            raise self._too_long(last + C)
        first = F.gelu(self.conv1(torch.cat([state.mel, mel], 1).transpose(1, 2)))  # (B, D, 2C)
        stem = torch.cat([state.stem, first.transpose(1, 2)], dim=1)
        x = F.gelu(self.conv2(stem.transpose(1, 2))).transpose(1, 2)  # (B, C, D)
        x = x + self.positions[state.position[:, None] + torch.arange(C, device=mel.device)]
        left = state.key.shape[3]
        visible = None
        if int(state.position.min()) < left:  # where nothing was heard yet there is nothing to see
            column = torch.arange(left + C, device=mel.device)
            visible = (column >= left - state.position[:, None])[:, None, None]
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            x, key, value = layer.step(x, state.key[i], state.value[i], visible)
            keys.append(key)
            values.append(value)
        after = EncoderState(
            mel=mel[:, -2:-1],
            stem=stem[:, -1:],
            key=torch.stack(keys),
            value=torch.stack(values),
            position=state.position + C,
        )
        return self.norm(x), after

    def _too_long(self, frames: int) -> OptionError:
        return OptionError(
            f"{frames} frames are more than the {len(self.positions)} positions this Whisper "
            "knows; cut the recording, or restart the stream at a pause"
        )


class CachedAttention(nn.Module):
    """The decoder's attention to the text so far."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """A whole text (B, U, D) -> (B, U, D), each token seeing those before it."""
        B, U, D = x.shape
        q, k, v = self.qkv(x).view(B, U, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return cast(Tensor, self.out(heads.transpose(1, 2).flatten(2)))

    def step(
        self, x: Tensor, key: Tensor, value: Tensor, place: Tensor, visible: Tensor | None
    ) -> Tensor:
        """Further tokens (B, U, D) -> (B, U, D). Writes their keys and values into the caches
        (B, H, P, K) at `place` (B, U), and sees of these what `visible` (B, 1, U, W) says, or W."""
        B, U, D = x.shape
        q, k, v = self.qkv(x).view(B, U, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        row = torch.arange(B, device=x.device)[:, None]
        key[row, :, place], value[row, :, place] = k.transpose(1, 2), v.transpose(1, 2)
        seen = visible.shape[-1] if visible is not None else int(place[0, -1]) + 1
        heads = F.scaled_dot_product_attention(
            q, key[:, :, :seen], value[:, :, :seen], attn_mask=visible
        )
        return cast(Tensor, self.out(heads.transpose(1, 2).flatten(2)))


class CrossAttention(nn.Module):
    """The decoder's attention to the encoder frames, whose keys and values are made once."""

    def __init__(self, dim: int, heads: int, *, bias: bool = True, out_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=out_bias)

    def project(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, D) encoder frames -> keys and values, each (B, H, S, K)."""
        B, S, D = encoded.shape
        pair = self.key_value(encoded).view(B, S, 2, self.heads, D // self.heads)
        key, value = pair.permute(2, 0, 3, 1, 4)
        return key, value

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, visible: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(R, U, D) -> (R, U, D), and where each head looked: (R, H, U, S)."""
        R, U, D = x.shape
        B, H, S, K = key.shape
        q = self.query(x).view(B, R // B * U, H, K).transpose(1, 2)  # texts of one recording
        scores = (q * K**-0.5) @ key.transpose(2, 3)
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        weights = scores.softmax(-1)  # (B, H, R / B * U, S)
        y = self.out((weights @ value).transpose(1, 2).reshape(R, U, D))
        return y, weights.view(B, H, R // B, U, S).transpose(1, 2).reshape(R, H, U, S)


class DecoderLayer(nn.Module):
    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        dim, heads = config.dim, config.decoder_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = CachedAttention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, heads)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, config.ff_dim)

    def after(
        self, x: Tensor, key: Tensor, value: Tensor, heard: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What follows the attention to the text: (B, U, D), and where each head looked."""
        crossed, looked = self.cross(self.cross_norm(x), key, value, heard)
        x = x + crossed
        return x + self.ff(self.ff_norm(x)), looked


class DecoderSizes(Protocol):
    """What a `TextDecoder` needs of its configuration."""

    @property
    def dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def decoder_layers(self) -> int: ...
    @property
    def decoder_heads(self) -> int: ...
    @property
    def audio_positions(self) -> int: ...
    @property
    def text_positions(self) -> int: ...


class CrossingLayer(Protocol):
    """A decoder layer as a `TextDecoder` steps through it; `DecoderLayer` is one."""

    attention_norm: nn.LayerNorm
    cross: CrossAttention

    @property
    def attention(self) -> "SteppedAttention": ...

    def after(
        self, x: Tensor, key: Tensor, value: Tensor, heard: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...


class SteppedAttention(Protocol):
    """Attention to the text so far, as `CachedAttention` is."""

    def step(
        self, x: Tensor, key: Tensor, value: Tensor, place: Tensor, visible: Tensor | None
    ) -> Tensor: ...


class TextDecoder(nn.Module):
    """A decoder that attends to its text and to encoder frames, both cached, token by token.

    A model sets these modules, and says how tokens are embedded.
    """

    config: DecoderSizes
    embedding: nn.Embedding
    layers: Iterable[CrossingLayer]
    norm: nn.LayerNorm
    logits: nn.Linear

    def embedded(self, tokens: Tensor, place: Tensor) -> Tensor:
        """Tokens (R, U) at these places in their texts -> (R, U, D)."""
        raise NotImplementedError

    def start(
        self, encoded: Tensor, frames: Tensor | None = None, most_tokens: int | None = None
    ) -> DecoderState:
        """The state of texts that have not begun: encoded (B, S, D), of which each row sees its
        first `frames` (B,), or all. `most_tokens` bounds prompt and text together."""
        crosses = self.cross(encoded).unbind(2)
        if frames is not None:
            pairs = zip(crosses, frames.tolist(), strict=True)
            crosses = tuple(cross[:, :, :, :count] for cross, count in pairs)
        return self.start_from(crosses, most_tokens)

    def cross(self, encoded: Tensor) -> Tensor:
        """Encoder frames (B, S, D) -> the keys and the values that the layers attend to, once for
        all texts: (2, layers, B, H, S, K). In memory frames are next to each other, which makes the
        products of a single query four times as fast."""
        config, (B, S, D) = self.config, encoded.shape
        heads = config.decoder_heads
        pairs = encoded.new_empty(2, config.decoder_layers, B, heads, D // heads, S)
        for i, layer in enumerate(self.layers):
            pair = layer.cross.key_value(encoded).view(B, S, 2, heads, D // heads)
            pairs[:, i] = pair.permute(2, 0, 3, 4, 1)
        return pairs.transpose(-1, -2)

    def start_from(self, crosses: Sequence[Tensor], most_tokens: int | None = None) -> DecoderState:
        """As `start`, from what `cross` gave for each text: (2, layers, H, S, K), of any S."""
        config, batch, first = self.config, len(crosses), crosses[0]
        counts = [cross.shape[3] for cross in crosses]
        _, N, H, _, K = first.shape
        if batch == 1:
            joined = first[:, :, None]
        else:  # laid out in memory as by `cross`
            joined = first.new_zeros(2, N, batch, H, K, max(counts)).transpose(-1, -2)
            for i, cross in enumerate(crosses):
                joined[:, :, i, :, : counts[i]] = cross
        equal = len(set(counts)) == 1
        most = min(most_tokens or config.text_positions, config.text_positions)
        return DecoderState(
            key=first.new_zeros(N, batch, H, most, K),
            value=first.new_zeros(N, batch, H, most, K),
            cross_key=joined[0],
            cross_value=joined[1],
            frames=None if equal else torch.tensor(counts, device=first.device),
            length=torch.zeros(batch, dtype=torch.long, device=first.device),
        )

    def step(
        self, tokens: Tensor, state: DecoderState, counts: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Further tokens (R, U) -> hidden (R, U, D), and where each layer looked (R, H, U, S).

        `counts` (R,) says how many tokens of each row are meant, the others being padding on the
        right. Advances `state` in place. `logits` turns what is needed of the hidden into (.., V).
        """
        U = tokens.shape[1]
        length, device = state.length, tokens.device
        seen = int(length.max()) + U
        if seen > state.key.shape[3]:
            raise OptionError(f"{seen} tokens are more than the {state.key.shape[3]} made room for")
        place = length[:, None] + torch.arange(U, device=device)  # (R, U)
        x = self.embedded(tokens, place)
        visible = None
        if U > 1 or int(length.min()) + 1 < seen:
            visible = (torch.arange(seen, device=device) <= place[..., None])[:, None]
        heard = None
        if state.frames is not None:
            heard = torch.arange(state.cross_key.shape[3], device=device) < state.frames[:, None]
            heard = heard[:, None, None]
        looked = []
        for i, layer in enumerate(self.layers):
            text = layer.attention_norm(x)
            x = x + layer.attention.step(text, state.key[i], state.value[i], place, visible)
            x, weights = layer.after(x, state.cross_key[i], state.cross_value[i], heard)
            looked.append(weights)
        state.length = length + (U if counts is None else counts)
        return self.norm(x), looked


class WhisperDecoder(TextDecoder):
    """Tokens and encoder frames to the logits of the next token."""

    config: WhisperConfig
    layers: Iterable[DecoderLayer]

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        embedding = torch.empty(config.vocab_size, config.dim)
        # Normal numbers on the meta device would import PyTorch's compiler, which takes seconds.
        if not embedding.is_meta:
            nn.init.normal_(embedding)
        self.embedding = nn.Embedding.from_pretrained(embedding, freeze=False)
        self.positions = nn.Parameter(torch.zeros(config.text_positions, config.dim))
        blocks = [DecoderLayer(config) for _ in range(config.decoder_layers)]
        self.layers = cast("Iterable[DecoderLayer]", nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.logits = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.logits.weight = self.embedding.weight  # one matrix, there and back

    def forward(self, tokens: Tensor, encoded: Tensor) -> Tensor:
        """Whole texts (B, U) and encoder frames (B, S, D) -> logits (B, U, V): for training."""
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for layer in self.layers:
            x = x + layer.attention(layer.attention_norm(x))
            x, _ = layer.after(x, *layer.cross.project(encoded), None)
        return cast(Tensor, self.logits(self.norm(x)))

    def embedded(self, tokens: Tensor, place: Tensor) -> Tensor:
        """See `TextDecoder.embedded`."""
        return cast(Tensor, self.embedding(tokens) + self.positions[place])


class Whisper(nn.Module):
    """Encoder and decoder."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = WhisperEncoder(config)
        self.decoder = WhisperDecoder(config)

    @property
    def device(self) -> torch.device:
        return self.encoder.positions.device

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.positions.dtype

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        """Mel frames (B, T, F) and the tokens so far (B, U) -> logits (B, U, V): for training."""
        return cast(Tensor, self.decoder(tokens, self.encoder(mel)))


def chunk_windows(frames: int, chunk: int, left: int) -> Tensor:
    """What each frame of a stream in chunks sees: (N, 1, Q, W), True where seen.

    Frame i belongs to chunk i // C, and sees that chunk and the `left` frames before it. The chunks
    are taken together in N windows of Q queries, whose W keys end with the window.
    """
    Q = chunk * max(1, QUERIES_PER_WINDOW // chunk)
    N, W = -(-frames // Q), left + Q
    query = torch.arange(N * Q).view(N, Q, 1)
    key = (torch.arange(W) - left) + torch.arange(N).view(N, 1, 1) * Q
    begin = query // chunk * chunk
    seen = (key < begin + chunk) & (key >= begin - left) & (key >= 0) & (key < frames)
    return seen[:, None]


def silence_frames(audio: int, positions: int) -> int:
    """Frames of silence that the decoder is given behind that many frames of a live stream."""
    return max(0, min(SILENCE_FRAMES, positions - audio))


def sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim): sines beside cosines, their periods from 2 pi to 20000 pi positions."""
    step = math.log(10000) / (dim // 2 - 1) if dim > 2 else 0.0
    # On the meta device these operations would import PyTorch's compiler, which takes seconds.
    rates = torch.exp(-step * torch.arange(dim // 2, device="cpu"))
    angles = torch.arange(length, device="cpu")[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
