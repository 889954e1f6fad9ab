"""The WebSocket protocol: slices, budgets and limits, without a network."""

import asyncio
from itertools import pairwise
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from pianissimo.serve import websocket
from pianissimo.serve.websocket import FIRST_MESSAGE_BYTES, SocketProtocol, allow_large_messages

UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


def frame(payload: bytes, opcode: int = 1) -> bytes:
    size = len(payload)
    head = bytes([0x80 | opcode, 0x80 | size]) if size < 126 else b""
    if size >= 126:
        head = bytes([0x80 | opcode, 0xFF]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


class FakeTransport:
    """Counts what is written, and whether reading is paused."""

    def __init__(self) -> None:
        self.paused = self.closed = False
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


class Application:
    """Accepts, and keeps what it receives."""

    def __init__(self, pace: float = 0.0) -> None:
        self.received: list[dict[str, Any]] = []
        self.scope: dict[str, Any] = {}
        self.pace = pace

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            self.received.append(message)
            if message["type"] == "websocket.disconnect":
                return
            if self.pace:
                await asyncio.sleep(self.pace)


async def connected(app: Application) -> tuple[SocketProtocol, FakeTransport]:
    config = uvicorn.Config(cast(Any, app), log_config=None, ws_ping_interval=None)
    config.load()
    protocol = SocketProtocol(config=config, server_state=ServerState(), app_state={})
    transport = FakeTransport()
    protocol.connection_made(cast(Any, transport))
    protocol.data_received(UPGRADE)
    for _ in range(10):
        await asyncio.sleep(0)
    assert transport.written.startswith(b"HTTP/1.1 101")
    return protocol, transport


async def until(condition: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def test_all_messages_arrive_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "FRAMES_PER_SECOND", 1e9)

    async def work() -> None:
        app = Application()
        protocol, transport = await connected(app)
        allow_large_messages(app.scope)
        texts = [f"message {number}" + "x" * (number * 37 % 3000) for number in range(400)]
        data = b"".join(frame(text.encode()) for text in texts)
        for start in range(0, len(data), 10_000):
            protocol.data_received(data[start : start + 10_000])
        await until(lambda: len(app.received) == len(texts))
        assert [message["text"] for message in app.received] == texts
        assert not transport.paused
        protocol.connection_lost(None)

    asyncio.run(work())


def test_other_work_runs_between_the_frames_of_one_read() -> None:
    async def work() -> None:
        app = Application()
        protocol, _ = await connected(app)
        protocol.data_received(frame(b"{}") * 10_000)
        counts = [0]
        for _ in range(20):
            await asyncio.sleep(0)
            counts.append(len(app.received))
        steps = [b - a for a, b in pairwise(counts)]
        assert max(steps) <= 2 * websocket.SLICE_BYTES // len(frame(b"{}"))
        protocol.connection_lost(None)

    asyncio.run(work())


@pytest.mark.parametrize("opcode", [1, 9], ids=["text", "ping"])
def test_a_flood_is_read_at_the_pace_of_its_budget(
    monkeypatch: pytest.MonkeyPatch, opcode: int
) -> None:
    monkeypatch.setattr(websocket, "FRAMES_PER_SECOND", 100.0)
    monkeypatch.setattr(websocket, "FRAMES_BURST", 50.0)

    async def work() -> None:
        app = Application()
        protocol, transport = await connected(app)
        before = len(transport.written)
        protocol.data_received(frame(b"{}", opcode) * 5000)
        await asyncio.sleep(0.5)
        if opcode == 9:
            answered = (len(transport.written) - before) // len(b"\x8a\x02{}")
        else:
            answered = len(app.received)
        assert 50 <= answered <= 50 + 50 + websocket.SLICE_BYTES // 8
        assert transport.paused
        protocol.connection_lost(None)

    asyncio.run(work())


def test_a_slow_application_pauses_reading() -> None:
    async def work() -> None:
        app = Application(pace=0.05)
        protocol, transport = await connected(app)
        protocol.data_received(frame(b"{}") * 3)
        await asyncio.sleep(0.01)
        assert transport.paused
        await until(lambda: len(app.received) == 3 and not transport.paused)
        protocol.connection_lost(None)

    asyncio.run(work())


def test_the_first_message_is_limited_until_it_is_lifted() -> None:
    large = frame(b"x" * (FIRST_MESSAGE_BYTES + 1), 2)

    async def work() -> None:
        app = Application()
        protocol, transport = await connected(app)
        protocol.data_received(large)
        await until(lambda: transport.closed and app.received)
        assert app.received[-1]["code"] == 1009

        app = Application()
        protocol, transport = await connected(app)
        allow_large_messages(app.scope)
        protocol.data_received(large)
        await until(lambda: app.received)
        assert len(app.received[0]["bytes"]) == FIRST_MESSAGE_BYTES + 1
        protocol.connection_lost(None)

    asyncio.run(work())


def test_the_end_of_the_server_reads_on_until_the_close_frame_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "CLOSING_SECONDS", 0.2)

    async def work(answers: bool) -> float:
        app = Application(pace=0.001)
        protocol, transport = await connected(app)
        protocol.data_received(frame(b"{}") * 1000)
        assert transport.paused
        began = asyncio.get_running_loop().time()
        protocol.shutdown()
        assert b"\x88\x02\x03\xf4" in transport.written  # the close frame of 1012
        await until(lambda: not transport.paused)
        assert not transport.closed
        if answers:
            protocol.data_received(frame(b"\x03\xf4", 8))
        await until(lambda: transport.closed)
        seconds = asyncio.get_running_loop().time() - began
        await until(lambda: app.received[-1] == {"type": "websocket.disconnect", "code": 1012})
        protocol.connection_lost(None)
        return seconds

    assert asyncio.run(work(True)) < 0.2 <= asyncio.run(work(False))
