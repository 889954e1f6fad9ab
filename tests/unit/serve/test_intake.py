"""The audio of all clients in few calls."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest

from pianissimo.errors import BacklogError
from pianissimo.serve.intake import CALLS_AT_ONCE, Intake
from pianissimo.streaming.session import Session

PIECE = np.zeros(160, np.int16)


class Calls:
    """Stands for `Session.push_many`: sessions are names, and calls wait until `go` is set."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go = threading.Event()
        self.broken = False

    def __call__(self, pushes: Sequence[tuple[Any, Any]]) -> list[Exception | None]:
        self.batches.append([name for name, _ in pushes])
        assert self.go.wait(30)
        if self.broken:
            raise RuntimeError("broken")
        return [BacklogError("full") if name == "full" else None for name, _ in pushes]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(Session, "push_many", staticmethod(calls))
    return calls


async def push_all(intake: Intake, names: Sequence[str]) -> list[asyncio.Task[None]]:
    """Pushes that have begun, in this order."""
    tasks = []
    for name in names:
        tasks.append(asyncio.create_task(intake.push(cast(Session, name), PIECE)))
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
    return tasks


def test_what_arrives_during_calls_shares_the_next_one(calls: Calls) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(4) as threads:
            intake = Intake(threads)
            names = [f"{i}" for i in range(CALLS_AT_ONCE + 5)]
            tasks = await push_all(intake, names)
            calls.go.set()
            await asyncio.gather(*tasks)
            first = [[name] for name in names[:CALLS_AT_ONCE]]
            assert calls.batches == [*first, names[CALLS_AT_ONCE:]]
            await intake.push(cast(Session, "later"), PIECE)  # nothing is stuck
            assert calls.batches[-1] == ["later"]

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_refusal_reaches_its_own_caller_only(calls: Calls) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(4) as threads:
            tasks = await push_all(Intake(threads), ["a", "b", "c", "full", "d"])
            tasks[4].cancel()  # a client that leaves takes nothing from the others
            calls.go.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[:3] == [None] * 3
            assert isinstance(results[3], BacklogError)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_call_that_breaks_is_raised_to_all_of_it_and_the_next_one_works(calls: Calls) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(4) as threads:
            intake = Intake(threads)
            calls.broken = True
            tasks = await push_all(intake, ["a", "b", "c", "d"])
            calls.go.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [RuntimeError] * 4
            calls.broken = False
            await intake.push(cast(Session, "a"), PIECE)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_the_end_of_the_threads_ends_the_pushes(calls: Calls) -> None:
    async def run() -> None:
        threads = ThreadPoolExecutor(1)
        tasks = await push_all(Intake(threads), ["runs", "queued", "waits"])
        threads.shutdown(wait=False, cancel_futures=True)
        calls.go.set()
        done, pending = await asyncio.wait(tasks, timeout=30)
        assert not pending and len(done) == 3

    asyncio.run(asyncio.wait_for(run(), 60))
