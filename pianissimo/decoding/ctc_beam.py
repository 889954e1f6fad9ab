"""CTC prefix beam search (Hannun et al. 2014, arXiv 1408.2873).

A hypothesis is a text. Its score is the sum over all paths that give the text, plus the scores of
language model and hotwords. The best hypotheses are kept from frame to frame. Log-probabilities of
all streams come as one batch from the head; the beams, a few texts each, are plain Python.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pianissimo.decoding.beam_state import Beam, BeamHypothesis, BeamOptions, BeamState, log_add
from pianissimo.decoding.confidence import Confidence
from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.lm.fusion import Fusion, LanguageModel
from pianissimo.decoding.token import Hypothesis, Token
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel

NEVER = -math.inf
NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class CtcHypothesis(BeamHypothesis):
    """A text of a CTC beam, of which `last` is the last token, settled ones included.

    `blank` and `label` are the logarithms of the sum over paths that end in a blank, or in `last`;
    `added` are the scores of language model and hotwords.
    """

    last: int
    blank: float
    label: float
    added: float


@dataclass(slots=True)
class _PathSums:
    """A text after the next frame: its two sums, and the likeliest way to it.

    `source` is the hypothesis that the likeliest path comes from, `token` the token that it adds.
    """

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
        self._limits = self.options.limits(frame_seconds)

    def start(self, fusion: Fusion | None = None) -> Beam[CtcHypothesis]:
        """The beam before the first frame."""
        fusion = fusion if fusion is not None and fusion.active else None
        place = None if fusion is None else fusion.start()
        first = CtcHypothesis((), (), 0.0, place, NO_TOKEN, 0.0, NEVER, 0.0)
        return Beam((first,), fusion)

    def advance(self, beam: Beam[CtcHypothesis], log_probs: Tensor, frame: int) -> Hypothesis:
        """Search (S, V + 1) further frames, of which the first one is number `frame`.

        Updates the beam in place and returns the tokens that are settled by then.
        """
        best = log_probs.argmax(-1, keepdim=True)
        candidates = (log_probs >= self.options.token_floor).scatter(1, best, True)
        candidates[:, self.blank] = False
        at, symbols = candidates.nonzero(as_tuple=True)
        picked = log_probs[at]
        confidences = self.confidence.of(picked, symbols)
        table: list[list[Token]] = [[] for _ in log_probs]
        columns = (at, symbols, picked.gather(1, symbols[:, None])[:, 0], confidences)
        for t, id, log_prob, confidence in zip(*(c.tolist() for c in columns), strict=True):
            table[t].append(Token(id, frame + t, log_prob, confidence))
        result = Hypothesis()
        for t, (tokens, frame_log_probs) in enumerate(zip(table, log_probs.tolist(), strict=True)):
            ranked = self._step(beam, tokens, frame_log_probs)
            result.extend(beam.settle(ranked, frame + t, self._limits))
        return result

    def _step(
        self, beam: Beam[CtcHypothesis], tokens: Sequence[Token], log_probs: Sequence[float]
    ) -> list[CtcHypothesis]:
        """The hypotheses after one frame, the best first; `tokens` are its likely symbols."""
        blank = log_probs[self.blank]
        texts: dict[tuple[int, ...], _PathSums] = {}
        for h in beam.hypotheses:
            total = log_add(h.blank, h.label)
            sums = texts.setdefault(h.ids, _PathSums(h, NO_TOKEN))
            sums.add(h, NO_TOKEN, total + blank, blank=True)
            if h.last != NO_TOKEN:
                # A repeated symbol adds no token, so an unlikely one is scored here as well.
                sums.add(h, NO_TOKEN, h.label + log_probs[h.last], blank=False)
            for token in tokens:
                # After the same token a new one needs a blank between them.
                before = h.blank if token.id == h.last else total
                sums = texts.setdefault((*h.ids, token.id), _PathSums(h, token.id))
                sums.add(h, token.id, before + token.log_prob, blank=False)
        by_id = {token.id: token for token in tokens}
        earlier = {h.ids: h for h in beam.hypotheses}
        ranked = [
            self._hypothesis(beam.fusion, ids, sums, earlier.get(ids), by_id)
            for ids, sums in texts.items()
            if max(sums.blank, sums.label) > NEVER
        ]
        ranked.sort(key=lambda h: -h.score)
        least = ranked[0].score - self.options.window
        return [h for h in ranked[: self.options.beam] if h.score >= least]

    def _hypothesis(
        self,
        fusion: Fusion | None,
        ids: tuple[int, ...],
        sums: _PathSums,
        earlier: CtcHypothesis | None,
        by_id: Mapping[int, Token],
    ) -> CtcHypothesis:
        """The hypothesis of a text; `earlier` is that of the same text before this frame."""
        source, tokens = sums.source, sums.source.tokens
        if sums.token != NO_TOKEN:
            tokens = (*tokens, by_id[sums.token])
        if earlier is not None:
            added, place, last = earlier.added, earlier.fusion, earlier.last
        else:
            added, place, last = source.added, source.fusion, sums.token
            if fusion is not None and place is not None:
                more, place = fusion.step(place, sums.token)
                added += more
        score = log_add(sums.blank, sums.label) + added
        return CtcHypothesis(ids, tokens, score, place, last, sums.blank, sums.label, added)


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

    def start(
        self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None
    ) -> BeamState[CtcHypothesis]:
        """The state of `batch` streams before their first frame, with the hotwords of each."""
        beams = [self.search.start(Fusion(self.lm, trie)) for trie in tries or [None] * batch]
        return BeamState.of(beams, self.head.out.weight.device)

    def decode(
        self, encoded: Tensor, lengths: Tensor | None, state: BeamState[CtcHypothesis]
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
        log_probs = self.head(encoded).float().cpu()
        rows = zip(state.ahead.tolist(), lengths.tolist(), state.frames.tolist(), strict=True)
        for row, (first, end, frames) in enumerate(rows):
            if first < end:
                new = log_probs[row, first:end]
                results[row] = self.search.advance(state.beams[row], new, frames + first)
        state.ahead = (state.ahead - lengths).clamp(min=0)
        state.frames = state.frames + lengths
        return results
