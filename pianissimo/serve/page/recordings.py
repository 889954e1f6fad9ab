"""A recording heard whole for the page, which learns meanwhile how far it is and may stop it."""

import asyncio
import io
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.requests import Request

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.level import GAIN_MODES
from pianissimo.serve.errors import Refusal
from pianissimo.serve.service import Service
from pianissimo.transcript import Transcript

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer

NEWS_SECONDS = 0.25
"""How often the page is told how far its recording is."""


@dataclass
class Progress:
    """How far a recording is, in seconds of its audio; `stopped` makes the recognizer end early."""

    decoded: float = 0.0
    heard: float = 0.0
    stopped: bool = False


class WatchedFile(io.FileIO):
    """A file of float samples that tells how much of it was read, and ends when it is stopped."""

    def __init__(self, name: str, progress: Progress) -> None:
        super().__init__(name)
        self.progress = progress

    def read(self, size: int | None = -1) -> bytes:
        if self.progress.stopped:
            return b""
        data = super().read(-1 if size is None else size)
        seconds = self.tell() / (4 * SAMPLE_RATE)
        self.progress.heard = max(self.progress.heard, min(seconds, self.progress.decoded))
        return data


def with_gain(recognizer: "Recognizer", mode: str | None) -> "Recognizer":
    """The same model behind another gain; raises Refusal where there is none to set."""
    if mode is None:
        return recognizer
    for known in GAIN_MODES:
        if mode == known and recognizer.capabilities.gain:
            return recognizer.with_gain(known)
    raise Refusal(400, f"{recognizer.name} has no gain {mode!r}", "invalid_value", "gain")


async def transcribe(
    service: Service, recognizer: "Recognizer", path: Path, progress: Progress
) -> Transcript:
    """The transcript of an upload; raises AudioError, and EngineFullError when too many wait."""
    import soundfile

    async with service.files.place():
        with tempfile.NamedTemporaryFile(prefix="pianissimo-", suffix=".wav") as copied:
            with soundfile.SoundFile(copied, "w", SAMPLE_RATE, 1, "FLOAT", format="WAV") as wav:
                async with aclosing(service.decoders.blocks(path, SAMPLE_RATE)) as blocks:
                    async for block in blocks:
                        await asyncio.to_thread(wav.write, block)
                        progress.decoded += len(block) / SAMPLE_RATE
            copied.flush()
            return await asyncio.to_thread(_hear, recognizer, copied.name, progress)


def _hear(recognizer: "Recognizer", name: str, progress: Progress) -> Transcript:
    # The thread closes the file: it may still read when the work around it was cancelled.
    with WatchedFile(name, progress) as source:
        return recognizer.transcribe(source)


async def news(
    service: Service,
    recognizer: "Recognizer",
    path: Path,
    request: Request,
    upload: AsyncExitStack,
) -> AsyncGenerator[Progress | Transcript]:
    """How far a recording is, now and then, and its transcript at the end; raises its errors.

    `upload` is closed when the recording is done with. Once the page has gone the work is stopped.
    """
    progress = Progress()

    async def work() -> Transcript:
        async with upload:
            return await transcribe(service, recognizer, path, progress)

    # A task of its own: what ends this generator must not disturb how the work cleans up.
    job = asyncio.create_task(work())
    try:
        while not job.done():
            yield progress
            await asyncio.wait({job}, timeout=NEWS_SECONDS)
            if await request.is_disconnected():
                return
        yield progress
        yield job.result()
    finally:
        progress.stopped = True
        job.cancel()
