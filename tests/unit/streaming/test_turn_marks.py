"""Tokens for the end of a turn and for backchannels: reported, and no part of the text."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import noise

from pianissimo.decoding.token import Hypothesis
from pianissimo.models.asr import AsrModel
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.streaming.utterance import UtteranceText
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import StreamEvent

PIECES = ["<unk>", "▁stop", "▁it", "▁now", "<EOU>", "<EOB>"]


def tokenizer_of(pieces: list[str]) -> Tokenizer:
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": {p: i for i, p in enumerate(pieces)}}
    return Tokenizer.from_hf_json(json.dumps({"model": model}).encode())


@pytest.fixture
def text() -> UtteranceText:
    return UtteranceText(tokenizer_of(PIECES), 0.08)


def found(tokens: str, frame: int) -> Hypothesis:
    ids = [PIECES.index(piece) for piece in tokens.split()]
    count = len(ids)
    return Hypothesis(ids, list(range(frame, frame + count)), [-0.1] * count, [0.9] * count)


def test_a_mark_is_reported_with_the_text_before_it(text: UtteranceText) -> None:
    (partial,) = text.push(found("▁stop ▁it <EOU>", 0))
    assert (partial.text, partial.turn, partial.end) == ("stop it", "end", 0.16)
    final = text.close("finalize", 1.0)
    assert (final.text, final.turn) == ("stop it", "end")
    assert [word.text for word in final.words] == ["stop", "it"]


def test_a_mark_that_comes_alone_repeats_the_partial(text: UtteranceText) -> None:
    assert text.push(found("<EOU>", 0)) == []  # no utterance begins with a mark
    assert text.first is None
    (partial,) = text.push(found("▁stop", 1))
    assert partial.turn is None
    (partial,) = text.push(found("<EOB>", 9))
    assert (partial.text, partial.turn) == ("stop", "backchannel")
    assert text.push(found("<EOB>", 10)) == []


def test_further_words_void_a_mark(text: UtteranceText) -> None:
    text.push(found("▁stop <EOU>", 0))
    (partial,) = text.push(found("▁it", 5))
    assert (partial.text, partial.turn) == ("stop it", None)
    assert text.close("finalize", 1.0).turn is None
    text.push(found("▁stop <EOU>", 20))
    assert text.close("endpoint", 3.0).turn == "end"
    text.push(found("▁now", 50))
    assert text.close("endpoint", 5.0).turn is None


def test_an_utterance_without_text_has_no_mark(text: UtteranceText) -> None:
    text.push(found("<EOU>", 0))
    assert text.close("finalize", 1.0).turn is None


def test_a_cut_leaves_the_mark_to_the_last_word(text: UtteranceText) -> None:
    text.push(found("▁stop ▁it ▁now <EOU>", 0))
    final, partial = text.cut(60.0)
    assert (final.text, final.turn) == ("stop it", None)
    assert partial.text == "now"
    assert text.close("finish", 61.0).turn == "end"


def streamed(recognizer: NativeRecognizer, sound: NDArray[np.float32]) -> list[StreamEvent]:
    stream = recognizer.stream(endpoint=None)
    parts = np.split(sound, [9_000, 30_000])
    return [event for part in parts for event in stream.push(part)] + stream.finish()


def test_a_model_with_the_token_marks_its_events(
    talker: AsrModel, tiny_tokenizer: Tokenizer
) -> None:
    """One of the pieces that a talking model writes stands for the end of a turn."""
    sound: NDArray[np.float32] = noise(50_003, seed=3)
    plain = streamed(NativeRecognizer(talker, tiny_tokenizer), sound)
    assert {event.turn for event in plain} == {None}
    pieces, text = list(tiny_tokenizer.pieces), plain[-1].text
    mark = next(i for i, p in enumerate(pieces) if len(p) > 1 and p.replace("▁", " ") in text)
    pieces[mark] = "<EOU>"
    recognizer = NativeRecognizer(talker, tokenizer_of(pieces))
    events = streamed(recognizer, sound)
    assert {event.turn for event in events} == {"end", None}
    assert 0 < len(events[-1].text) < len(text)
    assert not any("EOU" in event.text for event in events)
    assert "EOU" not in recognizer.transcribe(sound, sample_rate=16_000).text
