"""Written answers as they are spoken."""

import pytest

from pianissimo.agent.spoken import CODE_NOTICE, Spoken


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("It is **very** _nice_.", "It is very _nice_."),
        ("# A heading", "A heading"),
        ("- milk", "milk"),
        ("* milk", "milk"),
        ("> quoted", "quoted"),
        ("Use `ls` now.", "Use ls now."),
        ("See [the docs](https://example.com/a?b=c).", "See the docs."),
        ("See https://www.example.com/a/b.html now.", "See example.com now."),
        ("Great! 🎉👍🏽", "Great!"),
        ("---", ""),
        ("|---|---|", ""),
        ("2 * 3 is 6", "2 * 3 is 6"),
        ("snake_case stays", "snake_case stays"),
        ("<think>hm, so</think> Yes.", "Yes."),
        ("", ""),
    ],
)
def test_marks_are_not_spoken(written: str, said: str) -> None:
    assert Spoken().clean(written) == said


def test_code_is_named_once_and_left_out() -> None:
    spoken = Spoken()
    pieces = ["Here:", "```python", "print(1)", "```", "And:", "```", "x", "```", "Done."]
    said = [spoken.clean(piece) for piece in pieces]
    assert said == ["Here:", CODE_NOTICE, "", "", "And:", "", "", "", "Done."]


def test_thoughts_may_span_pieces() -> None:
    spoken = Spoken()
    assert [spoken.clean(p) for p in ("<think>so", "long", "much</think>Yes.")] == ["", "", "Yes."]
