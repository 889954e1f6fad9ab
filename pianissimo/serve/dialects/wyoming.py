"""Wyoming, the protocol of Home Assistant's voice assistants, on a separate TCP port.

An event is a line of JSON that states the bytes of data and payload behind it; events are described
at github.com/OHF-Voice/wyoming. The protocol has no authentication.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field

from pianissimo import __version__
from pianissimo.errors import MarkupError, PianissimoError
from pianissimo.serve.audio_in.pcm import PcmReader
from pianissimo.serve.dialects.messages import parse_object, text_field, whole_field
from pianissimo.serve.dialects.sockets import Gone, seat, until_first
from pianissimo.serve.errors import Refusal, busy, refusal_for
from pianissimo.serve.feed import Feed, GrowingText
from pianissimo.serve.service import NO_PAUSES, Service
from pianissimo.serve.speech import Speech
from pianissimo.serve.versions.experiments import Caller
from pianissimo.serve.versions.store import Lease, ModelChoice
from pianissimo.synthesis.sentences import SentenceBuffer
from pianissimo.synthesis.text import pronounceable

DIALECT = "wyoming"
PROTOCOL_VERSION = "1.10.2"
"""Of the package `wyoming` whose events these are."""
LARGEST_JSON_BYTES = 64 << 10
"""Limit of the line of an event, and of its data."""
LARGEST_PAYLOAD_BYTES = 16 << 20
SPOKEN_CHUNK_BYTES = 4 << 10
"""Payload of an `audio-chunk` to a client: small satellites play it."""
PIECE_BYTES = 64 << 10
"""Payloads are read in pieces; a connection keeps one in memory."""
MOST_CONNECTIONS_PER_SEAT = 4
"""Assistants keep idle connections open."""
FIRST_STREAMING_VERSION = (1, 7)
"""Clients from this version on accept text in chunks."""
PARTING_SECONDS = 1.0
"""How long the input of a refused client is read before the connection is closed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One event of a client; `payload_bytes` of payload are still to be read."""

    type: str
    data: Mapping[str, object]
    payload_bytes: int
    version: tuple[int, ...]


@dataclass(frozen=True)
class AudioFormat:
    """Format of samples: rate in hertz, bytes per sample, channels."""

    rate: int
    width: int
    channels: int


class WyomingServer:
    """Listens on the port that the settings name, from `start` to `close`."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises OSError if the port is taken."""
        settings = self.service.settings
        self._listener = await asyncio.start_server(
            self._serve, settings.host, settings.wyoming_port, limit=LARGEST_JSON_BYTES
        )
        log.info("wyoming listens on tcp://%s:%d", settings.host, self.port)

    @property
    def port(self) -> int:
        assert self._listener is not None
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Accept no new connections and cancel the open ones."""
        if self._listener is not None:
            self._listener.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._converse(_WyomingConnection(self.service, reader, writer))
        except asyncio.CancelledError:
            pass  # the server ends
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(self, one: "_WyomingConnection") -> None:
        """Serve a connection and count its outcome."""
        metrics, outcome = self.service.metrics, "done"
        metrics.sockets.labels(DIALECT).inc()
        self.service.wyoming.requests += 1
        try:
            if len(self._connections) > MOST_CONNECTIONS_PER_SEAT * self.service.seats.capacity:
                metrics.refusals.labels(DIALECT, "full").inc()
                raise busy("too many connections are open; try again later")
            await one.run()
        except Gone:
            outcome = "gone"
        except (Refusal, PianissimoError) as error:
            refusal = error if isinstance(error, Refusal) else refusal_for(error)
            outcome = refusal.code or refusal.kind
            with suppress(Gone):
                await one.send_error({"text": refusal.message, "code": refusal.code})
        except asyncio.CancelledError:
            outcome = "restarted"
            raise
        except Exception:
            log.exception("a connection of %s failed", DIALECT)
            outcome = "failed"
        finally:
            metrics.sockets.labels(DIALECT).dec()
            metrics.requests.labels(DIALECT, outcome).inc()


class _Turn:
    """One utterance: audio from `audio-start` to `audio-stop`, and its text."""

    def __init__(self, format: AudioFormat, feed: Feed, lease: Lease) -> None:
        self.format, self.feed, self.lease = format, feed, lease
        self.text = GrowingText()
        self.complete = asyncio.Event()


@dataclass
class _Speaking:
    """A text that is spoken while it arrives."""

    voice: str
    rate: int
    """Of its audio, in Hz."""
    buffer: SentenceBuffer = field(default_factory=SentenceBuffer)
    started: bool = False


class _WyomingConnection:
    """One client, with one turn at a time."""

    def __init__(
        self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.service, self._reader, self._writer = service, reader, writer
        self.streaming = False
        self.turn: _Turn | None = None
        self._caller = Caller(secrets.token_hex(12))
        self._choice: ModelChoice | None = None
        self._spoken: str | None = None
        self._opened: asyncio.Queue[_Turn] = asyncio.Queue()
        self._speaking: _Speaking | None = None
        self._resources = AsyncExitStack()

    async def run(self) -> None:
        """Until the client goes; raises Gone, Refusal and PianissimoError."""
        async with self._resources:
            await until_first(self._receive(), self._send_text())

    # -- from the client ---------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            event = await self._read()
            self.streaming = event.version >= FIRST_STREAMING_VERSION
            match event.type:
                case "describe":
                    await self.send("info", info(self.service))
                case "ping":
                    await self.send("pong", {"text": event.data.get("text")})
                case "transcribe":
                    self._choose(event.data)
                case "audio-start":
                    await self._end_turn()
                    await self._start(_format(event.data))
                case "audio-chunk":
                    await self._push(event)
                    continue
                case "audio-stop":
                    await self._stop()
                case "synthesize":
                    if self._speaking is None:  # else a copy of the text that came in chunks
                        await self._synthesize(event.data)
                case "synthesize-start":
                    self._speaking = await self._start_speaking(event.data)
                case "synthesize-chunk":
                    await self._speak_chunk(event.data)
                case "synthesize-stop":
                    await self._stop_speaking()
            async for _ in self._payload(event):
                pass

    def _choose(self, data: Mapping[str, object]) -> None:
        """Choose the model of the next turns; raises ModelNotFoundError and OptionError."""
        store = self.service.store
        choice = store.choose(text_field(data, "name"), self._caller)
        self._spoken = store.models[choice.name].spoken(text_field(data, "language"))
        self._choice = choice

    async def _start(self, format: AudioFormat) -> _Turn:
        await self._resources.enter_async_context(seat(self.service, DIALECT, self.service.wyoming))
        choice = self._choice or self.service.store.choose(None, self._caller)
        lease = self.service.lease(DIALECT, choice, self._caller.session, self.service.wyoming)
        self._resources.enter_context(lease)
        reader = PcmReader("pcm_s16le", format.channels)
        opening = self.service.feed(
            lease, reader, sample_rate=format.rate, endpoint=NO_PAUSES, language=self._spoken
        )
        feed = await self._resources.enter_async_context(opening)
        self.turn = _Turn(format, feed, lease)
        self._opened.put_nowait(self.turn)
        return self.turn

    async def _push(self, event: Event) -> None:
        """Push a chunk of audio; without an `audio-start` it begins a turn."""
        format = _format(event.data)
        turn = self.turn or await self._start(format)
        if format != turn.format:
            raise Refusal(
                400,
                f"the audio format changed to {format} within a turn; send audio-start first",
                "bad_audio",
            )
        async for piece in self._payload(event):
            seconds = await turn.feed.push(piece)
            self.service.record_audio(DIALECT, turn.lease, seconds)

    async def _stop(self) -> None:
        """Send the transcript of the turn, empty if there was none."""
        turn = self.turn
        if turn is None:
            await self._answer("")
            return
        requested = time.monotonic()
        await turn.feed.finish()
        await turn.complete.wait()
        await self._answer(turn.text.sent)
        self.service.metrics.final_after(DIALECT, turn.lease, time.monotonic() - requested)
        await self._end_turn()

    # -- text from the client, and its audio -------------------------------------------------------

    async def _synthesize(self, data: Mapping[str, object]) -> None:
        """Speak a whole text: `audio-start`, chunks, `audio-stop`."""
        speaking = await self._start_speaking(data)
        await self._speak(speaking, text_field(data, "text") or "")
        await self.send("audio-stop", {})

    async def _start_speaking(self, data: Mapping[str, object]) -> "_Speaking":
        """The voice of a request; raises Refusal for one that is not served, or for SSML."""
        self.service.check_open(DIALECT)
        voices = self.service.voices
        if text_field(data, "text_format") not in (None, "text"):
            raise MarkupError("only plain text is spoken; send text_format text")
        wanted = data.get("voice") or {}
        if not isinstance(wanted, dict):
            raise Refusal(400, "voice must be an object with a name", "invalid_value", "voice")
        voice = await voices.load(name := voices.choose(text_field(wanted, "name")))
        language = text_field(wanted, "language")
        if language and voice.language and language[:2].lower() != voice.language[:2].lower():
            raise Refusal(400, f"the voice {name} speaks {voice.language}", "unknown_voice")
        return _Speaking(name, voice.sample_rate)

    async def _speak_chunk(self, data: Mapping[str, object]) -> None:
        """Speak the sentences that a chunk of text completes."""
        if self._speaking is None:
            raise Refusal(400, "send synthesize-start before synthesize-chunk", "no_synthesis")
        for sentence in self._speaking.buffer.push(text_field(data, "text") or ""):
            if pronounceable(sentence):
                await self._speak(self._speaking, sentence)

    async def _stop_speaking(self) -> None:
        """Speak the rest of the text; an empty one gives no audio."""
        speaking, self._speaking = self._speaking, None
        if speaking is not None:
            for sentence in speaking.buffer.finish():
                if pronounceable(sentence):
                    await self._speak(speaking, sentence)
            if speaking.started:
                await self.send("audio-stop", {})
        await self.send("synthesize-stopped", {})

    async def _speak(self, speaking: "_Speaking", text: str) -> None:
        speech = Speech(text, speaking.voice)
        format = {"rate": speaking.rate, "width": 2, "channels": 1}
        audio = self.service.voices.encoded(DIALECT, self.service.wyoming, speech, "pcm")
        async with aclosing(audio):
            async for data, _ in audio:
                if not speaking.started:
                    speaking.started = True
                    await self.send("audio-start", format)
                for start in range(0, len(data), SPOKEN_CHUNK_BYTES):
                    chunk = data[start : start + SPOKEN_CHUNK_BYTES]
                    await self.send("audio-chunk", format, chunk)

    async def _end_turn(self) -> None:
        """Release stream and seat, if there are any."""
        await self._resources.aclose()
        self.turn = None

    # -- to the client -----------------------------------------------------------------------------

    async def _send_text(self) -> None:
        """Send the text of each turn while it grows."""
        while True:
            turn = await self._opened.get()
            async for event in turn.feed:
                first = not turn.text.sent
                added = turn.text.add(event)
                if added and self.streaming:
                    if first:
                        await self.send("transcript-start", self._language())
                    await self.send("transcript-chunk", {"text": added})
            turn.complete.set()

    async def _answer(self, text: str) -> None:
        if self.streaming and not text:
            await self.send("transcript-start", self._language())
        await self.send("transcript", {"text": text, **self._language()})
        if self.streaming:
            await self.send("transcript-stop", {})

    def _language(self) -> dict[str, str]:
        choice = self._choice or self.service.store.choose(None, self._caller)
        model = self.service.store.models.get(choice.name)
        return {} if model is None or model.language is None else {"language": model.language}

    # -- bytes -------------------------------------------------------------------------------------

    async def _read(self) -> Event:
        """The next event; raises Gone at the end, Refusal if it is invalid or late."""
        line = await self._within(self._line())
        head = parse_object(line)
        kind, data = head.get("type"), head.get("data") or {}
        if not isinstance(kind, str) or not isinstance(data, dict):
            raise Refusal(400, "an event needs a type, and its data is an object", "invalid_event")
        if size := _length(head, "data_length", LARGEST_JSON_BYTES):
            data |= parse_object(await self._within(self._reader.readexactly(size)))
        payload_bytes = _length(head, "payload_length", LARGEST_PAYLOAD_BYTES)
        return Event(kind, data, payload_bytes, _version(head.get("version")))

    async def _line(self) -> bytes:
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.LimitOverrunError as error:
            raise Refusal(413, "the line of an event is too long", "event_too_large") from error
        return line

    async def _payload(self, event: Event) -> AsyncIterator[bytes]:
        """The payload of an event in pieces."""
        rest = event.payload_bytes
        while rest:
            piece = await self._within(self._reader.readexactly(min(rest, PIECE_BYTES)))
            rest -= len(piece)
            yield piece

    async def _within(self, reading: Awaitable[bytes]) -> bytes:
        """The bytes read; raises Refusal after the idle time, Gone if the connection ends."""
        seconds = self.service.settings.idle_seconds
        try:
            async with asyncio.timeout(seconds):
                return await reading
        except TimeoutError:
            raise Refusal(408, f"no message came for {seconds:g} s", "idle") from None
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Gone(1006) from error

    async def send(self, kind: str, data: Mapping[str, object], payload: bytes = b"") -> None:
        """Send an event; waits while the client does not read, but not for ever. Raises Gone."""
        body = json.dumps(data, ensure_ascii=False).encode() if data else b""
        head: dict[str, object] = {"type": kind, "version": PROTOCOL_VERSION}
        if body:
            head["data_length"] = len(body)
        if payload:
            head["payload_length"] = len(payload)
        try:
            self._writer.write(json.dumps(head).encode() + b"\n" + body + payload)
            async with asyncio.timeout(self.service.settings.idle_seconds):
                await self._writer.drain()
        except (TimeoutError, OSError) as error:
            self._writer.transport.abort()  # a close would wait for the client to read
            raise Gone(1006) from error

    async def send_error(self, error: Mapping[str, object]) -> None:
        """Send an error, then read what is still arriving, so that the client sees the error.

        Raises Gone.
        """
        await self.send("error", error)
        with suppress(TimeoutError, OSError):
            self._writer.write_eof()
            async with asyncio.timeout(PARTING_SECONDS):
                while await self._reader.read(PIECE_BYTES):
                    pass


# -- contents of events ----------------------------------------------------------------------------


def info(service: Service) -> dict[str, object]:
    """The answer to `describe`: models, voices and abilities of the server."""
    store = service.store
    models = [
        {**_artifact(name), "languages": [model.language] if model.language else []}
        for name, model in store.models.items()
    ]
    program = {
        **_artifact("pianissimo"),
        "models": models,
        "supports_transcript_streaming": True,
        "requires_external_vad": True,
        "prefers_auto_gain_enabled": False,  # the model has its own gain
        "prefers_noise_reduction_enabled": False,
    }
    voices = [
        {**_artifact(name, "speech synthesis"), "languages": [language] if language else []}
        for name, language in service.voices.languages.items()
    ]
    if not voices:
        return {"asr": [program]}
    speaker = {
        **_artifact("pianissimo", "speech synthesis"),
        "voices": voices,
        "supports_synthesize_streaming": True,
    }
    return {"asr": [program], "tts": [speaker]}


def _artifact(name: str, what: str = "live speech recognition") -> dict[str, object]:
    return {
        "name": name,
        "description": f"{name}, {what}",
        "attribution": {"name": "pianissimo", "url": ""},
        "installed": True,
        "version": __version__,
    }


def _format(data: Mapping[str, object]) -> AudioFormat:
    """Raises Refusal for samples that do not have 16 bits."""
    rate, channels = whole_field(data, "rate", 16_000, 1), whole_field(data, "channels", 1, 1)
    width = whole_field(data, "width", 2, 1)
    if width != 2:
        raise Refusal(400, f"samples of {width} bytes are not supported; send 2", "bad_audio")
    return AudioFormat(rate, width, channels)


def _length(head: Mapping[str, object], name: str, most: int) -> int:
    length = 0 if head.get(name) is None else whole_field(head, name, 0, 0)
    if length > most:
        raise Refusal(413, f"{name} is {length}; at most {most} is accepted", "event_too_large")
    return length


def _version(text: object) -> tuple[int, ...]:
    """The protocol version of a client; () if it states none."""
    try:
        return tuple(int(part) for part in str(text).split(".")[:2])
    except ValueError:
        return ()
