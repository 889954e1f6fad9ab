"""OpenAI's realtime socket, its sessions for transcription, and its client secrets.

Sessions, events and their order follow platform.openai.com/docs/guides/realtime-transcription; the
flat messages of the beta are accepted. An `error` event reports a fault of the client only, since
some clients give up at the first one. An unknown key is reported once, by a `warning` event.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from pianissimo.errors import PianissimoError
from pianissimo.serve.access.auth import (
    LONGEST_SECRET_SECONDS,
    SHORTEST_SECRET_SECONDS,
    key_of,
)
from pianissimo.serve.audio_in.pcm import PcmReader
from pianissimo.serve.audio_in.upload import limited
from pianissimo.serve.dialects.messages import JsonObject, parse_object, unknown_type
from pianissimo.serve.dialects.openai_realtime.agent_session import AgentSession
from pianissimo.serve.dialects.openai_realtime.agent_socket import AgentConversation
from pianissimo.serve.dialects.openai_realtime.session import (
    LOGPROBS,
    SessionSettings,
    StreamConfig,
)
from pianissimo.serve.dialects.openai_realtime.turns import Turns
from pianissimo.serve.dialects.openai_realtime.wire import DIALECT, Wire, decoded
from pianissimo.serve.dialects.sockets import client, seat, until_first
from pianissimo.serve.errors import GOING_AWAY, Refusal, refusal_for
from pianissimo.serve.feed import Feed
from pianissimo.serve.openapi import OLD_SESSION_BODY, SECRET_BODY
from pianissimo.serve.service import Service
from pianissimo.transcript import StreamEvent

KEYS: dict[str, tuple[str, ...]] = {
    "session.update": ("type", "event_id", "session"),
    "transcription_session.update": ("type", "event_id", "session"),
    "input_audio_buffer.append": ("type", "event_id", "audio"),
    "input_audio_buffer.commit": ("type", "event_id"),
    "input_audio_buffer.clear": ("type", "event_id"),
}
"""Valid keys of each message type."""
LONGEST_SESSION_SECONDS = 24 * 3600
SECRET_SECONDS = 600
LARGEST_SECRET_BODY_BYTES = 16 << 10
"""The session of a secret is kept until the secret expires."""

router = APIRouter()


@router.websocket("/v1/realtime")
async def realtime(socket: WebSocket) -> None:
    service: Service = socket.app.state.service
    prepared = service.secrets.find(key_of(socket.headers))
    account = None if prepared is None else prepared.account
    async with (
        client(socket, DIALECT) as one,
        seat(service, DIALECT, one.admit(account)),
    ):
        one.allow_large_messages()
        settings = SessionSettings(service, socket.headers, socket.query_params.get("model"))
        given = {} if prepared is None else prepared.session or {}
        default = "transcription"
        if service.agent is not None and socket.query_params.get("intent") != "transcription":
            default = "realtime"
        session = _prepared(service, settings, given, default)
        expires_at = round(time.time()) + LONGEST_SESSION_SECONDS
        wire = Wire(one)
        await wire.emit([{"type": "session.created", "session": session.shown(expires_at)}])
        # The first message may ask for the other kind; upstream the address does.
        first = await one.receive()
        if service.agent is not None and not given:
            session = _prepared(service, settings, {}, _requested(first, default))
        if isinstance(session, AgentSession):
            await AgentConversation(wire, session, expires_at).run(first)
        else:
            await _Conversation(wire, settings, expires_at).run(first)


def _prepared(
    service: Service, settings: SessionSettings, given: JsonObject, default: str
) -> SessionSettings | AgentSession:
    """The session of the kind that `given` asks for, with its values."""
    session: SessionSettings | AgentSession = settings
    if given.get("type", default) == "realtime" and service.agent is not None:
        session = AgentSession(service.agent, settings)
    if given:
        session.update(given)
    return session


def _requested(first: str | bytes, default: str) -> str:
    """The kind of session that a first message asks for; a faulty one is reported later."""
    try:
        given = parse_object(first)
    except Refusal:
        return default
    if given.get("type") == "transcription_session.update":
        return "transcription"
    session = given.get("session")
    kind = session.get("type") if isinstance(session, dict) else None
    return kind if kind in ("transcription", "realtime") else default


class _Conversation:
    """One socket: passes the client's messages to a stream of the engine and its events back.

    The stream is opened with the first audio and replaced when its part of the session changes; the
    times of the new stream continue those of the old one.
    """

    def __init__(self, wire: Wire, settings: SessionSettings, expires_at: int) -> None:
        self.wire, self.one, self.settings = wire, wire.one, settings
        self.expires_at = expires_at
        self.turns = Turns()
        self.feed: Feed | None = None
        self.offset = 0.0  # seconds consumed by earlier streams of this session
        self.uncommitted_seconds = 0.0
        self._opened: asyncio.Queue[tuple[Feed, float]] = asyncio.Queue()
        self._drained = asyncio.Event()
        self._resources = AsyncExitStack()

    async def run(self, first: str | bytes) -> None:
        """Serve the client, whose first message was read already."""
        try:
            async with self._resources, asyncio.timeout(LONGEST_SESSION_SECONDS):
                receiving = self.wire.receive(self._handle, KEYS, first)
                await until_first(receiving, self._send())
        except TimeoutError:
            await self.one.close(GOING_AWAY, "the session has expired")
        except (Refusal, PianissimoError) as error:
            refusal = error if isinstance(error, Refusal) else refusal_for(error)
            await self.wire.emit(self.turns.fail(refusal.message, refusal.code or refusal.kind))
            raise

    @property
    def now(self) -> float:
        """Seconds of audio since the session began."""
        return self.offset + (0.0 if self.feed is None else self.feed.seconds)

    # -- from the client ---------------------------------------------------------------------------

    async def _handle(self, given: Mapping[str, object]) -> None:
        match given.get("type"):
            case "session.update" | "transcription_session.update":
                await self._update(given.get("session"))
            case "input_audio_buffer.append":
                await self._append(given.get("audio"))
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                await self.one.pace_command()
                feed = await self._open()
                await self.wire.emit(self.turns.clear(self.now))
                self.uncommitted_seconds = 0.0
                await feed.finalize()
            case kind:
                raise unknown_type(kind, KEYS)

    async def _update(self, given: object) -> None:
        await self.one.pace_command()
        before = self.settings.stream_config
        try:
            self.settings.update(given)
        except PianissimoError as error:  # an unknown language or model
            raise refusal_for(error) from error
        self.turns.logprobs = LOGPROBS in self.settings.include
        if self.settings.stream_config != before:
            await self._replace()
        await self.wire.emit(
            [{"type": "session.updated", "session": self.settings.shown(self.expires_at)}]
        )

    async def _append(self, audio: object) -> None:
        data = await decoded(audio)
        feed = await self._open()
        seconds = await feed.push(data)
        self.uncommitted_seconds += seconds
        assert self.one.lease is not None
        self.one.service.record_audio(DIALECT, self.one.lease, seconds)

    async def _commit(self) -> None:
        if self.uncommitted_seconds == 0 and self.one.service.settings.strict_commits:
            raise Refusal(400, "the input audio buffer is empty", "input_audio_buffer_commit_empty")
        await self.one.pace_command()
        feed = await self._open()
        # In this order: the final of the stream belongs to an item that is committed.
        await self.wire.emit(self.turns.commit(self.now))
        self.uncommitted_seconds = 0.0
        self.one.final_requested()
        await feed.finalize()

    # -- the stream --------------------------------------------------------------------------------

    async def _open(self) -> Feed:
        if self.feed is None:
            stream_config = self.settings.stream_config
            self.turns.finds_turns = stream_config.finds_turns
            self.turns.prefix_seconds = stream_config.prefix_seconds
            self.turns.written = stream_config.itn
            self.feed = await self._new_feed(stream_config)
            self._opened.put_nowait((self.feed, self.offset))
        return self.feed

    async def _new_feed(self, stream_config: StreamConfig) -> Feed:
        service = self.one.service
        lease = service.lease(DIALECT, stream_config.choice, self.settings.id, self.one.account)
        self.one.lease = self._resources.enter_context(lease)
        opening = service.feed(
            lease,
            PcmReader(stream_config.encoding),
            written=lease.model.written_form(stream_config.language) if stream_config.itn else None,
            sample_rate=stream_config.sample_rate,
            latency_ms=stream_config.latency_ms,
            endpoint=stream_config.endpoint,
            boost=await asyncio.to_thread(lease.model.hints, stream_config.boost),
            language=stream_config.language,
        )
        return await self._resources.enter_async_context(opening)

    async def _replace(self) -> None:
        """End the stream; the next audio opens another one."""
        if self.feed is None:
            return
        self._drained.clear()
        await self.feed.finish()
        await self._drained.wait()
        await self._resources.aclose()
        self.offset, self.feed = self.now, None

    async def _send(self) -> None:
        while True:
            feed, offset = await self._opened.get()
            async for event in feed:
                await self.wire.emit(self.turns.accept(_shifted(event, offset)))
                if event.reason == "finalize":
                    self.one.final_sent()
            self._drained.set()


def _shifted(event: StreamEvent, seconds: float) -> StreamEvent:
    if not seconds:
        return event
    words = tuple(replace(w, start=w.start + seconds, end=w.end + seconds) for w in event.words)
    return replace(event, words=words, start=event.start + seconds, end=event.end + seconds)


# -- secrets for browsers --------------------------------------------------------------------------


@router.post("/v1/realtime/client_secrets", openapi_extra=SECRET_BODY)
async def make_client_secret(request: Request) -> Response:
    """A short-lived key of the realtime socket, with the session it will have."""
    secret, expires, session = await _secret(request, nested=True)
    return JSONResponse({"value": secret, "expires_at": expires, "session": session})


@router.post("/v1/realtime/transcription_sessions", openapi_extra=OLD_SESSION_BODY)
async def make_transcription_session(request: Request) -> Response:
    """The same in the beta shape."""
    secret, expires, session = await _secret(request, nested=False)
    return JSONResponse({**session, "client_secret": {"value": secret, "expires_at": expires}})


async def _secret(request: Request, *, nested: bool) -> tuple[str, int, JsonObject]:
    service: Service = request.app.state.service
    account = service.admit(DIALECT, request.headers)
    body = await limited(request, LARGEST_SECRET_BODY_BYTES).body()
    given = parse_object(body) if body else {}
    requested = (given.get("session") or {}) if nested else given
    if not isinstance(requested, dict):
        raise Refusal(400, "session must be an object", "invalid_value", "session")
    after = given.get("expires_after") or {}
    seconds = after.get("seconds", SECRET_SECONDS) if isinstance(after, dict) else None
    if (
        not isinstance(seconds, int)
        or not SHORTEST_SECRET_SECONDS <= seconds <= LONGEST_SECRET_SECONDS
    ):
        raise Refusal(
            400,
            f"expires_after.seconds must be a whole number from {SHORTEST_SECRET_SECONDS} to "
            f"{LONGEST_SECRET_SECONDS}",
            "invalid_value",
            "expires_after.seconds",
        )
    settings = SessionSettings(service, request.headers)
    session = _prepared(service, settings, requested, "transcription")
    secret, expires = service.secrets.make(requested, seconds, account)
    return secret, expires, session.shown(expires)
