"""Batched greedy transducer search by label looping (Bataev et al. 2024, arXiv 2406.06220).

Shape legend: B batch, S encoder frames, D encoder width, J joint width, V vocabulary, W window.

The loop runs once per emitted label. A turn finds each row's next non-blank symbol, then makes one
predictor step for the rows that have one. A window of frames is scored at once against the same
predictor output, which does not change between blanks. State is carried between chunks: decoding a
stream in chunks gives the tokens and frames of decoding it whole.

A turn works in place on tensors of fixed shape and reads nothing back from the device, so that
several turns can be recorded as one CUDA graph; see `engine/cuda_graphs.py`. Hotwords are looked up
on the host; only then does a turn wait for the device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pianissimo.decoding.confidence import Confidence
from pianissimo.decoding.decoder import copy_saved
from pianissimo.decoding.hotwords import PhraseTrie, StreamHotwords, start_hotwords
from pianissimo.decoding.token import Hypothesis
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.models.packed import packed
from pianissimo.models.transducer import Joiner, Predictor, PredictorState

WINDOW = 8


@dataclass
class GreedyState:
    """The state of the search for B streams between chunks.

    `projected` (B, J) is the joiner's projection of the predictor output after the last label,
    `frames` (B,) counts the encoder frames of earlier chunks. `ahead` (B,) is the number of frames
    of the next chunks that are skipped: a duration jumped over them, or they were searched before.
    `hotwords` is None while no stream has any.
    """

    predictor: PredictorState
    projected: Tensor
    frames: Tensor
    ahead: Tensor
    hotwords: StreamHotwords | None = None

    def rows(self, index: Tensor) -> "GreedyState":
        """The state of some of the streams, copied: index (R,)."""
        return GreedyState(
            PredictorState(self.predictor.hidden[:, index], self.predictor.cell[:, index]),
            self.projected[index],
            self.frames[index],
            self.ahead[index],
            None if self.hotwords is None else self.hotwords.rows(index),
        )

    def write(self, index: Tensor, rows: "GreedyState") -> None:
        """Put back what `rows` returned, in place: row r becomes stream index[r]."""
        self.predictor.hidden[:, index] = rows.predictor.hidden
        self.predictor.cell[:, index] = rows.predictor.cell
        self.projected[index] = rows.projected
        self.frames[index] = rows.frames
        self.ahead[index] = rows.ahead
        if self.hotwords is None and rows.hotwords is not None:
            self.hotwords = StreamHotwords.of([None] * len(self.frames))
        if self.hotwords is not None:
            self.hotwords.write(index, rows.hotwords)

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for saving one stream: of `rows` with a single index."""
        saved = {} if self.hotwords is None else {"boosts": self.hotwords.places}
        return saved | {
            "hidden": self.predictor.hidden,
            "cell": self.predictor.cell,
            "projected": self.projected,
            "frames": self.frames,
            "ahead": self.ahead,
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Set one stream to what `tensors` gave; raises ValueError for anything else."""
        copy_saved(self.tensors(), saved)
        if self.hotwords is not None:
            self.hotwords.check()

    def flush(self) -> list[Hypothesis]:
        """The remaining tokens of each stream: none, since `decode` returns all of them."""
        return [Hypothesis() for _ in self.frames]


@dataclass
class GreedyLoop:
    """The position of one call in the loop and its results, updated in place.

    `frames` (B, S, J) are projected encoder frames of which row b has `lengths` (B,); `at` (B,) is
    each row's next frame, `repeats` (B,) the labels it emitted there. The first `count` (B,)
    entries of `tokens`, `when`, `log_probs` and `confidences` (B, S * max_symbols + 1) are its
    labels; the last column takes what rows without a label write.
    """

    frames: Tensor
    lengths: Tensor
    at: Tensor
    repeats: Tensor
    count: Tensor
    tokens: Tensor
    when: Tensor
    log_probs: Tensor
    confidences: Tensor

    def collect(self) -> list[Hypothesis]:
        """The results of each row, copied to the host at once."""
        counts = self.count.tolist()
        most = max(counts, default=0)
        columns = (self.tokens, self.when, self.log_probs, self.confidences)
        tokens, when, log_probs, confidences = (c[:, :most].tolist() for c in columns)
        return [
            Hypothesis(
                tokens[row][:n],
                when[row][:n],
                log_probs[row][:n],
                [min(max(confidence, 0.0), 1.0) for confidence in confidences[row][:n]],
            )
            for row, n in enumerate(counts)
        ]


class GreedySearch:
    """Greedy search with one model's predictor and joiner."""

    def __init__(self, model: AsrModel, confidence: Confidence | None = None) -> None:
        if model.predictor is None or model.joiner is None or model.config.transducer is None:
            raise OptionError("this model has no transducer; decode it with its CTC head")
        self.predictor: Predictor = packed(model.predictor, "float32")
        self.joiner: Joiner = packed(model.joiner, "float32")
        self.blank = model.config.transducer.blank
        self.durations = model.config.transducer.durations
        self.max_symbols = model.config.max_symbols
        self.confidence = confidence or Confidence()

    def start(
        self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None
    ) -> GreedyState:
        """The state of `batch` streams before their first frame, with the hotwords of each."""
        device = self.predictor.embedding.weight.device
        labels = torch.full((batch,), self.blank, device=device)
        output, state = self.predictor.step(labels, self.predictor.start(batch))
        zeros = torch.zeros(batch, dtype=torch.long, device=device)
        hotwords = start_hotwords(tries)
        return GreedyState(state, self.joiner.predictor(output), zeros, zeros.clone(), hotwords)

    def decode(
        self, encoded: Tensor, lengths: Tensor | None, state: GreedyState
    ) -> list[Hypothesis]:
        """Search (B, S, D) further encoder frames; returns the new tokens of each row.

        `lengths` (B,) are the rows' valid frames in this chunk, all of them by default. Advances
        `state` in place.
        """
        B, S, _ = encoded.shape
        if S == 0:
            return [Hypothesis() for _ in range(B)]
        loop = self.begin(encoded, lengths, state)
        while bool((loop.at < loop.lengths).any()):
            self.turn(loop, state)
        self.end(loop, state)
        return loop.collect()

    def begin(self, encoded: Tensor, lengths: Tensor | None, state: GreedyState) -> GreedyLoop:
        """The loop before its first turn, over (B, S, D) with S > 0."""
        B, S, _ = encoded.shape
        if lengths is None:
            lengths = torch.full((B,), S, device=encoded.device)
        zeros = torch.zeros(B, dtype=torch.long, device=encoded.device)
        cells = zeros.new_zeros(B, S * self.max_symbols + 1)
        return GreedyLoop(
            frames=self.joiner.encoder(encoded),
            lengths=lengths,
            at=state.ahead.clone(),
            repeats=zeros,
            count=zeros.clone(),
            tokens=cells,
            when=cells.clone(),
            log_probs=cells.float(),
            confidences=cells.float(),
        )

    def turn(self, loop: GreedyLoop, state: GreedyState) -> None:
        """Emit one label for every row that has one; move the others to the end of their window."""
        B, S, _ = loop.frames.shape
        rows = torch.arange(B, device=loop.at.device)
        wide = 1 if self.durations else min(WINDOW, S)
        window = torch.arange(wide, device=loop.at.device)
        index = loop.at[:, None] + window
        logits = self.joiner(
            loop.frames[rows[:, None], index.clamp(max=S - 1)], state.projected[:, None]
        )
        best = logits[..., : self.blank + 1].argmax(-1)
        if state.hotwords is not None:
            best = self._boosted(logits, best, state.hotwords)
        inside = index < loop.lengths[:, None]
        hit = (best != self.blank) & inside
        emits = hit.any(1)
        step = torch.where(emits, hit.int().argmax(1), inside.sum(1))
        cell = step.clamp(max=wide - 1)
        chosen, where = logits[rows, cell], index[rows, cell]
        # A new frame starts its own count of symbols.
        repeats = torch.where(step > 0, 0, loop.repeats)
        at = loop.at + step
        if self.durations:
            at = self._skip(chosen, at, emits, inside[:, 0])
        if at.device.type == "cpu" and not bool(emits.any()):
            # On the CPU this check is cheaper than a predictor step for no row.
            loop.at.copy_(at)
            loop.repeats.copy_(repeats)
            return
        labels = torch.where(emits, best[rows, cell], 0)
        # A duration may have moved the row on: the label belongs to where it was read.
        log_probs = chosen[:, : self.blank + 1].float().log_softmax(-1)
        column = torch.where(emits, loop.count, loop.tokens.shape[1] - 1)[:, None]
        loop.tokens.scatter_(1, column, labels[:, None])
        loop.when.scatter_(1, column, (where + state.frames)[:, None])
        loop.log_probs.scatter_(1, column, log_probs.gather(1, labels[:, None]))
        loop.confidences.scatter_(1, column, self.confidence.of(log_probs, labels)[:, None])
        loop.count += emits
        if state.hotwords is not None:
            for row in emits.nonzero()[:, 0].tolist():
                state.hotwords.advance(row, int(labels[row]))
        output, advanced = self.predictor.step(labels, state.predictor)
        kept, before = emits[None, :, None], state.predictor
        before.hidden.copy_(torch.where(kept, advanced.hidden, before.hidden))
        before.cell.copy_(torch.where(kept, advanced.cell, before.cell))
        projected = self.joiner.predictor(output)
        state.projected.copy_(torch.where(emits[:, None], projected, state.projected))
        repeats = torch.where(emits & (at == where), repeats + 1, 0)
        full = repeats >= self.max_symbols
        loop.at.copy_(torch.where(full, at + 1, at))
        loop.repeats.copy_(torch.where(full, 0, repeats))

    def end(self, loop: GreedyLoop, state: GreedyState) -> None:
        """Count the frames of a finished loop."""
        state.ahead.copy_((loop.at - loop.lengths).clamp(min=0))
        state.frames += loop.lengths

    def _boosted(self, logits: Tensor, best: Tensor, hotwords: StreamHotwords) -> Tensor:
        """The best symbols (B, W) with hotwords: blanks stay, labels may change.

        The acoustics alone decide where a label is emitted.
        """
        bonuses = hotwords.token_bonuses(logits.device, self.blank)
        labels = (logits[..., : self.blank] + bonuses[:, None]).argmax(-1)
        return torch.where(best == self.blank, best, labels)

    def _skip(self, chosen: Tensor, at: Tensor, emits: Tensor, inside: Tensor) -> Tensor:
        """The next frame of each row, by its best duration; a blank lasts at least one."""
        durations = torch.tensor(self.durations, device=at.device)
        best = durations[chosen[:, self.blank + 1 :].argmax(-1)]
        # Without a label `at` already stands one frame further.
        moved = torch.where(emits, at + best, at - 1 + best.clamp(min=1))
        return torch.where(inside, moved, at)
