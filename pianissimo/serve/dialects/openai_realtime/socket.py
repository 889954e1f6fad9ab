"""OpenAI's realtime socket for transcription, and its client secrets.

Sessions, events and their order follow platform.openai.com/docs/guides/realtime-transcription; the
flat messages of the beta are accepted. An `error` event reports a fault of the client only, since
some clients give up at the first one. An unknown key is reported once, by a `warning` event.
"""

import asyncio
import base64
import binascii
import secrets
import time
from collections.abc import Iterable, Mapping
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
from pianissimo.serve.dialects.messages import (
    LONGEST_SHOWN_NAME,
    SMALL_TEXT_BYTES,
    JsonObject,
    nearest_first,
    parse_object,
    unknown_keys,
    unknown_type,
)
from pianissimo.serve.dialects.openai_realtime.session import (
    LOGPROBS,
    SessionSettings,
    StreamConfig,
    unknown_session_keys,
)
from pianissimo.serve.dialects.openai_realtime.turns import Turns
from pianissimo.serve.dialects.sockets import Client, client, parse_message, seat, until_first
from pianissimo.serve.errors import GOING_AWAY, Refusal, refusal_for
from pianissimo.serve.feed import Feed
from pianissimo.serve.openapi import OLD_SESSION_BODY, SECRET_BODY
from pianissimo.serve.service import Service
from pianissimo.serve.websocket import LARGEST_MESSAGE_BYTES
from pianissimo.transcript import StreamEvent

DIALECT = "openai-realtime"
LARGEST_APPEND_BYTES = 15 << 20
BASE64_PIECE = 1 << 18
"""Characters of base64 decoded at once, a multiple of 4."""
MOST_WARNINGS = 32
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
        client(socket, DIALECT, account=account) as one,
        seat(service, DIALECT, one.account),
    ):
        one.allow_large_messages()
        settings = SessionSettings(service, socket.headers, socket.query_params.get("model"))
        if prepared is not None and prepared.session:
            settings.update(prepared.session)
        await _Conversation(one, settings).run()


class _Conversation:
    """One socket: passes the client's messages to a stream of the engine and its events back.

    The stream is opened with the first audio and replaced when its part of the session changes; the
    times of the new stream continue those of the old one.
    """

    def __init__(self, one: Client, settings: SessionSettings) -> None:
        self.one, self.settings = one, settings
        self.expires_at = round(time.time()) + LONGEST_SESSION_SECONDS
        self.turns = Turns()
        self.feed: Feed | None = None
        self.offset = 0.0  # seconds consumed by earlier streams of this session
        self.uncommitted_seconds = 0.0
        self._opened: asyncio.Queue[tuple[Feed, float]] = asyncio.Queue()
        self._drained = asyncio.Event()
        self._sending = asyncio.Lock()
        self._warned: set[str] = set()
        self._resources = AsyncExitStack()

    async def run(self) -> None:
        await self._emit([{"type": "session.created", "session": self._shown()}])
        try:
            async with self._resources, asyncio.timeout(LONGEST_SESSION_SECONDS):
                await until_first(self._receive(), self._send())
        except TimeoutError:
            await self.one.close(GOING_AWAY, "the session has expired")
        except (Refusal, PianissimoError) as error:
            refusal = error if isinstance(error, Refusal) else refusal_for(error)
            await self._emit(self.turns.fail(refusal.message, refusal.code or refusal.kind))
            raise

    @property
    def now(self) -> float:
        """Seconds of audio since the session began."""
        return self.offset + (0.0 if self.feed is None else self.feed.seconds)

    # -- from the client ---------------------------------------------------------------------------

    async def _receive(self) -> None:
        while True:
            message = await self.one.receive()
            event_id = None
            try:
                if isinstance(message, bytes):
                    raise Refusal(400, "send audio as base64 in JSON, not binary", "invalid_json")
                given = await parse_message(message, LARGEST_MESSAGE_BYTES)
                event_id = given.get("event_id")
                await self._warn_unknown_keys(given)
                await self._handle(given)
            except Refusal as refusal:
                if refusal.status == 429:
                    raise  # the message is valid; the session ends
                await self._send_error(refusal, event_id)

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
                await self._emit(self.turns.clear(self.now))
                self.uncommitted_seconds = 0.0
                await feed.finalize()
            case kind:
                raise unknown_type(kind, KEYS)

    async def _warn_unknown_keys(self, given: Mapping[str, object]) -> None:
        """Report each unknown key once; newer SDKs send optional fields that are unknown here."""
        kind = given.get("type")
        valid = KEYS.get(kind) if isinstance(kind, str) else None
        if valid is None:
            return
        unknown = [
            (key[:LONGEST_SHOWN_NAME], nearest_first(key, valid))
            for key in unknown_keys(given, valid)[:MOST_WARNINGS]
        ]
        for key, names in (*unknown, *unknown_session_keys(given.get("session"))):
            if key in self._warned or len(self._warned) >= MOST_WARNINGS:
                continue
            self._warned.add(key)
            warning = {
                "code": "unknown_key",
                "param": key,
                "message": f"the key {key} is unknown and ignored; valid keys: {', '.join(names)}",
            }
            await self._emit([{"type": "warning", "warning": warning}])

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
        await self._emit([{"type": "session.updated", "session": self._shown()}])

    async def _append(self, audio: object) -> None:
        if not isinstance(audio, str) or len(audio) > LARGEST_APPEND_BYTES * 4 // 3 + 4:
            raise Refusal(400, "audio must be base64 text of at most 15 MiB", "invalid_audio")
        if len(audio) > SMALL_TEXT_BYTES:
            data = await asyncio.to_thread(_decoded, audio)
        else:
            data = _decoded(audio)
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
        await self._emit(self.turns.commit(self.now))
        self.uncommitted_seconds = 0.0
        self.one.final_requested()
        await feed.finalize()

    # -- the stream --------------------------------------------------------------------------------

    async def _open(self) -> Feed:
        if self.feed is None:
            stream_config = self.settings.stream_config
            self.turns.finds_turns = stream_config.finds_turns
            self.turns.prefix_seconds = stream_config.prefix_seconds
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
            sample_rate=stream_config.sample_rate,
            latency_ms=stream_config.latency_ms,
            endpoint=stream_config.endpoint,
            boost=await asyncio.to_thread(lease.model.hints, stream_config.boost),
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
                await self._emit(self.turns.accept(_shifted(event, offset)))
                if event.reason == "finalize":
                    self.one.final_sent()
            self._drained.set()

    # -- to the client -----------------------------------------------------------------------------

    async def _emit(self, messages: Iterable[Mapping[str, object]]) -> None:
        # Events of one cause stay together, even if the client reads slowly.
        found = list(messages)
        async with self._sending:
            for message in found:
                await self.one.send({"event_id": f"event_{secrets.token_hex(12)}", **message})

    async def _send_error(self, refusal: Refusal, event_id: object) -> None:
        error = {**refusal.body(), "event_id": event_id}
        await self._emit([{"type": "error", "error": error}])

    def _shown(self) -> JsonObject:
        return self.settings.shown(self.expires_at)


def _decoded(audio: str) -> bytes:
    """The bytes of base64 text, decoded in pieces that leave other threads their turn."""
    try:
        starts = range(0, len(audio), BASE64_PIECE)
        return b"".join(
            base64.b64decode(audio[start : start + BASE64_PIECE], validate=True) for start in starts
        )
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"audio is not base64: {error}", "invalid_audio", "audio") from error


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
    settings.update(requested)
    secret, expires = service.secrets.make(requested, seconds, account)
    return secret, expires, settings.shown(expires)
