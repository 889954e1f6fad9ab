"""Greedy CTC search: the best symbol of each frame, repeats and blanks dropped."""

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


@dataclass
class CtcGreedyState:
    """The state of the search for B streams.

    `last` (B,) is the symbol of the last frame, `frames` (B,) counts the frames of earlier chunks.
    `ahead` (B,) is the number of frames of the next chunks that were already searched. `hotwords`
    is None while no stream has any.
    """

    last: Tensor
    frames: Tensor
    ahead: Tensor
    hotwords: StreamHotwords | None = None

    def rows(self, index: Tensor) -> "CtcGreedyState":
        """The state of some of the streams, copied: index (R,)."""
        hotwords = None if self.hotwords is None else self.hotwords.rows(index)
        return CtcGreedyState(self.last[index], self.frames[index], self.ahead[index], hotwords)

    def write(self, index: Tensor, rows: "CtcGreedyState") -> None:
        """Put back what `rows` returned, in place: row r becomes stream index[r]."""
        self.last[index], self.frames[index] = rows.last, rows.frames
        self.ahead[index] = rows.ahead
        if self.hotwords is None and rows.hotwords is not None:
            self.hotwords = StreamHotwords.of([None] * len(self.frames))
        if self.hotwords is not None:
            self.hotwords.write(index, rows.hotwords)

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for saving one stream: of `rows` with a single index."""
        saved = {} if self.hotwords is None else {"boosts": self.hotwords.places}
        return saved | {"last": self.last, "frames": self.frames, "ahead": self.ahead}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Set one stream to what `tensors` gave; raises ValueError for anything else."""
        copy_saved(self.tensors(), saved)
        if self.hotwords is not None:
            self.hotwords.check()

    def flush(self) -> list[Hypothesis]:
        """The remaining tokens of each stream: none, since `decode` returns all of them."""
        return [Hypothesis() for _ in self.frames]


class CtcGreedySearch:
    """Greedy search with a model's CTC head, whole or chunk by chunk."""

    def __init__(self, model: AsrModel, confidence: Confidence | None = None) -> None:
        if model.ctc is None:
            raise OptionError("this model has no CTC head; decode it with its transducer")
        self.head = model.ctc
        self.blank = model.config.vocab_size
        self.confidence = confidence or Confidence()

    def start(
        self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None
    ) -> CtcGreedyState:
        """The state of `batch` streams before their first frame, with the hotwords of each."""
        device = self.head.out.weight.device
        zeros = torch.zeros(batch, dtype=torch.long, device=device)
        return CtcGreedyState(
            torch.full((batch,), self.blank, device=device),
            zeros,
            torch.zeros_like(zeros),
            start_hotwords(tries),
        )

    def decode(
        self, encoded: Tensor, lengths: Tensor | None, state: CtcGreedyState
    ) -> list[Hypothesis]:
        """Search (B, S, D) further encoder frames; returns the new tokens of each row.

        `lengths` (B,) are the rows' valid frames, all by default. Advances `state` in place.
        """
        B, S, _ = encoded.shape
        results = [Hypothesis() for _ in range(B)]
        if S == 0:
            return results
        if lengths is None:
            lengths = torch.full((B,), S, device=encoded.device)
        log_probs = self.head(encoded).float()
        best = log_probs.argmax(-1)
        index = torch.arange(S, device=encoded.device)
        if state.hotwords is not None:
            best = self._boosted(log_probs, best, state, lengths, state.hotwords)
        before = torch.cat([state.last[:, None], best[:, :-1]], dim=1)
        # The first frame searched here follows the last one that was searched.
        before = torch.where(index == state.ahead[:, None], state.last[:, None], before)
        inside = (index >= state.ahead[:, None]) & (index < lengths[:, None])
        rows, at = ((best != self.blank) & (best != before) & inside).nonzero(as_tuple=True)
        picked, labels = log_probs[rows, at], best[rows, at]
        table = zip(
            rows.tolist(),
            labels.tolist(),
            (at + state.frames[rows]).tolist(),
            picked.gather(-1, labels[:, None])[:, 0].tolist(),
            self.confidence.of(picked, labels).tolist(),
            strict=True,
        )
        for row, label, frame, log_prob, confidence in table:
            results[row].append(label, frame, log_prob, min(max(confidence, 0.0), 1.0))
        last = best.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        state.last = torch.where(lengths > state.ahead, last, state.last)
        state.ahead = (state.ahead - lengths).clamp(min=0)
        state.frames = state.frames + lengths
        return results

    def _boosted(
        self,
        log_probs: Tensor,
        best: Tensor,
        state: CtcGreedyState,
        lengths: Tensor,
        hotwords: StreamHotwords,
    ) -> Tensor:
        """The symbols (B, S) with hotwords: blanks and repetitions stay, new labels may change.

        The acoustics alone decide where a label is emitted.
        """
        rows = zip(best.tolist(), state.ahead.tolist(), lengths.tolist(), strict=True)
        chosen = best.tolist()
        for row, (symbols, first, end) in enumerate(rows):
            if (trie := hotwords.tries[row]) is None:
                continue
            label, previous = int(state.last[row]), int(hotwords.places[row, 1])
            for t in range(first, end):
                symbol = symbols[t]
                if symbol == self.blank:
                    label = symbol
                elif symbol != previous:
                    scores = log_probs[row, t, : self.blank] + trie.token_bonuses(
                        hotwords.node(row), log_probs.device
                    )
                    if label != self.blank:
                        scores[label] = -torch.inf  # it would be a repetition
                    label = int(scores.argmax())
                    hotwords.advance(row, label)
                previous, chosen[row][t] = symbol, label
            hotwords.places[row, 1] = previous
        return torch.tensor(chosen, device=best.device)
