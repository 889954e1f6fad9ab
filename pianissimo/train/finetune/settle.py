"""What a loss does not choose, chosen by word errors: how sure to be of silence, how far to go.

Training on little data makes a transducer surer of saying nothing, in what it learns and more so in
all else. And weights on the way back to where they began keep most of what was learned and regain
what was forgotten (Wortsman et al. 2022, arXiv 2109.01903).
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
"""The share of a fine-tuning's gain that is to stay on the way back."""


@dataclass(frozen=True)
class Settled:
    """What was taken off the blank's score, and how far from the original the weights lie."""

    blank_discount: float
    blend: float

    def render(self) -> str:
        """In one line."""
        return (
            f"saved: {self.blend:.0%} of the way from the original weights to the best ones, "
            f"{self.blank_discount:g} taken off the blank's score"
        )


def settle(
    model: AsrModel, original: AsrModel, share: float | None, validate: Validate, stop: EarlyStop
) -> Settled:
    """Move a model that holds the best weights of its training; what was done.

    The blank's score is lowered as long as there are fewer errors. Then the weights go back to
    `share` of the way from the original or, without one, as far as 90 % of the gain stays.
    """
    errors, discount = mean_rate(stop.best), 0.0
    while model.joiner is not None and discount < MOST_DISCOUNT:
        candidate = copy.deepcopy(model)
        discount_blank(candidate, DISCOUNT_STEP)
        found = mean_rate(validate(candidate))
        if found >= errors:
            break
        errors, discount = found, discount + DISCOUNT_STEP
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
    """Take `amount` off the score of the blank of a transducer."""
    assert model.joiner is not None
    model.joiner.out.bias[model.config.vocab_size] -= amount
