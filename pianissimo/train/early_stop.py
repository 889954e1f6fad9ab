"""Early stopping: when to stop training and which weights to keep, by validation scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

ScoreRecord: TypeAlias = dict[str, float] | int
"""A field of the record: scores by name, or a count."""


@dataclass
class EarlyStop:
    """The record of the validations and the best weights; part of a checkpoint.

    Scores are error rates by name, one for each latency mode. The best weights have the lowest
    mean. Training is over once no single score reached a new low in `patience` validations.
    """

    patience: int
    first: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    lowest: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def note(self, step: int, scores: dict[str, float], weights: Mapping[str, Tensor]) -> None:
        """Record the scores of a step and, if they are the best, a copy of its weights."""
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

    def state(self) -> dict[str, ScoreRecord]:
        """Everything but patience and weights, for JSON."""
        return {
            "first": self.first,
            "best": self.best,
            "best_step": self.best_step,
            "lowest": self.lowest,
            "stale": self.stale,
        }

    def restore(self, state: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Restore a `state`, with the best weights."""
        self.first, self.best = dict(state["first"]), dict(state["best"])
        self.best_step, self.stale = int(state["best_step"]), int(state["stale"])
        self.lowest, self.weights = dict(state["lowest"]), weights


def mean_rate(scores: dict[str, float]) -> float:
    """The mean error rate over sets and latency modes."""
    return sum(scores.values()) / max(1, len(scores))
