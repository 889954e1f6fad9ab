"""Shards: every recording belongs to exactly one, whatever else is in the archive."""

import random
from pathlib import Path

import pytest

from pianissimo.cli.shards import Shard
from pianissimo.errors import OptionError

PLACES = [Path(f"year/{i % 12}/talk {i}.wav") for i in range(1000)]


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_shards_are_disjoint_complete_and_of_about_equal_size(count: int) -> None:
    shards = [Shard.parse(f"{number}/{count}") for number in range(1, count + 1)]
    parts = [[place for place in PLACES if shard.has(place)] for shard in shards]
    assert sorted(place for part in parts for place in part) == sorted(PLACES)
    assert max(map(len, parts)) <= 1.5 * len(PLACES) / count


def test_neither_order_nor_new_recordings_move_one() -> None:
    shard = Shard.parse("2/3")
    before = {place for place in PLACES[:500] if shard.has(place)}
    more = list(PLACES)
    random.Random(1).shuffle(more)
    assert {place for place in more if shard.has(place)} & set(PLACES[:500]) == before


def test_names_that_are_no_text_belong_to_a_shard_too() -> None:
    place = Path("caf\udce9.wav")
    assert sum(Shard(number, 3).has(place) for number in (1, 2, 3)) == 1


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "a/b", "1/2/3", "-1/3", "1.0/3"])
def test_unusable_shards_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--shard must be I/N .* as in 3/16"):
        Shard.parse(text)


def test_a_shard_has_its_own_list_of_failures() -> None:
    assert Shard.parse("3/16").file_name("failed.jsonl") == "failed-3-of-16.jsonl"
