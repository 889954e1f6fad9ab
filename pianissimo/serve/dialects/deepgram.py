"""Deepgram's /v1/listen: a live socket, and recordings by POST.

Messages follow developers.deepgram.com/reference/speech-to-text. A final result covers a stretch of
time and does not change; the stretches follow each other from the start of the stream.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket

from pianissimo.audio.notes import NOTE_TEXTS
from pianissimo.decoding.hotwords import LARGEST_WEIGHT, Phrase
from pianissimo.diarization.channels import MOST_CHANNELS
from pianissimo.diarization.options import Diarization
from pianissimo.errors import MissingExtraError, OptionError, PianissimoError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.auth import caller_of
from pianissimo.serve.audio_in.container import SIGNATURE_BYTES, is_container
from pianissimo.serve.audio_in.decode import RawFormat, Upload
from pianissimo.serve.audio_in.live_decode import LiveDecoder, LiveKind, live_decoder
from pianissimo.serve.audio_in.pcm import Encoding, PcmReader
from pianissimo.serve.audio_in.recording import RecordingBlocks
from pianissimo.serve.audio_in.upload import body_as_file, unless_gone
from pianissimo.serve.dialects.sockets import Client, client, parse_message, seat, until_first
from pianissimo.serve.errors import FAILED, Refusal
from pianissimo.serve.feed import Feed
from pianissimo.serve.openapi import LISTEN, LISTEN_BODY
from pianissimo.serve.service import NO_PAUSES, Service
from pianissimo.serve.versions.store import Lease
from pianissimo.serve.written import WrittenForm
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules
from pianissimo.text.words import joined
from pianissimo.transcript import StreamEvent, Transcript, Word

DIALECT = "deepgram"
IDLE_SECONDS = 10.0
"""Without audio or KeepAlive for this long the socket is closed, as Deepgram does."""
SHORTEST_PAUSE_SECONDS = 0.3
"""Shorter values of `endpointing`, which some clients send, would end an utterance at each word."""
SHORTEST_UTTERANCE_END_SECONDS = 1.0
LEAST_WEIGHT = 0.1
"""Of a keyword; Deepgram's intensifiers have no lower bound."""
WATCH_SECONDS = 0.1
ENCODINGS: dict[str, Encoding] = {"linear16": "pcm_s16le", "mulaw": "mulaw", "alaw": "alaw"}
G711 = ("mulaw", "alaw")
OPUS = ("opus", "ogg-opus")
DIARIZE_MODELS = ("latest", "v1", "v2")
"""Names of Deepgram; each of them selects the one way in which speakers are found here."""
WRITTEN_KEYS = ("smart_format", "numerals")
HEAD_BYTES = 16
"""Audio that is needed to tell a container from raw samples."""

router = APIRouter()


@dataclass(frozen=True)
class ListenOptions:
    """The supported part of a query; unknown keys are ignored, as Deepgram does."""

    encoding: Encoding | None
    opus: bool
    sample_rate: int
    channels: int
    interim: bool
    endpoint: EndpointRules
    utterance_end_seconds: float | None
    vad_events: bool
    utterances: bool
    boost: tuple[Phrase, ...]
    diarize: bool
    multichannel: bool
    written_by: str | None
    """The key that asks for numbers as people write them."""

    @property
    def diarization(self) -> Diarization | None:
        """How the speakers of a recording are found, if they are."""
        if self.multichannel:
            return Diarization("channels")
        return Diarization() if self.diarize else None


@router.websocket("/v1/listen")
async def listen(socket: WebSocket) -> None:
    request_id = str(uuid.uuid4())
    async with client(socket, DIALECT, headers={"dg-request-id": request_id}) as one:
        one.admit()
        requested = read_query(socket.query_params)
        streams = _streams(requested)
        async with AsyncExitStack() as stack:
            for _ in range(streams):
                await stack.enter_async_context(seat(one.service, DIALECT, one.account))
            one.allow_large_messages()
            lease = _lease(one.service, socket, request_id, one.account)
            one.lease = stack.enter_context(lease)
            rate, channels = requested.sample_rate, []
            language = lease.model.spoken(socket.query_params.get("language"))
            written, _ = _written_form(requested, lease, language)
            for index in range(streams):
                mixed = requested.channels if streams == 1 else 1
                opening = one.service.feed(
                    lease,
                    PcmReader(requested.encoding or "pcm_f32le", mixed),
                    one.service.live_speakers(rate) if requested.diarize else None,
                    written,
                    sample_rate=rate,
                    endpoint=requested.endpoint,
                    boost=requested.boost,
                    language=language,
                )
                feed = await stack.enter_async_context(opening)
                channels.append(_Channel(one, requested, feed, (index, streams), request_id))
            await _LiveSocket(one, requested, channels, lease, request_id, stack).run()


def _streams(requested: ListenOptions) -> int:
    """The streams of a socket: with `multichannel` one per channel, each of which has a seat."""
    if not requested.multichannel:
        return 1
    if not 2 <= requested.channels <= MOST_CHANNELS:
        raise Refusal(
            400,
            f"multichannel needs channels=2 to {MOST_CHANNELS}, not {requested.channels}",
            "invalid_value",
        )
    if requested.encoding is None:
        raise Refusal(
            400,
            f"multichannel needs raw samples, interleaved: send encoding={' or '.join(ENCODINGS)}",
            "encoding_required",
        )
    return requested.channels


def _lease(service: Service, asks: HTTPConnection, request_id: str, account: Account) -> Lease:
    """The model of a request; a name that only Deepgram knows selects the default."""
    query = asks.query_params
    caller = caller_of(asks.headers, query.get("user"), request_id)
    choice = service.store.choose(query.get("model"), caller, lenient=True)
    service.store.models[choice.name].spoken(query.get("language"))
    return service.lease(DIALECT, choice, request_id, account)


def _written_form(
    requested: ListenOptions, lease: Lease, language: str | None
) -> tuple[WrittenForm | None, list[dict[str, str]]]:
    """The form of the text, and a warning if the language has no other than the spoken one.

    Clients send `smart_format` whatever the language is, so it is no error.
    """
    if requested.written_by is None:
        return None, []
    try:
        return lease.model.written_form(language), []
    except (OptionError, MissingExtraError) as error:
        warning = {"parameter": requested.written_by, "type": "unsupported_language"}
        return None, [{**warning, "message": str(error)}]


class _Channel:
    """The results of one channel of a socket, in the order of time.

    `index` is its number and the number of channels; a mixed stream is the only channel.
    """

    def __init__(
        self,
        one: Client,
        requested: ListenOptions,
        feed: Feed,
        index: tuple[int, int],
        request_id: str,
    ) -> None:
        self.one, self.requested, self.feed = one, requested, feed
        self.index, self.request_id = list(index), request_id
        self.locked = 0.0  # seconds up to which everything is final
        self.speaking = False
        self.last_word_end: float | None = None  # of an utterance whose end was not sent
        self.shown = ""

    async def send(self) -> None:
        """Send the results of the stream until it ends."""
        async for event in self.feed:
            if event.type != "endpoint":
                await self._send_event(event)

    async def end_utterance(self, consumed: float) -> None:
        """Send UtteranceEnd once after each utterance, when no word followed for long enough."""
        end, patience = self.last_word_end, self.requested.utterance_end_seconds
        if end is not None and patience is not None and consumed - end >= patience:
            self.last_word_end = None
            ended = {"type": "UtteranceEnd", "channel": self.index, "last_word_end": end}
            await self.one.send(ended)

    async def _send_event(self, event: StreamEvent) -> None:
        await self.end_utterance(event.start)
        if event.text and not self.speaking:
            self.speaking = True
            if self.requested.vad_events:
                started = {"channel": self.index, "timestamp": event.start}
                await self.one.send({"type": "SpeechStarted", **started})
        if event.words:
            self.last_word_end = event.words[-1].end
        final = event.type == "final"
        if final or (self.requested.interim and event.text != self.shown):
            self.shown = "" if final else event.text
            await self.one.send(self._results(event))
        if final:
            self.locked = max(self.locked, event.end)
            self.speaking = event.reason == "length"
            if event.reason in ("finalize", "finish"):
                self.one.final_sent()

    def _results(self, event: StreamEvent) -> dict[str, object]:
        end = max(self.locked, event.end)
        assert self.one.lease is not None
        return {
            "type": "Results",
            "channel_index": self.index,
            "duration": round(end - self.locked, 6),
            "start": self.locked,
            "is_final": event.type == "final",
            "speech_final": event.reason == "endpoint",
            "from_finalize": event.reason == "finalize",
            "channel": {
                "alternatives": [
                    _alternative(event.text, event.words, self.requested.diarize, event.lexical)
                ]
            },
            "metadata": {
                "request_id": self.request_id,
                "model_info": _model_info(self.one.lease),
                "model_uuid": _model_uuid(self.one.lease),
            },
        }


class _LiveSocket:
    """One live socket: raw samples, Opus packets, or a container as browsers record it."""

    def __init__(
        self,
        one: Client,
        requested: ListenOptions,
        channels: Sequence[_Channel],
        lease: Lease,
        request_id: str,
        stack: AsyncExitStack,
    ) -> None:
        self.one, self.requested, self.lease = one, requested, lease
        self.channels, self.feeds = channels, [channel.feed for channel in channels]
        self.request_id, self._stack = request_id, stack
        self._reader = PcmReader(requested.encoding or "pcm_f32le", requested.channels)
        self._head: bytes | None = b""  # audio before its format is known
        self._decoder: LiveDecoder | None = None
        self.digest = hashlib.sha256()

    async def run(self) -> None:
        try:
            await until_first(self._receive(), self._send(), self._watch_pauses())
        except Refusal as refusal:
            if refusal.code == "idle":
                await self.one.close(FAILED, "NET-0001: no audio and no KeepAlive came in time")
                return
            await self._send_error(refusal.message, refusal.code)
            raise
        except PianissimoError as error:
            await self._send_error(str(error), error.code)
            raise

    async def _send_error(self, message: str, code: str | None) -> None:
        variant = (code or "error").upper()
        error = {"type": "Error", "description": message, "message": message, "variant": variant}
        await self.one.send(error)

    async def _receive(self) -> None:
        idle = min(self.one.service.settings.idle_seconds, IDLE_SECONDS)
        open = True
        while True:
            # A client that closed the stream has nothing more to send while the rest is computed.
            message = await self.one.receive(idle if open else None)
            if not open:
                continue
            if isinstance(message, bytes) and message:
                await self._push(message)
                continue
            match (await parse_message(message)).get("type") if message else "CloseStream":
                case "Finalize" | "Finalise":
                    await self.one.pace_command()
                    self._finals_requested()
                    await self._flush()
                    for feed in self.feeds:
                        await feed.finalize()
                case "CloseStream":
                    open = False
                    self._finals_requested()
                    await self._flush()
                    if self._decoder is not None:
                        await self._decoder.finish()
                    for feed in self.feeds:
                        await feed.finish()

    def _finals_requested(self) -> None:
        """Each channel answers with a final of its own."""
        for _ in self.channels:
            self.one.final_requested()

    async def _push(self, data: bytes) -> None:
        self.digest.update(data)
        if self._head is not None:
            data = self._head + data
            if len(data) < HEAD_BYTES and not self.requested.opus:
                self._head = data
                return
            await self._choose_format(data)
        if self._decoder is not None:
            await self._decoder.write(data)
        else:
            await self._push_raw(data)

    async def _push_raw(self, data: bytes) -> None:
        """Push interleaved samples; each channel of a socket with several is metered."""
        if len(self.feeds) == 1:
            self.one.service.record_audio(DIALECT, self.lease, await self.feeds[0].push(data))
            return
        self.one.account.check_audio()
        samples = self._reader.push(data)
        for channel, feed in enumerate(self.feeds):
            seconds = await feed.push_samples(samples[:, channel].copy())
            self.one.service.record_audio(DIALECT, self.lease, seconds)

    async def _choose_format(self, data: bytes) -> None:
        """Start a decoder, unless the first audio is raw; raises Refusal for unknown audio."""
        self._head = None
        if is_container(data) and len(self.feeds) > 1:
            raise Refusal(
                400,
                "multichannel needs raw samples on a socket; send the file by POST",
                "multichannel_unsupported",
            )
        if is_container(data):
            kind: LiveKind = "container"
        elif self.requested.opus:
            kind = "opus"
        elif self.requested.encoding is None:
            raise Refusal(
                400,
                f"the audio is in no known container: send encoding={' or '.join(ENCODINGS)}, and "
                "sample_rate, for raw samples",
                "encoding_required",
            )
        else:
            return
        self._stack.enter_context(self.one.service.live_decoders.seat())
        opening = live_decoder(kind, self.requested.sample_rate, self._push_decoded)
        self._decoder = await self._stack.enter_async_context(opening)

    async def _push_decoded(self, samples: npt.NDArray[np.float32]) -> None:
        self.one.account.check_audio()
        seconds = await self.feeds[0].push_samples(samples)
        self.one.service.record_audio(DIALECT, self.lease, seconds)

    async def _flush(self) -> None:
        """Push all audio that was received."""
        if self._head:
            data, self._head = self._head, None
            if self.requested.encoding is not None:
                await self._push_raw(data)
        if self._decoder is not None:
            await self._decoder.flush()

    async def _watch_pauses(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for channel in self.channels:
                feed = channel.feed
                await channel.end_utterance(feed.seconds - feed.session.backlog_seconds)

    async def _send(self) -> None:
        tasks = [asyncio.create_task(channel.send()) for channel in self.channels]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        await self.one.send({"type": "Metadata", **self._metadata()})

    def _metadata(self) -> dict[str, object]:
        seconds, channels = self.feeds[0].seconds, self.requested.channels
        digest = self.digest.hexdigest()
        return _metadata(self.lease, self.request_id, digest, seconds, channels)


@router.post("/v1/listen", openapi_extra=LISTEN_BODY, responses=LISTEN)
async def listen_to_recording(request: Request) -> Response:
    """A recording in the body: any container, or raw samples as described by the query."""
    service: Service = request.app.state.service
    account = service.admit(DIALECT, request.headers)
    service.check_open(DIALECT)
    requested, request_id = read_query(request.query_params), str(uuid.uuid4())
    if request.headers.get("content-type", "").startswith("application/json"):
        raise Refusal(
            400,
            "this server does not fetch URLs: send the recording itself as the body",
            "remote_content_unsupported",
        )
    async with AsyncExitStack() as stack:
        lease = stack.enter_context(_lease(service, request, request_id, account))
        limit = account.largest_upload_bytes(service.settings.largest_upload_bytes)
        path = await stack.enter_async_context(body_as_file(request, limit, service.uploads))
        digest = await _sha256(path)
        upload = Upload(path, await asyncio.to_thread(_raw_format, path, requested))
        blocks = RecordingBlocks()
        language = lease.model.spoken(request.query_params.get("language"))
        written, warnings = _written_form(requested, lease, language)
        work = service.transcribe(
            upload, lease, requested.boost, requested.diarization, blocks, language, written
        )
        found = await unless_gone(request, work)
        service.record_audio(DIALECT, lease, found.duration)
    channels = blocks.channels if requested.multichannel else 1
    about = _metadata(lease, request_id, digest, found.duration, channels)
    if found.remarks:
        warnings += [
            {"parameter": "audio", "type": reason, "message": NOTE_TEXTS[reason]}
            for reason in found.reasons
            if reason in NOTE_TEXTS
        ]
    if warnings:
        about["warnings"] = warnings
    results = _recording_results(found, requested, channels)
    return JSONResponse({"metadata": about, "results": results})


def _recording_results(
    found: Transcript, requested: ListenOptions, channels: int
) -> dict[str, object]:
    diarize = requested.diarize
    alternatives = [_alternative(found.text, found.words, diarize, found.lexical)]
    if requested.multichannel:
        parts = [_of_channel(found, channel) for channel in range(channels)]
        alternatives = [_alternative(text, words, diarize) for text, words in parts]
    results: dict[str, object] = {"channels": [{"alternatives": [one]} for one in alternatives]}
    if requested.utterances:
        results["utterances"] = [
            {
                "start": segment.start,
                "end": segment.end,
                "channel": int(segment.speaker or 0) if requested.multichannel else 0,
                "id": str(uuid.uuid4()),
                **_alternative(segment.text, segment.words, requested.diarize),
                **({"speaker": _number_of(segment.speaker)} if requested.diarize else {}),
            }
            for segment in found.segments
        ]
    return results


def _of_channel(found: Transcript, channel: int) -> tuple[str, tuple[Word, ...]]:
    """The text and words of one channel; channels with the same signal all have the same."""
    number = "0" if "same_channels" in found.reasons else str(channel)
    segments = [segment for segment in found.segments if segment.speaker == number]
    words = tuple(word for segment in segments for word in segment.words)
    return joined(segment.text for segment in segments), words


# -- queries ---------------------------------------------------------------------------------------


def read_query(query: QueryParams) -> ListenOptions:
    """Raises Refusal for invalid values."""
    encoding = query.get("encoding")
    if encoding is not None and encoding not in (*ENCODINGS, *OPUS):
        raise Refusal(
            400,
            f"encoding {encoding!r} is not supported; send {', '.join((*ENCODINGS, *OPUS))}",
            "unsupported_encoding",
        )
    model = query.get("diarize_model")
    if model is not None and model.lower() not in DIARIZE_MODELS:
        names = ", ".join(DIARIZE_MODELS)
        raise Refusal(400, f"diarize_model={model} is unknown; use {names}", "invalid_value")
    return ListenOptions(
        encoding=ENCODINGS.get(encoding or ""),
        opus=encoding in OPUS,
        sample_rate=round(_number(query, "sample_rate", 8000 if encoding in G711 else 16_000)),
        channels=round(_number(query, "channels", 1)),
        interim=_flag(query, "interim_results"),
        endpoint=_endpoint(query),
        utterance_end_seconds=_utterance_end(query),
        vad_events=_flag(query, "vad_events"),
        utterances=_flag(query, "utterances"),
        boost=(*_keyterms(query), *_keywords(query)),
        diarize=_flag(query, "diarize") or model is not None,
        multichannel=_flag(query, "multichannel"),
        written_by=next((key for key in WRITTEN_KEYS if _flag(query, key)), None),
    )


def _endpoint(query: Mapping[str, str]) -> EndpointRules:
    requested = query.get("endpointing", "").lower()
    if requested == "false":
        return NO_PAUSES
    if requested in ("", "true"):
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
    """`keywords=WORD:INTENSIFIER`; those that are not above 0 would suppress a word: ignored."""
    for text in query.getlist("keywords"):
        word, colon, number = text.rpartition(":")
        try:
            intensifier = float(number) if colon else 1.0
        except ValueError:
            raise Refusal(
                400,
                f"keywords={text} is invalid; use WORD:INTENSIFIER with a number",
                "invalid_value",
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
        raise Refusal(400, f"{name}={text} is invalid; use a number from 0 to 1e7", "invalid_value")
    return value


# -- answers ---------------------------------------------------------------------------------------


def _alternative(
    text: str, words: Sequence[Word], diarize: bool = False, lexical: str | None = None
) -> dict[str, object]:
    known = [word.confidence for word in words if word.confidence is not None]
    confidence = sum(known) / len(known) if known else 0.0
    shown = [{**_word(word), **(_speaker(word) if diarize else {})} for word in words]
    spoken = {} if lexical is None else {"lexical": lexical}  # a key of this server
    return {"transcript": text, **spoken, "confidence": confidence, "words": shown}


def _speaker(word: Word) -> dict[str, object]:
    """The speaker of a word as a number, with the confidence; nothing while it is unknown."""
    if word.speaker is None:
        return {}
    confidence = 0.0 if word.speaker_confidence is None else word.speaker_confidence
    return {"speaker": _number_of(word.speaker), "speaker_confidence": confidence}


def _number_of(speaker: str | None) -> int:
    return int(speaker) if speaker is not None and speaker.isdecimal() else 0


def _word(word: Word) -> dict[str, object]:
    return {
        "word": word.text.strip(".,!?;:\"'()").lower() or word.text,
        "start": word.start,
        "end": word.end,
        "confidence": 0.0 if word.confidence is None else word.confidence,
        "punctuated_word": word.text,
    }


def _metadata(
    lease: Lease, request_id: str, digest: str, seconds: float, channels: int
) -> dict[str, object]:
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


def _raw_format(path: Path, requested: ListenOptions) -> RawFormat | None:
    """How the samples of a body are stored; None for a container.

    Some clients name an encoding though they send a file with a header.
    """
    if requested.encoding is None:
        return None
    with open(path, "rb") as file:
        if is_container(file.read(SIGNATURE_BYTES)):
            return None
    return RawFormat(requested.encoding, requested.sample_rate, requested.channels)


async def _sha256(path: Path) -> str:
    def digest() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return await asyncio.to_thread(digest)
