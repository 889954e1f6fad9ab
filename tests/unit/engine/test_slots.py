import pytest

from pianissimo.engine.slots import Slots
from pianissimo.errors import EngineFullError


def test_the_lowest_free_slot_comes_first() -> None:
    slots = Slots(4)
    assert [slots.take() for _ in range(3)] == [0, 1, 2]
    slots.give_back(1)
    slots.give_back(0)
    assert [slots.take() for _ in range(3)] == [0, 1, 3]
    assert slots.taken == 4


def test_a_full_arena_refuses_and_says_how_many() -> None:
    slots = Slots(1)
    slots.take()
    with pytest.raises(EngineFullError, match="all 1 streams"):
        slots.take()
    slots.give_back(0)
    assert slots.take() == 0


def test_a_slot_cannot_be_given_back_twice() -> None:
    slots = Slots(2)
    slots.give_back(slots.take())
    with pytest.raises(KeyError):
        slots.give_back(0)
