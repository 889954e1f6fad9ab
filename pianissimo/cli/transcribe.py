"""`pianissimo transcribe`: files, directories or standard input to text, whole or live."""

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pianissimo.cli.command import command
from pianissimo.cli.excerpts import ExcerptOptions
from pianissimo.cli.inputs import STANDARD_INPUT, about_skipped, collect, read_once
from pianissimo.cli.jobs import BATCH_SECONDS, Setup, batch_seconds, recognized, shared_out
from pianissimo.cli.live import Display, Utterances, open_stream, transcribe_live, transcript_of
from pianissimo.cli.options import (
    JsonOption,
    LatencyOption,
    ModelOptions,
    PartialsOption,
    QuietOption,
    SearchOptions,
    SecondPassOption,
    VerboseOption,
)
from pianissimo.cli.output import SOME_FAILED, complain, say
from pianissimo.cli.parquet import ParquetRows
from pianissimo.cli.report import FAILURES_FILE, Report, audio_bar
from pianissimo.cli.shards import Shard
from pianissimo.cli.speakers import SpeakerOptions
from pianissimo.errors import OptionError, PianissimoError
from pianissimo.protocols import Outcome, Recognizer

if TYPE_CHECKING:
    from pianissimo.audio.io import AudioSource

FORMATS = ("txt", "srt", "vtt", "tsv", "json")
SPEAKER_FORMATS = ("rttm",)
"""Formats that hold nothing but speaker turns."""


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and where."""

    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            "--output-format",
            metavar="LIST",
            help="Output formats, comma-separated: txt, srt, vtt, tsv, json, rttm (speaker turns) "
            "or all [default: txt].",
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            "--output-dir",
            metavar="DIR",
            help="Write one file per input and format to DIR instead of text to stdout.",
        ),
    ] = None
    parquet: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            help="Write a row for each input to Parquet files in DIR or an object store, instead "
            "of text to stdout (extra archive).",
        ),
    ] = None
    word_timestamps: Annotated[bool, typer.Option(help="Include the time of each word.")] = True
    itn: Annotated[
        bool,
        typer.Option(
            "--itn",
            help="Write numbers, dates, money, times and e-mail addresses as people do: $25.50.",
        ),
    ] = False
    json: JsonOption = False
    quiet: QuietOption = False
    verbose: VerboseOption = False

    @property
    def prints(self) -> bool:
        """Whether transcripts go to stdout in their format."""
        return self.output is None and self.parquet is None and not self.json

    @property
    def rows(self) -> ParquetRows | None:
        """Where rows go; None without --parquet. Raises what `ParquetRows` raises."""
        return None if self.parquet is None else ParquetRows(self.parquet)

    def formats(self, *, speakers: bool = False) -> list[str]:
        """The requested formats; OptionError for combinations that cannot be written.

        `speakers` says whether there are speaker turns to write.
        """
        formats = parse_formats(self.format, speakers=speakers)
        if self.json and self.format is not None and self.output is None:
            raise OptionError("--json writes to stdout and --format to files: add --output DIR")
        if self.output is None and len(formats) > 1:
            raise OptionError("several formats need --output DIR: one file per format")
        return formats


@dataclass(frozen=True)
class FolderOptions:
    """How directories and manifests are processed."""

    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search subdirectories.")] = (
        False
    )
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Skip inputs whose output files exist."),
    ] = False
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            "-j",
            metavar="N",
            min=1,
            help="Number of worker processes; each loads the model and uses a share of the cores.",
        ),
    ] = 1
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Transcribe part I of N, chosen by a hash of each name: one part per machine.",
        ),
    ] = None

    @property
    def part(self) -> Shard | None:
        """The part of the inputs to transcribe; None for all. Raises OptionError."""
        return None if self.shard is None else Shard.parse(self.shard)


@dataclass(frozen=True)
class PlaybackOptions:
    """Whether inputs go through a live stream, and which one."""

    latency: LatencyOption = None
    stream: Annotated[
        bool, typer.Option("--stream", help="Recognize as a live stream and show partial results.")
    ] = False
    partials: PartialsOption = None
    second_pass: SecondPassOption = None
    realtime: Annotated[
        bool, typer.Option("--realtime", help="With --stream: feed audio at the speed of speech.")
    ] = False

    def __post_init__(self) -> None:
        if self.realtime and not self.stream:
            raise OptionError("--realtime is for live streams: add --stream")
        if self.partials is not None and not self.stream:
            raise OptionError("--partials is for live streams: add --stream")
        if self.second_pass is not None and not self.stream:
            raise OptionError("--second-pass is for live streams: add --stream")


@command
def transcribe(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|DIR|URL|-...",
            help="Audio or video files, directories, manifests (*.jsonl), URLs of an object store "
            "(s3://bucket/folder), or - for stdin.",
        ),
    ],
    model: ModelOptions,
    search: SearchOptions,
    stream: PlaybackOptions,
    excerpt: ExcerptOptions,
    speakers: SpeakerOptions,
    folders: FolderOptions,
    output: OutputOptions,
) -> None:
    """Transcribe recordings to stdout, or to files with --output.

    Texts of several inputs are printed in the given order, each below a line `==> FILE <==`. --json
    prints one object per file as soon as it is done, or one per event with --stream. Inputs that
    fail are reported on stderr and do not stop the others; the exit code is then 3. With --output,
    failures are also listed in DIR/failed.jsonl. An interrupted run resumes with --skip-existing.
    """
    diarization, part = speakers.diarization, folders.part
    formats = output.formats(speakers=diarization is not None)
    if stream.stream and speakers.channels:
        raise OptionError("--channels is for whole recordings; remove --stream")
    if folders.skip_existing and output.output is None and output.parquet is None:
        raise OptionError("--skip-existing needs --output or --parquet, where results are")
    if folders.jobs > 1 and (stream.stream or any(map(read_once, sources))):
        raise OptionError("--jobs cannot be combined with --stream, standard input or pipes")
    inputs, faults, skipped = collect(sources, recursive=folders.recursive, output=output.output)
    if skipped and not output.quiet:
        complain(about_skipped(skipped))
    if part is not None:
        if STANDARD_INPUT in sources:
            raise OptionError("--shard divides files; standard input cannot be divided")
        inputs = [input for input in inputs if part.has(input.place)]
    if output.prints and formats != ["txt"] and len(inputs) > 1:
        raise OptionError(
            f"{formats[0]} of several files cannot share stdout: add --output DIR, or use --json"
        )
    report = Report(
        inputs,
        formats,
        folder=output.output,
        as_json=output.json,
        records=output.json and not stream.stream,
        headers=len(inputs) + len(faults) > 1,
        failures_file=FAILURES_FILE if part is None else part.file_name(FAILURES_FILE),
        remarks=not output.quiet,
        rows=output.rows,
    )
    _protect_recordings(report)
    for fault in faults:
        report.fail(fault.name, fault.error)
    todo = _remaining(report, folders, verbose=output.verbose)
    setup = Setup(
        model,
        search.decoding,
        stream.latency,
        output.word_timestamps,
        search.hotwords,
        excerpt,
        diarize=diarization,
        second_pass=stream.second_pass,
        itn=output.itn,
    )
    try:
        if todo:
            _run(todo, report, setup, stream, folders.jobs, output)
    except KeyboardInterrupt:
        report.flush()
        complain(f"interrupted; {report.done} of {len(todo)} files were done")
        report.close(len(inputs) + len(faults))
        raise
    report.close(len(inputs) + len(faults))
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def parse_formats(text: str | None, *, speakers: bool = False) -> list[str]:
    """ "srt,json" -> ["srt", "json"]; "all" is every format that can be written.

    OptionError for an unknown format, and for one of speaker turns without `speakers`.
    """
    names = [name.strip().lower() for name in (text or "txt").split(",")]
    known = (*FORMATS, *SPEAKER_FORMATS)
    if "all" in names:
        return list(known if speakers else FORMATS)
    for name in names:
        if name not in known:
            raise OptionError(f"unknown format {name!r}; choose {', '.join(known)} or all")
        if name in SPEAKER_FORMATS and not speakers:
            raise OptionError(f"{name} holds speaker turns; add --diarize or --channels")
    return list(dict.fromkeys(names))


def _remaining(report: Report, folders: FolderOptions, *, verbose: bool) -> list[int]:
    """Indices of the inputs to process: with --skip-existing those without output."""
    everything = range(len(report.inputs))
    if not folders.skip_existing:
        return list(everything)
    written = None if report.rows is None else report.rows.transcribed()
    todo = []
    for i in everything:
        input = report.inputs[i]
        paths = report.paths(input) if report.folder is not None else []
        has_row = written is None or input.name in written
        if not has_row or not all(path.exists() for path in paths):
            todo.append(i)
    report.skip(set(everything) - set(todo))
    if verbose and len(todo) < len(everything):
        say(f"skipped {len(everything) - len(todo)} files that have their output")
    return todo


def _run(
    todo: list[int],
    report: Report,
    setup: Setup,
    stream: PlaybackOptions,
    jobs: int,
    output: OutputOptions,
) -> None:
    """Recognize the inputs: in worker processes, as live streams, or in batches."""
    if report.folder is not None:
        _make_folder(report.folder)
    began = time.monotonic()
    if jobs > 1:
        setup = replace(setup, processes=jobs)
        _share_out(setup, todo, report, bar=not output.quiet, verbose=output.verbose)
    else:
        recognizer = _load(setup, verbose=output.verbose)
        began = time.monotonic()
        if stream.stream:
            partials = None
            if stream.partials is not None:
                drafts = ModelOptions(stream.partials, setup.model.device)
                partials = _load(Setup(drafts), verbose=output.verbose)
            display = Display(output.json, output.quiet)
            _stream_all(recognizer, partials, todo, report, setup, display, stream.realtime)
        else:
            _recognize(recognizer, setup, todo, report, bar=not output.quiet)
    if output.verbose:
        say(_speed(report, time.monotonic() - began))


def _stream_all(
    recognizer: Recognizer,
    partials: Recognizer | None,
    todo: list[int],
    report: Report,
    setup: Setup,
    display: Display,
    realtime: bool,
) -> None:
    """One input after the other through a live stream."""
    from pianissimo.diarization.sources import live_source
    from pianissimo.text.turns import later
    from pianissimo.text.written_form import check_language

    itn = check_language(recognizer.language) if setup.itn else None
    for index in todo:
        said = Utterances()
        opened = open_stream(
            recognizer,
            latency_ms=setup.latency_ms,
            partials=partials,
            hotwords=setup.hotwords,
            second_pass=setup.second_pass,
        )
        try:
            turns = None if setup.diarize is None else live_source(setup.diarize)
            with opened as stream:
                input = report.inputs[index]
                notes = transcribe_live(
                    stream,
                    input,
                    said,
                    display,
                    setup.excerpt,
                    turns,
                    realtime=realtime,
                    itn=itn,
                )
            found = transcript_of(said, recognizer, setup.word_timestamps).noted(notes)
            if turns is not None:
                offset = setup.excerpt.start_seconds
                found = found.with_turns(later(turns.finish(), offset))
            outcome = Outcome(index, found)
        except PianissimoError as error:
            outcome = Outcome(index, error=error)
        except KeyboardInterrupt:
            if said.finals:
                report.keep(index, transcript_of(said, recognizer, setup.word_timestamps))
            raise
        report.accept(index, outcome)


def _recognize(
    recognizer: Recognizer, setup: Setup, todo: list[int], report: Report, *, bar: bool
) -> None:
    """Batch after batch in this process, the shortest recordings first."""
    from pianissimo.recognizers.batches import grouped

    sources = {i: report.inputs[i].source for i in todo}
    seconds = _lengths(sources, setup, report)
    with audio_bar(report, seconds, shown=bar):
        for batch in grouped(seconds, BATCH_SECONDS):
            for outcome in recognized(recognizer, [sources[i] for i in batch], setup):
                report.accept(batch[outcome.index], outcome)


def _share_out(setup: Setup, todo: list[int], report: Report, *, bar: bool, verbose: bool) -> None:
    """Batches in several processes, the longest recordings first, so that all end together."""
    from pianissimo.recognizers.batches import grouped

    sources = {i: report.inputs[i].source for i in todo}
    seconds = _lengths(sources, setup, report)
    known = [s for s in seconds.values() if s is not None]
    most = batch_seconds(sum(known), setup.processes) if known else BATCH_SECONDS
    batches = list(grouped(seconds, most))[::-1]
    setup = replace(setup, processes=max(1, min(setup.processes, len(batches))))
    if verbose:
        say(f"{len(seconds)} files in {len(batches)} batches for {setup.processes} processes")
    outcomes = shared_out([input.source for input in report.inputs], batches, setup)
    with audio_bar(report, seconds, shown=bar), closing(outcomes):
        for outcome in outcomes:
            report.accept(outcome.index, outcome)


def _lengths(
    given: Mapping[int, "AudioSource"], setup: Setup, report: Report
) -> dict[int, float | None]:
    """The seconds of each recording by its index, without those that cannot be read."""
    from pianissimo.recognizers.batches import lengths

    seconds: dict[int, float | None] = {}
    sources = [setup.excerpt.source(source) for source in given.values()]
    for index, length in zip(given, lengths(sources), strict=True):
        if isinstance(length, PianissimoError):
            report.accept(index, Outcome(index, error=length))
        else:
            seconds[index] = length
    return seconds


def _load(setup: Setup, *, verbose: bool) -> Recognizer:
    began = time.monotonic()
    recognizer = setup.load()
    if verbose:
        say(_about(recognizer, time.monotonic() - began))
    return recognizer


def _protect_recordings(report: Report) -> None:
    """OptionError if a transcript would overwrite a recording."""
    if report.folder is None:
        return
    names = [f".{format}" for format in report.formats]
    recordings = {Path(i.name).resolve() for i in report.inputs if Path(i.name).suffix in names}
    for input in report.inputs if recordings else ():
        for path in report.paths(input):
            if path.resolve() in recordings:
                raise OptionError(
                    f"the transcript of {input.name} would be written over the recording {path}; "
                    "choose another --output directory"
                )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--output {folder} cannot be created: {error.strerror}") from error


def _about(recognizer: Recognizer, seconds: float) -> str:
    if recognizer.parameter_count is None:  # the model runs in another runtime
        return f"{recognizer.name}: loaded in {seconds:.1f} s"
    millions = recognizer.parameter_count / 1e6
    kind = f"{recognizer.device}, {recognizer.dtype.removeprefix('torch.')}"
    return f"{recognizer.name}: {millions:.1f} M parameters on {kind}, loaded in {seconds:.1f} s"


def _speed(report: Report, seconds: float) -> str:
    times = report.audio_seconds / seconds if seconds else 0.0
    return (
        f"{report.done} files, {report.audio_seconds:.1f} s of audio in {seconds:.1f} s "
        f"({times:.0f}x real time)"
    )
