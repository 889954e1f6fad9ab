"""`pianissimo quietbench`: how well quiet speech is recognized, with and without gain."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pianissimo.cli.command import command
from pianissimo.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    QuietOption,
    SubsetOption,
)
from pianissimo.cli.output import SOME_FAILED, complain, emit, say
from pianissimo.cli.progress import ProgressBar
from pianissimo.errors import OptionError

if TYPE_CHECKING:
    from pianissimo.audio.gain import GainMode
    from pianissimo.evaluate.quietbench.clips import BenchClip, Suite
    from pianissimo.evaluate.quietbench.gates import Kept
    from pianissimo.protocols import Recognizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "audio"
EMBEDDED_SUBSET = "an4"
"""Speech of the embedded model's domain: spelled letters, digits and short commands."""
FULL, MINI = (60, 60, 30), (6, 16, 6)
"""Clips per scenario, clips without speech, clips in the sweep of levels."""

app = typer.Typer(
    help="Benchmark models on quiet speech.",
    add_completion=False,
    rich_markup_mode=None,
)


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and where the results go."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Model name, folder or .nemo file; repeatable [default: whisper-tiny-en].",
        ),
    ] = None
    mini: Annotated[bool, typer.Option("--mini", help="Use six clips per scenario.")] = False
    clips: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Clips per scenario [default: 60]."),
    ] = None
    speech: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Clean speech: a manifest, or a folder with manifest.jsonl "
            "[default: the example clips].",
        ),
    ] = None
    subset: SubsetOption = None
    gain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODE", help="Gain mode: off, on or auto; repeatable [default: off and on]."
        ),
    ] = None
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            envvar="PIANISSIMO_QUIETBENCH_OUTPUT",
            allow_from_autoenv=False,
            metavar="DIR",
            help="Folder for clips, results and report; an interrupted run is resumed.",
        ),
    ] = Path("quietbench")
    page: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also insert the tables between the markers of a Markdown file."
        ),
    ] = None
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed.")] = 1
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    json: JsonOption = False
    quiet: QuietOption = False

    @property
    def modes(self) -> "list[GainMode]":
        """The requested gain modes; OptionError for an unknown one."""
        from pianissimo.audio.gain import GAIN_MODES

        requested = self.gain or ["off", "on"]
        for mode in requested:
            if mode not in GAIN_MODES:
                raise OptionError(f"unknown gain mode {mode!r}; choose {', '.join(GAIN_MODES)}")
        return [mode for mode in GAIN_MODES if mode in requested][::-1]

    def bar(self, title: str, count: int) -> ProgressBar:
        """A progress bar if stderr is a terminal and --quiet is not given."""
        return ProgressBar(title, count, shown=not self.quiet and sys.stderr.isatty())


@app.callback(invoke_without_command=True)
@command
def quietbench(context: typer.Context, options: BenchOptions) -> None:
    """Benchmark models on quiet speech.

    The scenarios are quiet, distant, whispered, masked and telephone speech, each with and without
    gain. Clips are built from clean speech at exact levels and SNRs; the seed is in every record.
    An interrupted run is resumed. The output folder holds results.jsonl, table.md, sweep.csv,
    summary.json and report.html.
    """
    if context.invoked_subcommand is not None:
        return
    from pianissimo.evaluate.quietbench import report
    from pianissimo.evaluate.quietbench.run import environment, measure_speed, run
    from pianissimo.evaluate.quietbench.tables import markdown

    modes = options.modes
    suite, origin = _suite(options)
    recognizers, weights = _load_all(options)
    if not options.quiet:
        say(f"{len(suite.sources)} clips per scenario of {origin}")
    clips, faulty = _build(suite, origin, options)
    output = options.output
    with options.bar("recognizing", len(recognizers) * len(modes) * len(clips)) as bar:
        results = run(recognizers, clips, output, gains=modes, weights=weights, advance=bar.advance)
    speeds = [measure_speed(one, clips, mode) for one in recognizers for mode in modes]
    about = {**environment(recognizers, weights), "speech": origin, "seed": options.seed}
    kept = _detector_results(clips, options)
    report.write(output, results, speeds, about, kept)
    if options.page is not None:
        report.update_page(options.page, markdown(results, speeds, about, kept))
    emit((output / (report.SUMMARY if options.json else report.TABLE)).read_text("utf-8"))
    if not options.quiet:
        say(f"report: {output / report.PAGE}")
    if faulty or any(result.error is not None for result in results):
        raise typer.Exit(SOME_FAILED)


@app.command("compare")
@command
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Output folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Output folder of another run.")],
) -> None:
    """Compare two runs clip by clip, with a test of significance."""
    from pianissimo.evaluate.quietbench.tables import comparison

    emit(comparison(a, b))


def _load_all(options: BenchOptions) -> "tuple[list[Recognizer], dict[str, str]]":
    """The recognizers, and the fingerprint of each one's weights by its name."""
    from pianissimo.evaluate.quietbench.run import fingerprint
    from pianissimo.zoo.folder import locate
    from pianissimo.zoo.load import load

    names: list[str | None] = [*(options.model or [])] or [None]
    recognizers = [load(name, device=options.device, dtype=options.dtype) for name in names]
    weights = {
        recognizer.name: fingerprint(recognizer, locate(name))
        for recognizer, name in zip(recognizers, names, strict=True)
    }
    if len(weights) < len(names):
        raise OptionError("two of the models have the same name: rename the folder of one")
    return recognizers, weights


def _build(suite: "Suite", origin: str, options: BenchOptions) -> "tuple[list[BenchClip], bool]":
    """The clips of the benchmark, and whether some could not be built; these are reported."""
    from pianissimo.evaluate.quietbench.clips import make_clips, write_manifest

    with options.bar("building", sum(1 for _ in suite.jobs())) as bar:
        clips, faults = make_clips(suite, options.output / "audio", bar.advance)
    for fault in faults:
        complain(fault)
    if not clips:
        raise OptionError(f"no clip could be built from {origin}")
    write_manifest(clips, options.output / "clips.jsonl")
    return clips, bool(faults)


def _detector_results(clips: "list[BenchClip]", options: BenchOptions) -> "list[Kept]":
    """What the voice detector keeps of each scenario; empty if it is not installed."""
    from pianissimo.audio.vad import SpeechModel, available
    from pianissimo.evaluate.quietbench.gates import known_or_measured

    if not available():
        return []
    with options.bar("detecting", len(clips)) as bar:
        return known_or_measured(clips, SpeechModel(), options.output, bar.advance)


def _suite(options: BenchOptions) -> "tuple[Suite, str]":
    """What to build, and the origin of its speech."""
    from pianissimo.evaluate.quietbench.clips import Suite, bundled_sources, choose, read_sources
    from pianissimo.zoo.catalog import EMBEDDED

    per_scenario, non_speech, sweep = MINI if options.mini else FULL
    if options.clips is not None:
        per_scenario = options.clips
        sweep = min(per_scenario, sweep if options.mini else per_scenario)
    if options.speech is None:
        sources, origin = bundled_sources(EXAMPLES), "the example clips (synthetic voices)"
    else:
        speech, subsets = options.speech, options.subset or []
        manifest = speech / "manifest.jsonl" if speech.is_dir() else speech
        embedded = options.model is not None and set(options.model) == {EMBEDDED}
        if not subsets and embedded and _has_subset(manifest, EMBEDDED_SUBSET):
            subsets = [EMBEDDED_SUBSET]
        sources = read_sources(manifest, subsets)
        origin = f"{os.path.basename(manifest.parent)}/{manifest.name}"
        origin += f", subset {', '.join(subsets)}" if subsets else ""
    chosen = tuple(choose(sources, per_scenario, options.seed))
    return Suite(chosen, options.seed, non_speech, sweep), origin


def _has_subset(manifest: Path, name: str) -> bool:
    try:
        lines = manifest.read_text("utf-8-sig").splitlines()
        return any(json.loads(line).get("subset") == name for line in lines if line.strip())
    except (OSError, ValueError, AttributeError):
        return False  # the reader reports what is wrong
