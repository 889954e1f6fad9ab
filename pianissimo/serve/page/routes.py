"""Routes of the page: its files, the models of the server, and recordings with progress.

The files are read once; no path of a request is ever opened. The page loads nothing from other
hosts, and its headers forbid it.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from pianissimo import __version__
from pianissimo.errors import PianissimoError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.auth import caller_of
from pianissimo.serve.access.phrases import read_boost
from pianissimo.serve.audio_in.decode import Upload
from pianissimo.serve.audio_in.upload import form_with_file
from pianissimo.serve.errors import Refusal, refusal_for
from pianissimo.serve.page.recordings import RecordingProgress, progress_of, speakers_of, with_gain
from pianissimo.serve.service import Service
from pianissimo.serve.versions.store import Lease
from pianissimo.transcript import Transcript

DIALECT = "page"
STATIC = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; media-src 'self' blob:; worker-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
QUIETBENCH_SUMMARY = "summary.json"

router = APIRouter(include_in_schema=False)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StaticFile:
    """One file of the page as it is sent."""

    content: bytes
    headers: Mapping[str, str]


@cache
def static_files() -> Mapping[str, StaticFile]:
    """All files in `static`, by name."""
    found = {}
    for path in sorted(STATIC.iterdir()):
        if path.suffix in KINDS:
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            headers = {**HEADERS, "content-type": KINDS[path.suffix], "etag": tag}
            found[path.name] = StaticFile(content, headers)
    return found


@router.get("/")
async def index(request: Request) -> Response:
    return _sent(request, "index.html")


@router.get("/page/{name}.{suffix}")
async def static_file(request: Request, name: str, suffix: str) -> Response:
    return _sent(request, f"{name}.{suffix}")


@router.get("/gradio_api")
@router.get("/gradio_api/")
async def gradio_api() -> Response:
    """A common path of the API of a speech page."""
    return RedirectResponse("/#api")


@router.get("/page/server")
async def server(request: Request) -> Response:
    """Models with their latency modes, voices, the language model, and limits."""
    service, _ = _admitted(request)
    settings = service.settings
    return JSONResponse(
        {
            "version": __version__,
            "models": [
                {
                    "name": name,
                    "latencies_ms": model.latencies_ms,
                    "gain": model.recognizer.capabilities.gain,
                }
                for name, model in service.store.models.items()
            ],
            "voices": service.voices.names,
            "language_model": None if service.agent is None else service.agent.model,
            "largest_upload_mb": settings.largest_upload_mb,
            "quietbench": settings.quietbench is not None,
            "admin": service.keys.has_admin,
        }
    )


@router.get("/page/quietbench")
async def quietbench(request: Request) -> Response:
    """The summary of `pianissimo quietbench` in the folder that the operator named."""
    folder = _admitted(request)[0].settings.quietbench
    if folder is None:
        raise Refusal(404, "the server was not started with --quietbench FOLDER", "no_report")
    path = folder / QUIETBENCH_SUMMARY
    try:
        content = await asyncio.to_thread(path.read_bytes)
        return JSONResponse(json.loads(content))
    except (OSError, ValueError) as error:
        log.warning("%s cannot be shown: %s", path, error)
        raise Refusal(
            404, f"the folder of --quietbench has no {QUIETBENCH_SUMMARY} to show", "no_report"
        ) from error


@router.post("/page/recordings")
async def recordings(request: Request) -> Response:
    """Form fields `file`, `model`, `gain`, `language`, `speakers`, and `hotwords`, as `boost` is.

    Responds with JSON lines: progress, then the transcript. It is that of `pianissimo transcribe`,
    with the reasons of the hallucination filter and remarks on how the recording was read.
    """
    service, account = _admitted(request)
    service.check_open(DIALECT)
    async with AsyncExitStack() as stack:
        most = account.largest_upload_bytes(service.settings.largest_upload_bytes)
        upload = form_with_file(request, most, service.uploads)
        form, _, path = await stack.enter_async_context(upload)
        caller = caller_of(request.headers)
        choice = service.store.choose(_text(form, "model"), caller)
        lease = stack.enter_context(service.lease(DIALECT, choice, caller.session, account))
        spoken = lease.model.spoken(_text(form, "language"))
        recognizer = with_gain(lease.model.recognizer_for(spoken), _text(form, "gain"))
        diarize = speakers_of(_text(form, "speakers"))
        phrases = read_boost(_json(form, "hotwords"))
        boost = await asyncio.to_thread(lease.model.hints, phrases)
        updates = progress_of(
            service, recognizer, Upload(path), request, stack.pop_all(), boost, diarize
        )
        return StreamingResponse(_lines(service, lease, updates), media_type="application/x-ndjson")


def _text(form: FormData, name: str) -> str | None:
    value = form.get(name)
    return value if isinstance(value, str) else None


def _json(form: FormData, name: str) -> object:
    text = _text(form, name)
    try:
        return json.loads(text) if text else None
    except ValueError as error:
        raise Refusal(400, f"{name} is not JSON: {error}", "invalid_value", name) from error


async def _lines(
    service: Service, lease: Lease, updates: AsyncGenerator[RecordingProgress | Transcript]
) -> AsyncIterator[str]:
    try:
        async with aclosing(updates):
            async for each in updates:
                if isinstance(each, RecordingProgress):
                    line = {"type": "progress", "decoded": each.decoded, "consumed": each.consumed}
                else:
                    service.record_audio(DIALECT, lease, each.duration)
                    line = {"type": "transcript", **json.loads(each.to_json())}
                    if each.remarks:
                        line["remarks"] = each.remarks
                yield json.dumps(line, ensure_ascii=False) + "\n"
    except PianissimoError as error:
        refusal = refusal_for(error)
        yield json.dumps({"type": "error", **refusal.openai()}, ensure_ascii=False) + "\n"


def _sent(request: Request, name: str) -> Response:
    file = static_files().get(name)
    if file is None:
        raise HTTPException(404, "Not Found")
    if request.headers.get("if-none-match") == file.headers["etag"]:
        return Response(status_code=304, headers=dict(file.headers))
    return Response(file.content, headers=dict(file.headers))


def _admitted(request: Request) -> tuple[Service, Account]:
    service: Service = request.app.state.service
    return service, service.admit(DIALECT, request.headers)
