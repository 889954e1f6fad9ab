"""Metrics that are computed on request."""

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clock import Clock
from tiny import noise

from pianissimo.engine import base as engine_base
from pianissimo.engine import engine as engine_module
from pianissimo.engine.base import Answered
from pianissimo.serve import metrics
from pianissimo.serve.metrics import Metrics
from pianissimo.serve.settings import Settings
from pianissimo.serve.versions.store import Store, read_all

SOON = 60.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    monkeypatch.setattr(engine_module, "time", clock)
    monkeypatch.setattr(engine_base, "time", clock)
    return clock


@pytest.fixture
def store(clock: Clock, tiny_model_folder: Path) -> Iterator[Store]:
    settings = Settings(models=(f"en={tiny_model_folder}",), device="cpu", max_streams=2)
    store = Store(settings, read_all(settings), 2)
    yield store
    asyncio.run(store.close())


def numbers(store: Store, name: str) -> dict[str, float]:
    """What the page says of a metric, by its labels."""
    page = Metrics(store, ()).text().decode()
    found = re.findall(rf"^pianissimo_engine_{name}{{(.*)}} (\S+)$", page, re.M)
    return {labels: float(value) for labels, value in found}


def test_the_margin_is_what_the_last_minute_left(store: Store, clock: Clock) -> None:
    answered = store.models["en"].engine.stats.answered
    answered.clear()
    assert numbers(store, "realtime_margin") == {}, "who answered nothing has no margin"
    answered += [Answered(0.16, 9.0, clock.now - 61), Answered(0.16, 0.04, clock.now - 59)]
    answered += [Answered(0.16, 0.12, clock.now), Answered(0.08, 0.1, clock.now)]
    assert numbers(store, "realtime_margin") == {
        'latency_ms="160",model="en"': pytest.approx(1 - 0.16 / 0.32),
        'latency_ms="80",model="en"': pytest.approx(-0.25),
    }
    clock.now += 61
    assert numbers(store, "realtime_margin") == {}


def test_the_queue_is_as_old_as_its_oldest_chunk(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = store.models["en"].engine
    begun, gate, step = threading.Event(), threading.Event(), engine.runner.step

    def held(works: Any, grid: Any) -> Any:
        begun.set()
        assert gate.wait(SOON)
        return step(works, grid)

    with engine.open() as session:
        assert numbers(store, "queue_age_seconds") == {'model="en"': 0.0}
        monkeypatch.setattr(engine.runner, "step", held)
        session.push(noise(16_000))
        assert begun.wait(SOON)
        clock.now += 5
        assert numbers(store, "queue_age_seconds") == {'model="en"': 5.0}
        gate.set()
        session.finish()
        list(session)
    assert numbers(store, "queue_age_seconds") == {'model="en"': 0.0}
