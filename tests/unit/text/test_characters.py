import pytest

from pianissimo.errors import OptionError
from pianissimo.text.characters import Alphabet, Run
from pianissimo.text.words import MAX_WORD_TOKENS

LETTERS = Alphabet(("", " ", "A", "B", "", "SH"), blank=0)
FRAME = 0.02


def runs(*parts: tuple[int, int, int, float]) -> list[Run]:
    return [Run(*part) for part in parts]


def test_words_end_at_spaces_and_span_their_letters() -> None:
    path = runs((2, 3, 5, 0.9), (3, 7, 8, 0.6), (1, 10, 12, 0.99), (5, 20, 24, 0.7))
    first, second = LETTERS.words(path, FRAME)
    assert (first.text, first.start, first.end, first.confidence) == ("AB", 0.06, 0.16, 0.6)
    assert (second.text, second.start, second.end, second.confidence) == ("SH", 0.4, 0.48, 0.7)


def test_spaces_alone_and_silent_symbols_leave_nothing() -> None:
    assert LETTERS.words(runs((1, 0, 1, 0.5), (4, 2, 3, 0.5), (1, 4, 5, 0.5)), FRAME) == ()
    [word] = LETTERS.words(runs((2, 1, 2, 0.5), (4, 3, 4, 0.1), (3, 5, 6, 0.4)), FRAME)
    assert (word.text, word.confidence) == ("AB", 0.4)


def test_capitals_become_small_where_the_model_asks() -> None:
    small = Alphabet(LETTERS.symbols, blank=0, lower_case=True)
    [word] = small.words(runs((2, 0, 1, 1.0), (5, 2, 3, 1.0)), FRAME)
    assert word.text == "ash"


def test_times_stay_inside_the_recording() -> None:
    [word] = LETTERS.words(runs((2, 3, 5, 0.9)), FRAME, duration=0.09)
    assert (word.start, word.end) == (0.06, 0.09)


def test_a_word_without_end_is_cut() -> None:
    path = [Run(2, 2 * i, 2 * i + 1, 0.5) for i in range(2 * MAX_WORD_TOKENS + 1)]
    assert [len(w.text) for w in LETTERS.words(path, FRAME)] == [MAX_WORD_TOKENS] * 2 + [1]


def test_the_blank_is_one_of_the_symbols() -> None:
    with pytest.raises(OptionError, match="blank 3"):
        Alphabet(("a", "b", "c"), blank=3)
