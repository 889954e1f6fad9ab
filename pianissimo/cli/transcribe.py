"""`pianissimo transcribe`: files, directories or standard input to text, whole or live."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pianissimo.cli.inputs import STANDARD_INPUT, collect
from pianissimo.cli.jobs import BATCH_SECONDS, Setup, batch_seconds, recognized, shared_out
from pianissimo.cli.live import Heard, LiveOptions, open_stream, transcribe_live, transcript_of
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
    PartialsOption,
    QuietOption,
    TaskOption,
    VerboseOption,
    WordBonusOption,
    decoding_of,
    phrases_of,
)
from pianissimo.cli.output import SOME_FAILED, complain, say
from pianissimo.cli.report import Report, audio_bar
from pianissimo.errors import OptionError, PianissimoError
from pianissimo.protocols import Outcome

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer

FORMATS = ("txt", "srt", "vtt", "tsv", "json")


def transcribe(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="FILE|DIR|-...", help="Audio or video files, directories, stdin."),
    ],
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    head: HeadOption = None,
    language: LanguageOption = None,
    task: TaskOption = None,
    gain: GainOption = None,
    boost: BoostOption = None,
    boost_file: BoostFileOption = None,
    beam: BeamOption = None,
    lm: LmOption = None,
    lm_weight: LmWeightOption = None,
    word_bonus: WordBonusOption = None,
    latency: Annotated[
        int | None,
        typer.Option(
            envvar="PIANISSIMO_LATENCY",
            metavar="MS",
            help="How far the model looks ahead: 80, 160, 560 or 1120, as it has them "
            "[default: its longest; with --stream 160].",
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            "--output-format",
            envvar="PIANISSIMO_FORMAT",
            metavar="LIST",
            help="txt, srt, vtt, tsv, json, several with commas, or all [default: txt].",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            "--output-dir",
            envvar="PIANISSIMO_OUTPUT",
            metavar="DIR",
            help="Write files named after the inputs there, instead of text to stdout.",
        ),
    ] = None,
    word_timestamps: Annotated[
        bool, typer.Option(envvar="PIANISSIMO_WORD_TIMESTAMPS", help="Keep the time of every word.")
    ] = True,
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            "-r",
            envvar="PIANISSIMO_RECURSIVE",
            help="Also look in folders' folders.",
        ),
    ] = False,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            envvar="PIANISSIMO_SKIP_EXISTING",
            help="Leave out files whose output is there already.",
        ),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            envvar="PIANISSIMO_JOBS",
            metavar="N",
            min=1,
            help="Recognize in N processes, each with the model and its share of the cores.",
        ),
    ] = 1,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", envvar="PIANISSIMO_STREAM", help="Recognize live; words show as they come."
        ),
    ] = False,
    partials: PartialsOption = None,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime", envvar="PIANISSIMO_REALTIME", help="With --stream: no faster than spoken."
        ),
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Transcribe recordings: text to stdout, or files with --output.

    Several texts on stdout follow the order given, each under a line `==> FILE <==`. --json writes
    one object per file as soon as it is done, with --stream one per event. A recording that cannot
    be used is named on stderr and the others go on; the exit code is then 3. With --output all such
    are listed in failed.jsonl there, and --skip-existing takes up a run that was broken off.
    """
    formats = parse_formats(format)
    if skip_existing and output is None:
        raise OptionError("--skip-existing needs --output, the folder to look in")
    if as_json and format is not None and output is None:
        raise OptionError("--json writes to stdout and --format to files: add --output DIR")
    if output is None and len(formats) > 1:
        raise OptionError("several formats need --output DIR, where each gets a file of its own")
    if realtime and not stream:
        raise OptionError("--realtime paces a live stream: add --stream")
    if partials is not None and not stream:
        raise OptionError("--partials writes the words of a live stream: add --stream")
    if jobs > 1 and (stream or STANDARD_INPUT in sources):
        raise OptionError("--jobs shares out files: leave out --stream and standard input")

    inputs, faults = collect(sources, recursive=recursive, output=output)
    if output is None and not as_json and formats != ["txt"] and len(inputs) > 1:
        raise OptionError(
            f"{formats[0]} of several files cannot share stdout: add --output DIR, or use --json"
        )
    report = Report(
        inputs,
        formats,
        folder=output,
        as_json=as_json,
        records=as_json and not stream,
        headers=len(inputs) + len(faults) > 1,
    )
    _keep_recordings(report)
    for fault in faults:
        report.fail(fault.name, fault.error)
    todo = list(range(len(inputs)))
    if skip_existing:
        todo = [i for i in todo if not all(p.exists() for p in report.paths(inputs[i]))]
        report.skip(set(range(len(inputs))) - set(todo))
        if verbose and len(todo) < len(inputs):
            say(f"skipped {len(inputs) - len(todo)} files that have their output")
    if todo:
        if output is not None:
            _make_folder(output)
        options = {
            "model": model,
            "device": device,
            "dtype": dtype,
            "head": head,
            "language": language,
            "task": task,
            "gain": gain,
            "decoding": decoding_of(beam, lm, lm_weight, word_bonus),
        }
        phrases = phrases_of(boost, boost_file)
        recognize = {
            "latency_ms": latency,
            "word_timestamps": word_timestamps,
            "boost": phrases,
        }
        try:
            if jobs > 1:
                setup = Setup(options, recognize, jobs)
                _share_out(setup, todo, report, bar=not quiet, verbose=verbose)
            else:
                recognizer = _load(options, verbose=verbose)
                began = time.monotonic()
                if stream:
                    drafts = None
                    if partials is not None:
                        drafts = _load({"model": partials, "device": device}, verbose=verbose)
                    live = LiveOptions(
                        latency, drafts, word_timestamps, realtime, as_json, quiet, phrases
                    )
                    _stream_all(recognizer, todo, report, live)
                else:
                    _recognize(recognizer, recognize, todo, report, bar=not quiet)
                if verbose:
                    say(_speed(report, time.monotonic() - began))
        except KeyboardInterrupt:
            report.flush()
            complain(f"interrupted; {report.done} of {len(todo)} files were done")
            report.close(len(inputs) + len(faults))
            raise
    report.close(len(inputs) + len(faults))
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def parse_formats(text: str | None) -> list[str]:
    """ "srt,json" -> ["srt", "json"]; "all" is every format. OptionError if one is unknown."""
    names = [name.strip().lower() for name in (text or "txt").split(",")]
    if "all" in names:
        return list(FORMATS)
    for name in names:
        if name not in FORMATS:
            raise OptionError(f"unknown format {name!r}; choose {', '.join(FORMATS)} or all")
    return list(dict.fromkeys(names))


def _stream_all(
    recognizer: "Recognizer", todo: list[int], report: Report, options: LiveOptions
) -> None:
    """One recording after the other through a live stream."""
    with open_stream(recognizer, options):
        pass  # what the recognizer does not have is no file's fault
    words = options.word_timestamps
    for index in todo:
        heard = Heard()
        try:
            transcribe_live(recognizer, report.inputs[index], options, heard)
            outcome = Outcome(index, transcript_of(heard, recognizer, with_words=words))
        except PianissimoError as error:
            outcome = Outcome(index, error=error)
        except KeyboardInterrupt:
            if heard.finals:
                report.keep(index, transcript_of(heard, recognizer, with_words=words))
            raise
        report.take(index, outcome)


def _recognize(
    recognizer: "Recognizer",
    options: dict[str, Any],
    todo: list[int],
    report: Report,
    *,
    bar: bool,
) -> None:
    """Batch after batch in this process, the shortest recordings first."""
    from pianissimo.recognizers.batches import grouped

    names = {i: report.inputs[i].name for i in todo}
    seconds = _lengths(names, report)
    with audio_bar(report, seconds, shown=bar):
        for batch in grouped(seconds, BATCH_SECONDS):
            for outcome in recognized(recognizer, [names[i] for i in batch], options):
                report.take(batch[outcome.index], outcome)


def _share_out(setup: Setup, todo: list[int], report: Report, *, bar: bool, verbose: bool) -> None:
    """Batches in several processes, the longest recordings first, so that all end together."""
    from pianissimo.recognizers.batches import grouped

    names = {i: report.inputs[i].name for i in todo}
    seconds = _lengths(names, report)
    known = [s for s in seconds.values() if s is not None]
    most = batch_seconds(sum(known), setup.processes) if known else BATCH_SECONDS
    batches = list(grouped(seconds, most))[::-1]
    setup = replace(setup, processes=max(1, min(setup.processes, len(batches))))
    began = time.monotonic()
    if verbose:
        say(f"{len(seconds)} files in {len(batches)} batches for {setup.processes} processes")
    outcomes = shared_out([input.name for input in report.inputs], batches, setup)
    with audio_bar(report, seconds, shown=bar), closing(outcomes):
        for outcome in outcomes:
            report.take(outcome.index, outcome)
    if verbose:
        say(_speed(report, time.monotonic() - began))


def _lengths(names: Mapping[int, str], report: Report) -> dict[int, float | None]:
    """The seconds of each recording by its index, without those that cannot be read."""
    from pianissimo.recognizers.batches import lengths

    seconds: dict[int, float | None] = {}
    for index, length in zip(names, lengths(names.values()), strict=True):
        if isinstance(length, PianissimoError):
            report.take(index, Outcome(index, error=length))
        else:
            seconds[index] = length
    return seconds


def _load(options: dict[str, Any], *, verbose: bool) -> "Recognizer":
    from pianissimo.zoo.load import load

    began = time.monotonic()
    recognizer = load(**options)
    if verbose:
        say(_about(recognizer, time.monotonic() - began))
    return recognizer


def _keep_recordings(report: Report) -> None:
    """OptionError if a transcript would be written over a recording."""
    if report.folder is None:
        return
    names = [f".{format}" for format in report.formats]
    recordings = {Path(i.name).resolve() for i in report.inputs if Path(i.name).suffix in names}
    for input in report.inputs if recordings else ():
        for path in report.paths(input):
            if path.resolve() in recordings:
                raise OptionError(
                    f"the transcript of {input.name} would be written over the recording {path}; "
                    "choose another --output folder"
                )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--output {folder} cannot be made: {error.strerror}") from error


def _about(recognizer: "Recognizer", seconds: float) -> str:
    count = recognizer.parameter_count
    if count is None:  # another runtime has them
        return f"{recognizer.name}: loaded in {seconds:.1f} s"
    millions, dtype = count / 1e6, recognizer.dtype.removeprefix("torch.")
    kind = f"{recognizer.device}, {dtype}"
    return f"{recognizer.name}: {millions:.1f} M parameters on {kind}, loaded in {seconds:.1f} s"


def _speed(report: Report, seconds: float) -> str:
    times = report.audio_seconds / seconds if seconds else 0.0
    return (
        f"{report.done} files, {report.audio_seconds:.1f} s of audio in {seconds:.1f} s "
        f"({times:.0f} times as fast as spoken)"
    )
