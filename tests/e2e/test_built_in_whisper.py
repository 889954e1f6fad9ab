"""The Whisper inside the package: recordings, live segments, the command line."""

from pathlib import Path

import pytest

import pianissimo
from pianissimo.audio.io import load_audio
from pianissimo.cli import main
from pianissimo.protocols import Recognizer

CLIPS = Path(__file__).parents[2] / "examples" / "audio"
SENTENCE = "The boy was there with his mother and father."


@pytest.fixture(scope="module")
def whisper() -> Recognizer:
    return pianissimo.load("whisper-tiny-en", device="cpu")


def test_a_sentence_has_case_punctuation_and_word_times(whisper: Recognizer) -> None:
    transcript = whisper.transcribe(CLIPS / "sentence.flac")
    assert transcript.text == SENTENCE
    assert [word.text for word in transcript.words] == SENTENCE.split()
    starts = [word.start for word in transcript.words]
    assert starts == sorted(starts)
    assert 0 < transcript.words[-1].end <= transcript.duration


def test_a_stream_gives_the_sentence_as_a_final(whisper: Recognizer) -> None:
    with whisper.stream() as stream:
        events = [*stream.push(load_audio(CLIPS / "sentence.flac")), *stream.finish()]
    assert [event.text for event in events if event.type == "final" and event.text] == [SENTENCE]


def test_the_command_line_knows_it_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "-m", "whisper-tiny-en", str(CLIPS / "sentence.flac")]) == 0
    assert capsys.readouterr().out.strip() == SENTENCE
