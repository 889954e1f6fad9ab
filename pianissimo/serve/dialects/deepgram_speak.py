"""Deepgram's /v1/speak: a text by POST, or texts on a live socket, to audio.

Messages follow developers.deepgram.com/reference/text-to-speech.
"""

import asyncio
import uuid
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.responses import Response, StreamingResponse
from starlette.websockets import WebSocket

from pianissimo import __version__
from pianissimo.audio.encode import FORMATS
from pianissimo.errors import NothingToSayError, TextError
from pianissimo.serve.dialects.messages import json_body, text_field, unknown_type
from pianissimo.serve.dialects.sockets import Client, client, parse_message, seat, until_first
from pianissimo.serve.errors import Refusal
from pianissimo.serve.openapi import SPEAK, SPEAK_BODY
from pianissimo.serve.service import Service
from pianissimo.serve.speech import Speech, audio_bytes, begun
from pianissimo.synthesis.sentences import SentenceBuffer

DIALECT = "deepgram"
ENCODINGS = {
    "linear16": "pcm",
    "mulaw": "mulaw",
    "alaw": "alaw",
    "mp3": "mp3",
    "opus": "opus",
    "flac": "flac",
    "aac": "aac",
}
"""Deepgram's encodings -> formats of `audio.encode`."""
RAW = ("linear16", "mulaw", "alaw")
DEFAULT_RATES = {"mulaw": 8_000, "alaw": 8_000, "linear16": 24_000}
LOWEST_RATE, HIGHEST_RATE = 8_000, 48_000
MOST_SENTENCES_WAITING = 500

router = APIRouter()


@dataclass(frozen=True)
class SpeakOptions:
    """The supported part of a query; unknown keys are ignored, as Deepgram does."""

    voice: str
    format: str
    sample_rate: int | None
    speed: float


def read_query(query: QueryParams, service: Service, live: bool) -> SpeakOptions:
    """Raises Refusal for invalid values. A live socket has raw samples only."""
    encoding = query.get("encoding", "linear16" if live else "mp3")
    known = RAW if live else tuple(ENCODINGS)
    if encoding not in known:
        raise Refusal(
            400,
            f"encoding {encoding[:40]!r} is not supported; send {', '.join(known)}",
            "unsupported_encoding",
        )
    container = query.get("container") or ("none" if live or encoding != "linear16" else "wav")
    format = ENCODINGS[encoding]
    if encoding == "linear16" and container == "wav" and not live:
        format = "wav"
    elif container not in ("none", "ogg" if encoding == "opus" else "none"):
        raise Refusal(
            400,
            f"container {container[:40]!r} does not fit encoding {encoding}; send none, wav with "
            "linear16, or ogg with opus",
            "unsupported_container",
        )
    rate = _number(query, "sample_rate", LOWEST_RATE, HIGHEST_RATE)
    speed = _number(query, "speed", 0.25, 4.0)
    model = query.get("model")
    foreign = (model.lower(),) if model is not None and model.lower().startswith("aura") else ()
    return SpeakOptions(
        voice=service.voices.choose(model, foreign=foreign),
        format=format,
        sample_rate=DEFAULT_RATES.get(encoding) if rate is None else round(rate),
        speed=1.0 if speed is None else speed,
    )


def _number(query: QueryParams, name: str, least: float, most: float) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise Refusal(
            400,
            f"{name}={text[:40]} is invalid; use a number from {least:g} to {most:g}",
            "invalid_value",
        )
    return value


@router.post("/v1/speak", openapi_extra=SPEAK_BODY, responses=SPEAK)
async def speak(request: Request) -> Response:
    """Speak the text of a JSON body: audio that arrives while it is synthesized."""
    service: Service = request.app.state.service
    account = service.admit(DIALECT, request.headers)
    service.check_open(DIALECT)
    requested = read_query(request.query_params, service, live=False)
    body = await json_body(request)
    text = text_field(body, "text")
    if text is None:
        raise Refusal(400, 'send {"text": TEXT} as the body; URLs are not fetched', "missing_text")
    speech = Speech(text, requested.voice, requested.speed)
    audio = service.voices.encoded(
        DIALECT, account, speech, requested.format, requested.sample_rate
    )
    return StreamingResponse(
        audio_bytes(await begun(request, audio)),
        media_type=FORMATS[requested.format].media_type,
        headers={
            "dg-model-name": requested.voice,
            "dg-model-uuid": _model_uuid(requested.voice),
            "dg-char-count": str(len(text)),
            "dg-request-id": str(uuid.uuid4()),
        },
    )


@router.websocket("/v1/speak")
async def speak_live(socket: WebSocket) -> None:
    request_id = str(uuid.uuid4())
    async with client(socket, DIALECT, headers={"dg-request-id": request_id}) as one:
        one.admit()
        requested = read_query(socket.query_params, one.service, live=True)
        async with seat(one.service, DIALECT, one.account):
            await one.send(
                {
                    "type": "Metadata",
                    "request_id": request_id,
                    "model_name": requested.voice,
                    "model_version": __version__,
                    "model_uuid": _model_uuid(requested.voice),
                }
            )
            await _SpeakSocket(one, requested).run()


class _SpeakSocket:
    """One live socket: text is spoken sentence by sentence, the rest when it is flushed.

    `Clear` starts a new generation; sentences of earlier ones are dropped, also while they are
    spoken.
    """

    def __init__(self, one: Client, requested: SpeakOptions) -> None:
        self.one, self.requested = one, requested
        self._buffer = SentenceBuffer()
        self._generation = 0
        self._flushes = 0
        self._waiting: asyncio.Queue[tuple[int, str | None]] = asyncio.Queue(MOST_SENTENCES_WAITING)
        self._closing = False

    async def run(self) -> None:
        """Until the client closes the stream, and everything before was spoken."""
        await until_first(self._receive(), self._speak())

    async def _receive(self) -> None:
        while True:
            message = await self.one.receive(None)
            if self._closing:
                continue
            kind = (parsed := await parse_message(message)).get("type")
            match kind:
                case "Speak":
                    for sentence in self._buffer.push(text_field(parsed, "text") or ""):
                        await self._waiting.put((self._generation, sentence))
                case "Flush":
                    await self._flush()
                case "Clear":
                    self._buffer = SentenceBuffer()
                    self._generation += 1
                    await self.one.send({"type": "Cleared", "sequence_id": self._flushes})
                case "Close":
                    await self._flush()
                    self._closing = True
                    await self._waiting.put((-1, None))
                case _:
                    raise unknown_type(kind, ("Speak", "Flush", "Clear", "Close"))

    async def _flush(self) -> None:
        for sentence in self._buffer.finish():
            await self._waiting.put((self._generation, sentence))
        await self._waiting.put((self._generation, None))

    async def _speak(self) -> None:
        while True:
            generation, sentence = await self._waiting.get()
            if generation < 0:
                return
            if generation != self._generation:
                continue
            if sentence is None:
                await self.one.send({"type": "Flushed", "sequence_id": self._flushes})
                self._flushes += 1
                continue
            try:
                await self._say(sentence, generation)
            except NothingToSayError:
                continue
            except TextError as error:
                warning = {"description": str(error), "code": error.code.upper()}
                await self.one.send({"type": "Warning", **warning})

    async def _say(self, sentence: str, generation: int) -> None:
        speech = Speech(sentence, self.requested.voice, self.requested.speed)
        format, rate = self.requested.format, self.requested.sample_rate
        account = self.one.account
        audio = self.one.service.voices.encoded(DIALECT, account, speech, format, rate)
        async with aclosing(audio):
            async for data, _ in audio:
                if generation != self._generation:
                    return
                if data:
                    await self.one.send(data)


def _model_uuid(voice: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, voice))
