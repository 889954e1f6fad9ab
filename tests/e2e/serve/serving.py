"""A real server on a free port, for tests: uvicorn in a thread, over a real socket."""

import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import httpx
import numpy as np
import soundfile
import uvicorn

from pianissimo.protocols import Synthesizer
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.app import create_app
from pianissimo.serve.durable.streams import Streams
from pianissimo.serve.service import Service
from pianissimo.serve.settings import Settings
from pianissimo.serve.websocket import SocketProtocol

RATE = 16_000
CLIPS = Path(__file__).parents[3] / "examples" / "audio"


@dataclass(frozen=True)
class Server:
    """A server that runs: where it is, and its inner side."""

    port: int
    service: Service
    streams: Streams
    wyoming_port: int = 0

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def outcomes(self, outcome: str) -> float:
        """How many requests and sockets ended that way."""
        page = httpx.get(self.http + "/metrics").text
        found = re.findall(rf'requests_total{{[^}}]*outcome="{outcome}"}} ([\d.]+)', page)
        return sum(map(float, found))

    def wait_until_empty(self, seconds: float = 10.0) -> None:
        """Until all seats, slots and places are free again; fails if that does not happen."""
        assert self.service.engine is not None
        end = time.monotonic() + seconds
        while not self.service.idle or self.service.engine.stats.streams:
            assert time.monotonic() < end, "a seat, a slot or a place was not given back"
            time.sleep(0.01)


@contextmanager
def serving(
    recognizer: NativeRecognizer | None,
    settings: Settings | None = None,
    voices: Mapping[str, Synthesizer] | None = None,
) -> Iterator[Server]:
    """Serve a recognizer and voices until the block ends, or those in the settings."""
    app = create_app(settings or Settings(), recognizer, voices)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, ws=SocketProtocol, timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        wyoming = 0 if app.state.service.settings.wyoming_port is None else app.state.wyoming.port
        yield Server(listener.getsockname()[1], app.state.service, app.state.streams, wyoming)
    finally:
        server.should_exit = True
        thread.join(120)  # it ends within 15 s on a machine that does nothing else
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def process(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`pianissimo serve` as a process of its own, and its port."""
    command = [sys.executable, "-m", "pianissimo", "serve", "-m", f"m={model}", "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIANISSIMO_")}
    running = subprocess.Popen(
        [*command, "--verbose", *options], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert running.stderr is not None
    try:
        for line in running.stderr:
            if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
                break
        yield running, int(found[1])
    finally:
        running.kill()
        running.wait()
        running.stderr.close()


@cache
def speech(seconds: float, first: int = 0) -> np.ndarray:
    """The example clips one after the other, from the one numbered `first`: float32 (n,)."""
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(CLIPS.glob("*.flac"))]
    once = np.concatenate([*clips[first:], *clips[:first]])
    return np.resize(once, round(seconds * RATE))


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def pcm(samples: np.ndarray) -> bytes:
    """16 bit little endian."""
    return (samples * 32767).astype("<i2").tobytes()


def as_heard(samples: np.ndarray) -> np.ndarray:
    """What arrives of float samples that were sent with 16 bits."""
    return np.frombuffer(pcm(samples), "<i2").astype(np.float32) / 32768
