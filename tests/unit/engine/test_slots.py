import pytest

from pianissimo.engine.slots import Slots
from pianissimo.errors import EngineFullError


def test_the_lowest_free_slot_comes_first() -> None:
    slots = Slots(4)
    assert [slots.acquire() for _ in range(3)] == [0, 1, 2]
    slots.release(1)
    slots.release(0)
    assert [slots.acquire() for _ in range(3)] == [0, 1, 3]
    assert slots.used == 4


def test_a_full_arena_refuses_and_says_how_many() -> None:
    slots = Slots(1)
    slots.acquire()
    with pytest.raises(EngineFullError, match="all 1 streams"):
        slots.acquire()
    slots.release(0)
    assert slots.acquire() == 0


def test_a_slot_cannot_be_given_back_twice() -> None:
    slots = Slots(2)
    slots.release(slots.acquire())
    with pytest.raises(KeyError):
        slots.release(0)
