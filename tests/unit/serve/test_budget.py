"""Token buckets of messages, and the frames of one connection."""

from types import SimpleNamespace

import pytest

from pianissimo.serve.access import budget
from pianissimo.serve.access.budget import Budget


def test_a_budget_refills_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    # Only this module's clock: servers of other tests run in other threads.
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now))
    tokens = Budget(per_second=10.0, burst=5.0)
    assert [tokens.spend() for _ in range(5)] == [0.0] * 5
    assert tokens.spend() == pytest.approx(0.1)
    assert tokens.spend() == pytest.approx(0.2)
    now += 0.2
    assert tokens.spend() == pytest.approx(0.1)
    now += 60.0
    assert [tokens.spend() for _ in range(5)] == [0.0] * 5, "no more than the burst is saved"
    assert tokens.spend() > 0
