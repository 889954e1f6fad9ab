"""Recordings of the page: transcribed whole, with progress, canceled when the page goes away."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request

from pianissimo.audio.gain import GAIN_MODES
from pianissimo.decoding.hotwords import Boost
from pianissimo.diarization.options import Diarization, parse_speakers
from pianissimo.errors import OptionError
from pianissimo.serve.audio_in.decode import Upload
from pianissimo.serve.audio_in.recording import RecordingBlocks
from pianissimo.serve.errors import Refusal
from pianissimo.serve.service import Service
from pianissimo.transcript import Transcript

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer

UPDATE_SECONDS = 0.25
"""How often the page gets the progress of its recording."""


@dataclass(frozen=True)
class RecordingProgress:
    """Seconds of a recording that were decoded, and that the recognizer has consumed."""

    decoded: float
    consumed: float


def with_gain(recognizer: "Recognizer", mode: str | None) -> "Recognizer":
    """The same model with another gain mode; raises Refusal if it has no such mode."""
    if mode is None:
        return recognizer
    for known in GAIN_MODES:
        if mode == known and recognizer.capabilities.gain:
            return recognizer.with_gain(known)
    raise Refusal(400, f"{recognizer.name} has no gain {mode!r}", "invalid_value", "gain")


def speakers_of(asked: object) -> Diarization | None:
    """What the field `speakers` asks: "voices", their number, "channels", or nothing.

    Raises Refusal for anything else.
    """
    if asked in (None, ""):
        return None
    try:
        match asked:
            case "voices" | "channels":
                return Diarization(asked)
            case str():
                return Diarization(speakers=parse_speakers(asked))
    except OptionError as error:
        raise Refusal(400, str(error), "invalid_value", "speakers") from error
    raise Refusal(400, "speakers is text", "invalid_value", "speakers")


async def progress_of(
    service: Service,
    recognizer: "Recognizer",
    upload: Upload,
    request: Request,
    stack: AsyncExitStack,
    boost: Boost = (),
    diarize: Diarization | None = None,
) -> AsyncGenerator[RecordingProgress | Transcript]:
    """The progress of a recording, then its transcript; raises the errors of `transcribe`.

    `stack` is closed when the recording is done. Once the page has gone the work is canceled.
    """
    blocks = RecordingBlocks()

    async def work() -> Transcript:
        async with stack, service.files.place():
            return await service.transcriber.transcribe(
                upload,
                recognizer,
                service.file_threads,
                boost,
                blocks,
                service.diarization(diarize),
            )

    # A task of its own: the end of this generator must not disturb the cleanup of the work.
    job = asyncio.create_task(work())
    try:
        while not job.done():
            yield RecordingProgress(blocks.decoded, blocks.consumed)
            await asyncio.wait({job}, timeout=UPDATE_SECONDS)
            if await request.is_disconnected():
                return
        yield RecordingProgress(blocks.decoded, blocks.consumed)
        yield job.result()
    finally:
        job.cancel()
