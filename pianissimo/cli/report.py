"""Where transcripts and failures of `transcribe` go, and its progress bar."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pianissimo.cli.inputs import Input
from pianissimo.cli.output import about_file, complain, emit
from pianissimo.cli.parquet import ParquetRows
from pianissimo.errors import PianissimoError
from pianissimo.protocols import Outcome

if TYPE_CHECKING:
    from pianissimo.transcript import Transcript

FAILURES_FILE = "failed.jsonl"
"""In the output directory: one line per failed recording."""
FAILURES_SHOWN = 20
"""Failures repeated at the end of a run; the file lists all."""


@dataclass
class Report:
    """Writes transcripts to stdout in the given order, or to files at once; failures to stderr.

    With `folder` transcripts are written to files there. With `as_json` failures are also JSON
    lines on stdout, and with `records` each transcript is one. `rows` gets both.
    """

    inputs: list[Input]
    formats: list[str]
    folder: Path | None
    as_json: bool
    records: bool
    headers: bool
    failures_file: str = FAILURES_FILE
    remarks: bool = True
    """Whether stderr gets one line for each file about which there is something to tell."""
    rows: ParquetRows | None = None
    done: int = 0
    audio_seconds: float = 0.0
    failures: list[tuple[str, BaseException]] = field(default_factory=list)
    bar: "AudioBar | None" = None
    _waiting: dict[int, "Transcript | None"] = field(default_factory=dict)
    _due: int = 0
    _written: int = 0

    def paths(self, input: Input) -> list[Path]:
        """The files for the transcript of this recording."""
        return [input.output.with_name(f"{input.output.name}.{f}") for f in self.formats]

    def accept(self, index: int, outcome: Outcome) -> None:
        """Write the transcript, or hold it until earlier ones are written; or report the error."""
        input, transcript = self.inputs[index], outcome.transcript
        if transcript is None:
            assert outcome.error is not None
            self.fail(input.label, outcome.error)
        elif self.folder is None or self._save(input, transcript):
            if self.remarks and transcript.remarks:
                with self._bar_hidden():
                    complain(f"{input.label}: {'; '.join(transcript.remarks)}")
            self.done += 1
            self.audio_seconds += transcript.duration
            if self.rows is not None:
                self.rows.add(input.name, transcript)
            if self.records:
                record = {"file": input.name, **json.loads(transcript.to_json())}
                with self._bar_hidden():
                    emit(json.dumps(record, ensure_ascii=False) + "\n")
        if self.bar is not None:
            self.bar.advance(index)
        self.keep(index, transcript)
        while self._due in self._waiting:
            self._print(self._due, self._waiting.pop(self._due))
            self._due += 1

    def keep(self, index: int, transcript: "Transcript | None") -> None:
        """Hold a transcript, complete or partial, until its turn or `flush`."""
        to_print = self.folder is None and self.rows is None and not self.as_json
        self._waiting[index] = transcript if to_print else None

    def skip(self, indices: set[int]) -> None:
        """Expect no transcripts of these recordings."""
        self._waiting.update(dict.fromkeys(indices))

    def fail(self, name: str, error: BaseException) -> None:
        """Report a failure, and record it for the end."""
        self.failures.append((name, error))
        if self.rows is not None:
            self.rows.add_failure(name, error)
        with self._bar_hidden():
            complain(about_file(name, error))
            if self.as_json:
                emit(_failure_line(name, error))

    def flush(self) -> None:
        """Print the transcripts that still wait for earlier ones."""
        for index in sorted(self._waiting):
            self._print(index, self._waiting[index])
        self._waiting.clear()

    def close(self, count: int) -> None:
        """Report how many of `count` recordings failed; with files also which, and write the list.

        The list of an earlier run is replaced, or removed if nothing failed.
        """
        if self.rows is not None:
            self.rows.flush()
        if self.headers and self.failures:
            complain(f"{len(self.failures)} of {count} files failed")
        if self.folder is None:
            return
        path = self.folder / self.failures_file
        if not self.failures:
            path.unlink(missing_ok=True)
            return
        if self.headers:
            for name, error in self.failures[:FAILURES_SHOWN]:
                complain(f"  {about_file(name, error)}")
            if len(self.failures) > FAILURES_SHOWN:
                complain(f"  ... all are listed in {path}")
        lines = "".join(_failure_line(name, error) for name, error in self.failures)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(lines, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            complain(f"{path} cannot be written: {error.strerror}")

    def _print(self, index: int, transcript: "Transcript | None") -> None:
        if transcript is None:
            return
        if self.formats[0] == "rttm":
            text = transcript.to_rttm(Path(self.inputs[index].label).stem)
        else:
            text = getattr(transcript, f"to_{self.formats[0]}")()
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
        """Hide the progress bar while lines are written."""
        if self.bar is not None:
            self.bar.stop()
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.start()


def _failure_line(name: str, error: BaseException) -> str:
    fault = {"code": getattr(error, "code", "error"), "message": str(error)}
    return json.dumps({"file": name, "error": fault}, ensure_ascii=False) + "\n"


class AudioBar:
    """A progress bar of a batch job: files, hours of audio, speed and time left.

    `seconds` maps the index of each recording to its length. Unknown lengths count as 0; if all
    are unknown, the bar only shows activity.
    """

    def __init__(self, seconds: Mapping[int, float | None]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._seconds, self._files = {i: s or 0.0 for i, s in seconds.items()}, 0
        self._total = sum(self._seconds.values())
        # No redirection of stdout: it would end up in stderr, the console of the bar.
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(self._text(0.0, 0.0), total=self._total or None)

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def advance(self, index: int) -> None:
        """Count a recording that is done or failed."""
        self._files += 1
        task = self._bar.tasks[self._task]
        done = task.completed + self._seconds.get(index, 0.0)
        text = self._text(done, task.elapsed or 0.0)
        self._bar.update(self._task, completed=done, description=text)

    def _text(self, done: float, elapsed: float) -> str:
        parts = [f"{self._files}/{len(self._seconds)} files"]
        if self._total:
            parts.append(f"{clock(done)} of {clock(self._total)} of audio")
        if done and elapsed:
            parts.append(f"{done / elapsed:.0f}x")
            parts.append(f"{clock((self._total - done) * elapsed / done)} left")
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@contextmanager
def audio_bar(
    report: Report, seconds: Mapping[int, float | None], *, shown: bool
) -> Iterator[None]:
    """A progress bar for `report` if stderr is a terminal."""
    if not (shown and sys.stderr.isatty()):
        yield
        return
    report.bar = AudioBar(seconds)
    report.bar.start()
    try:
        yield
    finally:
        report.bar.stop()
        report.bar = None
