"""How many may be served at once: whoever comes when all seats are taken is told so at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pianissimo.errors import EngineFullError


class Seats:
    """Live streams that may be open; one per socket, from its first message to its last."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def take(self) -> None:
        """Raises EngineFullError when all are taken; each `take` is followed by a `leave`."""
        if self.taken >= self.most:
            raise EngineFullError(f"all {self.most} streams are in use; try again later")
        self.taken += 1

    def leave(self) -> None:
        self.taken -= 1


class Queue:
    """Recordings that are transcribed at once; as many again wait their turn, no more."""

    def __init__(self, most: int) -> None:
        self.most, self.waiting, self.taken = most, 0, 0
        self._places = asyncio.Semaphore(most)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place; raises EngineFullError when too many wait already."""
        if self._places.locked() and self.waiting >= self.most:
            raise EngineFullError(
                f"{self.most} recordings are being transcribed and {self.waiting} wait; "
                "try again later"
            )
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._places.release()
