"""Uploads are written to disk while they arrive, within limits, and deleted afterwards."""

import asyncio
import errno
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from pianissimo.serve.access.seats import UploadPlaces
from pianissimo.serve.errors import Refusal, storage_full

MOST_FIELDS = 200
FORM_BYTES = 4 << 20
"""Bytes of a form besides its file: recordings of four known speakers, in base64."""
WATCH_SECONDS = 0.5
"""How soon the end of a client that waits for an answer is noticed."""
RESERVE_BYTES = 64 << 20
"""Disk space that uploads leave free."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


def too_large(most_bytes: int) -> Refusal:
    return Refusal(
        413,
        f"the upload is larger than the {most_bytes / 1e6:g} MB this server accepts; "
        "compress the recording, or split it",
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


def check_free_space(request: Request) -> None:
    """Raises Refusal if the declared body does not fit on the disk, or the disk is nearly full."""
    declared = request.headers.get("content-length", "")
    needed = (int(declared) if declared.isdigit() else 0) + RESERVE_BYTES
    if shutil.disk_usage(tempfile.gettempdir()).free < needed:
        raise storage_full()


@contextmanager
def full_disk_refused() -> Iterator[None]:
    """Turns the error of a full disk into a Refusal."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise storage_full() from error
        raise


@asynccontextmanager
async def form_with_file(
    request: Request, most_bytes: int, places: UploadPlaces
) -> AsyncIterator[tuple[FormData, UploadFile, Path]]:
    """The fields of a multipart form and its `file` on disk.

    Raises Refusal for a form that is too large or damaged, a full disk, or too many uploads.
    """
    body = limited(request, most_bytes, FORM_BYTES)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refusal(
            400, "send a form of the kind multipart/form-data with a file", "invalid_content_type"
        )
    with places.place(), full_disk_refused():
        check_free_space(request)
        form = await _parsed_form(body)
        try:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise Refusal(
                    400, "the form has no file: send one as 'file'", "missing_file", "file"
                )
            if (file.size or 0) > most_bytes:
                raise too_large(most_bytes)
            with tempfile.NamedTemporaryFile(prefix="pianissimo-") as copy:
                await asyncio.to_thread(_copy, file.file, copy)
                await file.close()  # its bytes are on disk once
                yield form, file, Path(copy.name)
        finally:
            await form.close()


async def _parsed_form(request: Request) -> FormData:
    try:
        return await request.form(max_files=1, max_fields=MOST_FIELDS)
    except MultiPartException as error:
        raise Refusal(400, f"the form cannot be read: {error}", "invalid_form") from error
    except HTTPException as error:  # Starlette's answer to a damaged form
        if error.status_code != 400:
            raise
        raise Refusal(400, f"the form cannot be read: {error.detail}", "invalid_form") from error


@asynccontextmanager
async def body_as_file(
    request: Request, most_bytes: int, places: UploadPlaces
) -> AsyncIterator[Path]:
    """The body of a request on disk.

    Raises Refusal for a body that is too large or empty, a full disk, or too many uploads.
    """
    body = limited(request, most_bytes)
    with places.place(), full_disk_refused():
        check_free_space(request)
        with tempfile.NamedTemporaryFile(prefix="pianissimo-", buffering=0) as file:
            size = 0
            async for chunk in body.stream():
                size += len(chunk)
                await asyncio.to_thread(_write_all, file.fileno(), chunk)
            if size == 0:
                raise Refusal(400, "the request has no audio in its body", "missing_file")
            yield Path(file.name)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _copy(source: BinaryIO, target: "tempfile._TemporaryFileWrapper[bytes]") -> None:
    shutil.copyfileobj(source, target, 1 << 20)
    target.flush()


async def unless_gone(request: Request, work: Coroutine[object, object, T]) -> T:
    """The result of the work for a request; the work is canceled once the client has gone.

    Raises ClientDisconnect then.
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
