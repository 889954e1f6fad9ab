"""The voices of a server: which there are, how many speak at once, and audio from their threads."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from starlette.requests import Request

from pianissimo.audio.encode import AudioEncoder
from pianissimo.audio.io import Samples
from pianissimo.errors import OptionError, TextTooLongError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.seats import Queue
from pianissimo.serve.audio_in.upload import unless_gone
from pianissimo.serve.errors import Refusal
from pianissimo.serve.metrics import Metrics
from pianissimo.serve.settings import Settings, parse_source
from pianissimo.zoo.voices import VoiceInfo, list_voices, load_voice

if TYPE_CHECKING:
    from pianissimo.protocols import Synthesizer

T = TypeVar("T")
Encoded: TypeAlias = tuple[bytes, int]
"""Bytes of encoded audio, and the number of samples that went into the encoder for them."""


@dataclass(frozen=True)
class Speech:
    """A text to be spoken for a client."""

    text: str
    voice: str
    """The name of a served voice, from `Voices.choose`."""
    speed: float = 1.0
    seed: int | None = None


class Voices:
    """The voices by the names they are served under; the first is the default.

    `loaded` voices are ready. Without any, those of the settings are loaded when they are first
    used.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, loaded: "Mapping[str, Synthesizer] | None"
    ) -> None:
        self._settings, self._metrics = settings, metrics
        self._loaded: dict[str, Synthesizer] = dict(loaded or {})
        if loaded is None:
            self._sources = voice_sources(settings.voices)
        else:
            self._sources = {name: VoiceInfo(name, loaded[name].language) for name in loaded}
        self._loading = asyncio.Lock()
        self._places = Queue(settings.max_speeches, "texts are being spoken")
        self._speaking: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(settings.max_speeches, "pianissimo-speech")

    @property
    def names(self) -> list[str]:
        return list(self._sources)

    @property
    def languages(self) -> dict[str, str | None]:
        """The language of each voice, None where it is unknown."""
        return {name: source.language for name, source in self._sources.items()}

    @property
    def in_use(self) -> int:
        """Texts that are being spoken."""
        return self._places.in_use

    @property
    def waiting(self) -> int:
        """Texts that wait for a place."""
        return self._places.waiting

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def choose(self, *wanted: str | None, foreign: Sequence[str] = ()) -> str:
        """The first of the wanted voices that is served; the default without any.

        Names in `foreign`, which clients of other services send, stand for the default. Raises
        Refusal for an unknown name, or if there is no voice at all.
        """
        if not self._sources:
            raise Refusal(
                501, "no voice is installed: pip install 'pianissimo[tts]'", "voice_missing"
            )
        known = {name.lower(): name for name in self._sources}
        for name in wanted:
            if name is not None and name.lower() in known:
                return known[name.lower()]
        for name in wanted:
            if name is not None and name.lower() not in foreign:
                raise Refusal(
                    400,
                    f"there is no voice {name[:80]!r}; choose {', '.join(self._sources)}",
                    "unknown_voice",
                    "voice",
                )
        return self.names[0]

    async def load(self, name: str) -> "Synthesizer":
        """The served voice of that name; loads it the first time."""
        async with self._loading:
            if name not in self._loaded:
                source, device = self._sources[name].name, self._settings.device
                self._loaded[name] = await asyncio.to_thread(load_voice, source, device=device)
            return self._loaded[name]

    async def samples(
        self, dialect: str, account: Account, speech: Speech
    ) -> AsyncGenerator[Samples]:
        """The audio of a text: blocks (n,) of mono float32 at the rate of the voice.

        Synthesis runs in a thread, one block at a time, and stops when the generator is closed.
        Raises TextError, OptionError, EngineFullError if too many texts wait, and Refusal at the
        limit of the key.
        """
        voice = await self.load(speech.voice)

        def blocks() -> Generator[Samples]:
            return voice.stream(speech.text, speed=speech.speed, seed=speech.seed)

        async with aclosing(self._run(dialect, account, speech, voice, blocks, len)) as found:
            async for block in found:
                yield block

    async def encoded(
        self,
        dialect: str,
        account: Account,
        speech: Speech,
        format: str,
        sample_rate: int | None = None,
    ) -> AsyncGenerator[Encoded]:
        """As `samples`, in a format of `audio.encode`."""
        voice = await self.load(speech.voice)

        def blocks() -> Generator[Encoded]:
            stream = voice.stream(speech.text, speed=speech.speed, seed=speech.seed)
            return _encoded(stream, format, voice.sample_rate, sample_rate)

        def samples(block: Encoded) -> int:
            return block[1]

        async with aclosing(self._run(dialect, account, speech, voice, blocks, samples)) as found:
            async for block in found:
                yield block

    async def _run(
        self,
        dialect: str,
        account: Account,
        speech: Speech,
        voice: "Synthesizer",
        open_blocks: "Callable[[], Generator[T]]",
        samples_of: Callable[[T], int],
    ) -> AsyncGenerator[T]:
        """Run a generator in a thread, block by block, and meter its audio.

        A task of its own holds the place and the generator, so that a reader may be canceled at
        any time. It is at most one block ahead of the reader.
        """
        account.check_audio()
        most = self._settings.longest_text
        if len(speech.text) > most:
            raise TextTooLongError(
                f"the text has {len(speech.text)} characters, more than the {most} that this "
                "server speaks at once; split it"
            )
        ready: asyncio.Queue[T | Exception | None] = asyncio.Queue(1)
        started, first = time.monotonic(), True
        speaking = asyncio.create_task(self._speak(open_blocks, ready))
        self._speaking.add(speaking)
        speaking.add_done_callback(self._speaking.discard)
        try:
            while (block := await ready.get()) is not None:
                if isinstance(block, Exception):
                    raise block
                seconds = samples_of(block) / voice.sample_rate
                account.record_audio(seconds)
                self._metrics.speech.produced(dialect, speech.voice, seconds)
                if first:
                    first = False
                    delay = time.monotonic() - started
                    self._metrics.speech.began(dialect, speech.voice, delay, len(speech.text))
                yield block
        finally:
            speaking.cancel()

    async def _speak(
        self,
        open_blocks: "Callable[[], Generator[T]]",
        ready: "asyncio.Queue[T | Exception | None]",
    ) -> None:
        """Put the blocks of a generator into a queue, then None, or the error that ended it."""
        try:
            async with self._places.place():
                loop = asyncio.get_running_loop()
                blocks = await loop.run_in_executor(self._threads, open_blocks)
                step: asyncio.Future[T | None] | None = None
                try:
                    while True:
                        step = loop.run_in_executor(self._threads, next, blocks, None)
                        block = await asyncio.shield(step)
                        if block is None:
                            break
                        await ready.put(block)
                finally:
                    # The place is free once the thread is: after one sentence at most.
                    if step is not None and not step.done():
                        await asyncio.wait([step])
                    blocks.close()
            await ready.put(None)
        except Exception as error:  # raised by the reader
            await ready.put(error)


def _encoded(
    stream: Generator[Samples], format: str, source_rate: int, sample_rate: int | None
) -> Generator[Encoded]:
    pieces = list[bytes]()
    encoder = AudioEncoder(pieces.append, format, source_rate, sample_rate)
    for block in stream:
        encoder.write(block)
        if pieces:
            yield b"".join(pieces), len(block)
            pieces.clear()
        else:
            yield b"", len(block)
    encoder.close()
    yield b"".join(pieces), 0


async def begun(request: Request, audio: AsyncGenerator[Encoded]) -> AsyncGenerator[Encoded]:
    """The same audio once its first block is there: a failure before has a status of its own.

    Raises what the generator raises, and ClientDisconnect if the client goes before.
    """

    async def first() -> Encoded:
        return await anext(audio)

    try:
        block = await unless_gone(request, first())
    except BaseException:
        await audio.aclose()
        raise
    return _with_first(block, audio)


async def _with_first(first: Encoded, rest: AsyncGenerator[Encoded]) -> AsyncGenerator[Encoded]:
    async with aclosing(rest):
        yield first
        async for block in rest:
            yield block


async def audio_bytes(audio: AsyncGenerator[Encoded]) -> AsyncIterator[bytes]:
    """The bytes of audio, for a response."""
    async with aclosing(audio):
        async for data, _ in audio:
            if data:
                yield data


def voice_sources(given: Sequence[str]) -> dict[str, VoiceInfo]:
    """The voices to load by the names they are served under; by default those installed.

    Raises OptionError if two have the same name.
    """
    if not given:
        return {voice.name: voice for voice in list_voices()}
    languages = {voice.name: voice.language for voice in list_voices()}
    sources: dict[str, VoiceInfo] = {}
    for text in given:
        name, source = parse_source(text)
        assert source is not None
        name = name or Path(source).name
        if name in sources:
            raise OptionError(f"two voices have the name {name}; use --voice NAME=VOICE")
        sources[name] = VoiceInfo(source, languages.get(source))
    return sources


def read_voices(settings: Settings) -> "dict[str, Synthesizer]":
    """Load the voices of the settings, by default those installed.

    Raises what `load_voice` raises.
    """
    return {
        name: load_voice(source.name, device=settings.device)
        for name, source in voice_sources(settings.voices).items()
    }
