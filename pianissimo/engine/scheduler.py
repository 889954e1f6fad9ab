"""Who steps next: earliest deadline first among the streams that have something to do.

A stream is in the queue at most once, for its oldest piece of work. Having been served it queues
anew, with a deadline counted from then: a stream that arrives with a minute of audio gets its turn
between the others and not before them. Knows nothing of audio or tensors.
"""

import heapq
import itertools
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Work that can share a step: chunks, or tails, of one latency mode.

    Streams that boost phrases keep to themselves where graphs, which they cannot use, serve others.
    """

    lookahead: int
    tail: bool = False
    apart: bool = False


@dataclass(frozen=True)
class Batch:
    """The members of one step, the most urgent first."""

    group: Group
    members: tuple[Hashable, ...]


class Scheduler:
    """Queues per group; a batch is taken from the one whose first member is most urgent.

    `largest_batch` bounds the streams of a step, `largest_frames` its encoder frames. Both bound
    how long a stream of another latency mode can be kept waiting.
    """

    def __init__(self, largest_batch: int, largest_frames: int) -> None:
        self.largest_batch, self.largest_frames = largest_batch, largest_frames
        self._queues: dict[Group, list[tuple[float, int, Hashable]]] = {}
        self._waiting: dict[Hashable, int] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, member: Hashable, group: Group, deadline: float) -> None:
        """Queue a stream, unless it is queued already."""
        if member in self._waiting:
            return
        number = next(self._numbers)
        self._waiting[member] = number
        heapq.heappush(self._queues.setdefault(group, []), (deadline, number, member))

    def remove(self, member: Hashable) -> None:
        """Forget a stream; nothing happens if it is not queued."""
        self._waiting.pop(member, None)

    def next_batch(self) -> Batch | None:
        """Take the next step's members out of the queue; None when nobody waits."""
        urgent: tuple[float, int, Group] | None = None
        for group, queue in self._queues.items():
            self._drop_removed(queue)
            if queue and (urgent is None or queue[0][:2] < urgent[:2]):
                urgent = (*queue[0][:2], group)
        if urgent is None:
            return None
        group = urgent[2]
        queue = self._queues[group]
        members: list[Hashable] = []
        most = max(1, min(self.largest_batch, self.largest_frames // (group.lookahead + 1)))
        while queue and len(members) < most:
            _, number, member = heapq.heappop(queue)
            if self._waiting.get(member) == number:
                del self._waiting[member]
                members.append(member)
        return Batch(group, tuple(members))

    def _drop_removed(self, queue: list[tuple[float, int, Hashable]]) -> None:
        while queue and self._waiting.get(queue[0][2]) != queue[0][1]:
            heapq.heappop(queue)
