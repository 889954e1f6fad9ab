"""What the sockets of all dialects share: admission, reading, writing and closing."""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

from pianissimo.errors import PianissimoError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.auth import subprotocol_of
from pianissimo.serve.access.budget import Budget
from pianissimo.serve.dialects.messages import SMALL_TEXT_BYTES, JsonObject, parse_object
from pianissimo.serve.errors import FAILED, RESTARTING, Refusal, refusal_for
from pianissimo.serve.service import Service
from pianissimo.serve.versions.store import Lease
from pianissimo.serve.websocket import allow_large_messages

LONGEST_REASON_BYTES = 123
"""What a close frame has room for, RFC 6455 section 5.5."""
CLOSE_SECONDS = 5.0
"""How long a close frame may wait for a client that does not read."""
COMMANDS_PER_SECOND, COMMANDS_BURST = 10.0, 20.0
"""Commands of one socket that make the model compute: finalize, commit, a changed session."""

log = logging.getLogger(__name__)


class Gone(Exception):
    """The client went away, with this close code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Client:
    """One accepted socket of a dialect."""

    account: Account
    """The account that the client uses; see `admit`."""

    def __init__(self, socket: WebSocket, service: Service, dialect: str) -> None:
        self.socket, self.service, self.dialect = socket, service, dialect
        self.lease: Lease | None = None
        """The model that serves the client, once it is chosen."""
        self._awaited: deque[float] = deque()
        self._commands = Budget(COMMANDS_PER_SECOND, COMMANDS_BURST)

    def admit(self, account: Account | None = None) -> Account:
        """Set and return the account of the client; raises Refusal without a valid key.

        `account` is that of a client whose key was checked already.
        """
        if account is None:
            account = self.service.admit(self.dialect, self.socket.headers)
        else:
            account.requests += 1
        self.account = account
        return account

    async def receive(self, idle_seconds: float | None = None) -> str | bytes:
        """The next message; raises Gone at the end, Refusal if none came within the idle time.

        Gives the event loop back once per message, and waits if the budget of the key is spent.
        """
        idle = self.service.settings.idle_seconds if idle_seconds is None else idle_seconds
        try:
            async with asyncio.timeout(idle):
                message = await self.socket.receive()
        except TimeoutError:
            raise Refusal(408, f"no message came for {idle:g} s", "idle") from None
        if message["type"] == "websocket.disconnect":
            raise Gone(message.get("code") or 1005)
        await asyncio.sleep(self.account.messages.spend())
        text: str | None = message.get("text")
        data: bytes = message.get("bytes") or b""
        return data if text is None else text

    def allow_large_messages(self) -> None:
        """Lift the limit of the first message, for a client that has a seat."""
        allow_large_messages(self.socket.scope)

    async def pace_command(self) -> None:
        """Wait until the budget of commands of this socket covers one more."""
        await asyncio.sleep(self._commands.spend())

    async def send(self, message: Mapping[str, object] | bytes) -> None:
        """Send a JSON message, or audio as a binary one.

        Raises Gone if the client does not read it within the idle time.
        """
        try:
            async with asyncio.timeout(self.service.settings.idle_seconds):
                if isinstance(message, bytes):
                    await self.socket.send_bytes(message)
                else:
                    await self.socket.send_text(json.dumps(message))
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError) as error:
            raise Gone(1006) from error

    async def close(self, code: int, reason: str = "") -> None:
        """Close the socket; a client that is gone already is no error."""
        short = reason.encode()[:LONGEST_REASON_BYTES].decode(errors="ignore")
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.socket.close(code, short)

    def final_requested(self) -> None:
        """Start the clock of the time to the final text."""
        self._awaited.append(time.monotonic())

    def final_sent(self) -> None:
        """Record the time to the final text that was requested first."""
        if self._awaited and self.lease is not None:
            spent = time.monotonic() - self._awaited.popleft()
            self.service.metrics.final_after(self.dialect, self.lease, spent)


@asynccontextmanager
async def client(
    socket: WebSocket,
    dialect: str,
    *,
    headers: Mapping[str, str] | None = None,
    error_message: Callable[[Refusal], JsonObject] | None = None,
) -> AsyncIterator[Client]:
    """Accept a socket, and close it with the code that fits its outcome.

    The block must `admit` the client first. Refusals and errors of the package become close codes,
    after the `error_message` of a dialect that has one; an unexpected exception is logged and
    becomes 1011.
    """
    service: Service = socket.app.state.service
    raw = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
    await socket.accept(subprotocol_of(socket), headers=raw)
    one, outcome = Client(socket, service, dialect), "done"
    service.metrics.sockets.labels(dialect).inc()
    try:
        yield one
        await one.close(1000)
    except Gone as gone:
        outcome = "restarted" if gone.code == RESTARTING else "gone"
    except (Refusal, PianissimoError) as error:
        refusal = error if isinstance(error, Refusal) else refusal_for(error)
        outcome = refusal.code or refusal.kind
        if error_message is not None:
            with suppress(Gone):
                await one.send(error_message(refusal))
        await one.close(refusal.close_code, refusal.message)
    except Exception:
        log.exception("a socket of %s failed", dialect)
        outcome = "failed"
        await one.close(FAILED, "the server failed; see its log")
    finally:
        service.metrics.sockets.labels(dialect).dec()
        service.metrics.requests.labels(dialect, outcome).inc()


@asynccontextmanager
async def seat(service: Service, dialect: str, account: Account) -> AsyncIterator[None]:
    """A seat for as long as the block lasts.

    Raises what `Service.acquire_seat` does, and Refusal while the server drains.
    """
    service.check_open(dialect)
    service.acquire_seat(dialect, account)
    try:
        yield
    finally:
        service.release_seat(account)


async def until_first(*jobs: Coroutine[object, object, None]) -> None:
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
        # The traceback keeps this frame: without the cycle all of the socket is freed at once.
        del tasks, done, task


async def parse_message(text: str | bytes, largest_bytes: int = SMALL_TEXT_BYTES) -> JsonObject:
    """A message of a client as a JSON object; raises Refusal. Large ones are parsed in a thread."""
    if len(text) > largest_bytes:
        raise Refusal(
            413,
            f"a JSON message may have at most {largest_bytes >> 10} KiB here, not "
            f"{len(text) >> 10}; audio goes into binary messages",
            "message_too_large",
        )
    if len(text) <= SMALL_TEXT_BYTES:
        return parse_object(text)
    return await asyncio.to_thread(parse_object, text)
