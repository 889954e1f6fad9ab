"""DER, JER and cpWER against cases counted by hand."""

import math

import pytest

from pianissimo.errors import OptionError
from pianissimo.evaluate.diarization import (
    TurnErrors,
    attributed_word_errors,
    jaccard_error,
    turn_errors,
)
from pianissimo.evaluate.wer import ErrorCounts
from pianissimo.text.turns import Turn

REFERENCE = [Turn(0, 10, "A"), Turn(10, 16, "B")]


def rounded(errors: TurnErrors) -> tuple[float, float, float, float]:
    parts = (errors.missed, errors.false_alarm, errors.confused, errors.speech)
    return tuple(round(part, 9) for part in parts)  # type: ignore[return-value]


def test_other_names_are_no_errors() -> None:
    found = [Turn(0, 10, "1"), Turn(10, 16, "0")]
    assert rounded(turn_errors(REFERENCE, found)) == (0, 0, 0, 16)
    assert jaccard_error(REFERENCE, found) == 0


def test_missed_false_and_confused_time_by_hand() -> None:
    # 2 s of A are missed, 3 s of B are taken for A, and 1 s after the end is no speech.
    found = [Turn(2, 13, "x"), Turn(13, 17, "y")]
    assert rounded(turn_errors(REFERENCE, found)) == (2, 1, 3, 16)
    assert turn_errors(REFERENCE, found).rate == pytest.approx(6 / 16)
    # A: 8 s of 13 s that either covers; B: 3 s of 7 s.
    assert jaccard_error(REFERENCE, found) == pytest.approx(((1 - 8 / 13) + (1 - 3 / 7)) / 2)


def test_overlap_counts_for_both_speakers() -> None:
    reference = [Turn(0, 4, "A"), Turn(2, 6, "B")]
    assert rounded(turn_errors(reference, [Turn(0, 6, "x")])) == (2, 0, 2, 8)
    both = [Turn(0, 4, "x"), Turn(2, 6, "y")]
    assert rounded(turn_errors(reference, both)) == (0, 0, 0, 8)


def test_two_turns_of_one_speaker_at_once_count_once() -> None:
    assert rounded(turn_errors([Turn(0, 4, "A"), Turn(2, 6, "A")], [])) == (6, 0, 0, 6)


def test_a_collar_frees_both_sides_of_reference_edges() -> None:
    found = [Turn(0.2, 10.2, "x"), Turn(10.2, 16.5, "y")]
    errors = turn_errors(REFERENCE, found, collar=0.25)
    # 0.25 s after 0, 0.5 s around 10 and 0.25 s before 16 are free; so is 0.25 s after 16.
    assert rounded(errors) == (0, 0.25, 0, 15)
    with pytest.raises(OptionError, match="collar"):
        turn_errors(REFERENCE, found, collar=-1)


def test_nothing_said_and_nothing_found() -> None:
    assert turn_errors([], []).rate == 0
    assert turn_errors([], [Turn(0, 1, "x")]).rate == math.inf
    assert turn_errors(REFERENCE, []).rate == 1
    assert (jaccard_error([], []), jaccard_error([], REFERENCE)) == (0, 1)
    assert jaccard_error(REFERENCE, []) == 1


def test_errors_of_recordings_add_up() -> None:
    one, other = TurnErrors(1, 0, 1, 10), TurnErrors(0, 2, 0, 30)
    assert (one + other).rate == pytest.approx(0.1)


def test_words_of_a_wrong_speaker_are_errors() -> None:
    reference = {"A": "good morning to you", "B": "hello"}
    right = {"1": "hello", "0": "good morning to you"}
    assert attributed_word_errors(reference, right) == ErrorCounts(words=5)
    # "to you" went to the other speaker: two deletions there and two insertions here.
    wrong = {"0": "good morning", "1": "hello to you"}
    assert attributed_word_errors(reference, wrong) == ErrorCounts(0, 2, 2, 5)
    assert attributed_word_errors(reference, {"0": "good morning to you"}).errors == 1
    assert attributed_word_errors(reference, {**right, "2": "uh"}).errors == 1
    assert attributed_word_errors({}, {}).words == 0
