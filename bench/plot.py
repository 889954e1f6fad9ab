"""Streams against p99 as an SVG, from the CSV of bench/streaming.py.

    python bench/plot.py CSV SVG

One panel for each model; lines by latency mode, broken for int8; a dotted line at the length of a
chunk, the limit of a mode's p99. Hollow points did not keep up.
"""

import csv
import math
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
WIDTH, HEIGHT = 420, 360
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 34, 88
LINE = 'fill="none" stroke-width="1.6"'
Row = dict[str, str]


class LogScale:
    """The position of a value on a logarithmic axis."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.low, self.high = min(values) / 1.2, max(values) * 1.2
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self, steps: Sequence[int]) -> list[float]:
        """The ticks of the axis: multiples of powers of ten in its range."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = (step * 10.0**decade for decade in decades for step in steps)
        return [value for value in values if self.low <= value <= self.high]


def label(x: float, y: float, content: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" {more}>{escape(content)}</text>'


def series(rows: Sequence[Row]) -> dict[tuple[int, str], list[Row]]:
    """Rows by mode and precision, each by the number of streams."""
    lines: dict[tuple[int, str], list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["streams"])):
        lines.setdefault((int(row["ms"]), row["precision"]), []).append(row)
    return dict(sorted(lines.items()))


def panel(model: str, rows: Sequence[Row], left: float) -> Iterator[str]:
    """The drawing of one model, `left` of the page's edge."""
    modes = sorted({int(row["ms"]) for row in rows})
    x = LogScale([float(row["streams"]) for row in rows], left + LEFT, left + WIDTH - RIGHT)
    times = [float(row["p99_ms"]) for row in rows] + [float(ms) for ms in modes]
    y = LogScale(times, HEIGHT - BOTTOM, TOP)
    yield label(left + WIDTH / 2, 20, model, more='font-weight="bold"')
    for value in x.ticks((1, 2, 5)):
        if value >= 1:
            yield f'<path d="M{x(value)} {y.start}V{y.end}" stroke="#e4e4e4"/>'
            yield label(x(value), y.start + 15, f"{value:.0f}")
    for value in y.ticks((1, 2, 5)):
        yield f'<path d="M{x.start} {y(value)}H{x.end}" stroke="#e4e4e4"/>'
        yield label(x.start - 6, y(value) + 4, f"{value:g}", "end")
    yield label((x.start + x.end) / 2, y.start + 32, "streams in real time")
    middle = (y.start + y.end) / 2
    turned = f'transform="rotate(-90 {left + 16} {middle})"'
    yield label(left + 16, middle, "p99 from chunk complete to answered, ms", more=turned)
    for ms in modes:
        limit, color = y(ms), COLORS[modes.index(ms) % len(COLORS)]
        yield f'<path d="M{x.start} {limit}H{x.end}" stroke="{color}" stroke-dasharray="1 4"/>'
    for number, ((ms, precision), line) in enumerate(series(rows).items()):
        color = COLORS[modes.index(ms) % len(COLORS)]
        dashes = 'stroke-dasharray="6 4"' if precision == "int8" else ""
        points = [(x(float(row["streams"])), y(float(row["p99_ms"]))) for row in line]
        path = "M" + "L".join(f"{a} {b}" for a, b in points)
        yield f'<path d="{path}" stroke="{color}" {LINE} {dashes}/>'
        for (a, b), row in zip(points, line, strict=True):
            fill = color if row["kept_up"] == "True" else "#ffffff"
            yield f'<circle cx="{a}" cy="{b}" r="2.6" fill="{fill}" stroke="{color}"/>'
        column, place = number % 3, y.start + 50 + 14 * (number // 3)
        at = left + LEFT + column * 118
        yield f'<path d="M{at} {place - 4}h18" stroke="{color}" {LINE} {dashes}/>'
        yield label(at + 22, place, f"{ms} ms {precision}", "start")


def svg(rows: Sequence[Row]) -> str:
    """The whole drawing of rows as they stand in the CSV."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    body: list[str] = []
    for number, model in enumerate(models):
        body += panel(model, [row for row in rows if row["model"] == model], number * WIDTH)
    size = f'width="{WIDTH * len(models)}" height="{HEIGHT}"'
    box = f'viewBox="0 0 {WIDTH * len(models)} {HEIGHT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} font-family="sans-serif"'
    page = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([f'{head} font-size="11">', page, *body, "</svg>\n"])


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    with source.open(newline="", encoding="utf-8") as file:
        target.write_text(svg(list(csv.DictReader(file))), encoding="utf-8")


if __name__ == "__main__":
    main()
