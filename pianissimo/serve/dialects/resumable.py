"""One stream that outlives its connection and, if its state is stored, the server.

Input is counted in frames (a message with audio, or a command), output in events; both counts begin
at 1 and have no gaps. To resume, the client states the last event it has and gets the last frame
that arrived; both sides send the rest again. Nothing is lost or duplicated.

A stream that another server continues from its stored state counts again from there. The client
sends the frames since then once more; events that it has already are made again and dropped.
"""

import asyncio
import base64
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal

from pianissimo.decoding.hotwords import Phrase
from pianissimo.engine.engine import Engine
from pianissimo.engine.segmented import SegmentedEngine
from pianissimo.errors import PianissimoError, StateError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.audio_in.pcm import Encoding, PcmReader
from pianissimo.serve.channel_feeds import ChannelEvent, ChannelFeeds
from pianissimo.serve.errors import Refusal, restarting
from pianissimo.serve.feed import Feed
from pianissimo.serve.service import NO_PAUSES, Service
from pianissimo.serve.versions.store import Lease, ModelChoice
from pianissimo.streaming.endpoint import EndpointRules
from pianissimo.streaming.session import Session
from pianissimo.text.edits import with_edits
from pianissimo.text.words import joined
from pianissimo.transcript import StreamEvent, Word

DIALECT = "stream"
Command = Literal["finalize", "finish"]
MOST_UNACKNOWLEDGED = 1000
"""Unacknowledged events that are kept; with more the stream pauses."""
MOST_REVISING = 4
"""Finals of a stream that the language model revises at once; more are left as they are."""
LAST_SECONDS = 5.0
"""How long a finishing stream may take when the server ends."""
END_TOLERANCE_SECONDS = 0.001

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SetLanguage:
    """A command: the language from the next utterance on."""

    language: str


@dataclass(frozen=True)
class StreamOptions:
    """The options of a start message, and the chosen model.

    `endpoint` None: no pause ends an utterance. `session` identifies the stream in experiments.
    With `multichannel` each channel is a stream of its own; otherwise channels are mixed.
    """

    sample_rate: int
    encoding: Encoding
    channels: int
    latency_ms: int | None
    endpoint: EndpointRules | None
    choice: ModelChoice
    session: str
    boost: tuple[Phrase, ...] = ()
    diarize: bool = False
    second_pass: bool | None = None
    language: str | None = None
    polish: bool = False
    multichannel: bool = False
    itn: bool = False

    @property
    def streams(self) -> int:
        """The streams of the engine, each of which has a seat."""
        return self.channels if self.multichannel else 1


@dataclass(frozen=True)
class Snapshot:
    """A running stream after a number of frames and events; `to_bytes` may run in any thread."""

    frames: int
    events: int
    to_bytes: Callable[[], bytes]


class ResumableStream:
    """One stream, connected or not.

    It holds a seat and a stream of the engine until it is parked; a parked stream is all in
    `_state`. With several channels it has one of each per channel and is never parked. From its
    first connection on it holds a lease, since its state depends on the weights.
    """

    def __init__(
        self, service: Service, options: StreamOptions, token: str, state: bytes | None = None
    ) -> None:
        self.service, self.options, self.token = service, options, token
        self.frames = 0
        self.covered = 0
        """Frames that finals have answered: their audio and commands are needed no more."""
        self.saved: int | None = None
        """Frames in the stored state; None for a stream that is not stored."""
        self.acknowledged = 0
        self.restored_from_store = False
        self.events: deque[tuple[int, dict[str, object]]] = deque()
        self.last_event = 0
        self.revisions: deque[dict[str, object]] = deque()
        """Unsent revisions of finals by the language model; they have no numbers of their own."""
        self._revising = set[asyncio.Task[None]]()
        self.partials: dict[int, dict[str, object]] = {}
        """The newest partial of each channel."""
        self.answered = [0] * options.streams
        """By channel: frames that its finals have answered."""
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
        self._feed: Feed | ChannelFeeds | None = None
        self._account: Account | None = None
        self._pump: asyncio.Task[None] | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._state = state
        self._finals_requested: deque[float] = deque()
        self.uncovered: deque[tuple[float, bool]] = deque()
        """By frame after `covered`: where it ends in seconds, and whether it is a command."""
        self.seconds = 0.0
        self.failure: PianissimoError | None = None

    @property
    def resumed(self) -> bool:
        """Whether the stream began on an earlier connection."""
        return self.restored_from_store or self._lease is not None

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

    async def accept(self, frame: bytes | Command | SetLanguage) -> None:
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
        seconds = self._feed.seconds_of(frame)
        self.service.record_audio(DIALECT, self._lease, seconds)
        self.seconds += seconds
        self.uncovered.append((self.seconds, False))
        self.frames += 1
        return True

    async def _accept(self, frame: bytes | Command | SetLanguage) -> None:
        async with self._lock:
            self._check_stays()
            if self.failure is not None:
                raise self.failure
            if self.finishing or self._feed is None:
                raise Refusal(400, "the stream has finished; open another one", "stream_state")
            if isinstance(frame, bytes):
                end = self.seconds + self._feed.seconds_of(frame)
                self.uncovered.append((end, False))  # first: its final may come while it is pushed
                try:
                    seconds = await self._feed.push(frame)
                except BaseException:
                    self.uncovered.pop()
                    raise
                self.seconds = end
                assert self._lease is not None
                self.service.record_audio(DIALECT, self._lease, seconds)
            elif isinstance(frame, SetLanguage):
                await self._set_language(frame.language)
                self.uncovered.append((self.seconds, False))
            else:
                self.uncovered.append((self.seconds, True))
                self._finals_requested.extend([time.monotonic()] * self.options.streams)
                self.finishing = frame == "finish"
                await (self._feed.finish() if self.finishing else self._feed.finalize())
            self.frames += 1

    async def _set_language(self, language: str) -> None:
        assert self._lease is not None
        assert self._feed is not None
        spoken = self._lease.model.spoken(language)
        if spoken is None:
            model = self.options.choice.name
            reason = f"{model} cannot change to the language {language!r}; it has no choice of it"
            raise Refusal(400, reason, "invalid_value", "language")
        await self._feed.set_language(spoken)

    def unacknowledged(self, after: int) -> list[tuple[int, dict[str, object]]]:
        """The events with a number above `after`."""
        return [(number, event) for number, event in self.events if number > after]

    def acknowledge(self, number: int) -> None:
        """The client has all events up to this number; drop them.

        It may have events that this server, continuing from a stored state, will make once more.
        """
        if not self.restored_from_store:
            number = min(number, self.last_event)
        self.acknowledged = max(self.acknowledged, number)
        if self.last_event < self.acknowledged:
            self.partials.clear()  # of utterances that the client has the finals of
        while self.events and self.events[0][0] <= number:
            self.events.popleft()
        self._room.set()

    # -- the engine --------------------------------------------------------------------------------

    async def _activate(self, state: bytes | None, account: Account) -> None:
        """Acquire seats and open streams; raises EngineFullError, Refusal at the key's limit."""
        resumed = state is not None or self.resumed
        acquired, feeds = 0, list[Feed]()
        try:
            for _ in range(self.options.streams):
                self.service.acquire_seat(DIALECT, account, resumed=resumed)
                acquired += 1
            if self._lease is None:
                options = self.options
                self._lease = self.service.lease(DIALECT, options.choice, options.session, account)
            self._lease.account = account
            for _ in range(self.options.streams):
                feeds.append(await self._open(self._lease, state))
        except BaseException:
            for feed in feeds:
                await feed.release()
            for _ in range(acquired):
                self.service.release_seat(account)
            raise
        self._feed = feeds[0]
        if self.options.multichannel:
            self._feed = ChannelFeeds(feeds, self.reader, account)
        self._state, self._account = None, account
        self._pump = asyncio.create_task(self._collect(self._feed))

    async def _open(self, lease: Lease, state: bytes | None) -> Feed:
        """Open a stream of the engine, of one channel or of all of them mixed."""
        options, reader = self.options, self.reader
        if options.multichannel:
            reader = PcmReader(options.encoding)  # unused: the channels are read together
        speakers = None
        if options.diarize and state is None:  # a parked stream has lost its voices
            speakers = self.service.live_speakers(options.sample_rate)
        return await self.service.open_feed(
            lease,
            reader,
            speakers,
            lease.model.written_form(options.language) if options.itn else None,
            sample_rate=options.sample_rate,
            latency_ms=options.latency_ms,
            endpoint=options.endpoint or NO_PAUSES,
            boost=options.boost,
            second_pass=options.second_pass,
            language=options.language,
            state=state,
        )

    async def _collect(self, feed: Feed | ChannelFeeds) -> None:
        """Keep the events of the stream until it ends."""
        try:
            async for event in feed:
                self._keep(event)
                # Only a connected client can acknowledge; without one the audio is bounded.
                while len(self.events) >= MOST_UNACKNOWLEDGED and self._connected:
                    self._room.clear()
                    await self._room.wait()
            if self._revising:  # each has a time limit
                await asyncio.wait(self._revising)
            self._add({"type": "end"})
        except PianissimoError as error:
            self.failure = error
        self.ended = True
        self.news.set()
        await self._release(feed)
        if self._lease is not None:
            self._lease.release()  # the remaining events need no model

    def _keep(self, event: StreamEvent) -> None:
        channel = event.channel if isinstance(event, ChannelEvent) else 0
        if event.type == "partial":
            if self.last_event >= self.acknowledged:
                self.partials[channel] = _message(event)
        elif event.type == "endpoint":
            self._add({"type": "endpoint", "end": event.end, **_channel(event)})
        else:
            if event.reason in ("finalize", "finish") and self._finals_requested:
                spent = time.monotonic() - self._finals_requested.popleft()
                assert self._lease is not None
                self.service.metrics.final_after(DIALECT, self._lease, spent)
            self.partials.pop(channel, None)
            self._cover(event, channel)
            self._add({**_message(event), "reason": event.reason, "frames": self.covered})
            if self.options.polish and event.words:
                revising = asyncio.create_task(self._revise(event, self.last_event))
                self._revising.add(revising)
                revising.add_done_callback(self._revising.discard)
        self.news.set()

    async def _revise(self, final: StreamEvent, number: int) -> None:
        """Ask the language model about a final that was already sent, the event `number`."""
        polisher = self.service.polisher
        if polisher is None or len(self._revising) > MOST_REVISING or not self._connected:
            return
        polish = await polisher.words(final.words, [one.text for one in self.options.boost])
        self.service.metrics.polish.record(polish)
        if polish.edits:
            words = with_edits(final.words, polish.edits)
            text = joined(word.text for word in words)
            revised = _message(replace(final, text=text, words=words))
            edits = [
                {"from": edit.first, "to": edit.last, "text": edit.text} for edit in polish.edits
            ]
            self.revisions.append({**revised, "type": "revision", "event": number, "edits": edits})
            self.news.set()

    def _cover(self, final: StreamEvent, channel: int) -> None:
        """Count the frames that a final answers, and those that all channels have answered.

        One that was requested answers all frames up to the request, another one the audio before
        its end.
        """
        requested = final.reason in ("finalize", "finish")
        place = self.answered[channel] - self.covered
        while place < len(self.uncovered):
            end, command = self.uncovered[place]
            if not requested and (command or end > final.end + END_TOLERANCE_SECONDS):
                break
            place += 1
            requested = requested and not command
        self.answered[channel] = self.covered + place
        while self.covered < min(self.answered):
            self.uncovered.popleft()
            self.covered += 1

    def _add(self, event: dict[str, object]) -> None:
        self.last_event += 1
        if self.last_event <= self.acknowledged:
            return  # the client has it from the server that had the stream before
        self.events.append((self.last_event, {**event, "event": self.last_event}))

    async def _release(self, feed: Feed | ChannelFeeds) -> None:
        """Release the streams of the engine and the seats."""
        self._feed = None
        for revising in self._revising:
            revising.cancel()
        await feed.release()
        assert self._account is not None
        for _ in range(self.options.streams):
            self.service.release_seat(self._account)

    async def park(self) -> None:
        """Export the stream to bytes and release its seat; a finishing stream continues instead."""
        async with self._lock:
            # A connection may have been attached while this waited for the lock.
            feed = self._feed
            if not isinstance(feed, Feed) or self.finishing or self._connected:
                return
            snapshot = await self._paused(feed, close=True)
            if snapshot is not None:
                self._state = await asyncio.to_thread(snapshot)
                await self._release(feed)

    async def snapshot(self) -> Snapshot | None:
        """The running stream, which continues; None if it has ended or ends.

        Raises StreamError if streams of its model cannot be exported.
        """
        async with self._lock:
            feed = self._feed
            if not isinstance(feed, Feed) or self.finishing:
                return None
            state = await self._paused(feed, close=False)
            self._pump = asyncio.create_task(self._collect(feed))
            if state is None:
                return None
            head = self._document()
        return Snapshot(self.frames, self.last_event, lambda: _encode(head, state()))

    async def _paused(self, feed: Feed, *, close: bool) -> Callable[[], bytes] | None:
        """Stop reading events and copy the stream, with all events before the copy kept.

        With `close` the stream has ended in the engine. None, and events are read again, if it
        failed; a stream that is not closed must be read again by the caller.
        """
        assert self._pump is not None and self._lease is not None
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        try:
            engine = self._lease.model.engine
            state, rest = await asyncio.to_thread(_copied, feed.session, engine, close)
        except Exception as error:  # it failed, or cannot be exported
            if not isinstance(error, PianissimoError):
                log.exception("a stream could not be exported")
            if close:
                self._pump = asyncio.create_task(self._collect(feed))
            return None
        for event in rest:
            feed.observe(event)
            self._keep(feed.written(event))
        return state

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

    def lose(self) -> None:
        """Close the connection: another server has the stream."""
        self._suspending = True
        self._displace(Refusal(409, "another server resumed this stream", "taken_over"))

    # -- files -------------------------------------------------------------------------------------

    def save(self) -> bytes | None:
        """A parked or ended stream as bytes; None for a running one."""
        if self._state is None and not self.ended:
            return None
        return _encode(self._document(), self._state or b"")

    def as_new(self) -> bytes:
        """The stream before its first frame as bytes."""
        return _encode(self._document(), b"")

    def _document(self) -> dict[str, object]:
        """Everything but the engine's state, as JSON values that nothing changes later."""
        return {
            "options": asdict(self.options),
            "compute": self.compute,
            "frames": self.frames,
            "covered": self.covered,
            "uncovered": list(self.uncovered),
            "seconds": self.seconds,
            "events": list(self.events),
            "last_event": self.last_event,
            "partial": self.partials.get(0),
            "ended": self.ended,
            "finishing": self.finishing,
            "rest": base64.b64encode(self.reader.rest).decode(),
        }

    @property
    def compute(self) -> str:
        """On what the words depend besides the weights: device and number format."""
        name, lease = self.options.choice.name, self._lease
        model = self.service.store.models[name] if lease is None else lease.model
        return f"{model.recognizer.device.partition(':')[0]}, {model.recognizer.dtype}"

    @classmethod
    def restored(cls, service: Service, token: str, data: bytes) -> "ResumableStream":
        """The stream that `save` or `snapshot` wrote.

        Raises StateError if it is damaged, or if words would differ here.
        """
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
            stream.covered, stream.seconds = document["covered"], document["seconds"]
            stream.uncovered = deque((end, command) for end, command in document["uncovered"])
            stream.events = deque((number, event) for number, event in document["events"])
            if document["partial"] is not None:
                stream.partials[0] = document["partial"]
            stream.ended = document["ended"]
            stream.answered = [stream.covered] * stream.options.streams
            stream.finishing = document["finishing"]
            stream.reader.rest = base64.b64decode(document["rest"])
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"the saved stream is damaged ({error})") from error
        if options["choice"].name not in service.store.models:
            raise StateError(f"this server has no model {options['choice'].name!r}")
        if document["compute"] != stream.compute:
            raise StateError(
                f"the stream was computed on {document['compute']}, and this server computes on "
                f"{stream.compute}: its words could change"
            )
        stream.restored_from_store = True
        return stream


def _copied(
    session: Session, engine: Engine | SegmentedEngine, close: bool
) -> tuple[Callable[[], bytes], list[StreamEvent]]:
    """A copy of a stream and the unread events before it; `close` ends the stream."""
    with engine.lock:
        state, rest = session.snapshot(), []
        while (event := session.get_nowait()) is not None:
            rest.append(event)
        if close:
            session.close()
    return state, rest


def _encode(document: dict[str, object], state: bytes) -> bytes:
    return json.dumps(document).encode() + b"\n" + state


def _message(event: StreamEvent) -> dict[str, object]:
    return {
        **({} if event.language is None else {"language": event.language}),
        "type": event.type,
        "text": event.text,
        **({} if event.lexical is None else {"lexical": event.lexical}),
        "words": [_word(word) for word in event.words],
        "start": event.start,
        "end": event.end,
        **_channel(event),
    }


def _channel(event: StreamEvent) -> dict[str, int]:
    """The channel of an event, of a stream with several."""
    return {"channel": event.channel} if isinstance(event, ChannelEvent) else {}


def _word(word: Word) -> dict[str, object]:
    """A word; the keys of speakers are only there when one is known."""
    unknown = word.speaker is None
    speaker = ("speaker", "speaker_confidence")
    return {k: v for k, v in asdict(word).items() if not (unknown and k in speaker)}
