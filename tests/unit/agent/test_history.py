"""The items of a conversation, and the messages that a language model gets."""

import pytest

from pianissimo.agent.history import MOST_ITEMS, History, Message, SpokenPiece, ToolCall, ToolResult


def spoken(*pieces: tuple[str, float], played: float | None = None) -> Message:
    text = " ".join(text for text, _ in pieces)
    message = Message("assistant", text, spoken=True, played_seconds=played)
    message.pieces = [SpokenPiece(text, seconds) for text, seconds in pieces]
    return message


@pytest.mark.parametrize(
    ("played", "heard"),
    [
        (None, "One two. Three four."),
        (9.0, "One two. Three four."),
        (2.0, "One two. —"),
        (1.0, "One —"),
        (3.0, "One two. Three —"),
        (0.2, ""),
        (0.0, ""),
    ],
)
def test_a_cut_answer_is_what_was_played(played: float | None, heard: str) -> None:
    assert spoken(("One two.", 2.0), ("Three four.", 2.0), played=played).played_text == heard


def test_what_a_role_says_in_a_row_is_one_message() -> None:
    history = History()
    for role, text in (("user", "turn it"), ("user", "off"), ("assistant", "Done.")):
        history.add(Message(role, text))
    history.add(Message("user", ""))  # a silence
    history.add(Message("assistant", "Anything else?"))
    assert history.messages("Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "turn it off"},
        {"role": "assistant", "content": "Done. Anything else?"},
    ]
    assert history.messages("")[0]["role"] == "user"


def test_calls_are_followed_by_their_results() -> None:
    history = History()
    history.add(Message("user", "both"))
    history.add(ToolCall("a", "look", "{}"))
    history.add(ToolCall("b", "look", "{}"))
    history.add(ToolResult("b", "2"))
    history.add(Message("user", "and?"))
    history.add(ToolResult("gone", "3"))
    messages = history.messages("")
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool", "user"]
    assert [m["content"] for m in messages[2:4]] == ["", "2"]
    calls = messages[1]["tool_calls"]
    assert isinstance(calls, list) and [call["id"] for call in calls] == ["a", "b"]


def test_long_conversations_lose_their_beginning() -> None:
    history = History()
    for number in range(100):
        history.add(Message("user" if number % 2 else "assistant", f"{number} " + "x" * 1000))
    kept = history.messages("s")
    assert kept[0]["role"] == "system" and 20 < len(kept) < 25
    assert str(kept[-1]["content"]).startswith("99 ")
    assert len(history.messages("s", trim=False)) == 101
    huge = History()
    huge.add(Message("user", "x" * 100_000))
    assert len(huge.messages("")) == 1


def test_items_are_inserted_and_removed() -> None:
    history = History()
    first, last, middle = (Message("user", text) for text in "abc")
    assert history.add(first) is None and history.add(last) == first.id
    assert history.add(middle, first.id) == first.id
    assert history.add(Message("user", "0"), "root") is None
    with pytest.raises(KeyError):
        history.add(Message("user", "x"), "nothing")
    history.remove(last.id)
    assert history.find(last.id) is None and history.last is middle
    for _ in range(MOST_ITEMS):
        history.add(Message("user", "x"))
    assert len(history.items) == MOST_ITEMS
