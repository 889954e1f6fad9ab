"""The language of a multilingual Whisper: of each recording, and of each segment of a stream."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from spoken import pink, speech
from tiny_whisper import save_tiny_whisper

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.vad import VoiceDetector
from pianissimo.engine.engine import Engine, EngineOptions
from pianissimo.engine.single import SingleStream
from pianissimo.errors import OptionError
from pianissimo.recognizers.whisper import WhisperRecognizer, read_parts

RATE = 16_000
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> WhisperRecognizer:
    folder: Path = tmp_path_factory.mktemp("whisper")
    save_tiny_whisper(folder, multilingual=True)
    return WhisperRecognizer(read_parts(folder), front_end=FrontEnd("on"), detector=VoiceDetector())


@pytest.fixture(scope="module")
def utterance() -> Samples:
    parts = [speech(3), np.zeros(2 * RATE, np.float32)]
    samples: Samples = np.concatenate(parts) + pink(5, -80)
    return samples


def finals(
    recognizer: WhisperRecognizer, utterance: Samples, first: str, second: str
) -> list[tuple[str, str | None]]:
    """The text and language of two utterances of one stream."""
    with recognizer.stream(language=first) as stream:
        assert isinstance(stream, SingleStream)
        events = stream.push(utterance)
        if second != first:
            stream.set_language(second)
        events += stream.push(utterance) + stream.finish()
    return [(e.text, e.language) for e in events if e.type == "final" and e.text]


def test_the_language_changes_between_segments(
    recognizer: WhisperRecognizer, utterance: Samples
) -> None:
    german = finals(recognizer, utterance, "de", "de")
    english = finals(recognizer, utterance, "en", "en")
    assert [language for _, language in german] == ["de", "de"]
    assert finals(recognizer, utterance, "de", "en") == [german[0], english[1]]
    with Engine(
        recognizer, max_streams=1, options=EngineOptions(threads=1, freeze_garbage=False)
    ) as engine:
        session = engine.open(language="de")
        session.push(utterance)
        assert next(e.language for e in session if e.type == "final") == "de"
        prompts, prompt = engine.runner.arena.prompts, recognizer.live.decoder.prompt
        assert prompts[0] == prompt("de")
        session.set_language("en")
        session.push(utterance)
        session.finish()
        found = [(e.text, e.language) for e in session if e.type == "final" and e.text]
        assert found == [english[1]] and prompts[0] == prompt("en")


def test_recordings_have_the_language_that_is_asked_for(
    recognizer: WhisperRecognizer, utterance: Samples
) -> None:
    found = [
        recognizer.in_language(each).transcribe(utterance, sample_rate=RATE)
        for each in ("de", "en")
    ]
    assert [each.language for each in found] == ["de", "en"]
    assert recognizer.language is None
    with pytest.raises(OptionError, match="does not know the language 'xx'"):
        recognizer.in_language("xx")
