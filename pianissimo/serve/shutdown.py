"""The server process: it drains before it ends, ends in bounded time, and answers early.

SIGTERM ──drain──> streams saved ──> connections closed ──> exit
   └────────── drain + HARD_STOP_SECONDS at most ───────────┘
"""

import asyncio
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pianissimo.serve.durable.streams import Streams
from pianissimo.serve.service import Service
from pianissimo.serve.websocket import SocketProtocol

WATCH_SECONDS = 0.05
HARD_STOP_SECONDS = 4.5
"""After the drain: a process that still runs then is ended, whatever its threads compute."""
GRACE_SECONDS = 2
"""After the drain: what open requests and sockets get before they are canceled."""
LINGER_SECONDS = 10.0
"""How long the rest of a request is read after its answer was sent."""
MOST_KINDS = 100
QUIET_SECONDS = 10.0
"""Failures of the event loop that repeat are logged once in this time."""

log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn with `SocketProtocol`: drains at the first SIGTERM or SIGINT, ends at the second.

    A watchdog thread ends the process if the event loop or a worker thread does not.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        config.ws, config.timeout_graceful_shutdown = SocketProtocol, GRACE_SECONDS
        super().__init__(config)
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(LoopErrors().handle)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None or not self.started or self._draining is not None:
            self._watch(0.0)
            super().handle_exit(sig, frame)
            return
        service: Service = self._app.state.service
        self._watch(service.settings.drain_seconds)
        self._loop.call_soon_threadsafe(self._begin, sig)

    def _watch(self, drain_seconds: float) -> None:
        """End the process in bounded time; the first watchdog to wake up does it."""
        seconds = drain_seconds + HARD_STOP_SECONDS
        name = "pianissimo-watchdog"
        threading.Thread(target=_stop_hard, args=(seconds,), name=name, daemon=True).start()

    def _begin(self, sig: int) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(sig))

    async def _drain(self, sig: int) -> None:
        service: Service = self._app.state.service
        streams: Streams = self._app.state.streams
        seconds = service.settings.drain_seconds
        service.set_draining(True)
        if not service.idle:
            log.warning("draining: open streams and recordings have %g s to finish", seconds)
        try:
            async with asyncio.timeout(seconds):
                while not service.idle:
                    await asyncio.sleep(WATCH_SECONDS)
        except TimeoutError:
            log.warning(
                "drain time is over: closing %d streams, canceling %d recordings",
                service.seats.in_use,
                service.files.in_use,
            )
        finally:
            service.cancel_recordings()
            # States are saved before clients reconnect elsewhere.
            try:
                await streams.close()
            finally:
                super().handle_exit(sig, None)


def _stop_hard(seconds: float) -> None:
    time.sleep(seconds)
    log.warning("work is still running %g s after the signal; the process ends now", seconds)
    sys.stderr.flush()
    os._exit(0)


class LoopErrors:
    """Logs failures of the event loop, one kind once in `QUIET_SECONDS`.

    Without it a process that has no file descriptor left logs every attempt to accept a connection,
    thousands in a second.
    """

    def __init__(self) -> None:
        self._logged: dict[str, float] = {}
        self._skipped: Counter[str] = Counter()

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        message = str(context.get("message"))
        error = context.get("exception")
        kind, now = f"{message} {type(error).__name__}", time.monotonic()
        if now - self._logged.get(kind, -QUIET_SECONDS) < QUIET_SECONDS:
            self._skipped[kind] += 1
            return
        if len(self._logged) >= MOST_KINDS:
            self._logged.clear()
        self._logged[kind] = now
        skipped = self._skipped.pop(kind, 0)
        note = f" ({skipped} similar messages were not logged)" if skipped else ""
        if isinstance(error, OSError):
            log.error("%s: %s%s", message, error, note)
        else:
            trace = error if isinstance(error, BaseException) else None
            log.error("%s%s", message, note, exc_info=trace)


class EarlyAnswers:
    """Closes the connection of a request that is answered before its body was read.

        request  ──start of the body──┬──the rest, read and dropped for a while──> closed
        answer                        └──sent at once──

    Most clients read nothing before they have sent everything. They would not see the answer if
    the connection closed with it; a client that never stops sending is cut off.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        unread = True

        async def received() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            elif unread and not message.get("more_body", False):
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        while unread:
                            await received()
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, received, sent)


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
