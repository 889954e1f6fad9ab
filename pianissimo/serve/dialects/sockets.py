"""What the sockets of all dialects do alike: let a client in, read, write, and say goodbye."""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from pianissimo.errors import PianissimoError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.auth import subprotocol_of
from pianissimo.serve.errors import FAILED, RESTARTING, Refusal, refusal_for
from pianissimo.serve.service import Service
from pianissimo.serve.versions.store import Lease

LONGEST_REASON_BYTES = 123
"""What a close frame has room for, RFC 6455 section 5.5."""

PARTING_SECONDS = 5.0
"""How long a close frame may wait for a client that does not read."""

log = logging.getLogger(__name__)


class Gone(Exception):
    """The client went away, with this close code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Client:
    """One accepted socket of a dialect."""

    account: Account
    """Whose it is, once it is let in."""

    def __init__(self, socket: WebSocket, service: Service, dialect: str) -> None:
        self.socket, self.service, self.dialect = socket, service, dialect
        self.lease: Lease | None = None
        """The model that the client is served by, once that is known."""
        self._awaited: deque[float] = deque()

    async def receive(self, idle_seconds: float | None = None) -> str | bytes:
        """The next message; raises Gone at the end, Refusal when nothing came for too long."""
        idle = self.service.settings.idle_seconds if idle_seconds is None else idle_seconds
        try:
            async with asyncio.timeout(idle):
                message = await self.socket.receive()
        except TimeoutError:
            raise Refusal(408, f"nothing was sent for {idle:g} s", "idle") from None
        if message["type"] == "websocket.disconnect":
            raise Gone(message.get("code") or 1005)
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a JSON message; waits while the client does not read, but not for ever. Raises
        Gone."""
        try:
            async with asyncio.timeout(self.service.settings.idle_seconds):
                await self.socket.send_text(json.dumps(message))
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError) as error:
            raise Gone(1006) from error

    async def close(self, code: int, reason: str = "") -> None:
        """Say goodbye; that nobody hears it is no error."""
        short = reason.encode()[:LONGEST_REASON_BYTES].decode(errors="ignore")
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            async with asyncio.timeout(PARTING_SECONDS):
                await self.socket.close(code, short)

    def asked_for_final(self) -> None:
        """The clock of the time to the final text begins to run."""
        self._awaited.append(time.monotonic())

    def got_final(self) -> None:
        """The final text that was asked for first is there."""
        if self._awaited and self.lease is not None:
            spent = time.monotonic() - self._awaited.popleft()
            self.service.metrics.final_after(self.dialect, self.lease, spent)


@asynccontextmanager
async def client(
    socket: WebSocket,
    dialect: str,
    *,
    account: Account | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Client]:
    """Accept a socket, and close it with the code that fits what happened.

    Refusals and errors of ours become close codes, what nobody foresaw is logged and becomes 1011.
    `account` is that of a client whose key was checked already.
    """
    service: Service = socket.app.state.service
    raw = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
    await socket.accept(subprotocol_of(socket), headers=raw)
    one, outcome = Client(socket, service, dialect), "done"
    service.metrics.sockets.labels(dialect).inc()
    try:
        if account is None:
            account = service.admit(dialect, socket.headers)
        else:
            account.requests += 1
        one.account = account
        yield one
        await one.close(1000)
    except Gone as gone:
        outcome = "restarted" if gone.code == RESTARTING else "gone"
    except (Refusal, PianissimoError) as error:
        refusal = error if isinstance(error, Refusal) else refusal_for(error)
        outcome = refusal.code or refusal.kind
        await one.close(refusal.close_code, refusal.message)
    except Exception:
        log.exception("a socket of %s failed", dialect)
        outcome = "failed"
        await one.close(FAILED, "the server failed; its log says why")
    finally:
        service.metrics.sockets.labels(dialect).dec()
        service.metrics.requests.labels(dialect, outcome).inc()


@asynccontextmanager
async def seat(service: Service, dialect: str, account: Account) -> AsyncIterator[None]:
    """A seat for as long as the block lasts; raises what `Service.take_seat` says, and Refusal
    while the server takes nobody new."""
    service.check_open(dialect)
    service.take_seat(dialect, account)
    try:
        yield
    finally:
        service.leave_seat(account)


async def until_first(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run jobs side by side until one of them ends; what it raises is raised."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    try:
        for task in tasks:
            if task in done:
                task.result()
    finally:
        # What is raised knows this frame: without a way back all of the socket is freed at once.
        del tasks, done, task


def _not_json(constant: str) -> None:
    raise ValueError(f"it has no {constant}")


def parse_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object; raises Refusal for anything else."""
    try:
        value = json.loads(text, parse_constant=_not_json)
        if b"\\ud" in (text.encode() if isinstance(text, str) else text).lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be sent back
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"this message is not JSON: {error}", "invalid_json") from error
    if not isinstance(value, dict):
        raise Refusal(400, "a message must be a JSON object", "invalid_json")
    return value


def text_field(given: Mapping[str, Any], name: str) -> str | None:
    """The text of that name, None if there is none; raises Refusal for what is no text."""
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(400, f"{name} must be text", "invalid_value", name)
    return value


def whole_field(given: Mapping[str, Any], name: str, default: int, least: int) -> int:
    """The whole number of that name; raises Refusal for another thing, or a smaller one."""
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Refusal(400, f"{name} must be a whole number from {least} on", "invalid_value", name)
    return value
