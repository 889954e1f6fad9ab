import random
import re
import wave
from pathlib import Path

import numpy as np
import pytest

from pianissimo.errors import OptionError, PianissimoError
from pianissimo.train import synthesize as module
from pianissimo.train.data import AudioCache, read_manifest
from pianissimo.train.synthesize import (
    ENGINES,
    VOICES,
    Prompt,
    Speech,
    cast,
    compose_commands,
    installed_engines,
    number_words,
    spell_out,
    synthesize,
)

RATE = 16_000
WORDS = ["peter", "house", "ab", "o'clock", "Peter"]


# -- texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (9, "nine"),
        (10, "ten"),
        (19, "nineteen"),
        (20, "twenty"),
        (21, "twenty one"),
        (99, "ninety nine"),
        (100, "one hundred"),
        (305, "three hundred five"),
        (1000, "one thousand"),
        (1206, "one thousand two hundred six"),
        (9999, "nine thousand nine hundred ninety nine"),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert number_words(number) == words


def test_every_number_has_words_of_its_own() -> None:
    assert len({number_words(n) for n in range(10_000)}) == 10_000
    for number in (-1, 10_000):
        with pytest.raises(OptionError, match=str(number)):
            number_words(number)


def test_commands_have_the_form_of_transcripts_and_depend_on_the_seed() -> None:
    prompts = compose_commands(3000, 1, WORDS)
    assert prompts == compose_commands(3000, 1, WORDS)
    assert prompts != compose_commands(3000, 2, WORDS)
    texts = [prompt.text for prompt in prompts]
    assert all(re.fullmatch(r"[a-z']+( [a-z']+)*", text) for text in texts)
    assert {"p e t e r", "h o u s e"} <= set(texts)
    assert not {"a b", "o ' c l o c k"} <= set(texts)
    for word in [*module.DIGITS, *module.ORDERS, *module.MONTHS, *module.LETTERS, "oh"]:
        assert any(word in text.split() for text in texts), word
    for digit in module.DIGITS:
        assert texts.count(digit) > 40


def test_without_words_letters_are_spelled_at_random() -> None:
    texts = {prompt.text for prompt in compose_commands(500, 1, [])}
    assert any(re.fullmatch("[a-z]( [a-z]){2,}", text) for text in texts)


def test_letters_are_spoken_by_name() -> None:
    assert spell_out("enter z a p six", "flite", pauses=True) == "enter zee, A, P, six"
    assert spell_out("enter z a p six", "flite", pauses=False) == "enter zee A, P six"
    assert spell_out("z a p", "espeak-ng", pauses=False) == "zee [[eI]], P"
    article = Speech(Prompt("a house", spelled=False), "flite", "rms")
    assert article.spoken == "a house"


# -- voices ----------------------------------------------------------------------------------------


def test_voices_are_drawn_by_seed_from_the_installed_synthesizers() -> None:
    prompts = [Prompt("one")] * 400
    speeches = cast(prompts, 1, list(ENGINES))
    assert speeches == cast(prompts, 1, list(ENGINES))
    assert speeches != cast(prompts, 2, list(ENGINES))
    assert {s.engine for s in speeches} == set(ENGINES)
    assert all(s.voice in VOICES[s.engine] for s in speeches)
    assert len({s.voice for s in speeches}) > 100
    assert len({s.file_name for s in speeches}) == 400
    assert {s.engine for s in cast(prompts, 1, ["flite"])} == {"flite"}
    with pytest.raises(OptionError, match="apt-get install"):
        cast(prompts, 1, [])


@pytest.mark.parametrize("engine", ENGINES)
def test_rate_and_pitch_are_passed_to_the_program(engine: str) -> None:
    speech = Speech(Prompt("one"), engine, VOICES[engine][0])
    faster = Speech(Prompt("one"), engine, VOICES[engine][0], rate=1.2)
    wav = Path("out.wav")
    command, _ = speech.command(wav)
    assert command[0] == ENGINES[engine]
    assert str(wav) in command
    assert command != faster.command(wav)[0]
    assert speech.file_name != faster.file_name


# -- sound -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_synthesizer_speaks_into_a_manifest(engine: str, tmp_path: Path) -> None:
    if engine not in installed_engines():
        pytest.skip(f"{engine} is not installed")
    rng = random.Random(0)
    speeches = [
        Speech(Prompt(text), engine, rng.choice(VOICES[engine]), rate=rate)
        for text, rate in (("five", 1.0), ("enter a b c twenty one", 0.8), ("seven", 1.25))
    ]
    manifest = synthesize(speeches, tmp_path / "spoken")
    utterances = read_manifest(manifest)
    assert [u.text for u in utterances] == [s.prompt.text for s in speeches]
    assert {u.extra["subset"] for u in utterances} == {"synthetic"}
    audio = AudioCache(utterances, tmp_path / "cache")
    for i, utterance in enumerate(utterances):
        assert len(audio[i]) / RATE == pytest.approx(utterance.duration, abs=1e-4)
        assert float(np.abs(audio[i]).max()) == pytest.approx(module.PEAK, abs=1e-3)
    assert 0.15 < utterances[0].duration < 1.5 < utterances[1].duration < 6

    made = {path: path.stat().st_mtime_ns for path in manifest.parent.glob("*.wav")}
    again = Speech(Prompt("nine"), engine, VOICES[engine][0])
    synthesize([*speeches, again], manifest.parent)
    assert {p: p.stat().st_mtime_ns for p in made} == made
    assert len(read_manifest(manifest)) == 4
    assert len(list(manifest.parent.iterdir())) == 5  # nothing but recordings and the manifest


class BrokenSpeech(Speech):
    def command(self, wav: Path) -> tuple[list[str], str | None]:
        return ["python3", "-c", "raise SystemExit('no such voice')"], None


class SilentSpeech(Speech):
    def command(self, wav: Path) -> tuple[list[str], str | None]:
        with wave.open(str(wav), "wb") as out:
            out.setparams((1, 2, RATE, 800, "NONE", "not compressed"))
            out.writeframes(bytes(1600))
        return ["true"], None


@pytest.mark.parametrize(
    ("kind", "message"), [(BrokenSpeech, "no such voice"), (SilentSpeech, "returned silence")]
)
def test_a_program_that_fails_is_named_and_leaves_nothing(
    kind: type[Speech], message: str, tmp_path: Path
) -> None:
    with pytest.raises(PianissimoError, match=message):
        synthesize([kind(Prompt("one"), "flite", "rms")], tmp_path)
    assert list(tmp_path.iterdir()) == []
