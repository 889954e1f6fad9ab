"""The default voice: audio, its laws, and bad input."""

import threading
from pathlib import Path

import numpy as np
import pytest

import pianissimo
from pianissimo.errors import MissingExtraError, ModelNotFoundError, OptionError, TextError
from pianissimo.synthesis import hibari as home
from pianissimo.zoo.voices import list_voices

pytest.importorskip("hibari", reason="needs the extra tts")
TEXT = "Seven streams at once. Dr. Smith paid $9.99, and then he left! Why?"


@pytest.fixture(scope="module")
def voice() -> pianissimo.Synthesizer:
    return pianissimo.load_voice()


def test_the_default_voice_fulfills_the_protocol(voice: pianissimo.Synthesizer) -> None:
    assert isinstance(voice, pianissimo.Synthesizer)
    assert (voice.name, voice.language, voice.sample_rate) == ("heart", "en-US", 24_000)
    assert list_voices()[0].name == "heart"


def test_sentences_one_by_one_equal_the_whole(voice: pianissimo.Synthesizer) -> None:
    sentences = voice.sentences(TEXT)
    assert len(sentences) == 3
    whole = voice.speak(TEXT, seed=1)
    assert whole.dtype == np.float32 and whole.ndim == 1
    assert 0.1 < np.abs(whole).max() <= 1
    pieces = [block for sentence in sentences for block in voice.stream(sentence, seed=1)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert np.array_equal(np.concatenate(list(voice.stream(TEXT, seed=1))), whole)


def test_a_seed_repeats_the_audio(voice: pianissimo.Synthesizer) -> None:
    first = voice.speak("Hello there.", seed=7)
    assert np.array_equal(first, voice.speak("Hello there.", seed=7))
    assert not np.array_equal(first, voice.speak("Hello there.", seed=8))


def test_speed_shortens_the_audio(voice: pianissimo.Synthesizer) -> None:
    slow, plain, fast = (len(voice.speak(TEXT, speed=s, seed=0)) for s in (0.5, 1.0, 2.0))
    assert slow > 1.7 * plain and fast < 0.6 * plain


def test_audio_begins_at_once_and_ends_with_a_pause(voice: pianissimo.Synthesizer) -> None:
    samples = voice.speak("Hello there.", seed=0)
    audible = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    assert audible[0] < 0.15 * voice.sample_rate
    assert not samples[-round(0.19 * voice.sample_rate) :].any()


def test_nothing_is_synthesized_before_the_first_block(
    voice: pianissimo.Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = list[str]()
    plain = home.HibariSynthesizer._sentence

    def counted(self: home.HibariSynthesizer, text: str, *more: object) -> object:
        spoken.append(text)
        return plain(self, text, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(home.HibariSynthesizer, "_sentence", counted)
    blocks = voice.stream("One thing. Two things. Three things.")
    assert spoken == []
    next(blocks)
    assert spoken == ["One thing."]
    blocks.close()
    assert spoken == ["One thing."]


def test_threads_share_a_voice(voice: pianissimo.Synthesizer) -> None:
    expected = voice.speak(TEXT, seed=3)
    found = dict[int, bool]()

    def run(number: int) -> None:
        found[number] = np.array_equal(voice.speak(TEXT, seed=3), expected)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


@pytest.mark.parametrize("text", ["", "🙂", "你好", "<speak>x</speak>", "x" * 100_000])
def test_unspeakable_text_is_refused_at_the_call(voice: pianissimo.Synthesizer, text: str) -> None:
    with pytest.raises(TextError):
        voice.stream(text)


@pytest.mark.parametrize("text", ["9" * 400, "1," * 200 + "1", "x" * 700, "word " * 90])
def test_numbers_and_words_without_end_are_spoken(voice: pianissimo.Synthesizer, text: str) -> None:
    seconds = len(voice.speak(text, seed=0)) / voice.sample_rate
    assert 3 < seconds < 200


@pytest.mark.parametrize("speed", [0.0, 0.2, 5.0, float("nan"), -1.0])
def test_impossible_speeds_are_refused(voice: pianissimo.Synthesizer, speed: float) -> None:
    with pytest.raises(OptionError, match="speed"):
        voice.stream("Hello.", speed=speed)


def test_voices_without_a_file_are_neither_listed_nor_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIBARI_HOME", str(tmp_path))
    assert [each.name for each in list_voices()] == ["heart"]
    with pytest.raises(ModelNotFoundError, match=r"bf_emma.*" + str(tmp_path)):
        pianissimo.load_voice("emma")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_and_a_missing_package_are_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'nobody'; choose heart"):
        pianissimo.load_voice("nobody")
    monkeypatch.setattr(home, "hibari_voices", list)
    with pytest.raises(MissingExtraError, match=r"pianissimo\[tts\]"):
        pianissimo.load_voice()
