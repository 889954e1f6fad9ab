"""Whisper's encoder as a `StreamingEncoder`: its layers over the slots of an arena.

Shape legend: B rows of the step, T mel frames, F mel bins, Q frames per row, C frames of a chunk,
L left context, D width, H heads, K head width, N layers, P positions.

The numbers are those of `WhisperEncoder.chunked`: a frame sees its own chunk and the L frames
before that chunk. Positions are absolute, so a slot holds at most P frames (30 s); the stream
starts its state again at pauses. The mel frames since then are kept as they are: the second pass
encodes them whole, as published. A model that was distilled for short chunks has one encoder for
the chunks and the published one for the second pass.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pianissimo.audio.whisper_features import LIVE_PEAK, SILENT, WhisperFeatures, scaled
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.whisper_live import WhisperLiveDecoder, WhisperState
from pianissimo.errors import OptionError
from pianissimo.models.streaming_encoder import Memory, Rows, SlotTensor
from pianissimo.models.whisper import (
    MELS_PER_FRAME,
    LiveConfig,
    WhisperEncoder,
    silence_frames,
)
from pianissimo.streaming.grid import ChunkGrid

MEL_AHEAD = 2
"""Mel frames after 2 * s that encoder frame s reads, by the two convolutions of the stem."""


class WhisperSlots:
    """Features, stem and layers for streams in slots; holds no stream's state.

    Slot tensors: rings `key` and `value` (N, S, L, D), `mel` (S, 2, F) and `stem` (S, 1, D), the
    last inputs of the convolutions, and `features` (S, P, 2 * F), the mel frames of each encoder
    frame since the slot was cleared. Mel frames are log10 of power, before any floor.
    """

    def __init__(
        self,
        encoder: WhisperEncoder,
        live: LiveConfig | None = None,
        whole: WhisperEncoder | None = None,
    ) -> None:
        """`live` None is an encoder as it was published, which can run in the usual chunks. `whole`
        is the encoder of the second pass, by default the same."""
        live = live or LiveConfig()
        if max(live.chunk_frames) > live.left_frames:
            raise OptionError(
                f"a left context of {live.left_frames} frames is shorter than the longest chunk "
                f"of {max(live.chunk_frames)}; change left_frames or chunk_frames of the model"
            )
        config = encoder.config
        self.encoder, self.whole = encoder, whole or encoder
        self.left, self.positions = live.left_frames, config.audio_positions
        self.device, self.dtype = encoder.positions.device, encoder.positions.dtype
        self.features = WhisperFeatures(config.n_mels, self.device)
        self.lookaheads = tuple(chunk - 1 for chunk in live.chunk_frames)
        self.layers = list(encoder.layers)
        self.heads = config.encoder_heads
        ring = SlotTensor((self.left, config.dim), config.encoder_layers, ring=True)
        self.slot_tensors = {
            "key": ring,
            "value": ring,
            "mel": SlotTensor((2, config.n_mels)),
            "stem": SlotTensor((1, config.dim)),
            "features": SlotTensor((self.positions, 2 * config.n_mels), ring=True),
        }

    def grid(self, lookahead: int) -> ChunkGrid:
        if lookahead not in self.lookaheads:
            raise OptionError(f"a lookahead of {lookahead} frames is none of {self.lookaheads}")
        return ChunkGrid(lookahead + 1, MELS_PER_FRAME, self.features.config, MEL_AHEAD)

    def subsample(
        self, features: Tensor, slots: Tensor, memory: Memory, *, first: bool
    ) -> tuple[Tensor, Memory]:
        """See `StreamingEncoder.subsample`."""
        mel = features if first else torch.cat([memory["mel"][slots], features], dim=1)
        x, stem = self._stem(mel, None if first else memory["stem"][slots])
        kept = mel[:, : 2 * x.shape[1]] if first else mel[:, 1 : 1 + 2 * x.shape[1]]
        pairs = kept.reshape(len(mel), x.shape[1], -1)
        return x, {"mel": mel[:, -2:], "stem": stem, "features": pairs}

    def _stem(self, mel: Tensor, stem: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mel frames (B, T, F) with the two before them, or from the beginning on where `stem`
        (B, 1, D) is None -> frames (B, Q, D), and what the next ones need as `stem`."""
        x = scaled(mel, LIVE_PEAK).transpose(1, 2)
        if stem is None:  # the convolutions see zeros before the beginning, as published
            x = F.gelu(self.encoder.conv1(F.pad(x, (1, 0))))
            x = F.pad(x, (1, 0))
        else:
            x = F.gelu(self.encoder.conv1(x))
            x = torch.cat([stem.transpose(1, 2), x], dim=2)
        frames = F.gelu(self.encoder.conv2(x)).transpose(1, 2)
        return frames, x[:, :, 2 * frames.shape[1] :][:, :, :1].transpose(1, 2)

    def encode(self, x: Tensor, rows: Rows, memory: Memory, chunk: int) -> tuple[Tensor, Memory]:
        """See `StreamingEncoder.encode`."""
        C = x.shape[1]
        assert rows.counts is not None
        assert max(rows.counts) + C <= self.positions, "the stream had to start again before"
        x = x + self.encoder.positions[rows.frames[:, None] + torch.arange(C, device=x.device)]
        visible = None
        if min(rows.counts) < self.left:
            exists = torch.arange(self.left, device=x.device) < rows.frames[:, None]
            visible = F.pad(exists, (0, C), value=True)[:, None, None]
        keys, values = [], []
        for i, layer in enumerate(self.layers):
            x, key, value = layer.step(x, *self._past(i, rows.slots, memory), visible)
            keys.append(key[:, :, -C:].transpose(1, 2).flatten(2))
            values.append(value[:, :, -C:].transpose(1, 2).flatten(2))
        return self.encoder.norm(x), {"key": torch.stack(keys), "value": torch.stack(values)}

    def tail(
        self, features: Sequence[Tensor | None], rows: Rows, memory: Memory, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """See `StreamingEncoder.tail`. The counts are the frames of audio; `silence_frames` of
        silence follow them, for the decoder."""
        assert rows.counts is not None
        parts, counts = [], []
        for i, (mel, done) in enumerate(zip(features, rows.counts, strict=True)):
            slot = rows.slots[i : i + 1]
            audio = 0 if mel is None else len(mel) + (1 if done else 0)
            count = -(-audio // MELS_PER_FRAME)
            counts.append(count)
            if not done + count:
                parts.append(self.encoder.positions.new_zeros(0, self.encoder.config.dim))
                continue
            length = count + silence_frames(done + count, self.positions)
            known = [] if mel is None else [mel[None]]
            if done:
                known.insert(0, memory["mel"][slot])
            x = torch.cat(known, dim=1) if known else memory["mel"][slot][:, :0]
            needed = 2 * length + (2 if done else 1)
            x = F.pad(x, (0, 0, 0, needed - x.shape[1]), value=SILENT)
            stem = memory["stem"][slot] if done else None
            frames, _ = self._stem(x, stem)
            parts.append(self._tail(frames, done, slot, memory, chunk)[0])
        encoded = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return encoded, torch.tensor(counts, device=self.device)

    def _tail(self, x: Tensor, done: int, slot: Tensor, memory: Memory, chunk: int) -> Tensor:
        """Frames (1, Q, D) of several chunks behind `done` earlier ones -> encoder frames."""
        L, Q, device = self.left, x.shape[1], x.device
        x = x + self.encoder.positions[done : done + Q]
        own = torch.arange(Q, device=device)
        begin = (own // chunk * chunk)[:, None]
        place = torch.arange(L, device=device)  # of the ring, whose last frame is done - 1
        before = -1 - (done - 1 - place) % L  # counted from the first frame of x
        index = torch.cat([before, own])
        visible = (index >= begin - L) & (index < begin + chunk) & (index >= -done)
        for i, layer in enumerate(self.layers):
            x, _, _ = layer.step(x, *self._past(i, slot, memory), visible[None, None])
        normed: Tensor = self.encoder.norm(x)
        return normed

    def _past(self, layer: int, slots: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """The keys and values of the rings of one layer, each (B, H, L, K)."""
        key, value = (
            memory[name][layer][slots].unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name in ("key", "value")
        )
        return key, value

    def silence(self) -> Tensor:
        """What the encoder makes of nothing but silence, (P, D), in its usual chunks."""
        mels = self.features.config.n_mels
        mel = self.encoder.positions.new_full((1, 2 * self.positions, mels), SILENT)
        chunk = self.lookaheads[0] + 1
        frames: Tensor = self.encoder.chunked(scaled(mel, LIVE_PEAK), chunk, self.left)
        return frames[0]

    # -- the second pass ---------------------------------------------------------------------------

    def mels(self, mel: Tensor | None, slot: int, done: int, memory: Memory) -> Tensor:
        """All mel frames (T, F) of a slot with `done` encoder frames, then those of its tail."""
        known = memory["features"][slot, :done].view(2 * done, self.features.config.n_mels)
        if mel is None:
            return known
        return torch.cat([known, *([memory["mel"][slot, 1:]] if done else []), mel])

    def encode_whole(self, mel: Tensor, silence: int) -> tuple[Tensor, int]:
        """Mel frames (T, F) as published, every frame seeing all others: encoder frames (1, S, D),
        of which the number returned is audio, and at most `silence` follow."""
        count = -(-len(mel) // MELS_PER_FRAME)
        length = MELS_PER_FRAME * min(count + silence, self.positions)
        if not count:
            return mel.new_zeros(1, 0, self.encoder.config.dim), 0
        silent = F.pad(mel, (0, 0, 0, length - len(mel)), value=SILENT)
        encoded: Tensor = self.whole(scaled(silent[None]))
        return encoded, count


class WhisperSecondPass:
    """See `SecondPass`: what streams said is encoded whole, as published, and decoded again.

    Each row is alone, since its length decides its numbers.
    """

    def __init__(self, slots: WhisperSlots, decoder: WhisperLiveDecoder) -> None:
        self.slots, self.decoder = slots, decoder

    def finish(
        self,
        features: Sequence[Tensor | None],
        rows: Rows,
        memory: Memory,
        state: WhisperState,
        prompts: Tensor,
    ) -> list[Hypothesis]:
        """See `SecondPass.finish`."""
        assert rows.counts is not None
        results = []
        for i, (mel, done) in enumerate(zip(features, rows.counts, strict=True)):
            known = self.slots.mels(mel, int(rows.slots[i]), done, memory)
            first = int(state.frames[i]) - done
            results.append(
                self.decoder.again(
                    state.segments[i],
                    partial(self.slots.encode_whole, known),
                    first,
                    int(prompts[i]),
                )
            )
        return results
