"""All streams of one server by token, and what is stored of them for the next server.

    connected ──gone──> waiting ──linger_seconds──> parked ──resume_seconds──> forgotten
        └─checkpoint─┐                                 │
                     v                                 v
                  the state folder, from which any server that shares it can resume

A stream is stored before its first frame, every `checkpoint_seconds` while it changes, soon after
each final, when it is parked and when the server ends. So a killed server costs its clients the
frames since the last checkpoint, which they send again.
"""

import asyncio
import logging
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from pianissimo.serve.dialects.resumable import ResumableStream, StreamOptions
from pianissimo.serve.durable.folder import Claim, ClaimLost, StateFolder
from pianissimo.serve.errors import Refusal, restarting
from pianissimo.serve.service import Service

MOST_AWAY_PER_SEAT = 4
"""Disconnected streams that are kept for each seat; the oldest are dropped first."""
STORE_THREADS = 4
STORE_SECONDS = 3.0
"""How long the folder may take before a stream continues without it."""
CLAIM_SECONDS = 0.5
"""How long an event waits to learn whether the stream is still here."""
DOWN_SECONDS = 10.0
"""How long events do not wait for a folder that did not answer."""
TICK_SECONDS = 0.1
AFTER_FINAL = 0.2
"""A final brings the next checkpoint to this share of the interval after the last one."""
EXPIRY_SLACK_SECONDS = 60.0
"""Clocks of servers and of a file system differ."""

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class _Stored:
    """What is stored of a stream, and when it is due again, by the monotonic clock."""

    claim: Claim
    frames: int
    events: int
    at: float
    due: float


class Streams:
    """All streams of one server, by token."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._streams: OrderedDict[str, ResumableStream] = OrderedDict()
        self._away: OrderedDict[str, asyncio.Task[None]] = OrderedDict()
        self._stored: dict[str, _Stored] = {}
        self._taking: dict[str, asyncio.Task[ResumableStream | None]] = {}
        self._closing: asyncio.Task[None] | None = None
        folder = service.settings.state_folder
        self._store = None if folder is None else StateFolder(folder)
        self._threads = ThreadPoolExecutor(STORE_THREADS, "pianissimo-store")
        self._checkpoints: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._down_until = 0.0

    def __len__(self) -> int:
        return len(self._streams)

    def start(self, options: StreamOptions) -> ResumableStream:
        """A new stream; it is stored by `keep` once it has a seat."""
        self._check_open()
        token = f"{self.service.settings.replica}.{secrets.token_urlsafe(24)}"
        stream = self._streams[token] = ResumableStream(self.service, options, token)
        return stream

    async def keep(self, stream: ResumableStream) -> None:
        """Store a new stream, so that any server can resume it; without a store it lives here."""
        store = self._store
        model = self.service.store.models.get(stream.options.choice.name)
        if store is None or not self.service.settings.checkpoint_seconds:
            return
        if model is None or not model.latencies_ms:  # streams of offline models cannot be exported
            return
        try:
            claim = await self._in_store(lambda: store.create(stream.token, stream.as_new()))
        except (OSError, TimeoutError, ClaimLost) as error:
            self._report("a new stream could not be stored", error)
            return
        self._note(stream, claim, 0, 0)
        if self._checkpoints is None:
            self._checkpoints = asyncio.create_task(self._keep_checkpoints())

    async def resume(self, token: str) -> ResumableStream:
        """The stream of that token; raises Refusal if it is unknown or expired, StateError if its
        state cannot be used here."""
        self._check_open()
        stream = self._streams.get(token)
        if stream is not None and not await self.still_here(stream):
            await self._lose(stream)
            stream = None
        if stream is None and self._store is not None:
            # Two connections may ask at once; both get the same stream.
            if token not in self._taking:
                task = self._taking[token] = asyncio.create_task(self._take(token))
                task.add_done_callback(lambda _: self._taking.pop(token))
            stream = await asyncio.shield(self._taking[token])
            self._check_open()
        if stream is None:
            raise Refusal(
                404, "the stream is unknown or has expired; start another one", "no_stream"
            )
        return stream

    async def _take(self, token: str) -> ResumableStream | None:
        """Claim a stored stream for this server."""
        store = self._store
        assert store is not None
        try:
            found = await self._in_store(lambda: store.take(token))
        except (OSError, TimeoutError) as error:
            self._report("a stored stream could not be read", error)
            raise Refusal(503, "the store of streams is out of reach", "store_down") from error
        if found is None:
            return None
        claim, state = found
        stream = ResumableStream.restored(self.service, token, state)
        self._streams[token] = stream
        self._note(stream, claim, stream.frames, stream.last_event)
        if self._checkpoints is None and self.service.settings.checkpoint_seconds:
            self._checkpoints = asyncio.create_task(self._keep_checkpoints())
        return stream

    async def still_here(self, stream: ResumableStream) -> bool:
        """Whether no other server has resumed the stream; True if the store does not answer."""
        stored, store = self._stored.get(stream.token), self._store
        if stored is None or store is None or time.monotonic() < self._down_until:
            return True
        try:
            return await self._in_store(lambda: store.holds(stored.claim), CLAIM_SECONDS)
        except (OSError, TimeoutError):
            self._down_until = time.monotonic() + DOWN_SECONDS
            return True

    def connected(self, stream: ResumableStream) -> None:
        """A connection is being attached: the stream must not be parked or dropped."""
        task = self._away.pop(stream.token, None)
        if task is not None:
            task.cancel()

    def disconnected(self, stream: ResumableStream) -> None:
        """The connection is gone; the stream waits for the next one until it expires."""
        if self._streams.get(stream.token) is not stream:
            return
        self._away[stream.token] = asyncio.create_task(self._wait(stream))
        while len(self._away) > MOST_AWAY_PER_SEAT * self.service.seats.capacity:
            token, task = self._away.popitem(last=False)
            task.cancel()
            self._stored.pop(token, None)
            asyncio.create_task(self._streams.pop(token).discard())  # noqa: RUF006  ends by itself

    async def forget(self, stream: ResumableStream) -> None:
        """Drop a stream: the client has everything, or the stream has expired."""
        stored, store = self._stored.pop(stream.token, None), self._store
        if self._streams.get(stream.token) is stream:
            del self._streams[stream.token]
        self.connected(stream)
        await stream.discard()
        if stored is not None and store is not None:
            with suppress(OSError, TimeoutError):  # it expires
                await self._in_store(lambda: store.delete(stored.claim))

    async def _lose(self, stream: ResumableStream) -> None:
        """Another server has the stream: nothing more of it leaves this one."""
        self.service.metrics.checkpoints.labels("lost").inc()
        self._stored.pop(stream.token, None)
        if self._streams.get(stream.token) is stream:
            del self._streams[stream.token]
        self.connected(stream)
        stream.lose()
        await stream.discard()

    async def _wait(self, stream: ResumableStream) -> None:
        settings = self.service.settings
        await asyncio.sleep(settings.linger_seconds)
        await asyncio.shield(asyncio.create_task(self._park(stream)))
        await asyncio.sleep(settings.resume_seconds - settings.linger_seconds)
        self._away.pop(stream.token, None)
        await self.forget(stream)

    async def _park(self, stream: ResumableStream) -> None:
        await stream.park()
        state = stream.save()
        if state is not None:
            await self._write(stream, stream.frames, stream.last_event, lambda: state)

    # -- checkpoints -------------------------------------------------------------------------------

    async def _keep_checkpoints(self) -> None:
        """Store streams when they are due, and delete what other servers left behind."""
        settings, store = self.service.settings, self._store
        assert store is not None
        kept_seconds = settings.resume_seconds + EXPIRY_SLACK_SECONDS
        expiry = 0.0
        while not self._ending.is_set():
            now = time.monotonic()
            due = [stream for stream in self._streams.values() if self._is_due(stream, now)]
            for outcome in await asyncio.gather(
                *map(self._checkpoint, due), return_exceptions=True
            ):
                if isinstance(outcome, BaseException):
                    log.error("a checkpoint failed", exc_info=outcome)
            ages = [now - s.at for t, s in self._stored.items() if self._changed(t, s)]
            self.service.metrics.checkpoint_age.set(max(ages, default=0.0))
            if now >= expiry:
                expiry = now + kept_seconds / 2
                with suppress(OSError, TimeoutError):
                    await self._in_store(lambda: store.delete_expired(kept_seconds))
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._ending.wait()

    def _changed(self, token: str, stored: _Stored) -> bool:
        stream = self._streams.get(token)
        return stream is not None and (stored.frames, stored.events) != (
            stream.frames,
            stream.last_event,
        )

    def _is_due(self, stream: ResumableStream, now: float) -> bool:
        stored, settings = self._stored.get(stream.token), self.service.settings
        if stored is None:
            return False
        if not self._changed(stream.token, stored):
            return now - stored.at > settings.resume_seconds / 3
        soon = stored.due - (1 - AFTER_FINAL) * settings.checkpoint_seconds
        return now >= (soon if stream.last_event > stored.events else stored.due)

    async def _checkpoint(self, stream: ResumableStream) -> None:
        stored, store = self._stored.get(stream.token), self._store
        if stored is None or store is None:
            return
        snapshot = await stream.snapshot() if self._changed(stream.token, stored) else None
        if snapshot is not None:
            await self._write(stream, snapshot.frames, snapshot.events, snapshot.to_bytes)
            return
        if self._changed(stream.token, stored) and (state := stream.save()) is not None:
            await self._write(stream, stream.frames, stream.last_event, lambda: state)
            return
        # Nothing changed, or it is about to end: the stored state is good for longer.
        try:
            await self._in_store(lambda: store.touch(stored.claim))
        except ClaimLost:
            await self._lose(stream)
            return
        except (OSError, TimeoutError) as error:
            self._report("a stored stream could not be kept", error)
        stored.at = time.monotonic()
        stored.due = stored.at + self.service.settings.checkpoint_seconds

    async def _write(
        self,
        stream: ResumableStream,
        frames: int,
        events: int,
        to_bytes: Callable[[], bytes],
        *,
        sync: bool = False,
    ) -> None:
        """Store a state of a stream; the stream is lost if another server has it."""
        stored, store = self._stored.get(stream.token), self._store
        if stored is None or store is None:
            return
        try:
            await self._in_store(lambda: store.write(stored.claim, frames, to_bytes(), sync=sync))
        except ClaimLost:
            await self._lose(stream)
        except (OSError, TimeoutError) as error:
            self._report("a stream could not be stored", error)
            stored.due = time.monotonic() + self.service.settings.checkpoint_seconds
        else:
            self.service.metrics.checkpoints.labels("stored").inc()
            self._note(stream, stored.claim, frames, events)

    def _note(self, stream: ResumableStream, claim: Claim, frames: int, events: int) -> None:
        """The state after `frames` frames is stored: the client may drop these frames."""
        now, interval = time.monotonic(), self.service.settings.checkpoint_seconds
        first = stream.token not in self._stored
        # Streams that began together do not stay together.
        due = now + (random.uniform(0.5, 1.0) if first else 1.0) * interval
        self._stored[stream.token] = _Stored(claim, frames, events, now, due)
        stream.saved = frames
        stream.news.set()

    def _report(self, what: str, error: BaseException) -> None:
        self.service.metrics.checkpoints.labels("failed").inc()
        log.warning("%s (%s): %s", what, self.service.settings.state_folder, error or "no answer")

    async def _in_store(self, work: Callable[[], T], seconds: float = STORE_SECONDS) -> T:
        """Work on the folder in a thread; raises TimeoutError if the folder does not answer."""
        async with asyncio.timeout(seconds):
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # -- the end -----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closing is not None:
            raise restarting()

    async def close(self) -> None:
        """Park all streams, save them if there is a state folder, and then close the connections.

        Returns when all streams are closed; may be called again.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._suspend_all())
        await asyncio.shield(self._closing)

    async def _suspend_all(self) -> None:
        self._ending.set()
        if self._checkpoints is not None:
            await self._checkpoints  # not canceled: events that it copies must not be lost
        for task in self._away.values():
            task.cancel()
        async with asyncio.TaskGroup() as group:
            for stream in [*self._streams.values()]:
                group.create_task(self._suspend(stream))
        self._streams.clear()
        self._stored.clear()
        self._threads.shutdown(wait=False)

    async def _suspend(self, stream: ResumableStream) -> None:
        data, store = await stream.suspend(), self._store
        if data is not None and store is not None:
            if stream.token not in self._stored:  # without checkpoints it was not stored before
                with suppress(OSError, TimeoutError):
                    claim = await self._in_store(lambda: store.create(stream.token, data))
                    self._note(stream, claim, stream.frames, stream.last_event)
            await self._write(stream, stream.frames, stream.last_event, lambda: data, sync=True)
        stream.disconnect()
        await stream.discard()
