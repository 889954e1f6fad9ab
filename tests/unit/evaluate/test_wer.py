"""Error counts against jiwer and against a plain recursion."""

from functools import cache

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pianissimo.evaluate.wer import ErrorCounts, character_errors, word_errors
from pianissimo.text.normalize import normalize_for_scoring, separate_characters

sentences = st.lists(st.sampled_from(["a", "b", "cc", "ab"]), max_size=10).map(" ".join)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("", "", ErrorCounts()),
        ("a b c", "a b c", ErrorCounts(words=3)),
        ("a b c", "", ErrorCounts(deletions=3, words=3)),
        ("", "a b", ErrorCounts(insertions=2)),
        ("a b c d", "a x c d e", ErrorCounts(1, 0, 1, 4)),
        ("a b c d", "b c d", ErrorCounts(0, 1, 0, 4)),
        ("a b", "b c", ErrorCounts(2, 0, 0, 2)),  # as few edits as one deletion, one insertion
        ("the\tcat \n sat", "the cat sat", ErrorCounts(words=3)),
    ],
)
def test_word_errors(reference: str, hypothesis: str, expected: ErrorCounts) -> None:
    assert word_errors(reference, hypothesis) == expected


def test_character_errors() -> None:
    assert character_errors("kitten", "sitting") == ErrorCounts(2, 0, 1, 6)
    assert character_errors("a  b ", " ab") == ErrorCounts(0, 1, 0, 3)


def test_counts_add_up_and_give_a_rate() -> None:
    total = sum([ErrorCounts(1, 2, 3, 10), ErrorCounts(0, 1, 0, 4)], ErrorCounts())
    assert total == ErrorCounts(1, 3, 3, 14)
    assert total.errors == 7
    assert total.rate == 0.5
    assert ErrorCounts().rate == 0.0
    assert ErrorCounts(insertions=1).rate == float("inf")


@given(sentences.filter(bool), sentences)
def test_jiwer_counts_as_many(reference: str, hypothesis: str) -> None:
    ours = word_errors(reference, hypothesis)
    theirs = jiwer.process_words(reference, hypothesis)
    assert ours.rate == pytest.approx(theirs.wer)
    assert ours.errors == theirs.substitutions + theirs.deletions + theirs.insertions
    assert ours.words == theirs.hits + theirs.substitutions + theirs.deletions
    assert character_errors(reference, hypothesis).rate == pytest.approx(
        jiwer.cer(reference, hypothesis)
    )


@given(sentences, sentences)
def test_the_alignment_has_the_fewest_edits_and_then_the_fewest_gaps(
    reference: str, hypothesis: str
) -> None:
    ref, hyp = reference.split(), hypothesis.split()

    @cache
    def best(i: int, j: int) -> tuple[int, int, int, int, int]:
        """Edits, gaps, substitutions, deletions, insertions of ref[:i] against hyp[:j]."""
        if i == j == 0:
            return (0, 0, 0, 0, 0)
        options = []
        if i and j:
            edits, gaps, s, d, n = best(i - 1, j - 1)
            wrong = int(ref[i - 1] != hyp[j - 1])
            options.append((edits + wrong, gaps, s + wrong, d, n))
        if i:
            edits, gaps, s, d, n = best(i - 1, j)
            options.append((edits + 1, gaps + 1, s, d + 1, n))
        if j:
            edits, gaps, s, d, n = best(i, j - 1)
            options.append((edits + 1, gaps + 1, s, d, n + 1))
        return min(options)

    counts = best(len(ref), len(hyp))[2:]
    assert word_errors(reference, hypothesis) == ErrorCounts(*counts, words=len(ref))


def test_long_texts_are_quick() -> None:
    reference = "one two three four five six seven " * 400
    assert word_errors(reference, reference.replace("five", "5")).substitutions == 400


def test_spaces_in_scripts_without_spaces_count_for_nothing() -> None:
    def errors(reference: str, hypothesis: str) -> ErrorCounts:
        forms = [separate_characters(normalize_for_scoring(t)) for t in (reference, hypothesis)]
        return word_errors(*forms)

    assert errors("今天 天气很好。", "今天天气，很 好") == ErrorCounts(words=6)
    assert errors("今天天气很好", "今天天汽很好") == ErrorCounts(substitutions=1, words=6)
    assert errors("我用iPhone打电话", "我 用 iphone 打电话") == ErrorCounts(words=6)
    # Arabic and Korean have spaces; a letter with its marks is one unit in Thai.
    assert errors("مرحبا، كيف حالك؟", "مرحبا كيف حالك") == ErrorCounts(words=3)
    assert errors("안녕하세요 여러분", "안녕하세요 여러번").words == 2
    assert errors("สวัสดี", "สวัสดี").words == 4
