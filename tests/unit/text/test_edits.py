"""Which edits of a language model may stand."""

import pytest

from pianissimo.text.edits import Edit, accepted_edits, with_edits
from pianissimo.text.words import Word

SPOKEN = (
    "we met miss knight at the weather station and she did not see the eight whales there".split()
)
UNSURE = {"knight": 0.4, "weather": 0.5, "eight": 0.3, "not": 0.3, "whales": 0.5, "see": 0.6}


def words(*texts: str, confidence: float | None = 0.95) -> list[Word]:
    return [
        Word(text, i * 0.5, i * 0.5 + 0.4, UNSURE.get(text, confidence))
        for i, text in enumerate(texts or SPOKEN)
    ]


def edit(old: str, new: str) -> Edit:
    first = " ".join(SPOKEN).split(old)[0].count(" ")
    return Edit(first, first + old.count(" "), new)


def test_an_unsure_word_may_become_one_that_sounds_alike() -> None:
    found = accepted_edits(words(), [edit("knight", "Night")])
    assert found == (Edit(3, 3, "Night"),)
    edited = with_edits(words(), found)
    assert [word.text for word in edited] == [*SPOKEN[:3], "Night", *SPOKEN[4:]]
    assert [(w.start, w.end, w.confidence) for w in edited] == [
        (w.start, w.end, w.confidence) for w in words()
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("station", "nation"),  # the recognizer was sure
        ("knight", "Johnson"),  # sounds different
        ("knight", "knight of the round table in england"),  # too long
        ("knight", ""),
        ("knight", "n\x00ight"),
        ("knight at the weather station", "night at the whether station"),  # five words
        ("eight", "ate"),  # a number
        ("eight", "8"),
        ("not", "knot"),  # a negation
        ("see", "see no"),
        ("met", "won't"),
    ],
)
def test_edits_that_must_not_stand(old: str, new: str) -> None:
    assert accepted_edits(words(), [edit(old, new)]) == ()


def test_capitals_and_marks_need_no_unsure_word() -> None:
    proposed = [edit("we", "We"), edit("miss", "Miss"), edit("there", "there.")]
    assert accepted_edits(words(), proposed) == tuple(proposed)
    assert accepted_edits(words("it", "was", "3.5"), [Edit(2, 2, "35")]) == ()
    assert accepted_edits(words("they", "can't"), [Edit(1, 1, "cant")]) == ()


def test_a_hotword_needs_no_unsure_word() -> None:
    spoken = words("ask", "peter", "norvik", "about", "it")
    proposed = [Edit(1, 2, "Peter Norvig")]
    assert accepted_edits(spoken, proposed) == ()
    assert accepted_edits(spoken, proposed, {"peter norvig"}) == ()  # two of five words
    assert accepted_edits(spoken * 4, proposed, {"peter norvig"}) == tuple(proposed)


def test_a_rewritten_text_keeps_none_of_its_edits() -> None:
    proposed = [edit("knight", "night"), edit("weather", "whether"), edit("whales", "wales")]
    for one in proposed:
        assert accepted_edits(words(), [one]) == (one,)
    assert accepted_edits(words(), proposed) == ()


@pytest.mark.parametrize("place", [(-1, 2), (16, 17), (17, 17), (4, 3), (10**9, 10**9)])
def test_edits_outside_the_text_are_dropped(place: tuple[int, int]) -> None:
    assert accepted_edits(words(), [Edit(*place, "There")]) == ()
    assert accepted_edits([], [Edit(0, 0, "There")]) == ()


def test_the_first_of_two_edits_of_a_word_stands() -> None:
    proposed = [Edit(3, 3, "night"), Edit(3, 4, "night at")]
    assert accepted_edits(words(), proposed) == (proposed[0],)


def test_no_edit_across_speakers_and_segments() -> None:
    proposed = [Edit(2, 3, "miss night")]
    assert accepted_edits(words() * 2, proposed, borders=[0, 3]) == ()
    assert accepted_edits(words() * 2, proposed, borders=[0, 2]) == tuple(proposed)
    spoken = [*words()[:3], *(Word(w.text, w.start, w.end, 0.3, "B") for w in words()[3:])]
    assert accepted_edits(spoken, proposed) == ()


def test_another_count_of_words_gives_one_word_with_all_times() -> None:
    edited = with_edits(words(), [Edit(2, 3, "Misnight")])
    assert edited[2] == Word("Misnight", 1.0, 1.9, 0.4)
    assert len(edited) == len(SPOKEN) - 1
    part = with_edits(words()[3:6], [Edit(2, 3, "no"), Edit(3, 3, "Night"), Edit(6, 6, "no")], 3)
    assert [word.text for word in part] == ["Night", "at", "the"]
