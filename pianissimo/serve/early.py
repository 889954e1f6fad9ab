"""Answers that come before the end of the request, as a refused upload's does.

    request  ──start of the body──┬──the rest, read and dropped, for so long──> closed
    answer                        └──sent at once──

Most clients read nothing before they have sent everything, and would never see the answer if the
connection closed with it; one that never stops would otherwise be read for ever.
"""

import asyncio
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_SECONDS = 10.0
"""Less than requests are given when the server ends."""


class EarlyAnswers:
    """Closes the connection of a request that was answered too early to read it to its end."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        unread = True

        async def received() -> Message:
            nonlocal unread
            message = await receive()
            unread = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def sent(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            elif unread and not message.get("more_body", False):
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        while unread:
                            await received()
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, received, sent)


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
