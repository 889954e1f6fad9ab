"""Client-facing capacity: seats of live streams, places of uploads and of recordings.

A seat belongs to one client connection. It says nothing about the slots inside an engine, which
hold state on the device.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from pianissimo.errors import EngineFullError


class Seats:
    """Counts the streams that clients have open; refuses more than `capacity`.

    Beside it there is a `reserve` of seats for streams that come from another server.
    """

    def __init__(self, capacity: int, name: str = "streams", reserve: int = 0) -> None:
        self.capacity, self.name, self.in_use, self.reserve = capacity, name, 0, reserve

    def has_free(self, *, reserved: bool = False) -> bool:
        """Whether a seat is free, one of the reserve included if `reserved`."""
        return self.in_use < self.capacity + (self.reserve if reserved else 0)

    def acquire(self, *, reserved: bool = False) -> None:
        """Raises EngineFullError if all seats are in use; call `release` once afterwards."""
        if not self.has_free(reserved=reserved):
            raise EngineFullError(f"all {self.capacity} {self.name} are in use; try again later")
        self.in_use += 1

    def release(self) -> None:
        self.in_use -= 1

    @contextmanager
    def seat(self) -> Iterator[None]:
        """A seat for as long as the block lasts; raises what `acquire` raises."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


class Queue:
    """Limits concurrent work to `capacity`; as many more requests may wait for a place.

    `what` is the work of the places in use, in the words of the error.
    """

    def __init__(self, capacity: int, what: str = "recordings are being transcribed") -> None:
        self.capacity, self.what, self.waiting, self.in_use = capacity, what, 0, 0
        self._places = asyncio.Semaphore(capacity)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place; raises EngineFullError if `capacity` requests wait already."""
        if self._places.locked() and self.waiting >= self.capacity:
            raise EngineFullError(
                f"{self.capacity} {self.what} and {self.waiting} wait; try again later"
            )
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1
            self._places.release()


class UploadPlaces:
    """Limits the uploads that lie on disk at once, from their first byte to their transcript."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.in_use = capacity, 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Raises EngineFullError, before anything is written, if all places are in use."""
        if self.in_use >= self.capacity:
            raise EngineFullError(f"{self.capacity} uploads are open; try again later")
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1
