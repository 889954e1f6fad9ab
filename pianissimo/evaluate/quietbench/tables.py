"""Results of a benchmark as Markdown tables: errors per scenario, hallucinations, sweeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pianissimo.errors import OptionError
from pianissimo.evaluate.quietbench import statistics
from pianissimo.evaluate.quietbench.gates import Kept
from pianissimo.evaluate.quietbench.run import Result, Speed, read_results
from pianissimo.evaluate.quietbench.scenarios import LOW_VOLUME, SCENARIOS
from pianissimo.evaluate.quietbench.statistics import Interval, Observation

FORMS = ("float", "int16")


@dataclass(frozen=True)
class System:
    """A recognizer in one gain mode: a row of a table."""

    recognizer: str
    weights: str
    gain: str

    @property
    def name(self) -> str:
        return f"{self.recognizer}, gain {self.gain}"


@dataclass(frozen=True)
class Cell:
    """One system on one group of clips."""

    clips: int
    error: Interval | None
    substitutions: int
    deletions: int
    insertions: int
    units: int
    exact: int
    empty: int
    failed: int
    metric: str


@dataclass(frozen=True)
class SweepPoint:
    """The error rate of one system at one level; `form` is float or int16."""

    system: System
    form: str
    level_db: float
    error: Interval


@dataclass(frozen=True)
class NonSpeech:
    """Text that a system wrote for clips without speech."""

    clips: int
    with_text: int
    characters_per_minute: float
    kinds: Mapping[str, str]
    """Kind of clip -> "clips with text / clips"."""


def systems(results: Sequence[Result]) -> list[System]:
    """The systems of the results, in the order of their runs."""
    return list(dict.fromkeys(System(r.recognizer, r.weights, r.gain) for r in results))


def of(results: Sequence[Result], system: System, groups: Sequence[str]) -> list[Result]:
    """The results of one system in some groups."""
    wanted = set(groups)
    return [
        r
        for r in results
        if r.group in wanted and System(r.recognizer, r.weights, r.gain) == system
    ]


def observations(results: Sequence[Result]) -> list[Observation]:
    """Results as observations for the statistics."""
    return [Observation(r.clip, r.speaker, r.errors, r.units) for r in results]


def cell(results: Sequence[Result]) -> Cell:
    """Sums and rates over results."""
    metrics = sorted({result.metric for result in results})
    return Cell(
        clips=len(results),
        error=statistics.rate(observations(results)),
        substitutions=sum(r.substitutions for r in results),
        deletions=sum(r.deletions for r in results),
        insertions=sum(r.insertions for r in results),
        units=sum(r.units for r in results),
        exact=sum(r.errors == 0 for r in results),
        empty=sum(not r.text.strip() for r in results),
        failed=sum(r.error is not None for r in results),
        metric="/".join(metrics),
    )


def non_speech(results: Sequence[Result]) -> NonSpeech | None:
    """Hallucinated text in clips without speech; None without such clips."""
    if not results:
        return None
    spoken = [r for r in results if r.text.strip()]
    kinds: dict[str, list[Result]] = {}
    for result in results:
        kinds.setdefault(result.clip.partition("/")[2].rpartition("-")[0], []).append(result)
    minutes = sum(r.seconds for r in results) / 60
    return NonSpeech(
        clips=len(results),
        with_text=len(spoken),
        characters_per_minute=sum(len(r.text.strip()) for r in results) / minutes,
        kinds={
            kind: f"{sum(bool(r.text.strip()) for r in group)} / {len(group)}"
            for kind, group in kinds.items()
        },
    )


def sweep(results: Sequence[Result]) -> list[SweepPoint]:
    """Error over level, per system and form."""
    points = []
    for system in systems(results):
        for form in FORMS:
            levels = sorted(
                {float(r.group.split()[1]) for r in results if r.group.endswith(f" {form}")},
                reverse=True,
            )
            for level in levels:
                selected = of(results, system, [f"sweep {level:g} {form}"])
                error = statistics.rate(observations(selected))
                if error is not None:
                    points.append(SweepPoint(system, form, level, error))
    return points


def doubling_level(points: Sequence[SweepPoint], reference_db: float = -26.0) -> float | None:
    """The level in dB at which the error is twice that at -26, between points in proportion.

    None if it never doubles, or if there is no error to double.
    """
    ordered = sorted(points, key=lambda point: -point.level_db)
    base = next((p.error.value for p in ordered if p.level_db == reference_db), 0.0)
    if not base:
        return None
    below = [p for p in ordered if p.level_db <= reference_db]
    for louder, softer in pairwise(below):
        if louder.error.value < 2 * base <= softer.error.value:
            share = (2 * base - louder.error.value) / (softer.error.value - louder.error.value)
            return louder.level_db + share * (softer.level_db - louder.level_db)
    return None


# -- tables ----------------------------------------------------------------------------------------


def percent(interval: Interval | None) -> str:
    """ "12.3 (10.1-14.8)": a rate in percent with its 95 % interval."""
    if interval is None:
        return "-"
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})"


def markdown(
    results: Sequence[Result],
    speeds: Sequence[Speed],
    environment: Mapping[str, Any],
    kept: Sequence[Kept] = (),
) -> str:
    """All tables of a run as one piece of Markdown."""
    speech = [r for r in results if r.group in {s.name for s in SCENARIOS}]
    by = statistics.resampled_by(observations(speech))
    parts = [
        _summary_table(results, speeds),
        _scenario_table(results),
        _gain_table(results),
        _non_speech_table(results),
        _sweep_table(results),
        _gate_table(kept),
        f"Errors in percent with 95 % intervals (bootstrap, {statistics.RESAMPLES} resamples of "
        f"{by}). {_about(environment)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(environment: Mapping[str, Any]) -> str:
    models = "; ".join(
        f"{name}: weights {about['weights']}, {about['device']}, {about['dtype']}"
        for name, about in environment.get("recognizers", {}).items()
    )
    return (
        f"{environment.get('processor', 'unknown')}, {environment.get('threads', '?')} threads, "
        f"torch {environment.get('torch', '?')}; {models}. "
        f"Speech: {environment.get('speech', 'unknown')}."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _summary_table(results: Sequence[Result], speeds: Sequence[Speed]) -> str:
    """The columns of the article: mean error, how much quiet speech is right, latency, live."""
    fast = {(speed.recognizer, speed.gain): speed for speed in speeds}
    rows = []
    for system in systems(results):
        quiet = cell(of(results, system, LOW_VOLUME))
        speed = fast.get((system.recognizer, system.gain))  # type: ignore[arg-type]
        right = "-" if quiet.error is None else f"{100 * max(0.0, 1 - quiet.error.value):.1f}"
        rows.append(
            [
                system.name,
                percent(quiet.error),
                f"{right} %",
                f"{100 * quiet.empty / quiet.clips:.1f} %" if quiet.clips else "-",
                "-" if speed is None else f"{speed.p50_ms:.0f} / {speed.p95_ms:.0f} ms",
                "-" if speed is None else f"{speed.realtime_factor:.3f}",
                "-" if speed is None else ("yes" if speed.streams else "no"),
            ]
        )
    header = [
        "recognizer",
        "mean error, five scenarios",
        "low-volume accuracy",
        "empty",
        "latency p50 / p95",
        "RTF",
        "live",
    ]
    return _table(header, rows)


def _scenario_table(results: Sequence[Result]) -> str:
    rows = []
    for system in systems(results):
        cells = [cell(of(results, system, [scenario.name])) for scenario in SCENARIOS]
        rows.append([system.name, *(percent(one.error) for one in cells)])
    return _table(
        ["error", *(f"{scenario.name} {scenario.level_db:g} dB" for scenario in SCENARIOS)], rows
    )


def _gain_table(results: Sequence[Result]) -> str:
    """What the gain changes, clip by clip."""
    rows = []
    names = list(dict.fromkeys((s.recognizer, s.weights) for s in systems(results)))
    for name, weights in names:
        a, b = (System(name, weights, gain) for gain in ("off", "on"))
        for title, groups in (
            *((scenario.name, (scenario.name,)) for scenario in SCENARIOS),
            ("all five", LOW_VOLUME),
        ):
            compared = statistics.compare(
                observations(of(results, a, groups)), observations(of(results, b, groups))
            )
            if compared is not None:
                rows.append(
                    [
                        name,
                        title,
                        percent(compared.difference),
                        compared.verdict("gain off", "gain on"),
                    ]
                )
    header = ["recognizer", "scenario", "gain on minus off, points", "verdict"]
    return _table(header, rows) if rows else ""


def _non_speech_table(results: Sequence[Result]) -> str:
    rows = []
    for system in systems(results):
        silent = non_speech(of(results, system, ["nonspeech"]))
        if silent is not None:
            invented = ", ".join(
                f"{kind} {count}" for kind, count in silent.kinds.items() if count[0] != "0"
            )
            rows.append(
                [
                    system.name,
                    f"{silent.with_text} / {silent.clips}",
                    f"{silent.characters_per_minute:.1f}",
                    invented or "none",
                ]
            )
    header = ["no speech", "clips with text", "characters a minute", "in"]
    return _table(header, rows) if rows else ""


def _sweep_table(results: Sequence[Result]) -> str:
    points = sweep(results)
    levels = sorted({point.level_db for point in points}, reverse=True)
    rows = []
    for system in systems(results):
        for form in FORMS:
            own = [p for p in points if p.system == system and p.form == form]
            if not own:
                continue
            at = {point.level_db: f"{100 * point.error.value:.1f}" for point in own}
            doubled = doubling_level(own)
            rows.append(
                [
                    f"{system.name}, {form}",
                    *(at.get(level, "-") for level in levels),
                    "-" if doubled is None else f"{doubled:.0f} dB",
                ]
            )
    header = ["error at level", *(f"{level:g}" for level in levels), "L50"]
    return _table(header, rows) if rows else ""


def _gate_table(kept: Sequence[Kept]) -> str:
    """What is left behind each gate: percent of the time, and clips that are lost whole."""
    groups = list(dict.fromkeys(one.group.removesuffix(" int16") for one in kept))
    rows = []
    for gate in dict.fromkeys(one.gate for one in kept):
        own = [one for one in kept if one.gate == gate]
        cells = [
            f"{100 * one.share:.0f}" + (f", {one.lost} lost" if one.lost else "") for one in own
        ]
        rows.append([gate, *cells])
    return _table(["% of time kept by gate", *groups], rows) if rows else ""


def comparison(a: Path, b: Path) -> str:
    """Compare two runs by system and scenario, as Markdown.

    Raises OptionError if a folder holds no results, or if the runs share no clip.
    """
    runs = [read_results(folder) for folder in (a, b)]
    for folder, results in zip((a, b), runs, strict=True):
        if not results:
            raise OptionError(f"{folder} holds no results of a benchmark; name its output folder")
    names = [a.name, b.name] if a.name != b.name else [str(a), str(b)]
    rows = []
    for left in systems(runs[0]):
        for right in systems(runs[1]):
            if left.gain != right.gain and left.recognizer == right.recognizer:
                continue
            for title, groups in (
                *((scenario.name, (scenario.name,)) for scenario in SCENARIOS),
                ("all five", LOW_VOLUME),
            ):
                ours, theirs = of(runs[0], left, groups), of(runs[1], right, groups)
                compared = statistics.compare(observations(ours), observations(theirs))
                if compared is not None:
                    verdict = compared.verdict(*names)
                    pair = (f"{left.name} / {right.name}", title)
                    errors = (percent(cell(ours).error), percent(cell(theirs).error))
                    rows.append([*pair, *errors, percent(compared.difference), verdict])
    if not rows:
        raise OptionError(f"{a} and {b} share no clip: run both with the same speech and seed")
    header = ["systems", "scenario", names[0], names[1], "difference, points", "verdict"]
    return _table(header, rows) + "\n"
