"""`pianissimo finetune`: adapt a model to your recordings."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pianissimo.cli.command import command
from pianissimo.cli.options import (
    DeviceOption,
    MinutesOption,
    TensorboardOption,
    minutes_limit,
)
from pianissimo.cli.output import SOME_FAILED, emit, say
from pianissimo.errors import OptionError
from pianissimo.zoo.catalog import DEFAULT, EMBEDDED

if TYPE_CHECKING:
    from pianissimo.train.finetune.plan import FinetuneOptions


@dataclass(frozen=True)
class DataOptions:
    """Training and validation data, and the folder of the new model."""

    manifest: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Training manifest: JSON lines with audio_filepath, duration and text.",
        ),
    ]
    val: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Validation manifest, with other speakers."),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the new model; an interrupted run in it is resumed."
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Model name (see `pianissimo models list`), model folder or .nemo file "
            f"[default: {EMBEDDED}; with --live {DEFAULT}].",
        ),
    ] = None
    check_only: Annotated[
        bool,
        typer.Option(
            "--check-only",
            allow_from_autoenv=False,
            help="Check the data and exit; exit code 3 if lines are faulty.",
        ),
    ] = False
    skip_faulty: Annotated[bool, typer.Option("--skip-faulty", help="Skip faulty lines.")] = False
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Manifest of older data to train on as well, against forgetting."
        ),
    ] = None
    replay_share: Annotated[
        float, typer.Option(metavar="X", help="Share of --replay in the training audio.")
    ] = 0.5
    regression: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Manifest of general data, validated with the same weight as --val.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.out is None and not self.check_only:
            raise OptionError("--out is missing: the folder of the new model")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise OptionError(f"--out {self.out} is not a folder")


@dataclass(frozen=True)
class MethodOptions:
    """Which weights are trained, and how."""

    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Distill a Whisper [default: the built-in one] into short chunks, for live "
            "streams with 160 to 1120 ms of latency. Needs no transcripts and no --val.",
        ),
    ] = False
    full: Annotated[
        bool, typer.Option("--full", help="Train all weights [default up to 100 M parameters].")
    ] = False
    freeze: Annotated[
        Literal["encoder"] | None, typer.Option(help="Freeze the encoder, train the heads.")
    ] = None
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK",
            min=1,
            help="Train the heads and a LoRA of the encoder, merged when saved "
            "[default above 100 M parameters: rank 16].",
        ),
    ] = None
    lr: Annotated[
        float | None,
        typer.Option(metavar="X", help="Peak learning rate [default: by model size]."),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Maximum training steps [default: by data size]."),
    ] = None
    validate_every: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Steps between validations [default: 1/12 of --steps]."
        ),
    ] = None
    patience: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Stop after N validations without improvement in any latency mode.",
        ),
    ] = 4
    augment: Annotated[bool, typer.Option(help="Augment speed, level, noise and room.")] = True
    quiet_speech: Annotated[
        bool,
        typer.Option(help="Also train and validate on distant, noisy, 10 to 40 dB quieter speech."),
    ] = False

    def __post_init__(self) -> None:
        if sum((self.full, self.freeze is not None, self.lora is not None)) > 1:
            raise OptionError("choose one of --full, --freeze and --lora")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise OptionError(f"--lr must be above 0, but is {self.lr:g}")

    @property
    def method(self) -> Literal["full", "heads", "lora"] | None:
        """The requested method; None for the default of the model's size."""
        if self.full:
            return "full"
        if self.freeze:
            return "heads"
        return "lora" if self.lora else None


@dataclass(frozen=True)
class ResourceOptions:
    """Memory, time and device."""

    batch_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=1.0, help="Seconds of audio per batch; lower it to save memory."
        ),
    ] = None
    accumulate: Annotated[
        int, typer.Option(metavar="N", min=1, help="Batches per step (gradient accumulation).")
    ] = 1
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(help="Compute dtype (weights stay float32)."),
    ] = "auto"
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute", help="Save memory by computing layers twice (gradient checkpointing)."
        ),
    ] = False
    minutes: MinutesOption = None
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed.")] = 1
    workers: Annotated[int, typer.Option(metavar="N", min=0, help="Data loading processes.")] = 1
    tensorboard: TensorboardOption = False
    device: DeviceOption = "auto"


@command
def finetune(data: DataOptions, method: MethodOptions, resources: ResourceOptions) -> None:
    """Fine-tune a model and report WER before and after.

    Every line of the data is checked first. The weights with the fewest errors on --val are kept;
    errors are those of live streams in every latency mode. Run the same command again to resume.
    Several GPUs: torchrun --nproc-per-node N -m pianissimo finetune ... Further settings, such as
    EWC, L2-SP, weight blending and a learning rate search, are in Python: see docs/training.md.
    """
    minutes = minutes_limit(resources.minutes)
    if method.live:
        _distill(data, method, resources, minutes)
        return
    if data.val is None:
        raise OptionError("--val is missing: a validation manifest")
    from pianissimo.train.finetune import run
    from pianissimo.zoo.load import choose_device

    options = _options(data, method, resources)
    if data.check_only:
        report, sound = run.check_data(options)
        emit(report + "\n")
        if not sound:
            raise typer.Exit(SOME_FAILED)
        return
    result = run.finetune(
        options,
        device=str(choose_device(resources.device)),
        minutes=minutes,
        tensorboard=resources.tensorboard,
        say=say,
    )
    if result is not None:
        from pianissimo.train.finetune.material import RUN

        emit(result.render() + "\n")
        say(f"model: {data.out}; log and report: {options.out / RUN}")


def _distill(
    data: DataOptions, method: MethodOptions, resources: ResourceOptions, minutes: float
) -> None:
    unused = {
        "--val": data.val is not None,
        "--replay": data.replay is not None,
        "--regression": data.regression is not None,
        "--check-only": data.check_only,
        "--full, --freeze or --lora": method.method is not None,
        "--quiet-speech": method.quiet_speech,
        "--batch-seconds": resources.batch_seconds is not None,
    }
    given = [name for name, is_given in unused.items() if is_given]
    if given:
        raise OptionError(f"--live does not use {given[0]}; remove it")
    assert data.out is not None
    from pianissimo.train.distill import RUN, DistillOptions, distill
    from pianissimo.zoo.load import choose_device

    defaults = DistillOptions(data.manifest, data.out)
    options = DistillOptions(
        manifest=data.manifest,
        out=data.out,
        model=data.model,
        steps=method.steps or defaults.steps,
        minutes=minutes,
        rate=method.lr or defaults.rate,
        damaged=1.0 if method.augment else 0.0,
        precision=resources.precision,
        seed=resources.seed,
    )
    distill(options, choose_device(resources.device), tensorboard=resources.tensorboard)
    say(f"model: {data.out}; log: {data.out / RUN}")


def _options(
    data: DataOptions, method: MethodOptions, resources: ResourceOptions
) -> "FinetuneOptions":
    from pianissimo.train.finetune.plan import FinetuneOptions

    assert data.val is not None
    return FinetuneOptions(
        manifest=data.manifest,
        val=data.val,
        out=data.out or Path(os.devnull),
        model=data.model or EMBEDDED,
        method=method.method,
        rank=method.lora,
        lr=method.lr,
        steps=method.steps,
        batch_seconds=resources.batch_seconds,
        accumulate=resources.accumulate,
        precision=resources.precision,
        recompute=resources.recompute,
        validate_every=method.validate_every,
        patience=method.patience,
        augment=method.augment,
        quiet_speech=method.quiet_speech,
        replay=data.replay,
        replay_share=data.replay_share,
        regression=data.regression,
        skip_faulty=data.skip_faulty,
        seed=resources.seed,
        workers=resources.workers,
    )
