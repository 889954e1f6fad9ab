"""Moonshine's encoder as a `StreamingEncoder`: its layers over the slots of an arena.

Shape legend: B rows of the step, N samples, T waveform frames of F samples, Q frames per row,
L frames of a ring, R frames of the longest lookahead, E encoder width, D decoder width, W layers,
P positions.

The numbers are those of `MoonshineEncoder` for the whole segment. A layer sees frames after its
own, so its output is that many frames behind its input. The keys and values of its last inputs are
cached, and those inputs whose output is still due: no frame is encoded twice. Frame i of a chunk is
frame `frames + i - lag` of the segment, where `lag` sums up the lookahead of all layers; the first
chunk therefore begins with `lag` frames before the segment, which a decoder must drop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.whisper_live import WhisperLiveDecoder, WhisperState
from pianissimo.errors import OptionError
from pianissimo.models.moonshine import CARRIED, STEM_STRIDE, MoonshineEncoder
from pianissimo.models.streaming_encoder import Memory, Rows, SlotTensor
from pianissimo.streaming.grid import ChunkGrid

LONGEST_FRAMES = 1500
"""Encoder frames of the longest segment, 30 s."""
CHUNK_FRAMES = (14, 28, 44)


@dataclass(frozen=True)
class WaveFraming:
    """Waveform frames next to each other, see `Framing`: a frame ends `hop_samples` after its
    begin, and a window has as much before its first frame, which is not used."""

    hop_samples: int
    sample_rate: int = SAMPLE_RATE

    @property
    def fft_samples(self) -> int:
        return 2 * self.hop_samples

    @property
    def reach_samples(self) -> int:
        return self.hop_samples


class WaveFrames:
    """Samples cut into frames, see `Features`."""

    def __init__(self, framing: WaveFraming) -> None:
        self.config = framing

    def frames(self, windows: Tensor, valid: Tensor | None = None) -> Tensor:
        """See `Features.frames`. A frame that is not full becomes zeros."""
        hop = self.config.hop_samples
        before = hop + 1
        frames = windows[:, before:].unflatten(1, (-1, hop))
        if valid is None:
            return frames
        ends = before + hop * (1 + torch.arange(frames.shape[1], device=windows.device))
        return torch.where((ends <= valid[:, None])[..., None], frames, 0.0)


class MoonshineSlots:
    """Stem, layers and adapter for streams in slots; holds no stream's state.

    Slot tensors: `wave` (S, 3, E) and `conv` (S, 3, 2 * E), the last inputs of the convolutions;
    rings `key` and `value` (W, S, L, E); `x` (W, S, R, E), the last inputs of each layer; and the
    ring `encoded` (S, P, D), what the decoder attends to, for the second pass.
    """

    def __init__(self, encoder: MoonshineEncoder) -> None:
        config = encoder.config
        self.encoder, self.lag = encoder, config.lookahead
        self.windows = [
            (left, right) for (left, _), right in zip(config.windows, config.rights, strict=True)
        ]
        self.device, self.dtype = encoder.positions.device, encoder.positions.dtype
        self.features = WaveFrames(WaveFraming(config.frame_samples))
        chunks = sorted({max(chunk, self.lag + 2) for chunk in CHUNK_FRAMES})
        self.lookaheads = tuple(chunk - 1 for chunk in chunks)
        self.positions = min(config.positions, LONGEST_FRAMES) + self.lag
        self.ring = max(chunks[-1], *(left - 1 + right for left, right in self.windows))
        self.kept = max(1, *(right for _, right in self.windows), 1)
        layers, width = len(config.windows), config.encoder_dim
        ring = SlotTensor((self.ring, width), layers, ring=True)
        self.slot_tensors = {
            "wave": SlotTensor((CARRIED, width)),
            "conv": SlotTensor((CARRIED, 2 * width)),
            "key": ring,
            "value": ring,
            "x": SlotTensor((self.kept, width), layers),
            "encoded": SlotTensor((self.positions, config.dim), ring=True),
        }

    def grid(self, lookahead: int) -> ChunkGrid:
        if lookahead not in self.lookaheads:
            raise OptionError(f"a lookahead of {lookahead} frames is none of {self.lookaheads}")
        return ChunkGrid(lookahead + 1, STEM_STRIDE, self.features.config, partial=True)

    def subsample(
        self, features: Tensor, slots: Tensor, memory: Memory, *, first: bool
    ) -> tuple[Tensor, Memory]:
        """See `StreamingEncoder.subsample`."""
        before = None if first else (memory["wave"][slots], memory["conv"][slots])
        stem = self.encoder.stem
        x, (wave, conv) = stem.convolved(stem.wave(features), before)
        return x, {"wave": wave, "conv": conv}

    def encode(self, x: Tensor, rows: Rows, memory: Memory, chunk: int) -> tuple[Tensor, Memory]:
        """See `StreamingEncoder.encode`."""
        assert rows.counts is not None
        assert max(rows.counts) + x.shape[1] <= self.positions, "the stream had to start again"
        encoded, changes = self._layers(x, rows.slots, rows.frames, memory, last=False)
        return encoded, {**changes, "encoded": encoded}

    def tail(
        self, features: Sequence[Tensor | None], rows: Rows, memory: Memory, chunk: int
    ) -> tuple[Tensor, Tensor]:
        """See `StreamingEncoder.tail`: also the frames that the layers are behind."""
        parts = self._tails(features, rows, memory)
        counts = torch.tensor([len(part) for part in parts], device=self.device)
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), counts

    def whole(self, features: Sequence[Tensor | None], rows: Rows, memory: Memory) -> list[Tensor]:
        """All frames (Q, D) of each row since its state began; those of the chunks were kept."""
        assert rows.counts is not None
        return [
            torch.cat([memory["encoded"][rows.slots[i], self.lag : done], tail])
            for i, (done, tail) in enumerate(
                zip(rows.counts, self._tails(features, rows, memory), strict=True)
            )
        ]

    def _tails(self, features: Sequence[Tensor | None], rows: Rows, memory: Memory) -> list[Tensor]:
        """What is left of each row, (Q, D)."""
        assert rows.counts is not None
        stem, config = self.encoder.stem, self.encoder.config
        parts = []
        for i, (wave, done) in enumerate(zip(features, rows.counts, strict=True)):
            slot, frames = rows.slots[i : i + 1], rows.frames[i : i + 1]
            if wave is None:
                x = memory["wave"].new_zeros(1, 0, config.encoder_dim)
            else:
                before = (memory["wave"][slot], memory["conv"][slot]) if done else None
                x, _ = stem.convolved(stem.wave(wave[None]), before)
            if not done and not x.shape[1]:
                parts.append(x.new_zeros(0, config.dim))
                continue
            encoded, _ = self._layers(x, slot, frames, memory, last=True)
            parts.append(encoded[0, max(0, self.lag - done) :])
        return parts

    def _layers(
        self, x: Tensor, slots: Tensor, frames: Tensor, memory: Memory, *, last: bool
    ) -> tuple[Tensor, Memory]:
        """Stem frames (B, Q, E) behind `frames` (B,) earlier ones -> adapted frames (B, Q', D), and
        changes of memory. The `last` ones have nothing after them: Q' is Q + lag, otherwise Q."""
        L, R, device = self.ring, self.kept, x.device
        newest = frames[:, None] - 1
        ringed = newest - (newest - torch.arange(L, device=device)) % L  # numbers of ring entries
        keys, values, kept, lag = [], [], [], 0
        for i, (layer, (left, right)) in enumerate(
            zip(self.encoder.layers, self.windows, strict=True)
        ):
            Q = x.shape[1]
            key, value = layer.project(x)
            keys.append(key)
            values.append(value)
            inputs = torch.cat([memory["x"][i][slots], x], dim=1)
            kept.append(inputs[:, -R:])
            begin = R - right
            queries = inputs[:, begin:] if last else inputs[:, begin : begin + Q]
            query = frames[:, None] - right + torch.arange(queries.shape[1], device=device)
            place = torch.cat([ringed, frames[:, None] + torch.arange(Q, device=device)], dim=1)
            ahead = place[:, None] - query[..., None]
            visible = (ahead > -left) & (ahead <= right) & (place >= lag)[:, None]
            x = layer.attend(
                queries,
                torch.cat([memory["key"][i][slots], key], dim=1),
                torch.cat([memory["value"][i][slots], value], dim=1),
                visible | (ahead == 0),  # what lies before the segment must stay finite
            )
            lag += right
        encoded = self.encoder.adapted(self.encoder.norm(x), frames - lag)
        changes: dict[str, Tensor] = {}
        if not last:
            changes = {
                "key": torch.stack(keys),
                "value": torch.stack(values),
                "x": torch.stack(kept),
            }
        return encoded, changes


class MoonshineSecondPass:
    """See `SecondPass`: what streams said is decoded again, from frames that were kept."""

    def __init__(self, slots: MoonshineSlots, decoder: WhisperLiveDecoder) -> None:
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
        for i, whole in enumerate(self.slots.whole(features, rows, memory)):

            def encoded(_: int, whole: Tensor = whole) -> tuple[Tensor, int]:
                return whole[None], len(whole)

            first = int(state.frames[i]) - rows.counts[i]
            results.append(self.decoder.again(state.segments[i], encoded, first))
        return results
