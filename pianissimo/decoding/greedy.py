"""Batched greedy transducer search by label looping (Bataev et al. 2024, arXiv 2406.06220).

Shape legend: B batch, S encoder frames, D encoder width, J joint width, V vocabulary, W window.

The outer loop runs once per emitted label: find each row's next non-blank symbol, then one
predictor step for the rows that found one. The search for it scores a window of frames at once
against the same predictor output, since nothing changes between blanks. State is carried between
chunks: decoding a stream in chunks gives the tokens and frames of decoding it whole.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pianissimo.decoding.confidence import Confidence
from pianissimo.decoding.hypothesis import Hypothesis
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.models.transducer import Joiner, Predictor, PredictorState

WINDOW = 8


@dataclass
class GreedyState:
    """What the search remembers of B streams between chunks.

    `projected` (B, J) is the joiner's projection of the predictor output after the last label,
    `frames` (B,) counts the encoder frames of earlier chunks, `ahead` (B,) is how many frames of
    the next chunks are not to be searched: a duration skipped them, or an earlier look at them.
    """

    predictor: PredictorState
    projected: Tensor
    frames: Tensor
    ahead: Tensor

    def rows(self, index: Tensor) -> "GreedyState":
        """The state of some of the streams, copied: index (R,)."""
        return GreedyState(
            PredictorState(self.predictor.hidden[:, index], self.predictor.cell[:, index]),
            self.projected[index],
            self.frames[index],
            self.ahead[index],
        )

    def write(self, index: Tensor, rows: "GreedyState") -> None:
        """Put back what `rows` returned, in place: row r becomes stream index[r]."""
        self.predictor.hidden[:, index] = rows.predictor.hidden
        self.predictor.cell[:, index] = rows.predictor.cell
        self.projected[index] = rows.projected
        self.frames[index] = rows.frames
        self.ahead[index] = rows.ahead

    def tensors(self) -> dict[str, Tensor]:
        """Everything by name, for saving one stream: of `rows` with a single index."""
        return {
            "hidden": self.predictor.hidden,
            "cell": self.predictor.cell,
            "projected": self.projected,
            "frames": self.frames,
            "ahead": self.ahead,
        }


class GreedySearch:
    """Greedy search with one model's predictor and joiner."""

    def __init__(self, model: AsrModel, confidence: Confidence | None = None) -> None:
        if model.predictor is None or model.joiner is None or model.config.transducer is None:
            raise OptionError("this model has no transducer; decode it with its CTC head")
        self.predictor: Predictor = model.predictor
        self.joiner: Joiner = model.joiner
        self.blank = model.config.transducer.blank
        self.durations = model.config.transducer.durations
        self.max_symbols = model.config.max_symbols
        self.confidence = confidence or Confidence()

    def start(self, batch: int = 1) -> GreedyState:
        """The state of `batch` streams before their first frame."""
        device = self.predictor.embedding.weight.device
        labels = torch.full((batch,), self.blank, device=device)
        output, state = self.predictor.step(labels, self.predictor.start(batch))
        zeros = torch.zeros(batch, dtype=torch.long, device=device)
        return GreedyState(state, self.joiner.predictor(output), zeros, zeros.clone())

    def decode(
        self, encoded: Tensor, lengths: Tensor | None, state: GreedyState
    ) -> list[Hypothesis]:
        """Search (B, S, D) further encoder frames; returns the new tokens of each row.

        `lengths` (B,) are the rows' valid frames in this chunk, all of them by default. Advances
        `state` in place.
        """
        B, S, _ = encoded.shape
        found = [Hypothesis() for _ in range(B)]
        if lengths is None:
            lengths = torch.full((B,), S, device=encoded.device)
        if S == 0:
            return found
        frames = self.joiner.encoder(encoded)
        rows = torch.arange(B, device=encoded.device)
        at = state.ahead.clone()
        repeats = torch.zeros_like(at)
        window = torch.arange(1 if self.durations else min(WINDOW, S), device=encoded.device)
        while bool((at < lengths).any()):
            index = at[:, None] + window
            logits = self.joiner(
                frames[rows[:, None], index.clamp(max=S - 1)], state.projected[:, None]
            )
            best = logits[..., : self.blank + 1].argmax(-1)
            inside = index < lengths[:, None]
            hit = (best != self.blank) & inside
            emits = hit.any(1)
            step = torch.where(emits, hit.int().argmax(1), inside.sum(1))
            chosen = logits[rows, step.clamp(max=len(window) - 1)]
            # A new frame starts its own count of symbols.
            repeats = torch.where(step > 0, 0, repeats)
            at = at + step
            if self.durations:
                at = self._skip(chosen, at, emits, inside[:, 0])
            if bool(emits.any()):
                labels = best[rows, step.clamp(max=len(window) - 1)]
                # A duration may have moved the row on: the label belongs to where it was read.
                where = index[rows, step.clamp(max=len(window) - 1)]
                self._record(found, chosen, labels, where + state.frames, emits)
                output, advanced = self.predictor.step(
                    labels.masked_fill(~emits, 0), state.predictor
                )
                state.predictor = advanced.where(emits, state.predictor)
                projected = self.joiner.predictor(output)
                state.projected = torch.where(emits[:, None], projected, state.projected)
                stayed = emits & (at == where)
                repeats = torch.where(stayed, repeats + 1, 0)
                full = repeats >= self.max_symbols
                at, repeats = torch.where(full, at + 1, at), torch.where(full, 0, repeats)
        state.ahead = (at - lengths).clamp(min=0)
        state.frames = state.frames + lengths
        return found

    def _skip(self, chosen: Tensor, at: Tensor, emits: Tensor, inside: Tensor) -> Tensor:
        """Where each row goes on: its best duration further, a blank at least one frame."""
        durations = torch.tensor(self.durations, device=at.device)
        best = durations[chosen[:, self.blank + 1 :].argmax(-1)]
        # Without a label `at` already stands one frame further.
        moved = torch.where(emits, at + best, at - 1 + best.clamp(min=1))
        return torch.where(inside, moved, at)

    def _record(
        self,
        found: list[Hypothesis],
        logits: Tensor,
        labels: Tensor,
        frames: Tensor,
        emits: Tensor,
    ) -> None:
        rows = emits.nonzero()[:, 0]
        log_probs = logits[rows, : self.blank + 1].float().log_softmax(-1)
        picked = log_probs.gather(1, labels[rows, None])[:, 0]
        confidence = self.confidence(log_probs)
        table = zip(
            rows.tolist(),
            labels[rows].tolist(),
            frames[rows].tolist(),
            picked.tolist(),
            confidence.tolist(),
            strict=True,
        )
        for row, label, frame, log_prob, sure in table:
            found[row].append(label, frame, log_prob, min(max(sure, 0.0), 1.0))
