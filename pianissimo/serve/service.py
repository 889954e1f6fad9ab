"""What all dialects share: one recogniser, its engine, and the limits around them."""

import asyncio
import logging
import math
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import BacklogError, ModelNotFoundError, OptionError
from pianissimo.serve.auth import ClientSecrets, KeyRing
from pianissimo.serve.decode import Decoders
from pianissimo.serve.metrics import Metrics
from pianissimo.serve.pcm import PcmReader
from pianissimo.serve.seats import Queue, Seats
from pianissimo.serve.settings import Settings
from pianissimo.streaming.endpoint import EndpointRules
from pianissimo.transcript import StreamEvent, Transcript

if TYPE_CHECKING:
    from pianissimo.loading import AnyRecognizer
    from pianissimo.streaming.engine import Engine
    from pianissimo.streaming.session import Session

NO_PAUSES = EndpointRules(trailing_silence=1e9, maximum_utterance=30.0)
"""Text is locked now and then, so that it does not grow without end, but no pause ends anything."""
PIECE_SECONDS = 1.0
"""A message with more audio is pushed in pieces: none fills a stream or holds up the others."""
PATIENCE_SECONDS = 0.02
"""How soon a stream that was full is asked again."""
ALIASES = re.compile(
    r"pianissimo|whisper-1|gpt-4o(-mini)?-transcribe(-[\w.-]+)?|gpt-realtime.*", re.I
)
"""Names that clients of other servers send by default; here they mean the model there is."""

log = logging.getLogger(__name__)


class Service:
    """Made when the server starts, closed when it ends; every request is given it."""

    def __init__(self, settings: Settings, recognizer: "AnyRecognizer") -> None:
        self.settings, self.recognizer = settings, recognizer
        self.keys = KeyRing(settings.api_keys, settings.admin_key)
        self.secrets = ClientSecrets()
        self.seats, self.files = Seats(settings.max_streams), Queue(settings.max_files)
        self.decoders = Decoders(
            settings.decoders, settings.decode_stall_seconds, settings.longest_audio_seconds
        )
        self.engine = _engine(settings, recognizer)
        self.metrics = Metrics(lambda: self.engine)
        self._threads = ThreadPoolExecutor(settings.max_files, "pianissimo-file")

    async def close(self) -> None:
        await self.decoders.close()
        if self.engine is not None:
            await asyncio.to_thread(self.engine.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- models ------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        return (self.recognizer.name,)

    @property
    def language(self) -> str | None:
        """The language of a model that knows only one."""
        config = getattr(getattr(self.recognizer, "model", None), "config", None)
        language = getattr(config, "language", None)
        return language if isinstance(language, str) else None

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFoundError for a name that is neither ours nor a usual one."""
        known = (*self.names, *(each.rpartition("/")[2] for each in self.names))
        if not name or ALIASES.fullmatch(name):
            return
        if name.lower() not in (each.lower() for each in known):
            raise ModelNotFoundError(
                f"there is no model {name!r} here; GET /v1/models lists what there is"
            )

    def check_language(self, language: str | None) -> None:
        """Raises OptionError for a language that the model does not know."""
        known = self.language
        if not language or known is None or language.lower() in ("auto", "multi"):
            return
        if language.lower().replace("_", "-").split("-")[0] != known.lower().split("-")[0]:
            raise OptionError(
                f"{self.recognizer.name} knows {known!r} only, not {language!r}; "
                "leave the language out, or serve another model"
            )

    # -- recordings --------------------------------------------------------------------------------

    async def transcribe(self, path: Path) -> Transcript:
        """The transcript of a recording, as the recogniser gives it for a file.

        Raises AudioError, and EngineFullError when too many wait already.
        """
        async with self.files.place():
            return await self._whole(path)

    async def events(self, path: Path) -> AsyncGenerator[StreamEvent | float]:
        """What a recording says while it is being heard, and its length in seconds at the end.

        A model that streams hears it as one more live stream, without waiting for the speaker;
        another one gives a single final. Raises what `transcribe` raises.
        """
        async with self.files.place():
            if self.engine is None:
                found = await self._whole(path)
                yield StreamEvent(
                    "final", found.text, found.words, 0.0, found.duration, reason="finish"
                )
                yield found.duration
                return
            async with aclosing(self._live(path)) as events:
                async for event in events:
                    yield event

    async def _whole(self, path: Path) -> Transcript:
        """Decoded by a decoder, which may die; recognised by a thread of ours."""
        with tempfile.NamedTemporaryFile(prefix="pianissimo-", suffix=".wav") as file:
            await self._decode(path, file)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._threads, lambda: self.recognizer.transcribe(file.name)
            )

    async def _decode(self, path: Path, target: Any) -> None:
        import soundfile

        with soundfile.SoundFile(target, "w", SAMPLE_RATE, 1, "FLOAT", format="WAV") as wav:
            async with aclosing(self.decoders.blocks(path, SAMPLE_RATE)) as blocks:
                async for block in blocks:
                    await asyncio.to_thread(wav.write, block)
        target.flush()

    async def _live(self, path: Path) -> AsyncGenerator[StreamEvent | float]:
        assert self.engine is not None
        session = self.engine.open(
            latency_ms=self.recognizer.latencies_ms[-1],
            sample_rate=SAMPLE_RATE,
            endpoint=NO_PAUSES,
            watchdog=None,
        )
        async with released(session):
            feeding = asyncio.create_task(self._feed(session, path))
            try:
                async for event in session:
                    yield event
                yield await feeding
            finally:
                feeding.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await feeding

    async def _feed(self, session: "Session", path: Path) -> float:
        """Push a recording into a stream as fast as that takes it; its length in seconds."""
        samples = 0
        try:
            async with aclosing(self.decoders.blocks(path, SAMPLE_RATE)) as blocks:
                async for block in blocks:
                    samples += len(block)
                    await push(session, block, SAMPLE_RATE)
            session.finish()
        except BaseException:
            session.close()
            raise
        return samples / SAMPLE_RATE

    # -- live streams ------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises EngineError unless the engine takes another stream."""
        if self.engine is not None:
            self.engine.open().close()

    def latency(self, latency_ms: int | None) -> int:
        """The latency mode of a stream that asks for this one, or for none; raises OptionError."""
        if self.engine is None:
            raise OptionError(
                f"{self.recognizer.name} hears recordings whole and cannot stream; "
                "send it files, or serve a streaming model"
            )
        grid = self.engine.model.grid(self.engine.recognizer.live_lookahead(latency_ms))
        return round(grid.chunk_seconds * 1000)

    def open(self, **options: Any) -> "Session":
        """A stream of the engine, for a client that has a seat; see `Engine.open`."""
        options["latency_ms"] = self.latency(options.get("latency_ms"))
        assert self.engine is not None
        return self.engine.open(**options)


def _engine(settings: Settings, recognizer: "AnyRecognizer") -> "Engine | None":
    if not recognizer.latencies_ms:
        return None
    from pianissimo.native import NativeRecognizer
    from pianissimo.streaming.engine import Engine

    assert isinstance(recognizer, NativeRecognizer)
    return Engine(recognizer, max_streams=settings.max_streams + settings.max_files)


@asynccontextmanager
async def released(session: "Session") -> AsyncIterator["Session"]:
    """Leaves the stream at the end, and waits until the engine has its slot back."""
    try:
        yield session
    finally:
        session.close()
        while session.slot is not None:
            await asyncio.sleep(0.002)


async def push(session: "Session", samples: Any, sample_rate: int) -> None:
    """Push samples into a stream, waiting for room without holding up other clients."""
    step = max(1, math.ceil(PIECE_SECONDS * sample_rate))
    for start in range(0, len(samples), step):
        piece = samples[start : start + step]
        while True:
            try:
                session.push(piece, wait=False)
                break
            except BacklogError:
                await asyncio.sleep(PATIENCE_SECONDS)
        if len(samples) > step:
            await asyncio.sleep(0)


class Feed:
    """The audio of one client: bytes of a known encoding into a stream of the engine."""

    def __init__(self, session: "Session", reader: PcmReader, sample_rate: int) -> None:
        self.session, self.reader, self.sample_rate = session, reader, sample_rate
        self.samples = 0

    @property
    def seconds(self) -> float:
        """Audio pushed so far."""
        return self.samples / self.sample_rate

    async def push(self, data: bytes) -> float:
        """Push the bytes of one message; the seconds they hold."""
        samples = self.reader.push(data)
        await push(self.session, samples, self.sample_rate)
        self.samples += len(samples)
        return len(samples) / self.sample_rate


class GrowingText:
    """The text of one item, append-only, from the events of its stream.

    An event whose text falls short of what was sent, because its last word went over to the next
    utterance, sends nothing: that utterance begins with it.
    """

    def __init__(self) -> None:
        self.locked, self.sent = "", ""

    def take(self, event: StreamEvent) -> str:
        """What the event adds, "" if nothing."""
        if event.type == "endpoint":
            return ""
        text = f"{self.locked} {event.text}".strip() if event.text else self.locked
        if event.type == "final":
            self.locked = text
        if not text.startswith(self.sent):
            return ""
        added, self.sent = text[len(self.sent) :], text
        return added
