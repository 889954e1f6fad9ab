"""Learning rate range test: raise the rate step by step and record the loss (Smith 2015)."""

import csv
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.checkpoint import TrainingProgress
from pianissimo.train.config import TrainConfig
from pianissimo.train.finetune.adapt import trained_weights
from pianissimo.train.loop import (
    Gradients,
    Stage,
    draw_lookahead,
    epoch_loader,
    groups,
    make_optimizer,
)
from pianissimo.train.parallel import ALONE
from pianissimo.train.precision import Mixed

LOWEST, HIGHEST = 1e-6, 1.0
MEMORY = 0.9
"""Decay of the smoothed loss per step."""
DIVERGED = 3.0
"""The test ends once the smoothed loss is this multiple of its lowest value."""
BACK = 10.0
"""The factor by which the suggestion is below the rate of the lowest loss."""


@dataclass(frozen=True)
class RateCurve:
    """The loss at each rate, plain and smoothed."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        """A tenth of the rate at which the smoothed loss was lowest."""
        lowest = min(range(len(self.rates)), key=self.smoothed.__getitem__)
        return self.rates[lowest] / BACK

    def write(self, path: Path) -> None:
        """Write it as CSV."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("lr", "loss", "smoothed"))
            table.writerows(zip(self.rates, self.losses, self.smoothed, strict=True))


def smoothed(losses: list[float]) -> list[float]:
    """Exponential means from the first loss on, without bias toward zero (Kingma and Ba 2015)."""
    means, mean = [], 0.0
    for i, loss in enumerate(losses, 1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        means.append(mean / (1 - MEMORY**i))
    return means


def find_rate(
    config: TrainConfig,
    model: AsrModel,
    tokenizer: Tokenizer,
    stage: Stage,
    *,
    device: str = "cpu",
    steps: int = 100,
) -> RateCurve:
    """Train for up to `steps` steps while the rate grows from LOWEST to HIGHEST.

    The weights are useless afterwards. Raises OptionError if the loss was never finite.
    """
    model.to(device).train()
    mixed = Mixed(config.precision, device)
    optimizer = make_optimizer(model, config)
    gradients = Gradients(model, config, ALONE, mixed)
    modes = stage.lookaheads or model.config.encoder.lookaheads
    batches = itertools.chain.from_iterable(
        epoch_loader(config, model, tokenizer, stage, TrainingProgress(epoch=epoch), device)
        for epoch in itertools.count()
    )
    rates: list[float] = []
    losses: list[float] = []
    for step, group in enumerate(itertools.islice(groups(batches, config.accumulate), steps)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / max(1, steps - 1))
        for settings in optimizer.param_groups:
            settings["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        moved = [batch.to(torch.device(device)) for batch in group]
        parts = gradients.fill(moved, draw_lookahead(modes, config.seed, step), step)
        loss = float(parts["loss"])
        if not math.isfinite(loss):
            break
        rates.append(rate)
        losses.append(loss)
        means = smoothed(losses)
        if means[-1] > DIVERGED * min(means):
            break
        mixed.unscale(optimizer)
        torch.nn.utils.clip_grad_norm_(trained_weights(model).values(), config.clip_norm)
        mixed.step(optimizer)
        mixed.update()
    if not losses:
        raise OptionError("the first loss is not finite; check the data and the precision")
    return RateCurve(tuple(rates), tuple(losses), tuple(smoothed(losses)))
