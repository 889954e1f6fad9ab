"""A scripted language model on a loopback port: what it says, how slowly, and how it fails."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """One scripted answer: deltas of text or of tool calls, and faults."""

    deltas: list[Any] = field(default_factory=list)
    first_seconds: float = 0.0
    gap_seconds: float = 0.0
    finish: str | None = "stop"
    status: int = 200
    raw: bytes | None = None
    """Sent in place of everything, as it is."""
    ends_early: bool = False
    """The stream ends without a reason and without [DONE]."""
    breaks: bool = False
    """The connection breaks after the deltas."""
    holds: bool = False
    """After the deltas the stream stays open until the client leaves."""


class FakeLLM:
    """Answers `POST /v1/chat/completions` with the replies in order; the last one repeats."""

    def __init__(self, *replies: Reply | str) -> None:
        self.replies = [
            Reply(words(each)) if isinstance(each, str) else each for each in replies or ("Hello.",)
        ]
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.hung_up = 0
        """Replies whose client went away before the end."""
        self.open = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def last_user(self) -> str:
        """What the user said, in the last request."""
        users = [m for m in self.requests[-1]["messages"] if m["role"] == "user"]
        return str(users[-1]["content"])

    def wait_until_left(self, seconds: float = 5.0) -> None:
        """Until no reply is being written; fails if that does not happen."""
        end = time.monotonic() + seconds
        while self.open:
            assert time.monotonic() < end, "the client did not hang up"
            time.sleep(0.01)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.requests.append(json.loads(body))
        headers = dict(scope["headers"])
        self.keys.append(headers.get(b"authorization", b"").decode())
        reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        left = asyncio.create_task(receive())  # ends when the client goes away
        self.open += 1
        try:
            kind = b"text/event-stream" if reply.status == 200 else b"application/json"
            start = {"type": "http.response.start", "status": reply.status}
            await send({**start, "headers": [(b"content-type", kind)]})
            async for piece in self._pieces(reply, left):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if reply.breaks:
                raise ConnectionError("scripted")
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.open -= 1
            self.hung_up += left.done()
            left.cancel()

    async def _pieces(self, reply: Reply, left: "asyncio.Task[Any]") -> AsyncIterator[bytes]:
        await asyncio.wait([left], timeout=reply.first_seconds)
        if reply.raw is not None or reply.status != 200:
            yield reply.raw or b'{"error": {"message": "scripted"}}'
            return
        yield b": keep-alive\r\n\r\n"
        yield _chunk({"role": "assistant"})
        for delta in reply.deltas:
            if left.done():
                return
            yield _chunk(delta if isinstance(delta, dict) else {"content": delta})
            if reply.gap_seconds:
                await asyncio.wait([left], timeout=reply.gap_seconds)
        if reply.holds:
            await asyncio.wait([left])
        if reply.ends_early or reply.breaks or reply.holds:
            return
        yield _chunk({}, reply.finish)
        usage = {"prompt_tokens": 11, "completion_tokens": len(reply.deltas), "total_tokens": 0}
        yield _line({"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield b"data: [DONE]\r\n\r\n"


def words(text: str) -> list[str]:
    """A text as deltas, one for each word."""
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]


def call(name: str, arguments: str, index: int = 0, id: str = "call_1") -> list[dict[str, Any]]:
    """The deltas of a tool call, its arguments in two pieces."""
    half = len(arguments) // 2
    function = {"name": name, "arguments": arguments[:half]}
    first = {"index": index, "id": id, "type": "function", "function": function}
    rest = {"index": index, "function": {"arguments": arguments[half:]}}
    return [{"tool_calls": [first]}, {"tool_calls": [rest]}]


def _chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return _line({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})


def _line(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\r\n\r\n"


@contextmanager
def scripted(*replies: Reply | str) -> Iterator[FakeLLM]:
    """Serve the replies until the block ends."""
    import socket

    import uvicorn

    fake = FakeLLM(*replies)
    listener = socket.create_server(("127.0.0.1", 0))
    fake.port = listener.getsockname()[1]
    config = uvicorn.Config(fake, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the scripted language model did not start"
        time.sleep(0.01)
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the scripted language model did not stop"
