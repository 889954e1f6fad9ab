"""Arms of experiments: shares follow the weights, and assignments are stable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pianissimo.errors import OptionError
from pianissimo.serve.versions.experiments import Caller, Experiment
from pianissimo.serve.versions.store import ShadowRule

CALLERS = [Caller(f"session {i}", key=f"key {i % 7}", user=f"user {i % 300}") for i in range(3000)]


def arms(weights: dict[str, float], by: str = "session") -> list[str]:
    split = Experiment(weights, by)  # type: ignore[arg-type]
    return [split.arm("x", caller) for caller in CALLERS]


def test_as_many_as_the_weights_say() -> None:
    found = arms({"a": 3, "b": 1, "c": 0})
    assert found == arms({"c": 0, "b": 1, "a": 3})
    assert found.count("c") == 0
    assert 0.22 < found.count("b") / len(found) < 0.28


def test_only_necessary_callers_change_their_arm() -> None:
    before, after = arms({"a": 2, "b": 1, "c": 1}), arms({"a": 2, "b": 1, "c": 3})
    moved = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert moved and {other for _, other in moved} == {"c"}


@given(st.text(), st.dictionaries(st.text(), st.floats(0.0, 1e9), min_size=1))
def test_anything_has_an_arm_and_keeps_it(who: str, weights: dict[str, float]) -> None:
    weights["one"] = 1.0
    split = Experiment(weights)
    arm = split.arm("x", Caller(who))
    assert weights[arm] > 0 and arm == split.arm("x", Caller(who))


def test_whose_model_stays_the_same() -> None:
    for by, count in (("user", 300), ("key", 7), ("session", 3000)):
        found = arms({"a": 1, "b": 1}, by)
        of: dict[str, set[str]] = {}
        for caller, arm in zip(CALLERS, found, strict=True):
            of.setdefault(getattr(caller, by), set()).add(arm)
        assert len(of) == count and all(len(each) == 1 for each in of.values())
    anonymous = Experiment({"a": 1, "b": 1}, "user")
    assert len({anonymous.arm("x", Caller(str(i))) for i in range(50)}) == 2
    names = {Experiment({"a": 1, "b": 1}).arm(f"x{i}", Caller("s")) for i in range(50)}
    assert len(names) == 2, "who is in an arm of one experiment says nothing about another one"


def test_what_makes_no_sense_is_refused() -> None:
    nan, infinity, huge = float("nan"), float("inf"), 10**400
    for weights in ({}, {"a": 0}, {"a": -1, "b": 2}, {"a": nan}, {"a": infinity}, {"a": huge}):
        with pytest.raises(OptionError):
            Experiment(weights)
    with pytest.raises(OptionError):
        Experiment({"a": 1}, "weather")  # type: ignore[arg-type]
    for wrong in ({"share": 0.0}, {"share": 1.5}, {"of": "a"}):
        with pytest.raises(OptionError):
            ShadowRule("a", **wrong)  # type: ignore[arg-type]
