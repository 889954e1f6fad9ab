"""Which streams step next: earliest deadline first among those that have work.

A stream is queued at most once, for its oldest piece of work. After each step it is queued again
with a deadline counted from that moment, so a stream that delivers a minute of audio at once shares
the device with the others. The scheduler knows neither audio nor tensors.
"""

import heapq
import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)


@dataclass(frozen=True)
class Group:
    """Work that can share a step: chunks, or tails, of one latency mode.

    `apart` separates streams with hotwords where the others run as CUDA graphs, which have none.
    """

    lookahead: int
    tail: bool = False
    apart: bool = False


@dataclass(frozen=True)
class Batch(Generic[Member]):
    """The members of one step, the most urgent first."""

    group: Group
    members: tuple[Member, ...]


class Scheduler(Generic[Member]):
    """One queue per group; a batch comes from the group whose first member is most urgent.

    `largest_batch` limits the streams of a step, `largest_frames` its encoder frames. Both limit
    how long a stream of another latency mode waits.
    """

    def __init__(self, largest_batch: int, largest_frames: int) -> None:
        self.largest_batch, self.largest_frames = largest_batch, largest_frames
        self._queues: dict[Group, list[tuple[float, int, Member]]] = {}
        self._waiting: dict[Member, int] = {}
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, member: Member, group: Group, deadline: float) -> None:
        """Queue a stream, unless it is queued already."""
        if member in self._waiting:
            return
        number = next(self._numbers)
        self._waiting[member] = number
        heapq.heappush(self._queues.setdefault(group, []), (deadline, number, member))

    def remove(self, member: Member) -> None:
        """Remove a stream from its queue; nothing happens if it is not queued."""
        self._waiting.pop(member, None)

    def next_batch(self) -> Batch[Member] | None:
        """Remove and return the members of the next step; None when no stream waits."""
        urgent: tuple[float, int, Group] | None = None
        for group, queue in self._queues.items():
            while queue and self._waiting.get(queue[0][2]) != queue[0][1]:  # was removed
                heapq.heappop(queue)
            if queue and (urgent is None or queue[0][:2] < urgent[:2]):
                urgent = (*queue[0][:2], group)
        if urgent is None:
            return None
        group = urgent[2]
        queue = self._queues[group]
        members: list[Member] = []
        most = max(1, min(self.largest_batch, self.largest_frames // (group.lookahead + 1)))
        while queue and len(members) < most:
            _, number, member = heapq.heappop(queue)
            if self._waiting.get(member) == number:
                del self._waiting[member]
                members.append(member)
        return Batch(group, tuple(members))
