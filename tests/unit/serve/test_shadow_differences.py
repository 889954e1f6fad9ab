"""How far two growing texts differ: the same as comparing them at the end, in bounded memory."""

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pianissimo.evaluate.wer import word_errors
from pianissimo.serve.versions.shadow import PATIENCE_WORDS, Differences, prefix_edits

texts = st.lists(st.sampled_from("abc"), max_size=7)


@given(texts, texts)
def test_the_nearest_beginning_is_found(reference: list[str], hypothesis: list[str]) -> None:
    all_edits = [
        word_errors(" ".join(reference), " ".join(hypothesis[:length])).errors
        for length in range(len(hypothesis) + 1)
    ]
    edits, length = prefix_edits(reference, hypothesis)
    assert edits == min(all_edits) == all_edits[length]
    assert all(other > edits for other in all_edits[length + 1 :])


def grown(first: list[str], second: list[str], whole: bool, seed: int) -> Differences:
    """Both texts told in pieces, the second one some 150 words later than the first."""
    draw, found = random.Random(seed), Differences()
    told = 0
    while first or second:
        count = draw.randint(1, 60)
        if first and (told < 150 or not second):
            found.first(" ".join(first[:count]))
            first, told = first[count:], told + count
        else:
            found.second(" ".join(second[:count]))
            second, told = second[count:], told - count
        found.settle()
        assert max(len(found._first), len(found._second)) < PATIENCE_WORDS
    found.finish(whole)
    return found


def test_a_long_talk_is_counted_as_if_at_its_end() -> None:
    rng = np.random.default_rng(3)
    first = [f"w{n}" for n in rng.integers(0, 500, 3000)]
    second = [w if rng.random() < 0.9 else "other" for w in first if rng.random() < 0.95]
    exact = word_errors(" ".join(first), " ".join(second)).errors
    for seed in range(5):
        found = grown(first, second, True, seed)
        assert found.words == 3000 and exact <= found.edits <= 1.05 * exact
        same = grown(first, first, True, seed)
        assert (same.words, same.edits) == (3000, 0)


def test_words_of_only_one_model_count_as_edits() -> None:
    words = ["word"] * 1000
    deaf = grown(words, [], True, 0)
    assert (deaf.words, deaf.edits) == (1000, 1000)
    alone = grown([], words, True, 0)
    assert (alone.words, alone.edits) == (0, 1000)


def test_what_the_first_one_did_not_come_to_hear_is_not_held_against_the_second() -> None:
    found = Differences()
    found.first("One, two")
    found.second("one two three four")
    found.finish(whole=False)
    assert (found.words, found.edits) == (2, 0)
    found.first("One, two")
    found.second("one two three four")
    found.finish(whole=True)
    assert (found.words, found.edits) == (4, 2)
