"""Joint CTC and attention search with language models, one step per token.

Watanabe et al. 2017 (IEEE JSTSP 11:8), with the decoding contract and defaults of ESPnet2: a
hypothesis has the weighted sum of the scores of all scorers. CTC scores it by all alignments of all
texts that begin with it (Algorithm 2 there).

Shape legend: S encoder frames, R hypotheses, U tokens so far with the start, C candidates, V
vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from pianissimo.decoding.lm.arpa import END, LN_10
from pianissimo.decoding.lm.fusion import TokenLm
from pianissimo.decoding.lm.ngram import NgramModel
from pianissimo.errors import OptionError

BLANK = 0
NEVER = -1e10
"""The logarithm of 0, finite so that its product with a weight of 0 is 0."""
CANDIDATES = 1.5
"""Times the beam: the number of tokens that CTC scores, the best by the other scorers."""
END_LENGTHS, END_NATS = 3, 10.0
"""The search stops once the last three lengths ended this far below the best."""


@dataclass(frozen=True)
class JointOptions:
    """Options of the joint search; the defaults are ESPnet's.

    `max_length` and `min_length` bound the tokens as a share of the encoder frames, or if negative
    as a number; a `max_length` of 0 is all frames with an early stop. `penalty` is added for each
    token. An n-gram model's logarithms are to base 10 in ESPnet, and so is `ngram_weight`.
    """

    beam: int = 20
    ctc_weight: float = 0.5
    lm_weight: float = 1.0
    ngram_weight: float = 0.9
    penalty: float = 0.0
    max_length: float = 0.0
    min_length: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.beam <= 1000:
            raise OptionError(f"beam must be 1 to 1000, not {self.beam}")
        if not 0 <= self.ctc_weight <= 1:
            raise OptionError(f"ctc_weight must be 0 to 1, not {self.ctc_weight}")
        for name in ("lm_weight", "ngram_weight"):
            if not 0 <= getattr(self, name) <= 10:
                raise OptionError(f"{name} must be 0 to 10, not {getattr(self, name)}")
        for name in ("max_length", "min_length"):
            if not -10_000 <= getattr(self, name) <= 10:
                raise OptionError(f"{name} must be -10000 to 10, not {getattr(self, name)}")
        if not -100 <= self.penalty <= 100:
            raise OptionError(f"penalty must be -100 to 100, not {self.penalty}")

    def longest(self, frames: int) -> int:
        """The most tokens, the end included."""
        if self.max_length == 0:
            return frames
        if self.max_length < 0:
            return -int(self.max_length)
        return max(1, int(self.max_length * frames))

    def shortest(self, frames: int) -> int:
        """The fewest tokens before the end."""
        share = self.min_length
        return -int(share) if share < 0 else int(share * frames)


@dataclass(frozen=True)
class JointHypothesis:
    """A finished text: its tokens without start and end, its score, and the score by scorer."""

    tokens: tuple[int, ...]
    score: float
    scores: Mapping[str, float]


ScorerState: TypeAlias = Any
"""The state of a scorer, of a type of its own."""


class Scorer(Protocol):
    """Log-probabilities of next tokens after R hypotheses."""

    def start(self) -> ScorerState: ...

    def score(self, tokens: Tensor, state: ScorerState) -> tuple[Tensor, ScorerState]:
        """(R, U) tokens, of which the last are new to `state` -> (R, V), and the next state."""
        ...

    def select(self, state: ScorerState, rows: Tensor) -> ScorerState:
        """The state of (R',) hypotheses by number."""
        ...


class NgramScorer:
    """An n-gram model over tokens, in base-10 logarithms; a state is a list of its states."""

    def __init__(self, model: NgramModel, tokens: Sequence[str]) -> None:
        ids = [model.ids.get(END if token == "<eos>" else token) for token in tokens]
        self._lm = TokenLm(model, ids, 1 / LN_10)

    def start(self) -> list[int]:
        return [self._lm.start()]

    def score(self, tokens: Tensor, state: list[int]) -> tuple[Tensor, list[int]]:
        if tokens.shape[1] > 1:
            last = tokens[:, -1].tolist()
            state = [self._lm.step(s, token)[1] for s, token in zip(state, last, strict=True)]
        return self._lm.scores(state, tokens.device), state

    def select(self, state: list[int], rows: Tensor) -> list[int]:
        return [state[row] for row in rows.tolist()]


@dataclass(frozen=True)
class CtcPrefixState:
    """The sums over alignments that end in the last token, and in a blank, by frame.

    label, blank: (S, R) in float64, prefix: (R,), all logarithms.
    """

    label: Tensor
    blank: Tensor
    prefix: Tensor


class CtcPrefixScorer:
    """Scores of texts that begin with some tokens, by (S, V) log-probabilities of a CTC head."""

    def __init__(self, log_probs: Tensor, end: int) -> None:
        self._log_probs, self._end = log_probs.double(), end
        self._probs = self._log_probs.exp()

    def start(self) -> CtcPrefixState:
        blank = self._log_probs[:, BLANK].cumsum(0)[:, None]
        return CtcPrefixState(torch.full_like(blank, NEVER), blank, blank.new_zeros(1))

    def score(self, tokens: Tensor, state: CtcPrefixState, candidates: Tensor | None) -> Tensor:
        """(R, U) tokens and (R, C) candidates, all by default -> (R, V) prefix log-probabilities.

        Tokens that are no candidates are impossible, except the end.
        """
        first = tokens.shape[1] == 1
        both = torch.logaddexp(state.label, state.blank)
        before = _before(both, first)
        most = before.amax(0)
        # Scaled by the largest frame; smaller ones may underflow without effect.
        arrivals = (before - most).exp().T @ self._probs  # (R, V)
        prefix = (arrivals.log() + most[:, None]).clamp(min=NEVER)
        if not first:
            # After the same token a new one needs a blank between them.
            last = tokens[:, -1]
            again = (_before(state.blank, first) + self._log_probs[:, last]).logsumexp(0)
            prefix = prefix.scatter(1, last[:, None], again[:, None])
        if candidates is not None:
            few = prefix.gather(1, candidates)
            prefix = torch.full_like(prefix, NEVER).scatter(1, candidates, few)
        prefix[:, self._end] = both[-1]
        prefix[:, BLANK] = NEVER
        return prefix

    def select(
        self, state: CtcPrefixState, prefix: Tensor, tokens: Tensor, rows: Tensor, added: Tensor
    ) -> CtcPrefixState:
        """The state once (R',) tokens were `added` to the hypotheses `rows` of (R, U) `tokens`.

        `prefix` is the result of `score`. Sums over time are cumulative sums over all frames.
        """
        first = tokens.shape[1] == 1
        label, blank = state.label[:, rows], state.blank[:, rows]
        same = (tokens[rows, -1] == added) & (not first)
        before = _before(torch.where(same, blank, torch.logaddexp(label, blank)), first)
        labels = _along(before, self._log_probs[:, added])
        blanks = _along(_before(labels, False), self._log_probs[:, BLANK, None])
        return CtcPrefixState(labels, blanks, prefix[rows, added])


def _before(inside: Tensor, first: bool) -> Tensor:
    """(S, R) up to each frame -> up to the frame before; only a first token may start at 0."""
    return torch.cat([torch.full_like(inside[:1], 0.0 if first else NEVER), inside[:-1]])


def _along(inflow: Tensor, scores: Tensor) -> Tensor:
    """x_t = log(exp(x_{t-1}) + exp(inflow_t)) + scores_t from 0 on, all frames at once."""
    total = scores.cumsum(0)
    return (inflow - (total - scores)).logcumsumexp(0) + total


@dataclass(frozen=True)
class _JointBeam:
    """Hypotheses of equal length. tokens: (R, U); score: (R,); scores: (R,) by scorer."""

    tokens: Tensor
    score: Tensor
    scores: Mapping[str, Tensor]
    states: Mapping[str, ScorerState]
    ctc: CtcPrefixState | None

    def ended(self, row: int) -> JointHypothesis:
        return JointHypothesis(
            tuple(self.tokens[row, 1:-1].tolist()),
            float(self.score[row]),
            {name: float(values[row]) for name, values in self.scores.items()},
        )


class JointSearch:
    """The search in one recording.

    `scorers` and `ctc` come with their weights; a scorer with the weight 0 is skipped.
    """

    def __init__(
        self,
        scorers: Mapping[str, tuple[float, Scorer]],
        ctc: tuple[float, CtcPrefixScorer],
        *,
        start: int,
        end: int,
        vocab_size: int,
        options: JointOptions,
    ) -> None:
        self.scorers = {name: pair for name, pair in scorers.items() if pair[0]}
        self.ctc = ctc if ctc[0] else None
        self.start, self.end, self.vocab_size = start, end, vocab_size
        self.options = options

    def run(self, frames: int, device: torch.device) -> list[JointHypothesis]:
        """The finished texts in `frames` encoder frames, the best first; there may be none.

        Without any text of the least length the search is repeated with a smaller one.
        """
        options = self.options
        while True:
            ended = self._run(frames, device, options)
            if ended or options.min_length < 0.1:
                return sorted(ended, key=lambda h: -h.score)
            options = replace(options, min_length=max(0.0, options.min_length - 0.1))

    def _run(
        self, frames: int, device: torch.device, options: JointOptions
    ) -> list[JointHypothesis]:
        longest, shortest = options.longest(frames), options.shortest(frames)
        names = [*self.scorers, *(["ctc"] if self.ctc else [])]
        zero = torch.zeros(1, device=device)
        if options.penalty:
            names.append("length_bonus")
        beam = _JointBeam(
            torch.full((1, 1), self.start, device=device),
            zero,
            dict.fromkeys(names, zero),
            {name: scorer.start() for name, (_, scorer) in self.scorers.items()},
            self.ctc[1].start() if self.ctc else None,
        )
        ended: list[JointHypothesis] = []
        for i in range(longest):
            beam = self._step(beam, options)
            if i == longest - 1:
                ends = torch.full_like(beam.tokens[:, :1], self.end)
                beam = replace(beam, tokens=torch.cat([beam.tokens, ends], dim=1))
            over = beam.tokens[:, -1] == self.end
            if i >= shortest:
                ended += [beam.ended(row) for row in over.nonzero()[:, 0].tolist()]
            beam = self._kept(beam, (~over).nonzero()[:, 0])
            if not len(beam.tokens) or (options.max_length == 0 and _is_over(ended, i)):
                break
        return ended

    def _step(self, beam: _JointBeam, options: JointOptions) -> _JointBeam:
        """The best hypotheses that are one token longer."""
        R, V = len(beam.tokens), self.vocab_size
        weighted = torch.zeros(R, V, device=beam.tokens.device)
        scores: dict[str, Tensor] = {}
        states: dict[str, ScorerState] = {}
        for name, (weight, scorer) in self.scorers.items():
            scores[name], states[name] = scorer.score(beam.tokens, beam.states[name])
            weighted = weighted + weight * scores[name]
        if options.penalty:
            scores["length_bonus"] = torch.ones_like(weighted)
            weighted = weighted + options.penalty
        prefix = None
        if self.ctc is not None and beam.ctc is not None:
            weight, prefix_scorer = self.ctc
            count = int(CANDIDATES * options.beam)
            few = weight < 1 and count < V
            candidates = weighted.topk(count, dim=1).indices if few else None
            prefix = prefix_scorer.score(beam.tokens, beam.ctc, candidates)
            scores["ctc"] = (prefix - beam.ctc.prefix[:, None]).float()
            weighted = weighted + weight * scores["ctc"]
        weighted = weighted + beam.score[:, None]
        best = weighted.flatten().topk(min(options.beam, R * V))
        score, rows, added = best.values, best.indices // V, best.indices % V
        ctc = None
        if self.ctc is not None and beam.ctc is not None and prefix is not None:
            # A wide beam may include tokens that CTC excludes; their later scores are meaningless.
            possible = scores["ctc"][rows, added] > NEVER / 2
            score, rows, added = score[possible], rows[possible], added[possible]
            ctc = self.ctc[1].select(beam.ctc, prefix, beam.tokens, rows, added)
        return _JointBeam(
            torch.cat([beam.tokens[rows], added[:, None]], dim=1),
            score,
            {name: beam.scores[name][rows] + scores[name][rows, added] for name in beam.scores},
            {name: s.select(states[name], rows) for name, (_, s) in self.scorers.items()},
            ctc,
        )

    def _kept(self, beam: _JointBeam, rows: Tensor) -> _JointBeam:
        ctc = beam.ctc
        if ctc is not None:
            ctc = CtcPrefixState(ctc.label[:, rows], ctc.blank[:, rows], ctc.prefix[rows])
        return _JointBeam(
            beam.tokens[rows],
            beam.score[rows],
            {name: values[rows] for name, values in beam.scores.items()},
            {name: s.select(beam.states[name], rows) for name, (_, s) in self.scorers.items()},
            ctc,
        )


def _is_over(ended: Sequence[JointHypothesis], length: int) -> bool:
    """Whether the last lengths all ended far below the best; start and end count as tokens."""
    if not ended:
        return False
    best = max(h.score for h in ended)
    for back in range(END_LENGTHS):
        same = [h.score for h in ended if len(h.tokens) + 2 == length - back]
        if not same or max(same) - best >= -END_NATS:
            return False
    return True
