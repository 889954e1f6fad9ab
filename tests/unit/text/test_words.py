"""Words, their times and the segments they form; scoring form of text."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pianissimo.errors import OptionError
from pianissimo.text.normalize import normalize_for_scoring
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.text.words import (
    MAX_WORD_TOKENS,
    WordAssembler,
    WordOptions,
    ends_sentence,
    joined,
    segments_from_words,
    words_from_tokens,
)
from pianissimo.transcript import Word

PIECES = [
    *("<unk>", "▁", "▁he", "llo", "▁wor", "ld", ".", "▁.", ",", '▁"', '"', "▁&", "▁5", "%"),
    *("<en-US>", "<0xC3>", "<0xA9>", "<0xE2>", "<0x80>", "<0x94>", "字", "▁-"),
]
TOKENIZER = Tokenizer.from_hf_json(
    json.dumps(
        {
            "model": {
                "type": "BPE",
                "unk_token": "<unk>",
                "vocab": {piece: i for i, piece in enumerate(PIECES)},
            },
            "added_tokens": [{"id": len(PIECES), "content": "<blank>", "special": True}],
        }
    ).encode()
)
BARE = WordOptions(frame_seconds=0.1, extend_frames=0)


def words(
    tokens: str,
    frames: list[int],
    confidences: list[float | None] | None = None,
    options: WordOptions = BARE,
    duration: float | None = None,
) -> list[tuple[str, float, float]]:
    ids = [PIECES.index(piece) for piece in tokens.split()]
    result = words_from_tokens(
        TOKENIZER, ids, frames, confidences, options=options, duration=duration
    )
    return [(word.text, word.start, word.end) for word in result]


def test_a_word_spans_its_tokens() -> None:
    assert words("▁he llo ▁wor ld .", [2, 4, 8, 9, 12]) == [
        ("hello", 0.2, 0.5),
        ("world.", 0.8, 1.3),
    ]


def test_an_end_moves_toward_the_next_start_but_never_past_it() -> None:
    options = WordOptions(frame_seconds=0.1, extend_frames=2)
    assert words("▁he ▁wor ▁he", [0, 2, 9], options=options) == [
        ("he", 0.0, 0.2),
        ("wor", 0.2, 0.5),
        ("he", 0.9, 1.2),
    ]
    assert words("▁he", [5], options=options, duration=0.65) == [("he", 0.5, 0.65)]


def test_a_word_starts_at_its_first_letter() -> None:
    assert words('▁" ▁he " ▁', [0, 3, 5, 9])[-1] == ('he"', 0.3, 0.6)
    assert words('▁ " llo "', [0, 1, 4, 5]) == [('"llo"', 0.4, 0.6)]


def test_lone_punctuation_joins_the_word_before() -> None:
    assert words("▁he ▁. ▁& ▁wor", [0, 2, 3, 8]) == [("he. &", 0.0, 0.4), ("wor", 0.8, 0.9)]
    assert words("▁- ▁he", [1, 2]) == [("-", 0.1, 0.2), ("he", 0.2, 0.3)]
    assert words("▁.", [3]) == [(".", 0.3, 0.4)]


def test_words_in_one_frame_follow_each_other() -> None:
    assert words("▁he ▁wor ▁he ▁5 %", [3, 3, 3, 4, 4]) == [
        ("he", 0.3, 0.4),
        ("wor", 0.4, 0.5),
        ("he", 0.5, 0.6),
        ("5%", 0.6, 0.7),
    ]


def test_special_tokens_and_stray_spaces_leave_nothing() -> None:
    assert words("<en-US> ▁ ▁he <unk> llo ▁ ▁wor ▁", [0, 0, 1, 1, 2, 3, 4, 5]) == [
        ("hello", 0.1, 0.3),
        ("wor", 0.4, 0.5),
    ]
    assert words_from_tokens(TOKENIZER, [len(PIECES)], [0]) == ()
    assert words_from_tokens(TOKENIZER, [], []) == ()


def test_bytes_of_a_letter_and_of_a_dash() -> None:
    assert words("▁ <0xC3> <0xA9> ▁he", [0, 1, 2, 5]) == [("é", 0.1, 0.3), ("he", 0.5, 0.6)]
    assert words("▁he ▁ <0xE2> <0x80> <0x94> ▁wor", [0, 3, 3, 3, 3, 5]) == [
        ("he —", 0.0, 0.4),
        ("wor", 0.5, 0.6),
    ]


@pytest.mark.parametrize(("aggregate", "expected"), [("min", 0.5), ("mean", 0.75), ("prod", 0.5)])
def test_confidence_leaves_punctuation_out(aggregate: str, expected: float) -> None:
    options = WordOptions(aggregate=aggregate)  # type: ignore[arg-type]
    ids = [PIECES.index(piece) for piece in ("▁he", "llo", ".", "▁wor")]
    first, second = words_from_tokens(
        TOKENIZER, ids, [0, 1, 2, 3], [1.0, 0.5, 0.1, None], options=options
    )
    assert first.confidence == expected
    assert second.confidence is None
    (mark,) = words_from_tokens(TOKENIZER, [PIECES.index("▁.")], [0], [0.3])
    assert mark.confidence == 0.3


def test_a_word_is_given_as_soon_as_the_next_one_begins() -> None:
    assembler = WordAssembler(TOKENIZER, BARE)
    given_at = []
    for number, piece in enumerate(("▁he", "llo", "▁.", "▁", "ld", "▁wor")):
        done = assembler.push([PIECES.index(piece)], [number])
        given_at += [(number, word.text) for word in done]
    assert given_at == [(4, "hello."), (5, "ld")]
    assert [word.text for word in assembler.finish()] == ["wor"]
    assert assembler.finish() == ()


def assembled(pieces: list[str]) -> tuple[list[Word], str]:
    """The words of these pieces, one per frame of 0.08 s, and their text."""
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(["<unk>", *pieces]))}
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": vocabulary}
    tokenizer = Tokenizer.from_hf_json(json.dumps({"model": model}).encode())
    ids = [vocabulary[piece] for piece in pieces]
    found = words_from_tokens(tokenizer, ids, range(len(ids)), options=WordOptions())
    return list(found), tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["▁今天", "天气", "很", "好", "，", "谢谢", "。"], "今天 天气 很 好， 谢谢。"),
        (["▁「", "東京", "」", "へ", "行", "く", "。"], "「東京」 へ 行 く。"),
        (["▁用", "i", "Phone", "打", "电话"], "用 iPhone 打 电话"),
        (["▁สวัส", "ดี", "ครับ"], "สวัส ดี ครับ"),
        (["▁안녕", "하세요", "▁여러", "분", "."], "안녕하세요 여러분."),
        (["▁مرح", "با", "▁كيف", "▁حالك", "؟", "▁نعم", "،", "▁جيد"], "مرحبا كيف حالك؟ نعم، جيد"),
        (["▁नम", "स्ते", "।"], "नमस्ते।"),
    ],
)
def test_words_of_many_scripts(pieces: list[str], expected: str) -> None:
    found, text = assembled(pieces)
    assert [word.text for word in found] == expected.split()
    assert joined(word.text for word in found) == text
    ends = [word.end for word in found]
    assert all(b.start >= a for a, b in zip(ends, found[1:], strict=False))


def test_combining_marks_stay_with_their_letter() -> None:
    # U+0E31 is a vowel above the letter before it; a tokenizer may cut in front of it.
    found, _ = assembled(["▁ข", "\u0e31บ", "รถ"])
    assert [word.text for word in found] == ["ข\u0e31บ", "รถ"]


def test_sentences_end_with_the_marks_of_their_script() -> None:
    for mark in "。？！؟۔।":
        found, _ = assembled(["▁字" if mark in "。？！" else "▁ab", mark, "▁cd"])
        assert [len(segment.words) for segment in segments_from_words(found)] == [1, 1], mark


def test_a_word_without_an_end_is_cut() -> None:
    count = 10 * MAX_WORD_TOKENS
    assembler = WordAssembler(TOKENIZER)
    done = assembler.push([PIECES.index("llo")] * count, range(count))
    assert len(done) == 9
    assert sum(len(word.text) for word in done + assembler.finish()) == 3 * count


@pytest.mark.parametrize(
    ("ids", "frames", "confidences"),
    [
        ([2], [0, 1], None),
        ([2, 2], [0, 1], [0.5]),
        ([2, 2], [3, 2], None),
        ([2], [-1], None),
        ([2], [0], [-0.7]),
        ([2], [0], [float("nan")]),
        ([99], [0], None),
    ],
)
def test_wrong_tokens_are_refused(
    ids: list[int], frames: list[int], confidences: list[float | None] | None
) -> None:
    with pytest.raises(OptionError):
        WordAssembler(TOKENIZER).push(ids, frames, confidences)


@pytest.mark.parametrize(
    "wrong", [{"frame_seconds": 0.0}, {"extend_frames": -1}, {"aggregate": "max"}]
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        WordOptions(**wrong)  # type: ignore[arg-type]


tokens = st.lists(
    st.tuples(
        st.sampled_from(range(len(PIECES) + 1)),
        st.integers(0, 3),
        st.none() | st.floats(0, 1),
        st.booleans(),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(tokens, st.integers(0, 3))
def test_chunked_equals_whole_and_times_are_sound(
    items: list[tuple[int, int, float | None, bool]], extend_frames: int
) -> None:
    options = WordOptions(extend_frames=extend_frames)
    ids, frames, scores, cuts = [], [], [], []
    frame = 0
    for id, step, score, cut in items:
        frame += step
        ids.append(id)
        frames.append(frame)
        scores.append(score)
        cuts += [len(ids)] if cut else []
    whole = words_from_tokens(TOKENIZER, ids, frames, scores, options=options)

    assembler = WordAssembler(TOKENIZER, options)
    chunked: tuple[Word, ...] = ()
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        chunked += assembler.push(ids[start:end], frames[start:end], scores[start:end])
    assert chunked + assembler.finish() == whole

    text = "".join(word.text for word in whole)
    assert "".join(text.split()) == "".join(TOKENIZER.decode(ids).split())
    for before, after in pairwise(whole):
        assert before.end <= after.start
    for word in whole:
        assert word.end - word.start >= 0.08 - 1e-9

    duration = frame * 0.08
    bounded = words_from_tokens(TOKENIZER, ids, frames, scores, options=options, duration=duration)
    assert [word.text for word in bounded] == [word.text for word in whole]
    assert all(0 <= word.start <= word.end <= duration for word in bounded)


def timed(text: str, seconds: float = 0.4) -> list[Word]:
    return [Word(w, i * seconds, (i + 1) * seconds) for i, w in enumerate(text.split())]


def test_segments_are_sentences() -> None:
    text = 'Dr. J. Smith paid 3.5 dollars at 5 p.m. yesterday. "Really?" Yes! So... that is it'
    assert [segment.text for segment in segments_from_words(timed(text))] == [
        "Dr. J. Smith paid 3.5 dollars at 5 p.m. yesterday.",
        '"Really?"',
        "Yes!",
        "So... that is it",
    ]


def test_segments_split_at_pauses_and_length() -> None:
    pause = [Word("one", 0.0, 0.5, 1.0), Word("two", 1.5, 2.0, 0.5), Word("three", 3.1, 3.5)]
    segments = segments_from_words(pause)
    assert [(s.text, s.start, s.end, s.confidence) for s in segments] == [
        ("one two", 0.0, 2.0, 0.75),
        ("three", 3.1, 3.5, None),
    ]
    assert segments[0].words == tuple(pause[:2])
    long = segments_from_words(timed("la " * 200, 0.5), max_seconds=30)
    assert [segment.end - segment.start for segment in long] == [30.0, 30.0, 30.0, 10.0]
    assert segments_from_words([Word("laaa", 0.0, 50.0)] * 2, max_seconds=30)[1].end == 50.0
    assert segments_from_words([]) == ()


@pytest.mark.parametrize(
    ("word", "following", "ends"),
    [
        ("end.", "Next", True),
        ("end.", None, True),
        ("Mrs.", "Jones", False),
        ("Dr.", None, True),
        ("a.m.", "on", False),
        ("a.m.", "We", True),
        ("etc.)", "and", False),
        ("\u201cWhy?\u201d", "he", True),
        ("comma,", "next", False),
        ("3.14", "is", False),
        ("well\u2026", "maybe", False),
        ("\u3002", "x", True),
        ("", "x", False),
    ],
)
def test_sentence_ends(word: str, following: str | None, ends: bool) -> None:
    assert ends_sentence(word, following) == ends


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don\u2019t  STOP, 'cause the dogs' bowl\u2026", "don't stop cause the dogs bowl"),
        ("\u201cWell-known\u201d\n\u2014 rock & roll!", "well known rock roll"),
        ("rock 'n' roll o'clock''s", "rock n roll o'clock s"),
        ("soft\u00adhyphen E\u0301tude", "softhyphen \u00e9tude"),
        (" ... ", ""),
    ],
)
def test_scoring_form(text: str, expected: str) -> None:
    assert normalize_for_scoring(text) == expected


@given(st.text(st.characters() | st.sampled_from("'\u2019 aA-.")))
def test_scoring_form_is_stable(text: str) -> None:
    once = normalize_for_scoring(text)
    assert normalize_for_scoring(once) == once
    assert "  " not in once
