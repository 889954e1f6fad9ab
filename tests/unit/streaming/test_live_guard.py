"""Guards on live streams: what nothing speaks for is held back, and nothing shown is taken back."""

import itertools

import numpy as np
import pytest
from spoken import pink, speech
from tiny import cut

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.vad import VoiceDetector
from pianissimo.engine.engine import Engine, EngineOptions
from pianissimo.hallucination.evidence import REASONS
from pianissimo.models.asr import AsrModel
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.streaming.endpoint import EndpointRules
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import StreamEvent

RATE = 16_000
RULES = EndpointRules(maximum_utterance=2.0)


@pytest.fixture(scope="module")
def recognizer(talker: AsrModel, tiny_tokenizer: Tokenizer) -> NativeRecognizer:
    """Says something to any sound; its detector goes by the energy."""
    return NativeRecognizer(
        talker, tiny_tokenizer, front_end=FrontEnd("on"), detector=VoiceDetector()
    )


@pytest.fixture(scope="module")
def unguarded(talker: AsrModel, tiny_tokenizer: Tokenizer) -> NativeRecognizer:
    return NativeRecognizer(talker, tiny_tokenizer, front_end=FrontEnd("on"))


def run(
    recognizer: NativeRecognizer, samples: np.ndarray, sizes: list[int], **options: object
) -> list[StreamEvent]:
    stream = recognizer.stream(latency_ms=160, **options)  # type: ignore[arg-type]
    events = [e for part in cut(len(samples), sizes) for e in stream.push(samples[part])]
    return events + stream.finish()


def said(events: list[StreamEvent]) -> list[tuple[object, ...]]:
    return [(e.type, e.text, e.start, e.end, e.reason, e.reasons) for e in events]


@pytest.mark.parametrize("endpoint", [None, RULES], ids=["finish", "length"])
def test_steady_noise_shows_nothing(
    recognizer: NativeRecognizer, unguarded: NativeRecognizer, endpoint: EndpointRules | None
) -> None:
    noise = pink(5, -50)
    assert len(run(unguarded, noise, [1280], endpoint=endpoint)) > 3
    (final,) = run(recognizer, noise, [1280], endpoint=endpoint)
    assert (final.type, final.text, final.words) == ("final", "", ())
    assert final.reason == "finish"
    if endpoint is None:
        assert "low_evidence" in final.reasons


def test_speech_is_shown_as_before(
    recognizer: NativeRecognizer, unguarded: NativeRecognizer
) -> None:
    samples = np.concatenate([speech(4, -45), np.zeros(RATE, np.float32)])
    samples += pink(5, -75)
    guarded, free = (run(one, samples, [1280], endpoint=None) for one in (recognizer, unguarded))
    assert len(guarded[-1].words) > 0.8 * len(free[-1].words) > 5
    assert set(guarded[-1].text.split()) <= set(free[-1].text.split())
    assert len(guarded) > 3


def test_what_is_shown_only_grows_and_is_never_taken_back(recognizer: NativeRecognizer) -> None:
    samples = np.concatenate([pink(3, -60), speech(3, -40) + pink(3, -60, 1), pink(4, -60, 2)])
    events = run(recognizer, samples, [1280], endpoint=RULES)
    assert any(event.type == "partial" for event in events)
    for before, after in itertools.pairwise(events):
        if before.type == "partial" and after.reason != "length":  # that one ends a word earlier
            assert after.text.startswith(before.text)
    assert {reason for event in events for reason in event.reasons} <= set(REASONS)


@pytest.mark.parametrize("sizes", [[160], [1279, 7], [5000, 0, 100], [200_000]])
def test_blocks_of_any_size_are_judged_alike(
    recognizer: NativeRecognizer, sizes: list[int]
) -> None:
    samples = np.concatenate([pink(2, -60), speech(2.5, -45) + pink(2.5, -60, 1), pink(2, -60, 2)])
    found, expected = (run(recognizer, samples, s) for s in (sizes, [1280]))
    assert said(found) == said(expected)


def test_words_invented_before_the_speech_are_left_out(
    recognizer: NativeRecognizer, unguarded: NativeRecognizer
) -> None:
    noise = pink(3, -60)
    samples = np.concatenate([noise, speech(2, -35) + pink(2, -60, 1)])
    *partials, final = run(recognizer, samples, [1280], endpoint=None)
    free = run(unguarded, samples, [1280], endpoint=None)[-1]
    assert final.text.startswith(partials[0].text)
    # A word of which the recognizer is sure stands anyway.
    early, spoken = (
        [w for w in final.words if (w.end < 2.5) == is_early] for is_early in (True, False)
    )
    assert len(spoken) > 5
    assert all(word.confidence is not None and word.confidence > 0.8 for word in early)
    assert len(early) < 0.3 * sum(word.end < 2.5 for word in free.words)


def test_a_short_stream_made_on_purpose_is_kept(
    recognizer: NativeRecognizer, unguarded: NativeRecognizer
) -> None:
    word = speech(0.8, -30)
    assert run(recognizer, word, [1280])[-1].text == run(unguarded, word, [1280])[-1].text


@pytest.mark.parametrize("latency", [80, 1120])
def test_speech_at_the_very_end_counts(recognizer: NativeRecognizer, latency: int) -> None:
    """Behind the last chunk of the model and the last step of the detector."""
    samples = np.concatenate([pink(0.7, -60), speech(3, -20)[RATE // 2 :][: RATE // 3]])
    stream = recognizer.stream(latency_ms=latency, endpoint=None)
    final = [*stream.push(samples), *stream.finish()][-1]
    assert "silence" not in final.reasons
    assert final.text


def test_without_gain_or_detector_nothing_is_held_back(
    talker: AsrModel, tiny_tokenizer: Tokenizer, unguarded: NativeRecognizer
) -> None:
    noise = pink(2, -50)
    off = NativeRecognizer(
        talker, tiny_tokenizer, front_end=FrontEnd("off"), detector=VoiceDetector()
    )
    assert run(off, noise, [1280])[-1].text
    assert run(unguarded, noise, [1280])[-1].text


def test_the_engine_guards_too_unless_told_not_to(recognizer: NativeRecognizer) -> None:
    noise, texts = pink(3, -50), {}
    for guard in (True, False):
        options = EngineOptions(freeze_garbage=False, guard=guard)
        with Engine(recognizer, max_streams=1, options=options) as engine:
            session = engine.open(latency_ms=160, endpoint=None)
            session.push(noise)
            session.finish()
            events = list(session)
        texts[guard] = events[-1].text
        assert guard == (len(events) == 1)
    assert texts[True] == ""
    assert texts[False]


def test_an_exported_stream_is_judged_as_if_it_had_stayed(recognizer: NativeRecognizer) -> None:
    samples = np.concatenate([pink(1, -60), speech(4, -40), pink(1, -60, 1)])
    options = EngineOptions(freeze_garbage=False)
    found = []
    for at in (None, 20_000, 50_000):
        with Engine(recognizer, max_streams=2, options=options) as engine:
            session = engine.open(latency_ms=160, endpoint=None)
            session.push(samples[:at])
            if at is not None:
                state = session.export()
                session.close()
                session = engine.open(state=state, endpoint=None)
                session.push(samples[at:])
            session.finish()
            found.append(list(session)[-1])
    assert found[0] == found[1] == found[2]
    assert found[0].text
