"""OpenAI's audio endpoints: transcriptions in all formats, and the list of models.

Requests and responses follow platform.openai.com/docs/api-reference/audio.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.datastructures import FormData
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from pianissimo.decoding.hotwords import Phrase
from pianissimo.errors import PianissimoError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.auth import caller_of
from pianissimo.serve.access.phrases import terms
from pianissimo.serve.audio_in.decode import Upload
from pianissimo.serve.audio_in.upload import form_with_file, unless_gone
from pianissimo.serve.dialects.openai_fields import logarithm, logprobs, usage
from pianissimo.serve.dialects.openai_speakers import (
    DIARIZED,
    NAMES,
    REFERENCES,
    check_known,
    diarization,
    diarized,
    is_diarizing,
    segments,
)
from pianissimo.serve.errors import Refusal, refusal_for
from pianissimo.serve.feed import GrowingText
from pianissimo.serve.openapi import TRANSCRIPTION, TRANSCRIPTION_FORM
from pianissimo.serve.service import Service
from pianissimo.serve.versions.store import Lease
from pianissimo.text.words import joined
from pianissimo.transcript import Segment, StreamEvent, Transcript, Word

DIALECT = "openai"
FORMATS = ("json", "text", "srt", "verbose_json", "vtt", DIARIZED)
GRANULARITIES = ("word", "segment")
OWNER = "pianissimo"
TRANSCRIBES, SPEAKS = "automatic-speech-recognition", "text-to-speech"
"""Tasks of models, in the words of the Hugging Face hub."""

router = APIRouter()


@dataclass(frozen=True)
class TranscriptionOptions:
    """The supported fields of a transcription request; others are ignored."""

    format: str
    granularities: tuple[str, ...]
    logprobs: bool
    stream: bool
    boost: tuple[Phrase, ...]
    speakers: bool
    """Whether the answer has speakers, by its format or by the name of the model."""
    polish: bool = False
    """Whether a language model revises the text."""
    itn: bool = False
    """Whether numbers, dates and the like are written as people do."""
    known_names: tuple[str, ...] = ()
    known_references: tuple[str, ...] = ()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    service, _ = _admitted(request)
    models = [_model_object(name, request) for name in service.store.names]
    models += [_model_object(name, request, SPEAKS) for name in service.voices.names]
    return JSONResponse({"object": "list", "data": models})


@router.get("/v1/models/{name:path}")
async def get_model(request: Request, name: str) -> Response:
    service, _ = _admitted(request)
    if name in service.voices.names:
        return JSONResponse(_model_object(name, request, SPEAKS))
    service.store.choose(name, caller_of(request.headers))
    return JSONResponse(_model_object(name, request))


@router.post("/v1/audio/transcriptions", openapi_extra=TRANSCRIPTION_FORM, responses=TRANSCRIPTION)
async def create_transcription(request: Request) -> Response:
    """Transcribe a recording: json, text, srt, vtt, verbose_json, diarized_json, or events."""
    service, account = _admitted(request)
    service.check_open(DIALECT)
    async with AsyncExitStack() as stack:
        most = account.largest_upload_bytes(service.settings.largest_upload_bytes)
        upload = form_with_file(request, most, service.uploads)
        form, _, path = await stack.enter_async_context(upload)
        requested = _read(form)
        polisher = service.polisher_for(requested.polish)
        if polisher is not None and requested.stream:
            reason = "polish revises whole transcripts; omit stream, or omit polish"
            raise Refusal(400, reason, "invalid_value", "polish")
        caller = caller_of(request.headers, _text(form, "user"))
        choice = service.store.choose(_text(form, "model"), caller)
        lease = stack.enter_context(service.lease(DIALECT, choice, caller.session, account))
        language = lease.model.spoken(_text(form, "language"), *_list(form, "languages"))
        written = lease.model.written_form(language) if requested.itn else None
        boost = await asyncio.to_thread(lease.model.hints, requested.boost)
        diarize = None
        if requested.speakers:
            known = (requested.known_names, requested.known_references)
            diarize = await diarization(service.decoders, *known)
        if requested.stream and diarize is None:
            live = service.events(Upload(path), lease, boost, language, written)
            events = _server_sent(service, live, requested, lease, stack.pop_all())
            try:  # a failure before the first event has a status of its own
                first = await unless_gone(request, _next(events))
            except BaseException:
                await events.aclose()
                raise
            return StreamingResponse(_from(first, events), media_type="text/event-stream")
        work = service.transcribe(
            Upload(path), lease, boost, diarize, language=language, written=written
        )
        transcript = await unless_gone(request, work)
        service.record_audio(DIALECT, lease, transcript.duration)
        if polisher is not None:
            phrases = [phrase.text for phrase in requested.boost]
            revising = polisher.transcript(transcript, phrases)
            transcript, told = await unless_gone(request, revising)
            for polish in told:
                service.metrics.polish.record(polish)
    if requested.stream:
        return StreamingResponse(_segment_events(transcript), media_type="text/event-stream")
    return _response(transcript, requested)


@router.post(
    "/v1/audio/translations",
    openapi_extra=TRANSCRIPTION_FORM,
    status_code=400,
    response_description="Refused",
)
async def create_translation(request: Request) -> Response:
    """Refused: the models transcribe and do not translate."""
    service, _ = _admitted(request)
    raise Refusal(
        400,
        f"{service.store.default} does not translate; use /v1/audio/transcriptions",
        "translation_unsupported",
        "model",
    )


# -- fields ----------------------------------------------------------------------------------------


def _admitted(request: Request) -> tuple[Service, Account]:
    service: Service = request.app.state.service
    return service, service.admit(DIALECT, request.headers)


def _read(form: FormData) -> TranscriptionOptions:
    format = _text(form, "response_format") or "json"
    if format not in FORMATS:
        raise Refusal(
            400,
            f"response_format {format!r} is not supported here; choose {', '.join(FORMATS)}",
            "unsupported_response_format",
            "response_format",
        )
    granularities = _list(form, "timestamp_granularities")
    for each in granularities:
        if each not in GRANULARITIES:
            raise Refusal(
                400,
                f"timestamp granularity {each!r} is unknown; choose word or segment",
                "invalid_value",
                "timestamp_granularities",
            )
    names, references = _values(form, NAMES), _values(form, REFERENCES)
    check_known(names, references)
    speakers = format == DIARIZED or is_diarizing(_text(form, "model"))
    return TranscriptionOptions(
        format,
        granularities or ("segment",),
        "logprobs" in _list(form, "include"),
        _flag(form, "stream"),
        terms(_text(form, "prompt") or ""),
        speakers,
        _flag(form, "polish"),
        _flag(form, "itn"),
        names,
        references,
    )


def _text(form: FormData, name: str) -> str | None:
    value = form.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(400, f"{name} must be text, not a file", "invalid_value", name)
    return value


def _flag(form: FormData, name: str) -> bool:
    return (_text(form, name) or "").lower() in ("true", "1")


def _list(form: FormData, name: str) -> tuple[str, ...]:
    """A repeatable field, with or without brackets; commas separate values too."""
    return tuple(part.strip() for value in _values(form, name) for part in value.split(","))


def _values(form: FormData, name: str) -> tuple[str, ...]:
    """A repeatable field, with or without brackets."""
    values = [*form.getlist(f"{name}[]"), *form.getlist(name)]
    return tuple(value.strip() for value in values if isinstance(value, str))


# -- answers ---------------------------------------------------------------------------------------


def _response(transcript: Transcript, requested: TranscriptionOptions) -> Response:
    match requested.format:
        case "text":
            return PlainTextResponse(transcript.text + "\n")
        case "srt":
            return PlainTextResponse(transcript.to_srt())
        case "vtt":
            return PlainTextResponse(transcript.to_vtt())
        case "verbose_json":
            return JSONResponse(_verbose(transcript, requested))
        case "diarized_json":
            return JSONResponse(diarized(transcript))
    body: dict[str, object] = {"text": transcript.text, "usage": usage(transcript.duration)}
    if transcript.lexical is not None:  # a field of this server, of a written or revised text
        body["lexical"] = transcript.lexical
    if requested.logprobs:
        body["logprobs"] = logprobs(transcript.words)
    return JSONResponse(body)


def _verbose(transcript: Transcript, requested: TranscriptionOptions) -> dict[str, object]:
    body: dict[str, object] = {
        "task": "transcribe",
        "language": transcript.language or "",
        "duration": transcript.duration,
        "text": transcript.text,
        "segments": [_segment(i, each) for i, each in enumerate(transcript.segments)],
        "usage": usage(transcript.duration),
    }
    if transcript.reasons:  # a field of this server; SDKs keep unknown fields
        body["reasons"] = transcript.reasons
    if transcript.lexical is not None:
        body["lexical"] = transcript.lexical
    if "word" in requested.granularities:
        body["words"] = [
            {"word": word.text, "start": word.start, "end": word.end} for word in transcript.words
        ]
        if "segment" not in requested.granularities:
            del body["segments"]
    if requested.logprobs:
        body["logprobs"] = logprobs(transcript.words)
    return body


def _segment(number: int, segment: Segment) -> dict[str, object]:
    """A segment in Whisper's shape; fields that only Whisper has get neutral values."""
    found = [w.confidence for w in segment.words if w.confidence is not None]
    mean = sum(map(logarithm, found)) / len(found) if found else 0.0
    return {
        "id": number,
        "seek": round(segment.start * 100),
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": mean,
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
    }


async def _server_sent(
    service: Service,
    live: AsyncGenerator[StreamEvent | float],
    requested: TranscriptionOptions,
    lease: Lease,
    stack: AsyncExitStack,
) -> AsyncGenerator[str]:
    """The events of a transcription; an error after the first one is an event, too.

    Raises PianissimoError for an error before the first event.
    """
    text, words, spoken, seconds = GrowingText(), list[Word](), list[str](), 0.0
    async with stack:
        try:
            async with aclosing(live) as events:
                async for event in events:
                    if isinstance(event, float):
                        seconds = event
                        continue
                    if requested.itn and event.type == "partial":
                        continue  # its numbers may still grow
                    if added := text.add(event):
                        yield _sse({"type": "transcript.text.delta", "delta": added})
                    if event.type == "final":
                        words += event.words
                        spoken.append(event.text if event.lexical is None else event.lexical)
        except PianissimoError as error:
            if not text.sent:
                raise
            yield _sse({"type": "error", **refusal_for(error).openai()})
            return
    service.record_audio(DIALECT, lease, seconds)
    done: dict[str, object] = {"type": "transcript.text.done", "text": text.sent}
    done["usage"] = usage(seconds)
    if requested.itn:
        done["lexical"] = joined(spoken)
    if requested.logprobs:
        done["logprobs"] = logprobs(words)
    yield _sse(done)
    yield "data: [DONE]\n\n"


def _segment_events(transcript: Transcript) -> Iterator[str]:
    """The events of a transcription with speakers, which are known once all of it was heard."""
    for number, segment in enumerate(segments(transcript)):
        delta = f" {segment['text']}" if number else segment["text"]
        yield _sse({"type": "transcript.text.delta", "delta": delta, "segment_id": segment["id"]})
        yield _sse(segment)
    done: dict[str, object] = {"type": "transcript.text.done", "text": transcript.text}
    if transcript.lexical is not None:
        done["lexical"] = transcript.lexical
    yield _sse({**done, "usage": usage(transcript.duration)})
    yield "data: [DONE]\n\n"


async def _next(events: AsyncGenerator[str]) -> str:
    return await anext(events)


async def _from(first: str, rest: AsyncGenerator[str]) -> AsyncIterator[str]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


def _sse(event: Mapping[str, object]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _model_object(name: str, request: Request, task: str = TRANSCRIBES) -> dict[str, object]:
    started: float = getattr(request.app.state, "started", time.time())
    created = round(started)
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER, "task": task}
