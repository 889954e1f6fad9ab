"""What can be spoken, and the error for what cannot."""

import pytest

from pianissimo.errors import (
    MarkupError,
    NothingToSayError,
    ScriptError,
    TextError,
    TextTooLongError,
)
from pianissimo.synthesis.text import MOST_CHARACTERS, prepare


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", NothingToSayError),
        (" \n\t", NothingToSayError),
        ("!!! ...", NothingToSayError),
        ("🙂🎉", NothingToSayError),
        ("\x00\u200b", NothingToSayError),
        ("你好", ScriptError),
        ("Hello 你好 friend", ScriptError),
        ("привет", ScriptError),
        ("αβγ", ScriptError),
        ("<speak>Hello</speak>", MarkupError),
        ('<?xml version="1.0"?><speak version="1.1">Hello</speak>', MarkupError),
        ("a" * (MOST_CHARACTERS + 1), TextTooLongError),
        ("a" * 100_000, TextTooLongError),
    ],
)
def test_unspeakable_text_is_refused(text: str, error: type[TextError]) -> None:
    with pytest.raises(error):
        prepare(text)


@pytest.mark.parametrize(
    "text",
    [
        "Hello.",
        "naïve café Ørsted",
        "5",
        "50 %",
        "&",
        "½ cup",
        "10²",
        "π is 3.14",
        "5 µm",
        "ｆｕｌｌ",
    ],
)
def test_plain_text_passes_unchanged(text: str) -> None:
    assert prepare(text) == text


def test_control_characters_are_dropped_and_long_numbers_are_spelled() -> None:
    assert prepare("he\x07llo\u200b there\nnow") == "hello there\nnow"
    assert prepare("call 123456789012345") == "call 123456789012345"
    assert prepare("1234567890123456.") == "1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6."
    assert prepare("id " + "1,234" * 4) == "id 1 2 3 4 1 2 3 4 1 2 3 4 1 2 3 4"


def test_a_voice_without_a_known_script_reads_all_letters() -> None:
    assert prepare("你好", script=None) == "你好"


def test_the_message_names_the_word_and_the_limit() -> None:
    with pytest.raises(ScriptError, match="'мир'"):
        prepare("hello мир")
    with pytest.raises(TextTooLongError, match=r"100000 characters, more than 50000"):
        prepare("a" * 100_000)
