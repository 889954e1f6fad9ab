"""State that beam searches share: the beams of a batch of streams, and when tokens are settled.

A beam search returns only tokens that it cannot take back, so its text only grows, a little later
than that of a greedy search. A token is settled once all hypotheses of the beam agree on it. Two
limits settle tokens of the best hypothesis sooner, and drop hypotheses that disagree with it: the
age `settle_seconds` of a token, and `pause_seconds` without a new token.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, NoReturn, TypeVar

import torch
from torch import Tensor

from pianissimo.decoding.lm.fusion import Fusion, FusionState
from pianissimo.decoding.rescoring import Rescoring
from pianissimo.decoding.token import Hypothesis, Token
from pianissimo.errors import OptionError, StateError
from pianissimo.models.asr import LARGEST_BEAM


@dataclass(frozen=True)
class BeamOptions:
    """The limits of a beam search.

    CTC symbols of a frame below `token_floor` (a natural logarithm) are skipped, and hypotheses
    that score `window` less than the best one are dropped. `rescoring` is the weight of CTC where
    the texts of a transducer are rescored, see `Rescoring`.
    """

    beam: int = 4
    settle_seconds: float = 2.0
    pause_seconds: float = 0.4
    token_floor: float = -5.0
    window: float = 15.0
    rescoring: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.beam <= LARGEST_BEAM:
            raise OptionError(f"beam must be 1 to {LARGEST_BEAM} hypotheses, not {self.beam}")
        if not min(self.settle_seconds, self.pause_seconds, self.window, -self.token_floor) > 0:
            raise OptionError(
                "settle_seconds, pause_seconds and window must be above 0, and token_floor below 0"
            )
        if not 0 <= self.rescoring <= 10:
            raise OptionError(f"rescoring must be 0 to 10, not {self.rescoring}")

    def limits(self, frame_seconds: float) -> "SettleLimits":
        """When tokens are settled, in frames."""
        return SettleLimits(self.settle_seconds / frame_seconds, self.pause_seconds / frame_seconds)


@dataclass(frozen=True, slots=True)
class BeamHypothesis:
    """A text of a beam after the settled tokens.

    `ids` are the ids of `tokens`. `score` is a natural logarithm with the scores of language model
    and hotwords; `fusion` is where the text is in them, None in a stream without either.
    """

    ids: tuple[int, ...]
    tokens: tuple[Token, ...]
    score: float
    fusion: FusionState | None


H = TypeVar("H", bound=BeamHypothesis)


@dataclass(frozen=True)
class SettleLimits:
    """`BeamOptions.settle_seconds` and `pause_seconds` in encoder frames."""

    age: float
    pause: float

    def due(self, best: BeamHypothesis, frame: int) -> int:
        """How many tokens of the best hypothesis are settled now even if others disagree."""
        if best.tokens and frame - best.tokens[-1].frame >= self.pause:
            return len(best.tokens)
        return sum(token.frame < frame - self.age for token in best.tokens)


@dataclass
class Beam(Generic[H]):
    """The hypotheses of one stream, the best first; searches update it in place.

    `last_frame` is the frame of the last settled token. With `rescoring`, CTC rescores the
    hypotheses where they disagree about tokens that are due.
    """

    hypotheses: tuple[H, ...]
    fusion: Fusion | None = None
    rescoring: Rescoring | None = None
    last_frame: int = 0

    def settle(self, ranked: Sequence[H], frame: int, limits: SettleLimits) -> Hypothesis:
        """Replace the hypotheses by those after a frame, the best first; returns settled tokens."""
        due = limits.due(ranked[0], frame)
        if self.rescoring is not None and due and len(ranked) > 1:
            more = self.rescoring.scores([h.ids for h in ranked], frame)
            order = sorted(range(len(ranked)), key=lambda i: -(ranked[i].score + more[i]))
            ranked = [ranked[i] for i in order]
            due = limits.due(ranked[0], frame)
        best = ranked[0]
        if due:
            ranked = [h for h in ranked if h.ids[:due] == best.ids[:due]]
        agreed = min(len(h.ids) for h in ranked)
        for h in ranked:
            while h.ids[:agreed] != best.ids[:agreed]:
                agreed -= 1
        settled = best.tokens[:agreed]
        if agreed:
            ranked = [replace(h, ids=h.ids[agreed:], tokens=h.tokens[agreed:]) for h in ranked]
        self.hypotheses = tuple(ranked)
        if self.rescoring is not None:
            pending = (h.tokens[0].frame for h in ranked if h.tokens)
            next_frame = min(pending, default=frame + 1)
            self.rescoring = self.rescoring.settle(settled, frame, next_frame, limits.pause)
        return self._returned(settled)

    def finish(self) -> Hypothesis:
        """Keep the best hypothesis alone and return all its tokens, where a text ends."""
        best, _ = max(self._texts().values(), key=lambda pair: pair[1])
        self.hypotheses = (replace(best, ids=(), tokens=()),)
        if self.rescoring is not None:
            end = self.rescoring.first + len(self.rescoring.log_probs)
            self.rescoring = self.rescoring.after(end)
        return self._returned(best.tokens)

    def alternatives(self) -> list[tuple[tuple[int, ...], float]]:
        """The texts after the settled tokens, the best first: token ids and score of each."""
        texts = [(ids, score) for ids, (_, score) in self._texts().items()]
        return sorted(texts, key=lambda pair: -pair[1])

    def _texts(self) -> dict[tuple[int, ...], tuple[H, float]]:
        """For each text its likeliest hypothesis, and its score if the text ended here.

        Hypotheses of one text that wait for different frames add up.
        """
        texts: dict[tuple[int, ...], tuple[H, float]] = {}
        for h in sorted(self.hypotheses, key=lambda h: -h.score):
            likeliest, total = texts.get(h.ids, (h, -math.inf))
            score = h.score
            if self.fusion is not None and h.fusion is not None:
                score += self.fusion.end(h.fusion)
            texts[h.ids] = likeliest, log_add(total, score)
        if self.rescoring is not None and len(texts) > 1:
            scores = self.rescoring.scores(list(texts))
            for (ids, (likeliest, total)), more in zip(list(texts.items()), scores, strict=True):
                texts[ids] = likeliest, total + more
        return texts

    def _returned(self, settled: Sequence[Token]) -> Hypothesis:
        """Settled tokens as a result whose frames never decrease from token to token."""
        frames = []
        for token in settled:
            self.last_frame = max(self.last_frame, token.frame)
            frames.append(self.last_frame)
        return Hypothesis(
            [token.id for token in settled],
            frames,
            [token.log_prob for token in settled],
            [min(max(token.confidence, 0.0), 1.0) for token in settled],
        )


@dataclass
class BeamState(Generic[H]):
    """The beams of B streams, and the counts of `GreedyState`."""

    beams: list[Beam[H]]
    frames: Tensor
    ahead: Tensor

    @classmethod
    def of(cls, beams: list[Beam[H]], device: torch.device) -> "BeamState[H]":
        """The state before the first frame."""
        zeros = torch.zeros(len(beams), dtype=torch.long, device=device)
        return cls(beams, zeros, zeros.clone())

    def rows(self, index: Tensor) -> "BeamState[H]":
        """The state of some of the streams, copied: index (R,)."""
        beams = [replace(self.beams[i]) for i in index.tolist()]
        return BeamState(beams, self.frames[index], self.ahead[index])

    def write(self, index: Tensor, rows: "BeamState[H]") -> None:
        """Put back what `rows` returned: row r becomes stream index[r]."""
        for stream, beam in zip(index.tolist(), rows.beams, strict=True):
            self.beams[stream] = beam
        self.frames[index], self.ahead[index] = rows.frames, rows.ahead

    def flush(self) -> list[Hypothesis]:
        """The remaining tokens of each stream where its text ends or is locked.

        The search continues with the best hypothesis of each stream.
        """
        return [beam.finish() for beam in self.beams]

    def tensors(self) -> NoReturn:
        """Raises StateError: beams are not saved."""
        raise StateError("a stream decoded with a beam cannot be saved; use greedy search")

    def restore(self, saved: Mapping[str, Tensor]) -> NoReturn:
        """Raises StateError: beams are not saved."""
        raise StateError("a stream decoded with a beam cannot be resumed; use greedy search")


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))
