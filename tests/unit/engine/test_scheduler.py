import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pianissimo.engine.scheduler import Group, Scheduler

FAST, SLOW, TAIL = Group(0), Group(13), Group(0, tail=True)


def scheduler(largest_batch: int = 8, largest_frames: int = 1000) -> Scheduler:
    return Scheduler(largest_batch, largest_frames)


def test_the_most_urgent_decides_which_group_steps() -> None:
    queue = scheduler()
    queue.add("slow", SLOW, 3.0)
    queue.add("fast", FAST, 2.0)
    queue.add("other", FAST, 9.0)
    queue.add("tail", TAIL, 1.0)
    batches = [queue.next_batch() for _ in range(4)]
    assert [(b.group, b.members) for b in batches[:3] if b] == [
        (TAIL, ("tail",)),
        (FAST, ("fast", "other")),
        (SLOW, ("slow",)),
    ]
    assert batches[3] is None
    assert len(queue) == 0


def test_equal_deadlines_keep_their_order() -> None:
    queue = scheduler(largest_batch=2)
    for name in "abcd":
        queue.add(name, FAST, 1.0)
    assert [queue.next_batch().members for _ in range(2)] == [("a", "b"), ("c", "d")]


def test_a_stream_is_queued_once() -> None:
    queue = scheduler()
    queue.add("a", FAST, 5.0)
    queue.add("a", FAST, 1.0)
    queue.add("b", FAST, 2.0)
    assert queue.next_batch().members == ("b", "a")
    assert queue.next_batch() is None


def test_a_removed_stream_is_not_served_and_may_return() -> None:
    queue = scheduler()
    queue.add("a", FAST, 1.0)
    queue.add("b", FAST, 2.0)
    queue.remove("a")
    queue.remove("unknown")
    assert len(queue) == 1
    queue.add("a", SLOW, 3.0)
    assert queue.next_batch().members == ("b",)
    assert queue.next_batch().members == ("a",)


@pytest.mark.parametrize(
    ("batch", "frames", "expected"), [(3, 1000, 3), (64, 28, 2), (64, 5, 1), (64, 56, 4)]
)
def test_steps_are_bounded_in_streams_and_in_frames(batch: int, frames: int, expected: int) -> None:
    queue = Scheduler(batch, frames)
    for i in range(10):
        queue.add(i, SLOW, float(i))
    assert queue.next_batch().members == tuple(range(expected))


def test_a_stream_with_much_audio_does_not_hold_up_the_others() -> None:
    """It always has work, but after each turn it queues behind those who waited meanwhile."""
    queue = scheduler(largest_batch=1)
    served = []
    queue.add("greedy", FAST, 0.08)
    for now in range(1, 40):
        if now % 3 == 0:
            queue.add(f"other {now}", FAST, now + 0.08)
        batch = queue.next_batch()
        if batch is None:
            continue
        served.append(batch.members[0])
        if batch.members == ("greedy",):
            queue.add("greedy", FAST, now + 1 + 0.08)
    for a, b in itertools.pairwise(served):
        assert not a.startswith("other") or b == "greedy"
    assert sum(name.startswith("other") for name in served) >= 12


@given(st.integers(0, 10_000))
def test_everyone_added_is_served_exactly_once(seed: int) -> None:
    rng = random.Random(seed)
    queue = Scheduler(rng.randint(1, 5), rng.randint(1, 40))
    waiting: set[int] = set()
    served: list[int] = []
    for member in range(60):
        action = rng.random()
        if action < 0.6:
            queue.add(member, rng.choice([FAST, SLOW, TAIL]), rng.random())
            waiting.add(member)
        elif action < 0.7 and waiting:
            gone = rng.choice(sorted(waiting))
            queue.remove(gone)
            waiting.discard(gone)
        elif batch := queue.next_batch():
            assert batch.members
            served += batch.members
            waiting -= set(batch.members)
        assert len(queue) == len(waiting)
    while batch := queue.next_batch():
        served += batch.members
        waiting -= set(batch.members)
    assert not waiting
    assert len(served) == len(set(served))
