"""`pianissimo quietbench`: how well quiet speech is recognized, with gain and without."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pianissimo.cli.options import DeviceOption, DtypeOption, JsonOption, QuietOption
from pianissimo.cli.output import SOME_FAILED, complain, emit, say
from pianissimo.cli.progress import Progress
from pianissimo.errors import OptionError

if TYPE_CHECKING:
    from pianissimo.audio.level import GainMode
    from pianissimo.evaluate.quietbench.clips import Plan, Source

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "audio"
EMBEDDED_SUBSET = "an4"
"""The speech that the embedded model is for: spelled letters, digits and short commands."""
FULL, MINI = (60, 60, 30), (6, 16, 6)
"""Clips per scenario, clips without speech, clips in the sweep of levels."""

app = typer.Typer(
    help="Recognize quiet speech in five scenarios, with gain and without.",
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def quietbench(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            envvar="PIANISSIMO_MODEL",
            metavar="MODEL",
            help="A model as for `transcribe`; may be repeated [default: embedded-en].",
        ),
    ] = None,
    mini: Annotated[
        bool, typer.Option("--mini", envvar="PIANISSIMO_MINI", help="Six clips per scenario.")
    ] = False,
    clips: Annotated[
        int | None,
        typer.Option(envvar="PIANISSIMO_CLIPS", min=1, help="Clips per scenario [default: 60]."),
    ] = None,
    speech: Annotated[
        Path | None,
        typer.Option(
            envvar="PIANISSIMO_SPEECH",
            metavar="PATH",
            help="Clean speech: a manifest, or a folder with manifest.jsonl "
            "[default: the example clips].",
        ),
    ] = None,
    subset: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PIANISSIMO_SUBSET",
            metavar="NAME",
            help="Only recordings of this `subset`; may be repeated.",
        ),
    ] = None,
    gain: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PIANISSIMO_GAIN",
            metavar="MODE",
            help="off, on or auto; may be repeated [default: off and on].",
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            envvar="PIANISSIMO_QUIETBENCH_OUTPUT",
            metavar="DIR",
            help="Where clips, results and the report go; a run goes on from what is there.",
        ),
    ] = Path("quietbench"),
    page: Annotated[
        Path | None,
        typer.Option(
            envvar="PIANISSIMO_PAGE",
            metavar="FILE",
            help="Also put the tables between the marks of this Markdown page.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(envvar="PIANISSIMO_SEED", help="Draws everything.")] = 1,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build quiet, distant, whispered, masked and telephone speech, and count the errors.

    Levels and SNR are exact and the seed is in every record. Killed, it goes on where it was. The
    folder then holds results.jsonl, table.md, sweep.csv, summary.json and report.html.
    """
    if context.invoked_subcommand is not None:
        return
    from pianissimo.audio.vad import SpeechModel, available
    from pianissimo.evaluate.quietbench import report
    from pianissimo.evaluate.quietbench.clips import make_clips, write_manifest
    from pianissimo.evaluate.quietbench.gates import known_or_measured
    from pianissimo.evaluate.quietbench.run import environment, fingerprint, measure_speed, run
    from pianissimo.evaluate.quietbench.tables import markdown
    from pianissimo.zoo.folder import locate
    from pianissimo.zoo.load import load

    modes = _modes(gain)
    plan, origin = _plan(speech, subset or [], model, mini, clips, seed)
    names: list[str | None] = [*(model or [])] or [None]
    recognizers = [load(name, device=device, dtype=dtype) for name in names]
    weights = {
        recognizer.name: fingerprint(recognizer, locate(name))
        for recognizer, name in zip(recognizers, names, strict=True)
    }
    if len(weights) < len(names):
        raise OptionError("two of the models have the same name: rename the folder of one")
    if not quiet:
        say(f"{len(plan.sources)} clips per scenario of {origin}")
    shown = not quiet and sys.stderr.isatty()
    with Progress("building", sum(1 for _ in plan.jobs()), shown=shown) as progress:
        built, faults = make_clips(plan, output / "audio", progress.advance)
    for fault in faults:
        complain(fault)
    if not built:
        raise OptionError(f"no clip could be built from {origin}")
    write_manifest(built, output / "clips.jsonl")
    count = len(recognizers) * len(modes) * len(built)
    with Progress("recognizing", count, shown=shown) as progress:
        results = run(
            recognizers, built, output, gains=modes, weights=weights, advance=progress.advance
        )
    speeds = [measure_speed(one, built, mode) for one in recognizers for mode in modes]
    about = {**environment(recognizers, weights), "speech": origin, "seed": seed}
    with Progress("detecting", len(built), shown=shown) as progress:
        kept = []
        if available():
            kept = known_or_measured(built, SpeechModel(), output, progress.advance)
    report.write(output, results, speeds, about, kept)
    if page is not None:
        report.update_page(page, markdown(results, speeds, about, kept))
    if as_json:
        emit((output / report.SUMMARY).read_text("utf-8"))
    else:
        emit((output / report.TABLE).read_text("utf-8"))
    if not quiet:
        say(f"report: {output / report.PAGE}")
    if faults or any(result.error is not None for result in results):
        raise typer.Exit(SOME_FAILED)


@app.command("compare")
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The output folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="That of another.")],
) -> None:
    """Say of two runs which is better, clip by clip, and whether the difference is separable."""
    from pianissimo.evaluate.quietbench.tables import comparison

    emit(comparison(a, b))


def _modes(given: list[str] | None) -> "list[GainMode]":
    from pianissimo.audio.level import GAIN_MODES

    modes = given or ["off", "on"]
    for mode in modes:
        if mode not in GAIN_MODES:
            raise OptionError(f"unknown gain mode {mode!r}; choose {', '.join(GAIN_MODES)}")
    return [mode for mode in GAIN_MODES if mode in modes][::-1]


def _plan(
    speech: Path | None,
    subsets: list[str],
    models: list[str] | None,
    mini: bool,
    clips: int | None,
    seed: int,
) -> "tuple[Plan, str]":
    """What to build, and where its speech comes from."""
    from pianissimo.evaluate.quietbench.clips import Plan, bundled_sources, choose, read_sources
    from pianissimo.zoo.catalog import EMBEDDED

    per_scenario, non_speech, sweep = MINI if mini else FULL
    if clips is not None:
        per_scenario, sweep = clips, min(clips, sweep if mini else clips)
    sources: list[Source]
    if speech is None:
        sources, origin = bundled_sources(EXAMPLES), "the example clips (synthetic voices)"
    else:
        manifest = speech / "manifest.jsonl" if speech.is_dir() else speech
        embedded = all(name == EMBEDDED for name in models or [EMBEDDED])
        if not subsets and embedded and _has_subset(manifest, EMBEDDED_SUBSET):
            subsets = [EMBEDDED_SUBSET]
        sources = read_sources(manifest, subsets)
        origin = f"{os.path.basename(manifest.parent)}/{manifest.name}"
        origin += f", subset {', '.join(subsets)}" if subsets else ""
    chosen = tuple(choose(sources, per_scenario, seed))
    return Plan(chosen, seed, non_speech, sweep), origin


def _has_subset(manifest: Path, name: str) -> bool:
    try:
        lines = manifest.read_text("utf-8").splitlines()
        return any(json.loads(line).get("subset") == name for line in lines if line.strip())
    except (OSError, ValueError, AttributeError):
        return False  # the reader says what is wrong with it
