"""Tokens of a search result: their ids, frames, log-probabilities and confidences."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a hypothesis; see `Hypothesis` for the numbers."""

    id: int
    frame: int
    log_prob: float
    confidence: float


@dataclass
class Hypothesis:
    """Tokens of one stream or recording, in order.

    `frames` are encoder frames counted from the start of the stream, `log_probs` natural logarithms
    of each token's probability where it was emitted, `confidences` lie in [0, 1].
    """

    tokens: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Log-probability of the tokens, without that of the blanks."""
        return sum(self.log_probs)

    def append(self, token: int, frame: int, log_prob: float, confidence: float) -> None:
        self.tokens.append(token)
        self.frames.append(frame)
        self.log_probs.append(log_prob)
        self.confidences.append(confidence)

    def extend(self, other: "Hypothesis") -> None:
        """Append the tokens of a later chunk of the same stream."""
        self.tokens += other.tokens
        self.frames += other.frames
        self.log_probs += other.log_probs
        self.confidences += other.confidences

    def take(self, places: Sequence[int]) -> "Hypothesis":
        """The tokens at these places alone."""
        return Hypothesis(
            [self.tokens[i] for i in places],
            [self.frames[i] for i in places],
            [self.log_probs[i] for i in places],
            [self.confidences[i] for i in places],
        )

    def without(self, ids: Container[int]) -> "Hypothesis":
        """The tokens that are none of these."""
        kept = [i for i, token in enumerate(self.tokens) if token not in ids]
        return self if len(kept) == len(self.tokens) else self.take(kept)

    def split(self, at: int) -> tuple["Hypothesis", "Hypothesis"]:
        """The first `at` tokens, and the others."""
        first = Hypothesis(
            self.tokens[:at], self.frames[:at], self.log_probs[:at], self.confidences[:at]
        )
        return first, Hypothesis(
            self.tokens[at:], self.frames[at:], self.log_probs[at:], self.confidences[at:]
        )
