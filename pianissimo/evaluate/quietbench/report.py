"""Reports of a benchmark: a summary, tables, curves and an HTML page."""

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pianissimo.errors import MissingExtraError, OptionError
from pianissimo.evaluate.quietbench.gates import Kept
from pianissimo.evaluate.quietbench.run import Result, Speed
from pianissimo.evaluate.quietbench.scenarios import LOW_VOLUME, SCENARIOS
from pianissimo.evaluate.quietbench.tables import (
    FORMS,
    cell,
    markdown,
    non_speech,
    of,
    sweep,
    systems,
)

SUMMARY, TABLE, SWEEP, PAGE = "summary.json", "table.md", "sweep.csv", "report.html"
BEGIN, END = "<!-- quietbench: begin -->", "<!-- quietbench: end -->"
"""Markers around the tables in a Markdown page; see `update_page`."""


def write(
    folder: Path,
    results: Sequence[Result],
    speeds: Sequence[Speed],
    environment: Mapping[str, Any],
    kept: Sequence[Kept] = (),
) -> None:
    """Write summary, tables, sweep and HTML page with plots to `folder`.

    Raises MissingExtraError without matplotlib.
    """
    table = markdown(results, speeds, environment, kept)
    (folder / TABLE).write_text(table, "utf-8")
    (folder / SUMMARY).write_text(
        json.dumps(_summary(results, speeds, environment, kept), indent=1) + "\n", "utf-8"
    )
    with open(folder / SWEEP, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["recognizer", "gain", "form", "level_db", "error", "low", "high"])
        for p in sweep(results):
            error = (p.error.value, p.error.low, p.error.high)
            row = (p.system.recognizer, p.system.gain, p.form, p.level_db, *error)
            writer.writerow(row)
    (folder / PAGE).write_text(html_page(results, table), "utf-8")


def _summary(
    results: Sequence[Result],
    speeds: Sequence[Speed],
    environment: Mapping[str, Any],
    kept: Sequence[Kept],
) -> dict[str, Any]:
    rows = []
    for system in systems(results):
        silent = non_speech(of(results, system, ["nonspeech"]))
        rows.append(
            {
                **asdict(system),
                "scenarios": {
                    scenario.name: asdict(cell(of(results, system, [scenario.name])))
                    for scenario in SCENARIOS
                },
                "all_five": asdict(cell(of(results, system, LOW_VOLUME))),
                "nonspeech": None if silent is None else asdict(silent),
            }
        )
    return {
        "environment": dict(environment),
        "systems": rows,
        "speed": [asdict(speed) for speed in speeds],
        "gates": [asdict(one) for one in kept],
    }


def update_page(page: Path, table: str) -> None:
    """Insert the tables between the markers of a Markdown page; OptionError if it has none."""
    text = page.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise OptionError(f"{page} has no lines {BEGIN} and {END} between which numbers could go")
    page.write_text(f"{before}{BEGIN}\n\n{table}\n{END}{after}", "utf-8")


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { border: 1px solid #ccc; padding: .25rem .6rem; text-align: left; font-size: .9rem }
th { background: #f3f3f3 } img { max-width: 100% } .scroll { overflow-x: auto }
tr.wrong td:first-child { border-left: 4px solid #c33 }
"""


def html_page(results: Sequence[Result], table: str) -> str:
    plots = "".join(
        f'<img alt="{html.escape(title)}" src="data:image/png;base64,{image}">'
        for title, image in _plots(results).items()
    )
    rows = "".join(_clip_row(result) for result in results if not result.group.startswith("sweep"))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'><title>QuietBench</title>"
        f"<style>{_STYLE}</style><h1>QuietBench</h1>{_tables_as_html(table)}{plots}"
        "<h2>Every clip</h2><div class=scroll><table><tr><th>clip<th>gain<th>reference"
        "<th>hypothesis<th>errors<th>level, dB<th>noise, dB<th>gain, dB<th>marks</tr>"
        f"{rows}</table></div></html>"
    )


def _clip_row(result: Result) -> str:
    cells = (
        result.clip,
        f"{result.recognizer}, {result.gain}",
        result.reference,
        result.text if result.error is None else f"({result.error})",
        f"{result.errors} / {result.units}",
        f"{result.speech_db:.1f}",
        f"{result.noise_db:.1f}",
        f"{result.gain_db:+.1f}",
        ", ".join(result.reasons),
    )
    kind = " class=wrong" if result.errors else ""
    return f"<tr{kind}>" + "".join(f"<td>{html.escape(c)}" for c in cells) + "</tr>"


def _tables_as_html(table: str) -> str:
    parts = []
    for block in table.strip().split("\n\n"):
        lines = block.split("\n")
        if not lines[0].startswith("|"):
            parts.append(f"<p>{html.escape(block)}</p>")
            continue
        rows = [[html.escape(c.strip()) for c in line.strip("|").split("|")] for line in lines]
        head = "".join(f"<th>{c}" for c in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{c}" for c in row) + "</tr>" for row in rows[2:])
        parts.append(f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>")
    return "".join(parts)


def _plots(results: Sequence[Result]) -> dict[str, str]:
    """Title to PNG in base64: error per scenario, error over level."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            "the report needs the extra quietbench: pip install 'pianissimo[quietbench]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    images = {}
    shown = systems(results)
    figure, axes = pyplot.subplots(figsize=(10, 4.5))
    for i, system in enumerate(shown):
        bars = [cell(of(results, system, [s.name])).error for s in SCENARIOS]
        places = [k + 0.8 * (i + 0.5) / len(shown) - 0.4 for k in range(len(SCENARIOS))]
        drawn = [(p, bar) for p, bar in zip(places, bars, strict=True) if bar is not None]
        heights = [100 * bar.value for _, bar in drawn]
        spread = [
            [100 * (bar.value - bar.low) for _, bar in drawn],
            [100 * (bar.high - bar.value) for _, bar in drawn],
        ]
        axes.bar([p for p, _ in drawn], heights, 0.8 / len(shown), yerr=spread, label=system.name)
    axes.set_xticks(range(len(SCENARIOS)), [f"{s.name}\n{s.level_db:g} dB" for s in SCENARIOS])
    axes.set_ylabel("error, %")
    axes.legend()
    images["Error per scenario with 95 % intervals"] = _png(figure)
    points = sweep(results)
    if points:
        figure, axes = pyplot.subplots(figsize=(10, 4.5))
        for system in shown:
            for form, style in zip(FORMS, ("--", "-"), strict=True):
                own = [p for p in points if p.system == system and p.form == form]
                levels = [p.level_db for p in own]
                line = axes.plot(
                    levels,
                    [100 * p.error.value for p in own],
                    style,
                    marker="o",
                    label=f"{system.name}, {form}",
                )
                low, high = [100 * p.error.low for p in own], [100 * p.error.high for p in own]
                axes.fill_between(levels, low, high, alpha=0.1, color=line[0].get_color())
        axes.invert_xaxis()
        axes.set_xlabel("active speech level, dB")
        axes.set_ylabel("error, %")
        axes.legend()
        images["Error over level"] = _png(figure)
    return images


def _png(figure: Any) -> str:
    from matplotlib import pyplot

    out = io.BytesIO()
    figure.tight_layout()
    figure.savefig(out, format="png", dpi=110)
    pyplot.close(figure)
    return base64.b64encode(out.getvalue()).decode()
