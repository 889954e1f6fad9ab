"""What a fine-tuning is asked to do, and what is chosen where it is not asked."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pianissimo.errors import OptionError
from pianissimo.train.loop import TrainConfig
from pianissimo.train.precision import Precision

SMALL_MODEL_PARAMETERS = 100_000_000
"""Up to here a model is trained whole unless asked otherwise, above by LoRA."""
EPOCHS, FEWEST_STEPS, MOST_STEPS = 20, 400, 20_000
BATCHES_PER_EPOCH = 20
BATCH_SECONDS = (20.0, 120.0)
VALIDATIONS = 12
L2SP = 0.1
"""Of 0.1 and 1 the one that costs the new data little; docs/training.md has the numbers."""

Method = Literal["full", "heads", "lora"]


@dataclass(frozen=True)
class FinetuneOptions:
    """What to do; what is None is chosen from the model and the amount of data.

    `method` "full" trains everything, "heads" all but the encoder, "lora" the heads and a LoRA of
    `rank` in the encoder. `replay` is a manifest of older data of which `replay_share` of the
    seconds come; `regression` one whose errors count as much as those of `val`. `l2sp` and `ewc`
    are strengths of the pull toward the original weights; EWC needs `replay`. What is saved lies
    `blend` of the way from the original weights to the best ones, as far as validation chooses if
    that is None (or all the way, with the kin of wav2vec 2.0). `quiet_speech` makes recordings far,
    noisy and quiet, see `QuietAugmenter`, and validates such twins too. Faulty lines stop
    everything, or are left out with `skip_faulty`.
    """

    manifest: Path
    val: Path
    out: Path
    model: str | None = None
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
            raise OptionError("quiet speech is made by augmentation: leave one of the two out")
        if self.method != "lora" and self.rank is not None:
            raise OptionError("a rank is for LoRA only")
        if (self.l2sp or 0.0) < 0 or self.ewc < 0 or (self.l2sp and self.ewc):
            raise OptionError("choose one of L2-SP and EWC, with a strength above 0")
        if self.ewc and self.replay is None:
            raise OptionError("EWC needs older data to see what matters to it: add --replay")
        if not 0 < self.replay_share < 1:
            raise OptionError(f"the replay share is {self.replay_share:g}: choose between 0 and 1")
        if self.blend is not None and not 0 < self.blend <= 1:
            raise OptionError(f"the blend is {self.blend:g}: choose above 0, up to 1")


@dataclass(frozen=True)
class FinetunePlan:
    """What was asked for or chosen: method, dials, seconds of a batch, and the pull of L2-SP."""

    method: Method
    config: TrainConfig
    batch_seconds: float
    l2sp: float

    def render(self) -> str:
        """In one line."""
        config = self.config
        return (
            f"training {self.method}: {config.steps} steps of "
            f"{self.batch_seconds * config.accumulate:.0f} s at a peak rate of "
            f"{config.peak_lr:.1e}, errors every {config.validate_every} steps"
            + (f", L2-SP {self.l2sp:g}" if self.l2sp else "")
        )


def make_plan(options: FinetuneOptions, parameters: int, seconds: float) -> FinetunePlan:
    """Fill in what was not asked for, by the size of the model and the amount of new data."""
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
    """The method asked for, or the one that suits the size of the model."""
    small = parameters <= SMALL_MODEL_PARAMETERS
    method = options.method or ("full" if small else "lora")
    if method == "lora" and (options.l2sp or options.ewc):
        raise OptionError("L2-SP and EWC hold whole weights: use them with --full or --freeze")
    return method


def choose_pull(options: FinetuneOptions, method: Method) -> float:
    """The strength of L2-SP: what was asked for, or a mild one where nothing else holds."""
    if options.l2sp is not None:
        return options.l2sp
    held = method == "lora" or options.ewc or options.replay is not None
    return 0.0 if held else L2SP


def choose_rate(method: Method, parameters: int) -> float:
    """A peak learning rate: larger models take smaller steps, LoRA and heads larger ones."""
    if method != "full":
        return 5e-4
    return min(1e-3, max(2e-5, 1e-4 * math.sqrt(30e6 / parameters)))
