"""`pianissimo transcribe`: files, directories or standard input to text, whole or live."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pianissimo.cli.inputs import Input, collect
from pianissimo.cli.live import LiveOptions, transcribe_live
from pianissimo.cli.options import (
    DeviceOption,
    DtypeOption,
    HeadOption,
    JsonOption,
    LanguageOption,
    ModelOption,
    QuietOption,
    TaskOption,
    VerboseOption,
)
from pianissimo.cli.output import SOME_FAILED, about_file, complain, emit, say
from pianissimo.errors import OptionError, PianissimoError
from pianissimo.recognizer import Outcome

if TYPE_CHECKING:
    from pianissimo.loading import AnyRecognizer
    from pianissimo.transcript import Transcript

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
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", envvar="PIANISSIMO_STREAM", help="Recognise live; words show as they come."
        ),
    ] = False,
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
    be used is named on stderr and the others go on; the exit code is then 3.
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

    inputs, faults = collect(sources, recursive=recursive, output=output)
    if output is None and not as_json and formats != ["txt"] and len(inputs) > 1:
        raise OptionError(
            f"{formats[0]} of several files cannot share stdout: add --output DIR, or use --json"
        )
    report = Report(
        inputs,
        formats,
        to_files=output is not None,
        as_json=as_json,
        records=as_json and not stream,
        quiet=quiet,
        headers=len(inputs) + len(faults) > 1,
    )
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
        began = time.monotonic()
        recognizer = _load(
            model, device=device, dtype=dtype, head=head, language=language, task=task
        )
        if verbose:
            say(_about(recognizer, time.monotonic() - began))
        began = time.monotonic()
        try:
            if stream:
                live = LiveOptions(latency, word_timestamps, realtime, as_json, quiet)
                _stream_all(recognizer, todo, report, live)
            else:
                names = [inputs[i].name for i in todo]
                outcomes = recognizer.outcomes(
                    names, latency_ms=latency, word_timestamps=word_timestamps
                )
                with _progress(report, len(todo)):
                    for outcome in outcomes:
                        report.take(todo[outcome.index], outcome)
        except KeyboardInterrupt:
            report.flush()
            complain(f"interrupted; {report.done} of {len(todo)} files were done")
            raise
        if verbose:
            say(_speed(report, time.monotonic() - began))
    if report.failed:
        if report.headers:
            complain(f"{report.failed} of {len(inputs) + len(faults)} files failed")
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


@dataclass
class Report:
    """Where transcripts and failures go: stdout in the order given, or files at once.

    With `as_json` failures are JSON lines too, and with `records` each transcript is one.
    """

    inputs: list[Input]
    formats: list[str]
    to_files: bool
    as_json: bool
    records: bool
    quiet: bool
    headers: bool
    done: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    bar: Any = None
    _waiting: dict[int, "Transcript | None"] = field(default_factory=dict)
    _due: int = 0
    _written: int = 0

    def paths(self, input: Input) -> list[Path]:
        """The files that this recording's transcript is written to."""
        return [input.output.with_name(f"{input.output.name}.{f}") for f in self.formats]

    def take(self, index: int, outcome: Outcome) -> None:
        """Write the transcript, or keep it until those before it are there; or tell the error."""
        input, transcript = self.inputs[index], outcome.transcript
        if transcript is None:
            assert outcome.error is not None
            self.fail(input.label, outcome.error)
        elif not self.to_files or self._save(input, transcript):
            self.done += 1
            self.audio_seconds += transcript.duration
            if self.records:
                record = {"file": input.name, **json.loads(transcript.to_json())}
                with self._bar_hidden():
                    emit(json.dumps(record, ensure_ascii=False) + "\n")
        if self.bar is not None:
            self.bar.advance(0)
        self._waiting[index] = None if self.to_files or self.as_json else transcript
        while self._due in self._waiting:
            self._print(self._due, self._waiting.pop(self._due))
            self._due += 1

    def skip(self, indices: set[int]) -> None:
        """Expect nothing of these recordings."""
        self._waiting.update(dict.fromkeys(indices))

    def fail(self, name: str, error: BaseException) -> None:
        """Count a failure and tell it."""
        self.failed += 1
        with self._bar_hidden():
            complain(about_file(name, error))
            if self.as_json:
                fault = {"code": getattr(error, "code", "error"), "message": str(error)}
                emit(json.dumps({"file": name, "error": fault}, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """Print what is still waiting for a recording before it."""
        for index in sorted(self._waiting):
            self._print(index, self._waiting[index])
        self._waiting.clear()

    def _print(self, index: int, transcript: "Transcript | None") -> None:
        if transcript is None:
            return
        text: str = getattr(transcript, f"to_{self.formats[0]}")()
        if self.headers:
            text = f"{chr(10) if self._written else ''}==> {self.inputs[index].label} <==\n{text}"
        self._written += 1
        with self._bar_hidden():
            emit(text)

    def _save(self, input: Input, transcript: "Transcript") -> bool:
        try:
            input.output.parent.mkdir(parents=True, exist_ok=True)
            for path, format in zip(self.paths(input), self.formats, strict=True):
                transcript.save(path, format)
        except OSError as error:
            reason = PianissimoError(f"its transcript cannot be written: {error}")
            self.fail(input.label, reason)
            return False
        return True

    @contextmanager
    def _bar_hidden(self) -> Iterator[None]:
        """Lines are never written into the progress bar."""
        if self.bar is not None:
            self.bar.stop()
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.start()


def _stream_all(
    recognizer: "AnyRecognizer", todo: list[int], report: Report, options: LiveOptions
) -> None:
    """One recording after the other through a live stream."""
    from pianissimo.native import NativeRecognizer

    if not isinstance(recognizer, NativeRecognizer) or not recognizer.latencies_ms:
        raise OptionError(
            f"{recognizer.name} sees recordings whole and cannot stream: leave out --stream, "
            "or choose a model that is live in `pianissimo models list`"
        )
    recognizer.model.config.lookahead(options.latency_ms)  # an unknown one is no file's fault
    for index in todo:
        try:
            transcript = transcribe_live(recognizer, report.inputs[index], options)
            outcome = Outcome(index, transcript)
        except PianissimoError as error:
            outcome = Outcome(index, error=error)
        report.take(index, outcome)


@contextmanager
def _progress(report: Report, files: int) -> Iterator[None]:
    """A bar over the files, on a terminal only."""
    if report.quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    # stdout stays as it is: redirected through the bar's console it would end up in stderr.
    bar = Progress(
        SpinnerColumn(),
        TextColumn("transcribing"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task("files", total=files)
    report.bar = bar
    try:
        with bar:
            yield
    finally:
        report.bar = None


def _load(model: str | None, **options: Any) -> "AnyRecognizer":
    from pianissimo.loading import load

    return load(model, **options)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"--output {folder} cannot be made: {error.strerror}") from error


def _about(recognizer: "AnyRecognizer", seconds: float) -> str:
    model = recognizer.model
    count = getattr(model, "parameter_count", None)
    millions = (count() if count else sum(p.numel() for p in model.parameters())) / 1e6
    kind = f"{model.device}, {str(model.dtype).removeprefix('torch.')}"
    return f"{recognizer.name}: {millions:.1f} M parameters on {kind}, loaded in {seconds:.1f} s"


def _speed(report: Report, seconds: float) -> str:
    times = report.audio_seconds / seconds if seconds else 0.0
    return (
        f"{report.done} files, {report.audio_seconds:.1f} s of audio in {seconds:.1f} s "
        f"({times:.0f} times as fast as spoken)"
    )
