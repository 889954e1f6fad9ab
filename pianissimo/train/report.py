"""What a fine-tuning did: word errors before and after, and a picture of the losses."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pianissimo.train.log import LOG_FILE

REPORT_FILE, PICTURE_FILE = "report.json", "losses.png"


@dataclass(frozen=True)
class FinetuneReport:
    """Word error rates by name ("wer SUBSET MODE"), those of a general set as `old_`.

    `before` is the original model, `after` the saved one, heard as live streams. A `best_step` of 0
    says that nothing was better than the original, whose weights were then kept.
    """

    method: str
    best_step: int
    before: dict[str, float]
    after: dict[str, float]
    old_before: dict[str, float] = field(default_factory=dict)
    old_after: dict[str, float] = field(default_factory=dict)

    def write(self, run: Path) -> None:
        """Into the run's folder, as JSON."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        (run / REPORT_FILE).write_text(text, encoding="utf-8")

    def render(self) -> str:
        """A table for people, a column for each latency mode."""
        rows = [*_rows("new", self.before, self.after)]
        rows += _rows("general", self.old_before, self.old_after)
        modes = list(dict.fromkeys(mode for _, _, rates in rows for mode in rates))
        lines = [["word errors in percent", "", *modes]]
        for name, when, rates in rows:
            lines.append([name, when, *(f"{100 * rates[mode]:.1f}" for mode in modes)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        if self.best_step == 0:
            table.append("nothing was better than the original model: its weights were kept")
        return "\n".join(table)


def _rows(
    name: str, before: dict[str, float], after: dict[str, float]
) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(set and subset, before or after, rate by mode), two rows for each subset."""
    subsets = list(dict.fromkeys(key.split()[1] for key in before))
    for subset in subsets:
        prefix = f"wer {subset} "
        for when, scores in (("before", before), ("after", after)):
            rates = {k.removeprefix(prefix): v for k, v in scores.items() if k.startswith(prefix)}
            yield name if subset == "all" else f"{name} {subset}", when, rates


def draw_losses(run: Path) -> bool:
    """Draw the losses and error rates in a run's log, if matplotlib is there to do it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = [json.loads(line) for line in (run / LOG_FILE).read_text("utf-8").splitlines()]
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, wanted in ((upper, ("loss", "ctc", "transducer")), (lower, ("wer",))):
        names = dict.fromkeys(key for row in rows for key in row if key.split()[0] in wanted)
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), label=name)
        axes.grid(alpha=0.3)
        if names:
            axes.legend(fontsize="small")
    upper.set_ylabel("nats per token")
    lower.set_ylabel("word error rate")
    lower.set_xlabel("step")
    figure.savefig(run / PICTURE_FILE, dpi=120)
    return True
