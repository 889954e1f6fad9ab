"""What a live stream costs beside the arithmetic of its model: CPU per second of its audio.

    python bench/intake.py [--streams 50] [--seconds 5] [--rate 16000] [--checkpoints]

The engine gets a null model, which takes no time and says nothing. All streams push frames of
100 ms, one by one and then all in one call, as fast as they are taken; the CPU time of the pushing
thread (checks, resampling, gain, voice detection, and the hand-over) and of the engine's thread
(scheduling, state machines, events) is divided by the seconds of audio. `--checkpoints` also copies
each stream once in five seconds of its audio, as `pianissimo serve --state-folder` does. A table
goes to standard output.
"""

import argparse
import platform
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

import pianissimo
from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.resample import StreamingResampler
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine.engine import Engine
from pianissimo.engine.runner import Runner
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.streaming.grid import ChunkGrid, ChunkWork, TailWork
from pianissimo.streaming.session import Session

CLIPS = Path(__file__).parents[1] / "examples" / "audio"
MODEL_RATE = 16_000
FRAME_SECONDS = 0.1
CHECKPOINT_SECONDS = 5.0
Samples = NDArray[np.float32]


class NullRunner(Runner):
    """Steps that compute nothing and find no tokens."""

    def step(self, works: Sequence[ChunkWork], grid: ChunkGrid) -> list[Hypothesis]:
        return [Hypothesis() for _ in works]

    def finish(self, works: Sequence[TailWork], grid: ChunkGrid) -> list[Hypothesis]:
        return [Hypothesis() for _ in works]


def speech(seconds: float, rate: int) -> list[Samples]:
    """The example clips again and again, in frames of 100 ms."""
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(CLIPS.glob("*.flac"))]
    once = np.concatenate(clips)
    samples = np.resize(once, round(seconds * MODEL_RATE))
    if rate != MODEL_RATE:
        samples = StreamingResampler(MODEL_RATE, rate).push(samples)
    size = round(FRAME_SECONDS * rate)
    return [samples[at : at + size] for at in range(0, len(samples) - size + 1, size)]


def cpu_of(thread: threading.Thread) -> float:
    """CPU seconds of a thread that runs."""
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def engine_costs(
    recognizer: NativeRecognizer,
    frames: list[Samples],
    streams: int,
    rate: int,
    checkpoints: bool,
    at_once: int,
) -> dict[str, float]:
    """CPU seconds of the pushing and of the engine's thread per second of audio."""
    with Engine(recognizer, max_streams=streams) as engine:
        engine.runner = NullRunner(engine.model, streams)
        sessions = [engine.open(sample_rate=rate) for _ in range(streams)]
        for session in sessions:
            session.push(np.concatenate(frames[:10]))
        while engine.queue_age() or not engine.stats.chunks:
            time.sleep(0.01)  # the engine prepares itself
        (thread,) = (t for t in threading.enumerate() if t.name == "pianissimo-engine")
        pushed, stepped, copied = time.thread_time(), cpu_of(thread), 0.0
        for number, frame in enumerate(frames[1:], 1):
            for start in range(0, streams, at_once):
                together = sessions[start : start + at_once]
                Session.push_many([(session, frame) for session in together])
            for i, session in enumerate(sessions):
                if checkpoints and (number + i) % round(CHECKPOINT_SECONDS / FRAME_SECONDS) == 0:
                    began = time.thread_time()
                    session.export()
                    copied += time.thread_time() - began
        while engine.queue_age():
            time.sleep(0.01)
        audio = streams * FRAME_SECONDS * (len(frames) - 1)
        found = {
            "push, all of it": (time.thread_time() - pushed - copied) / audio,
            "engine's thread": (cpu_of(thread) - stepped) / audio,
        }
        if checkpoints:
            found["checkpoints"] = copied / audio
        return found


def part_costs(recognizer: NativeRecognizer, frames: list[Samples], rate: int) -> dict[str, float]:
    """CPU seconds of the parts of a push per second of audio, one stream alone."""
    parts: dict[str, Callable[[Samples], object]] = {}
    if rate != MODEL_RATE:
        parts["push: resampling"] = StreamingResampler(rate, MODEL_RATE).push
    front_end = recognizer.front_end
    if front_end is not None:
        gain, gain_state = FrontEnd(front_end.mode), front_end.start(live=True)
        parts["push: gain"] = lambda frame: gain.push(frame, gain_state)
    detector = recognizer.detector or VoiceDetector()
    state = detector.start()
    parts["push: voice detector"] = lambda frame: detector.push(frame, state)
    found = {}
    for name, push in parts.items():
        push(np.concatenate(frames[:10]))  # models are loaded when they are first used
        began = time.thread_time()
        for frame in frames[1:]:
            push(frame)
        found[name] = (time.thread_time() - began) / (FRAME_SECONDS * (len(frames) - 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--seconds", type=float, default=5.0, help="audio of each stream")
    parser.add_argument("--rate", type=int, default=MODEL_RATE, help="sample rate of the clients")
    parser.add_argument("--checkpoints", action="store_true", help="copy streams as a server does")
    given = parser.parse_args()
    recognizer = pianissimo.load("embedded-commands", device="cpu")
    assert isinstance(recognizer, NativeRecognizer)
    frames = speech(given.seconds, given.rate)
    print(f"{platform.processor() or platform.machine()}, {recognizer.name}, {given.rate} Hz\n")
    print("| streams | cost | ms of CPU per second of audio |\n|---|---|---|")
    for name, cost in part_costs(recognizer, frames, given.rate).items():
        print(f"| 1 | {name} | {1000 * cost:.2f} |")
    for streams in given.streams:
        for at_once in dict.fromkeys((1, streams)):
            costs = engine_costs(
                recognizer, frames, streams, given.rate, given.checkpoints, at_once
            )
            for name, cost in costs.items():
                print(f"| {streams}, {at_once} in a call | {name} | {1000 * cost:.2f} |")


if __name__ == "__main__":
    main()
