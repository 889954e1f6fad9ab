"""Which rows of the arena are taken: a free list."""

import heapq

from pianissimo.errors import EngineFullError


class Slots:
    """Hands out the numbers 0..count - 1, the lowest free one first, so that rows lie together."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))
        self._taken: set[int] = set()

    @property
    def taken(self) -> int:
        return len(self._taken)

    def take(self) -> int:
        """A free slot; raises EngineFullError if there is none."""
        if not self._free:
            raise EngineFullError(
                f"all {self.count} streams are in use; close one, try later, or give the engine "
                "a larger max_streams"
            )
        slot = heapq.heappop(self._free)
        self._taken.add(slot)
        return slot

    def give_back(self, slot: int) -> None:
        """Free a slot that was taken."""
        self._taken.remove(slot)
        heapq.heappush(self._free, slot)
