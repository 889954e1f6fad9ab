# /// script
# requires-python = ">=3.11"
# dependencies = ["websockets>=15"]
# ///
"""Live words from a server over connections that may break.

    pianissimo serve
    python examples/stream_client.py yours.wav
    arecord -q -f S16_LE -r 16000 -t raw | python examples/stream_client.py - --url ws://host:7860

Reads a WAV file of 16 bits, or raw samples (16 bit, mono, 16 kHz) from standard input; --fast sends
a file as fast as the server takes it. docs/server-api.md describes the protocol: sent frames and
received events are numbered, and after a lost connection each side resumes after the last number
that the other side has.
"""

import argparse
import asyncio
import json
import os
import sys
import wave
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

BLOCK_SECONDS = 0.1
MOST_UNSENT = 600
"""Frames kept without a connection: a minute. After that the audio source waits."""


class StreamClient:
    """One stream; `send`, `finalize` and `finish` work without a connection.

    `on_event` is called with each event: partials as they come, all others exactly once.
    """

    def __init__(
        self,
        url: str,
        on_event: Callable[[dict[str, Any]], None],
        *,
        key: str | None = None,
        **options: Any,
    ) -> None:
        self.url, self.on_event, self.options = f"{url.rstrip('/')}/v1/stream", on_event, options
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.stream: str | None = None
        self.frames: deque[bytes | str] = deque()  # sent or not, but not acknowledged
        self.acknowledged = self.events = self.connections = 0
        self.changed = asyncio.Event()
        self.room = asyncio.Event()

    async def send(self, samples: bytes) -> None:
        """Queue audio; waits while the queue is full."""
        while len(self.frames) >= MOST_UNSENT:
            self.room.clear()
            await self.room.wait()
        self._queue(samples)

    def finalize(self) -> None:
        """Request the final text of all sent audio; the stream continues."""
        self._queue(json.dumps({"type": "finalize"}))

    def finish(self) -> None:
        """End the audio; `run` returns when all text has arrived."""
        self._queue(json.dumps({"type": "finish"}))

    async def run(self) -> None:
        """Connect, and reconnect after a lost connection, until the stream ends."""
        pause = 0.1
        while True:
            try:
                async with connect(self.url, additional_headers=self.headers) as socket:
                    await self._open(socket)
                    pause = 0.1
                    sending = asyncio.create_task(self._send(socket))
                    try:
                        if await self._receive(socket):
                            return
                    finally:
                        sending.cancel()
                        await asyncio.gather(sending, return_exceptions=True)
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd else 1006
                if code in (1000, 1008):  # everything else may be better next time
                    raise
            except InvalidStatus as refused:
                if refused.response.status_code < 500:
                    raise
            except (OSError, InvalidMessage):  # the second: cut in the middle of the handshake
                if not self.connections:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _queue(self, frame: bytes | str) -> None:
        self.frames.append(frame)
        self.changed.set()

    async def _open(self, socket: ClientConnection) -> None:
        if self.stream is None:
            first = {"type": "start", **self.options}
        else:
            first = {"type": "resume", "stream": self.stream, "events": self.events}
        await socket.send(json.dumps(first))
        ready = json.loads(await socket.recv())
        if ready["type"] != "ready" and self.stream and ready.get("code") == "server_full":
            raise OSError("no room to resume at the moment")
        if ready["type"] != "ready":
            raise RuntimeError(f"the server refused the stream: {ready.get('message', ready)}")
        self.stream = ready["stream"]
        self.connections += 1
        self._acknowledge(ready["frames"])

    async def _send(self, socket: ClientConnection) -> None:
        """Send the frames that the server lacks, then the queue."""
        next_frame = self.acknowledged
        while True:
            self.changed.clear()
            while next_frame < self.acknowledged + len(self.frames):
                frame = self.frames[next_frame - self.acknowledged]
                next_frame += 1
                await socket.send(frame)
            await self.changed.wait()

    async def _receive(self, socket: ClientConnection) -> bool:
        """Receive events until the stream ends (True) or the connection breaks."""
        async for text in socket:
            event = json.loads(text)
            match event["type"]:
                case "ack":
                    self._acknowledge(event["frames"])
                    continue
                case "error":
                    raise RuntimeError(f"the stream failed: {event['message']}")
                case "partial":
                    self.on_event(event)
                    continue
            if event["event"] > self.events:
                self.events = event["event"]
                self.on_event(event)
            await socket.send(json.dumps({"type": "ack", "events": self.events}))
            if event["type"] == "end":
                return True
        return False

    def _acknowledge(self, frames: int) -> None:
        while self.acknowledged < frames:
            self.frames.popleft()
            self.acknowledged += 1
        self.room.set()


async def blocks(path: str, paced: bool) -> AsyncIterator[tuple[bytes, int, int]]:
    """Samples in blocks, their rate and channels; paced in real time."""
    if path == "-":
        size = 2 * round(16_000 * BLOCK_SECONDS)
        while data := await asyncio.to_thread(sys.stdin.buffer.read, size):
            yield data, 16_000, 1
        return
    with wave.open(path) as file:
        if file.getsampwidth() != 2:
            raise SystemExit(f"{path} has not 16 bits per sample")
        rate, channels = file.getframerate(), file.getnchannels()
        while data := file.readframes(round(rate * BLOCK_SECONDS)):
            yield data, rate, channels
            await asyncio.sleep(BLOCK_SECONDS if paced else 0)


def show(event: dict[str, Any]) -> None:
    """Overwrite one line with partial text, and print final text on lines of its own."""
    if event["type"] == "partial" and sys.stderr.isatty():
        print(f"\r\x1b[K{event['text'][-78:]}", end="", file=sys.stderr, flush=True)
    elif event["type"] == "final" and event["text"]:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(event["text"], flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", help="a WAV file, or - for raw samples from standard input")
    parser.add_argument("--url", default="ws://127.0.0.1:7860")
    parser.add_argument("--latency", type=int, help="latency mode in ms")
    parser.add_argument("--fast", action="store_true", help="do not wait between blocks")
    asked = parser.parse_args()
    client, running = None, None
    async for data, rate, channels in blocks(asked.file, not asked.fast):
        if client is None:
            client = StreamClient(
                asked.url,
                show,
                key=os.environ.get("PIANISSIMO_API_KEY"),
                sample_rate=rate,
                channels=channels,
                latency_ms=asked.latency,
            )
            running = asyncio.create_task(client.run())
        await client.send(data)
        if running is not None and running.done():
            break
    if client is not None and running is not None:
        client.finish()
        await running


if __name__ == "__main__":
    asyncio.run(main())
