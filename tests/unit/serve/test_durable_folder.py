"""The state folder: who may write, what is read, and what is left behind."""

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pianissimo.errors import StateError
from pianissimo.serve.durable.folder import Claim, ClaimLost, StateFolder

TOKEN = "replica-1.secret"


@pytest.fixture
def store(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "states")


def test_the_newest_state_is_read_and_the_older_ones_are_gone(store: StateFolder) -> None:
    claim = store.create(TOKEN, b"new")
    store.write(claim, 7, b"seven")
    store.write(claim, 12, b"twelve", sync=True)
    taken = store.take(TOKEN)
    assert taken is not None and taken == (Claim(TOKEN, 2), b"twelve")
    assert len([*store.root.glob("*/state-*")]) == 1
    assert not [*store.root.glob("*/*.tmp")]
    assert store.take("replica-1.other") is None


def test_a_server_that_lost_its_claim_writes_nothing(store: StateFolder) -> None:
    old = store.create(TOKEN, b"first")
    taken = store.take(TOKEN)
    assert taken is not None
    new, state = taken
    assert state == b"first" and store.holds(new) and not store.holds(old)
    for work in (lambda: store.write(old, 99, b"late"), lambda: store.touch(old)):
        with pytest.raises(ClaimLost):
            work()
    store.delete(old)
    last = store.take(TOKEN)
    assert last is not None and last[1] == b"first"


def test_a_state_written_while_the_claim_is_lost_is_taken_back(
    store: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is lost between the first check and the moment the state is in its place."""
    old = store.create(TOKEN, b"first")
    replace, taken = os.replace, []

    def slowly(source: Path, target: Path) -> None:
        taken.append(store.take(TOKEN))
        replace(source, target)

    monkeypatch.setattr(os, "replace", slowly)
    with pytest.raises(ClaimLost):
        store.write(old, 99, b"late")
    monkeypatch.undo()
    (first,) = taken
    assert first is not None and first[1] == b"first"
    again = store.take(TOKEN)
    assert again is not None and again[1] == b"first"


def test_only_one_of_many_gets_each_claim(store: StateFolder) -> None:
    store.create(TOKEN, b"state")
    taken: list[Claim] = []

    def take() -> None:
        found = store.take(TOKEN)
        if found is not None:
            taken.append(found[0])

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fences = [claim.fence for claim in taken]
    assert len(set(fences)) == len(fences) >= 1
    assert sum(map(store.holds, taken)) == 1 and store.holds(max(taken, key=lambda c: c.fence))


def test_a_stream_that_is_over_is_gone_for_everybody(store: StateFolder) -> None:
    claim = store.create(TOKEN, b"state")
    store.delete(claim)
    assert not [*store.root.iterdir()] and store.take(TOKEN) is None
    with pytest.raises(ClaimLost):
        store.write(claim, 1, b"late")
    assert not [*store.root.iterdir()]


def test_what_nobody_touches_expires(store: StateFolder) -> None:
    kept, lost = store.create(TOKEN, b"kept"), store.create("replica-1.lost", b"lost")
    for path in [*store.root.rglob("*")]:
        os.utime(path, (time.time() - 500,) * 2)
    store.touch(kept)
    store.delete_expired(300)
    assert store.holds(kept) and not store.holds(lost)
    store.delete_expired(300)
    assert store.take(TOKEN) is not None


@given(st.data())
def test_damaged_states_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = StateFolder(tmp_path_factory.mktemp("states"))
    store.create(TOKEN, b"a state of some bytes")
    (path,) = store.root.glob("*/state-*")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(StateError, match="damaged"):
        store.take(TOKEN)
