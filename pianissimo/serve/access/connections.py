"""Limits the sockets that one address or one key has open, before the handshake."""

from collections import Counter

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from pianissimo.serve.access.auth import digest, key_of
from pianissimo.serve.errors import busy


class ConnectionLimit:
    """Middleware that refuses sockets above `most` of one address or key with status 429.

    A client costs memory before it has a seat: the buffers of its connection and the start of its
    first message.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most
        self._open: Counter[bytes | str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        holders = _holders(scope)
        if any(self._open[holder] >= self.most for holder in holders):
            refusal = busy(f"this client has {self.most} sockets open; close some of them")
            answer = JSONResponse(refusal.openai(), refusal.status, headers=refusal.headers)
            await WebSocket(scope, receive, send).send_denial_response(answer)
            return
        self._open.update(holders)
        try:
            await self.app(scope, receive, send)
        finally:
            self._open.subtract(holders)
            for holder in holders:
                if not self._open[holder]:
                    del self._open[holder]


def _holders(scope: Scope) -> list[bytes | str]:
    """The address of a connection, and the digest of the key it sends."""
    client, key = scope.get("client"), key_of(Headers(scope=scope))
    holders: list[bytes | str] = [str(client[0]) if client else ""]
    return holders if key is None else [*holders, digest(key)]
