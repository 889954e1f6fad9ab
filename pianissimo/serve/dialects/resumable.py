"""Streams that outlive their connection and, with a state folder, the server.

Input is counted in frames (a message with audio, or a command), output in events; both counts begin
at 1 and have no gaps. To resume, the client states the last event it has and gets the last frame
that arrived; both sides send the rest again. Nothing is lost or duplicated.
"""

import asyncio
import base64
import hashlib
import json
import logging
import os
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pianissimo.decoding.hotwords import Phrase
from pianissimo.engine.engine import Engine
from pianissimo.engine.segmented import SegmentedEngine
from pianissimo.errors import PianissimoError, StateError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.audio_in.pcm import Encoding, PcmReader
from pianissimo.serve.errors import Refusal, restarting
from pianissimo.serve.feed import Feed
from pianissimo.serve.service import NO_PAUSES, Service
from pianissimo.serve.versions.store import Lease, ModelChoice
from pianissimo.streaming.endpoint import EndpointRules
from pianissimo.streaming.session import Session
from pianissimo.transcript import StreamEvent

DIALECT = "stream"
Command = Literal["finalize", "finish"]
MOST_UNACKNOWLEDGED = 1000
"""Unacknowledged events that are kept; with more the stream pauses."""
MOST_AWAY_PER_SEAT = 4
"""Disconnected streams that are kept for each seat; the oldest are dropped first."""
LAST_SECONDS = 5.0
"""How long a finishing stream may take when the server ends."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamOptions:
    """The options of a start message, and the chosen model.

    `endpoint` None: no pause ends an utterance. `session` identifies the stream in experiments.
    """

    sample_rate: int
    encoding: Encoding
    channels: int
    latency_ms: int | None
    endpoint: EndpointRules | None
    choice: ModelChoice
    session: str
    boost: tuple[Phrase, ...] = ()


class ResumableStream:
    """One stream, connected or not.

    It holds a seat and a stream of the engine until it is parked; a parked stream is all in
    `_state`. From its first connection on it holds a lease, since its state depends on the weights.
    """

    def __init__(
        self, service: Service, options: StreamOptions, token: str, state: bytes | None = None
    ) -> None:
        self.service, self.options, self.token = service, options, token
        self.frames = 0
        self.events: deque[tuple[int, dict[str, object]]] = deque()
        self.last_event = 0
        self.partial: dict[str, object] | None = None
        self.ended = False
        self.finishing = False
        self.news = asyncio.Event()
        self.displaced = asyncio.Event()
        self.closing_reason: Refusal | None = None
        """Why the current connection is closed."""
        self.reader = PcmReader(options.encoding, options.channels)
        self._room = asyncio.Event()
        self._lock = asyncio.Lock()
        self._attached = asyncio.Lock()
        self._connected = self._suspending = False
        self._lease: Lease | None = None
        self._feed: Feed | None = None
        self._account: Account | None = None
        self._pump: asyncio.Task[None] | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._state = state
        self._finals_requested: deque[float] = deque()
        self.failure: PianissimoError | None = None

    @property
    def done(self) -> bool:
        """Whether the client has acknowledged everything."""
        return self.ended and not self.events and self.failure is None

    @property
    def gain_db(self) -> float:
        """The current gain in front of the model; 0 for a parked stream."""
        return 0.0 if self._feed is None else self._feed.session.gain_db

    # -- the connection ----------------------------------------------------------------------------

    @asynccontextmanager
    async def attached(self, account: Account) -> AsyncIterator[None]:
        """Attach a connection; the previous one is closed.

        Usage is metered on the `account` of the connection that activated the stream.
        """
        taken_over = Refusal(409, "another connection resumed this stream", "taken_over")
        self._displace(taken_over)
        async with self._attached:
            self._check_stays()
            if self.closing_reason is not taken_over:  # a newer connection waits already
                raise taken_over
            self.displaced.clear()
            async with self._lock:
                if self._feed is None and not self.ended:
                    await self._activate(self._state, account)
                self._check_stays()
                self._connected = True
            try:
                yield
            finally:
                self._connected = False
                self._room.set()
                # The count of frames that the next connection gets must be settled.
                if self._accepting is not None:
                    await asyncio.gather(self._accepting, return_exceptions=True)

    def _displace(self, closing_reason: Refusal) -> None:
        self.closing_reason = closing_reason
        self.displaced.set()

    def _check_stays(self) -> None:
        if self._suspending:
            raise restarting()

    async def accept(self, frame: bytes | Command) -> None:
        """Accept the next frame; it is accepted whole even if the caller is canceled."""
        if isinstance(frame, bytes) and self._holds(frame):
            return
        self._accepting = asyncio.create_task(self._accept(frame))
        await asyncio.shield(self._accepting)

    def _holds(self, frame: bytes) -> bool:
        """Whether a very short frame was kept for the next one, without a task or a lock."""
        free = not (self._lock.locked() or self._suspending or self.finishing)
        if not free or self._feed is None or self._lease is None or self.failure is not None:
            return False
        if not self._feed.hold(frame):
            return False
        self.service.record_audio(DIALECT, self._lease, self._feed.seconds_of(frame))
        self.frames += 1
        return True

    async def _accept(self, frame: bytes | Command) -> None:
        async with self._lock:
            self._check_stays()
            if self.failure is not None:
                raise self.failure
            if self.finishing or self._feed is None:
                raise Refusal(400, "the stream has finished; open another one", "stream_state")
            if isinstance(frame, bytes):
                seconds = await self._feed.push(frame)
                assert self._lease is not None
                self.service.record_audio(DIALECT, self._lease, seconds)
            else:
                self._finals_requested.append(time.monotonic())
                self.finishing = frame == "finish"
                await (self._feed.finish() if self.finishing else self._feed.finalize())
            self.frames += 1

    def unacknowledged(self, after: int) -> list[tuple[int, dict[str, object]]]:
        """The events with a number above `after`."""
        return [(number, event) for number, event in self.events if number > after]

    def acknowledge(self, number: int) -> None:
        """The client has all events up to this number; drop them."""
        while self.events and self.events[0][0] <= number:
            self.events.popleft()
        self._room.set()

    # -- the engine --------------------------------------------------------------------------------

    async def _activate(self, state: bytes | None, account: Account) -> None:
        """Acquire a seat and open a stream; raises EngineFullError, Refusal at the key's limit."""
        self.service.acquire_seat(DIALECT, account)
        try:
            if self._lease is None:
                options = self.options
                self._lease = self.service.lease(DIALECT, options.choice, options.session, account)
            self._lease.account = account
            self._feed = await self.service.open_feed(
                self._lease,
                self.reader,
                sample_rate=self.options.sample_rate,
                latency_ms=self.options.latency_ms,
                endpoint=self.options.endpoint or NO_PAUSES,
                boost=self.options.boost,
                state=state,
            )
        except BaseException:
            self.service.release_seat(account)
            raise
        self._state, self._account = None, account
        self._pump = asyncio.create_task(self._collect(self._feed))

    async def _collect(self, feed: Feed) -> None:
        """Keep the events of the stream until it ends."""
        try:
            async for event in feed:
                self._keep(event)
                # Only a connected client can acknowledge; without one the audio is bounded.
                while len(self.events) >= MOST_UNACKNOWLEDGED and self._connected:
                    self._room.clear()
                    await self._room.wait()
            self._add({"type": "end"})
        except PianissimoError as error:
            self.failure = error
        self.ended = True
        self.news.set()
        await self._release(feed)
        if self._lease is not None:
            self._lease.release()  # the remaining events need no model

    def _keep(self, event: StreamEvent) -> None:
        if event.type == "partial":
            self.partial = _message(event)
        elif event.type == "endpoint":
            self._add({"type": "endpoint", "end": event.end})
        else:
            if event.reason in ("finalize", "finish") and self._finals_requested:
                spent = time.monotonic() - self._finals_requested.popleft()
                assert self._lease is not None
                self.service.metrics.final_after(DIALECT, self._lease, spent)
            self.partial = None
            self._add({**_message(event), "reason": event.reason})
        self.news.set()

    def _add(self, event: dict[str, object]) -> None:
        self.last_event += 1
        self.events.append((self.last_event, {**event, "event": self.last_event}))

    async def _release(self, feed: Feed) -> None:
        """Release the stream of the engine and the seat."""
        self._feed = None
        await feed.release()
        assert self._account is not None
        self.service.release_seat(self._account)

    async def park(self) -> None:
        """Export the stream to bytes and release its seat; a finishing stream continues instead."""
        async with self._lock:
            # A connection may have been attached while this waited for the lock.
            if self._feed is None or self.finishing or self._connected:
                return
            feed = self._feed
            assert self._pump is not None
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
            try:
                assert self._lease is not None
                engine = self._lease.model.engine
                self._state, rest = await asyncio.to_thread(_export, feed.session, engine)
            except Exception as error:  # it failed, or cannot be exported
                if not isinstance(error, PianissimoError):
                    log.exception("a stream could not be parked")
                self._pump = asyncio.create_task(self._collect(feed))
                return
            for event in rest:
                feed.observe(event)
                self._keep(event)
            await self._release(feed)

    async def suspend(self) -> bytes | None:
        """The server ends: the stream as bytes. Later frames are neither accepted nor counted, so
        the client sends them again elsewhere."""
        self._suspending, self._connected = True, False
        self._room.set()
        await self.park()
        await self.end(LAST_SECONDS)
        return self.save()

    def disconnect(self) -> None:
        """Close the connection, if there is one: the stream can be resumed elsewhere."""
        self._displace(restarting())

    async def end(self, seconds: float) -> None:
        """Wait up to `seconds` for the last text of a finishing stream."""
        if self.finishing and self._pump is not None:
            await asyncio.wait({self._pump}, timeout=seconds)

    async def discard(self) -> None:
        """Release everything that the stream holds."""
        async with self._lock:
            if self._pump is not None and not self._pump.done():
                self._pump.cancel()
                await asyncio.gather(self._pump, return_exceptions=True)
            if self._feed is not None:
                await self._release(self._feed)
            if self._lease is not None:
                self._lease.release()
            self._pump, self._accepting = None, None  # they refer to this stream
            self._state, self.ended = None, True
            self.events.clear()

    # -- files -------------------------------------------------------------------------------------

    def save(self) -> bytes | None:
        """A parked or ended stream as bytes; None for a running one."""
        if self._state is None and not self.ended:
            return None
        document = {
            "options": asdict(self.options),
            "frames": self.frames,
            "events": list(self.events),
            "last_event": self.last_event,
            "partial": self.partial,
            "ended": self.ended,
            "finishing": self.finishing,
            "rest": base64.b64encode(self.reader.rest).decode(),
        }
        return json.dumps(document).encode() + b"\n" + (self._state or b"")

    @classmethod
    def restored(cls, service: Service, token: str, data: bytes) -> "ResumableStream":
        """The stream that `save` wrote; raises StateError if it is damaged."""
        head, _, state = data.partition(b"\n")
        try:
            document = json.loads(head)
            options = document["options"]
            rules = options["endpoint"]
            options["endpoint"] = None if rules is None else EndpointRules(**rules)
            options["choice"] = ModelChoice(**options["choice"])
            options["boost"] = tuple(Phrase(**phrase) for phrase in options.get("boost", ()))
            stream = cls(service, StreamOptions(**options), token, state or None)
            stream.frames, stream.last_event = document["frames"], document["last_event"]
            stream.events = deque((number, event) for number, event in document["events"])
            stream.partial, stream.ended = document["partial"], document["ended"]
            stream.finishing = document["finishing"]
            stream.reader.rest = base64.b64decode(document["rest"])
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"the saved stream is damaged ({error})") from error
        return stream


class Streams:
    """All streams of one server, by token."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._streams: OrderedDict[str, ResumableStream] = OrderedDict()
        self._away: OrderedDict[str, asyncio.Task[None]] = OrderedDict()
        self._closing: asyncio.Task[None] | None = None
        self._folder = service.settings.state_folder
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _delete_expired(self._folder, service.settings.resume_seconds)

    def __len__(self) -> int:
        return len(self._streams)

    def start(self, options: StreamOptions) -> ResumableStream:
        self._check_open()
        token = secrets.token_urlsafe(24)
        stream = self._streams[token] = ResumableStream(self.service, options, token)
        return stream

    def resume(self, token: str) -> ResumableStream:
        """The stream of that token; raises Refusal if it is unknown or expired."""
        self._check_open()
        if token not in self._streams and self._folder is not None:
            path = self._folder / _file_name(token)
            with suppress(FileNotFoundError):
                self._streams[token] = ResumableStream.restored(
                    self.service, token, path.read_bytes()
                )
                path.unlink()
        if token not in self._streams:
            raise Refusal(
                404, "the stream is unknown or has expired; start another one", "no_stream"
            )
        return self._streams[token]

    def connected(self, stream: ResumableStream) -> None:
        """A connection is being attached: the stream must not be parked or dropped."""
        task = self._away.pop(stream.token, None)
        if task is not None:
            task.cancel()

    def disconnected(self, stream: ResumableStream) -> None:
        """The connection is gone; the stream waits for the next one until it expires."""
        if stream.token not in self._streams:
            return
        self._away[stream.token] = asyncio.create_task(self._wait(stream))
        while len(self._away) > MOST_AWAY_PER_SEAT * self.service.seats.capacity:
            token, task = self._away.popitem(last=False)
            task.cancel()
            asyncio.create_task(self._streams.pop(token).discard())  # noqa: RUF006  ends by itself

    async def forget(self, stream: ResumableStream) -> None:
        """Drop a stream: the client has everything, or the stream has expired."""
        self._streams.pop(stream.token, None)
        self.connected(stream)
        await stream.discard()

    async def _wait(self, stream: ResumableStream) -> None:
        settings = self.service.settings
        await asyncio.sleep(settings.linger_seconds)
        await asyncio.shield(asyncio.create_task(stream.park()))
        await asyncio.sleep(settings.resume_seconds - settings.linger_seconds)
        self._away.pop(stream.token, None)
        await self.forget(stream)

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
        for task in self._away.values():
            task.cancel()
        async with asyncio.TaskGroup() as group:
            for stream in self._streams.values():
                group.create_task(self._suspend(stream))
        self._streams.clear()

    async def _suspend(self, stream: ResumableStream) -> None:
        data = await stream.suspend()
        if self._folder is not None and data is not None:
            try:
                await asyncio.to_thread(_write, self._folder / _file_name(stream.token), data)
            except OSError:
                log.exception("a stream could not be saved")
        stream.disconnect()
        await stream.discard()


def _export(session: Session, engine: Engine | SegmentedEngine) -> tuple[bytes, list[StreamEvent]]:
    """Export and close a stream; returns its state and its unread events."""
    with engine.lock:
        state, rest = session.export(), []
        while (event := session.get_nowait()) is not None:
            rest.append(event)
        session.close()
    return state, rest


def _message(event: StreamEvent) -> dict[str, object]:
    return {
        "type": event.type,
        "text": event.text,
        "words": [asdict(word) for word in event.words],
        "start": event.start,
        "end": event.end,
    }


def _file_name(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest() + ".stream"


def _write(path: Path, data: bytes) -> None:
    """Write the whole file or none; only its owner may read it."""
    draft = path.with_suffix(f".{secrets.token_hex(8)}.tmp")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _delete_expired(folder: Path, seconds: float) -> None:
    """Delete the files of expired streams."""
    for path in [*folder.glob("*.stream"), *folder.glob("*.tmp")]:
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - seconds:
                path.unlink()
