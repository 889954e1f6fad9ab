"""The hyperparameters of a run, and its learning rate."""

import math
from dataclasses import dataclass

from pianissimo.train.precision import Precision


@dataclass(frozen=True)
class TrainConfig:
    """The hyperparameters of a run.

    `transducer_from` is the step at which the transducer loss is added to the CTC loss, whose
    weight is then `ctc_weight`. The learning rate stays at its peak until `flat_until`.
    `accumulate` batches make one step. With `recompute` a layer stores only its input for the
    backward pass. With `patience` training stops after that number of validations in a row without
    improvement, and the best weights are kept.
    """

    steps: int
    peak_lr: float = 1.5e-3
    final_lr_share: float = 0.02
    warmup_steps: int = 500
    flat_until: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 5.0
    ctc_weight: float = 0.3
    transducer_from: int = 0
    ema_decay: float = 0.999
    seed: int = 1
    save_every: int = 200
    validate_every: int = 500
    report_every: int = 50
    workers: int = 1
    accumulate: int = 1
    precision: Precision = "auto"
    recompute: bool = False
    patience: int | None = None


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, the peak until `flat_until`, a cosine to `final_lr_share` of the peak."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    falls_from = max(config.warmup_steps, config.flat_until)
    done = (step - falls_from) / max(1, config.steps - falls_from)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))
    return config.peak_lr * (config.final_lr_share + (1 - config.final_lr_share) * cosine)
