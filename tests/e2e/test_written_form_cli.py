"""`transcribe --itn`: numbers as they are written, for whole recordings and finals of streams."""

import json
from pathlib import Path

import pytest

import pianissimo
from pianissimo.cli import main
from pianissimo.text import english_numbers, written_form

CLIP = Path(__file__).parents[2] / "examples" / "audio" / "number.flac"
SMALL = ("--model", "embedded-commands", "--device", "cpu")
SPOKEN = "enter four five two nine"


@pytest.fixture
def short_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four digits are enough: those of the clip."""
    monkeypatch.setattr(english_numbers, "LEAST_DIGITS", 4)


@pytest.mark.parametrize("live", [False, True])
def test_itn_writes_numbers_and_keeps_the_spoken_text(
    short_numbers: None, capsys: pytest.CaptureFixture[str], live: bool
) -> None:
    stream = ["--stream"] if live else []
    assert main(["transcribe", str(CLIP), *SMALL, "--itn", "--json", *stream]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["text"], found["lexical"]) == ("enter 4529", SPOKEN)
    words = found["words"] if live else found["segments"][0]["words"]
    assert [word["text"] for word in words] == ["enter", "4529"]
    assert words[1]["end"] - words[1]["start"] > 0.9


def test_itn_of_a_batch_without_word_times(short_numbers: None) -> None:
    recognizer = pianissimo.load("embedded-commands", device="cpu")
    for found in recognizer.transcribe_many([CLIP, CLIP], word_timestamps=False, itn=True):
        assert (found.text, found.lexical, found.words) == ("enter 4529", SPOKEN, ())


@pytest.mark.parametrize("live", [False, True])
def test_itn_is_refused_in_a_language_without_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], live: bool
) -> None:
    monkeypatch.setattr(written_form, "LANGUAGES", ("zh", "ja"))
    stream = ["--stream"] if live else []
    assert main(["transcribe", str(CLIP), *SMALL, "--itn", *stream]) == 2
    assert "no written form for 'en'; it is there for zh, ja" in capsys.readouterr().err
