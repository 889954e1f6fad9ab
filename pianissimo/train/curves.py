"""Losses and word error rates of training runs as an SVG.

    python -m pianissimo.train.curves RUN [RUN ...] --out curves.svg

A column for each run, from its `log.jsonl`: losses above, and below them word errors, if any were
counted. Nothing but the standard library is needed.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from pianissimo.errors import OptionError
from pianissimo.train.log import LOG_FILE

LOSSES = ("loss", "ctc", "transducer")
ERRORS = "wer"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")
WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 54, 16, 34, 44
LEGEND_LINE = 14
TICKS = 7
Row = dict[str, float]
Points = list[tuple[float, float]]


def read_log(run: Path) -> list[Row]:
    """The rows of a run's log; OptionError if there is none."""
    path = run / LOG_FILE if run.is_dir() else run
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows: list[Row] = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} is not the log of a training run: {error}") from error
    if not rows:
        raise OptionError(f"{path} is empty; no step is logged yet")
    return rows


def curves(rows: Sequence[Row]) -> tuple[dict[str, Points], dict[str, Points]]:
    """Losses, and word error rates in percent, by name: points of (step, value)."""
    losses: dict[str, Points] = {}
    errors: dict[str, Points] = {}
    for row in rows:
        for name, value in row.items():
            if not math.isfinite(value):
                continue
            if name in LOSSES:
                losses.setdefault(name, []).append((row["step"], value))
            elif ERRORS in name.split():
                errors.setdefault(name, []).append((row["step"], 100 * value))
    return losses, errors


def tick_values(highest: float) -> list[float]:
    """At most `TICKS` round steps from zero to `highest`."""
    raw = highest / TICKS
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [i * step for i in range(math.floor(highest / step) + 1)]


def panel(
    series: dict[str, Points], title: str, unit: str, steps: float, left: float, top: float
) -> Iterator[str]:
    """Lines over the steps, both axes from zero, with a legend below."""
    highest = 1.05 * max((y for points in series.values() for _, y in points), default=0) or 1
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(step: float, value: float) -> tuple[float, float]:
        x, y = left + LEFT + step / steps * width, top + TOP + (1 - value / highest) * height
        return round(x, 1), round(y, 1)

    yield label(left + LEFT + width / 2, top + 20, title, more='font-weight="bold"')
    for value in tick_values(highest):
        x, y = place(0, value)
        yield f'<path d="M{x} {y}h{width}" stroke="#e4e4e4"/>'
        yield label(x - 6, y + 4, f"{value:g}", "end")
    for step in tick_values(steps):
        x, y = place(step, 0)
        yield f'<path d="M{x} {y}v{-height}" stroke="#e4e4e4"/>'
        yield label(x, y + 15, f"{step:g}")
    middle = top + TOP + height / 2
    turned = f'transform="rotate(-90 {left + 14} {middle})"'
    yield label(left + 14, middle, unit, more=turned)
    yield label(left + LEFT + width / 2, top + TOP + height + 30, "step")
    for number, (name, points) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        line = "L".join("{} {}".format(*place(*point)) for point in points)
        yield f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="1.6"/>'
        if len(points) == 1:
            x, y = place(*points[0])
            yield f'<circle cx="{x}" cy="{y}" r="2.6" fill="{color}"/>'
        x, y = left + LEFT + (number % 2) * width / 2, top + HEIGHT + LEGEND_LINE * (number // 2)
        yield f'<path d="M{x} {y - 4}h16" stroke="{color}" stroke-width="1.6"/>'
        yield label(x + 20, y, name, "start")


def label(x: float, y: float, content: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {more}>{escape(content)}</text>'


def svg(runs: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """The whole drawing, a column for each (title, rows) of a run."""
    drawn = [(title, max(1.0, rows[-1]["step"]), *curves(rows)) for title, rows in runs]
    legend = max(len(losses) for _, _, losses, _ in drawn)
    second = HEIGHT + LEGEND_LINE * (legend // 2 + 1)
    most = max(len(errors) for *_, errors in drawn)
    height = second + (HEIGHT + LEGEND_LINE * (most // 2 + 1) if most else 0)
    body: list[str] = []
    for column, (title, steps, losses, errors) in enumerate(drawn):
        body += panel(losses, title, "nats per token", steps, column * WIDTH, 0)
        if errors:
            body += panel(errors, "", "word errors, %", steps, column * WIDTH, second)
    size = f'width="{WIDTH * len(drawn)}" height="{height}"'
    box = f'viewBox="0 0 {WIDTH * len(drawn)} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} font-family="sans-serif"'
    page = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([f'{head} font-size="11">', page, *body, "</svg>\n"])


def draw(runs: Sequence[Path], out: Path) -> None:
    """Write the picture of some runs, each named as its folder; OptionError for one without log."""
    titled = [(run.resolve().name, read_log(run)) for run in runs]
    out.write_text(svg(titled), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="the SVG file to write")
    asked = parser.parse_args(arguments)
    try:
        draw(asked.runs, asked.out)
    except OptionError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
