"""The log of a training run: console lines, a progress bar, a log file, and TensorBoard."""

import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from pianissimo.errors import MissingExtraError

LOG_FILE = "log.jsonl"


class RunLog:
    """The log of a run: `run/log.jsonl` with one object per line, and messages on the console.

    Losses are averaged between two reports. `tensorboard` also writes event files into the run's
    folder; raises MissingExtraError if that package is not installed. A log that is not `kept`
    writes nothing.
    """

    def __init__(
        self, run: Path, steps: int, *, tensorboard: bool = False, kept: bool = True
    ) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._board = _summary_writer(run) if tensorboard and kept else None
        self._path = run / LOG_FILE if kept else Path(os.devnull)
        self._file = self._path.open("a", encoding="utf-8")
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not kept)
        columns = (TextColumn("training"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        shown = kept and sys.stderr.isatty()
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=self._console, disable=not shown
        )
        self._task = self._bar.add_task("training", total=steps)
        self._sums: dict[str, tuple[float, int]] = {}
        self._seconds, self._since = 0.0, time.monotonic()

    def resume(self, step: int) -> None:
        """Delete the lines of steps after `step`, which a resumed run writes again."""
        if not self._path.is_file():
            return
        self._file.flush()
        rows = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [row for row in rows if row.endswith("\n") and json.loads(row)["step"] <= step]
        self._file.close()
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(f"{time.strftime('%H:%M:%S')} {text}")

    def step(self, step: int, losses: dict[str, Tensor], seconds: float) -> None:
        """Record the losses of one step over `seconds` of audio."""
        for name, value in losses.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + float(value.detach()), count + 1)
        self._seconds += seconds
        self._bar.update(self._task, completed=step)

    def report(self, step: int, where: str, lr: float) -> None:
        """Write the mean losses and the speed since the last report."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        speed = self._seconds / max(time.monotonic() - self._since, 1e-9)
        self.scores(step, {**means, "lr": lr, "audio_seconds_per_second": speed}, shown=False)
        text = " ".join(f"{name} {value:.3f}" for name, value in means.items())
        self.say(f"step {step} {where} {text} lr {lr:.2e} {speed:.0f} s/s")
        self._sums, self._seconds, self._since = {}, 0.0, time.monotonic()

    def scores(self, step: int, values: dict[str, float], *, shown: bool = True) -> None:
        """Write named numbers, such as word error rates."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if shown:
            self.say(" ".join(f"{name} {value:.3f}" for name, value in values.items()))

    def __enter__(self) -> "RunLog":
        self._bar.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._bar.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()


def _summary_writer(run: Path):  # type: ignore[no-untyped-def]
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError(
            "TensorBoard files need the tensorboard package: pip install 'pianissimo[train]'"
        ) from error
    return SummaryWriter(run)
