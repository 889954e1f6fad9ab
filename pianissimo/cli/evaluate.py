"""`pianissimo evaluate`: word errors per subset and latency mode, or errors of speaker turns."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pianissimo.cli.command import command
from pianissimo.cli.options import (
    JsonOption,
    LatenciesOption,
    ModelOptions,
    QuietOption,
    SearchOptions,
    SecondPassOption,
    SubsetOption,
)
from pianissimo.cli.output import SOME_FAILED, complain, emit
from pianissimo.cli.progress import ProgressBar
from pianissimo.errors import OptionError

if TYPE_CHECKING:
    from pianissimo.evaluate.live import LivePass
    from pianissimo.evaluate.run import Pass, Score


@dataclass(frozen=True)
class EvaluateOptions:
    """What is scored, and how results are printed."""

    latency: LatenciesOption = None
    subset: SubsetOption = None
    batch_seconds: Annotated[
        float,
        typer.Option(
            metavar="X", min=1.0, help="Seconds of audio per batch; lower it to save memory."
        ),
    ] = 600.0
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Push the recordings as live streams; measure delays too."),
    ] = False
    second_pass: SecondPassOption = None
    diarize: Annotated[
        bool,
        typer.Option("--diarize", help="Measure who speaks when; each line needs `rttm_filepath`."),
    ] = False
    speakers: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN-MAX", help="With --diarize: the number of speakers, if it is known."
        ),
    ] = None
    diarize_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="With --diarize: folder or .nemo file of a diarization model."
        ),
    ] = None
    json: JsonOption = False
    quiet: QuietOption = False

    def __post_init__(self) -> None:
        for name in ("speakers", "diarize_model"):
            if getattr(self, name) is not None and not self.diarize:
                option = name.replace("_", "-")
                raise OptionError(f"--{option} is for speaker turns: add --diarize")
        if self.stream and self.diarize:
            raise OptionError("--stream measures words, --diarize speakers; choose one")
        if self.second_pass is not None and not self.stream:
            raise OptionError("--second-pass is for live streams: add --stream")


@command
def evaluate(
    manifest: Annotated[
        Path,
        typer.Argument(metavar="MANIFEST", help="JSON lines with `audio_filepath` and `text`."),
    ],
    model: ModelOptions,
    search: SearchOptions,
    options: EvaluateOptions,
) -> None:
    """Measure WER and speed on a manifest.

    Texts are compared in lower case without punctuation; `text_norm` is preferred to `text`.
    Recordings that cannot be read are reported, excluded from all figures, and make the exit code
    3. With --stream, errors are those of live finals. Delays are those of one stream, fed at the
    speed of speech: of the first text after the first word begins, of a word after it ends, and of
    a final after the last word of its utterance. With --diarize, the figures are DER, JER and the
    number of speakers, and cpWER where lines have `segments` with `speaker` and `text`.
    """
    if options.diarize:
        _evaluate_speakers(manifest, model, search, options)
        return
    from pianissimo.evaluate.live import evaluate_live
    from pianissimo.evaluate.run import evaluate as evaluate_recordings
    from pianissimo.evaluate.run import read_references

    references = read_references(manifest, options.subset or [])
    recognizer = model.load(search.decoding)
    if hotwords := search.hotwords:
        recognizer = recognizer.boosted(hotwords)
    modes: list[int | None] = [*dict.fromkeys(options.latency or recognizer.latencies_ms)]
    whole = recognizer.capabilities.whole_recordings and not options.latency and not options.stream
    if not modes or whole:
        modes = [None, *modes]
    count = len(references) * len(modes)
    shown = not options.quiet and sys.stderr.isatty()
    with ProgressBar("evaluating", count, shown=shown) as progress:
        passes: Sequence[Pass]
        if options.stream:
            passes = evaluate_live(
                recognizer,
                references,
                latencies_ms=modes,
                second_pass=options.second_pass,
                advance=progress.advance,
            )
        else:
            passes = evaluate_recordings(
                recognizer,
                references,
                latencies_ms=modes,
                batch_seconds=options.batch_seconds,
                advance=progress.advance,
            )
    for fault in dict.fromkeys(fault for one in passes for fault in one.faults):
        complain(fault)
    if options.json:
        emit(json.dumps(_as_json(recognizer.name, passes), indent=2) + "\n")
    else:
        _print_table(recognizer.name, passes)
    if any(one.total.failed for one in passes):
        raise typer.Exit(SOME_FAILED)


def _evaluate_speakers(
    manifest: Path, model: ModelOptions, search: SearchOptions, options: EvaluateOptions
) -> None:
    from pianissimo.diarization.options import Diarization, parse_speakers
    from pianissimo.evaluate.speakers import evaluate_speakers, read_conversations

    asked = Diarization(
        speakers=None if options.speakers is None else parse_speakers(options.speakers),
        model=options.diarize_model,
    )
    conversations = read_conversations(manifest)
    recognizer = None
    if any(conversation.words for conversation in conversations):
        recognizer = model.load(search.decoding)
    shown = not options.quiet and sys.stderr.isatty()
    with ProgressBar("evaluating", len(conversations), shown=shown) as progress:
        score = evaluate_speakers(conversations, asked, recognizer, advance=progress.advance)
    for fault in score.faults:
        complain(fault)
    count = max(score.recordings, 1)
    figures: dict[str, float | None] = {
        "der": _finite(score.exact.rate),
        "der_collar_0.25": _finite(score.collar.rate),
        "missed": _finite(score.exact.missed / (score.exact.speech or math.nan)),
        "false_alarm": _finite(score.exact.false_alarm / (score.exact.speech or math.nan)),
        "confused": _finite(score.exact.confused / (score.exact.speech or math.nan)),
        "jer": score.jaccard / count,
        "cpwer": _finite(score.words.rate) if score.words.words else None,
        "right_number_of_speakers": score.right_number / count,
        "times_realtime": score.audio_seconds / score.seconds if score.seconds else 0.0,
    }
    if options.json:
        recordings = {"recordings": score.recordings, "failed": len(score.faults)}
        emit(json.dumps({**recordings, **figures}, indent=2) + "\n")
    else:
        minutes = score.audio_seconds / 60
        emit(f"{score.recordings} recordings, {minutes:.1f} minutes\n")
        for name, value in figures.items():
            if name == "times_realtime":
                emit(f"{name:25} {value or 0:7.0f}\n")
            elif value is not None:
                emit(f"{name:25} {100 * value:7.2f} %\n")
    if score.faults:
        raise typer.Exit(SOME_FAILED)


def _finite(rate: float) -> float | None:
    """JSON has no infinity: without reference speech there is no rate."""
    return rate if math.isfinite(rate) else None


def _as_json(name: str, passes: "Sequence[Pass]") -> dict[str, Any]:
    from pianissimo.evaluate.live import LivePass

    return {
        "model": name,
        "passes": [
            {
                "latency_ms": one.latency_ms,
                "seconds": one.seconds,
                "times_realtime": one.times_realtime,
                **({"delays": _delays(one)} if isinstance(one, LivePass) else {}),
                "total": _score(one.total),
                "subsets": [_score(score) for score in one.scores],
            }
            for one in passes
        ],
    }


def _delays(one: "LivePass") -> dict[str, Any]:
    """The 50th and 95th percentile of each delay in seconds, and the share of changed words."""
    from pianissimo.evaluate.live import percentiles

    delays = one.delays
    return {
        "first_word": percentiles(delays.first_words),
        "word": percentiles(delays.words),
        "final": percentiles(delays.finals),
        "changed": delays.changed / delays.shown if delays.shown else None,
    }


def _score(score: "Score") -> dict[str, Any]:
    errors = score.errors
    return {
        "subset": score.subset,
        "recordings": score.recordings,
        "failed": score.failed,
        "audio_seconds": score.audio_seconds,
        # JSON has no infinity: without reference words there is no rate.
        "wer": errors.rate if math.isfinite(errors.rate) else None,
        "words": errors.words,
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
    }


def _percent(score: "Score") -> str:
    """The error rate in percent; "-" without reference words."""
    return f"{100 * score.errors.rate:.2f}" if score.errors.words else "-"


def _print_table(name: str, passes: "Sequence[Pass]") -> None:
    from rich.console import Console
    from rich.table import Table

    from pianissimo.evaluate.live import LivePass

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
    live = [_delays(one) for one in passes if isinstance(one, LivePass)]
    rows_of_delays = (
        ("first word, s p50 / p95", "first_word"),
        ("word, s p50 / p95", "word"),
        ("final, s p50 / p95", "final"),
    )
    for label, figure in rows_of_delays if live else ():
        pairs = (one[figure] for one in live)
        cells = (f"{pair[0]:.2f} / {pair[1]:.2f}" if pair else "-" for pair in pairs)
        table.add_row(label, "", "", "", *cells)
    if live:
        shares = (one["changed"] for one in live)
        cells = ("-" if share is None else f"{100 * share:.1f}" for share in shares)
        table.add_row("changed by the final, %", "", "", "", *cells)
    console = Console(file=sys.stdout)
    with console.capture() as captured:
        console.print(table)
    emit(captured.get())
