"""The audio of all clients on its way into the engines: one call for all that arrived meanwhile."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pianissimo.streaming.session import Session

CALLS_AT_ONCE = 2
"""While one computes outside of Python's lock, the other has it; a third would only wait for it."""

Piece = npt.NDArray[np.int16] | npt.NDArray[np.float32]
_Waiting = tuple["Session", Piece, asyncio.Future[None]]


class Intake:
    """Pushes audio of many streams at once, which costs a fraction of pushing it stream by stream.

    Belongs to one event loop. While threads push, what arrives waits for the next call: batches
    grow with the load, and the audio of a single stream does not wait.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._waiting: list[_Waiting] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._running = 0

    async def push(self, session: "Session", piece: Piece) -> None:
        """As `session.push(piece, wait=False)`; call it again only after it has returned."""
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((session, piece, accepted))
        if self._running < CALLS_AT_ONCE:
            self._running += 1
            call = asyncio.create_task(self._push_waiting())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        await accepted

    async def _push_waiting(self) -> None:
        try:
            while self._waiting:
                await self._push_batch()
        finally:
            self._running -= 1

    async def _push_batch(self) -> None:
        batch, self._waiting = self._waiting, []
        results: Sequence[Exception | None]
        try:
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._threads, _push, batch)
        except Exception as error:  # not of one stream: every caller raises it
            results = [error] * len(batch)
        except asyncio.CancelledError:  # the server ends
            for _, _, accepted in [*batch, *self._waiting]:
                accepted.cancel()
            raise
        for (_, _, accepted), failure in zip(batch, results, strict=True):
            if accepted.done():  # its caller was cancelled
                continue
            if failure is None:
                accepted.set_result(None)
            else:
                accepted.set_exception(failure)


def _push(batch: Sequence[_Waiting]) -> Sequence[Exception | None]:
    from pianissimo.streaming.session import Session

    return Session.push_many([(session, piece) for session, piece, _ in batch])
