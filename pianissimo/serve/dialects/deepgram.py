"""Deepgram's /v1/listen: a live socket, and recordings by POST.

Messages as in developers.deepgram.com/reference/speech-to-text. A result that is final says so of a
stretch of time, which will not change; stretches follow each other from the start of the stream.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from pianissimo.decoding.hotwords import LARGEST_WEIGHT, Phrase
from pianissimo.errors import OptionError, PianissimoError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.auth import caller_of
from pianissimo.serve.audio_in.pcm import Encoding, PcmReader
from pianissimo.serve.audio_in.upload import body_as_file, raw_as_wav, unless_gone
from pianissimo.serve.dialects.sockets import Client, client, parse_object, seat, until_first
from pianissimo.serve.errors import FAILED, Refusal
from pianissimo.serve.openapi import LISTEN, LISTEN_BODY
from pianissimo.serve.service import NO_PAUSES, Feed, Service
from pianissimo.serve.versions.store import Lease
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules
from pianissimo.transcript import StreamEvent, Transcript, Word

DIALECT = "deepgram"
IDLE_SECONDS = 10.0
"""Without audio or KeepAlive for this long the socket is closed, as Deepgram does."""
SHORTEST_PAUSE_SECONDS = 0.3
"""Shorter values of `endpointing`, which some clients send, would end an utterance at each word."""
SHORTEST_UTTERANCE_END_SECONDS = 1.0
LEAST_WEIGHT = 0.1
"""Of a keyword: Deepgram's intensifiers may be as small as one likes."""
WATCH_SECONDS = 0.1
ENCODINGS: dict[str, Encoding] = {"linear16": "pcm_s16le", "mulaw": "mulaw", "alaw": "alaw"}
G711 = ("mulaw", "alaw")

router = APIRouter()


@dataclass(frozen=True)
class Asked:
    """The query of a request, as far as it matters to us; unknown keys are ignored."""

    encoding: Encoding | None
    sample_rate: int
    channels: int
    interim: bool
    endpoint: EndpointRules
    utterance_end_seconds: float | None
    vad_events: bool
    utterances: bool
    boost: tuple[Phrase, ...]


@router.websocket("/v1/listen")
async def listen(socket: WebSocket) -> None:
    request_id = str(uuid.uuid4())
    async with client(socket, DIALECT, headers={"dg-request-id": request_id}) as one:
        asked = read_query(socket.query_params)
        if asked.encoding is None:
            raise Refusal(
                400,
                f"say how the audio is encoded: encoding={' or '.join(ENCODINGS)}, and sample_rate",
                "encoding_required",
            )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(seat(one.service, DIALECT, one.account))
            lease = _lease(one.service, socket, request_id, one.account)
            one.lease = stack.enter_context(lease)
            reader = PcmReader(asked.encoding, asked.channels)
            rate, endpoint = asked.sample_rate, asked.endpoint
            opening = one.service.feed(lease, reader, rate, endpoint=endpoint, boost=asked.boost)
            feed = await stack.enter_async_context(opening)
            await _Listener(one, asked, feed, lease, request_id).run()


def _lease(service: Service, asks: HTTPConnection, request_id: str, account: Account) -> Lease:
    """The model of a request; a name that only Deepgram knows means the default."""
    query = asks.query_params
    caller = caller_of(asks.headers, query.get("user"), request_id)
    choice = service.store.choose(query.get("model"), caller, lenient=True)
    service.store.models[choice.name].check_language(query.get("language"))
    return service.lease(DIALECT, choice, request_id, account)


class _Listener:
    """One live socket."""

    def __init__(
        self, one: Client, asked: Asked, feed: Feed, lease: Lease, request_id: str
    ) -> None:
        self.one, self.asked, self.feed, self.lease = one, asked, feed, lease
        self.request_id = request_id
        self.digest = hashlib.sha256()
        self.locked = 0.0  # up to here all is final
        self.speaking = False
        self.last_word_end: float | None = None  # of an utterance whose end was not told
        self.shown = ""

    async def run(self) -> None:
        try:
            await until_first(self._receive(), self._send(), self._watch_pauses())
        except Refusal as refusal:
            if refusal.code == "idle":
                await self.one.close(FAILED, "NET-0001: no audio and no KeepAlive came in time")
                return
            await self._complain(refusal.message, refusal.code)
            raise
        except PianissimoError as error:
            await self._complain(str(error), error.code)
            raise

    async def _complain(self, message: str, code: str | None) -> None:
        told = {"type": "Error", "description": message, "message": message}
        await self.one.send({**told, "variant": (code or "error").upper()})

    async def _receive(self) -> None:
        idle = min(self.one.service.settings.idle_seconds, IDLE_SECONDS)
        open = True
        while True:
            # Whoever closed the stream has nothing more to send, however long the rest takes.
            message = await self.one.receive(idle if open else None)
            if not open:
                continue
            if isinstance(message, bytes) and message:
                await self._hear(message)
                continue
            match parse_object(message).get("type") if message else "CloseStream":
                case "Finalize":
                    self.one.asked_for_final()
                    await self.feed.finalize()
                case "CloseStream":
                    open = False
                    self.one.asked_for_final()
                    await self.feed.finish()

    async def _hear(self, data: bytes) -> None:
        self.digest.update(data)
        seconds = await self.feed.push(data)
        self.one.service.heard(DIALECT, self.lease, seconds)

    async def _watch_pauses(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self._end_utterance(self.feed.seconds - self.feed.session.backlog_seconds)

    async def _end_utterance(self, heard: float) -> None:
        """Tell that there was no word for long, once after each utterance."""
        end, patience = self.last_word_end, self.asked.utterance_end_seconds
        if end is not None and patience is not None and heard - end >= patience:
            self.last_word_end = None
            await self.one.send({"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": end})

    async def _send(self) -> None:
        async for event in self.feed:
            if event.type != "endpoint":
                await self._tell(event)
        await self.one.send({"type": "Metadata", **self._metadata()})

    async def _tell(self, event: StreamEvent) -> None:
        await self._end_utterance(event.start)
        if event.text and not self.speaking:
            self.speaking = True
            if self.asked.vad_events:
                started = {"channel": [0, 1], "timestamp": event.start}
                await self.one.send({"type": "SpeechStarted", **started})
        if event.words:
            self.last_word_end = event.words[-1].end
        final = event.type == "final"
        if final or (self.asked.interim and event.text != self.shown):
            self.shown = "" if final else event.text
            await self.one.send(self._results(event))
        if final:
            self.locked = max(self.locked, event.end)
            self.speaking = event.reason == "length"
            if event.reason in ("finalize", "finish"):
                self.one.got_final()

    def _results(self, event: StreamEvent) -> dict[str, Any]:
        end = max(self.locked, event.end)
        return {
            "type": "Results",
            "channel_index": [0, 1],
            "duration": round(end - self.locked, 6),
            "start": self.locked,
            "is_final": event.type == "final",
            "speech_final": event.reason == "endpoint",
            "from_finalize": event.reason == "finalize",
            "channel": {"alternatives": [_alternative(event.text, event.words)]},
            "metadata": {
                "request_id": self.request_id,
                "model_info": _model_info(self.lease),
                "model_uuid": _model_uuid(self.lease),
            },
        }

    def _metadata(self) -> dict[str, Any]:
        seconds, channels = self.feed.seconds, self.asked.channels
        digest = self.digest.hexdigest()
        return _metadata(self.lease, self.request_id, digest, seconds, channels)


@router.post("/v1/listen", openapi_extra=LISTEN_BODY, responses=LISTEN)
async def listen_to_recording(request: Request) -> Response:
    """A recording in the body: any container, or raw samples if the query says which."""
    service: Service = request.app.state.service
    account = service.admit(DIALECT, request.headers)
    service.check_open(DIALECT)
    asked, request_id = read_query(request.query_params), str(uuid.uuid4())
    if request.headers.get("content-type", "").startswith("application/json"):
        raise Refusal(
            400,
            "this server fetches no URLs: send the recording itself as the body",
            "remote_content_unsupported",
        )
    async with AsyncExitStack() as stack:
        lease = stack.enter_context(_lease(service, request, request_id, account))
        limit = account.largest_upload_bytes(service.settings.largest_upload_bytes)
        path = await stack.enter_async_context(body_as_file(request, limit))
        digest = await _sha256(path)
        if asked.encoding is not None and not _is_container(path):
            raw = raw_as_wav(path, asked.encoding, asked.sample_rate, asked.channels)
            path = await stack.enter_async_context(raw)
        found = await unless_gone(request, service.transcribe(path, lease, asked.boost))
        service.heard(DIALECT, lease, found.duration)
    about = _metadata(lease, request_id, digest, found.duration, 1)
    return JSONResponse({"metadata": about, "results": _recording_results(found, asked)})


def _recording_results(found: Transcript, asked: Asked) -> dict[str, Any]:
    alternative = _alternative(found.text, found.words)
    results: dict[str, Any] = {"channels": [{"alternatives": [alternative]}]}
    if asked.utterances:
        results["utterances"] = [
            {
                "start": segment.start,
                "end": segment.end,
                "channel": 0,
                "id": str(uuid.uuid4()),
                **_alternative(segment.text, segment.words),
            }
            for segment in found.segments
        ]
    return results


# -- what was asked --------------------------------------------------------------------------------


def read_query(query: QueryParams) -> Asked:
    """Raises Refusal for values that make no sense."""
    encoding = query.get("encoding")
    if encoding is not None and encoding not in ENCODINGS:
        raise Refusal(
            400,
            f"encoding {encoding!r} is not supported; send {', '.join(ENCODINGS)}",
            "unsupported_encoding",
        )
    if _flag(query, "multichannel"):
        raise Refusal(
            400,
            "multichannel is not supported: open a socket per channel, or have them mixed",
            "multichannel_unsupported",
        )
    return Asked(
        encoding=None if encoding is None else ENCODINGS[encoding],
        sample_rate=round(_number(query, "sample_rate", 8000 if encoding in G711 else 16_000)),
        channels=round(_number(query, "channels", 1)),
        interim=_flag(query, "interim_results"),
        endpoint=_endpoint(query),
        utterance_end_seconds=_utterance_end(query),
        vad_events=_flag(query, "vad_events"),
        utterances=_flag(query, "utterances"),
        boost=(*_keyterms(query), *_keywords(query)),
    )


def _endpoint(query: Mapping[str, str]) -> EndpointRules:
    asked = query.get("endpointing", "").lower()
    if asked == "false":
        return NO_PAUSES
    if asked in ("", "true"):
        return ENDPOINT
    pause = max(_number(query, "endpointing", 0) / 1000, SHORTEST_PAUSE_SECONDS)
    try:
        return replace(ENDPOINT, trailing_silence=pause)
    except OptionError as error:
        raise Refusal(400, str(error), "invalid_value") from error


def _utterance_end(query: Mapping[str, str]) -> float | None:
    if query.get("utterance_end_ms", "false").lower() == "false":
        return None
    return max(_number(query, "utterance_end_ms", 0) / 1000, SHORTEST_UTTERANCE_END_SECONDS)


def _keyterms(query: QueryParams) -> Iterator[Phrase]:
    return (Phrase(text) for text in query.getlist("keyterm") if text.strip())


def _keywords(query: QueryParams) -> Iterator[Phrase]:
    """`keywords=WORD:INTENSIFIER`; one that is not above 0 asks for less of a word, not for it."""
    for text in query.getlist("keywords"):
        word, colon, number = text.rpartition(":")
        try:
            intensifier = float(number) if colon else 1.0
        except ValueError:
            raise Refusal(
                400, f"keywords={text}: say WORD:INTENSIFIER, a number", "invalid_value"
            ) from None
        if intensifier > 0:
            weight = min(max(intensifier, LEAST_WEIGHT), LARGEST_WEIGHT)
            yield Phrase(word or text, weight)


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() in ("true", "1")


def _number(query: Mapping[str, str], name: str, default: float) -> float:
    text = query.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e7:
        raise Refusal(400, f"{name}={text} is not a number that makes sense here", "invalid_value")
    return value


# -- what is told ----------------------------------------------------------------------------------


def _alternative(text: str, words: Sequence[Word]) -> dict[str, Any]:
    known = [word.confidence for word in words if word.confidence is not None]
    confidence = sum(known) / len(known) if known else 0.0
    return {"transcript": text, "confidence": confidence, "words": [_word(w) for w in words]}


def _word(word: Word) -> dict[str, Any]:
    return {
        "word": word.text.strip(".,!?;:\"'()").lower() or word.text,
        "start": word.start,
        "end": word.end,
        "confidence": 0.0 if word.confidence is None else word.confidence,
        "punctuated_word": word.text,
    }


def _metadata(
    lease: Lease, request_id: str, digest: str, seconds: float, channels: int
) -> dict[str, Any]:
    model = _model_uuid(lease)
    return {
        "transaction_key": "deprecated",
        "request_id": request_id,
        "sha256": digest,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "duration": seconds,
        "channels": channels,
        "models": [model],
        "model_info": {model: _model_info(lease)},
    }


def _model_info(lease: Lease) -> dict[str, str]:
    version = str(lease.model.version)
    return {"name": lease.model.name, "version": version, "arch": "pianissimo"}


def _model_uuid(lease: Lease) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, lease.model.name))


def _is_container(path: Path) -> bool:
    """Some clients name an encoding though they send a file with a header."""
    with open(path, "rb") as file:
        return file.read(4) in (b"RIFF", b"OggS", b"fLaC", b"\x1aE\xdf\xa3")


async def _sha256(path: Path) -> str:
    def digest() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return await asyncio.to_thread(digest)
