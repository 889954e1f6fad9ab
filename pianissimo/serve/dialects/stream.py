"""The socket /v1/stream: samples in, events out, resumable after a broken connection.

docs/server-api.md describes the protocol; `pianissimo.client` is a client.
"""

from collections.abc import Mapping

from fastapi import APIRouter
from starlette.websockets import WebSocket

from pianissimo.diarization.channels import MOST_CHANNELS
from pianissimo.serve.access.auth import caller_of
from pianissimo.serve.access.phrases import read_boost
from pianissimo.serve.audio_in.pcm import ENCODINGS
from pianissimo.serve.dialects.messages import (
    JsonObject,
    check_keys,
    text_field,
    unknown_type,
    whole_field,
)
from pianissimo.serve.dialects.resumable import ResumableStream, SetLanguage, StreamOptions
from pianissimo.serve.dialects.sockets import Client, client, parse_message, until_first
from pianissimo.serve.durable.streams import Streams
from pianissimo.serve.errors import Refusal
from pianissimo.serve.versions.store import ServedModel
from pianissimo.serve.websocket import FIRST_MESSAGE_BYTES
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules

DIALECT = "stream"
ACK_FRAMES = 8
"""Frames after which the client gets an acknowledgment."""
MOST_SECONDS = 1e9
TOKEN_HEADER = "pianissimo-stream"
KEYS: dict[str, tuple[str, ...]] = {
    "start": (
        "type",
        "model",
        "language",
        "sample_rate",
        "encoding",
        "channels",
        "multichannel",
        "latency_ms",
        "endpoint",
        "boost",
        "diarize",
        "second_pass",
        "polish",
        "itn",
        "user",
        "events",
    ),
    "resume": ("type", "stream", "events", "frames"),
    "language": ("type", "language"),
    "finalize": ("type",),
    "finalise": ("type",),
    "finish": ("type",),
    "ack": ("type", "events"),
    "keepalive": ("type",),
}
"""Valid keys of each message type."""
FIRST_TYPES = ("start", "resume")
ENDPOINT_KEYS = ("trailing_silence", "minimum_speech", "maximum_utterance")

router = APIRouter()


@router.websocket("/v1/stream")
async def stream(socket: WebSocket) -> None:
    async with client(socket, DIALECT, error_message=_error_message) as one:
        one.admit()
        await _serve(one, socket.app.state.streams)


def _error_message(refusal: Refusal) -> JsonObject:
    return {"type": "error", "code": refusal.code, "message": refusal.message}


async def _serve(one: Client, streams: Streams) -> None:
    first = await parse_message(await one.receive(), FIRST_MESSAGE_BYTES)
    if first.get("type") not in FIRST_TYPES:
        refusal = unknown_type(first.get("type"), FIRST_TYPES)
        refusal.message = f"the first message must be start or resume: {refusal.message}"
        raise refusal
    resumed = first["type"] == "resume"
    check_keys(first, KEYS["resume" if resumed else "start"], "the first message")
    last_seen, known = whole_field(first, "events", 0, 0), resumed
    if resumed:
        served = await streams.resume(_token(one, first))
        dropped = whole_field(first, "frames", 0, 0)
        if served.frames < dropped:
            streams.disconnected(served)
            raise Refusal(
                409,
                f"the stored stream ends at frame {served.frames}, and the client has dropped "
                f"{dropped} frames; start another stream",
                "frames_lost",
            )
    else:
        one.service.check_open(DIALECT)
        served = streams.start(_read_options(one, first))
    streams.connected(served)
    served.acknowledge(last_seen)
    try:
        async with served.attached(one.account):
            known = True
            one.allow_large_messages()
            if not resumed:
                await streams.keep(served)
            await _StreamConnection(one, served, streams, last_seen).run(resumed)
        await streams.forget(served)
    except BaseException:
        if not known:
            await streams.forget(served)  # it got no seat
        elif not served.displaced.is_set():
            streams.disconnected(served)
        raise


class _StreamConnection:
    """One connection of a stream."""

    def __init__(
        self, one: Client, served: ResumableStream, streams: Streams, last_seen: int
    ) -> None:
        self.one, self.served, self.streams, self.sent = one, served, streams, last_seen
        self._ended = False
        self._saved_sent: int | None = None

    async def run(self, resumed: bool) -> None:
        served, service = self.served, self.one.service
        if resumed:
            service.metrics.resumed.inc()
        await self.one.send(
            {
                "type": "ready",
                "stream": served.token,
                "model": served.options.choice.name,
                "latency_ms": served.options.latency_ms,
                "frames": served.frames,
                "resume_seconds": service.settings.resume_seconds,
                **self._saved(),
            }
        )
        await until_first(self._receive(), self._send(), self._yield_when_displaced())

    async def _receive(self) -> None:
        """Accept frames; after `finish` acknowledgments only, until the client has all events."""
        while not self.served.done:
            message = await self.one.receive()
            if isinstance(message, bytes):
                await self.served.accept(message)
                if self.served.frames % ACK_FRAMES == 0:
                    await self._acknowledge()
                continue
            await self._handle(await parse_message(message))

    async def _handle(self, given: JsonObject) -> None:
        kind = given.get("type")
        types = [each for each in KEYS if each not in FIRST_TYPES]
        if kind not in types:
            raise unknown_type(kind, types)
        check_keys(given, KEYS[str(kind)], f"the message {kind}")
        match kind:
            case "finalize" | "finalise" | "finish":
                await self.one.pace_command()
                await self.served.accept("finish" if kind == "finish" else "finalize")
                await self._acknowledge()
            case "language":
                await self.one.pace_command()
                await self.served.accept(SetLanguage(text_field(given, "language") or ""))
                await self._acknowledge()
            case "ack":
                self.served.acknowledge(whole_field(given, "events", 0, 0))

    async def _acknowledge(self) -> None:
        if self._ended:  # `end` is the last message of a stream
            return
        gain = round(self.served.gain_db, 1)
        counts = {"frames": self.served.frames, **self._saved()}
        await self.one.send({"type": "ack", **counts, "gain_db": gain})

    def _saved(self) -> dict[str, int]:
        """The frames that the client may drop, if the stream is stored."""
        self._saved_sent = self.served.saved
        return {} if self.served.saved is None else {"saved": self.served.saved}

    async def _send(self) -> None:
        """Events in order, each once on this connection; between them the newest partial."""
        shown: dict[int, Mapping[str, object]] = {}
        while True:
            self.served.news.clear()
            for number, event in self.served.unacknowledged(self.sent):
                if not await self.streams.still_here(self.served):
                    raise Refusal(409, "another server resumed this stream", "taken_over")
                if event.get("type") == "end":
                    await self._send_revisions()
                    self._ended = True
                await self.one.send(event)
                self.sent = number
            if not self._ended:
                await self._send_revisions()
            if self.served.failure is not None:
                raise self.served.failure
            for channel, partial in list(self.served.partials.items()):
                if partial is not shown.get(channel):
                    shown[channel] = partial
                    await self.one.send(partial)
            if self.served.saved != self._saved_sent:
                await self._acknowledge()
            if self.served.done:
                return  # after a replay of events that the client has
            await self.served.news.wait()

    async def _send_revisions(self) -> None:
        """Revisions of finals; like partials they are sent once and not after a resume."""
        while self.served.revisions:
            await self.one.send(self.served.revisions.popleft())

    async def _yield_when_displaced(self) -> None:
        await self.served.displaced.wait()
        assert self.served.closing_reason is not None
        raise self.served.closing_reason


def _token(one: Client, first: Mapping[str, object]) -> str:
    """The token of a resume: in the message, or where a proxy sees it, in the URL or a header."""
    socket = one.socket
    seen = socket.query_params.get("stream") or socket.headers.get(TOKEN_HEADER)
    token = text_field(first, "stream") or seen or ""
    if seen is not None and seen != token:
        raise Refusal(400, "the URL or header names another stream than the message", "stream")
    return token


# -- the first message -----------------------------------------------------------------------------


def _read_options(one: Client, first: Mapping[str, object]) -> StreamOptions:
    """The options of a start message; raises Refusal, and errors of the model store."""
    caller = caller_of(one.socket.headers, text_field(first, "user"))
    choice = one.service.store.choose(text_field(first, "model"), caller)
    model = one.service.store.models[choice.name]
    language = model.spoken(text_field(first, "language"))
    encoding = text_field(first, "encoding") or "pcm_s16le"
    for known in ENCODINGS:
        if encoding == known:
            break
    else:
        raise Refusal(400, f"encoding must be one of {', '.join(ENCODINGS)}", "invalid_value")
    latency = None if first.get("latency_ms") is None else whole_field(first, "latency_ms", 0, 1)
    return StreamOptions(
        sample_rate=whole_field(first, "sample_rate", 16_000, 1000),
        encoding=known,
        channels=whole_field(first, "channels", 1, 1),
        latency_ms=model.latency(latency),
        endpoint=_read_rules(first.get("endpoint", {})),
        choice=choice,
        session=caller.session,
        boost=read_boost(first.get("boost")),
        diarize=bool(_switch(first, "diarize")),
        second_pass=_second_pass(first, model),
        language=language,
        polish=one.service.polisher_for(_switch(first, "polish")) is not None,
        multichannel=_multichannel(first),
        itn=_written_form(first, model, language),
    )


def _multichannel(first: Mapping[str, object]) -> bool:
    """Whether each channel is a stream of its own."""
    wanted = bool(_switch(first, "multichannel"))
    if wanted and not 2 <= whole_field(first, "channels", 1, 1) <= MOST_CHANNELS:
        reason = f"multichannel needs channels from 2 to {MOST_CHANNELS}"
        raise Refusal(400, reason, "invalid_value", "channels")
    return wanted


def _switch(first: Mapping[str, object], name: str) -> bool | None:
    given = first.get(name)
    if given is not None and not isinstance(given, bool):
        raise Refusal(400, f"{name} must be true or false", "invalid_value", name)
    return given


def _second_pass(first: Mapping[str, object], model: ServedModel) -> bool | None:
    wanted = _switch(first, "second_pass")
    if wanted and not model.recognizer.capabilities.second_pass:
        reason = f"{model.name} has no second pass; omit second_pass"
        raise Refusal(400, reason, "invalid_value", "second_pass")
    return wanted


def _written_form(first: Mapping[str, object], model: ServedModel, language: str | None) -> bool:
    wanted = bool(_switch(first, "itn"))
    if wanted:
        model.written_form(language)  # refused before there is a stream
    return wanted


def _read_rules(given: object) -> EndpointRules | None:
    if given is None or given is False:
        return None
    if not isinstance(given, dict):
        raise Refusal(400, "endpoint must be an object, or null for none", "invalid_value")
    check_keys(given, ENDPOINT_KEYS, "endpoint")
    return EndpointRules(
        _seconds(given, "trailing_silence", ENDPOINT.trailing_silence),
        _seconds(given, "minimum_speech", ENDPOINT.minimum_speech),
        _seconds(given, "maximum_utterance", ENDPOINT.maximum_utterance),
    )


def _seconds(given: Mapping[str, object], name: str, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST_SECONDS:
        raise Refusal(400, f"endpoint.{name} must be a number of seconds", "invalid_value")
    return float(value)
