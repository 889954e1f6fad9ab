"""`pianissimo evaluate`: word error rates over a manifest, per subset and latency mode."""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pianissimo.cli.options import (
    BeamOption,
    BoostFileOption,
    BoostOption,
    DeviceOption,
    DtypeOption,
    GainOption,
    HeadOption,
    JsonOption,
    LanguageOption,
    LmOption,
    LmWeightOption,
    ModelOption,
    QuietOption,
    WordBonusOption,
    decoding_of,
    phrases_of,
)
from pianissimo.cli.output import SOME_FAILED, complain, emit
from pianissimo.cli.progress import Progress

if TYPE_CHECKING:
    from pianissimo.evaluate.run import Pass, Score


def evaluate(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="JSON lines with audio_filepath and text.")
    ],
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    head: HeadOption = None,
    language: LanguageOption = None,
    gain: GainOption = None,
    boost: BoostOption = None,
    boost_file: BoostFileOption = None,
    beam: BeamOption = None,
    lm: LmOption = None,
    lm_weight: LmWeightOption = None,
    word_bonus: WordBonusOption = None,
    latency: Annotated[
        list[int] | None,
        typer.Option(
            envvar="PIANISSIMO_LATENCY",
            metavar="MS",
            help="A latency mode; may be repeated [default: all the model has].",
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
    batch_seconds: Annotated[
        float,
        typer.Option(
            envvar="PIANISSIMO_BATCH_SECONDS",
            metavar="X",
            min=1.0,
            help="Most seconds of audio transcribed at once.",
        ),
    ] = 600.0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Count word errors of a model over a manifest, and how fast it is.

    Texts are compared in lower case without punctuation; `text_norm` goes before `text`.
    Recordings that cannot be read are named, left out of all numbers, and make the exit code 3.
    """
    from pianissimo.evaluate.run import evaluate as run
    from pianissimo.evaluate.run import read_references

    references = read_references(manifest, subset or [])
    from pianissimo.zoo.load import load

    recognizer = load(
        model,
        device=device,
        dtype=dtype,
        head=head,
        language=language,
        gain=gain,
        decoding=decoding_of(beam, lm, lm_weight, word_bonus),
    )
    if phrases := phrases_of(boost, boost_file):
        recognizer = recognizer.boosted(phrases)
    modes: list[int | None] = [*dict.fromkeys(latency or recognizer.latencies_ms)] or [None]
    count = len(references) * len(modes)
    with Progress("evaluating", count, shown=not quiet and sys.stderr.isatty()) as progress:
        passes = run(
            recognizer,
            references,
            latencies_ms=modes,
            batch_seconds=batch_seconds,
            advance=progress.advance,
        )
    for fault in dict.fromkeys(fault for one in passes for fault in one.faults):
        complain(fault)
    if as_json:
        emit(json.dumps(_as_json(recognizer.name, passes), indent=2) + "\n")
    else:
        _print_table(recognizer.name, passes)
    if any(one.total.failed for one in passes):
        raise typer.Exit(SOME_FAILED)


def _as_json(name: str, passes: "list[Pass]") -> dict[str, Any]:
    return {
        "model": name,
        "passes": [
            {
                "latency_ms": one.latency_ms,
                "seconds": one.seconds,
                "times_realtime": one.times_realtime,
                "total": _score(one.total),
                "subsets": [_score(score) for score in one.scores],
            }
            for one in passes
        ],
    }


def _score(score: "Score") -> dict[str, Any]:
    errors = score.errors
    return {
        "subset": score.subset,
        "recordings": score.recordings,
        "failed": score.failed,
        "audio_seconds": score.audio_seconds,
        # JSON has no infinity: errors against no words at all have no rate.
        "wer": errors.rate if math.isfinite(errors.rate) else None,
        "words": errors.words,
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
    }


def _percent(score: "Score") -> str:
    """The error rate; against no words at all there is none."""
    return f"{100 * score.errors.rate:.2f}" if score.errors.words else "-"


def _print_table(name: str, passes: "list[Pass]") -> None:
    from rich.console import Console
    from rich.table import Table

    modes = ["WER" if one.latency_ms is None else f"{one.latency_ms} ms" for one in passes]
    table = Table(title=f"{name}: word error rate in percent")
    table.add_column("subset")
    for heading in ("files", "minutes", "words", *modes):
        table.add_column(heading, justify="right")
    rows = list(zip(*(one.scores for one in passes), strict=True))
    if len(rows) > 1:
        rows.append(tuple(one.total for one in passes))
    for row in rows:
        first = row[0]
        counts = (str(first.recordings - first.failed), f"{first.audio_seconds / 60:.1f}")
        rates = (_percent(score) for score in row)
        table.add_row(first.subset, *counts, str(first.errors.words), *rates)
    speeds = (f"{one.times_realtime:.0f}" for one in passes)
    table.add_section()
    table.add_row("x real time", "", "", "", *speeds)
    console = Console(file=sys.stdout)
    with console.capture() as captured:
        console.print(table)
    emit(captured.get())
