"""Batched transducer beam search, frame by frame, with several labels a frame.

In each frame the hypotheses of all streams take turns together: each may end the frame with a
blank, or take one more label, up to `max_symbols`. After each turn the best of a stream stay,
whether they ended the frame or not; those that ended it with the same text are one hypothesis and
their probabilities add up. What a label costs is one batched step of predictor and joiner; choosing
is plain Python over `beam` squared candidates (in the spirit of MALSD, Grigoryan et al. 2025, arXiv
2506.01183; with blanks paid in every frame).

A token-and-duration transducer says with each symbol how many frames it lasts. Each of its
hypotheses waits for the frame that it is due at, and those who wait compete with the others; texts
are one hypothesis if they are due at the same frame. A blank of no frames lasts one, as in greedy
search; after `max_symbols` labels in a frame there is a blank of one frame, whatever its duration.

A language model that knows no blank is given one: it leaves to the blank what the acoustics do, so
a label weighs `log p + gate log(1 - p(blank)) + lm` and the blank `(1 + gate) log p(blank)`.
Phrases have a gate as well.

Shape legend: N hypotheses of all streams, S encoder frames, D encoder width, J joint width,
V vocabulary, K beam, P durations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from pianissimo.decoding.beams import (
    Beam,
    BeamOptions,
    BeamState,
    Settling,
    empty_state,
    log_add,
    report,
)
from pianissimo.decoding.confidence import Confidence
from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.lm.fusion import Fusion, FusionState, LanguageModel
from pianissimo.decoding.rescoring import Rescoring
from pianissimo.decoding.token import Heard, Hypothesis
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.models.packed import packed
from pianissimo.models.transducer import Joiner, Predictor, PredictorState

SURE = 1e-6
"""The least that the blank leaves to labels, so that its logarithm is finite."""


@dataclass(frozen=True, slots=True)
class TransducerHypothesis:
    """A text: its tokens since the last settled one.

    `score` is the logarithm of the sum over its alignments, with what language model and phrases
    add; `slot` is its row among the predictor outputs of its beam, `due` the frame at which it goes
    on.
    """

    tokens: tuple[int, ...]
    heard: tuple[Heard, ...]
    score: float
    state: FusionState
    slot: int
    due: int

    def without(self, count: int) -> "TransducerHypothesis":
        return replace(self, tokens=self.tokens[count:], heard=self.heard[count:])


@dataclass
class Outputs:
    """What the predictor knows of N hypotheses, and what is added to their labels.

    projected (N, J) through the joiner; state of N rows; added (N, V), None if nothing is.
    """

    projected: Tensor
    state: PredictorState
    added: Tensor | None

    def rows(self, index: Tensor) -> "Outputs":
        return Outputs(
            self.projected[index],
            PredictorState(self.state.hidden[:, index], self.state.cell[:, index]),
            None if self.added is None else self.added[index],
        )

    @classmethod
    def cat(cls, parts: Sequence["Outputs"]) -> "Outputs":
        added = [part.added for part in parts]
        return cls(
            torch.cat([part.projected for part in parts]),
            PredictorState(
                torch.cat([part.state.hidden for part in parts], dim=1),
                torch.cat([part.state.cell for part in parts], dim=1),
            ),
            None
            if any(a is None for a in added)
            else torch.cat([a for a in added if a is not None]),
        )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A hypothesis and the label it may take, or a blank if nothing is heard; `score`, `heard` and
    `due` are those after it."""

    score: float
    source: TransducerHypothesis
    heard: Heard | None
    due: int


_Done: TypeAlias = dict[tuple[tuple[int, ...], int], TransducerHypothesis]
"""The hypotheses of a stream that wait for a later frame, by text and by the frame."""


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
            raise OptionError("rescoring needs a model with a CTC head, which this one has not")
        self.confidence = confidence or Confidence()
        self._settle = Settling.of(self.options, model.config.frame_seconds)

    def start(self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None) -> BeamState:
        """The state of `batch` streams before their first frame, with the phrases of each."""
        device = self.predictor.embedding.weight.device
        beams = []
        for trie in tries or [None] * batch:
            fusion = Fusion(self.lm, trie)
            first = TransducerHypothesis((), (), 0.0, fusion.start(), 0, 0)
            labels = torch.full((1,), self.blank, device=device)
            memory = self._advanced(labels, self.predictor.start(1))
            beams.append(Beam((first,), fusion, memory=memory, rescoring=self._rescoring(device)))
        return empty_state(beams, device)

    def decode(self, encoded: Tensor, lengths: Tensor | None, state: BeamState) -> list[Hypothesis]:
        """Search (B, S, D) further encoder frames; returns the tokens of each row that are settled.

        `lengths` (B,) are the rows' valid frames, all by default. Advances `state` in place.
        """
        B, S, _ = encoded.shape
        found = [Hypothesis() for _ in range(B)]
        if S == 0:
            return found
        if lengths is None:
            lengths = torch.full((B,), S, device=encoded.device)
        frames = self.joiner.encoder(encoded)
        first, ends, before = state.ahead.tolist(), lengths.tolist(), state.frames.tolist()
        self._listen(encoded, first, ends, state.beams)
        outputs = self._together(state.beams)
        for t in range(S):
            rows = [row for row in range(B) if first[row] <= t < ends[row]]
            if rows:
                outputs = self._frame(frames[:, t], rows, t, before, state.beams, outputs, found)
        self._apart(state.beams, outputs)
        state.ahead = (state.ahead - lengths).clamp(min=0)
        state.frames = state.frames + lengths
        return found

    def _frame(
        self,
        frame: Tensor,
        rows: Sequence[int],
        t: int,
        before: Sequence[int],
        beams: list[Beam],
        outputs: Outputs,
        found: list[Hypothesis],
    ) -> Outputs:
        """One frame (B, J) of the rows that have it; returns the outputs with those of new
        hypotheses, and only of those that are left."""
        active: dict[int, list[TransducerHypothesis]] = {}
        done: dict[int, _Done] = {}
        for row in rows:
            done[row] = {}
            for h in beams[row].hypotheses:
                if h.due <= before[row] + t:
                    active.setdefault(row, []).append(h)
                else:
                    done[row][h.tokens, h.due] = h
        for turn in range(self.max_symbols + 1):
            if not active:
                break
            last = turn == self.max_symbols
            candidates = self._turn(frame, t, before, beams, outputs, active, done, last)
            chosen: list[tuple[int, _Candidate]] = []
            for row, possible in candidates.items():
                done[row], taken = self._pruned(done[row], possible)
                chosen += [(row, candidate) for candidate in taken]
            made, outputs = self._extended(chosen, beams, outputs)
            active = {}
            for row, h in made:
                if h.due <= before[row] + t:
                    active.setdefault(row, []).append(h)
                else:
                    _end(done[row], h)
        kept: list[int] = []
        for row, beam in enumerate(beams):
            hypotheses = list(beam.hypotheses)
            if row in done:
                ranked = sorted(done[row].values(), key=lambda h: -h.score)
                ranked = ranked[: self.options.beam]
                hypotheses, settled, beam = self._settled(beam, ranked, before[row] + t)
                beam = report(beam, settled, found[row])
            slots = range(len(kept), len(kept) + len(hypotheses))
            kept += [h.slot for h in hypotheses]
            moved = (
                h if h.slot == slot else replace(h, slot=slot)
                for h, slot in zip(hypotheses, slots, strict=True)
            )
            beams[row] = replace(beam, hypotheses=tuple(moved))
        if kept == list(range(len(outputs.projected))):
            return outputs
        return outputs.rows(torch.tensor(kept, device=frame.device))

    def _settled(
        self, beam: Beam, ranked: list[TransducerHypothesis], frame: int
    ) -> tuple[list[TransducerHypothesis], tuple[Heard, ...], Beam]:
        """The hypotheses that stay after a frame, and what is settled by then; and the beam.

        CTC is heard where tokens are due although the hypotheses may disagree.
        """
        if beam.rescoring is None:
            return *self._settle(ranked, frame), beam
        if len(ranked) > 1 and self._settle.due(ranked[0], frame):
            worth = beam.rescoring.worth([h.tokens for h in ranked], frame)
            totals = {id(h): h.score + more for h, more in zip(ranked, worth, strict=True)}
            ranked = sorted(ranked, key=lambda h: -totals[id(h)])
        hypotheses, settled = self._settle(ranked, frame)
        next_heard = min((h.heard[0].frame for h in hypotheses if h.heard), default=frame + 1)
        rescoring = beam.rescoring.told(settled)
        rescoring = rescoring.forgetting(frame, next_heard, self._settle.pause)
        return hypotheses, settled, replace(beam, rescoring=rescoring)

    def _rescoring(self, device: torch.device) -> Rescoring | None:
        if self.ctc is None:
            return None
        return Rescoring(self.options.rescoring, torch.empty(0, self.blank + 1, device=device))

    def _listen(
        self, encoded: Tensor, first: Sequence[int], ends: Sequence[int], beams: list[Beam]
    ) -> None:
        """Let CTC hear the frames of each row, from its first new one to its end."""
        if self.ctc is None:
            return
        log_probs = self.ctc(encoded).float()
        for row, beam in enumerate(beams):
            assert beam.rescoring is not None
            heard = beam.rescoring.extended(log_probs[row, first[row] : ends[row]])
            beams[row] = replace(beam, rescoring=heard)

    def _turn(
        self,
        frame: Tensor,
        t: int,
        before: Sequence[int],
        beams: Sequence[Beam],
        outputs: Outputs,
        active: dict[int, list[TransducerHypothesis]],
        done: dict[int, _Done],
        last: bool,
    ) -> dict[int, list[_Candidate]]:
        """Score the active hypotheses: end the frame for all of them, and return the labels that
        they may take instead, unless it is the `last` turn. Where symbols have durations, a blank
        is one of the symbols that they may take."""
        flat = [(row, h) for row, hypotheses in active.items() for h in hypotheses]
        device = frame.device
        of_rows = torch.tensor([row for row, _ in flat], device=device)
        slots = torch.tensor([h.slot for _, h in flat], device=device)
        logits = self.joiner(frame[of_rows], outputs.projected[slots])
        log_probs = logits[:, : self.blank + 1].float().log_softmax(-1)
        labels, blanks = log_probs[:, : self.blank], log_probs[:, self.blank]
        weighed = labels
        if outputs.added is not None:
            weighed = labels + outputs.added[slots]
        gates = [beams[row].fusion.gate for row, _ in flat]
        if any(gates):
            gate = torch.tensor(gates, device=device)
            rest = (-blanks.exp().clamp(max=1 - SURE)).log1p()
            weighed = weighed + (gate * rest)[:, None]
            blanks = (1 + gate) * blanks
        if last or not self.durations:
            for (row, h), blank in zip(flat, blanks.tolist(), strict=True):
                due = before[row] + t + 1
                _end(done[row], replace(h, score=h.score + blank, due=due))
        candidates: dict[int, list[_Candidate]] = {row: [] for row in active}
        if last:
            return candidates
        steps = torch.zeros_like(slots)[:, None]
        if self.durations:
            weighed = torch.cat([weighed, blanks[:, None]], dim=1)
            lasting = logits[:, self.blank + 1 :].float().log_softmax(-1)
            weighed = (weighed[:, :, None] + lasting[:, None]).flatten(1)  # (N, (V + 1) * P)
        scores, best = weighed.topk(min(self.options.beam, weighed.shape[1]))
        tokens = best
        if self.durations:
            tokens = best // len(self.durations)
            steps = torch.tensor(self.durations, device=device)[best % len(self.durations)]
        K = tokens.shape[1]
        sure = self.confidence.of(log_probs[:, None].expand(-1, K, -1), tokens)
        columns = (scores, tokens, steps.expand(-1, K), log_probs.gather(1, tokens), sure)
        table = zip(flat, *(column.tolist() for column in columns), strict=True)
        for (row, h), *lists in table:
            at = before[row] + t
            for score, token, step, log_prob, confidence in zip(*lists, strict=True):
                if token == self.blank:
                    taken = _Candidate(h.score + score, h, None, at + max(step, 1))
                else:
                    heard = Heard(token, at, log_prob, confidence)
                    taken = _Candidate(h.score + score, h, heard, at + step)
                candidates[row].append(taken)
        return candidates

    def _pruned(
        self,
        done: _Done,
        possible: Sequence[_Candidate],
    ) -> tuple[_Done, list[_Candidate]]:
        """The best of those that ended the frame and those that would take one more symbol."""
        beam = self.options.beam
        scores = sorted([h.score for h in done.values()] + [c.score for c in possible])
        least = max(
            scores[-beam] if len(scores) > beam else -math.inf, scores[-1] - self.options.window
        )
        kept = {key: h for key, h in done.items() if h.score >= least}
        return kept, [c for c in possible if c.score >= least]

    def _extended(
        self, chosen: Sequence[tuple[int, _Candidate]], beams: Sequence[Beam], outputs: Outputs
    ) -> tuple[list[tuple[int, TransducerHypothesis]], Outputs]:
        """The candidates as hypotheses; the predictor outputs of new texts follow the others."""
        made: list[tuple[int, TransducerHypothesis]] = []
        slot = len(outputs.projected)
        sources, labels, fusions, states = [], [], [], []
        for row, c in chosen:
            fusion = beams[row].fusion
            if c.heard is None:
                made.append((row, replace(c.source, score=c.score, due=c.due)))
                continue
            token = c.heard.token
            state = fusion.step(c.source.state, token)[1] if fusion.active else c.source.state
            heard, tokens = (*c.source.heard, c.heard), (*c.source.tokens, token)
            taken = TransducerHypothesis(tokens, heard, c.score, state, slot, c.due)
            made.append((row, taken))
            sources.append(c.source.slot)
            labels.append(token)
            fusions.append(fusion)
            states.append(state)
            slot += 1
        if not labels:
            return made, outputs
        device = outputs.projected.device
        slots = torch.tensor(sources, device=device)
        before = PredictorState(outputs.state.hidden[:, slots], outputs.state.cell[:, slots])
        new = self._advanced(torch.tensor(labels, device=device), before)
        if outputs.added is not None:
            new.added = self._added(fusions, states)
        return made, Outputs.cat([outputs, new])

    def _advanced(self, labels: Tensor, state: PredictorState) -> Outputs:
        output, state = self.predictor.step(labels, state)
        return Outputs(self.joiner.predictor(output), state, None)

    def _added(self, fusions: Sequence[Fusion], states: Sequence[FusionState]) -> Tensor:
        """What language model and phrases add to each label: (N, V)."""
        weight = self.predictor.embedding.weight
        added = torch.zeros(len(states), self.blank, device=weight.device)
        if self.lm is not None:
            added += self.lm.scores([state.lm for state in states], weight.device)
        for row, (fusion, state) in enumerate(zip(fusions, states, strict=True)):
            if fusion.trie is not None:
                added[row] += fusion.trie.scores(state.node, weight.device)
        return added

    def _together(self, beams: list[Beam]) -> Outputs:
        """The outputs of all beams as one, in which their hypotheses have their slots."""
        outputs = Outputs.cat([beam.memory for beam in beams])
        first = 0
        for row, beam in enumerate(beams):
            moved = tuple(replace(h, slot=first + h.slot) for h in beam.hypotheses)
            beams[row] = replace(beam, hypotheses=moved)
            first += len(beam.memory.projected)
        if any(beam.fusion.active for beam in beams):
            fusions = [beam.fusion for beam in beams for _ in beam.hypotheses]
            states = [h.state for beam in beams for h in beam.hypotheses]
            slots = [h.slot for beam in beams for h in beam.hypotheses]
            outputs.added = outputs.projected.new_zeros(
                len(outputs.projected), self.blank, dtype=torch.float32
            )
            outputs.added[slots] = self._added(fusions, states)
        return outputs

    def _apart(self, beams: list[Beam], outputs: Outputs) -> None:
        """Give each beam the outputs of its own hypotheses."""
        for row, beam in enumerate(beams):
            slots = [h.slot for h in beam.hypotheses]
            memory = outputs.rows(torch.tensor(slots, device=outputs.projected.device))
            memory.added = None
            own = tuple(replace(h, slot=i) for i, h in enumerate(beam.hypotheses))
            beams[row] = replace(beam, hypotheses=own, memory=memory)


def _end(done: _Done, hypothesis: TransducerHypothesis) -> None:
    """Add a hypothesis to those that ended the frame: to its like, if there is one."""
    key = (hypothesis.tokens, hypothesis.due)
    other = done.get(key)
    if other is not None:
        likelier = max(hypothesis, other, key=lambda h: h.score)
        hypothesis = replace(likelier, score=log_add(hypothesis.score, other.score))
    done[key] = hypothesis
