"""The streaming engine on this machine: latency, capacity, time to final, drift and memory.

    python bench/streaming.py [latency] [capacity] [final] [drift] [memory]
    python bench/streaming.py peers --peers PYTHON --peer-models DIR

Without a part named it runs all that it can; `--quick` does so in minutes. The 0.6B model has
random weights, made on the spot. `peers` are other engines on the same weights, run in turn with
ours on the same audio and threads: see bench/peers. What is measured is said in bench/measure.py;
each measurement is a process of its own with the environment of this one, so that for example
OMP_WAIT_POLICY can be tried out. Tables go to standard output.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from measure import PARTS, Row, Task
from plot import svg

BENCH = Path(__file__).parent
PEER = BENCH / "peers" / "stream_peer.py"
PEER_ENGINES = ("nemo", "transformers", "sherpa", "sherpa-int8")
PEER_THREADS = 2
PEER_TIMEOUT_SECONDS = 3600
MANY_FAULTS = 100
"""Pages read back from disk in a measurement that is not to be trusted."""
EMBEDDED, LARGE = "embedded", "0.6b"
USUAL = {EMBEDDED: "float32", LARGE: "int8"}
"""The precision a model is run in on a CPU when one does not think about it."""
QUICK = {
    "precision": "usual",
    "seconds": 6.0,
    "streams": [1, 4],
    "trial_seconds": 3.0,
    "capacity_modes": [560],
    "final_seconds": 6.0,
    "final_modes": [160],
    "drift_minutes": [2.0, 1.0],
    "drift_modes": [560],
    "memory_seconds": 3.0,
}


@dataclass(frozen=True)
class Plan:
    """What to measure: by label, what `pianissimo.load` takes; the rest as on the command line.

    `drift_minutes` are those of the embedded model and of any other.
    """

    models: dict[str, str | None]
    precision: str
    modes_ms: Sequence[int] = (80, 160, 560, 1120)
    device: str = "cpu"
    threads: int | None = None
    largest_batch: int | None = None
    largest_frames: int | None = None
    seconds: float = 20.0
    streams: Sequence[int] = (1, 4, 16)
    trial_seconds: float = 12.0
    capacity_modes: Sequence[int] | None = None
    capacity_range: tuple[int, int] = (4, 4096)
    final_seconds: float = 30.0
    final_modes: Sequence[int] | None = None
    final_streams: Sequence[int] = (1,)
    drift_minutes: tuple[float, float] = (60.0, 5.0)
    drift_modes: Sequence[int] | None = None
    memory_seconds: float = 10.0
    peers: str | None = None
    peer_models: Path | None = None

    def precisions(self, label: str) -> Sequence[str]:
        """Those in which to measure the model of that label."""
        if self.precision == "usual":
            return (USUAL.get(label, "float32"),)
        return ("float32", "int8") if self.precision == "both" else (self.precision,)

    def task(self, part: str, model: str | None, precision: str, **more: Any) -> Task:
        options = {
            "modes_ms": self.modes_ms,
            "device": self.device,
            "threads": self.threads,
            "largest_batch": self.largest_batch,
            "largest_frames": self.largest_frames,
            **more,
        }
        return Task(part, model, precision, **options)


def measure(task: Task, label: str) -> list[Row]:
    """Run a task in a process of its own; its rows, with what they are of."""
    print(f"{task.part}: {label}, {task.precision}", file=sys.stderr, flush=True)
    command = [sys.executable, str(BENCH / "measure.py"), json.dumps(asdict(task))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{task.part} of {label} in {task.precision} failed, see above")
    rows = json.loads(done.stdout.splitlines()[-1])
    return [{"model": label, "precision": task.precision, **row} for row in rows]


def each(plan: Plan, part: str, **more: Any) -> list[Row]:
    """The rows of a part for all models and precisions."""
    rows: list[Row] = []
    for label, model in plan.models.items():
        for precision in plan.precisions(label):
            rows += measure(plan.task(part, model, precision, **more), label)
    return rows


# -- parts -----------------------------------------------------------------------------------------


def latency(plan: Plan) -> list[Row]:
    rows = each(plan, "latency", seconds=plan.seconds, streams=plan.streams)
    print("\nTime of a step, p50 / p95 / p99 in ms, and seconds of audio per second of wall time")
    print("over all streams: each gets its next chunk once all have been answered.\n")
    print(by_mode(rows, ("model", "precision", "streams"), step_cell))
    return rows


def times(row: Row) -> str:
    return " / ".join(f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms"))


def step_cell(row: Row) -> str:
    short = " (memory was short)" if row["major_faults"] > MANY_FAULTS else ""
    return f"{times(row)}, {row['audio_per_second']:.2f}x{short}"


def capacity(plan: Plan) -> list[Row]:
    modes = plan.capacity_modes or plan.modes_ms
    rows: list[Row] = []
    for ms in modes:
        more = {"modes_ms": [ms], "seconds": plan.trial_seconds, "streams": plan.capacity_range}
        rows += each(plan, "capacity", **more)
    keys = ("model", "precision", "ms")
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        if row["kept_up"] and row["streams"] > best.get(key, {"streams": 0})["streams"]:
            best[key] = row
        best.setdefault(key, {**row, "streams": 0})
    print("\nLargest number of streams in real time, each with a phase of its own, whose p99 from")
    print("chunk complete to answered stays under the length of the chunk; that p99 in ms.\n")
    print(by_mode(list(best.values()), ("model", "precision"), capacity_cell))
    return rows


def capacity_cell(row: Row) -> str:
    return f"{row['streams']} ({row['p99_ms']:.0f} ms)" if row["streams"] else "0"


def final(plan: Plan) -> list[Row]:
    modes = plan.final_modes or plan.modes_ms
    more = {"modes_ms": modes, "seconds": plan.final_seconds, "streams": plan.final_streams}
    rows = each(plan, "final", **more)
    print("\nFrom finalize to its final, streams in real time: p50 / p95 / p99 in ms.\n")
    print(by_mode(rows, ("model", "precision", "streams"), times))
    return rows


def drift(plan: Plan) -> list[Row]:
    rows: list[Row] = []
    for label, model in plan.models.items():
        minutes = plan.drift_minutes[0 if label == EMBEDDED else 1]
        for precision in plan.precisions(label):
            more = {"modes_ms": plan.drift_modes or plan.modes_ms, "seconds": minutes * 60}
            rows += measure(plan.task("drift", model, precision, **more), label)
    print("\nTime of a chunk in the last minute of one stream over that in its first, and resident")
    print("memory after each; faster than real time.\n")
    print(listed(rows))
    return rows


def memory(plan: Plan) -> list[Row]:
    rows = each(plan, "memory", seconds=plan.memory_seconds)
    print(
        "\nMemory of a stream in MB: its tensors, those of a model in bfloat16, and growth of the"
    )
    print("process over the loaded model by so many streams, used one by one and then together.\n")
    print(listed(rows))
    return rows


def peers(plan: Plan) -> list[Row]:
    """All engines in turn, for each mode and number of streams."""
    folder = plan.peer_models
    assert plan.peers is not None
    assert folder is not None
    wav = str(folder / "speech.wav")
    threads = plan.threads or PEER_THREADS
    rows: list[Row] = []
    for ms in plan.modes_ms:
        for streams in plan.streams:
            for precision in plan.precisions(LARGE):
                more = {"seconds": plan.seconds, "streams": [streams], "modes_ms": [ms]}
                task = plan.task("latency", str(folder / "model.nemo"), precision, wav=wav, **more)
                ours = f"pianissimo {precision}"
                task = Task(**{**asdict(task), "threads": threads})
                rows += [{**row, "engine": ours} for row in measure(task, ours)]
            for engine in PEER_ENGINES:
                asked = {"engine": engine, "models": folder, "wav": wav, "ms": ms}
                asked |= {"streams": streams, "seconds": plan.seconds, "threads": threads}
                row = run_peer(plan.peers, asked)
                rows += [] if row is None else [row]
    print(
        f"\nThe same model, audio and {threads} threads, in turn: a step's p50 / p95 / p99 in ms,"
    )
    print("and seconds of audio per second of wall time over all streams.\n")
    print(by_mode(rows, ("engine", "streams"), step_cell))
    print("\nOurs over theirs: p50 of a step, and audio per second.\n")
    print(by_mode(ratios(rows), ("ours", "theirs", "streams"), ratio_cell))
    return rows


def run_peer(python: str, asked: dict[str, Any]) -> Row | None:
    """One line of bench/peers/stream_peer.py; None, with its last words, where it fails."""
    print(f"peers: {asked['engine']}", file=sys.stderr, flush=True)
    options = [text for name, value in asked.items() for text in (f"--{name}", str(value))]
    try:
        done = subprocess.run(
            [python, str(PEER), *options],
            capture_output=True,
            text=True,
            timeout=PEER_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        print(f"{asked['engine']}: gave up after an hour", file=sys.stderr)
        return None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        print(f"{asked['engine']} failed: {' '.join(last)}", file=sys.stderr)
        return None
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def ratios(rows: Iterable[Row]) -> list[Row]:
    """Each of our rows over each of theirs of the same mode and number of streams."""
    ours = [row for row in rows if row["engine"].startswith("pianissimo")]
    theirs = [row for row in rows if not row["engine"].startswith("pianissimo")]
    return [
        {
            "ours": a["engine"],
            "theirs": b["engine"],
            "streams": a["streams"],
            "ms": a["ms"],
            "p50": a["p50_ms"] / b["p50_ms"],
            "audio": a["audio_per_second"] / b["audio_per_second"],
        }
        for a in ours
        for b in theirs
        if (a["ms"], a["streams"]) == (b["ms"], b["streams"])
    ]


def ratio_cell(row: Row) -> str:
    return f"{row['p50']:.2f}, {row['audio']:.2f}x"


MEASURES: dict[str, Callable[[Plan], list[Row]]] = {
    "latency": latency,
    "capacity": capacity,
    "final": final,
    "drift": drift,
    "memory": memory,
    "peers": peers,
}


# -- output ----------------------------------------------------------------------------------------


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def by_mode(rows: Sequence[Row], names: Sequence[str], cell: Callable[[Row], str]) -> str:
    """A line for each combination of `names`, a column for each latency mode."""
    modes = sorted({row["ms"] for row in rows})
    lines: dict[tuple[Any, ...], dict[int, str]] = {}
    for row in rows:
        lines.setdefault(tuple(row[name] for name in names), {})[row["ms"]] = cell(row)
    header = [*names, *(f"{ms} ms" for ms in modes)]
    return table(
        header, ([*key, *(cells.get(ms, "–") for ms in modes)] for key, cells in lines.items())
    )


def listed(rows: Sequence[Row]) -> str:
    """A line for each row, a column for each of its numbers."""
    names = [name.replace("_", " ") for name in rows[0]]
    return table(names, (row.values() for row in rows))


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code, and whether the machine was busy before."""
    processors = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processors[0] if processors else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory GiB": round(memory_bytes / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "pianissimo": metadata.version("pianissimo"),
        "load average": round(os.getloadavg()[0], 2),
        "OMP": {name: value for name, value in os.environ.items() if name.startswith("OMP_")},
    }


def run(plan: Plan, parts: Sequence[str], options: argparse.Namespace, **gpu: str | None) -> None:
    """Measure, print, and after each part write the files that were asked for."""
    about = machine() | gpu
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    found: dict[str, Any] = {"machine": about}
    for part in parts:
        print(f"\n## {part.capitalize()}", flush=True)
        found[part] = MEASURES[part](plan)
        save(found, options)


def save(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Write what was found so far."""
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = found.get("capacity", [])
    if options.csv and rows:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    if options.plot and rows:
        text = [{name: str(value) for name, value in row.items()} for row in rows]
        options.plot.write_text(svg(text), encoding="utf-8")


# -- command line ----------------------------------------------------------------------------------


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def minutes(text: str) -> list[float]:
    first, _, second = text.partition(",")
    return [float(first), float(second or first)]


def add_options(parser: argparse.ArgumentParser, parts: Sequence[str]) -> None:
    """The options that bench/gpu.py has as well; their defaults are those of `Plan`."""
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=", ".join(parts))
    add("--model", default="both", help=f"{EMBEDDED}, {LARGE}, both, or a folder or .nemo file")
    add("--modes", type=numbers, dest="modes_ms", help="latencies in ms, 80,160,560,1120")
    add("--threads", type=int, help="of the engine; its own choice by default")
    add("--largest-batch", type=int, help="streams of a step; the engine's choice by default")
    add("--largest-frames", type=int, help="encoder frames of a step; likewise")
    add("--seconds", type=float, help="of audio for each stream of latency and peers")
    add("--streams", type=numbers, help="numbers of streams of latency and peers, 1,4,16")
    add("--trial-seconds", type=float, help="of each trial of capacity")
    add("--capacity-modes", type=numbers, help="only these")
    add("--capacity-range", type=numbers, help="first and largest number of streams to try")
    add("--final-seconds", type=float, help="of each measurement of final")
    add("--final-modes", type=numbers, help="only these")
    add("--final-streams", type=numbers, help="numbers of streams of final, 1")
    add("--drift-minutes", type=minutes, help="of the embedded and of other models, 60,5")
    add("--drift-modes", type=numbers, help="only these")
    add("--memory-seconds", type=float, help="of audio for each stream of memory")
    add("--quick", action="store_true", help="all of it in minutes, for a first look")
    add("--out", type=Path, help="JSON file to write")
    add("--csv", type=Path, help="file for the trials of capacity")
    add("--plot", type=Path, help="SVG of these")


def parse(
    parser: argparse.ArgumentParser, parts: Sequence[str], quick: dict[str, Any]
) -> argparse.Namespace:
    """The options, `quick` in place of the defaults if that is asked for."""
    options = parser.parse_args()
    if options.quick:
        parser.set_defaults(**quick)
        options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(parts))
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}; choose {', '.join(parts)}")
    return options


def make_plan(options: argparse.Namespace, folder: str, **more: Any) -> Plan:
    """The plan of these options; makes the random model in `folder` if it is wanted."""
    models: dict[str, str | None] = {}
    if options.model in (EMBEDDED, "both"):
        models[EMBEDDED] = None
    if options.model in (LARGE, "both"):
        models[LARGE] = folder
        subprocess.run([sys.executable, str(BENCH / "random_model.py"), folder], check=True)
    if not models:
        models[Path(options.model).stem] = options.model
    given = {
        name: value
        for name, value in vars(options).items()
        if name in Plan.__dataclass_fields__ and value is not None
    }
    return Plan(models=models, **given, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser, list(MEASURES))
    parser.add_argument(
        "--precision",
        choices=("float32", "int8", "both", "usual"),
        default="both",
        help="usual: float32 for the embedded model, int8 for 0.6b",
    )
    parser.add_argument("--peers", help="Python of an environment with the peers")
    parser.add_argument("--peer-models", type=Path, help="folder that make_models.py wrote")
    options = parse(parser, list(MEASURES), QUICK)
    can = [*PARTS, "peers"] if options.peers and options.peer_models else list(PARTS)
    parts = options.parts or can
    if "peers" in parts and "peers" not in can:
        parser.error("peers needs --peers PYTHON and --peer-models DIR")
    with tempfile.TemporaryDirectory() as folder:
        if parts == ["peers"]:
            options.model = EMBEDDED  # not used: no need to make the other one
        plan = make_plan(options, folder)
        run(plan, parts, options)


if __name__ == "__main__":
    main()
