"""OpenAI's /v1/audio/speech: a text to audio, sentence by sentence while it is synthesized.

Requests and responses follow platform.openai.com/docs/api-reference/audio/createSpeech.
"""

import base64
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from pianissimo.audio.encode import FORMATS
from pianissimo.errors import ModelNotFoundError, PianissimoError
from pianissimo.serve.dialects.messages import JsonObject, json_body, text_field
from pianissimo.serve.errors import Refusal, refusal_for
from pianissimo.serve.openapi import SPEECH, SPEECH_BODY
from pianissimo.serve.service import Service
from pianissimo.serve.speech import Encoded, Speech, Voices, audio_bytes, begun

DIALECT = "openai"
RESPONSE_FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
STREAM_FORMATS = ("audio", "sse")
PCM_RATE = 24_000
"""Clients assume it of `pcm`, which has no header."""
FOREIGN_VOICES = tuple(
    "alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split()
)
"""OpenAI's voices: they stand for the default voice."""
TOKENS_PER_SECOND = 20
"""Audio tokens of the usage: one for 50 ms, as in OpenAI's realtime interface."""

router = APIRouter()


@dataclass(frozen=True)
class SpeechOptions:
    """The supported fields of a request; others are ignored."""

    speech: Speech
    format: str
    events: bool
    ignored: tuple[str, ...]
    """Fields that were given and have no effect."""


@router.post("/v1/audio/speech", openapi_extra=SPEECH_BODY, responses=SPEECH)
async def create_speech(request: Request) -> Response:
    """Speak a text: audio that arrives while it is synthesized, or a stream of events."""
    service: Service = request.app.state.service
    account = service.admit(DIALECT, request.headers)
    service.check_open(DIALECT)
    requested = read_speech(await json_body(request), service.voices)
    audio = service.voices.encoded(
        DIALECT,
        account,
        requested.speech,
        requested.format,
        PCM_RATE if requested.format == "pcm" else None,
    )
    audio = await begun(request, audio)
    headers = {"x-voice": requested.speech.voice, "x-request-id": str(uuid.uuid4())}
    if requested.ignored:
        headers["x-ignored-fields"] = ", ".join(requested.ignored)
    if requested.events:
        voice = await service.voices.load(requested.speech.voice)
        events = _server_sent(audio, len(requested.speech.text), voice.sample_rate)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    kind = FORMATS[requested.format].media_type
    return StreamingResponse(audio_bytes(audio), media_type=kind, headers=headers)


def read_speech(body: JsonObject, voices: Voices) -> SpeechOptions:
    """Raises Refusal for invalid fields, ModelNotFoundError for an unknown model."""
    text = text_field(body, "input")
    if text is None:
        raise Refusal(400, "input is missing: send the text to speak", "missing_input", "input")
    voice = body.get("voice")
    if isinstance(voice, Mapping):
        voice = voice.get("id")
    if voice is not None and not isinstance(voice, str):
        raise Refusal(400, 'voice must be a name or {"id": NAME}', "invalid_value", "voice")
    model = text_field(body, "model")
    named = model if model is not None and model.lower() in map(str.lower, voices.names) else None
    if model and named is None and not _is_speech_model(model):
        raise ModelNotFoundError(
            f"{model[:80]!r} is no speech model; send tts-1 or the name of a voice: "
            f"{', '.join(voices.names)}"
        )
    chosen = voices.choose(voice, named, foreign=FOREIGN_VOICES)
    format = _one_of(body, "response_format", RESPONSE_FORMATS)
    events = _one_of(body, "stream_format", STREAM_FORMATS) == "sse"
    speed = body.get("speed")
    speed = 1.0 if speed is None else speed
    if isinstance(speed, bool) or not isinstance(speed, int | float):
        raise Refusal(400, "speed must be a number from 0.25 to 4", "invalid_value", "speed")
    ignored = ("instructions",) if text_field(body, "instructions") else ()
    return SpeechOptions(Speech(text, chosen, float(speed)), format, events, ignored)


def _is_speech_model(model: str) -> bool:
    """Whether it is one of OpenAI's names, such as tts-1-hd and gpt-4o-mini-tts."""
    return "tts" in model.lower().split("-")


def _one_of(body: JsonObject, name: str, valid: tuple[str, ...]) -> str:
    """The value of a field, by default the first valid one; raises Refusal for another."""
    value = text_field(body, name)
    if value is None:
        return valid[0]
    if value not in valid:
        raise Refusal(
            400,
            f"{name} {value[:40]!r} is not supported; choose {', '.join(valid)}",
            f"unsupported_{name}",
            name,
        )
    return value


async def _server_sent(
    audio: AsyncGenerator[Encoded], characters: int, sample_rate: int
) -> AsyncIterator[str]:
    """The audio as events; an error after the first one is an event, too."""
    samples = 0
    try:
        async with aclosing(audio):
            async for data, count in audio:
                samples += count
                if data:
                    encoded = base64.b64encode(data).decode()
                    yield _sse({"type": "speech.audio.delta", "audio": encoded})
    except PianissimoError as error:
        yield _sse({"type": "error", **refusal_for(error).openai()})
        return
    output = round(samples / sample_rate * TOKENS_PER_SECOND)
    usage = {"input_tokens": characters, "output_tokens": output}
    usage["total_tokens"] = characters + output
    yield _sse({"type": "speech.audio.done", "usage": usage})


def _sse(event: Mapping[str, object]) -> str:
    return f"data: {json.dumps(event)}\n\n"
