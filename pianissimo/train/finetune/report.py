"""The result of a fine-tuning: word error rates before and after."""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pianissimo.evaluate.run import ALL

REPORT_FILE = "report.json"
NAME = re.compile(r"wer (.*) (\d+ ms|whole)", re.DOTALL)
"""The subset of a rate, which may have any characters, and its latency mode."""


@dataclass(frozen=True)
class FinetuneReport:
    """Word error rates by name ("wer SUBSET MODE"), those of a general set as `old_`.

    `before` is the original model, `after` the saved one, both as live streams. A `best_step` of 0
    means that no step was better than the original, whose weights were kept. `blend` and
    `blank_discount` were chosen after training, see `settle`.
    """

    method: str
    best_step: int
    before: dict[str, float]
    after: dict[str, float]
    old_before: dict[str, float] = field(default_factory=dict)
    old_after: dict[str, float] = field(default_factory=dict)
    blend: float = 1.0
    blank_discount: float = 0.0

    def write(self, run: Path) -> None:
        """Write it into the run's folder as JSON."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        (run / REPORT_FILE).write_text(text, encoding="utf-8")

    def render(self) -> str:
        """A text table with a column for each latency mode."""
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
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for key in before:
        named = NAME.fullmatch(key)
        assert named is not None
        subset, mode = named.groups()
        for when, scores in (("before", before), ("after", after)):
            rows.setdefault((subset, when), {})[mode] = scores[key]
    for (subset, when), rates in rows.items():
        yield name if subset == ALL else f"{name} {subset}", when, rates
