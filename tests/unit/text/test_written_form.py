"""Numbers, dates, money, times and addresses as they are written."""

import sys
from collections.abc import Iterator
from pathlib import Path
from time import process_time

import pytest

from pianissimo.errors import MissingExtraError, OptionError
from pianissimo.text import written_form
from pianissimo.text.written_form import check_language, written_text, written_words
from pianissimo.transcript import Segment, StreamEvent, Transcript, Word

pytest.importorskip("wetext", reason="needs the extra itn")
TABLE = Path(__file__).with_name("english_written_forms.tsv")
CJK_TABLE = Path(__file__).with_name("cjk_written_forms.tsv")
LEAST_RIGHT = 0.95


def words(text: str, *, confidence: float | None = None) -> tuple[Word, ...]:
    return tuple(Word(w, i * 0.5, i * 0.5 + 0.4, confidence) for i, w in enumerate(text.split()))


def texts(found: tuple[Word, ...]) -> list[str]:
    return [word.text for word in found]


def forms() -> list[list[str]]:
    return [line.split("\t") for line in TABLE.read_text(encoding="utf-8").splitlines()]


def test_the_table_of_chinese_and_japanese_forms() -> None:
    for line in CJK_TABLE.read_text(encoding="utf-8").splitlines():
        language, spoken, written = line.split("\t")
        assert written_text(spoken, language) == written


def test_the_table_of_english_forms() -> None:
    assert len(forms()) >= 120
    wrong = {
        spoken: found
        for spoken, written in forms()
        if (found := written_text(spoken, "en-US")) != written
    }
    assert 1 - len(wrong) / len(forms()) >= LEAST_RIGHT, wrong


def test_a_written_form_stays_when_it_is_written_again() -> None:
    for _, written in forms():
        once = written_text(written, "en")
        assert written_text(once, "en") == once


def test_a_written_form_has_the_times_of_its_words_and_the_lowest_confidence() -> None:
    spoken = words("it costs twenty five dollars now", confidence=0.9)
    spoken = (*spoken[:3], Word("five", 1.5, 1.9, 0.4), *spoken[4:])
    assert written_words(spoken, "en") == (
        *spoken[:2],
        Word("$25", 1.0, 2.4, 0.4),
        spoken[-1],
    )


def test_capitals_and_marks_of_the_spoken_words_stay() -> None:
    found = written_words(words('On June third, "twenty-five dollars". He left.'), "en")
    assert texts(found) == ["On", "June 3,", '"$25".', "He", "left."]
    assert written_text("Until seven thirty p.m. Then go.", "en") == "Until 7:30 p.m. Then go."


@pytest.mark.parametrize(
    "second",
    [
        Word("five", 1.2, 1.5),  # a pause before it
        Word("five", 0.5, 0.9, speaker="1"),
    ],
)
def test_no_number_across_pauses_and_speakers(second: Word) -> None:
    found = written_words((Word("twenty", 0.0, 0.4), second), "en")
    assert texts(found) == ["20", "five"]


def test_no_number_across_punctuation() -> None:
    assert texts(written_words(words("twenty, five dollars"), "en")) == ["20,", "$5"]


def test_text_without_numbers_is_the_same() -> None:
    spoken = words("so the cat sat, and  no one was there: “what?” -- I said {to} \\ them")
    assert written_words(spoken, "en") == spoken
    assert written_text(" two  spaces stay ", "en") == " two  spaces stay "


@pytest.mark.parametrize(
    ("language", "spoken", "written"),
    [
        ("zh", "他有二十五只猫", "他有25只猫"),
        ("zh-CN", "价格是百分之三点一四。", "价格是3.14%。"),
        ("zh", "我们一起去", "我们一起去"),
        ("zh", "下午三点半", "下午三点半"),
        ("ja", "二十五匹の猫", "25匹の猫"),
        ("ja", "二千二十四年六月三日、百パーセント", "2024年6月3日、100%"),
    ],
)
def test_chinese_and_japanese(language: str, spoken: str, written: str) -> None:
    assert written_text(spoken, language) == written
    found = written_words(words(" ".join(spoken)), language)
    assert "".join(texts(found)) == written
    assert found[0].start == 0.0 and found[-1].end == len(spoken) * 0.5 - 0.1


def test_a_long_text_is_read_in_parts() -> None:
    assert written_text("the cat sat " * 5000, "en") == "the cat sat " * 5000
    found = written_text("one hundred cats and so many more dogs " * 50, "en")
    assert found.count("100 cats") == 50


@pytest.mark.parametrize(
    ("language", "spoken", "written", "characters", "seconds"),
    [
        (
            "en",
            "we paid nineteen dollars and ten cents on june third ",
            "$19.10 on june 3",
            100_000,
            5,
        ),
        ("en", "five ", None, 100_000, 5),
        ("en", "plus a at dot ", None, 100_000, 5),
        ("zh", "我们在二零二四年一共卖出三百六十五张票他们都很高兴", "365张票", 4_000, 15),
    ],
)
def test_the_time_grows_with_the_length(
    language: str, spoken: str, written: str | None, characters: int, seconds: float
) -> None:
    whole, parts = characters // len(spoken), characters // len(spoken) // 10
    written_text(spoken, language)
    before = process_time()
    found = written_text(spoken * whole, language)
    assert process_time() - before < seconds
    if written is not None:
        assert found.count(written) == whole
        assert found.startswith(written_text(spoken * parts, language)[:-1])


def test_languages_without_written_form_are_refused() -> None:
    with pytest.raises(OptionError, match="'de'; it is there for en, zh, ja"):
        check_language("de")
    with pytest.raises(OptionError, match="unknown; choose one of en, zh, ja"):
        check_language(None)


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "wetext", None)
    written_form._grammar.cache_clear()
    yield
    written_form._grammar.cache_clear()


def test_without_the_package_the_extra_is_named(no_package: None) -> None:
    with pytest.raises(MissingExtraError, match=r"pianissimo\[itn\]"):
        check_language("zh")
    assert check_language("en") == "en"


def transcript(*sentences: str) -> Transcript:
    segments, start = [], 0.0
    for sentence in sentences:
        timed = tuple(
            Word(word.text, word.start + start, word.end + start) for word in words(sentence)
        )
        segments.append(Segment(sentence, start, timed[-1].end, timed))
        start = timed[-1].end + 1.0
    text = " ".join(sentences)
    timed = tuple(word for segment in segments for word in segment.words)
    return Transcript(text, tuple(segments), timed, "en-US", start, "tiny")


def test_a_transcript_keeps_its_spoken_text() -> None:
    found = transcript("it costs fifty cents", "i know").in_written_form()
    assert found.text == "it costs $0.50 i know"
    assert found.lexical == "it costs fifty cents i know"
    assert [segment.text for segment in found.segments] == ["it costs $0.50", "i know"]
    assert texts(found.words) == ["it", "costs", "$0.50", "i", "know"]
    assert found.in_written_form() == found
    assert Transcript.from_json(found.to_json()) == found
    assert '"lexical": "it costs fifty cents i know"' in found.to_json()
    assert "lexical" not in transcript("it costs fifty cents").to_json()


def test_a_transcript_without_words_is_written_by_its_text() -> None:
    found = Transcript("fifty cents", (), (), "en", 1.0, "tiny").in_written_form()
    assert (found.text, found.lexical) == ("$0.50", "fifty cents")


def test_only_finals_are_written() -> None:
    spoken = words("fifty cents")
    partial = StreamEvent("partial", "fifty cents", spoken, 0.0, 0.9)
    final = StreamEvent("final", "fifty cents", spoken, 0.0, 0.9)
    assert partial.in_written_form("en") == partial
    found = final.in_written_form("en")
    assert (found.text, found.lexical) == ("$0.50", "fifty cents")
    assert found.words == (Word("$0.50", 0.0, 0.9),)
