"""The Whisper inside the package: recordings, live segments, the command line."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

import pianissimo
from pianissimo.audio.io import load_audio
from pianissimo.cli import main
from pianissimo.protocols import Recognizer
from pianissimo.text.normalize import normalize_for_scoring

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared" / "cases"
NO = CASES / "no-pause-no.flac"
SPEECH = Path(os.environ.get("PIANISSIMO_SPEECH", ROOT.parent / "shared" / "data" / "speech"))
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


@pytest.mark.parametrize("latency", [160, 560, 1120])
def test_every_latency_mode_writes_words_before_the_end(whisper: Recognizer, latency: int) -> None:
    """Shorter chunks write earlier, and with the second pass all end with the same text."""
    samples, events = load_audio(CLIPS / "sentence.flac"), []
    with whisper.stream(latency_ms=latency) as stream:
        for start in range(0, len(samples), 1600):
            events += [(start, event) for event in stream.push(samples[start : start + 1600])]
        events += [(len(samples), event) for event in stream.finish()]
    partials = [(at, event.text) for at, event in events if event.type == "partial"]
    assert len(partials) >= {160: 4, 560: 2, 1120: 1}[latency]
    assert "mother" in partials[-1][1] and partials[-1][0] < len(samples)
    assert [e.text for _, e in events if e.type == "final" and e.text] == [SENTENCE]


@pytest.mark.skipif(not NO.is_file(), reason="no recorded cases beside the checkout")
def test_a_short_command_before_and_behind_a_pause_is_heard(whisper: Recognizer) -> None:
    sound = load_audio(NO)
    with whisper.stream() as stream:
        parts = [sound[at : at + 1600] for at in range(0, len(sound), 1600)]
        events = [event for part in parts for event in stream.push(part)] + stream.finish()
    assert next(e.text for e in events if e.type == "partial") == "No"
    finals = [(e.text, e.reasons) for e in events if e.type == "final"]
    assert finals == [("No.", ()), ("No.", ())]


@pytest.mark.skipif(not NO.is_file(), reason="no recorded cases beside the checkout")
@pytest.mark.parametrize("name", ["dc-5-percent-quiet.flac", "dc-5-percent-removed.flac"])
def test_soft_speech_keeps_its_first_word(whisper: Recognizer, name: str) -> None:
    """Peaks at -50 dBFS: the gain of a stream rises with the first syllables."""
    sound = load_audio(CASES / name)
    with whisper.stream() as stream:
        parts = [sound[at : at + 1600] for at in range(0, len(sound), 1600)]
        events = [event for part in parts for event in stream.push(part)] + stream.finish()
    text = " ".join(event.text for event in events if event.type == "final" and event.text)
    assert re.sub(r"\W", "", text).lower() == "enter7154"
    assert re.sub(r"\W", "", whisper.transcribe(CASES / name).text).lower() == "enter7154"


@pytest.mark.skipif(not NO.is_file(), reason="no recorded cases beside the checkout")
def test_words_that_a_person_repeats_are_kept(whisper: Recognizer) -> None:
    """Twelve times the same "no" with short pauses: no loop of the decoder."""
    sound = load_audio(NO)[:12_000]
    loud = np.flatnonzero(np.abs(sound) > 0.05 * np.abs(sound).max())
    word = sound[max(0, loud[0] - 800) : loud[-1] + 800] / np.abs(sound).max() / 2
    rounds = np.tile(np.concatenate([word, np.zeros(1600, np.float32)]), 12)
    transcript = whisper.transcribe(rounds, sample_rate=16_000)
    assert set(normalize_for_scoring(transcript.text).split()) == {"no"}
    assert len(transcript.text.split()) == pytest.approx(12, abs=2)


@pytest.mark.parametrize(
    ("clip", "misheard", "said"),
    [
        ("librispeech-other/3080-5032-0000.flac", "usually", "hugely"),
        ("vctk/p225_016.flac", "Norseman", "Norsemen"),
        ("librispeech/5561-39621-0000.flac", "Perry", "Parry"),
    ],
)
def test_a_hotword_is_heard_that_the_model_misses(
    whisper: Recognizer, clip: str, misheard: str, said: str
) -> None:
    """A phrase that was not said changes nothing."""
    if not (SPEECH / clip).is_file():
        pytest.skip("no development speech beside the checkout")
    sound = load_audio(SPEECH / clip)
    plain = whisper.transcribe(sound, sample_rate=16_000).text
    assert misheard in plain and said not in plain
    boosted = whisper.transcribe(sound, sample_rate=16_000, boost=[said]).text
    assert boosted == plain.replace(misheard, said)
    absent = whisper.transcribe(sound, sample_rate=16_000, boost=["Ada Lovelace", "quaternion"])
    assert absent.text == plain
    with whisper.stream(boost=[said]) as stream:
        events = stream.push(sound) + stream.finish()
    assert said in " ".join(event.text for event in events if event.type == "final")


@pytest.mark.parametrize(
    ("clip", "words"),
    [
        ("vctk/p225_016.flac", 14),
        ("vctk/p225_003.flac", 8),
        ("librispeech/1363-135842-0000.flac", 4),
    ],
)
def test_partials_go_on_behind_a_wrong_beginning(
    whisper: Recognizer, clip: str, words: int
) -> None:
    """They once stopped behind "the rain", "6." and "Chapter 30, 4."; so did the final."""
    if not (SPEECH / clip).is_file():
        pytest.skip("no development speech beside the checkout")
    with whisper.stream(second_pass=False) as stream:
        partials = [e.text for e in stream.push(load_audio(SPEECH / clip)) if e.type == "partial"]
        final = next(event.text for event in stream.finish() if event.type == "final")
    assert len(partials[-1].split()) >= words
    assert final.startswith(partials[-1])


def test_the_command_line_knows_it_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", "-m", "whisper-tiny-en", str(CLIPS / "sentence.flac")]) == 0
    assert capsys.readouterr().out.strip() == SENTENCE


def test_the_command_line_streams_it(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["transcribe", "--stream", "-m", "whisper-tiny-en", str(CLIPS / "sentence.flac")]
    assert main(command) == 0
    written = capsys.readouterr()
    assert written.out.strip() == SENTENCE
    assert "The" in written.err  # a partial
    assert main([*command, "--no-second-pass", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    partials = [event["text"] for event in events if event["type"] == "partial"]
    [final] = [event["text"] for event in events if event["type"] == "final" and event["text"]]
    assert final.startswith(partials[-1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--second-pass",), "--second-pass is for live streams: add --stream"),
        (("--stream", "--second-pass", "-m", "embedded-commands"), "has no second pass"),
    ],
)
def test_a_second_pass_that_there_is_not_is_refused(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    assert main(["transcribe", str(CLIPS / "sentence.flac"), *options]) == 2
    assert said in capsys.readouterr().err
