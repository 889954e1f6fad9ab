"""What a program holds of its stream: audio in, `StreamEvent`s out."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from pianissimo.client.connection import Connection
from pianissimo.client.frames import KeptFrames, Message
from pianissimo.errors import AudioValueError, OptionError, StreamError
from pianissimo.transcript import StreamEvent, Word

if TYPE_CHECKING:
    from pianissimo.decoding.hotwords import Phrase
    from pianissimo.streaming.endpoint import EndpointRules

SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}
LONGEST_SECONDS = 1.0
"""Longer audio is sent as several frames."""
MOST_UNREAD = 500
"""Most finals and endpoints that wait to be read; with more, no audio is sent."""


class StartFields(TypedDict, total=False):
    """The options of a stream, as the server knows them; what is left out is its default."""

    model: str | None
    language: str | None
    latency_ms: int | None
    """A latency mode of the model."""
    sample_rate: int
    """Of the audio that is sent; 16000 if left out."""
    encoding: Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]
    """`pcm_s16le` if left out. Arrays are converted to the first two."""
    channels: int
    endpoint: "EndpointRules | None"
    """None: no pause ends an utterance."""
    boost: "Sequence[str | Phrase]"
    diarize: bool
    second_pass: bool | None
    """False turns off the second pass of a model that has one."""
    itn: bool
    """Whether finals write numbers, dates and money as people do; `lexical` has the spoken text."""
    user: str | None


class ClientStream:
    """A live stream on a server; `connect` opens it.

    Iterating gives its events: the newest partial, and each final and endpoint exactly once, across
    broken connections. Iteration ends after `finish`, once all text has arrived. Times are seconds
    since the first sample. Send and read in two tasks, or read after `finish` if the audio is
    short: with 500 unread finals and endpoints a stream pauses. The server does not send `stable`
    and `reasons`, which have their defaults.

    Server failures reach the caller of `send`, `finalize`, `finish` and the reader of events, as
    ServerUnreachableError, ServerRefusedError or StreamLostError.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        start: StartFields,
        retry_seconds: float,
        keep_seconds: float,
    ) -> None:
        self.encoding = start.get("encoding", "pcm_s16le")
        self.channels, rate = start.get("channels", 1), start.get("sample_rate", 16_000)
        if self.encoding not in SAMPLE_BYTES:
            raise OptionError(f"encoding must be one of {', '.join(SAMPLE_BYTES)}")
        if self.channels < 1 or rate < 1:
            raise OptionError(f"{self.channels} channels at {rate} Hz: both must be at least 1")
        self._sample_bytes = SAMPLE_BYTES[self.encoding] * self.channels
        self._block_bytes = self._sample_bytes * max(1, round(rate * LONGEST_SECONDS))
        self._frames = KeptFrames(self._sample_bytes * rate, keep_seconds)
        self._connection = Connection(
            _socket_url(url), key, _as_json(start), self._frames, self._on_event, retry_seconds
        )
        self._rest = b""
        self._events: deque[StreamEvent] = deque()
        self._news = asyncio.Event()
        self._finished = self._discarding = self._failure_raised = False
        self._running = asyncio.create_task(self._connection.run())
        self._running.add_done_callback(self._on_done)

    @property
    def model(self) -> str:
        """The name of the model that the server chose."""
        return str(self._connection.ready["model"])

    @property
    def latency_ms(self) -> int | None:
        """The latency mode of the stream; None for a model without modes."""
        latency: int | None = self._connection.ready["latency_ms"]
        return latency

    @property
    def connections(self) -> int:
        """How many connections the stream took so far."""
        return self._connection.connections

    @property
    def restarts(self) -> int:
        """How often the server lost the stream, and its last audio was sent to a new one."""
        return self._connection.restarts

    async def send(self, samples: npt.ArrayLike | bytes) -> None:
        """Send audio; waits while too much of it could not be delivered.

        Args:
            samples: float samples between -1 and 1 or int16 samples, (time,) or (time, channels),
                or bytes in the `encoding` of the stream.

        Raises AudioValueError for unusable samples, StreamError after `finish`.
        """
        data = samples if isinstance(samples, bytes) else self._encoded(np.asarray(samples))
        self._check_open()
        data = self._rest + data
        whole = len(data) - len(data) % self._sample_bytes
        data, self._rest = data[:whole], data[whole:]
        for start in range(0, len(data), self._block_bytes):
            await self._wait_for_room()
            self._frames.add_audio(data[start : start + self._block_bytes])
            self._connection.changed.set()

    async def finalize(self) -> None:
        """Request the final text of all audio so far; the stream continues."""
        await self._command("finalize")

    async def finish(self) -> None:
        """End the audio: iteration ends when all of its text has arrived."""
        await self._command("finish")
        self._finished = True

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        while not self._events:
            if self._running.done():
                self._raise_failure()
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        event = self._events.popleft()
        self._hold()
        return event

    async def opened(self) -> None:
        """Wait for the first connection; raises ServerUnreachableError or ServerRefusedError."""
        first = asyncio.create_task(self._connection.opened.wait())
        try:
            await asyncio.wait({first, self._running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            first.cancel()
        if self._running.done():
            self._raise_failure()

    async def end(self) -> None:
        """After `finish`: wait until the server has ended the stream; unread events are dropped."""
        if self._finished and not self._failure_raised:
            self._discarding = True
            self._events.clear()
            self._hold()
            await self._running

    async def close(self) -> None:
        """Close the connection at once."""
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def _command(self, name: str) -> None:
        self._check_open()
        await self._wait_for_room()
        self._frames.add_command(json.dumps({"type": name}))
        self._connection.changed.set()

    async def _wait_for_room(self) -> None:
        while self._frames.full and not self._running.done():
            self._connection.room.clear()
            await self._connection.room.wait()
        self._check_open()

    def _check_open(self) -> None:
        if self._finished:
            raise StreamError("the stream has finished; connect again for more audio")
        if self._running.done():
            self._raise_failure()
            raise StreamError("the stream is closed; connect again")

    def _raise_failure(self) -> None:
        """Raise why the stream has failed, if it has."""
        if not self._running.cancelled():
            self._failure_raised = self._running.exception() is not None
            self._running.result()

    def _encoded(self, samples: npt.NDArray[Any]) -> bytes:
        shape, dtype = samples.shape, samples.dtype
        if shape[1:] != (() if self.channels == 1 else (self.channels,)) or not shape:
            raise AudioValueError(
                f"samples have the shape {shape}; a stream of {self.channels} channels takes "
                f"{'(time,)' if self.channels == 1 else f'(time, {self.channels})'}"
            )
        if dtype != np.int16 and not np.issubdtype(dtype, np.floating):
            raise AudioValueError(f"samples are {dtype}; send float samples, int16 or bytes")
        if dtype != np.int16 and not np.isfinite(samples).all():
            raise AudioValueError("samples contain NaN or infinity")
        match self.encoding:
            case "pcm_s16le":
                if dtype != np.int16:
                    samples = np.clip(np.rint(samples * 32768.0), -32768, 32767)
                return samples.astype("<i2").tobytes()
            case "pcm_f32le":
                return (samples / 32768.0 if dtype == np.int16 else samples).astype("<f4").tobytes()
        raise AudioValueError(f"arrays are not converted to {self.encoding}; send bytes")

    def _on_event(self, event: Message) -> None:
        if event["type"] not in ("partial", "final", "endpoint") or self._discarding:
            return
        if self._events and self._events[-1].type == "partial":
            self._events.pop()  # a newer event holds all that it says
        self._events.append(_stream_event(event, self._frames.start))
        self._hold()
        self._news.set()

    def _hold(self) -> None:
        self._connection.held = len(self._events) >= MOST_UNREAD
        if not self._connection.held:
            self._connection.changed.set()

    def _on_done(self, _: "asyncio.Task[None]") -> None:
        self._news.set()
        self._connection.room.set()


@asynccontextmanager
async def connect(
    url: str,
    *,
    key: str | None = None,
    retry_seconds: float = 120.0,
    keep_seconds: float = 600.0,
    **start: Unpack[StartFields],
) -> AsyncIterator[ClientStream]:
    """Open a live stream on a server, for the time of an `async with` block.

    A broken connection is opened again, with growing pauses, and the stream continues behind the
    last frame and event that both sides have. Audio is kept until a final text answers it and, if
    the server stores its streams, until it is in the stored state. A server that has lost the
    stream gets this audio again. After `finish` the block ends when the server has ended the
    stream; without `finish`, or after an exception, it drops the stream at once.

    Args:
        url: the address of the server: "ws://HOST:PORT", or wss, http or https.
        key: an API key, if the server requires one.
        retry_seconds: for how long a broken connection is tried again.
        keep_seconds: at most so much audio that the server has received is kept.
        start: `model`, `latency_ms`, `sample_rate` and the other fields of `StartFields`.

    Raises:
        ServerUnreachableError: there is no connection at first, or none for `retry_seconds`.
        ServerRefusedError: the server refuses the key, a field or the stream.
        StreamLostError: the server lost the stream, and and audio older than `keep_seconds`.
        OptionError: the address or the format of the audio is invalid.
    """
    stream = ClientStream(url, key, start, retry_seconds, keep_seconds)
    try:
        await stream.opened()
        yield stream
        await stream.end()
    finally:
        await stream.close()


def _socket_url(url: str) -> str:
    scheme, separator, place = url.partition("://")
    schemes = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
    if not separator or scheme not in schemes or not place.strip("/"):
        raise OptionError(f"{url!r} is no address of a server; write ws://HOST:PORT")
    return f"{schemes[scheme]}://{place.rstrip('/').removesuffix('/v1/stream')}/v1/stream"


def _as_json(start: StartFields) -> dict[str, Any]:
    """The fields of the start message; only `endpoint` may be null."""
    fields: dict[str, Any] = {k: v for k, v in start.items() if v is not None or k == "endpoint"}
    if (rules := fields.get("endpoint")) is not None:
        fields["endpoint"] = asdict(rules)
        if fields["endpoint"].pop("voice"):
            raise OptionError("a server has no endpoint rule `voice`; remove it")
    if "boost" in fields:
        fields["boost"] = [one if isinstance(one, str) else asdict(one) for one in fields["boost"]]
    return fields


def _stream_event(event: Message, offset: float) -> StreamEvent:
    """A message of the server; its stream begins at `offset` seconds."""
    words = tuple(
        Word(
            word["text"],
            word["start"] + offset,
            word["end"] + offset,
            word.get("confidence"),
            word.get("speaker"),
            word.get("speaker_confidence"),
        )
        for word in event.get("words", ())
    )
    end = event["end"] + offset
    return StreamEvent(
        event["type"],
        event.get("text", ""),
        words,
        event["start"] + offset if "start" in event else end,
        end,
        reason=event.get("reason"),
        lexical=event.get("lexical"),
        language=event.get("language"),
    )
