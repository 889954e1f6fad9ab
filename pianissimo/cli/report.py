"""Where transcripts and failures of `transcribe` go, and how far it has come."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pianissimo.cli.inputs import Input
from pianissimo.cli.output import about_file, complain, emit
from pianissimo.errors import PianissimoError
from pianissimo.protocols import Outcome

if TYPE_CHECKING:
    from pianissimo.transcript import Transcript

FAILURES_FILE = "failed.jsonl"
"""In the output folder: a line for each recording that failed."""
FAILURES_TOLD = 20
"""More of them are not repeated at the end of a run; the file has them all."""


@dataclass
class Report:
    """Transcripts to stdout in the order given, or to files at once; failures to stderr.

    With `folder` the transcripts go to files there. With `as_json` failures are JSON lines too,
    and with `records` each transcript is one.
    """

    inputs: list[Input]
    formats: list[str]
    folder: Path | None
    as_json: bool
    records: bool
    headers: bool
    done: int = 0
    audio_seconds: float = 0.0
    failures: list[tuple[str, BaseException]] = field(default_factory=list)
    bar: "AudioBar | None" = None
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
        elif self.folder is None or self._save(input, transcript):
            self.done += 1
            self.audio_seconds += transcript.duration
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
        """Have a transcript, or what there is of one, printed at its turn or by `flush`."""
        to_print = self.folder is None and not self.as_json
        self._waiting[index] = transcript if to_print else None

    def skip(self, indices: set[int]) -> None:
        """Expect nothing of these recordings."""
        self._waiting.update(dict.fromkeys(indices))

    def fail(self, name: str, error: BaseException) -> None:
        """Keep a failure for the end, and tell it now."""
        self.failures.append((name, error))
        with self._bar_hidden():
            complain(about_file(name, error))
            if self.as_json:
                emit(_failure_line(name, error))

    def flush(self) -> None:
        """Print what is still waiting for a recording before it."""
        for index in sorted(self._waiting):
            self._print(index, self._waiting[index])
        self._waiting.clear()

    def close(self, count: int) -> None:
        """Say how many of `count` recordings failed; with files, which, and keep the list there.

        The list of an earlier run is replaced, or removed if nothing failed in this one.
        """
        if self.headers and self.failures:
            complain(f"{len(self.failures)} of {count} files failed")
        if self.folder is None:
            return
        path = self.folder / FAILURES_FILE
        if not self.failures:
            path.unlink(missing_ok=True)
            return
        if self.headers:
            for name, error in self.failures[:FAILURES_TOLD]:
                complain(f"  {about_file(name, error)}")
            if len(self.failures) > FAILURES_TOLD:
                complain(f"  ... all of them are in {path}")
        lines = "".join(_failure_line(name, error) for name, error in self.failures)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(lines, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            complain(f"{path} cannot be written: {error.strerror}")

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


def _failure_line(name: str, error: BaseException) -> str:
    fault = {"code": getattr(error, "code", "error"), "message": str(error)}
    return json.dumps({"file": name, "error": fault}, ensure_ascii=False) + "\n"


class AudioBar:
    """A bar over the audio of a batch job: files, hours, speed and what is left.

    `seconds` are those of each recording by its index. One of unknown length counts as nothing;
    where none is known the bar only shows that work goes on.
    """

    def __init__(self, seconds: Mapping[int, float | None]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._seconds, self._files = {i: s or 0.0 for i, s in seconds.items()}, 0
        self._total = sum(self._seconds.values())
        # stdout stays as it is: redirected through the bar's console it would end up in stderr.
        self._bar = Progress(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(self._told(0.0, 0.0), total=self._total or None)

    def start(self) -> None:
        self._bar.start()

    def stop(self) -> None:
        self._bar.stop()

    def advance(self, index: int) -> None:
        """This recording is done, or failed."""
        self._files += 1
        task = self._bar.tasks[self._task]
        done = task.completed + self._seconds.get(index, 0.0)
        told = self._told(done, task.elapsed or 0.0)
        self._bar.update(self._task, completed=done, description=told)

    def _told(self, done: float, elapsed: float) -> str:
        parts = [f"{self._files}/{len(self._seconds)} files"]
        if self._total:
            parts.append(f"{clock(done)} of {clock(self._total)} of audio")
        if done and elapsed:
            parts.append(f"{done / elapsed:.0f}x")
            parts.append(f"{clock((self._total - done) * elapsed / done)} left")
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


@contextmanager
def audio_bar(
    report: Report, seconds: Mapping[int, float | None], *, shown: bool
) -> Iterator[None]:
    """A bar for `report` over these recordings, where there is anybody to see it."""
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
