"""Greedy CTC search: the best symbol of each frame, repeats and blanks dropped."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pianissimo.decoding.confidence import Confidence
from pianissimo.decoding.hotwords import Boosts, PhraseTrie, boosts_of
from pianissimo.decoding.token import Hypothesis
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel


@dataclass
class CtcState:
    """What the search remembers of B streams.

    `last` (B,) is the symbol of the last frame, `frames` (B,) counts the frames of earlier chunks,
    `ahead` (B,) is how many frames of the next chunks an earlier look at them already searched,
    `boosts` are the phrases of those streams that have some.
    """

    last: Tensor
    frames: Tensor
    ahead: Tensor
    boosts: Boosts | None = None

    def rows(self, index: Tensor) -> "CtcState":
        """The state of some of the streams, copied: index (R,)."""
        boosts = None if self.boosts is None else self.boosts.rows(index)
        return CtcState(self.last[index], self.frames[index], self.ahead[index], boosts)

    def write(self, index: Tensor, rows: "CtcState") -> None:
        """Put back what `rows` returned, in place: row r becomes stream index[r]."""
        self.last[index], self.frames[index] = rows.last, rows.frames
        self.ahead[index] = rows.ahead
        if self.boosts is None and rows.boosts is not None:
            self.boosts = Boosts.of([None] * len(self.frames))
        if self.boosts is not None:
            self.boosts.write(index, rows.boosts)

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for saving one stream: of `rows` with a single index."""
        boosts = {} if self.boosts is None else {"boosts": self.boosts.places}
        return boosts | {"last": self.last, "frames": self.frames, "ahead": self.ahead}

    def flush(self) -> list[Hypothesis]:
        """What is left at the end of each stream: nothing, a greedy search keeps nothing back."""
        return [Hypothesis() for _ in self.frames]


class CtcGreedySearch:
    """Greedy search with a model's CTC head, whole or chunk by chunk."""

    def __init__(self, model: AsrModel, confidence: Confidence | None = None) -> None:
        if model.ctc is None:
            raise OptionError("this model has no CTC head; decode it with its transducer")
        self.head = model.ctc
        self.blank = model.config.vocab_size
        self.confidence = confidence or Confidence()

    def start(self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None) -> CtcState:
        """The state of `batch` streams before their first frame, with the phrases of each."""
        device = self.head.out.weight.device
        zeros = torch.zeros(batch, dtype=torch.long, device=device)
        return CtcState(
            torch.full((batch,), self.blank, device=device),
            zeros,
            torch.zeros_like(zeros),
            boosts_of(tries),
        )

    def decode(self, encoded: Tensor, lengths: Tensor | None, state: CtcState) -> list[Hypothesis]:
        """Search (B, S, D) further encoder frames; returns the new tokens of each row.

        `lengths` (B,) are the rows' valid frames, all by default. Advances `state` in place.
        """
        B, S, _ = encoded.shape
        found = [Hypothesis() for _ in range(B)]
        if S == 0:
            return found
        if lengths is None:
            lengths = torch.full((B,), S, device=encoded.device)
        log_probs = self.head(encoded).float()
        best = log_probs.argmax(-1)
        index = torch.arange(S, device=encoded.device)
        if state.boosts is not None:
            best = self._boosted(log_probs, best, state, lengths, state.boosts)
        before = torch.cat([state.last[:, None], best[:, :-1]], dim=1)
        # The first frame searched follows the last one that was, wherever that is.
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
        for row, label, frame, log_prob, sure in table:
            found[row].append(label, frame, log_prob, min(max(sure, 0.0), 1.0))
        last = best.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        state.last = torch.where(lengths > state.ahead, last, state.last)
        state.ahead = (state.ahead - lengths).clamp(min=0)
        state.frames = state.frames + lengths
        return found

    def _boosted(
        self, log_probs: Tensor, best: Tensor, state: CtcState, lengths: Tensor, boosts: Boosts
    ) -> Tensor:
        """The symbols (B, S) with phrases lifted: blanks and repetitions stay, a new label may be
        another one. So where something is said is decided by the acoustics alone."""
        rows = zip(best.tolist(), state.ahead.tolist(), lengths.tolist(), strict=True)
        chosen = best.tolist()
        for row, (symbols, first, end) in enumerate(rows):
            if (trie := boosts.tries[row]) is None:
                continue
            label, heard = int(state.last[row]), int(boosts.places[row, 1])
            for t in range(first, end):
                symbol = symbols[t]
                if symbol == self.blank:
                    label = symbol
                elif symbol != heard:
                    lifted = log_probs[row, t, : self.blank] + trie.lifted(
                        boosts.node(row), log_probs.device
                    )
                    if label != self.blank:
                        lifted[label] = -torch.inf  # it would be a repetition
                    label = int(lifted.argmax())
                    boosts.advance(row, label)
                heard, chosen[row][t] = symbol, label
            boosts.places[row, 1] = heard
        return torch.tensor(chosen, device=best.device)
