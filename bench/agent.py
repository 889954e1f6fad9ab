"""A spoken conversation over the realtime socket: voice to voice, and barge-in to silence.

    python bench/agent.py [--turns 20] [--url http://127.0.0.1:11434/v1 --model llama3.2]

Starts `pianissimo serve` in a process of its own, and here a language model that answers at once,
unless `--url` names a real one. A client speaks recorded clips in real time, in packets of 20 ms,
and plays what it gets. By its clock it measures:

- voice to voice: from sending the last sound of a turn to the first audio of the answer;
- barge-in: from sending the first sound of an interruption to `speech_started`, at which a client
  stops playing.

Then it reads the stages from /metrics, times the voice alone, and lets the built-in Whisper
recognize sentences of it. Tables go to standard output.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import uvicorn
from websockets.asyncio.client import ClientConnection, connect

from pianissimo.audio.io import load_audio

ROOT = Path(__file__).resolve().parents[1]
KIT = ROOT.parent / "shared" / "data" / "speech"
RATE, OUTPUT_RATE = 16_000, 24_000
PACKET_SECONDS = 0.02
AUDIBLE_DB = 30.0
"""Frames at most this much below the loud ones belong to the speech."""
ANSWER = (
    "I heard you, and all of it is done. The next thing that I can do for you is up to you. " * 3
)
SENTENCES = (
    "Seven streams at once.",
    "The meeting begins at 7:30 and ends at noon.",
    "Turn left after the second light, then drive for two miles.",
    "That will be $9.99, please.",
)
PLAIN_SENTENCES = (
    "The weather is fine today, and it will stay so until the weekend.",
    "Please turn off the lights in the kitchen before you leave.",
    "Your train leaves from platform four in ten minutes.",
    "I could not find that song, but here is something similar.",
    "She sold her house and moved to a small town near the sea.",
    "The doctor asked him to drink more water and to sleep longer.",
    "Nobody knows why the old clock stopped last night.",
    "We have two messages for you, and one of them is urgent.",
    "Open the window a little, because the room is too warm.",
    "Thank you for calling, and have a wonderful evening.",
)
"""Without numbers in digits, which a recognizer may write in another way."""


def clips() -> list[np.ndarray]:
    """Commands and numbers of people: of the development kit, else the examples."""
    paths = sorted((KIT / "an4").glob("*.flac")) or [ROOT / "examples" / "audio" / "number.flac"]
    return [clip for path in paths if len(clip := speech_of(load_audio(path))) > RATE]


def speech_of(samples: np.ndarray) -> np.ndarray:
    """A clip from its first to its last sound."""
    frames = samples[: len(samples) // 160 * 160].reshape(-1, 160)
    level = 10 * np.log10(np.square(frames).mean(axis=1) + 1e-10)
    loud = np.flatnonzero(level > np.quantile(level, 0.95) - AUDIBLE_DB)
    return samples[loud[0] * 160 : (loud[-1] + 1) * 160]


class Caller:
    """A client with a microphone and a loudspeaker."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.sound = np.zeros(0, np.float32)
        self.last_sound = self.first_sound = self.started = self.answered = 0.0
        self.done = asyncio.Event()
        self.heard = asyncio.Event()
        self.interrupted = asyncio.Event()
        self.late = 0

    async def speak(self) -> None:
        """Send a packet every 20 ms, by the clock: sound while there is some, then silence."""
        size, due = round(PACKET_SECONDS * RATE), time.monotonic()
        resampler = soxr.ResampleStream(RATE, OUTPUT_RATE, 1)
        while True:
            packet, self.sound = self.sound[:size], self.sound[size:]
            sounding = len(packet) > 0
            packet = np.pad(packet, (0, size - len(packet)))
            data = (resampler.resample_chunk(packet) * 32767).astype("<i2").tobytes()
            event = {"type": "input_audio_buffer.append", "audio": base64.b64encode(data).decode()}
            await self.connection.send(json.dumps(event))
            if sounding:
                self.last_sound = time.monotonic()
                self.first_sound = self.first_sound or self.last_sound
            due += PACKET_SECONDS
            await asyncio.sleep(due - time.monotonic())

    async def listen(self) -> None:
        async for text in self.connection:
            event = json.loads(text)
            match event["type"]:
                case "input_audio_buffer.speech_started":
                    self.started = time.monotonic()
                    self.interrupted.set()
                case "response.output_audio.delta" if not self.heard.is_set():
                    self.answered = time.monotonic()
                    self.heard.set()
                case "response.done":
                    self.done.set()
                case "error":
                    raise SystemExit(f"the server reports {event['error']}")

    async def turn(self, clip: np.ndarray) -> float:
        """Say something; returns the seconds until the answer."""
        self.heard.clear()
        self.first_sound = 0.0
        self.sound = clip
        await asyncio.wait_for(self.heard.wait(), 60)
        return self.answered - self.last_sound

    async def interrupt(self, clip: np.ndarray) -> float:
        """Speak into the answer; returns the seconds until the client stops playing."""
        self.interrupted.clear()
        self.first_sound = 0.0
        self.sound = clip
        await asyncio.wait_for(self.interrupted.wait(), 60)
        return self.started - self.first_sound


async def converse(port: int, turns: int, detection: dict[str, Any]) -> tuple[list[float], ...]:
    """Every turn is answered, and every answer interrupted. Returns both times of each turn."""
    random.seed(0)
    sounds = clips()
    answered, stopped = list[float](), list[float]()
    async with connect(f"ws://127.0.0.1:{port}/v1/realtime?model=gpt-realtime") as connection:
        session = {"type": "realtime", "audio": {"input": {"turn_detection": detection}}}
        await connection.send(json.dumps({"type": "session.update", "session": session}))
        caller = Caller(connection)
        tasks = [asyncio.create_task(caller.speak()), asyncio.create_task(caller.listen())]
        await asyncio.sleep(1.0)
        answered.append(await caller.turn(sounds[0]))  # warm up
        for clip in random.choices(sounds, k=turns):
            await asyncio.sleep(random.uniform(0.5, 1.0))
            stopped.append(await caller.interrupt(clip))
            caller.heard.clear()
            await asyncio.wait_for(caller.heard.wait(), 60)
            answered.append(caller.answered - caller.last_sound)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return answered[1:], stopped


async def answer_at_once(scope: Any, receive: Any, send: Any) -> None:
    """A language model that knows its answer."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for word in ANSWER.split(" "):
        choice = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
        body = b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


@contextmanager
def language_model() -> Iterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(answer_at_once, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(10)


@contextmanager
def serving(*options: str) -> Iterator[int]:
    command = [sys.executable, "-m", "pianissimo", "serve", "--port", "0", "--verbose", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(60)


def row(name: str, seconds: Sequence[float]) -> str:
    found = np.quantile(np.array(seconds), [0.5, 0.95, 1.0]) * 1000
    return f"| {name} | {len(seconds)} | " + " | ".join(f"{value:.0f}" for value in found) + " |"


def stages(port: int) -> Iterator[str]:
    """The mean of each stage, from the metrics of the server."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    sums, counts = (
        dict(re.findall(rf'agent_stage_seconds_{kind}{{stage="(\w+)"}} ([\d.e+-]+)', page))
        for kind in ("sum", "count")
    )
    for stage, total in sums.items():
        yield f"| {stage} | {counts[stage]} | {float(total) / float(counts[stage]) * 1000:.0f} |"


def voice_times() -> Iterator[str]:
    """The voice alone, on one thread."""
    import pianissimo

    voice = pianissimo.load_voice()
    first, spent, made = list[float](), 0.0, 0.0
    for sentence in SENTENCES * 5:
        began = time.perf_counter()
        blocks = voice.stream(sentence, seed=1)
        samples = len(next(iter(blocks)))
        first.append(time.perf_counter() - began)
        samples += sum(map(len, blocks))
        spent += time.perf_counter() - began
        made += samples / voice.sample_rate
    yield row("first audio of a sentence", first)
    yield f"\nReal-time factor of the voice: {spent / made:.3f}"


def recognized_back() -> str:
    """The word errors of the built-in Whisper on sentences of the voice."""
    import pianissimo
    from pianissimo.evaluate.wer import ErrorCounts, word_errors
    from pianissimo.text.normalize import normalize_for_scoring

    voice, recognizer = pianissimo.load_voice(), pianissimo.load("whisper-tiny-en")
    found = ErrorCounts()
    for sentence in PLAIN_SENTENCES:
        samples = voice.speak(sentence, seed=1)
        heard = recognizer.transcribe(samples, sample_rate=voice.sample_rate).text
        found += word_errors(normalize_for_scoring(sentence), normalize_for_scoring(heard))
    return f"\nWords recognized back: {found.errors} of {found.words} wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--url", help="a real language model")
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--recognizer", default="embedded-commands")
    parser.add_argument("--smart-turn", help="as of `pianissimo serve`")
    given = parser.parse_args()
    options = ["--llm-model", given.model, "-m", given.recognizer]
    options += ["--smart-turn", given.smart_turn] if given.smart_turn else []
    print("| | n | p50 ms | p95 ms | max ms |\n|---|---|---|---|---|")
    with language_model() as url, serving("--llm-url", given.url or url, *options) as port:
        for detection in ({"type": "server_vad"}, {"type": "semantic_vad"}):
            found = asyncio.run(converse(port, given.turns, detection))
            for name, seconds in zip(("voice to voice", "barge-in"), found, strict=True):
                print(row(f"{name}, {detection['type']}", seconds), flush=True)
        found_stages = list(stages(port))
    for line in voice_times():
        print(line)
    print(recognized_back())
    print("\n| stage | n | mean ms |\n|---|---|---|", *found_stages, sep="\n")


if __name__ == "__main__":
    main()
