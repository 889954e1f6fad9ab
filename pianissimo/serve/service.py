"""What all dialects share: the models, and the limits around them."""

import asyncio
import math
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.decoding.hotwords import Boost
from pianissimo.engine.engine import Engine
from pianissimo.engine.segmented import SegmentedEngine
from pianissimo.errors import BacklogError, EngineFullError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.auth import ClientSecrets, KeyRing, key_of, unauthorized
from pianissimo.serve.access.keys import WYOMING, Limits
from pianissimo.serve.access.seats import Queue, Seats
from pianissimo.serve.audio_in.decode import Decoders
from pianissimo.serve.audio_in.pcm import PcmReader
from pianissimo.serve.errors import draining
from pianissimo.serve.metrics import Metrics
from pianissimo.serve.settings import Settings
from pianissimo.serve.versions.shadow import Shadows, ShadowStream
from pianissimo.serve.versions.store import Choice, Lease, ServedModel, Store
from pianissimo.streaming.endpoint import EndpointRules
from pianissimo.transcript import StreamEvent, Transcript

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer
    from pianissimo.streaming.session import Session

NO_PAUSES = EndpointRules(trailing_silence=1e9, maximum_utterance=30.0)
"""Text is locked now and then, so that it does not grow without end, but no pause ends anything."""
PIECE_SECONDS = 1.0
"""A message with more audio is pushed in pieces: none fills a stream or holds up the others."""
PATIENCE_SECONDS = 0.02
"""How soon a stream that was full is asked again."""


class Service:
    """Made when the server starts, closed when it ends; every request is given it."""

    def __init__(
        self, settings: Settings, recognizers: "Recognizer | Mapping[str, Recognizer]"
    ) -> None:
        if not isinstance(recognizers, Mapping):
            recognizers = {recognizers.name: recognizers}
        self.settings = settings
        self.keys = KeyRing(settings.keys, settings.admin_key)
        self.secrets = ClientSecrets()
        self.wyoming = Account(WYOMING, Limits())
        self.seats, self.files = Seats(settings.max_streams), Queue(settings.max_files)
        self.decoders = Decoders(
            settings.decoders, settings.decode_stall_seconds, settings.longest_audio_seconds
        )
        slots = settings.max_streams + settings.max_files + settings.max_shadows
        self.store = Store(settings, recognizers, slots)
        self.metrics = Metrics(self.store, self.accounts)
        self.store.on_retired = self.metrics.retired
        self.shadows = Shadows(self.metrics, settings.max_shadows)
        self.draining = False
        self._threads = ThreadPoolExecutor(settings.max_files, "pianissimo-file")

    async def close(self) -> None:
        await self.decoders.close()
        await self.shadows.close()
        await self.store.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def recognizer(self) -> "Recognizer":
        """The default model's."""
        return self.store.models[self.store.default].recognizer

    @property
    def engine(self) -> Engine | SegmentedEngine:
        """The default model's."""
        return self.store.models[self.store.default].engine

    # -- who gets what -----------------------------------------------------------------------------

    @property
    def accounts(self) -> tuple[Account, ...]:
        """Everybody who is told apart."""
        without_keys = () if self.settings.wyoming_port is None else (self.wyoming,)
        return (*self.keys.accounts, *without_keys)

    def admit(self, dialect: str, headers: Mapping[str, str]) -> Account:
        """Whose request or socket this is; raises Refusal without a valid key."""
        account = self.keys.account(key_of(headers))
        if account is None:
            self.metrics.refusals.labels(dialect, "key").inc()
            raise unauthorized()
        account.requests += 1
        return account

    def take_seat(self, dialect: str, account: Account) -> None:
        """A seat for a live stream; each `take_seat` is followed by a `leave_seat`.

        Raises EngineFullError when there is none, Refusal when this key has all it may have.
        """
        account.take_stream()
        try:
            self.seats.take()
        except EngineFullError:
            account.leave_stream()
            self.metrics.refusals.labels(dialect, "full").inc()
            raise

    def leave_seat(self, account: Account) -> None:
        self.seats.leave()
        account.leave_stream()

    def check_open(self, dialect: str) -> None:
        """Raises Refusal while the server takes nobody new."""
        if self.draining:
            self.metrics.refusals.labels(dialect, "draining").inc()
            raise draining()

    def set_draining(self, draining: bool) -> None:
        """Take no new streams and recordings, or take them again; those there are go on."""
        self.draining = draining
        self.metrics.draining.set(draining)

    @property
    def idle(self) -> bool:
        """Whether no stream and no recording is left."""
        return self.seats.taken == 0 and self.files.taken == 0

    def lease(self, dialect: str, choice: Choice, session: str, account: Account) -> Lease:
        """The chosen model for a session; see `Store.choose` and `Store.lease`.

        Raises Refusal when this key has had its audio.
        """
        account.check_audio()
        lease = self.store.lease(choice, session, account)
        self.metrics.began(dialect, lease)
        return lease

    def heard(self, dialect: str, lease: Lease, seconds: float) -> None:
        """A client's audio was taken in."""
        self.metrics.heard(dialect, lease, seconds)
        if lease.account is not None:
            lease.account.heard(seconds)

    # -- recordings --------------------------------------------------------------------------------

    async def transcribe(self, path: Path, lease: Lease, boost: Boost = ()) -> Transcript:
        """The transcript of a recording, as the recognizer gives it for a file.

        Raises AudioError, EngineFullError when too many wait already, and OptionError for phrases
        that the model cannot boost.
        """
        async with self.files.place():
            return await self._whole(path, lease, boost)

    async def events(
        self, path: Path, lease: Lease, boost: Boost = ()
    ) -> AsyncGenerator[StreamEvent | float]:
        """What a recording says while it is being heard, and its length in seconds at the end.

        A model that streams hears it as one more live stream, without waiting for the speaker;
        another one gives a single final. Raises what `transcribe` raises.
        """
        async with self.files.place():
            if not lease.model.latencies_ms:
                found = await self._whole(path, lease, boost)
                yield StreamEvent(
                    "final", found.text, found.words, 0.0, found.duration, reason="finish"
                )
                yield found.duration
                return
            async with aclosing(self._live(path, lease, boost)) as events:
                async for event in events:
                    yield event

    async def _whole(self, path: Path, lease: Lease, boost: Boost) -> Transcript:
        """Decoded by a decoder, which may die; recognized by a thread of ours."""
        with tempfile.NamedTemporaryFile(prefix="pianissimo-", suffix=".wav") as file:
            await self._decode(path, file)
            recognizer, loop = lease.model.recognizer, asyncio.get_running_loop()
            found = await loop.run_in_executor(
                self._threads, lambda: recognizer.transcribe(file.name, boost=boost)
            )
            self.shadows.recording(lease, Path(file.name), found, boost)
            return found

    async def _decode(self, path: Path, target: Any) -> None:
        import soundfile

        with soundfile.SoundFile(target, "w", SAMPLE_RATE, 1, "FLOAT", format="WAV") as wav:
            async with aclosing(self.decoders.blocks(path, SAMPLE_RATE)) as blocks:
                async for block in blocks:
                    await asyncio.to_thread(wav.write, block)
        target.flush()

    async def _live(
        self, path: Path, lease: Lease, boost: Boost
    ) -> AsyncGenerator[StreamEvent | float]:
        options = {
            "latency_ms": lease.model.latencies_ms[-1],
            "boost": boost,
            "endpoint": NO_PAUSES,
            "watchdog": None,
        }
        async with self.feed(lease, PcmReader("pcm_f32le"), SAMPLE_RATE, **options) as feed:
            feeding = asyncio.create_task(self._hear(feed, path))
            try:
                async for event in feed:
                    yield event
                yield await feeding
            finally:
                feeding.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await feeding

    async def _hear(self, feed: "Feed", path: Path) -> float:
        """Push a recording into a stream as fast as that takes it; its length in seconds."""
        try:
            async with aclosing(self.decoders.blocks(path, SAMPLE_RATE)) as blocks:
                async for block in blocks:
                    await feed.take(block)
            await feed.finish()
        except BaseException:
            feed.session.close()
            raise
        return feed.seconds

    # -- live streams ------------------------------------------------------------------------------

    @asynccontextmanager
    async def feed(
        self, lease: Lease, reader: PcmReader, sample_rate: int, **options: Any
    ) -> AsyncIterator["Feed"]:
        """A stream of the leased model for a client that has a seat; see `Engine.open`."""
        feed = await self.open_feed(lease, reader, sample_rate, **options)
        try:
            yield feed
        finally:
            await feed.release()

    async def open_feed(
        self, lease: Lease, reader: PcmReader, sample_rate: int, **options: Any
    ) -> "Feed":
        """As `feed`, for whoever calls `Feed.release` in the end."""
        options["sample_rate"] = sample_rate
        session = await _opened(lease.model, options)
        resumed = options.pop("state", None) is not None
        shadow = None if resumed else self.shadows.stream(lease, **options)
        computes = isinstance(lease.model.engine, SegmentedEngine)
        return Feed(session, reader, sample_rate, shadow, lease.account, computes=computes)


async def _opened(model: ServedModel, options: Mapping[str, Any]) -> "Session":
    """A stream of a model, which makes a trie of its phrases first: not in the loop's thread."""
    if not options.get("boost"):
        return model.open(**options)
    opening = asyncio.create_task(asyncio.to_thread(lambda: model.open(**options)))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def _close_unused(opening: "asyncio.Task[Session]") -> None:
    """A stream came when nobody wanted it any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


class Feed:
    """The audio of one client: bytes of a known encoding into a stream of the engine.

    What is pushed, marked and said here is what a shadow gets to know. A session that `computes`
    finds its pauses in the thread that pushes, which must not be the loop's.
    """

    def __init__(
        self,
        session: "Session",
        reader: PcmReader,
        sample_rate: int,
        shadow: ShadowStream | None = None,
        account: Account | None = None,
        *,
        computes: bool = False,
    ) -> None:
        self.session, self.reader, self.sample_rate = session, reader, sample_rate
        self._shadow, self._account, self._computes = shadow, account, computes
        self.samples = 0

    @property
    def seconds(self) -> float:
        """Audio pushed so far."""
        return self.samples / self.sample_rate

    async def push(self, data: bytes) -> float:
        """Push the bytes of one message; the seconds they hold.

        Raises Refusal before it takes any, when the client's key has had its audio.
        """
        if self._account is not None:
            self._account.check_audio()
        samples = self.reader.push(data)
        await self.take(samples)
        return len(samples) / self.sample_rate

    async def take(self, samples: Any) -> None:
        """Push samples, waiting for room without holding up other clients."""
        step = max(1, math.ceil(PIECE_SECONDS * self.sample_rate))
        for start in range(0, len(samples), step):
            piece = samples[start : start + step]
            while True:
                try:
                    await self._do(partial(self.session.push, piece, wait=False))
                    break
                except BacklogError:
                    await asyncio.sleep(PATIENCE_SECONDS)
            if self._shadow is not None:
                self._shadow.push(piece)
            if len(samples) > step:
                await asyncio.sleep(0)
        self.samples += len(samples)

    async def finalize(self) -> None:
        await self._do(self.session.finalize)
        if self._shadow is not None:
            self._shadow.finalize()

    async def finish(self) -> None:
        await self._do(self.session.finish)
        if self._shadow is not None:
            self._shadow.finish()

    async def _do(self, work: Callable[[], None]) -> None:
        if self._computes:
            await asyncio.to_thread(work)
        else:
            work()

    def said(self, event: StreamEvent) -> None:
        """An event of the session was read."""
        if self._shadow is not None:
            self._shadow.said(event)

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        async for event in self.session:
            self.said(event)
            yield event

    async def release(self) -> None:
        """Leave the stream, and wait until the engine has its slot back."""
        if self._shadow is not None:
            self._shadow.close()
        self.session.close()
        while self.session.slot is not None:
            await asyncio.sleep(0.002)


class GrowingText:
    """The text of one item, append-only, from the events of its stream.

    An event whose text falls short of what was sent, because its last word went over to the next
    utterance, sends nothing: that utterance begins with it. Nor does a partial that may be taken
    back.
    """

    def __init__(self) -> None:
        self.locked, self.sent = "", ""

    def take(self, event: StreamEvent) -> str:
        """What the event adds, "" if nothing."""
        if event.type == "endpoint" or (event.type == "partial" and not event.stable):
            return ""
        text = f"{self.locked} {event.text}".strip() if event.text else self.locked
        if event.type == "final":
            self.locked = text
        if not text.startswith(self.sent):
            return ""
        added, self.sent = text[len(self.sent) :], text
        return added
