"""A name for each request and socket: from the proxy or made here, in answers and in the log."""

import logging
import re
import secrets
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "x-request-id"
USABLE = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)

_current: ContextVar[str] = ContextVar("pianissimo_request", default="")
_traceparent: ContextVar[str] = ContextVar("pianissimo_traceparent", default="")


def current_request() -> str:
    """The id of the request that the caller serves; "" outside of one."""
    return _current.get()


def current_traceparent() -> str:
    """The header `traceparent` of that request (W3C Trace Context); "" without one."""
    return _traceparent.get()


class RequestIds:
    """Middleware: the `x-request-id` of a request, or a new one, belongs to all that it causes.

    An id that is too long or could not stand in a log line is replaced.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(HEADER, "")
        name = given if USABLE.fullmatch(given) else secrets.token_hex(8)
        token = _current.set(name)
        trace = _traceparent.set(headers.get("traceparent", ""))

        async def named(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        try:
            await self.app(scope, receive, named)
        finally:
            _current.reset(token)
            _traceparent.reset(trace)


def add_request_id(record: logging.LogRecord) -> bool:
    """A filter of handlers: `record.request` is the id of the request, "-" outside of one."""
    record.request = _current.get() or "-"
    return True
