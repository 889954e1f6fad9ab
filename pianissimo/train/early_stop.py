"""When to stop training, and which weights to keep, by the validations so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class EarlyStop:
    """What the validations said so far; part of a checkpoint, the best weights included.

    Scores are error rates by name, one for each latency mode. The best weights have the lowest
    mean; training is over once no single score has found a new low for `patience` validations.
    """

    patience: int
    first: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    lowest: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def note(self, step: int, scores: dict[str, float], weights: Mapping[str, Tensor]) -> None:
        """Take the scores of a step and, if they are the best, a copy of its weights."""
        if not self.first:
            self.first = dict(scores)
        better = [name for name in scores if scores[name] < self.lowest.get(name, math.inf)]
        self.lowest |= {name: scores[name] for name in better}
        self.stale = 0 if better else self.stale + 1
        if not self.best or mean_rate(scores) < mean_rate(self.best):
            self.best, self.best_step = dict(scores), step
            self.weights = {name: t.detach().cpu().clone() for name, t in weights.items()}

    @property
    def over(self) -> bool:
        """Whether it is time to stop."""
        return self.stale >= self.patience

    def state(self) -> dict[str, Any]:
        """Everything but patience and weights, for JSON."""
        return {
            "first": self.first,
            "best": self.best,
            "best_step": self.best_step,
            "lowest": self.lowest,
            "stale": self.stale,
        }

    def restore(self, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.first, self.best = dict(state["first"]), dict(state["best"])
        self.best_step, self.stale = int(state["best_step"]), int(state["stale"])
        self.lowest, self.weights = dict(state["lowest"]), weights


def mean_rate(scores: dict[str, float]) -> float:
    """The mean error rate over sets and latency modes."""
    return sum(scores.values()) / max(1, len(scores))
