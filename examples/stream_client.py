# /// script
# requires-python = ">=3.11"
# dependencies = ["websockets>=15"]
# ///
"""Live transcription from a server, across broken connections and restarts of the server.

    pianissimo serve
    python examples/stream_client.py yours.wav
    arecord -q -f S16_LE -r 16000 -t raw | python examples/stream_client.py - --url ws://host:7860

Reads a WAV file of 16 bits, or raw samples (16 bit, mono, 16 kHz) from standard input; --fast sends
a file as fast as the server accepts it. docs/server-api.md describes the protocol: input is counted
in frames, output in events, and after a broken connection both sides continue behind the last
number that the other side has. A server with --state-folder says which frames are in the state that
it stored, and the client keeps the others: if the server is killed, any server that shares the
folder continues from there. If the stream is lost all the same, the client opens a new one and
sends the audio since the last final text again.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import wave
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

LOST = ("no_stream", "frames_lost", "state_invalid")
"""Error codes of a server that cannot continue the stream."""
BLOCK_SECONDS = 0.1
MOST_UNSENT = 600
"""Frames kept without a connection: a minute. Then `send` waits."""
SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}
RETRY = (
    *("server_full", "key_limit", "draining", "restarting", "engine_failed", "engine_full"),
    *("store_down", "taken_over"),
)
"""Error codes of a server that may serve the stream later."""


@dataclass(frozen=True)
class Frame:
    """A message with audio or a command, and where it ends in the audio, in seconds."""

    data: bytes | str
    end: float


class Retry(Exception):
    """The server cannot serve the stream now."""


class StreamClient:
    """One stream; `send`, `finalize` and `finish` need no connection at that moment.

    `on_event` is called with each event: partials as they come, all others exactly once. Times are
    seconds since the first sample.
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
        self.frames: deque[Frame] = deque()  # those that may have to be sent again
        self.dropped = 0  # frames of this stream that are no longer in `frames`
        self.acknowledged = self.events = self.connections = self.restarts = 0
        self.covered = 0  # frames that final texts answer
        self.saved: int | None = None  # frames in the stored state; None if nothing is stored
        self.start = self.end = 0.0  # seconds: where this stream begins, and where the audio ends
        self.changed = asyncio.Event()
        self.room = asyncio.Event()
        width = SAMPLE_BYTES[options.get("encoding") or "pcm_s16le"] * options.get("channels", 1)
        self.bytes_per_second = width * options.get("sample_rate", 16_000)

    async def send(self, samples: bytes) -> None:
        """Queue audio; waits while too much of it could not be sent."""
        while self.dropped + len(self.frames) - self.acknowledged >= MOST_UNSENT:
            self.room.clear()
            await self.room.wait()
        self.end += len(samples) / self.bytes_per_second
        self._queue(samples)

    def finalize(self) -> None:
        """Request the final text of all audio so far; the stream continues."""
        self._queue(json.dumps({"type": "finalize"}))

    def finish(self) -> None:
        """End the audio; `run` returns when all of its text has arrived."""
        self._queue(json.dumps({"type": "finish"}))

    async def run(self) -> None:
        """Connect, and reconnect whenever the connection breaks, until the stream ends.

        Raises RuntimeError if the server refuses the stream for good, OSError if it cannot be
        reached the first time.
        """
        pause = 0.1
        while True:
            try:
                # In the URL the token lets a proxy find the server that has the stream.
                place = f"{self.url}?stream={self.stream}" if self.stream else self.url
                async with connect(place, additional_headers=self.headers) as socket:
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
                if code in (1000, 1008):  # after other codes the next connection may succeed
                    raise RuntimeError(f"the server closed the stream ({closed})") from closed
            except InvalidStatus as refused:
                if refused.response.status_code not in (429, *range(500, 600)):
                    raise
            except (OSError, InvalidMessage):  # the second: cut off within the handshake
                if not self.connections:
                    raise
            except Retry as error:
                if not self.connections:
                    raise RuntimeError(f"the server refused the stream: {error}") from error
            await asyncio.sleep(random.uniform(0.5, 1.0) * pause)
            pause = min(2 * pause, 5.0)

    def _queue(self, data: bytes | str) -> None:
        self.frames.append(Frame(data, self.end))
        self.changed.set()

    async def _open(self, socket: ClientConnection) -> None:
        if self.stream is None:
            first = {"type": "start", **self.options}
        else:
            counts = {"events": self.events, "frames": self.dropped}
            first = {"type": "resume", "stream": self.stream, **counts}
        await socket.send(json.dumps(first))
        ready = json.loads(await socket.recv())
        if ready["type"] != "ready":
            if self.stream is not None and ready.get("code") in LOST:
                self._start_again()
            self._fail(ready)
        self.stream = ready["stream"]
        self.connections += 1
        self.acknowledged = ready["frames"]  # less than before if it goes on from a stored state
        self._drop(ready)

    def _start_again(self) -> None:
        """The server lost the stream: the next one begins where no final text covers the audio."""
        audio = [frame for frame in self.frames if isinstance(frame.data, bytes)]
        first = audio[0] if audio else None
        spoken = len(first.data) / self.bytes_per_second if first is not None else 0.0
        self.start = first.end - spoken if first is not None else self.end
        self.stream = None
        self.dropped = self.acknowledged = self.events = self.covered = 0
        self.saved = None
        self.restarts += 1

    def _fail(self, error: dict[str, Any]) -> None:
        """Raises Retry if a later connection may succeed, RuntimeError otherwise."""
        message = error.get("message", str(error))
        if error.get("code") in (*RETRY, *LOST):
            raise Retry(message)
        raise RuntimeError(f"the server refused the stream: {message}")

    async def _send(self, socket: ClientConnection) -> None:
        """Send the frames that the server does not have, then those that are queued."""
        next_frame = self.acknowledged
        while True:
            self.changed.clear()
            while next_frame < self.dropped + len(self.frames):
                frame = self.frames[next_frame - self.dropped]
                next_frame += 1
                await socket.send(frame.data)
            await self.changed.wait()

    async def _receive(self, socket: ClientConnection) -> bool:
        """Read events until the stream ends (True) or the connection does."""
        async for text in socket:
            event = json.loads(text)
            match event["type"]:
                case "ack":
                    self.acknowledged = max(self.acknowledged, event["frames"])
                    self._drop(event)
                    continue
                case "error":
                    self._fail(event)
                case "partial":
                    self.on_event(self._shifted(event))
                    continue
            if event["event"] > self.events:
                self.events = event["event"]
                event = self._shifted(event)
                if event["type"] == "final":
                    self.covered = max(self.covered, event["frames"])
                    self._drop(event)
                self.on_event(event)
            await socket.send(json.dumps({"type": "ack", "events": self.events}))
            if event["type"] == "end":
                return True
        return False

    def _drop(self, message: dict[str, Any]) -> None:
        """Forget the frames that the server has, a final text covers and the stored state holds."""
        self.saved = message.get("saved", self.saved)
        safe = self.covered if self.saved is None else min(self.covered, self.saved)
        while self.frames and self.dropped < min(self.acknowledged, safe):
            self.frames.popleft()
            self.dropped += 1
        self.room.set()

    def _shifted(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event with times from the first sample on, not from the start of this stream."""
        if not self.start:
            return event
        moved = {name: event[name] + self.start for name in ("start", "end") if name in event}
        words = [
            {**word, "start": word["start"] + self.start, "end": word["end"] + self.start}
            for word in event.get("words", ())
        ]
        return {**event, **moved, **({"words": words} if "words" in event else {})}


async def blocks(path: str, paced: bool) -> AsyncIterator[tuple[bytes, int, int]]:
    """Samples in blocks, their rate and channels; in real time if `paced`."""
    if path == "-":
        size = 2 * round(16_000 * BLOCK_SECONDS)
        while data := await asyncio.to_thread(sys.stdin.buffer.read, size):
            yield data, 16_000, 1
        return
    with wave.open(path) as file:
        if file.getsampwidth() != 2:
            raise SystemExit(f"{path} does not have 16 bits per sample; convert it first")
        rate, channels = file.getframerate(), file.getnchannels()
        while data := file.readframes(round(rate * BLOCK_SECONDS)):
            yield data, rate, channels
            await asyncio.sleep(BLOCK_SECONDS if paced else 0)


def show(event: dict[str, Any]) -> None:
    """Show partial text in one line that is overwritten, final text in lines of its own."""
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
    parser.add_argument("--latency", type=int, help="latency mode in milliseconds")
    parser.add_argument("--fast", action="store_true", help="do not wait between blocks")
    given = parser.parse_args()
    client, running = None, None
    async for data, rate, channels in blocks(given.file, not given.fast):
        if client is None or running is None:
            client = StreamClient(
                given.url,
                show,
                key=os.environ.get("PIANISSIMO_API_KEY"),
                sample_rate=rate,
                channels=channels,
                latency_ms=given.latency,
            )
            running = asyncio.create_task(client.run())
        sending = asyncio.create_task(client.send(data))
        await asyncio.wait({sending, running}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            sending.cancel()
            break
    if client is not None and running is not None:
        client.finish()
        await running


if __name__ == "__main__":
    asyncio.run(main())
