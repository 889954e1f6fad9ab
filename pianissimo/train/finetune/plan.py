"""Options of a fine-tuning, and the choices for options that are not set."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pianissimo.errors import OptionError
from pianissimo.train.config import TrainConfig
from pianissimo.train.precision import Precision
from pianissimo.zoo.catalog import EMBEDDED

SMALL_MODEL_PARAMETERS = 100_000_000
"""Models up to this size are trained in full by default, larger ones by LoRA."""
EPOCHS, FEWEST_STEPS, MOST_STEPS = 20, 400, 20_000
BATCHES_PER_EPOCH = 20
BATCH_SECONDS = (20.0, 120.0)
VALIDATIONS = 12
L2SP = 0.1
"""Of 0.1 and 1 the one with little loss on new data; docs/training.md has the numbers."""

Method = Literal["full", "heads", "lora"]


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of a fine-tuning; None is chosen from the model and the amount of data.

    `method` "full" trains all weights, "heads" all but the encoder, "lora" the heads and a LoRA of
    `rank` in the encoder. `replay` is a manifest of older data that makes up `replay_share` of the
    seconds; `regression` is a manifest whose errors count as much as those of `val`. `l2sp` and
    `ewc` are strengths of regularization toward the original weights; EWC needs `replay`. The saved
    weights are at `blend` of the way from the original to the best ones; None lets validation
    choose, and is 1 for the wav2vec 2.0 family. `quiet_speech` makes recordings far, noisy and
    quiet, see `QuietAugmenter`, and also validates quiet copies. Faulty lines raise an error, or
    are skipped with `skip_faulty`.
    """

    manifest: Path
    val: Path
    out: Path
    model: str = EMBEDDED
    method: Method | None = None
    rank: int | None = None
    lr: float | None = None
    steps: int | None = None
    batch_seconds: float | None = None
    accumulate: int = 1
    precision: Precision = "auto"
    recompute: bool = False
    validate_every: int | None = None
    patience: int = 4
    augment: bool = True
    quiet_speech: bool = False
    replay: Path | None = None
    replay_share: float = 0.5
    regression: Path | None = None
    l2sp: float | None = None
    ewc: float = 0.0
    blend: float | None = None
    skip_faulty: bool = False
    seed: int = 1
    workers: int = 1

    def __post_init__(self) -> None:
        if self.quiet_speech and not self.augment:
            raise OptionError("quiet_speech needs augment; remove one of the two options")
        if self.method != "lora" and self.rank is not None:
            raise OptionError("rank needs the method lora")
        if (self.l2sp or 0.0) < 0 or self.ewc < 0 or (self.l2sp and self.ewc):
            raise OptionError("choose one of l2sp and ewc, with a strength above 0")
        if self.ewc and self.replay is None:
            raise OptionError("ewc needs older data; set replay")
        if not 0 < self.replay_share < 1:
            raise OptionError(f"replay_share must be between 0 and 1, not {self.replay_share:g}")
        if self.blend is not None and not 0 < self.blend <= 1:
            raise OptionError(f"blend must be above 0 and at most 1, not {self.blend:g}")


@dataclass(frozen=True)
class FinetunePlan:
    """The requested or chosen method, configuration, seconds per batch, and strength of L2-SP."""

    method: Method
    config: TrainConfig
    batch_seconds: float
    l2sp: float

    def render(self) -> str:
        """One line of text."""
        config = self.config
        return (
            f"training {self.method}: {config.steps} steps of "
            f"{self.batch_seconds * config.accumulate:.0f} s at a peak rate of "
            f"{config.peak_lr:.1e}, errors every {config.validate_every} steps"
            + (f", L2-SP {self.l2sp:g}" if self.l2sp else "")
        )


def make_plan(options: FinetuneOptions, parameters: int, seconds: float) -> FinetunePlan:
    """Choose what is not set, by the size of the model and the amount of new data."""
    method = choose_method(options, parameters)
    low, high = BATCH_SECONDS
    batch = options.batch_seconds or min(high, max(low, seconds / BATCHES_PER_EPOCH))
    epoch = max(1, round(seconds / batch / options.accumulate))
    steps = options.steps or min(MOST_STEPS, max(FEWEST_STEPS, EPOCHS * epoch))
    every = options.validate_every or max(1, steps // VALIDATIONS)
    config = TrainConfig(
        steps=steps,
        peak_lr=options.lr or choose_rate(method, parameters),
        final_lr_share=0.1,
        warmup_steps=min(500, max(1, steps // 10)),
        ema_decay=min(0.999, 1 - 10 / max(steps, 20)),
        clip_norm=2.0,
        seed=options.seed,
        save_every=every,
        validate_every=every,
        report_every=min(every, 10),
        workers=options.workers,
        accumulate=options.accumulate,
        precision=options.precision,
        recompute=options.recompute,
        patience=options.patience,
    )
    return FinetunePlan(method, config, batch, choose_pull(options, method))


def choose_method(options: FinetuneOptions, parameters: int) -> Method:
    """The requested method, or the one for the size of the model."""
    small = parameters <= SMALL_MODEL_PARAMETERS
    method = options.method or ("full" if small else "lora")
    if method == "lora" and (options.l2sp or options.ewc):
        raise OptionError(
            "L2-SP and EWC need whole weights, which LoRA does not train; use --full or --freeze"
        )
    return method


def choose_pull(options: FinetuneOptions, method: Method) -> float:
    """The strength of L2-SP: as requested, or a mild one without other regularization."""
    if options.l2sp is not None:
        return options.l2sp
    regularized = method == "lora" or options.ewc or options.replay is not None
    return 0.0 if regularized else L2SP


def choose_rate(method: Method, parameters: int) -> float:
    """The peak learning rate: lower for larger models, higher for LoRA and heads."""
    if method != "full":
        return 5e-4
    return min(1e-3, max(2e-5, 1e-4 * math.sqrt(30e6 / parameters)))
