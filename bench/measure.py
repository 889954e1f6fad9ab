"""One measurement of the streaming engine in a separate process: a `Task` in, rows out.

    python bench/measure.py '{"part": "latency", "model": null, "modes_ms": [160]}'

prints one line of JSON, a list of rows. bench/streaming.py and bench/gpu.py start it and describe
what they measure. Streams have the default endpoint rules, but no watchdog unless requested: how
often it replays audio depends on the weights, which may be random. Times are wall time.
"""

import ctypes
import gc
import json
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from offline import resident_mib, speech

import pianissimo
from pianissimo import Engine, EngineOptions
from pianissimo.audio.io import SAMPLE_RATE, load_audio
from pianissimo.decoding.search import make_search
from pianissimo.engine.arena import Arena
from pianissimo.engine.live_model import live_model
from pianissimo.models.asr import AsrModel
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.streaming.input import StreamInput
from pianissimo.streaming.session import Session

Floats = npt.NDArray[np.float32]
Row = dict[str, Any]

TAPE_SECONDS = 60
OFFSET_SECONDS = 3.7
"""The offset in the audio from stream to stream, as in bench/peers."""
UNTIMED_STEPS = 2
UNTIMED_SECONDS = 2.0
FEWEST_CHUNKS = 8
"""Of each stream in a trial, independent of its length."""
PACKET_SECONDS = 0.02
PAUSES_SECONDS = (0.3, 0.9)
"""Between two requests of the final text, uniformly distributed."""
MEMORY_STREAMS = 32
MEMORY_BACKLOG_SECONDS = 2.0
"""More than the longest chunk; waiting audio takes memory as well."""
NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Task:
    """What to measure: `part` is a name of PARTS, `model` what `pianissimo.load` takes.

    `streams` are the numbers of streams to try, for the capacity the first and the largest one.
    `seconds` is the length of a stream. With None the engine chooses threads and batches; `wav`
    replaces the example clips.
    """

    part: str
    model: str | None = None
    precision: str = "float32"
    device: str = "cpu"
    modes_ms: Sequence[int] = ()
    streams: Sequence[int] = (1,)
    seconds: float = 20.0
    threads: int | None = None
    largest_batch: int | None = None
    largest_frames: int | None = None
    wav: str | None = None


def load(task: Task) -> NativeRecognizer:
    """The recognizer of a task."""
    return pianissimo.load(task.model, device=task.device, dtype=task.precision)


def make_engine(recognizer: NativeRecognizer, task: Task, streams: int, **options: Any) -> Engine:
    chosen = {
        "threads": task.threads,
        "largest_batch": task.largest_batch,
        "largest_frames": task.largest_frames,
        **options,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return Engine(recognizer, max_streams=streams, options=EngineOptions(**given))


class Tape:
    """Endless audio: a repeated recording, with an offset for stream number `row`."""

    def __init__(self, samples: Floats, row: int) -> None:
        self.samples, self.position = samples, round(row * OFFSET_SECONDS * SAMPLE_RATE)

    def read(self, count: int) -> Floats:
        begin = self.position % len(self.samples)
        self.position += count
        part = self.samples[begin : begin + count]
        if len(part) == count:
            return part
        return np.resize(np.roll(self.samples, -begin), count)


def tapes(task: Task, streams: int) -> list[Tape]:
    samples = load_audio(task.wav) if task.wav else speech(TAPE_SECONDS)
    return [Tape(samples, row) for row in range(streams)]


@dataclass(frozen=True)
class Pace:
    """What completes the chunks of a stream: `first` samples, then `chunk` samples each.

    When the first chunk is complete, `waiting` samples have passed the front end.
    """

    first: int
    chunk: int
    waiting: int

    @classmethod
    def of(cls, recognizer: NativeRecognizer, ms: int) -> "Pace":
        """By trial: features and front end look ahead, each in its own steps."""
        grid = recognizer.live.grid(recognizer.live_lookahead(ms))
        front = StreamInput(SAMPLE_RATE, SAMPLE_RATE, recognizer.front_end)
        millisecond = np.zeros(SAMPLE_RATE // 1000, np.float32)
        given = passed = 0
        while passed < grid.needed(0):
            passed += len(front.push(millisecond))
            given += len(millisecond)
        return cls(given, grid.chunk_samples, passed)

    @property
    def chunk_seconds(self) -> float:
        return self.chunk / SAMPLE_RATE

    def sizes(self, seconds: float) -> list[int]:
        """Of the pushes of a stream of this length."""
        chunks = max(FEWEST_CHUNKS, round(seconds / self.chunk_seconds))
        return [self.first] + [self.chunk] * (chunks - 1)


def drain(session: Session) -> None:
    while session.get_nowait() is not None:
        pass


def milliseconds(seconds: Sequence[float]) -> Row:
    """Percentiles by their names in the rows."""
    p50, p95, p99 = (float(v) for v in np.percentile(np.asarray(seconds) * 1000, (50, 95, 99)))
    return {"p50_ms": round(p50, 3), "p95_ms": round(p95, 3), "p99_ms": round(p99, 3)}


# -- at full speed ----------------------------------------------------------------------------


def unpaced(
    recognizer: NativeRecognizer,
    task: Task,
    ms: int,
    streams: int,
    seconds: float,
    at_chunk: Callable[[int], None] = lambda chunk: None,
) -> tuple[list[float], int]:
    """Streams that get their chunks at the same moment, the next when all are answered.

    Returns for each chunk the time until all are answered, and the number of tokens.
    """
    pace = Pace.of(recognizer, ms)
    # At most one complete chunk may wait, so a further push returns after the answer.
    most = pace.waiting / SAMPLE_RATE
    took: list[float] = []
    with make_engine(recognizer, task, streams, backlog_seconds=most) as engine:
        sources = tapes(task, streams)
        sessions = [engine.open(latency_ms=ms, watchdog=None) for _ in sources]
        sizes = pace.sizes(seconds)
        for chunk, size in enumerate(sizes):
            parts = [source.read(size) for source in sources]
            began = time.perf_counter()
            with engine.lock:  # the engine should see them all at once
                for session, part in zip(sessions, parts, strict=True):
                    session.push(part)
            for session in sessions:
                session.push(NOTHING)
            took.append(time.perf_counter() - began)
            for session in sessions:
                drain(session)
            at_chunk(chunk)
        if engine.stats.chunks != len(sizes) * streams:
            raise RuntimeError(f"{engine.stats.chunks} chunks answered of {len(sizes) * streams}")
        return took, engine.stats.tokens


def latency(task: Task) -> list[Row]:
    """Time of a step, and audio per second over all streams."""
    recognizer = load(task)
    rows = []
    for ms in task.modes_ms:
        for streams in task.streams:
            faults = major_faults()
            took, tokens = unpaced(recognizer, task, ms, streams, task.seconds)
            audio = streams * len(took) * ms / 1000
            rows.append(
                {
                    "ms": ms,
                    "streams": streams,
                    **milliseconds(took[UNTIMED_STEPS:]),
                    "audio_per_second": round(audio / sum(took), 3),
                    "tokens_per_second": round(tokens / audio, 2),
                    "steps": len(took),
                    "rss_mb": round(resident_mib()),
                    "major_faults": major_faults() - faults,
                }
            )
    return rows


def major_faults() -> int:
    """Major page faults so far; many mean that memory is short and times are unreliable."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def drift(task: Task) -> list[Row]:
    """Time of a chunk and memory in the last minute of a long stream relative to the first.

    For a stream shorter than two minutes the halves are compared.
    """
    recognizer = load(task)
    rows = []
    for ms in task.modes_ms:
        minute = max(1, min(60_000 // ms, round(500 * task.seconds) // ms))
        resident: list[float] = []

        def note(chunk: int, minute: int = minute, resident: list[float] = resident) -> None:
            if (chunk + 1) % minute == 0:
                resident.append(anonymous_mib())

        unpaced(recognizer, task, ms, 1, UNTIMED_SECONDS)
        took, _ = unpaced(recognizer, task, ms, 1, task.seconds, note)
        first, last = (np.array(part) * 1000 for part in (took[:minute], took[-minute:]))
        rows.append(
            {
                "ms": ms,
                "minutes": round(len(took) * ms / 60_000, 2),
                "first_mean_ms": round(float(first.mean()), 3),
                "last_mean_ms": round(float(last.mean()), 3),
                "mean_ratio": round(float(last.mean() / first.mean()), 4),
                "median_ratio": round(float(np.median(last) / np.median(first)), 4),
                "first_rss_mib": round(resident[0], 1),
                "last_rss_mib": round(resident[-1], 1),
            }
        )
    return rows


# -- in real time ----------------------------------------------------------------------------------


def paced(recognizer: NativeRecognizer, task: Task, ms: int, streams: int) -> Row:
    """Streams in real time, each with its own random phase: from chunk complete to answered.

    `kept_up` is true if 99 % of the chunks are answered before the next is complete, the lateness
    of this clock included, and if no stream is behind at the end. With streams behind, percentiles
    are too low, since the engine counts from the time at which it could have begun.
    """
    pace = Pace.of(recognizer, ms)
    length = pace.chunk_seconds
    untimed = max(1, round(UNTIMED_SECONDS / length))
    sizes = pace.sizes(untimed * length + task.seconds)
    phases = np.sort(np.random.default_rng(streams).uniform(0, length, streams))
    late: list[float] = []
    with make_engine(recognizer, task, streams) as engine:
        engine.stats.delays = deque()  # that keeps all of them
        sources = tapes(task, streams)
        sessions = [engine.open(latency_ms=ms, watchdog=None) for _ in sources]
        began = time.perf_counter()
        for chunk, size in enumerate(sizes):
            if chunk == untimed:
                late.clear()
                with engine.lock:
                    engine.stats.delays.clear()
            for session, source, phase in zip(sessions, sources, phases, strict=True):
                due = began + chunk * length + phase
                ahead = due - time.perf_counter()
                if ahead > 0:
                    time.sleep(ahead)
                late.append(max(0.0, time.perf_counter() - due))
                session.push(source.read(size))
                drain(session)
        with engine.lock:
            delays = [delay for _, delay in engine.stats.delays]
            behind = len(sizes) * streams - engine.stats.chunks
    p99_late = float(np.percentile(late, 99)) * 1000
    # At most one chunk per stream may still be in progress.
    row = {"ms": ms, "streams": streams, **milliseconds(delays), "p99_late_ms": round(p99_late, 3)}
    kept_up = row["p99_ms"] + p99_late < ms and behind <= streams
    return {**row, "behind": behind, "kept_up": kept_up}


def capacity(task: Task) -> list[Row]:
    """Trials with more and more streams, up to the largest number that keeps up."""
    recognizer = load(task)
    rows: list[Row] = []

    def trial(ms: int, streams: int) -> bool:
        rows.append(paced(recognizer, task, ms, streams))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        return bool(rows[-1]["kept_up"])

    for ms in task.modes_ms:
        largest(lambda streams, ms=ms: trial(ms, streams), task.streams[0], task.streams[-1])
    return rows


def largest(works: Callable[[int], bool], first: int, most: int) -> int:
    """The largest number up to `most` that works, to 1/16 of itself: doubling, then bisection."""
    good, bad, number = 0, most + 1, first
    while number <= most and bad > most:
        if works(number):
            good, number = number, number * 2
        else:
            bad = number
    while bad - good > max(1, good // 16):
        number = (good + bad) // 2
        if works(number):
            good = number
        else:
            bad = number
    return good


def final(task: Task) -> list[Row]:
    """Time from `finalize` to its final at random moments of streams in real time."""
    recognizer = load(task)
    rows = []
    for ms in task.modes_ms:
        for streams in task.streams:
            with make_engine(recognizer, task, streams) as engine, ThreadPoolExecutor() as pool:
                jobs = []
                for row, source in enumerate(tapes(task, streams)):
                    session = engine.open(latency_ms=ms, watchdog=None)
                    jobs.append(pool.submit(ask_for_finals, session, source, task.seconds, row))
                times = [t for job in jobs for t in job.result()]
            rows.append({"ms": ms, "streams": streams, "finals": len(times), **milliseconds(times)})
    return rows


def ask_for_finals(session: Session, source: Tape, seconds: float, seed: int) -> list[float]:
    """Push small packets by the clock; at random moments finalize and wait for the answer."""
    random = np.random.default_rng(seed)
    size = round(PACKET_SECONDS * SAMPLE_RATE)
    times: list[float] = []
    began = now = time.perf_counter()
    due, ask = began, began + UNTIMED_SECONDS
    while now < began + max(seconds, 2 * UNTIMED_SECONDS):
        session.push(source.read(size))
        due += PACKET_SECONDS
        if now >= ask:
            asked = time.perf_counter()
            session.finalize()
            while (event := session.get()) is not None and event.reason != "finalize":
                pass
            times.append(time.perf_counter() - asked)
            ask = time.perf_counter() + random.uniform(*PAUSES_SECONDS)
        drain(session)
        time.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
    return times


# -- memory ----------------------------------------------------------------------------------------


def memory(task: Task) -> list[Row]:
    """Memory of a stream in MB: by its tensors, and by the process or device.

    After the streams were used one after another, each has its state and its audio; then they share
    a step, which adds its temporary tensors. The watchdog is on, which keeps seconds of audio.
    """
    recognizer = load(task)
    ms = max(task.modes_ms)
    unpaced(recognizer, task, ms, 1, UNTIMED_SECONDS)
    base = used_mib(task)
    backlog = MEMORY_BACKLOG_SECONDS
    with make_engine(recognizer, task, MEMORY_STREAMS, backlog_seconds=backlog) as engine:
        tensors = engine.runner.arena.bytes_per_stream()
        sessions = [engine.open(latency_ms=ms) for _ in range(MEMORY_STREAMS)]
        sources = tapes(task, MEMORY_STREAMS)
        size = round(PACKET_SECONDS * SAMPLE_RATE)
        for session, source in zip(sessions, sources, strict=True):
            for _ in range(round(task.seconds / PACKET_SECONDS)):
                session.push(source.read(size))
            settle(session)
        alone = used_mib(task) - base
        with engine.lock:
            for session, source in zip(sessions, sources, strict=True):
                session.push(source.read(round(backlog * SAMPLE_RATE)))
        for session in sessions:
            settle(session)
        together = used_mib(task) - base
    return [
        {
            "ms": ms,
            "streams": MEMORY_STREAMS,
            "tensors_mb": round(tensors / 1e6, 3),
            "bfloat16_tensors_mb": round(bfloat16_bytes(recognizer) / 1e6, 3),
            "alone_mb": round(alone * 1.048576 / MEMORY_STREAMS, 3),
            "together_mb": round(together * 1.048576 / MEMORY_STREAMS, 3),
            "before_mb": round(base * 1.048576),
        }
    ]


def used_mib(task: Task) -> float:
    """Memory of this process, or on a GPU that of its tensors."""
    if task.device == "cpu":
        return anonymous_mib()
    return torch.cuda.memory_allocated(task.device) / 2**20


def anonymous_mib() -> float:
    """Resident memory without files, since the system may drop mapped weights at any time."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no RssAnon")


def settle(session: Session) -> None:
    """Wait until all pushed audio is processed."""
    session.finalize()
    while (event := session.get()) is not None and event.reason != "finalize":
        pass


def bfloat16_bytes(recognizer: NativeRecognizer) -> int:
    """Bytes of a stream's tensors for a model in bfloat16: another, untrained one, since 8-bit
    layers cannot compute in it."""
    model = AsrModel(recognizer.model.config).bfloat16().eval()
    live = live_model(model, make_search(model))
    return Arena.allocate(live.encoder, live.decoder, 1).bytes_per_stream()


PARTS: dict[str, Callable[[Task], list[Row]]] = {
    "latency": latency,
    "capacity": capacity,
    "final": final,
    "drift": drift,
    "memory": memory,
}


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    print(json.dumps(PARTS[task.part](task)))


if __name__ == "__main__":
    main()
