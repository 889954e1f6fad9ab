"""Choices by word error rate after training: the score of the blank, and blended weights.

Training on little data raises the probability of blanks in a transducer, on the new data and more
so on other data. Weights between the original and the trained ones keep most of the gain and forget
less (Wortsman et al. 2022, arXiv 2109.01903).
"""

import copy
from dataclasses import dataclass

import torch

from pianissimo.models.asr import AsrModel
from pianissimo.train.early_stop import EarlyStop, mean_rate
from pianissimo.train.finetune.adapt import blend
from pianissimo.train.validate import Validate

DISCOUNT_STEP, MOST_DISCOUNT = 0.5, 1.5
BLENDS = (0.9, 0.8, 0.7)
KEPT_GAIN = 0.9
"""The share of the gain that blended weights must keep."""


@dataclass(frozen=True)
class Settled:
    """The discount of the blank's score, and the share of the way from the original weights."""

    blank_discount: float
    blend: float

    def render(self) -> str:
        """In one line."""
        return (
            f"saved: {self.blend:.0%} of the way from the original weights to the best ones, "
            f"blank score lowered by {self.blank_discount:g}"
        )


def settle(
    model: AsrModel, original: AsrModel, share: float | None, validate: Validate, stop: EarlyStop
) -> Settled:
    """Change a model that has the best weights of its training; returns what was chosen.

    The blank's score is lowered as long as errors decrease. Then the weights are blended with the
    original ones: to `share` of the way or, without it, as far as 90 % of the gain is kept.
    """
    errors, discount = mean_rate(stop.best), 0.0
    while model.joiner is not None and discount < MOST_DISCOUNT:
        candidate = copy.deepcopy(model)
        discount_blank(candidate, DISCOUNT_STEP)
        rate = mean_rate(validate(candidate))
        if rate >= errors:
            break
        errors, discount = rate, discount + DISCOUNT_STEP
        discount_blank(model, DISCOUNT_STEP)
    if share is None:
        share = choose_blend(model, original, validate, errors, mean_rate(stop.first))
    blend(model, original, share)
    return Settled(discount, share)


def choose_blend(
    model: AsrModel, original: AsrModel, validate: Validate, errors: float, before: float
) -> float:
    """The smallest of BLENDS that keeps 90 % of the gain, or 1."""
    most, kept = before - KEPT_GAIN * (before - errors), 1.0
    for share in BLENDS:
        candidate = copy.deepcopy(model)
        blend(candidate, original, share)
        if mean_rate(validate(candidate)) > most:
            break
        kept = share
    return kept


@torch.no_grad()
def discount_blank(model: AsrModel, amount: float) -> None:
    """Lower the score of a transducer's blank by `amount`."""
    assert model.joiner is not None
    model.joiner.out.bias[model.config.vocab_size] -= amount
