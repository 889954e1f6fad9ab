"""Streams that outlive their connection, and with a folder for them the server.

What a client sends is counted in frames (a message with audio, or a command), what it is told in
events; both counts begin at 1 and never skip. After a cut the client says which event it saw last
and learns which frame arrived last, and both sides send the rest again. Nothing is lost or doubled.
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
from typing import Any, Literal

from pianissimo.decoding.hotwords import Phrase
from pianissimo.engine.engine import Engine
from pianissimo.engine.segmented import SegmentedEngine
from pianissimo.errors import PianissimoError, StateError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.audio_in.pcm import Encoding, PcmReader
from pianissimo.serve.errors import Refusal, restarting
from pianissimo.serve.service import NO_PAUSES, Feed, Service
from pianissimo.serve.versions.store import Choice, Lease
from pianissimo.streaming.endpoint import EndpointRules
from pianissimo.streaming.session import Session
from pianissimo.transcript import StreamEvent

DIALECT = "stream"
Command = Literal["finalize", "finish"]
MOST_UNSEEN = 1000
"""Events kept for a client that does not say it saw them; then its stream pauses."""
MOST_AWAY_PER_SEAT = 4
"""Streams without a connection that are kept, for each seat; the oldest go first."""
LAST_SECONDS = 5.0
"""What a stream that is finishing may take when the server ends."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamOptions:
    """What a client asked for in its first message, and the model it was given.

    `endpoint` None: no pause ends anything. `session` is its name in experiments.
    """

    sample_rate: int
    encoding: Encoding
    channels: int
    latency_ms: int | None
    endpoint: EndpointRules | None
    choice: Choice
    session: str
    boost: tuple[Phrase, ...] = ()


class ResumableStream:
    """One stream, with or without a connection at the moment.

    It holds a seat and a slot of the engine, unless it was parked: then all of it is in `_state`.
    From its first connection on it holds a lease: its state belongs to those weights.
    """

    def __init__(self, service: Service, options: StreamOptions, token: str) -> None:
        self.service, self.options, self.token = service, options, token
        self.frames = 0
        self.events: deque[tuple[int, dict[str, Any]]] = deque()
        self.last_event = 0
        self.partial: dict[str, Any] | None = None
        self.ended = False
        self.finishing = False
        self.news = asyncio.Event()
        self.given_up = asyncio.Event()
        self.farewell: Refusal | None = None
        """What a connection that the stream was taken from tells its client."""
        self.reader = PcmReader(options.encoding, options.channels)
        self._room = asyncio.Event()
        self._lock = asyncio.Lock()
        self._attached = asyncio.Lock()
        self._connected = self._parting = False
        self._lease: Lease | None = None
        self._feed: Feed | None = None
        self._account: Account | None = None
        self._pump: asyncio.Task[None] | None = None
        self._taking: asyncio.Task[None] | None = None
        self._state: bytes | None = None
        self._asked: deque[float] = deque()
        self.failure: PianissimoError | None = None

    @property
    def done(self) -> bool:
        """Whether the client has all there will ever be."""
        return self.ended and not self.events and self.failure is None

    @property
    def gain_db(self) -> float:
        """The gain before the model at the moment; 0 where nobody listens."""
        return 0.0 if self._feed is None else self._feed.session.gain_db

    # -- the connection ----------------------------------------------------------------------------

    @asynccontextmanager
    async def attached(self, account: Account) -> AsyncIterator[None]:
        """The stream belongs to one connection at a time: a new one ends the one before.

        It counts for the `account` of the connection that woke it.
        """
        taken_over = Refusal(409, "another connection resumed this stream", "taken_over")
        self._give_up(taken_over)
        async with self._attached:
            self._check_stays()
            if self.farewell is not taken_over:  # a newer one waits already
                raise taken_over
            self.given_up.clear()
            async with self._lock:
                if self._feed is None and not self.ended:
                    await self._wake(self._state, account)
                self._check_stays()
                self._connected = True
            try:
                yield
            finally:
                self._connected = False
                self._room.set()
                # The next connection must not be told a count that is about to change.
                if self._taking is not None:
                    await asyncio.gather(self._taking, return_exceptions=True)

    def _give_up(self, farewell: Refusal) -> None:
        self.farewell = farewell
        self.given_up.set()

    def _check_stays(self) -> None:
        if self._parting:
            raise restarting()

    async def take(self, frame: bytes | Command) -> None:
        """Take the next frame; it is taken whole, even if the caller is cancelled meanwhile."""
        self._taking = asyncio.create_task(self._take(frame))
        await asyncio.shield(self._taking)

    async def _take(self, frame: bytes | Command) -> None:
        async with self._lock:
            self._check_stays()
            if self.failure is not None:
                raise self.failure
            if self.finishing or self._feed is None:
                raise Refusal(400, "the stream was finished; open another one", "stream_state")
            if isinstance(frame, bytes):
                seconds = await self._feed.push(frame)
                assert self._lease is not None
                self.service.heard(DIALECT, self._lease, seconds)
            else:
                self._asked.append(time.monotonic())
                self.finishing = frame == "finish"
                await (self._feed.finish() if self.finishing else self._feed.finalize())
            self.frames += 1

    def unseen(self, after: int) -> list[tuple[int, dict[str, Any]]]:
        """The events with a number above `after`."""
        return [(number, event) for number, event in self.events if number > after]

    def seen(self, number: int) -> None:
        """The client has all events up to this one: they can be forgotten."""
        while self.events and self.events[0][0] <= number:
            self.events.popleft()
        self._room.set()

    # -- the engine --------------------------------------------------------------------------------

    async def _wake(self, state: bytes | None, account: Account) -> None:
        """Take a seat and a slot; raises EngineFullError, and Refusal at a limit of the key."""
        self.service.take_seat(DIALECT, account)
        try:
            if self._lease is None:
                options = self.options
                self._lease = self.service.lease(DIALECT, options.choice, options.session, account)
            self._lease.account = account
            self._feed = await self.service.open_feed(
                self._lease,
                self.reader,
                self.options.sample_rate,
                latency_ms=self.options.latency_ms,
                endpoint=self.options.endpoint or NO_PAUSES,
                boost=self.options.boost,
                state=state,
            )
        except BaseException:
            self.service.leave_seat(account)
            raise
        self._state, self._account = None, account
        self._pump = asyncio.create_task(self._collect(self._feed))

    async def _collect(self, feed: Feed) -> None:
        """Keep what the stream says until it ends."""
        try:
            async for event in feed:
                self._keep(event)
                # Only a client that is there can make room; without one the audio is bounded.
                while len(self.events) >= MOST_UNSEEN and self._connected:
                    self._room.clear()
                    await self._room.wait()
            self._add({"type": "end"})
        except PianissimoError as error:
            self.failure = error
        self.ended = True
        self.news.set()
        await self._release(feed)
        if self._lease is not None:
            self._lease.release()  # what is left to be told needs no model

    def _keep(self, event: StreamEvent) -> None:
        if event.type == "partial":
            self.partial = _shown(event)
        elif event.type == "endpoint":
            self._add({"type": "endpoint", "end": event.end})
        else:
            if event.reason in ("finalize", "finish") and self._asked:
                spent = time.monotonic() - self._asked.popleft()
                assert self._lease is not None
                self.service.metrics.final_after(DIALECT, self._lease, spent)
            self.partial = None
            self._add({**_shown(event), "reason": event.reason})
        self.news.set()

    def _add(self, event: dict[str, Any]) -> None:
        self.last_event += 1
        self.events.append((self.last_event, {**event, "event": self.last_event}))

    async def _release(self, feed: Feed) -> None:
        """Give slot and seat back."""
        self._feed = None
        await feed.release()
        assert self._account is not None
        self.service.leave_seat(self._account)

    async def park(self) -> None:
        """Give the slot up and keep the stream as bytes; one that is finishing goes on instead."""
        async with self._lock:
            # A connection may have come while this waited for the lock.
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
            except Exception as error:  # it failed, which is told as an event, or must stay here
                if not isinstance(error, PianissimoError):
                    log.exception("a stream could not be parked")
                self._pump = asyncio.create_task(self._collect(feed))
                return
            for event in rest:
                feed.said(event)
                self._keep(event)
            await self._release(feed)

    async def part(self) -> bytes | None:
        """The server ends: the whole stream as bytes. What arrives from now on is not taken, and
        not counted, so that the client sends it again elsewhere."""
        self._parting, self._connected = True, False
        self._room.set()
        await self.park()
        await self.end(LAST_SECONDS)
        return self.save()

    def dismiss(self) -> None:
        """Send the connection away, if there is one: the stream can be resumed elsewhere."""
        self._give_up(restarting())

    async def end(self, seconds: float) -> None:
        """Wait, at most so long, for the last text of a stream that is finishing."""
        if self.finishing and self._pump is not None:
            await asyncio.wait({self._pump}, timeout=seconds)

    async def leave(self) -> None:
        """Forget everything."""
        async with self._lock:
            if self._pump is not None and not self._pump.done():
                self._pump.cancel()
                await asyncio.gather(self._pump, return_exceptions=True)
            if self._feed is not None:
                await self._release(self._feed)
            if self._lease is not None:
                self._lease.release()
            self._pump, self._taking = None, None  # they know of us
            self._state, self.ended = None, True
            self.events.clear()

    # -- as a file ---------------------------------------------------------------------------------

    def save(self) -> bytes | None:
        """A parked or ended stream as bytes; None for one that still runs."""
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
            options["choice"] = Choice(**options["choice"])
            options["boost"] = tuple(Phrase(**phrase) for phrase in options.get("boost", ()))
            stream = cls(service, StreamOptions(**options), token)
            stream.frames, stream.last_event = document["frames"], document["last_event"]
            stream.events = deque((number, event) for number, event in document["events"])
            stream.partial, stream.ended = document["partial"], document["ended"]
            stream.finishing = document["finishing"]
            stream.reader.rest = base64.b64decode(document["rest"])
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"the saved stream is damaged ({error})") from error
        stream._state = state or None
        return stream


class Streams:
    """All streams of one server, by their tokens."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._streams: OrderedDict[str, ResumableStream] = OrderedDict()
        self._away: OrderedDict[str, asyncio.Task[None]] = OrderedDict()
        self._closing: asyncio.Task[None] | None = None
        self._folder = service.settings.state_folder
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _forget_old(self._folder, service.settings.resume_seconds)

    def __len__(self) -> int:
        return len(self._streams)

    def start(self, options: StreamOptions) -> ResumableStream:
        self._check_open()
        token = secrets.token_urlsafe(24)
        stream = self._streams[token] = ResumableStream(self.service, options, token)
        return stream

    def resume(self, token: str) -> ResumableStream:
        """The stream of that token; raises Refusal when it is not known any more."""
        self._check_open()
        if token not in self._streams and self._folder is not None:
            path = self._folder / _file_name(token)
            with suppress(FileNotFoundError):
                self._streams[token] = ResumableStream.restored(
                    self.service, token, path.read_bytes()
                )
                path.unlink()
        if token not in self._streams:
            raise Refusal(404, "this stream is not known, or was away for too long", "no_stream")
        return self._streams[token]

    def came(self, stream: ResumableStream) -> None:
        """A connection wants the stream: it is not to be parked or forgotten."""
        task = self._away.pop(stream.token, None)
        if task is not None:
            task.cancel()

    def went(self, stream: ResumableStream) -> None:
        """The connection is gone; the stream waits for the next one, for a while."""
        if stream.token not in self._streams:
            return
        self._away[stream.token] = asyncio.create_task(self._wait(stream))
        while len(self._away) > MOST_AWAY_PER_SEAT * self.service.seats.most:
            token, task = self._away.popitem(last=False)
            task.cancel()
            asyncio.create_task(self._streams.pop(token).leave())  # noqa: RUF006  ends by itself

    async def forget(self, stream: ResumableStream) -> None:
        """The client has everything, or nobody asked for too long."""
        self._streams.pop(stream.token, None)
        self.came(stream)
        await stream.leave()

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
        """Park all streams, into the folder if there is one, and only then send clients away.

        May be called again, and returns when all of them are gone.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._part_all())
        await asyncio.shield(self._closing)

    async def _part_all(self) -> None:
        for task in self._away.values():
            task.cancel()
        async with asyncio.TaskGroup() as group:
            for stream in self._streams.values():
                group.create_task(self._part(stream))
        self._streams.clear()

    async def _part(self, stream: ResumableStream) -> None:
        data = await stream.part()
        if self._folder is not None and data is not None:
            try:
                await asyncio.to_thread(_write, self._folder / _file_name(stream.token), data)
            except OSError:
                log.exception("a stream could not be saved")
        stream.dismiss()
        await stream.leave()


def _export(session: Session, engine: Engine | SegmentedEngine) -> tuple[bytes, list[StreamEvent]]:
    """A stream as bytes, and what it said until just then; it says nothing more afterwards."""
    with engine.lock:
        state, rest = session.export(), []
        while (event := session.get_nowait()) is not None:
            rest.append(event)
        session.close()
    return state, rest


def _shown(event: StreamEvent) -> dict[str, Any]:
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
    """The whole file or none; only its owner may read what people said."""
    draft = path.with_suffix(f".{secrets.token_hex(8)}.tmp")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _forget_old(folder: Path, seconds: float) -> None:
    """Files that nobody came back for."""
    for path in [*folder.glob("*.stream"), *folder.glob("*.tmp")]:
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - seconds:
                path.unlink()
