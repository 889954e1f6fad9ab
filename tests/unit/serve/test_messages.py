"""Messages of clients: JSON, typed fields, and errors that name the valid values."""

import json

import pytest

from pianissimo.serve.dialects.messages import (
    SMALL_TEXT_BYTES,
    check_keys,
    nearest_first,
    parse_object,
    unknown_type,
    whole_field,
)
from pianissimo.serve.dialects.openai_realtime.session import unknown_session_keys
from pianissimo.serve.errors import Refusal


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 100_000])
def test_other_values_than_objects_are_refused(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_object(text)
    assert refused.value.status in (400, 413)


def test_large_messages_hold_long_strings_only() -> None:
    audio = {"type": "append", "audio": "A" * (4 << 20)}
    assert parse_object(json.dumps(audio)) == audio
    many = json.dumps({"x": [1] * SMALL_TEXT_BYTES})
    for text in (many, many.encode()):
        with pytest.raises(Refusal, match="thousands of values"):
            parse_object(text)


def test_an_unknown_key_is_refused_with_the_nearest_valid_one_first() -> None:
    with pytest.raises(Refusal, match=r"no key 'sample_rat'; valid keys: sample_rate, ") as refused:
        check_keys({"sample_rat": 1}, ("type", "sample_rate", "channels"), "the message start")
    assert refused.value.code == "unknown_key" and refused.value.param == "sample_rat"


def test_an_unknown_type_is_refused_with_the_nearest_valid_one_first() -> None:
    refusal = unknown_type("finalze", ("finish", "finalize", "ack"))
    assert refusal.message == "unknown message type 'finalze'; valid types: finalize, finish, ack"
    assert "has no type" in unknown_type(None, ("ack",)).message
    assert len(unknown_type("x" * 1_000_000, ("ack",)).message) < 200


def test_nearest_names_ignore_case() -> None:
    assert nearest_first("FINISH", ("ack", "finish"))[0] == "finish"


def test_whole_numbers_have_a_least_value() -> None:
    assert whole_field({"n": 3}, "n", 1, 1) == 3 and whole_field({}, "n", 1, 1) == 1
    for value in (0, True, 2.0, "3", None):
        with pytest.raises(Refusal, match="at least 1"):
            whole_field({"n": value}, "n", 1, 1)


def test_unknown_keys_of_a_session_are_found_at_every_level() -> None:
    given = {
        "type": "transcription",
        "instructions": "documented, and without meaning here",
        "colour": 1,
        "audio": {"input": {"transcription": {"langage": "en"}, "turn_detection": None}},
    }
    found = dict(unknown_session_keys(given))
    assert set(found) == {"session.colour", "session.audio.input.transcription.langage"}
    assert found["session.audio.input.transcription.langage"][0] == "language"
    assert dict(unknown_session_keys("no object")) == {}
