"""Subtitle files, read back by small parsers that know only the formats."""

import dataclasses
import html
import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pianissimo.errors import OptionError
from pianissimo.text.formats import CueOptions, cues, timestamp, to_srt
from pianissimo.transcript import Segment, Transcript, Word

Parsed = tuple[int, int, list[str]]


def make(*words: Word, segments: tuple[Segment, ...] = (), text: str | None = None) -> Transcript:
    joined = " ".join(word.text for word in words) if text is None else text
    duration = words[-1].end if words else 10.0
    return Transcript(joined, segments, words, "en", duration, "tiny")


def speech(text: str, seconds: float = 0.4, start: float = 0.0) -> list[Word]:
    return [
        Word(word, round(start + i * seconds, 6), round(start + (i + 1) * seconds, 6))
        for i, word in enumerate(text.split())
    ]


def milliseconds(stamp: str, separator: str) -> int:
    match = re.fullmatch(rf"(\d\d+):([0-5]\d):([0-5]\d)\{separator}(\d\d\d)", stamp)
    assert match, stamp
    hours, minutes, seconds, rest = map(int, match.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def parse_blocks(blocks: list[str], separator: str) -> list[Parsed]:
    parsed = []
    for block in blocks:
        times, *lines = block.rstrip("\n").split("\n")
        start, end = times.split(" --> ")
        parsed.append((milliseconds(start, separator), milliseconds(end, separator), lines))
    return parsed


def parse_srt(text: str) -> list[Parsed]:
    blocks = text.split("\n\n") if text else []
    numbered = [block.split("\n", 1) for block in blocks]
    assert [number for number, _ in numbered] == [str(i + 1) for i in range(len(blocks))]
    return parse_blocks([rest for _, rest in numbered], ",")


def parse_vtt(text: str) -> list[Parsed]:
    header, *blocks = text.split("\n\n")
    assert header.rstrip("\n") == "WEBVTT"
    parsed = parse_blocks(blocks, ".")
    for _, _, lines in parsed:
        assert not any("<" in line or "-->" in line for line in lines)
    return [(start, end, [html.unescape(line) for line in lines]) for start, end, lines in parsed]


def check_limits(parsed: list[Parsed]) -> None:
    for (_, before, _), (start, _, _) in pairwise(parsed):
        assert before <= start
    for start, end, lines in parsed:
        assert start < end <= start + 7000
        assert 1 <= len(lines) <= 2
        assert all(0 < len(line) <= 42 for line in lines)


def test_srt_exactly() -> None:
    words = [Word("Hello,", 0.08, 0.4), Word("world.", 0.48, 1.04), Word("Bye.", 3723.5, 3724.0)]
    assert make(*words).to_srt() == (
        "1\n00:00:00,080 --> 00:00:01,040\nHello, world.\n\n"
        "2\n01:02:03,500 --> 01:02:04,000\nBye.\n"
    )


def test_vtt_exactly() -> None:
    words = [Word("a<b>&c", 0.0, 0.5), Word("-->", 0.5, 1.0)]
    assert make(*words).to_vtt() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\na&lt;b&gt;&amp;c --&gt;\n"
    )


def test_srt_text_cannot_fake_a_time_line() -> None:
    assert "a -> b" in make(*speech("a --> b")).to_srt()


def test_silence_gives_no_tokens() -> None:
    empty = make()
    assert (empty.to_txt(), empty.to_srt(), empty.to_vtt()) == ("", "", "WEBVTT\n")
    assert empty.to_tsv() == "start\tend\ttext\n"
    assert json.loads(empty.to_json())["segments"] == []


def test_tsv_and_txt_follow_the_segments() -> None:
    segments = (Segment("One\ttwo.", 0.0, 1.2345), Segment("Three.", 2.0, 3.0))
    transcript = make(segments=segments, text="One\ttwo. Three.")
    assert transcript.to_tsv() == "start\tend\ttext\n0\t1234\tOne two.\n2000\t3000\tThree.\n"
    assert transcript.to_txt() == "One two.\nThree.\n"


def test_json_has_the_layout_of_whisper() -> None:
    word = Word("Ja!", 0.0, 0.5, 0.75)
    transcript = make(word, segments=(Segment("Ja!", 0.0, 0.5, (word,), 0.75),))
    assert json.loads(transcript.to_json()) == {
        "text": "Ja!",
        "language": "en",
        "duration": 0.5,
        "model": "tiny",
        "segments": [
            {
                "id": 0,
                "start": 0.0,
                "end": 0.5,
                "text": "Ja!",
                "confidence": 0.75,
                "words": [{"text": "Ja!", "start": 0.0, "end": 0.5, "confidence": 0.75}],
            }
        ],
    }


def test_json_keeps_words_outside_segments() -> None:
    transcript = make(*speech("one two"))
    assert [word["text"] for word in json.loads(transcript.to_json())["words"]] == ["one", "two"]


def test_cues_break_at_sentence_ends_and_pauses() -> None:
    words = speech("Dr. Smith agreed. He left") + speech("at noon", start=4.0)
    assert [" ".join(cue.lines) for cue in cues(make(*words))] == [
        "Dr. Smith agreed.",
        "He left",
        "at noon",
    ]


def test_long_cues_break_behind_a_comma_and_lines_are_balanced() -> None:
    text = (
        "when the long and winding sentence has finally come to its comma, "
        "another part of it begins and goes on"
    )
    assert [cue.lines for cue in cues(make(*speech(text, 0.1)))] == [
        ("when the long and winding sentence", "has finally come to its comma,"),
        ("another part of it begins and goes on",),
    ]


def test_a_segment_without_words_is_spread_over_its_time() -> None:
    segment = Segment("word " * 40, 10.0, 50.0)
    parsed = parse_srt(make(segments=(segment,), text=segment.text).to_srt())
    check_limits(parsed)
    assert parsed[0][0] == 10_000
    assert parsed[-1][1] == 50_000
    assert " ".join(line for _, _, lines in parsed for line in lines).split() == ["word"] * 40


def test_a_short_segment_without_words_is_one_cue() -> None:
    segments = (Segment("Hello there.", 1.0, 2.5), Segment("Bye.", 2.5, 3.0))
    assert parse_srt(make(segments=segments, text="Hello there. Bye.").to_srt()) == [
        (1000, 2500, ["Hello there."]),
        (2500, 3000, ["Bye."]),
    ]
    slow = make(segments=(Segment("Too slow.", 0.0, 20.0),), text="Too slow.")
    assert parse_srt(slow.to_srt()) == [(0, 7000, ["Too slow."])]


def test_text_alone_still_gives_a_cue() -> None:
    assert parse_srt(make(text="Only text").to_srt())[0][2] == ["Only text"]


def test_many_hours() -> None:
    assert timestamp(123 * 3_600_000 + 59_999, ",") == "123:00:59,999"
    assert parse_vtt(make(Word("late", 360_000.0, 360_001.0)).to_vtt())[0][0] == 360_000_000


def test_options() -> None:
    narrow = CueOptions(max_line_characters=10, max_lines=1, max_seconds=2.0)
    parsed = parse_srt(to_srt(make(*speech("one two three four five six")), narrow))
    assert [lines for _, _, lines in parsed] == [["one two"], ["three four"], ["five six"]]
    for wrong in ({"max_lines": 0}, {"max_line_characters": 0}, {"max_seconds": 0.0}):
        with pytest.raises(OptionError):
            dataclasses.replace(narrow, **wrong)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["yes.", "no,", "a" * 100, "<i>", "&amp;", "-->", "two words", "\n\n", "word", "字" * 90]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(texts, st.floats(0, 3), st.floats(-0.5, 12)), max_size=40), st.booleans())
def test_any_words_make_readable_files(
    items: list[tuple[str, float, float]], in_segments: bool
) -> None:
    words, now = [], 0.0
    for text, gap, length in items:
        now += gap
        words.append(Word(text, now, now + length))
        now += max(length, 0.0)
    transcript = make(*words)
    if in_segments:
        halves = [half for half in (words[: len(words) // 2], words[len(words) // 2 :]) if half]
        segments = tuple(
            Segment(" ".join(w.text for w in half), half[0].start, half[-1].end, tuple(half))
            for half in halves
        )
        transcript = dataclasses.replace(transcript, segments=segments)
    srt, vtt = parse_srt(transcript.to_srt()), parse_vtt(transcript.to_vtt())
    check_limits(srt)
    check_limits(vtt)
    shown = "".join("".join(lines) for _, _, lines in vtt)
    assert shown.replace(" ", "") == "".join("".join(word.text.split()) for word in words)
    assert [cue[:2] for cue in srt] == [cue[:2] for cue in vtt]
    rows = transcript.to_tsv().removesuffix("\n").split("\n")
    assert all(re.fullmatch(r"-?\d+\t-?\d+\t[^\t]*", row) for row in rows[1:])


def test_wide_characters_take_two_columns() -> None:
    words = [
        Word(character, i * 0.2, (i + 1) * 0.2) for i, character in enumerate("今天天气很好" * 7)
    ]
    transcript = make(*words, text="今天天气很好" * 7)
    found = list(cues(transcript, CueOptions(max_line_characters=20)))
    assert "".join(line for cue in found for line in cue.lines) == transcript.text
    assert max(len(line) for cue in found for line in cue.lines) == 10
    assert all(len(cue.lines) <= 2 for cue in found)
    one = Segment("谢谢大家收看本期节目", 0.0, 2.0)  # without words: spread over its time
    (cue,) = cues(make(segments=(one,), text=one.text), CueOptions(max_line_characters=11))
    assert cue.lines == ("谢谢大家收", "看本期节目")


def test_subtitles_keep_the_order_of_right_to_left_text() -> None:
    words = [*speech("مرحبا، كيف حالك؟"), *speech("نعم، جيد", start=3.0)]
    text = to_srt(make(*words))
    assert [line for line in text.split("\n") if line[:1].isalpha()] == [
        "مرحبا، كيف حالك؟",
        "نعم، جيد",
    ]
