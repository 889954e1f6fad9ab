"""What a client uploads goes to disk while it arrives, within a limit, and is gone afterwards."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from pianissimo.audio.resample import check_sample_rate
from pianissimo.serve.audio_in.pcm import Encoding, PcmReader
from pianissimo.serve.errors import Refusal

MOST_FIELDS = 200
FORM_BYTES = 1 << 20
"""What a form may hold besides its file."""
WATCH_SECONDS = 0.5
"""How soon it is seen that nobody waits for an answer any more."""

T = TypeVar("T")


def too_large(most_bytes: int) -> Refusal:
    return Refusal(
        413,
        f"the upload is larger than the {most_bytes / 1e6:g} MB this server takes; "
        "compress the recording, or cut it",
        "file_too_large",
        "file",
    )


def limited(request: Request, most_bytes: int, extra_bytes: int = 0) -> Request:
    """The same request, whose body raises a Refusal as soon as it is too large."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most_bytes + extra_bytes:
        raise too_large(most_bytes)
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > most_bytes + extra_bytes:
            raise too_large(most_bytes)
        return message

    return Request(request.scope, receive)


@asynccontextmanager
async def form_with_file(
    request: Request, most_bytes: int
) -> AsyncIterator[tuple[FormData, UploadFile, Path]]:
    """The fields of a multipart form and its `file`, which lies on disk; raises Refusal."""
    body = limited(request, most_bytes, FORM_BYTES)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refusal(
            400, "send a form of the kind multipart/form-data with a file", "invalid_content_type"
        )
    try:
        form = await body.form(max_files=1, max_fields=MOST_FIELDS)
    except MultiPartException as error:
        raise Refusal(400, f"the form cannot be read: {error}", "invalid_form") from error
    except Exception as error:  # Starlette tells of a damaged form by an HTTP error of its own
        if getattr(error, "status_code", None) != 400:
            raise
        detail = getattr(error, "detail", "it is damaged")
        raise Refusal(400, f"the form cannot be read: {detail}", "invalid_form") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Refusal(400, "the form has no file: send one as 'file'", "missing_file", "file")
        if (file.size or 0) > most_bytes:
            raise too_large(most_bytes)
        with tempfile.NamedTemporaryFile(prefix="pianissimo-") as copy:
            await asyncio.to_thread(_copy, file.file, copy)
            yield form, file, Path(copy.name)
    finally:
        await form.close()


@asynccontextmanager
async def body_as_file(request: Request, most_bytes: int) -> AsyncIterator[Path]:
    """The body of a request on disk; raises Refusal when it is too large or empty."""
    with tempfile.NamedTemporaryFile(prefix="pianissimo-") as file:
        size = 0
        async for chunk in limited(request, most_bytes).stream():
            size += len(chunk)
            await asyncio.to_thread(file.write, chunk)
        if size == 0:
            raise Refusal(400, "the request has no audio in its body", "missing_file")
        await asyncio.to_thread(file.flush)
        yield Path(file.name)


def _copy(source: Any, target: Any) -> None:
    shutil.copyfileobj(source, target, 1 << 20)
    target.flush()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work for a request gives; it is given up once the client has gone.

    Raises ClientDisconnect then, which is told to nobody.
    """
    job = asyncio.create_task(work)
    try:
        while not job.done():
            await asyncio.wait({job}, timeout=WATCH_SECONDS)
            if not job.done() and await request.is_disconnected():
                raise ClientDisconnect
        return job.result()
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


@asynccontextmanager
async def raw_as_wav(
    path: Path, encoding: Encoding, sample_rate: int, channels: int
) -> AsyncIterator[Path]:
    """A file of raw samples as one that says what it holds; raises AudioValueError."""
    reader = PcmReader(encoding, channels)
    rate = check_sample_rate(sample_rate, "sample_rate")
    with tempfile.NamedTemporaryFile(prefix="pianissimo-", suffix=".wav") as target:
        await asyncio.to_thread(_write_wav, path, target, reader, rate)
        yield Path(target.name)


def _write_wav(path: Path, target: Any, reader: PcmReader, sample_rate: int) -> None:
    import soundfile

    # Integers keep their scale only in a file of integers.
    kind = "FLOAT" if reader.encoding == "pcm_f32le" else "PCM_16"
    with (
        open(path, "rb") as source,
        soundfile.SoundFile(target, "w", sample_rate, reader.channels, kind, format="WAV") as wav,
    ):
        while data := source.read(1 << 20):
            wav.write(reader.push(data))
    target.flush()
