"""Turns joined with words, and speakers in every file format."""

import dataclasses
from pathlib import Path

import pytest

from pianissimo.errors import ManifestError, OptionError
from pianissimo.text.formats import rttm_lines
from pianissimo.text.rttm import read_rttm
from pianissimo.text.turns import Turn, later, speaker_name, with_speakers
from pianissimo.transcript import Segment, Transcript, Word

TURNS = (Turn(0.0, 1.0, "0", 0.9), Turn(1.0, 2.0, "1", 0.8))
WORDS = (
    Word("Hello", 0.1, 0.5),
    Word("there", 0.6, 0.95),
    Word("yes", 1.15, 1.4),
    Word("indeed.", 1.5, 1.9),
)


def transcript(*words: Word) -> Transcript:
    text = " ".join(word.text for word in words)
    segment = Segment(text, words[0].start, words[-1].end, words)
    return Transcript(text, (segment,), words, "en", 3.0, "tiny")


def speakers(words: tuple[Word, ...]) -> list[str | None]:
    return [word.speaker for word in words]


def test_a_word_has_the_speaker_whose_turn_covers_it() -> None:
    found = with_speakers(WORDS, TURNS)
    assert speakers(found) == ["0", "0", "1", "1"]
    assert found[0].speaker_confidence == 0.9
    assert [dataclasses.replace(w, speaker=None, speaker_confidence=None) for w in found] == [
        *WORDS
    ]


def test_a_word_outside_of_all_turns_has_the_nearest_speaker_or_none() -> None:
    words = (Word("near", 2.3, 2.4), Word("far", 4.0, 4.2))
    assert speakers(with_speakers(words, TURNS)) == ["1", None]
    assert speakers(with_speakers(words, ())) == [None, None]


def test_an_undecided_short_word_follows_its_neighbors() -> None:
    turns = (Turn(0.0, 3.0, "0"), Turn(1.0, 1.3, "1"))
    words = (Word("a", 0.2, 0.8), Word("b", 1.0, 1.3), Word("c", 1.5, 2.0))
    assert speakers(with_speakers(words, turns)) == ["0", "0", "0"]
    alone = (Turn(0.0, 0.9, "0"), Turn(0.9, 1.4, "1"), Turn(1.4, 3.0, "0"))
    assert speakers(with_speakers(words, alone)) == ["0", "1", "0"]


def test_the_order_of_turns_and_words_changes_nothing() -> None:
    shuffled = with_speakers(WORDS[::-1], TURNS[::-1])
    assert shuffled[::-1] == with_speakers(WORDS, TURNS)


def test_segments_are_cut_where_the_speaker_changes() -> None:
    found = transcript(*WORDS).with_turns(TURNS[::-1])
    assert found.text == "Hello there yes indeed."
    assert [(s.text, s.speaker) for s in found.segments] == [
        ("Hello there", "0"),
        ("yes indeed.", "1"),
    ]
    assert found.turns == TURNS
    assert found.speakers == ("0", "1")
    assert found.words == tuple(word for segment in found.segments for word in segment.words)


def test_a_word_in_the_pause_behind_a_sentence_stays_with_it() -> None:
    """Though the next turn is nearer, as Whisper writes last words late."""
    late = (*WORDS[:2], Word("friend.", 1.7, 2.2))
    turns = (Turn(0.0, 1.0, "0"), Turn(2.3, 3.0, "1"))
    found = transcript(*late).with_turns(turns)
    assert [(s.text, s.speaker) for s in found.segments] == [("Hello there friend.", "0")]


def test_segments_without_words_have_the_speaker_of_most_of_their_time() -> None:
    whole = Transcript("a", (Segment("a", 0.5, 1.9),), (), "en", 3.0, "tiny")
    assert [segment.speaker for segment in whole.with_turns(TURNS).segments] == ["1"]


def test_every_format_names_the_speakers() -> None:
    found = transcript(*WORDS).with_turns(TURNS)
    assert found.to_txt() == (
        "[00:00:00] Speaker 1: Hello there\n[00:00:01] Speaker 2: yes indeed.\n"
    )
    assert found.to_srt() == (
        "1\n00:00:00,100 --> 00:00:00,950\nSpeaker 1: Hello there\n\n"
        "2\n00:00:01,150 --> 00:00:01,900\nSpeaker 2: yes indeed.\n"
    )
    assert found.to_vtt() == (
        "WEBVTT\n\n00:00:00.100 --> 00:00:00.950\n<v Speaker 1>Hello there</v>\n\n"
        "00:00:01.150 --> 00:00:01.900\n<v Speaker 2>yes indeed.</v>\n"
    )
    assert found.to_tsv() == (
        "start\tend\ttext\tspeaker\n100\t950\tHello there\t0\n1150\t1900\tyes indeed.\t1\n"
    )
    assert found.to_rttm("a call") == (
        "SPEAKER a_call 1 0.000 1.000 <NA> <NA> 0 <NA> <NA>\n"
        "SPEAKER a_call 1 1.000 1.000 <NA> <NA> 1 <NA> <NA>\n"
    )
    assert Transcript.from_json(found.to_json()) == found


def test_subtitles_name_a_speaker_once_until_another_speaks() -> None:
    words = (Word("One.", 0.0, 0.4), Word("Two.", 0.5, 0.9), Word("Three.", 1.1, 1.5))
    lines = transcript(*words).with_turns(TURNS).to_srt().splitlines()[2::4]
    assert lines == ["Speaker 1: One.", "Two.", "Speaker 2: Three."]


def test_names_are_escaped_in_vtt() -> None:
    named = (Turn(0.0, 1.0, "A<b>"),)
    assert "<v A&lt;b&gt;>Hello" in transcript(WORDS[0]).with_turns(named).to_vtt()


def test_without_turns_files_are_as_before() -> None:
    plain = transcript(*WORDS)
    assert plain.to_txt() == "Hello there yes indeed.\n"
    assert "speaker" not in plain.to_json() + plain.to_tsv() + plain.to_vtt()
    with pytest.raises(OptionError, match="diarize=True"):
        plain.to_rttm()


def test_rttm_is_saved_with_the_name_of_the_file(tmp_path: Path) -> None:
    transcript(*WORDS).with_turns(TURNS).save(tmp_path / "call.rttm")
    assert read_rttm(tmp_path / "call.rttm") == {"call": [Turn(0.0, 1.0, "0"), Turn(1.0, 2.0, "1")]}


def test_rttm_skips_other_lines_and_lists_faulty_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.rttm"
    good = rttm_lines([Turn(2.0, 3.5, "Ann")], "x")
    path.write_text(f";; made by hand\nSPKR-INFO x 1 <NA>\n\n{good}")
    assert read_rttm(path) == {"x": [Turn(2.0, 3.5, "Ann")]}
    path.write_text(f"{good}SPEAKER x 1 -1 2 <NA> <NA> a\nSPEAKER x 1\nSPEAKER x 1 a 2 n n a\n")
    with pytest.raises(ManifestError, match=r"line 2: .*\n.*line 3: .*\n.*line 4: "):
        read_rttm(path)
    with pytest.raises(ManifestError, match="cannot be read"):
        read_rttm(tmp_path / "none.rttm")


def test_a_turn_is_a_stretch_of_time() -> None:
    with pytest.raises(OptionError, match="not a stretch"):
        Turn(2.0, 1.0, "0")


def test_turns_of_an_excerpt_move() -> None:
    assert later(TURNS[:1], 10.0) == (Turn(10.0, 11.0, "0", 0.9),)


def test_labels_are_names_for_people() -> None:
    assert [speaker_name(label) for label in ("0", "11", "Ann")] == [
        "Speaker 1",
        "Speaker 12",
        "Ann",
    ]
