"""Two servers that share a state folder, a proxy before them, and clients that are timed."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import numpy as np
from cutting import events_of
from serving import RATE, pcm

from pianissimo.client import ClientStream, connect
from pianissimo.transcript import StreamEvent
from pianissimo.zoo.catalog import ASSETS, EMBEDDED

BLOCK = RATE // 10


class Replica:
    """`pianissimo serve` with a name, on one port, started again and again."""

    def __init__(self, name: str, folder: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.name, self._folder, self._options = name, folder, options
        self.running: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "pianissimo", "serve", "-m", f"m={ASSETS / EMBEDDED}"]
        options = ["--port", str(self.port), "--replica", self.name, "--verbose"]
        state = ["--state-folder", str(self._folder), "--drain-seconds", "0.5"]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PIANISSIMO_")}
        self.running = subprocess.Popen(
            [*command, *options, *state, "--device", "cpu", *self._options],
            stderr=subprocess.PIPE,
            text=True,
            env={**clean, "OMP_NUM_THREADS": "1"},
        )
        assert self.running.stderr is not None
        for line in self.running.stderr:
            if re.search(r"running on http", line):
                threading.Thread(target=self._drop_log, daemon=True).start()
                return
        raise AssertionError("the server did not start")

    def send(self, number: signal.Signals) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        assert self.running is not None
        self.running.send_signal(number)
        self.running.wait(30)

    def _drop_log(self) -> None:
        assert self.running is not None and self.running.stderr is not None
        with self.running.stderr as log:
            for _ in log:
                pass


@contextmanager
def replicas(folder: Path, *names: str, options: tuple[str, ...] = ()) -> Iterator[list[Replica]]:
    """Servers of these names with one state folder, until the block ends."""
    servers = [Replica(name, folder, *options) for name in names]
    try:
        for server in servers:
            server.start()
        yield servers
    finally:
        for server in servers:
            if server.running is not None and server.running.poll() is None:
                server.send(signal.SIGCONT)
                server.stop()


class Router:
    """Passes connections on to the servers in turn; one that does not answer is left out."""

    def __init__(self, servers: list[Replica]) -> None:
        self.servers, self._turn = servers, 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self.servers:
            self._turn += 1
            with suppress(OSError):
                port = self.servers[self._turn % len(self.servers)].port
                there, back = await asyncio.open_connection("127.0.0.1", port)
                break
        else:
            writer.transport.abort()
            return
        jobs = [
            asyncio.create_task(_pass(reader, back)),
            asyncio.create_task(_pass(there, writer)),
        ]
        await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        for end in (writer, back):
            end.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()


async def paced(
    port: int, samples: np.ndarray, seconds: float, opened: list[float]
) -> tuple[list[StreamEvent], ClientStream]:
    """All events but partials of samples sent over about `seconds`, and the stream; the time of
    each of its connections goes into `opened`."""
    async with connect(f"ws://127.0.0.1:{port}", sample_rate=RATE) as stream:
        reading = asyncio.create_task(events_of(stream))
        watching = asyncio.create_task(_note_connections(stream, opened))
        count = -(-len(samples) // BLOCK)
        began = time.monotonic()
        for number in range(count):
            await stream.send(pcm(samples[number * BLOCK : (number + 1) * BLOCK]))
            if number % 37 == 36:
                await stream.finalize()
            due = began + (number + 1) * seconds / count
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await stream.finish()
        events = await asyncio.wait_for(reading, 120)
        watching.cancel()
    return events, stream


async def _note_connections(stream: ClientStream, opened: list[float]) -> None:
    """The time of each connection, within 5 ms."""
    while True:
        while len(opened) < stream.connections:
            opened.append(time.monotonic())
        await asyncio.sleep(0.005)
