"""OpenAI's realtime socket for transcription, as it is generally available, and its secrets.

Sessions, events and their order as in platform.openai.com/docs/guides/realtime-transcription; the
flat messages of the time before are understood. `error` is only for what the client did wrong: some
clients give up at the first one.
"""

import asyncio
import base64
import binascii
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

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
from pianissimo.serve.dialects.openai_realtime.session import LOGPROBS, Hearing, SessionSettings
from pianissimo.serve.dialects.openai_realtime.turns import Turns
from pianissimo.serve.dialects.sockets import Client, client, parse_object, seat, until_first
from pianissimo.serve.errors import GOING_AWAY, Refusal, refusal_for
from pianissimo.serve.openapi import OLD_SESSION_BODY, SECRET_BODY
from pianissimo.serve.service import Feed, Service
from pianissimo.transcript import StreamEvent

DIALECT = "openai-realtime"
LARGEST_APPEND_BYTES = 15 << 20
LONGEST_SESSION_SECONDS = 24 * 3600
SECRET_SECONDS = 600
LARGEST_SECRET_BODY_BYTES = 16 << 10
"""The session that comes with a secret is kept until it expires."""

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
        settings = SessionSettings(service, socket.headers, socket.query_params.get("model"))
        if prepared is not None and prepared.session:
            settings.update(prepared.session)
        await _Conversation(one, settings).run()


class _Conversation:
    """One socket: the client's messages to a stream of the engine, its events back.

    The stream is opened with the first audio and replaced when the session changes what it must
    know; the times of the new one go on from the old one's.
    """

    def __init__(self, one: Client, settings: SessionSettings) -> None:
        self.one, self.settings = one, settings
        self.expires_at = round(time.time()) + LONGEST_SESSION_SECONDS
        self.turns = Turns()
        self.feed: Feed | None = None
        self.offset = 0.0  # what earlier streams of this session heard, in seconds
        self.uncommitted_seconds = 0.0
        self._opened: asyncio.Queue[tuple[Feed, float]] = asyncio.Queue()
        self._drained = asyncio.Event()
        self._telling = asyncio.Lock()
        self._slot = AsyncExitStack()

    async def run(self) -> None:
        await self._emit([{"type": "session.created", "session": self._shown()}])
        try:
            async with self._slot, asyncio.timeout(LONGEST_SESSION_SECONDS):
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
                given = parse_object(message)
                event_id = given.get("event_id")
                await self._handle(given)
            except Refusal as refusal:
                if refusal.status == 429:
                    raise  # nothing is wrong with the message: the session ends
                await self._complain(refusal, event_id)

    async def _handle(self, given: Mapping[str, Any]) -> None:
        match given.get("type"):
            case "session.update" | "transcription_session.update":
                await self._update(given.get("session"))
            case "input_audio_buffer.append":
                await self._append(given.get("audio"))
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                feed = await self._open()
                await self._emit(self.turns.clear(self.now))
                self.uncommitted_seconds = 0.0
                await feed.finalize()
            case kind:
                raise Refusal(
                    400, f"messages of the type {kind!r} are not known here", "unknown_type", "type"
                )

    async def _update(self, given: Any) -> None:
        before = self.settings.hearing
        try:
            self.settings.update(given)
        except PianissimoError as error:  # a language or model that is not here
            raise refusal_for(error) from error
        self.turns.logprobs = LOGPROBS in self.settings.include
        if self.settings.hearing != before:
            await self._replace()
        await self._emit([{"type": "session.updated", "session": self._shown()}])

    async def _append(self, audio: Any) -> None:
        if not isinstance(audio, str) or len(audio) > LARGEST_APPEND_BYTES * 4 // 3 + 4:
            raise Refusal(400, "audio must be base64 text of at most 15 MiB", "invalid_audio")
        try:
            data = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refusal(400, f"audio is not base64: {error}", "invalid_audio", "audio") from error
        feed = await self._open()
        seconds = await feed.push(data)
        self.uncommitted_seconds += seconds
        assert self.one.lease is not None
        self.one.service.heard(DIALECT, self.one.lease, seconds)

    async def _commit(self) -> None:
        if self.uncommitted_seconds == 0 and self.one.service.settings.strict_commits:
            raise Refusal(400, "the input audio buffer is empty", "input_audio_buffer_commit_empty")
        feed = await self._open()
        # In this order: what the stream answers to belongs to an item that is committed.
        await self._emit(self.turns.commit(self.now))
        self.uncommitted_seconds = 0.0
        self.one.asked_for_final()
        await feed.finalize()

    # -- the stream --------------------------------------------------------------------------------

    async def _open(self) -> Feed:
        if self.feed is None:
            hearing = self.settings.hearing
            self.turns.finds_turns = hearing.finds_turns
            self.turns.prefix_seconds = hearing.prefix_seconds
            self.feed = await self._new_feed(hearing)
            self._opened.put_nowait((self.feed, self.offset))
        return self.feed

    async def _new_feed(self, hearing: Hearing) -> Feed:
        service = self.one.service
        lease = service.lease(DIALECT, hearing.choice, self.settings.id, self.one.account)
        self.one.lease = self._slot.enter_context(lease)
        opening = service.feed(
            lease,
            PcmReader(hearing.encoding),
            hearing.sample_rate,
            latency_ms=hearing.latency_ms,
            endpoint=hearing.endpoint,
            boost=await asyncio.to_thread(lease.model.hints, hearing.boost),
        )
        return await self._slot.enter_async_context(opening)

    async def _replace(self) -> None:
        """Let the stream end; the next audio opens another one."""
        if self.feed is None:
            return
        self._drained.clear()
        await self.feed.finish()
        await self._drained.wait()
        await self._slot.aclose()
        self.offset, self.feed = self.now, None

    async def _send(self) -> None:
        while True:
            feed, offset = await self._opened.get()
            async for event in feed:
                await self._emit(self.turns.take(_shifted(event, offset)))
                if event.reason == "finalize":
                    self.one.got_final()
            self._drained.set()

    # -- to the client -----------------------------------------------------------------------------

    async def _emit(self, messages: Iterable[Mapping[str, Any]]) -> None:
        # What happened at once is told at once, also to a client that is slow to read.
        found = list(messages)
        async with self._telling:
            for message in found:
                await self.one.send({"event_id": f"event_{secrets.token_hex(12)}", **message})

    async def _complain(self, refusal: Refusal, event_id: Any) -> None:
        error = {**refusal.openai()["error"], "event_id": event_id}
        await self._emit([{"type": "error", "error": error}])

    def _shown(self) -> dict[str, Any]:
        return self.settings.shown(self.expires_at)


def _shifted(event: StreamEvent, seconds: float) -> StreamEvent:
    if not seconds:
        return event
    words = tuple(replace(w, start=w.start + seconds, end=w.end + seconds) for w in event.words)
    return replace(event, words=words, start=event.start + seconds, end=event.end + seconds)


# -- secrets for browsers --------------------------------------------------------------------------


@router.post("/v1/realtime/client_secrets", openapi_extra=SECRET_BODY)
async def make_client_secret(request: Request) -> Response:
    """A key that opens the realtime socket for a short time, with the session it will have."""
    secret, expires, session = await _secret(request, nested=True)
    return JSONResponse({"value": secret, "expires_at": expires, "session": session})


@router.post("/v1/realtime/transcription_sessions", openapi_extra=OLD_SESSION_BODY)
async def make_transcription_session(request: Request) -> Response:
    """The same in the shape of the time before."""
    secret, expires, session = await _secret(request, nested=False)
    return JSONResponse({**session, "client_secret": {"value": secret, "expires_at": expires}})


async def _secret(request: Request, *, nested: bool) -> tuple[str, int, dict[str, Any]]:
    service: Service = request.app.state.service
    account = service.admit(DIALECT, request.headers)
    body = await limited(request, LARGEST_SECRET_BODY_BYTES).body()
    given = parse_object(body) if body else {}
    asked = (given.get("session") or {}) if nested else given
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
    settings.update(asked)
    secret, expires = service.secrets.make(asked, seconds, account)
    return secret, expires, settings.shown(expires)
