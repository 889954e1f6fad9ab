"""Our own socket /v1/stream: samples in, events out, and nothing lost when a connection breaks.

The protocol is described in docs/server-api.md; examples/stream_client.py speaks it.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import APIRouter
from starlette.websockets import WebSocket

from pianissimo.errors import PianissimoError
from pianissimo.serve.access.auth import caller_of
from pianissimo.serve.access.phrases import read_boost
from pianissimo.serve.audio_in.pcm import ENCODINGS
from pianissimo.serve.dialects.resumable import Command, ResumableStream, StreamOptions, Streams
from pianissimo.serve.dialects.sockets import (
    Client,
    Gone,
    client,
    parse_object,
    text_field,
    until_first,
    whole_field,
)
from pianissimo.serve.errors import Refusal, refusal_for
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules

DIALECT = "stream"
ACK_FRAMES = 8
"""Frames after which the client is told that they arrived."""
MOST_SECONDS = 1e9

router = APIRouter()


@router.websocket("/v1/stream")
async def stream(socket: WebSocket) -> None:
    async with client(socket, DIALECT) as one:
        streams: Streams = socket.app.state.streams
        try:
            await _serve(one, streams)
        except (Refusal, PianissimoError) as error:
            refusal = error if isinstance(error, Refusal) else refusal_for(error)
            with suppress(Gone):
                await one.send({"type": "error", "code": refusal.code, "message": refusal.message})
            raise


async def _serve(one: Client, streams: Streams) -> None:
    first = parse_object(await one.receive())
    resumed = first.get("type") == "resume"
    seen, known = whole_field(first, "events", 0, 0), resumed
    if resumed:
        served = streams.resume(text_field(first, "stream") or "")
    else:
        one.service.check_open(DIALECT)
        served = streams.start(_read_options(one, first))
    streams.came(served)
    served.seen(seen)
    try:
        async with served.attached(one.account):
            known = True
            await _Connection(one, served, seen).run(resumed)
        await streams.forget(served)
    except BaseException:
        if not known:
            await streams.forget(served)  # there was no room for it
        elif not served.given_up.is_set():
            streams.went(served)
        raise


class _Connection:
    """One of the connections of a stream."""

    def __init__(self, one: Client, served: ResumableStream, seen: int) -> None:
        self.one, self.served, self.sent = one, served, seen

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
            }
        )
        await until_first(self._receive(), self._send(), self._give_way())

    async def _receive(self) -> None:
        """Take frames; after the last one only what the client says about events, until it has
        all of them."""
        while not self.served.done:
            message = await self.one.receive()
            if isinstance(message, bytes):
                await self.served.take(message)
                if self.served.frames % ACK_FRAMES == 0:
                    await self._acknowledge()
                continue
            given = parse_object(message)
            match given.get("type"):
                case "finalize" | "finalise" | "finish" as command:
                    name: Command = "finish" if command == "finish" else "finalize"
                    await self.served.take(name)
                    await self._acknowledge()
                case "ack":
                    self.served.seen(whole_field(given, "events", 0, 0))
                case "keepalive":
                    pass
                case kind:
                    raise Refusal(400, f"messages of the type {kind!r} are unknown", "unknown_type")

    async def _acknowledge(self) -> None:
        gain = round(self.served.gain_db, 1)
        await self.one.send({"type": "ack", "frames": self.served.frames, "gain_db": gain})

    async def _send(self) -> None:
        """Events in order, each once on this connection; between them the newest partial."""
        shown: Mapping[str, Any] | None = None
        while True:
            self.served.news.clear()
            for number, event in self.served.unseen(self.sent):
                await self.one.send(event)
                self.sent = number
            if self.served.failure is not None:
                raise self.served.failure
            partial = self.served.partial
            if partial is not None and partial is not shown:
                shown = partial
                await self.one.send(partial)
            await self.served.news.wait()

    async def _give_way(self) -> None:
        await self.served.given_up.wait()
        assert self.served.farewell is not None
        raise self.served.farewell


# -- the first message -----------------------------------------------------------------------------


def _read_options(one: Client, first: Mapping[str, Any]) -> StreamOptions:
    """Raises Refusal for values that make no sense, and what the service says about others."""
    if first.get("type") != "start":
        raise Refusal(400, "the first message must be start or resume", "unknown_type")
    caller = caller_of(one.socket.headers, text_field(first, "user"))
    choice = one.service.store.choose(text_field(first, "model"), caller)
    model = one.service.store.models[choice.name]
    model.check_language(text_field(first, "language"))
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
    )


def _read_rules(given: Any) -> EndpointRules | None:
    if given is None or given is False:
        return None
    if not isinstance(given, dict):
        raise Refusal(400, "endpoint must be an object, or null for none", "invalid_value")
    return EndpointRules(
        _seconds(given, "trailing_silence", ENDPOINT.trailing_silence),
        _seconds(given, "minimum_speech", ENDPOINT.minimum_speech),
        _seconds(given, "maximum_utterance", ENDPOINT.maximum_utterance),
    )


def _seconds(given: Mapping[str, Any], name: str, default: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MOST_SECONDS:
        raise Refusal(400, f"endpoint.{name} must be a number of seconds", "invalid_value")
    return float(value)
