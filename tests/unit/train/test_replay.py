"""Older data between the new: how much of it, and which."""

import itertools
import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from pianissimo.errors import OptionError
from pianissimo.train.data import Example, Replay


@dataclass(frozen=True)
class Numbered:
    """Items of these lengths whose transcripts are their names."""

    name: str
    lengths: tuple[float, ...]

    def durations(self) -> list[float]:
        return list(self.lengths)

    def example(self, item: int, rng: random.Random) -> Example:
        return np.zeros(round(100 * self.lengths[item]), np.float32), f"{self.name} {item}"


def lengths(count: int, seed: int) -> tuple[float, ...]:
    rng = random.Random(seed)
    return tuple(rng.uniform(1.0, 12.0) for _ in range(count))


def drawn(mix: Replay, epochs: int) -> list[list[str]]:
    items = range(len(mix.durations()))
    return [
        [mix.example(i, random.Random(f"{epoch}-{i}"))[1] for i in items] for epoch in range(epochs)
    ]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("old_count", [7, 40, 900])
def test_older_items_make_up_their_share_of_the_seconds(share: float, old_count: int) -> None:
    new, old = Numbered("new", lengths(60, 1)), Numbered("old", lengths(old_count, 2))
    mix = Replay(new, old, share)
    known = {f"{part.name} {i}": s for part in (new, old) for i, s in enumerate(part.lengths)}
    for names in drawn(mix, 5):
        seconds = [known[name] for name in names]
        older = sum(s for s, name in zip(seconds, names, strict=True) if name.startswith("old"))
        assert older / sum(seconds) == pytest.approx(share, abs=0.06)
        assert Counter(n for n in names if n.startswith("new")) == {
            f"new {i}": 1 for i in range(60)
        }


def test_no_item_is_longer_than_its_place_says() -> None:
    mix = Replay(Numbered("new", lengths(20, 1)), Numbered("old", lengths(200, 2)), 0.4)
    for i, seconds in enumerate(mix.durations()):
        for draw in range(20):
            samples, _ = mix.example(i, random.Random(draw))
            assert len(samples) <= round(100 * seconds)


def test_every_older_item_is_drawn_over_the_epochs() -> None:
    old = Numbered("old", lengths(50, 2))
    mix = Replay(Numbered("new", lengths(20, 1)), old, 0.3)
    epochs = drawn(mix, 60)
    heard = {name for names in epochs for name in names if name.startswith("old")}
    assert heard == {f"old {i}" for i in range(50)}
    assert any(a != b for a, b in itertools.pairwise(epochs))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_a_share_is_between_nothing_and_everything(share: float) -> None:
    with pytest.raises(OptionError, match="share"):
        Replay(Numbered("new", (1.0,)), Numbered("old", (1.0,)), share)
