"""One stream over as many connections as it takes: docs/server-api.md describes the messages.

Input is counted in frames, output in events. After a broken connection both sides continue behind
the last number that the other side has. If the server has lost the stream, another one begins where
no final text covers the audio.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress

from pianissimo.client.frames import KeptFrames, Message
from pianissimo.errors import (
    MissingExtraError,
    ServerRefusedError,
    ServerUnreachableError,
    StreamLostError,
)

try:
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import (
        ConnectionClosed,
        InvalidHandshake,
        InvalidMessage,
        InvalidStatus,
    )
except ImportError as error:
    raise MissingExtraError(
        "pianissimo.client needs the extra client: pip install 'pianissimo[client]'"
    ) from error

LOST = ("no_stream", "frames_lost", "state_invalid")
"""Error codes of a server that cannot continue the stream."""
LATER = (
    *("server_full", "key_limit", "draining", "restarting", "engine_failed", "engine_full"),
    *("store_down", "taken_over", "idle"),
)
"""Error codes of a server that may serve the stream later."""
REFUSING_CLOSES = (1000, 1008)
"""After other close codes the next connection may succeed."""
TRY_AGAIN_LATER = 1013
"""The close code of a server at its limits."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between connections: doubled after each one that fails."""
OPEN_SECONDS = 30.0
"""How long the server may take for its first answer."""
STABLE_SECONDS = 5.0
"""A connection of this length is no failed attempt, even if it carried nothing."""
KEEPALIVE_SECONDS = 5.0
"""How often the server hears of a client without audio."""


class _Later(Exception):
    """The connection has failed, and a later one may succeed.

    `refused`: the server itself said no, with the code `reason` if it gave one.
    """

    def __init__(self, message: str, refused: bool = False, reason: str | None = None) -> None:
        super().__init__(message)
        self.refused, self.reason = refused, reason


class Connection:
    """The connections of one stream, one after the other.

    `on_event` is called with each message of the server: partials as they come, all others once.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        start: Message,
        frames: KeptFrames,
        on_event: Callable[[Message], None],
        retry_seconds: float,
    ) -> None:
        self.url, self.start, self.frames, self.on_event = url, start, frames, on_event
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.retry_seconds = retry_seconds
        self.token: str | None = None
        self.events = self.connections = self.restarts = 0
        self.ready: Message = {}
        """The last `ready` message."""
        self.held = False
        """No frames are sent, as the caller reads no events."""
        self.changed = asyncio.Event()
        """Set by the caller after a change of `frames` or `held`."""
        self.opened, self.room = asyncio.Event(), asyncio.Event()
        """There has been a connection; the server has acknowledged frames."""
        self._ready_at: float | None = None
        self._progress = 0
        self._complete = False
        """The final text of `finish` has arrived."""

    async def run(self) -> None:
        """Connect, and connect again whenever the connection breaks, until the stream has ended.

        Raises ServerUnreachableError, ServerRefusedError and StreamLostError.
        """
        pause, deadline = FIRST_PAUSE, time.monotonic() + self.retry_seconds
        while True:
            before, self._ready_at = self._progress, None
            try:
                if await self._connect():
                    return
                failure = _Later("the server closed the connection")
            except _Later as later:
                failure = later
            if self._complete and self.token is None:
                return  # a server that forgot the stream had only its last message left
            if not self.connections:
                if failure.refused:
                    raise ServerRefusedError(
                        f"the server refuses the stream: {failure}", failure.reason
                    )
                raise ServerUnreachableError(
                    f"{self.url} cannot be reached ({failure}); check the address, and that the "
                    "server runs"
                )
            now = time.monotonic()
            stable = self._ready_at is not None and now - self._ready_at >= STABLE_SECONDS
            if stable or self._progress > before:
                pause, deadline = FIRST_PAUSE, now + self.retry_seconds
            elif now >= deadline:
                raise ServerUnreachableError(
                    f"{self.url} has not served the stream for {self.retry_seconds:g} s ({failure})"
                )
            # Random, so that the clients of a server that restarts do not return all at once.
            await asyncio.sleep(min(random.uniform(0.5, 1.0) * pause, max(0.0, deadline - now)))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _connect(self) -> bool:
        """One connection: True if the stream has ended, False or _Later if only the connection."""
        # In the URL the token lets a proxy find the server that has the stream.
        place = f"{self.url}?stream={self.token}" if self.token else self.url
        try:
            async with connect(place, additional_headers=self.headers) as socket:
                async with asyncio.timeout(OPEN_SECONDS):
                    await self._open(socket)
                sending = asyncio.create_task(self._send(socket))
                try:
                    return await self._receive(socket)
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else 1006
            why = (closed.rcvd.reason if closed.rcvd else "") or str(closed)
            if code in REFUSING_CLOSES:
                raise ServerRefusedError(f"the server refuses the stream: {why}") from closed
            raise _Later(why, refused=code == TRY_AGAIN_LATER) from closed
        except InvalidStatus as refused:
            status = refused.response.status_code
            if status == 429 or status >= 500:
                raise _Later(f"HTTP status {status}", refused=True) from refused
            raise ServerRefusedError(
                f"{self.url} answers with HTTP status {status}; check that it is a Pianissimo "
                "server, and that it accepts the key"
            ) from refused
        except (OSError, InvalidMessage) as error:  # the second: cut off within the handshake
            raise _Later(str(error) or type(error).__name__) from error
        except InvalidHandshake as error:
            raise ServerRefusedError(f"{self.url} is no WebSocket server: {error}") from error

    async def _open(self, socket: ClientConnection) -> None:
        if self.token is None:
            first = {"type": "start", **self.start}
        else:
            counts = {"events": self.events, "frames": self.frames.dropped}
            first = {"type": "resume", "stream": self.token, **counts}
        with suppress(ConnectionClosed):  # a refused key is reported before the first message
            await socket.send(json.dumps(first))
        ready = json.loads(await socket.recv())
        if ready["type"] != "ready":
            if self.token is not None and ready.get("code") in LOST:
                self._start_again(ready)
            self._fail(ready)
        self.token, self.ready = ready["stream"], ready
        self.connections += 1
        self._ready_at = time.monotonic()
        self.frames.resume(ready)
        self.room.set()
        self.opened.set()

    def _start_again(self, error: Message) -> None:
        """The server lost the stream: the next one begins where no final text covers the audio."""
        self.token, self.events = None, 0
        self.restarts += 1
        if not self.frames.start_again():
            raise StreamLostError(
                f"the server lost the stream ({error.get('message')}), and the client no longer "
                "has all audio without a final text; raise keep_seconds, or finalize more often"
            )

    def _fail(self, error: Message) -> None:
        """Raises _Later if a later connection may succeed, ServerRefusedError otherwise."""
        code, message = error.get("code"), str(error.get("message", error))
        if code in (*LATER, *LOST):
            raise _Later(message, refused=True, reason=code)
        raise ServerRefusedError(f"the server refuses the stream: {message}", code)

    async def _send(self, socket: ClientConnection) -> None:
        """Send the frames that the server does not have, then those that are added."""
        while True:
            self.changed.clear()
            while not self.held and (frame := self.frames.next_unsent()) is not None:
                await socket.send(frame.data)
            try:
                async with asyncio.timeout(KEEPALIVE_SECONDS):
                    await self.changed.wait()
            except TimeoutError:
                await socket.send(json.dumps({"type": "keepalive"}))

    async def _receive(self, socket: ClientConnection) -> bool:
        """Read events until the stream ends (True) or the connection does."""
        async for text in socket:
            event = json.loads(text)
            match event["type"]:
                case "ack":
                    self._progress += event["frames"] > self.frames.acknowledged
                    self.frames.acknowledge(event)
                    self.room.set()
                    continue
                case "error":
                    self._fail(event)
                case "partial":
                    self.on_event(event)
                    continue
            if event["event"] > self.events:
                self.events = event["event"]
                self._progress += 1
                if event["type"] == "final":
                    self.frames.cover(event)
                    self._complete = event["reason"] == "finish"
                self.on_event(event)
            ack = json.dumps({"type": "ack", "events": self.events})
            if event["type"] == "end":
                with suppress(ConnectionClosed):
                    await socket.send(ack)
                return True
            await socket.send(ack)
        return False
