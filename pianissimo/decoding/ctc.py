"""Greedy CTC search: the best symbol of each frame, repeats and blanks dropped."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pianissimo.decoding.confidence import Confidence
from pianissimo.decoding.hypothesis import Hypothesis
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel


@dataclass
class CtcState:
    """What the search remembers of B streams.

    `last` (B,) is the symbol of the last frame, `frames` (B,) counts the frames of earlier chunks,
    `ahead` (B,) is how many frames of the next chunks an earlier look at them already searched.
    """

    last: Tensor
    frames: Tensor
    ahead: Tensor

    def rows(self, index: Tensor) -> "CtcState":
        """The state of some of the streams, copied: index (R,)."""
        return CtcState(self.last[index], self.frames[index], self.ahead[index])

    def write(self, index: Tensor, rows: "CtcState") -> None:
        """Put back what `rows` returned, in place: row r becomes stream index[r]."""
        self.last[index], self.frames[index] = rows.last, rows.frames
        self.ahead[index] = rows.ahead

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for saving one stream: of `rows` with a single index."""
        return {"last": self.last, "frames": self.frames, "ahead": self.ahead}


class CtcGreedySearch:
    """Greedy search with a model's CTC head, whole or chunk by chunk."""

    def __init__(self, model: AsrModel, confidence: Confidence | None = None) -> None:
        if model.ctc is None:
            raise OptionError("this model has no CTC head; decode it with its transducer")
        self.head = model.ctc
        self.blank = model.config.vocab_size
        self.confidence = confidence or Confidence()

    def start(self, batch: int = 1) -> CtcState:
        device = self.head.out.weight.device
        zeros = torch.zeros(batch, dtype=torch.long, device=device)
        return CtcState(
            torch.full((batch,), self.blank, device=device), zeros, torch.zeros_like(zeros)
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
        before = torch.cat([state.last[:, None], best[:, :-1]], dim=1)
        # The first frame searched follows the last one that was, wherever that is.
        before = torch.where(index == state.ahead[:, None], state.last[:, None], before)
        inside = (index >= state.ahead[:, None]) & (index < lengths[:, None])
        rows, at = ((best != self.blank) & (best != before) & inside).nonzero(as_tuple=True)
        picked = log_probs[rows, at]
        table = zip(
            rows.tolist(),
            best[rows, at].tolist(),
            (at + state.frames[rows]).tolist(),
            picked.amax(-1).tolist(),
            self.confidence(picked).tolist(),
            strict=True,
        )
        for row, label, frame, log_prob, sure in table:
            found[row].append(label, frame, log_prob, min(max(sure, 0.0), 1.0))
        last = best.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        state.last = torch.where(lengths > state.ahead, last, state.last)
        state.ahead = (state.ahead - lengths).clamp(min=0)
        state.frames = state.frames + lengths
        return found
