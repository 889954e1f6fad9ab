"""Language tags that a model writes among its tokens: reported, and no part of the text."""

import json

import pytest

from pianissimo.decoding.token import Hypothesis
from pianissimo.streaming.utterance import UtteranceText
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import StreamEvent

PIECES = [
    "<unk>",
    "<en-US>",
    "<zh-CN>",
    "<ar-AR>",
    "▁good",
    "▁morning",
    "你",
    "好",
    "▁صباح",
    "▁الخير",
]


@pytest.fixture
def tokenizer() -> Tokenizer:
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": {p: i for i, p in enumerate(PIECES)}}
    return Tokenizer.from_hf_json(json.dumps({"model": model}).encode())


def found(tokens: str, frame: int) -> Hypothesis:
    ids = [PIECES.index(piece) for piece in tokens.split()]
    count = len(ids)
    return Hypothesis(ids, list(range(frame, frame + count)), [-0.1] * count, [0.9] * count)


def final(text: UtteranceText, heard: float) -> StreamEvent:
    return text.close("endpoint", heard)


def test_a_tag_is_reported_and_not_written(tokenizer: Tokenizer) -> None:
    text = UtteranceText(tokenizer, 0.08)
    assert text.push(found("<en-US>", 0)) == []
    assert text.first is None and text.found.tokens == []  # no utterance begins with a tag
    (partial,) = text.push(found("▁good ▁morning", 3))
    assert (partial.text, partial.language, partial.start) == ("good morning", "en-US", 0.24)
    event = final(text, 1.0)
    assert (event.text, event.language) == ("good morning", "en-US")
    assert [word.text for word in event.words] == ["good", "morning"]


def test_the_language_changes_with_the_tags(tokenizer: Tokenizer) -> None:
    text = UtteranceText(tokenizer, 0.08)
    text.push(found("<en-US> ▁good ▁morning", 0))
    assert final(text, 1.0).language == "en-US"
    text.push(found("<zh-CN> 你 好", 20))
    event = final(text, 3.0)
    assert (event.text, event.language) == ("你好", "zh-CN")
    assert [word.text for word in event.words] == ["你", "好"]
    text.push(found("<ar-AR> ▁صباح ▁الخير", 50))
    assert final(text, 5.0).text == "صباح الخير"
    text.push(found("▁صباح", 80))  # the tag is written at a change only
    assert final(text, 7.0).language == "ar-AR"
    assert final(text, 8.0).language is None  # nothing was said


def test_pushing_in_parts_changes_nothing(tokenizer: Tokenizer) -> None:
    tokens = "<en-US> ▁good <zh-CN> 你 好 <en-US> ▁morning"
    whole, parts = UtteranceText(tokenizer, 0.08), UtteranceText(tokenizer, 0.08)
    whole.push(found(tokens, 0))
    for i, piece in enumerate(tokens.split()):
        parts.push(found(piece, i))
    event = final(whole, 1.0)
    assert event == final(parts, 1.0)
    assert "<" not in event.text and event.language == "en-US"


def test_a_requested_language_holds_until_a_tag_tells_another(tokenizer: Tokenizer) -> None:
    text = UtteranceText(tokenizer, 0.08, language="de-DE")
    (partial,) = text.push(found("▁good", 0))
    assert partial.language == "de-DE"
    text.push(found("<en-US> ▁morning", 4))
    assert final(text, 1.0).language == "en-US"
