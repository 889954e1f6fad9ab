"""`pianissimo finetune`: adapt a model to recordings of one's own."""

import math
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pianissimo.cli.options import DeviceOption, ModelOption
from pianissimo.cli.output import SOME_FAILED, emit, say
from pianissimo.errors import OptionError


def finetune(
    manifest: Annotated[
        Path,
        typer.Option(
            envvar="PIANISSIMO_MANIFEST",
            help="Training data: JSON lines with audio_filepath, duration and text.",
        ),
    ],
    val: Annotated[
        Path, typer.Option(envvar="PIANISSIMO_VAL", help="Validation data, of other speakers.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            envvar="PIANISSIMO_OUT",
            help="Folder of the new model; an interrupted run in it is continued.",
        ),
    ] = None,
    model: ModelOption = None,
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Only look at the data; exit code 3 for faults.")
    ] = False,
    skip_faulty: Annotated[
        bool,
        typer.Option(
            "--skip-faulty", envvar="PIANISSIMO_SKIP_FAULTY", help="Leave faulty lines out."
        ),
    ] = False,
    find_lr: Annotated[
        bool,
        typer.Option("--find-lr", help="Only try learning rates: a curve and a suggestion."),
    ] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="Train all weights [default up to 100 M parameters]."),
    ] = False,
    freeze: Annotated[
        Literal["encoder"] | None,
        typer.Option(envvar="PIANISSIMO_FREEZE", help="Train the heads only."),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            envvar="PIANISSIMO_LORA",
            metavar="RANK",
            min=1,
            help="Train the heads and a low-rank change of the encoder, merged when saved "
            "[default above 100 M parameters, with rank 16].",
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(envvar="PIANISSIMO_LR", help="Peak learning rate [default: by the model]."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            envvar="PIANISSIMO_STEPS", min=1, help="Most steps [default: by the amount of data]."
        ),
    ] = None,
    batch_seconds: Annotated[
        float | None,
        typer.Option(
            envvar="PIANISSIMO_BATCH_SECONDS", min=1.0, help="Audio in a batch: less needs less."
        ),
    ] = None,
    accumulate: Annotated[
        int, typer.Option(envvar="PIANISSIMO_ACCUMULATE", min=1, help="Batches in a step.")
    ] = 1,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        typer.Option(envvar="PIANISSIMO_PRECISION", help="Of products; weights are float32."),
    ] = "auto",
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute",
            envvar="PIANISSIMO_RECOMPUTE",
            help="Compute each layer twice instead of keeping what it computed.",
        ),
    ] = False,
    validate_every: Annotated[
        int | None,
        typer.Option(
            envvar="PIANISSIMO_VALIDATE_EVERY",
            min=1,
            help="Steps between validations [default: a twelfth].",
        ),
    ] = None,
    patience: Annotated[
        int,
        typer.Option(
            envvar="PIANISSIMO_PATIENCE",
            min=1,
            help="Stop after as many validations in which no latency mode improved.",
        ),
    ] = 4,
    augment: Annotated[
        bool, typer.Option(envvar="PIANISSIMO_AUGMENT", help="Vary speed, level, noise and room.")
    ] = True,
    quiet_speech: Annotated[
        bool,
        typer.Option(
            envvar="PIANISSIMO_QUIET_SPEECH",
            help="Make recordings far, noisy and 10 to 40 dB quieter, as QuietBench does.",
        ),
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(
            envvar="PIANISSIMO_REPLAY", help="Older data to train on as well, against forgetting."
        ),
    ] = None,
    replay_share: Annotated[
        float,
        typer.Option(envvar="PIANISSIMO_REPLAY_SHARE", help="Its share of the seconds."),
    ] = 0.5,
    regression: Annotated[
        Path | None,
        typer.Option(
            envvar="PIANISSIMO_REGRESSION",
            help="General data whose word errors count as much as those of --val.",
        ),
    ] = None,
    l2sp: Annotated[
        float | None,
        typer.Option(
            envvar="PIANISSIMO_L2SP",
            min=0.0,
            help="Strength of a pull to the original weights [default: 0.1; 0 with --lora, "
            "--replay or --ewc].",
        ),
    ] = None,
    ewc: Annotated[
        float,
        typer.Option(
            envvar="PIANISSIMO_EWC",
            min=0.0,
            help="The same, but weights count as far as --replay depends on them.",
        ),
    ] = 0.0,
    blend: Annotated[
        float | None,
        typer.Option(
            envvar="PIANISSIMO_BLEND",
            help="How far from the original weights to the best ones those lie that are saved: "
            "0.8 forgets less [default: as little as keeps 90 % of the gain].",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            envvar="PIANISSIMO_MINUTES",
            help="Stop after that time, with a checkpoint [default: never].",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(envvar="PIANISSIMO_SEED")] = 1,
    workers: Annotated[
        int, typer.Option(envvar="PIANISSIMO_WORKERS", min=0, help="Processes that make batches.")
    ] = 1,
    tensorboard: Annotated[
        bool,
        typer.Option(envvar="PIANISSIMO_TENSORBOARD", help="Also write TensorBoard files."),
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Fine-tune a model, keep the weights with the fewest errors, and say what it brought.

    Data is checked first, line by line. The same command again goes on where it was interrupted.
    Word errors are those of live streams in every latency mode. With several GPUs: torchrun
    --nproc-per-node N -m pianissimo finetune ...
    """
    if sum((full, freeze is not None, lora is not None)) > 1:
        raise OptionError("choose one of --full, --freeze and --lora")
    if minutes is not None and not minutes > 0:
        raise OptionError(f"--minutes must be above 0, but is {minutes:g}")
    if lr is not None and not 0 < lr < math.inf:
        raise OptionError(f"--lr must be above 0, but is {lr:g}")
    if out is None and not check_only:
        raise OptionError("--out is missing: the folder of the new model")
    if out is not None and out.exists() and not out.is_dir():
        raise OptionError(f"--out {out} is not a folder")
    from pianissimo.train.finetune import run
    from pianissimo.train.finetune.material import RUN
    from pianissimo.train.finetune.plan import FinetuneOptions
    from pianissimo.zoo.load import choose_device

    options = FinetuneOptions(
        manifest=manifest,
        val=val,
        out=out or Path(os.devnull),
        model=model,
        method="full" if full else "heads" if freeze else "lora" if lora else None,
        rank=lora,
        lr=lr,
        steps=steps,
        batch_seconds=batch_seconds,
        accumulate=accumulate,
        precision=precision,
        recompute=recompute,
        validate_every=validate_every,
        patience=patience,
        augment=augment,
        quiet_speech=quiet_speech,
        replay=replay,
        replay_share=replay_share,
        regression=regression,
        l2sp=l2sp,
        ewc=ewc,
        blend=blend,
        skip_faulty=skip_faulty,
        seed=seed,
        workers=workers,
    )
    if check_only:
        report, sound = run.check_data(options)
        emit(report + "\n")
        if not sound:
            raise typer.Exit(SOME_FAILED)
        return
    chosen = str(choose_device(device))
    if find_lr:
        curve = run.find_learning_rate(options, device=chosen, say=say)
        path = options.out / RUN / run.RATE_CURVE
        emit(f"suggested: --lr {curve.suggestion:.1e} (the curve is in {path})\n")
        return
    result = run.finetune(
        options,
        device=chosen,
        minutes=math.inf if minutes is None else minutes,
        tensorboard=tensorboard,
        say=say,
    )
    if result is not None:
        emit(result.render() + "\n")
        say(f"the model is in {out}; what happened in {options.out / RUN}")
