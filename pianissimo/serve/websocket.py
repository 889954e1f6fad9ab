"""The WebSocket protocol of the server: uvicorn's, with limits and an orderly end.

One TCP read holds thousands of small frames. They are parsed in slices, the event loop runs other
work between two slices, and a connection that sends more frames than its budget is read later.
"""

import asyncio
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from pianissimo.serve.access.budget import Budget
from pianissimo.serve.errors import RESTARTING

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
    from websockets.http11 import Request

FIRST_MESSAGE_BYTES = 256 << 10
"""The largest message of a client that has no seat yet."""
LARGEST_MESSAGE_BYTES = 16 << 20
"""The largest message of a client that has one."""
FRAMES_PER_SECOND, FRAMES_BURST = 250.0, 500.0
"""Frames of one connection, pings included; audio in frames of 20 ms takes 50."""
BYTES_PER_FRAME = 32 << 10
"""Bytes that count as one more frame: 8 MiB in a second."""
SLICE_BYTES, LARGEST_SLICE_BYTES = 512, 4096
"""Bytes parsed at once: 85 frames, about a millisecond; within a long frame more."""
CLOSING_SECONDS = 1.0
"""How long a connection that the server ends may take to answer the close frame."""
EXTENSION = "pianissimo.websocket"
"""Key of the protocol among the extensions of a scope."""


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection; `allow_large_messages` lifts the limit of its first message."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.conn.max_message_size = FIRST_MESSAGE_BYTES
        self._unparsed = bytearray()
        self._parsing: asyncio.Handle | None = None
        self._budget = Budget(FRAMES_PER_SECOND, FRAMES_BURST)
        self._ending = False

    def allow_large_messages(self) -> None:
        self.conn.max_message_size = LARGEST_MESSAGE_BYTES

    def handle_connect(self, event: "Request") -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.scope["extensions"][EXTENSION] = {"protocol": self}

    def shutdown(self) -> None:
        """Send the close code 1012, and read on until the client answers it.

        A TCP connection that is closed with unread data is reset, and the reset destroys a close
        frame that the client has not read yet.
        """
        self._ending = True
        if self.close_sent and self.close_timer is not None:
            self.close_timer.cancel()
        elif self.close_sent or not self.handshake_complete or self.transport.is_closing():
            super().shutdown()
            return
        else:
            self.stop_keepalive()
            self.queue.put_nowait({"type": "websocket.disconnect", "code": RESTARTING})
            self.conn.send_close(RESTARTING)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
        self.close_timer = self.loop.call_later(CLOSING_SECONDS, self.transport.close)
        if self._parsing is not None:  # it may wait for its budget
            self._parsing.cancel()
            self._parsing = None
        self._resume()

    def handle_parser_exception(self) -> None:
        """Send the close code of a faulty or too large message, and drop what still arrives.

        As in `shutdown`, a connection that is closed with unread data would be reset.
        """
        assert self.conn.close_sent is not None
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.transport.can_write_eof():
            self.transport.write_eof()  # the client closes its side at once
        self.close_timer = self.loop.call_later(CLOSING_SECONDS, self.transport.close)
        self._set_reading()

    def data_received(self, data: bytes) -> None:
        if self.conn.parser_exc is not None:
            return
        self._unparsed += data
        if self._parsing is None:
            self._parse()

    def _parse(self) -> None:
        """Parse slices until one completes a frame, then let the event loop run."""
        self._parsing = None
        size, spent = SLICE_BYTES, 0.0
        while self._unparsed and (self.queue.empty() or self.close_sent):
            piece = bytes(self._unparsed[:size])
            del self._unparsed[:size]
            self.conn.receive_data(piece)
            if self.conn.parser_exc is not None:
                self._unparsed.clear()
                self.handle_parser_exception()
                return
            frames = len(self.conn.events)
            self.handle_events()
            if self.disconnected or self.transport.is_closing():
                self._unparsed.clear()
                return
            spent += frames + len(piece) / BYTES_PER_FRAME
            if frames:
                break
            size = min(2 * size, LARGEST_SLICE_BYTES)
        delay = self._budget.spend(spent) if spent and not self._ending else 0.0
        if delay or (spent and self._unparsed):
            self._parsing = self.loop.call_later(delay, self._parse)
        self._set_reading()

    def _set_reading(self) -> None:
        """Read on only when everything received was parsed, taken by the application and paid."""
        busy = bool(self._unparsed or self._parsing) or not (self.queue.empty() or self.close_sent)
        if self.transport.is_closing() or busy == self.read_paused:
            return
        self.read_paused = busy
        if busy:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _resume(self) -> None:
        if self._parsing is None and (self.queue.empty() or self.close_sent):
            if self._unparsed:
                self._parsing = self.loop.call_soon(self._parse)
            else:
                self._set_reading()

    async def receive(self) -> "ASGIReceiveEvent":
        message = await self.queue.get()
        self._resume()
        return message

    async def send(self, message: "ASGISendEvent") -> None:
        await super().send(message)
        if self.close_sent:
            self._resume()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._parsing is not None:
            self._parsing.cancel()
        self._unparsed.clear()
        super().connection_lost(exc)


def allow_large_messages(scope: MutableMapping[str, object]) -> None:
    """Lift the limit of the first message, where the server has one."""
    extensions = scope.get("extensions")
    entry = extensions.get(EXTENSION) if isinstance(extensions, dict) else None
    protocol = entry["protocol"] if entry else None
    if isinstance(protocol, SocketProtocol):
        protocol.allow_large_messages()
