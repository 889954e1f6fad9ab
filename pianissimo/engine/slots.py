"""Which rows of the arena are in use: a free list."""

import heapq

from pianissimo.errors import EngineFullError


class Slots:
    """Assigns the numbers 0..count - 1, lowest free one first, so that used rows are adjacent."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))
        self._used: set[int] = set()

    @property
    def used(self) -> int:
        """How many slots are in use."""
        return len(self._used)

    def acquire(self) -> int:
        """A free slot; raises EngineFullError if there is none."""
        if not self._free:
            raise EngineFullError(
                f"all {self.count} streams are in use; close one, try later, or give the engine "
                "a larger max_streams"
            )
        slot = heapq.heappop(self._free)
        self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Free a slot that is in use."""
        self._used.remove(slot)
        heapq.heappush(self._free, slot)
