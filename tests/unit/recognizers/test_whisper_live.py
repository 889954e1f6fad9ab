"""Live streams of a random Whisper: finals at pauses, cuts, marks, engine, saving and refusals."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from spoken import pink, speech
from tiny import cut
from tiny_whisper import save_tiny_whisper

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.hotwords import Phrase
from pianissimo.engine.engine import Engine, EngineOptions
from pianissimo.errors import OptionError, StateError
from pianissimo.recognizers.whisper import WhisperRecognizer, read_parts
from pianissimo.streaming.endpoint import EndpointRules
from pianissimo.transcript import StreamEvent

RATE = 16_000
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> WhisperRecognizer:
    folder: Path = tmp_path_factory.mktemp("whisper")
    save_tiny_whisper(folder, multilingual=False)
    return WhisperRecognizer(read_parts(folder), front_end=FrontEnd("on"), detector=VoiceDetector())


def run(
    recognizer: WhisperRecognizer, samples: Samples, sizes: list[int], **options: object
) -> list[StreamEvent]:
    stream = recognizer.stream(**options)  # type: ignore[arg-type]
    events = [e for part in cut(len(samples), sizes) for e in stream.push(samples[part])]
    return events + stream.finish()


def said(events: list[StreamEvent]) -> list[tuple[object, ...]]:
    return [(e.type, e.text, e.start, e.end, e.reason) for e in events]


@pytest.fixture(scope="module")
def two_utterances() -> Samples:
    parts = [speech(3), np.zeros(2 * RATE, np.float32), speech(2), np.zeros(RATE, np.float32)]
    samples: Samples = np.concatenate(parts) + pink(8, -80)
    return samples


def test_each_pause_brings_a_final_and_an_endpoint(
    recognizer: WhisperRecognizer, two_utterances: Samples
) -> None:
    events = run(recognizer, two_utterances, [1280])
    finals = [e for e in events if e.type == "final" and e.text]
    assert [e.reason for e in finals][:1] == ["endpoint"]
    assert len(finals) == 2
    assert finals[0].end <= 3.9 < 4.5 < finals[1].start
    assert any(e.type == "partial" for e in events)
    assert [e.type for e in events].count("endpoint") >= 1


@pytest.mark.parametrize("second_pass", [True, False])
def test_the_size_of_pushes_changes_nothing(
    recognizer: WhisperRecognizer, two_utterances: Samples, second_pass: bool
) -> None:
    expected = said(run(recognizer, two_utterances, [1280], second_pass=second_pass))
    for sizes in ([160, 7_001], [len(two_utterances)]):
        assert said(run(recognizer, two_utterances, sizes, second_pass=second_pass)) == expected


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("second_pass", [True, False])
def test_an_utterance_shorter_than_a_chunk_has_a_final(
    recognizer: WhisperRecognizer, seconds: float, second_pass: bool
) -> None:
    samples = speech(3)[RATE : RATE + round(seconds * RATE)]
    [event] = run(recognizer, samples, [1280], second_pass=second_pass)
    assert (event.type, event.reason, event.end) == ("final", "finish", seconds)
    if seconds == 1.0:
        assert event.text


def test_partials_only_grow_and_finals_without_a_second_pass_keep_them(
    recognizer: WhisperRecognizer, two_utterances: Samples
) -> None:
    last, partials = "", 0
    for event in run(recognizer, two_utterances, [1280], second_pass=False):
        if event.type == "partial":
            assert event.text.startswith(last)
            last, partials = event.text, partials + 1
        elif event.type == "final":
            assert event.text.startswith(last)
            last = ""
    assert partials


def test_speech_without_a_pause_is_cut(recognizer: WhisperRecognizer) -> None:
    rules = EndpointRules(trailing_silence=5.0, maximum_utterance=8.0)
    events = run(recognizer, speech(20) + pink(20, -30), [4000], endpoint=rules)
    finals = [e for e in events if e.type == "final"]
    assert [e.reason for e in finals[:-1]] == ["length"] * (len(finals) - 1)
    assert len(finals) >= 3
    assert all(e.end - e.start <= 8.0 for e in finals)
    assert all(a.end <= b.start + 0.02 for a, b in itertools.pairwise(finals))


def test_silence_costs_no_step_and_has_no_text(recognizer: WhisperRecognizer) -> None:
    stream = recognizer.stream()
    events = stream.push(pink(60, -75)) + stream.finish()
    assert said(events) == [("final", "", 60.0, 60.0, "finish")]
    assert stream._runner.arena.frames == [0, 0]  # no chunk was encoded


def test_a_mark_locks_the_text_and_the_stream_continues(recognizer: WhisperRecognizer) -> None:
    stream = recognizer.stream(endpoint=None)
    first = stream.push(speech(2)) + stream.finalize()
    second = stream.push(speech(2)) + stream.finish()
    assert (first[-1].reason, second[-1].reason) == ("finalize", "finish")
    assert first[-1].text and second[-1].text
    assert first[-1].end <= 2.0 <= second[-1].start + 0.5


def test_an_engine_gives_each_stream_what_it_gets_alone(
    recognizer: WhisperRecognizer, two_utterances: Samples
) -> None:
    sounds = [two_utterances, two_utterances[RATE:], speech(4)]
    alone = [said(run(recognizer, s, [1280])) for s in sounds]
    options = EngineOptions(threads=1, freeze_garbage=False)
    with Engine(recognizer, max_streams=3, options=options) as engine:
        sessions = [engine.open() for _ in sounds]
        for start in range(0, max(map(len, sounds)), 4_000):
            for session, sound in zip(sessions, sounds, strict=True):
                session.push(sound[start : start + 4_000])
        for session in sessions:
            session.finish()
        for session, expected in zip(sessions, alone, strict=True):
            finals = [e for e in said(list(session)) if e[0] != "partial"]
            assert finals == [e for e in expected if e[0] != "partial"]


@pytest.mark.parametrize("second_pass", [True, False])
def test_hotwords_belong_to_a_stream_also_when_it_is_saved(
    recognizer: WhisperRecognizer, two_utterances: Samples, second_pass: bool
) -> None:
    """Two streams of an engine, one with a hotword; both end as they do alone."""
    boost = [Phrase("zz", 5.0)]
    plain = run(recognizer, two_utterances, [1280], second_pass=second_pass)
    alone = run(recognizer, two_utterances, [1280], second_pass=second_pass, boost=boost)
    texts = [[e.text.lower() for e in events if e.type == "final"] for events in (plain, alone)]
    assert texts[1][0].count(" z") > texts[0][0].count(" z")
    options = EngineOptions(threads=1, freeze_garbage=False)
    half = 2 * RATE + 77
    with Engine(recognizer, max_streams=3, options=options) as engine:
        boosted = engine.open(boost=boost, second_pass=second_pass)
        other = engine.open(second_pass=second_pass)
        for session in (boosted, other):
            session.push(two_utterances[:half])
        saved = boosted.export()
        boosted.close()
        again = engine.open(state=saved)
        for session in (again, other):
            session.push(two_utterances[half:])
            session.finish()
        found = [e.text.lower() for e in [*boosted, *again] if e.type == "final"]
        assert found == texts[1]
        assert [e.text.lower() for e in other if e.type == "final"] == texts[0]


def test_a_saved_stream_continues_with_the_same_words(
    recognizer: WhisperRecognizer, two_utterances: Samples
) -> None:
    """Times may differ by a few frames: the last bits of a sum depend on where the state lies."""
    expected = [e for e in said(run(recognizer, two_utterances, [1280])) if e[0] != "partial"]
    options = EngineOptions(threads=1, freeze_garbage=False)
    half = 2 * RATE + 77  # inside the first utterance
    with Engine(recognizer, max_streams=2, options=options) as engine:
        session = engine.open()
        session.push(two_utterances[:half])
        saved = session.export()
        session.close()
        found = [e for e in session]
        again = engine.open(state=saved)
        again.push(two_utterances[half:])
        again.finish()
        found += list(again)
        got = [e for e in said(found) if e[0] != "partial"]
        assert [(e[0], e[1], e[4]) for e in got] == [(e[0], e[1], e[4]) for e in expected]
        assert [e[2:4] for e in got] == [pytest.approx(e[2:4], abs=0.1) for e in expected]
        with pytest.raises(StateError):
            engine.open(state=saved[:-100])


def test_what_it_cannot_do_is_refused(recognizer: WhisperRecognizer) -> None:
    assert recognizer.capabilities.latencies_ms == (1120,)
    assert recognizer.capabilities.batched_streams and recognizer.capabilities.hotwords
    with pytest.raises(OptionError, match=r"160 ms is not a latency mode .*distilled"):
        recognizer.stream(latency_ms=160)
    with pytest.raises(OptionError, match="1 to 200 characters"):
        recognizer.stream(boost=[" "])
    with pytest.raises(OptionError, match="language"):
        recognizer.stream(language="de")
