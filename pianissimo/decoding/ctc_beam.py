"""CTC prefix beam search (Hannun et al. 2014, arXiv 1408.2873).

A hypothesis is a text, and its score the sum over all paths that give it, plus what language model
and phrases add to the text. The best of them live on from frame to frame. Log-probabilities of all
streams come as one batch from the head; the beams, a few texts each, are plain Python.

Hypotheses are immutable and a beam is a new tuple after each frame, so the state of a stream is
copied by reference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from pianissimo.decoding.token import Heard, Hypothesis
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel

NEVER = -math.inf
NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class CtcHypothesis:
    """A text: its tokens since the last settled one, of which `last` may be the very last.

    `blank` and `label` are the logarithms of the sum over paths that end in a blank, or in `last`;
    `added` is what language model and phrases add.
    """

    tokens: tuple[int, ...]
    heard: tuple[Heard, ...]
    last: int
    blank: float
    label: float
    added: float
    state: FusionState

    @property
    def score(self) -> float:
        return log_add(self.blank, self.label) + self.added

    def without(self, count: int) -> "CtcHypothesis":
        return replace(self, tokens=self.tokens[count:], heard=self.heard[count:])


@dataclass(slots=True)
class _Draft:
    """A text of the next frame: where it came from most likely, and its two sums."""

    source: CtcHypothesis
    token: int
    likeliest: float = NEVER
    blank: float = NEVER
    label: float = NEVER

    def add(self, source: CtcHypothesis, token: int, log_prob: float, *, blank: bool) -> None:
        if blank:
            self.blank = log_add(self.blank, log_prob)
        else:
            self.label = log_add(self.label, log_prob)
        if log_prob > self.likeliest:
            self.source, self.token, self.likeliest = source, token, log_prob


class CtcPrefixBeam:
    """The search in the log-probabilities of one stream."""

    def __init__(
        self,
        blank: int,
        frame_seconds: float,
        options: BeamOptions | None = None,
        confidence: Confidence | None = None,
    ) -> None:
        self.blank, self.options = blank, options or BeamOptions()
        self.confidence = confidence or Confidence()
        self._settle = Settling.of(self.options, frame_seconds)

    def start(self, fusion: Fusion) -> Beam:
        return Beam((CtcHypothesis((), (), NO_TOKEN, 0.0, NEVER, 0.0, fusion.start()),), fusion)

    def advance(self, beam: Beam, log_probs: Tensor, frame: int, found: Hypothesis) -> Beam:
        """The beam after (S, V + 1) further frames, of which the first one is number `frame`;
        tokens that are settled by then are appended to `found`."""
        best = log_probs.argmax(-1, keepdim=True)
        candidates = (log_probs >= self.options.token_floor).scatter(1, best, True)
        candidates[:, self.blank] = False
        at, symbols = candidates.nonzero(as_tuple=True)
        picked = log_probs[at]
        sure = self.confidence.of(picked, symbols)
        table: list[list[tuple[int, float, float]]] = [[] for _ in log_probs]
        columns = (symbols, picked.gather(1, symbols[:, None])[:, 0], sure)
        for t, *column in zip(at.tolist(), *(c.tolist() for c in columns), strict=True):
            table[t].append(tuple(column))
        blanks = log_probs[:, self.blank].tolist()
        # A symbol that is passed over still goes on where it stood: its paths are not new ones.
        everything = log_probs.tolist()
        for t, labels in enumerate(table):
            hypotheses = self._step(beam, labels, blanks[t], everything[t], frame + t)
            hypotheses, settled = self._settle(hypotheses, frame + t)
            beam = replace(report(beam, settled, found), hypotheses=tuple(hypotheses))
        return beam

    def _step(
        self,
        beam: Beam,
        labels: Sequence[tuple[int, float, float]],
        blank: float,
        log_probs: Sequence[float],
        frame: int,
    ) -> list[CtcHypothesis]:
        drafts: dict[tuple[int, ...], _Draft] = {}
        for h in beam.hypotheses:
            total = log_add(h.blank, h.label)
            draft = drafts.setdefault(h.tokens, _Draft(h, NO_TOKEN))
            draft.add(h, NO_TOKEN, total + blank, blank=True)
            if h.last != NO_TOKEN:
                draft.add(h, NO_TOKEN, h.label + log_probs[h.last], blank=False)
            for token, log_prob, _ in labels:
                # After the same token a new one needs a blank between them.
                before = h.blank if token == h.last else total
                draft = drafts.setdefault((*h.tokens, token), _Draft(h, token))
                draft.add(h, token, before + log_prob, blank=False)
        sure = {token: (log_prob, confidence) for token, log_prob, confidence in labels}
        there = {h.tokens: h for h in beam.hypotheses}
        made = [
            self._made(beam.fusion, tokens, draft, there.get(tokens), sure, frame)
            for tokens, draft in drafts.items()
            if max(draft.blank, draft.label) > NEVER
        ]
        made.sort(key=lambda h: -h.score)
        least = made[0].score - self.options.window
        return [h for h in made[: self.options.beam] if h.score >= least]

    def _made(
        self,
        fusion: Fusion,
        tokens: tuple[int, ...],
        draft: _Draft,
        there: CtcHypothesis | None,
        sure: dict[int, tuple[float, float]],
        frame: int,
    ) -> CtcHypothesis:
        source, token = draft.source, draft.token
        heard = source.heard
        if token != NO_TOKEN:
            heard = (*heard, Heard(token, frame, *sure[token]))
        if there is not None:
            added, state, last = there.added, there.state, there.last
        else:
            more, state = fusion.step(source.state, token) if fusion.active else (0.0, source.state)
            added, last = source.added + more, token
        return CtcHypothesis(tokens, heard, last, draft.blank, draft.label, added, state)


class CtcBeamSearch:
    """Prefix beam search with a model's CTC head, whole or chunk by chunk."""

    def __init__(
        self,
        model: AsrModel,
        options: BeamOptions | None = None,
        lm: LanguageModel | None = None,
        confidence: Confidence | None = None,
    ) -> None:
        if model.ctc is None:
            raise OptionError("this model has no CTC head; decode it with its transducer")
        self.head, self.lm = model.ctc, lm
        self.search = CtcPrefixBeam(
            model.config.vocab_size, model.config.frame_seconds, options, confidence
        )

    def start(self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None) -> BeamState:
        """The state of `batch` streams before their first frame, with the phrases of each."""
        beams = [self.search.start(Fusion(self.lm, trie)) for trie in tries or [None] * batch]
        return empty_state(beams, self.head.out.weight.device)

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
        log_probs = self.head(encoded).float().cpu()
        rows = zip(state.ahead.tolist(), lengths.tolist(), state.frames.tolist(), strict=True)
        for row, (first, end, frames) in enumerate(rows):
            if first < end:
                state.beams[row] = self.search.advance(
                    state.beams[row], log_probs[row, first:end], frames + first, found[row]
                )
        state.ahead = (state.ahead - lengths).clamp(min=0)
        state.frames = state.frames + lengths
        return found
