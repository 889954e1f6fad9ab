"""The engine on real people, if their recordings are there, and on the example clips."""

import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterable
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from pianissimo.audio.io import load_audio
from pianissimo.decoding.search import Decoding
from pianissimo.engine.engine import Engine, EngineOptions
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.streaming.endpoint import EndpointRules
from pianissimo.streaming.session import Session
from pianissimo.transcript import StreamEvent
from pianissimo.zoo.load import load

ROOT = Path(__file__).parents[2]
SPEECH = Path(os.environ.get("PIANISSIMO_SPEECH", ROOT.parent / "shared" / "data" / "speech"))
CLIPS = sorted((ROOT / "examples" / "audio").glob("*.flac"))
LATENCIES = (80, 160, 560, 1120)
RATE = 16_000
QUICK = EngineOptions(freeze_garbage=False)


@pytest.fixture(scope="module")
def embedded() -> NativeRecognizer:
    # As streams hear: greedily, and without the constant gain that only a recording can get.
    recognizer = load("embedded-commands", gain="off", decoding=Decoding(beam=1))
    assert isinstance(recognizer, NativeRecognizer)
    return recognizer


def test_pauses_are_found_however_far_ahead_a_client_pushes(embedded: NativeRecognizer) -> None:
    """Rules that ask for the voice know what was heard by then; so does a stream that was saved."""
    rules = EndpointRules(voice=True)
    pause = np.zeros(round(1.6 * RATE), np.float32)
    samples = np.concatenate([part for path in CLIPS[:3] for part in (load_audio(path), pause)])

    def told(events: Iterable[StreamEvent]) -> list[tuple[object, ...]]:
        return [(e.type, e.reason, e.text, e.end) for e in events if e.type != "partial"]

    with embedded.stream(latency_ms=160, endpoint=rules) as stream:
        pushes = [stream.push(samples[at : at + 1600]) for at in range(0, len(samples), 1600)]
        live = told([*chain.from_iterable(pushes), *stream.finish()])
    assert [kind for kind, *_ in live].count("endpoint") >= 3
    with Engine(embedded, max_streams=2, options=QUICK) as engine:
        ahead = engine.open(latency_ms=160, endpoint=rules)
        with engine.lock:  # nothing is heard yet
            ahead.push(samples)
            state = ahead.export()
        ahead.finish()
        again = engine.open(endpoint=rules, state=state)
        again.finish()
        assert told(ahead) == told(again) == live


def recordings() -> list[Path]:
    """Some recordings of several kinds, or the clips."""
    if not (SPEECH / "manifest.jsonl").is_file():
        return CLIPS
    lines = (SPEECH / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["duration"] < 12]
    chosen = [row for row in rows if row["subset"] in ("an4", "digits", "vctk", "speechocean762")]
    return [SPEECH / row["audio_filepath"] for row in random.Random(1).sample(chosen, 24)]


def test_every_stream_of_many_says_what_its_file_gives(embedded: NativeRecognizer) -> None:
    """All modes at once, pushes of all sizes, joined by others halfway."""
    rng = random.Random(2)
    paths = recordings()
    modes = [LATENCIES[i % 4] for i in range(len(paths))]
    with Engine(embedded, max_streams=len(paths), options=QUICK) as engine:
        waiting = [load_audio(path) for path in paths]
        sessions: list[Session | None] = [None] * len(paths)
        while any(len(samples) for samples in waiting):
            for i, samples in enumerate(waiting):
                if len(samples) == 0 or rng.random() < 0.3:
                    continue
                session = sessions[i] or engine.open(latency_ms=modes[i], endpoint=None)
                sessions[i] = session
                size = rng.choice([80, 1280, 5000, 30_000])
                session.push(samples[:size])
                waiting[i] = samples[size:]
                if len(waiting[i]) == 0:
                    session.finish()
        spoken = 0
        for path, mode, session in zip(paths, modes, sessions, strict=True):
            assert session is not None
            [final] = [event for event in session if event.type == "final"]
            whole = embedded.transcribe(path, latency_ms=mode)
            assert final.text == whole.text
            assert [(w.text, w.start, w.end) for w in final.words] == [
                (w.text, w.start, w.end) for w in whole.words
            ]
            spoken += len(final.words)
    assert spoken > len(paths)


@pytest.mark.parametrize("latency", [80, 1120])
def test_the_command_streams_to_the_same_text(latency: int) -> None:
    """Partials grow into the final, and the finals are the text without --stream."""
    clip = str(ROOT / "examples" / "audio" / "number.flac")
    run = [sys.executable, "-m", "pianissimo", "transcribe", clip]
    run += ["--model", "embedded-commands", "--latency", str(latency)]
    whole = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    lines = subprocess.run(
        [*run, "--stream", "--json"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    events = [json.loads(line) for line in lines]
    partials = [e["text"] for e in events if e["type"] == "partial"]
    finals = [e for e in events if e["type"] == "final"]
    for before, after in pairwise(partials):
        assert after.startswith(before)
    assert finals[0]["text"].startswith(partials[-1])
    assert " ".join(e["text"] for e in finals).split() == whole != []


@pytest.mark.slow
def test_an_hour_needs_no_more_than_a_minute(embedded: NativeRecognizer) -> None:
    """Looped speech, faster than real time: memory and the time of a chunk stay flat."""
    sound = np.concatenate([load_audio(path) for path in recordings()])
    minute = np.tile(sound, 60 * 16_000 // len(sound) + 1)[: 60 * 16_000]
    times, memory = [], []
    with Engine(embedded, max_streams=1, options=QUICK) as engine:
        session = engine.open(latency_ms=560)
        for _ in range(60):
            before = engine.stats.step_seconds
            session.push(minute)
            session.finalize()
            while (event := session.get(timeout=300)) is None or event.reason != "finalize":
                pass
            times.append(engine.stats.step_seconds - before)
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert memory[-1] - memory[2] < 20
    assert float(np.median(times[-10:])) < 1.5 * float(np.median(times[1:11]))
