"""The ASGI application: one service and a router for each dialect."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pianissimo import __version__
from pianissimo.errors import PianissimoError
from pianissimo.serve.access.auth import OriginGuard, key_of, unauthorized
from pianissimo.serve.access.connections import ConnectionLimit
from pianissimo.serve.agent import AgentService
from pianissimo.serve.dialects import deepgram, deepgram_speak, openai_rest, openai_speech, stream
from pianissimo.serve.dialects.openai_realtime import socket as openai_realtime
from pianissimo.serve.dialects.wyoming import WyomingServer
from pianissimo.serve.durable.streams import Streams
from pianissimo.serve.errors import Refusal, refusal_for
from pianissimo.serve.openapi import ERRORS
from pianissimo.serve.page import routes as page
from pianissimo.serve.request_ids import RequestIds
from pianissimo.serve.service import Service
from pianissimo.serve.settings import Settings
from pianissimo.serve.shutdown import EarlyAnswers
from pianissimo.serve.versions import admin
from pianissimo.serve.versions.store import read_all

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer, Synthesizer

DEEPGRAM_PATHS = ("/v1/listen", "/v1/speak")

log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    recognizers: "Recognizer | Mapping[str, Recognizer] | None" = None,
    voices: "Mapping[str, Synthesizer] | None" = None,
) -> FastAPI:
    """The server as an ASGI application, for one recognizer or for several by name.

    Without recognizers it loads those in the `settings`; without voices it loads those of the
    settings on first use. Loading and the start of the engines
    happen when the application starts; errors are raised there.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loaded = recognizers
        if loaded is None:
            loaded = await asyncio.to_thread(read_all, settings)
        service = await asyncio.to_thread(Service, settings, loaded, voices)
        app.state.service, app.state.streams = service, Streams(service)
        if settings.llm_url is not None:
            voice = await service.voices.load(service.voices.choose())
            service.agent = await asyncio.to_thread(AgentService, settings, service.voices, voice)
        app.state.started = time.time()
        app.state.wyoming = WyomingServer(service)
        try:
            if settings.wyoming_port is not None:
                await app.state.wyoming.start()
            yield
        finally:
            await app.state.wyoming.close()
            await app.state.streams.close()
            await service.close()

    # FastAPI's own pages load scripts from other hosts; only its /openapi.json is served.
    app = FastAPI(
        title="Pianissimo",
        version=__version__,
        lifespan=lifespan,
        responses=ERRORS,
        docs_url=None,
        redoc_url=None,
    )
    dialects = (openai_rest, openai_speech, openai_realtime, deepgram, deepgram_speak, stream)
    for dialect in (*dialects, admin, page):
        app.include_router(dialect.router)
    for path in ("/health", "/healthz"):
        app.add_api_route(path, _health, methods=["GET"], response_class=PlainTextResponse)
    for path in ("/ready", "/readyz"):
        app.add_api_route(path, _ready, methods=["GET"], response_class=PlainTextResponse)
    app.add_api_route("/metrics", _metrics, methods=["GET"], response_class=PlainTextResponse)
    expected = (Refusal, PianissimoError, HTTPException, RequestValidationError, ClientDisconnect)
    for error in (*expected, Exception):
        app.add_exception_handler(error, _refuse)
    app.add_middleware(CountRequests)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.allow_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
    )
    app.add_middleware(ConnectionLimit, most=settings.most_connections)
    app.add_middleware(
        OriginGuard,
        allowed=settings.allow_origins,
        check_host=settings.loopback and not settings.api_keys,
    )
    app.add_middleware(EarlyAnswers)
    app.add_middleware(RequestIds)
    return app


async def _health() -> Response:
    """The process is alive."""
    return PlainTextResponse("ok\n")


async def _ready(request: Request) -> Response:
    """All engines serve, a seat is free for a resumed stream, and the server does not drain.

    With `?for=new` a seat must be free for a new stream.
    """
    service: Service = request.app.state.service
    fault = service.store.fault()
    new = request.query_params.get("for") == "new"
    if service.draining:
        fault = "draining"
    elif fault is None and not service.seats.has_free(reserved=not new):
        fault = "full"
    state = "ready" if service.seats.has_free() else "ready for resumed streams"
    return PlainTextResponse(f"{fault or state}\n", 503 if fault else 200)


async def _metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    service: Service = request.app.state.service
    if not service.keys.admits_admin(key_of(request.headers)):
        raise unauthorized()
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _refuse(request: Request, error: Exception) -> Response:
    """The error response, in the shape of the dialect of the path."""
    match error:
        case Refusal():
            refusal = error
        case PianissimoError():
            refusal = refusal_for(error)
        case HTTPException():
            headers = dict(error.headers or {})
            message = f"{error.detail}: {request.method} {request.url.path}"
            refusal = Refusal(error.status_code, message, headers=headers)
        case RequestValidationError():
            refusal = Refusal(422, "; ".join(str(e["msg"]) for e in error.errors()))
        case ClientDisconnect():
            refusal = Refusal(400, "the connection was closed before the request ended")
        case _:
            log.error("a request failed", exc_info=error)
            refusal = Refusal(500, "the request failed inside the server; see its log")
    if request.url.path.startswith(DEEPGRAM_PATHS):
        body = refusal.deepgram(str(uuid.uuid4()))
    else:
        body = refusal.openai()
    return JSONResponse(body, refusal.status, headers=refusal.headers)


class CountRequests:
    """Counts responses by path and status; sockets are counted by their dialects."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                service: Service = scope["app"].state.service
                route = getattr(scope.get("route"), "path", "unknown")
                service.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted)
