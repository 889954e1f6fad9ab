"""Batched transducer beam search, frame by frame, with several labels a frame.

In each frame the hypotheses of all streams take turns together. A turn extends each hypothesis by a
blank, which ends the frame, or by one more label, up to `max_symbols` labels. After each turn only
the best of a stream are kept, whether they ended the frame or not; hypotheses that ended it with
the same text are merged and their probabilities add up. A label costs one batched step of predictor
and joiner; the choice among `beam` squared candidates is plain Python (in the spirit of MALSD,
Grigoryan et al. 2025, arXiv 2506.01183; with blanks scored in every frame).

A token-and-duration transducer predicts with each symbol how many frames it lasts. Its hypotheses
wait for the frame at which they are due, and those that wait compete with the others; texts are
merged only if they are due at the same frame. A blank of no frames lasts one, as in greedy search;
after `max_symbols` labels in a frame a blank of one frame follows, whatever its duration.

A language model without a blank of its own leaves the choice between blank and label to the
acoustics: a label scores `log p + gate log(1 - p(blank)) + lm` and the blank `(1 + gate) log
p(blank)`. Hotwords have a gate as well.

Shape legend: N hypotheses of all streams, S encoder frames, D encoder width, J joint width,
V vocabulary, K beam, P durations, H predictor width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from pianissimo.decoding.beam_state import (
    Beam,
    BeamHypothesis,
    BeamOptions,
    BeamState,
    log_add,
)
from pianissimo.decoding.confidence import Confidence
from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.lm.fusion import Fusion, FusionState, LanguageModel
from pianissimo.decoding.rescoring import Rescoring
from pianissimo.decoding.token import Hypothesis, Token
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.models.packed import packed
from pianissimo.models.transducer import Joiner, Predictor, PredictorState

SMALLEST_REST = 1e-6
"""The least probability of all labels together, so that its logarithm is finite."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The predictor's output after a text.

    projected (J,) through the joiner; hidden and cell (layers, H); added (V,), the scores of
    language model and hotwords for each label, None in a stream without either.
    """

    projected: Tensor
    hidden: Tensor
    cell: Tensor
    added: Tensor | None


@dataclass(frozen=True, slots=True)
class TransducerHypothesis(BeamHypothesis):
    """A text of a transducer's beam.

    `score` is the logarithm of the sum over its alignments with all that is added; `due` is the
    frame at which the text is extended.
    """

    prediction: Prediction
    due: int


@dataclass(frozen=True, slots=True)
class _Extension:
    """A hypothesis and the token it may be extended by, or None for a blank.

    `score` and `due` are those of the extended hypothesis.
    """

    source: TransducerHypothesis
    token: Token | None
    score: float
    due: int


_Waiting: TypeAlias = dict[tuple[tuple[int, ...], int], TransducerHypothesis]
"""The hypotheses of a stream that wait for a later frame, by text and by that frame."""


class BeamSearch:
    """Beam search with one model's predictor and joiner, whole or chunk by chunk."""

    def __init__(
        self,
        model: AsrModel,
        options: BeamOptions | None = None,
        lm: LanguageModel | None = None,
        confidence: Confidence | None = None,
    ) -> None:
        if model.predictor is None or model.joiner is None or model.config.transducer is None:
            raise OptionError("this model has no transducer; decode it with its CTC head")
        self.predictor: Predictor = packed(model.predictor, "float32")
        self.joiner: Joiner = packed(model.joiner, "float32")
        self.blank = model.config.transducer.blank
        self.durations = model.config.transducer.durations
        self.max_symbols = model.config.max_symbols
        self.options, self.lm = options or BeamOptions(), lm
        self.ctc = model.ctc if self.options.rescoring else None
        if self.options.rescoring and model.ctc is None:
            raise OptionError("rescoring needs a model with a CTC head; this model has none")
        self.confidence = confidence or Confidence()
        self._limits = self.options.limits(model.config.frame_seconds)

    def start(
        self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None
    ) -> BeamState[TransducerHypothesis]:
        """The state of `batch` streams before their first frame, with the hotwords of each."""
        device = self.predictor.embedding.weight.device
        beams = []
        for trie in tries or [None] * batch:
            fusion = None if self.lm is None and trie is None else Fusion(self.lm, trie)
            place = None if fusion is None else fusion.start()
            before = self.predictor.start(1)
            (prediction,) = self._predict([self.blank], before, [fusion], [place])
            first = TransducerHypothesis((), (), 0.0, place, prediction, 0)
            rescoring = None
            if self.ctc is not None:
                no_frames = torch.empty(0, self.blank + 1, device=device)
                rescoring = Rescoring(self.options.rescoring, no_frames)
            beams.append(Beam((first,), fusion, rescoring))
        return BeamState.of(beams, device)

    def decode(
        self, encoded: Tensor, lengths: Tensor | None, state: BeamState[TransducerHypothesis]
    ) -> list[Hypothesis]:
        """Search (B, S, D) further encoder frames; returns the tokens of each row that are settled.

        `lengths` (B,) are the rows' valid frames, all by default. Advances `state` in place.
        """
        B, S, _ = encoded.shape
        results = [Hypothesis() for _ in range(B)]
        if S == 0:
            return results
        if lengths is None:
            lengths = torch.full((B,), S, device=encoded.device)
        frames = self.joiner.encoder(encoded)
        first, ends, before = state.ahead.tolist(), lengths.tolist(), state.frames.tolist()
        if self.ctc is not None:
            log_probs = self.ctc(encoded).float()
            for row, beam in enumerate(state.beams):
                assert beam.rescoring is not None
                new = log_probs[row, first[row] : ends[row]]
                beam.rescoring = beam.rescoring.extended(new, before[row] + first[row])
        for t in range(S):
            now = {row: before[row] + t for row in range(B) if first[row] <= t < ends[row]}
            for row, waiting in self._frame(frames[:, t], now, state.beams).items():
                ranked = sorted(waiting.values(), key=lambda h: -h.score)[: self.options.beam]
                results[row].extend(state.beams[row].settle(ranked, now[row], self._limits))
        state.ahead = (state.ahead - lengths).clamp(min=0)
        state.frames = state.frames + lengths
        return results

    def _frame(
        self, frame: Tensor, now: Mapping[int, int], beams: Sequence[Beam[TransducerHypothesis]]
    ) -> dict[int, _Waiting]:
        """The hypotheses of each row after a frame (B, J), whose number `now` has by row."""
        waiting: dict[int, _Waiting] = {row: {} for row in now}
        active: list[tuple[int, TransducerHypothesis]] = []
        for row, at in now.items():
            for h in beams[row].hypotheses:
                if h.due <= at:
                    active.append((row, h))
                else:
                    waiting[row][h.ids, h.due] = h
        for turn in range(self.max_symbols + 1):
            if not active:
                break
            last = turn == self.max_symbols
            extensions = self._turn(frame, now, beams, active, waiting, last)
            chosen: list[tuple[int, _Extension]] = []
            for row, possible in extensions.items():
                scores = [h.score for h in waiting[row].values()] + [e.score for e in possible]
                scores.sort()
                least = scores[-1] - self.options.window
                if len(scores) > self.options.beam:
                    least = max(least, scores[-self.options.beam])
                waiting[row] = {key: h for key, h in waiting[row].items() if h.score >= least}
                chosen += [(row, e) for e in possible if e.score >= least]
            active = []
            for row, h in self._extended(chosen, beams):
                if h.due <= now[row]:
                    active.append((row, h))
                else:
                    _merge(waiting[row], h)
        return waiting

    def _turn(
        self,
        frame: Tensor,
        now: Mapping[int, int],
        beams: Sequence[Beam[TransducerHypothesis]],
        active: Sequence[tuple[int, TransducerHypothesis]],
        waiting: dict[int, _Waiting],
        last: bool,
    ) -> dict[int, list[_Extension]]:
        """Score the active hypotheses and return their extensions by row.

        Without durations the blank ends the frame for each of them here. With durations a blank is
        an extension, except in the `last` turn, which has no extensions.
        """
        device = frame.device
        projected = torch.stack([h.prediction.projected for _, h in active])
        logits = self.joiner(frame[[row for row, _ in active]], projected)
        log_probs = logits[:, : self.blank + 1].float().log_softmax(-1)
        scores, blanks = log_probs[:, : self.blank], log_probs[:, self.blank]
        fusions = [beams[row].fusion for row, _ in active]
        if any(fusions):
            zeros = scores.new_zeros(self.blank)
            added = (h.prediction.added for _, h in active)
            scores = scores + torch.stack([zeros if a is None else a for a in added])
            gate = torch.tensor([f.gate if f else 0.0 for f in fusions], device=device)
            rest = (-blanks.exp().clamp(max=1 - SMALLEST_REST)).log1p()
            scores = scores + (gate * rest)[:, None]
            blanks = (1 + gate) * blanks
        if last or not self.durations:
            for (row, h), blank in zip(active, blanks.tolist(), strict=True):
                _merge(waiting[row], replace(h, score=h.score + blank, due=now[row] + 1))
        extensions: dict[int, list[_Extension]] = {row: [] for row, _ in active}
        if last:
            return extensions
        if self.durations:
            scores = torch.cat([scores, blanks[:, None]], dim=1)
            lasting = logits[:, self.blank + 1 :].float().log_softmax(-1)
            scores = (scores[:, :, None] + lasting[:, None]).flatten(1)  # (N, (V + 1) * P)
        best = scores.topk(min(self.options.beam, scores.shape[1]))
        durations = torch.tensor(self.durations or (0,), device=device)
        ids, steps = best.indices // len(durations), durations[best.indices % len(durations)]
        confidences = self.confidence.of(log_probs[:, None].expand(-1, ids.shape[1], -1), ids)
        columns = (best.values, ids, steps, log_probs.gather(1, ids), confidences)
        table = zip(active, *(column.tolist() for column in columns), strict=True)
        for (row, h), *lists in table:
            at = now[row]
            for score, id, step, log_prob, confidence in zip(*lists, strict=True):
                token = None
                if id == self.blank:
                    step = max(step, 1)
                else:
                    token = Token(id, at, log_prob, confidence)
                extensions[row].append(_Extension(h, token, h.score + score, at + step))
        return extensions

    def _extended(
        self,
        chosen: Sequence[tuple[int, _Extension]],
        beams: Sequence[Beam[TransducerHypothesis]],
    ) -> list[tuple[int, TransducerHypothesis]]:
        """The chosen extensions as hypotheses with their rows, in the same order."""
        labels: list[int] = []
        sources: list[Prediction] = []
        fusions: list[Fusion | None] = []
        places: list[FusionState | None] = []
        for row, e in chosen:
            if e.token is not None:
                fusion, place = beams[row].fusion, e.source.fusion
                if fusion is not None and place is not None:
                    place = fusion.step(place, e.token.id)[1]
                labels.append(e.token.id)
                sources.append(e.source.prediction)
                fusions.append(fusion)
                places.append(place)
        predictions: list[Prediction] = []
        if labels:
            before = PredictorState(
                torch.stack([source.hidden for source in sources], dim=1),
                torch.stack([source.cell for source in sources], dim=1),
            )
            predictions = self._predict(labels, before, fusions, places)
        new = iter(zip(places, predictions, strict=True))
        extended: list[tuple[int, TransducerHypothesis]] = []
        for row, e in chosen:
            h = replace(e.source, score=e.score, due=e.due)
            if e.token is not None:
                place, prediction = next(new)
                ids, tokens = (*h.ids, e.token.id), (*h.tokens, e.token)
                h = TransducerHypothesis(ids, tokens, e.score, place, prediction, e.due)
            extended.append((row, h))
        return extended

    def _predict(
        self,
        labels: Sequence[int],
        before: PredictorState,
        fusions: Sequence[Fusion | None],
        places: Sequence[FusionState | None],
    ) -> list[Prediction]:
        """The predictions after N labels; `places` are the states of fusion after them."""
        device = before.hidden.device
        output, state = self.predictor.step(torch.tensor(labels, device=device), before)
        projected = self.joiner.predictor(output).unbind()
        hidden, cell = state.hidden.unbind(1), state.cell.unbind(1)
        added: list[Tensor | None] = [None] * len(labels)
        fused = [i for i, place in enumerate(places) if place is not None]
        if fused:
            scores = torch.zeros(len(fused), self.blank, device=device)
            states = [place for place in places if place is not None]
            if self.lm is not None:
                scores += self.lm.scores([place.lm for place in states], device)
            for i, place, row in zip(fused, states, scores, strict=True):
                if (fusion := fusions[i]) is not None and fusion.trie is not None:
                    row += fusion.trie.scores(place.node, device)
                added[i] = row
        return [Prediction(*parts) for parts in zip(projected, hidden, cell, added, strict=True)]


def _merge(waiting: _Waiting, hypothesis: TransducerHypothesis) -> None:
    """Add a hypothesis to those that wait; one with the same text and frame becomes one with it."""
    key = (hypothesis.ids, hypothesis.due)
    other = waiting.get(key)
    if other is not None:
        likelier = max(hypothesis, other, key=lambda h: h.score)
        hypothesis = replace(likelier, score=log_add(hypothesis.score, other.score))
    waiting[key] = hypothesis
