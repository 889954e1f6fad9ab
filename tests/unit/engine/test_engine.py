"""The engine as its clients see it: threads, events, refusals; numbers are test_runner's."""

import asyncio
import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clock import Clock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import WHOLE_CONTEXT, cut, make_model, make_talker, noise, tensor

from pianissimo.audio.front_end import FrontEnd
from pianissimo.engine import base as base_module
from pianissimo.engine import engine as engine_module
from pianissimo.engine.base import Answered
from pianissimo.engine.engine import Engine, EngineOptions
from pianissimo.engine.single import SingleStream
from pianissimo.errors import (
    AudioValueError,
    BacklogError,
    EngineError,
    EngineFullError,
    OptionError,
    StateError,
    StreamError,
)
from pianissimo.models.asr import AsrModel, LanguagePrompt, PromptConfig
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.streaming.endpoint import EndpointRules
from pianissimo.streaming.session import Session
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import StreamEvent

LATENCIES = (80, 160, 560, 1120)
SOON = 60.0
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def recognizer(talker: AsrModel, tiny_tokenizer: Tokenizer) -> NativeRecognizer:
    return NativeRecognizer(talker, tiny_tokenizer)


@pytest.fixture
def engine(recognizer: NativeRecognizer) -> Iterator[Engine]:
    with make_engine(recognizer) as engine:
        yield engine


def make_engine(recognizer: NativeRecognizer, max_streams: int = 4, **options: Any) -> Engine:
    quick = EngineOptions(**{"threads": 1, "freeze_garbage": False, **options})
    return Engine(recognizer, max_streams=max_streams, options=quick)


def said(session: Session) -> list[StreamEvent]:
    """All events until the end; a stream that hangs fails instead."""
    events = []
    while (event := session.get(timeout=SOON)) is not None:
        events.append(event)
    return events


def text_of(events: list[StreamEvent]) -> str:
    return " ".join(e.text for e in events if e.type == "final" and e.text)


def alone(recognizer: NativeRecognizer, samples: Samples, latency_ms: int) -> StreamEvent:
    with recognizer.stream(latency_ms=latency_ms, endpoint=None, watchdog=None) as stream:
        stream.push(samples)
        return stream.finish()[-1]


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbors", [1, 7, 64])
def test_text_does_not_depend_on_the_neighbours(
    recognizer: NativeRecognizer, neighbors: int
) -> None:
    """Streams of all modes come and go at random while one is watched."""
    rng = random.Random(neighbors)
    watched = noise(90_000, seed=3)
    with make_engine(recognizer, neighbors + 1) as engine:
        for latency in LATENCIES if neighbors < 64 else (160,):
            expected = alone(recognizer, watched, latency)
            session = engine.open(latency_ms=latency, endpoint=None, watchdog=None)
            others: list[Session] = []
            for part in cut(len(watched), [700, 3000], seed=latency):
                if len(others) < neighbors:
                    others.append(engine.open(latency_ms=rng.choice(LATENCIES)))
                for other in others:
                    other.push(noise(rng.randint(0, 4000), seed=rng.randint(0, 99)) * 3)
                if rng.random() < 0.2:
                    others.pop(rng.randrange(len(others))).close()
                session.push(watched[part])
            session.finish()
            final = said(session)[-1]
            assert (final.text, [w.start for w in final.words]) == (
                expected.text,
                [w.start for w in expected.words],
            )
            assert len(final.words) > 5
            for other in others:
                other.close()


def test_streams_pushed_in_one_call_say_what_each_says_alone(
    recognizer: NativeRecognizer,
) -> None:
    clips = [noise(60_000 + 700 * i, seed=i) for i in range(4)]
    expected = [alone(recognizer, clip, LATENCIES[i]) for i, clip in enumerate(clips)]
    with make_engine(recognizer) as engine:
        sessions = [
            engine.open(latency_ms=latency, endpoint=None, watchdog=None) for latency in LATENCIES
        ]
        pieces = [list(cut(len(clip), [160, 1600, 9000], seed=i)) for i, clip in enumerate(clips)]
        for turn in range(max(map(len, pieces))):
            pushes = [
                (session, clip[parts[turn]])
                for session, clip, parts in zip(sessions, clips, pieces, strict=True)
                if turn < len(parts)
            ]
            assert Session.push_many(pushes) == [None] * len(pushes)
        for session, final in zip(sessions, expected, strict=True):
            session.finish()
            assert said(session)[-1] == final


def test_a_stream_that_refuses_its_samples_does_not_affect_the_others(engine: Engine) -> None:
    ended, broken, good, full = [engine.open(endpoint=None) for _ in range(4)]
    ended.finish()
    engine.backlog_limit = 0.0
    errors = Session.push_many([(full, noise(160))])
    assert isinstance(errors[0], BacklogError)
    engine.backlog_limit = 60.0
    errors = Session.push_many(
        [(ended, noise(160)), (broken, np.full(160, np.nan)), (good, noise(32_000, seed=3) * 3)]
    )
    assert isinstance(errors[0], StreamError)
    assert isinstance(errors[1], AudioValueError)
    assert errors[2] is None
    good.finish()
    assert said(good)[-1].end == 2.0


@pytest.mark.parametrize("latency", LATENCIES)
def test_the_engine_says_what_the_recognizer_says(
    engine: Engine, recognizer: NativeRecognizer, latency: int
) -> None:
    samples = noise(70_003, seed=1)
    whole = recognizer.transcribe(samples, sample_rate=16_000, latency_ms=latency)
    session = engine.open(latency_ms=latency, endpoint=None)
    for part in cut(len(samples), [1, 160, 4000]):
        session.push(samples[part])
    session.finish()
    final = said(session)[-1]
    assert final.reason == "finish"
    assert final.text == whole.text
    assert [(w.text, w.start, w.end) for w in final.words] == [
        (w.text, w.start, w.end) for w in whole.words
    ]


def test_partials_only_grow_and_the_final_begins_with_the_last(engine: Engine) -> None:
    session = engine.open(latency_ms=80)
    samples = noise(48_000)
    events: list[StreamEvent] = []
    for part in cut(len(samples), [1280]):
        session.push(samples[part])
        while (event := session.get_nowait()) is not None:
            events.append(event)
    session.finish()
    events += said(session)
    assert sum(e.type == "partial" for e in events) >= 2
    for before, after in itertools.pairwise(events):
        if before.type == "partial" and after.type in ("partial", "final"):
            assert after.text.startswith(before.text)


def test_other_rates_integers_and_channels_are_taken(
    engine: Engine, recognizer: NativeRecognizer
) -> None:
    samples = noise(24_000, seed=2)
    integers = np.repeat((samples * 32767).astype(np.int16)[:, None], 2, axis=1)
    session = engine.open(sample_rate=8_000, endpoint=None)
    for part in cut(len(samples), [333]):
        session.push(integers[part], 8_000)
    session.finish()
    with recognizer.stream(sample_rate=8_000, endpoint=None) as stream:
        stream.push(integers)
        expected = stream.finish()[-1]
    assert said(session)[-1].text == expected.text != ""


# -- languages -------------------------------------------------------------------------------------

LANGUAGES = (LanguagePrompt("auto", 0), LanguagePrompt("de-DE", 1), LanguagePrompt("en-US", 2))


@pytest.fixture(scope="module")
def polyglot(tiny_tokenizer: Tokenizer) -> NativeRecognizer:
    """A model whose text depends on its language prompt."""
    prompts = PromptConfig(count=3, hidden=16, default=0, languages=LANGUAGES)
    pieces = tiny_tokenizer.vocab_size
    model = make_talker(-2.0, vocab_size=pieces, prompts=prompts, max_symbols=2)
    assert model.prompt is not None
    with torch.no_grad():
        model.prompt.up.weight[:, -prompts.count :] = 3 * tensor(prompts.hidden, prompts.count)
    return NativeRecognizer(model, tiny_tokenizer)


def test_streams_of_several_languages_in_one_batch_equal_each_alone(
    polyglot: NativeRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, asked, expected = noise(40_000), ("de", "en-US", None, "auto"), []
    for language in asked:
        with polyglot.stream(latency_ms=160, endpoint=None, language=language) as stream:
            stream.push(samples)
            expected.append(stream.finish()[-1].text)
    assert len(set(expected)) == 3 and expected[2] == expected[3]
    sizes: list[int] = []
    with make_engine(polyglot) as engine:
        step = engine.runner.step

        def counted(works: Any, grid: Any) -> Any:
            sizes.append(len(works))
            return step(works, grid)

        monkeypatch.setattr(engine.runner, "step", counted)
        sessions = [engine.open(latency_ms=160, endpoint=None, language=each) for each in asked]
        with engine.lock:  # all are queued before the next step
            for session in sessions:
                session.push(samples)
                session.finish()
        assert [said(session)[-1].text for session in sessions] == expected
        assert max(sizes) == len(asked)
        with pytest.raises(OptionError, match="has no language 'fr'"):
            engine.open(language="fr")


def test_an_exported_stream_keeps_its_language(polyglot: NativeRecognizer) -> None:
    samples = noise(40_000)
    with polyglot.stream(latency_ms=160, endpoint=None, language="de") as stream:
        stream.push(samples)
        expected = stream.finish()[-1].text
    with make_engine(polyglot) as engine:
        first = engine.open(latency_ms=160, endpoint=None, language="de")
        first.push(samples[:15_000])
        state = first.export()
        first.close()
        second = engine.open(state=state, endpoint=None)
        second.push(samples[15_000:])
        second.finish()
        assert said(second)[-1].text == expected


def changed(
    stream: SingleStream | Session, samples: Samples, at: int, *, finalize: bool
) -> list[str]:
    """The finals of a stream whose language is changed to "en-US" after `at` samples."""
    events = [stream.push(samples[:at])]
    if finalize:
        events.append(stream.finalize())
    stream.set_language("en-US")
    events += [stream.push(samples[at:]), stream.finish()]
    if isinstance(stream, Session):
        return [event.text for event in said(stream) if event.type == "final"]
    return [e.text for part in events for e in part or () if e.type == "final"]


def test_the_language_changes_between_utterances(polyglot: NativeRecognizer) -> None:
    samples, at = noise(60_000), 29_000
    alone: dict[str, list[str]] = {}
    for language in ("de", "en-US"):
        with polyglot.stream(latency_ms=160, endpoint=None, language=language) as stream:
            events = [*stream.push(samples[:at]), *stream.finalize()]
            events += [*stream.push(samples[at:]), *stream.finish()]
        alone[language] = [event.text for event in events if event.type == "final"]
    with polyglot.stream(latency_ms=160, endpoint=None, language="de") as stream:
        assert isinstance(stream, SingleStream)
        first, second = changed(stream, samples, at, finalize=True)
        with pytest.raises(StreamError, match="this stream has ended"):
            stream.set_language("de")
    assert first == alone["de"][0] and second not in (alone["de"][1], "")
    with polyglot.stream(latency_ms=160, endpoint=None, language="de") as stream:
        assert isinstance(stream, SingleStream)  # one utterance keeps its language
        (whole,) = changed(stream, samples, at, finalize=False)
    assert whole.startswith(first) and whole != " ".join([first, second])
    with make_engine(polyglot) as engine:
        streams = [engine.open(latency_ms=160, endpoint=None, language="de") for _ in range(3)]
        assert changed(streams[0], samples, at, finalize=True) == [first, second]
        assert changed(streams[1], samples, at, finalize=False) == [whole]
        (other,) = changed(streams[2], samples, 0, finalize=False)
        with polyglot.stream(latency_ms=160, endpoint=None, language="en-US") as stream:
            stream.push(samples)
            assert other == stream.finish()[-1].text  # before its first utterance
        with pytest.raises(OptionError, match="has no language 'fr'"):
            engine.open().set_language("fr")


def test_an_exported_stream_keeps_a_change_of_its_language(polyglot: NativeRecognizer) -> None:
    samples = noise(60_000)
    with polyglot.stream(latency_ms=160, endpoint=None, language="de") as stream:
        assert isinstance(stream, SingleStream)
        expected = changed(stream, samples, 29_000, finalize=True)
    with make_engine(polyglot) as engine:
        first = engine.open(latency_ms=160, endpoint=None, language="de")
        first.push(samples[:29_000])
        first.finalize()
        finals = [next(e.text for e in first if e.type == "final")]
        first.set_language("en-US")
        state = first.export()
        first.close()
        second = engine.open(state=state, endpoint=None)
        second.push(samples[29_000:])
        second.finish()
        finals += [event.text for event in said(second) if event.type == "final"]
    assert finals == expected


def test_the_language_is_reported_where_it_can_be_chosen(
    polyglot: NativeRecognizer, recognizer: NativeRecognizer
) -> None:
    samples = noise(40_000)
    with polyglot.stream(latency_ms=160, language="de", endpoint=None) as stream:
        events = [*stream.push(samples), *stream.finish()]
    assert {event.language for event in events if event.text} == {"de-DE"}
    with recognizer.stream(latency_ms=160, endpoint=None) as stream:
        events = [*stream.push(samples), *stream.finish()]
    assert {event.language for event in events} == {None}


def test_recordings_have_a_language_each(polyglot: NativeRecognizer) -> None:
    samples = noise(40_000)
    texts = {}
    for language in ("de-DE", "en-US"):
        found = polyglot.in_language(language).transcribe(samples, sample_rate=16_000)
        assert found.language == language
        texts[language] = found.text
        both = polyglot.in_language(language).transcribe_together([samples[:16_000], samples])
        assert [each.language for each in both] == [language] * 2
    assert texts["de-DE"] != texts["en-US"]
    assert polyglot.transcribe(samples, sample_rate=16_000).language is None
    with pytest.raises(OptionError, match="has no language 'fr'"):
        polyglot.in_language("fr")


# -- finalize --------------------------------------------------------------------------------------


def test_every_finalize_is_answered_once_also_when_there_is_nothing(engine: Engine) -> None:
    session = engine.open(latency_ms=1120, endpoint=None)
    session.finalize()
    samples = noise(50_000)
    session.push(samples[:20_000])
    session.finalize()
    session.finalize()
    session.push(samples[20_000:])
    session.finalize()
    session.finish()
    finals = [e for e in said(session) if e.type == "final"]
    assert [e.reason for e in finals] == ["finalize"] * 4 + ["finish"]
    assert [bool(e.text) for e in finals] == [False, True, False, True, False]
    words = [w for e in finals for w in e.words]
    for before, after in itertools.pairwise(words):
        assert before.end <= after.start + 1e-6


def test_finalize_locks_the_words_of_the_unfinished_chunk(
    engine: Engine, recognizer: NativeRecognizer
) -> None:
    """Without waiting for the rest of the chunk: it says what a stream that ends there says."""
    samples = noise(25_000, seed=4)
    expected = alone(recognizer, samples, 1120)
    session = engine.open(latency_ms=1120, endpoint=None)
    session.push(samples)
    session.finalize()
    final = session.get(timeout=SOON)
    while final is not None and final.type != "final":
        final = session.get(timeout=SOON)
    assert final is not None
    assert (final.text, final.reason) == (expected.text, "finalize")
    assert expected.text
    session.close()


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1_000_000))
def test_any_order_of_calls_gives_consistent_events(
    recognizer: NativeRecognizer, shared: Engine, seed: int
) -> None:
    """push, finalize, finish, close of several streams, interleaved at random."""
    rng = random.Random(seed)
    sessions: list[tuple[Session, list[str]]] = []
    for _ in range(rng.randint(5, 60)):
        action = rng.random()
        if action < 0.15 and len(sessions) < 6:
            latency = rng.choice(LATENCIES)
            sessions.append((shared.open(latency_ms=latency), []))
            continue
        if not sessions:
            continue
        session, done = rng.choice(sessions)
        if "finish" in done or "close" in done:
            for late in (session.finalize, session.finish, lambda s=session: s.push([0.0])):
                with pytest.raises(StreamError):
                    late()
            session.close()
            done.append("close")
        elif action < 0.8:
            session.push(noise(rng.choice([0, 1, 160, 5000, 20_000]), seed=rng.randint(0, 9)))
        elif action < 0.9:
            session.finalize()
            done.append("finalize")
        elif action < 0.96:
            session.finish()
            done.append("finish")
        else:
            session.close()
            done.append("close")
    for session, done in sessions:
        if "finish" not in done and "close" not in done:
            session.finish()
            done.append("finish")
        if "close" in done:
            session.close()
            continue
        events = said(session)
        reasons = [e.reason for e in events if e.type == "final"]
        assert reasons.count("finalize") == done.count("finalize")
        assert reasons.count("finish") == 1
        assert events[-1].reason == "finish"
        words = [w for e in events if e.type == "final" for w in e.words]
        for before, after in itertools.pairwise(words):
            assert before.start <= after.start
        assert session.get(timeout=SOON) is None
    assert settled(shared)


@pytest.fixture(scope="module")
def shared(recognizer: NativeRecognizer) -> Iterator[Engine]:
    with make_engine(recognizer, 6) as engine:
        yield engine


def settled(engine: Engine) -> bool:
    """Whether all slots come back once the step under way is over."""
    with engine._room:
        return engine._room.wait_for(
            lambda: engine._slots.used == 0 and engine.stats.streams == 0, SOON
        )


# -- endpoints -------------------------------------------------------------------------------------


class Mute:
    """A search that finds nothing while `silent`, and otherwise what the real one finds."""

    def __init__(self, search: Any) -> None:
        self._search, self.silent, self.fails = search, False, False

    def start(self, batch: int = 1, tries: Any = None) -> Any:
        return self._search.start(batch, tries)

    def decode(self, encoded: Any, lengths: Any, state: Any) -> Any:
        if self.fails:
            raise RuntimeError("out of luck")
        if not self.silent:
            return self._search.decode(encoded, lengths, state)
        return self._search.decode(encoded[:, :0], lengths, state)


@pytest.fixture
def mute(talker: AsrModel, tiny_tokenizer: Tokenizer) -> NativeRecognizer:
    recognizer = NativeRecognizer(talker, tiny_tokenizer)
    recognizer.live_search = Mute(recognizer.live_search)
    return recognizer


def test_a_pause_ends_the_utterance_and_keeps_the_caches(mute: NativeRecognizer) -> None:
    with mute.stream(latency_ms=80, watchdog=None) as stream:
        events = stream.push(noise(32_000))
        mute.live_search.silent = True
        events = stream.push(noise(32_000, seed=1))
        key = stream._runner.arena.tensors["key"].clone()
        assert [e.type for e in events] == ["final", "endpoint"]
        assert events[0].reason == "endpoint"
        assert events[0].text
        assert events[1].start == events[1].end == events[0].end
        mute.live_search.silent = False
        again = stream.push(noise(16_000, seed=2))
        assert again[0].type == "partial"
        assert bool(key.any())
        assert stream._runner.arena.frames[0] > 50


def test_when_asked_a_voice_keeps_the_utterance_open(mute: NativeRecognizer) -> None:
    """The model falls silent, the speaker does not: with `voice` that is no endpoint."""
    loud = np.convolve(bursts(4.0), np.full(5, 0.2), "same").astype(np.float32)
    quiet = noise(40_000, seed=2) * 1e-4
    for voice, expected in ((False, True), (True, False)):
        mute.live_search.silent = False
        rules = EndpointRules(voice=voice)
        with mute.stream(latency_ms=80, endpoint=rules, watchdog=None) as stream:
            stream.push(np.concatenate([quiet, loud]))
            mute.live_search.silent = True
            events = stream.push(loud)
            assert any(e.type == "endpoint" for e in events) == expected
            events += stream.push(quiet)
            assert sum(e.type == "endpoint" for e in events) == 1


def test_without_rules_nothing_ends_an_utterance(mute: NativeRecognizer) -> None:
    with mute.stream(latency_ms=80, endpoint=None, watchdog=None) as stream:
        stream.push(noise(32_000))
        mute.live_search.silent = True
        assert stream.push(noise(64_000, seed=1)) == []


def test_whoever_never_pauses_gets_finals_at_words(recognizer: NativeRecognizer) -> None:
    samples = noise(160_000, seed=8)
    rules = EndpointRules(maximum_utterance=2.0)
    with recognizer.stream(latency_ms=80, endpoint=rules) as stream:
        events = [e for part in cut(160_000, [4000]) for e in stream.push(samples[part])]
        events += stream.finish()
    finals = [e for e in events if e.type == "final"]
    assert [e.reason for e in finals][-1] == "finish"
    lengths = [e for e in finals if e.reason == "length"]
    assert len(lengths) >= 3
    assert all(e.end - e.start <= 2.3 for e in lengths)
    with recognizer.stream(latency_ms=80, endpoint=None) as stream:
        whole = stream.push(samples)[-1:] + stream.finish()
    parts = [w.text for e in finals for w in e.words]
    assert parts == [w.text for w in whole[-1].words]


# -- the watchdog ----------------------------------------------------------------------------------


def bursts(seconds: float) -> Samples:
    """Sound that stands out of its background, as speech does."""
    samples = noise(round(seconds * 16_000), seed=11)
    samples *= np.where(np.arange(len(samples)) // 4000 % 2 == 0, 1.0, 0.001)
    return samples


def test_a_model_that_fell_silent_hears_the_last_seconds_anew(mute: NativeRecognizer) -> None:
    sound = bursts(14.0)
    with mute.stream(latency_ms=160, endpoint=None) as stream:
        mute.live_search.silent = True
        for start in range(0, len(sound), 1600):
            stream.push(sound[start : start + 1600])
            if stream.replays:
                mute.live_search.silent = False
        final = stream.finish()[-1]
    assert stream.replays == 1
    # Words from before the moment at which the search spoke again: they were heard anew.
    assert final.words[0].start < 5.0
    assert final.words[-1].end <= len(sound) / 16_000
    starts = [w.start for w in final.words]
    assert starts == sorted(starts)


def test_the_watchdog_does_not_repeat_itself_in_vain(mute: NativeRecognizer) -> None:
    mute.live_search.silent = True
    with make_engine(mute) as engine:
        session = engine.open(latency_ms=560)
        session.push(bursts(40.0))
        session.finish()
        assert text_of(said(session)) == ""
        assert session.replays == engine.stats.replays == 1


def test_silence_does_not_wake_the_watchdog(mute: NativeRecognizer) -> None:
    mute.live_search.silent = True
    with mute.stream(latency_ms=160) as stream:
        stream.push(np.zeros(480_000, np.float32))
        assert stream.replays == 0


def test_two_minutes_of_nothing_do_not_break_a_stream(
    recognizer: NativeRecognizer, engine: Engine
) -> None:
    """Digital silence, an offset, clipping: no exception, and the stream still hears."""
    odd = [
        np.zeros(1_920_000, np.float32),  # twice the longest utterance
        np.full(32_000, 0.4, np.float32),
        np.clip(noise(32_000) * 50, -1, 1),
    ]
    session = engine.open(latency_ms=1120)
    for samples in odd:
        session.push(samples)
    session.finalize()
    while (event := session.get(timeout=SOON)) is None or event.reason != "finalize":
        pass
    begun = sum(map(len, odd)) / 16_000
    session.push(noise(64_000, seed=5))
    session.finish()
    words = [w for e in said(session) if e.type == "final" for w in e.words]
    assert len(words) > 3
    assert all(w.start >= begun - 2.4 for w in words)


# -- clients of every kind -------------------------------------------------------------------------


def test_events_are_iterated(engine: Engine) -> None:
    with engine.open() as session:
        session.push(noise(40_000))
        session.finish()
        events = list(session)
    assert events[-1].reason == "finish"
    assert list(session) == []


def test_events_are_iterated_in_asyncio(engine: Engine) -> None:
    async def client(seed: int) -> list[StreamEvent]:
        session = engine.open(latency_ms=80)

        async def speak() -> None:
            samples = noise(30_000, seed=seed)
            for part in cut(len(samples), [2000]):
                session.push(samples[part])
                await asyncio.sleep(0.001)
            session.finish()

        task = asyncio.create_task(speak())
        events = [event async for event in session]
        await task
        return events

    async def both() -> list[list[StreamEvent]]:
        return await asyncio.wait_for(asyncio.gather(client(1), client(2)), SOON)

    for events in asyncio.run(both()):
        assert events[-1].reason == "finish"
        assert text_of(events)


def test_a_loop_that_is_gone_disturbs_nobody(engine: Engine) -> None:
    session = engine.open(latency_ms=80)

    async def leave() -> None:
        await anext(aiter(session), None)

    session.push(noise(20_000))
    asyncio.run(leave())
    session.push(noise(20_000))
    session.finish()
    assert said(session)[-1].reason == "finish"


def test_many_threads_push_at_once(recognizer: NativeRecognizer) -> None:
    sounds = [noise(40_000, seed=i) for i in range(8)]
    expected = [alone(recognizer, s, LATENCIES[i % 4]).text for i, s in enumerate(sounds)]
    found: dict[int, str] = {}
    with make_engine(recognizer, 8) as engine:

        def client(i: int) -> None:
            with engine.open(latency_ms=LATENCIES[i % 4], endpoint=None) as session:
                for part in cut(40_000, [777], seed=i):
                    session.push(sounds[i][part])
                session.finish()
                found[i] = text_of(said(session))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
    assert [found.get(i) for i in range(8)] == expected


def test_a_minute_at_once_does_not_hold_up_the_others(recognizer: NativeRecognizer) -> None:
    with make_engine(recognizer) as engine:
        greedy = engine.open(latency_ms=80)
        greedy.push(noise(960_000))
        other = engine.open(latency_ms=80)
        other.push(noise(20_000, seed=1))
        other.finish()
        assert said(other)[-1].reason == "finish"
        assert greedy.backlog_seconds > 10
        greedy.close()


def test_who_does_not_read_is_paused_and_goes_on_when_he_does(mute: NativeRecognizer) -> None:
    with make_engine(mute, unread_events=4, backlog_seconds=2.0) as engine:
        session = engine.open(latency_ms=80, endpoint=None)
        for _ in range(20):
            session.push(noise(1600), timeout=SOON)
            session.finalize()
        session.push(noise(64_000))
        with pytest.raises(BacklogError, match="read its events"):
            session.push(noise(16_000), timeout=0.05)
        with pytest.raises(BacklogError):
            session.push(noise(16_000), wait=False)
        assert len(session.stream.mailbox) <= 4
        other = engine.open()
        other.push(noise(16_000))
        other.finish()
        assert said(other)[-1].reason == "finish"
        session.finish()
        events = said(session)
    assert sum(e.reason == "finalize" for e in events) == 20
    assert events[-1].reason == "finish"


def test_who_waits_and_who_waited_is_told(
    recognizer: NativeRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for module in (base_module, engine_module):
        monkeypatch.setattr(module, "time", clock)
    begun, gate = threading.Semaphore(0), threading.Semaphore(0)
    with make_engine(recognizer) as engine:
        assert engine.queue_age() == 0.0
        engine.open().finish()
        assert settled(engine), "the engine is warm when its first client has gone"
        step = engine.runner.step

        def held(works: Any, grid: Any) -> Any:
            begun.release()
            assert gate.acquire(timeout=SOON)
            return step(works, grid)

        monkeypatch.setattr(engine.runner, "step", held)
        slow, quick = engine.open(latency_ms=160), engine.open(latency_ms=80)
        slow.push(noise(16_000))
        assert begun.acquire(timeout=SOON)
        clock.now += 3
        assert engine.queue_age() == 3, "work counts as long as its step takes"
        quick.push(noise(16_000))
        clock.now += 1
        assert engine.queue_age() == 4, "the oldest counts"
        gate.release()
        assert begun.acquire(timeout=SOON)  # quick's first: it queued before slow's second
        clock.now += 2
        assert engine.queue_age() == 3
        gate.release()
        assert begun.acquire(timeout=SOON)  # slow's second, which waited for quick's first
        clock.now += 0.5
        assert engine.queue_age() == 2.5
        gate.release(100)
        for session in (slow, quick):
            session.finish()
            said(session)
        assert engine.queue_age() == 0.0
        assert list(engine.stats.answered)[:3] == [
            Answered(0.16, 4.0, 1004.0),
            Answered(0.08, 3.0, 1006.0),
            Answered(0.16, 2.5, 1006.5),
        ]
        assert len(engine.stats.answered) == engine.stats.chunks


# -- what goes wrong -------------------------------------------------------------------------------


def test_a_full_engine_refuses_and_recovers(engine: Engine) -> None:
    sessions = [engine.open() for _ in range(4)]
    with pytest.raises(EngineFullError, match="max_streams") as refused:
        engine.open()
    assert refused.value.code == "engine_full"
    sessions[2].close()
    engine.open().close()
    assert engine.stats.refused == 1


def test_slots_are_not_leaked(engine: Engine) -> None:
    for i in range(10_000):
        session = engine.open(latency_ms=LATENCIES[i % 4])
        if i % 100 == 0:
            session.push(noise(2000))
        if i % 250 == 0:
            session.finish()
        session.close()
        session.close()
    assert settled(engine)
    assert engine.stats.opened == 10_000
    assert len(engine._scheduler) == 0


@pytest.mark.parametrize(
    "bad", [[float("nan")], [float("inf")], np.zeros((2, 2, 2)), ["a"], np.array([1 + 1j])]
)
def test_bad_samples_are_refused_and_the_stream_goes_on(
    engine: Engine, recognizer: NativeRecognizer, bad: Any
) -> None:
    samples = noise(20_000)
    session = engine.open(latency_ms=160, endpoint=None)
    session.push(samples[:10_000])
    with pytest.raises(AudioValueError):
        session.push(bad)
    session.push([])
    session.push(samples[10_000:])
    session.finish()
    assert text_of(said(session)) == alone(recognizer, samples, 160).text


def test_a_rate_cannot_change(engine: Engine) -> None:
    session = engine.open(sample_rate=16_000)
    session.push(noise(100), 16_000)
    with pytest.raises(StreamError, match="8000 Hz"):
        session.push(noise(100), 8_000)
    session.close()


def test_nothing_is_taken_after_the_end(engine: Engine) -> None:
    for end in ("finish", "close"):
        session = engine.open()
        getattr(session, end)()
        for action in (lambda s=session: s.push([0.0]), session.finalize, session.finish):
            with pytest.raises(StreamError, match="has ended"):
                action()
        session.close()


@pytest.mark.parametrize(
    "bad",
    [
        {"latency_ms": 100},
        {"sample_rate": 1},
        {"sample_rate": 0},
        {"state": b""},
        {"state": b"x" * 100},
    ],
)
def test_what_cannot_be_opened_takes_no_slot(engine: Engine, bad: dict[str, Any]) -> None:
    with pytest.raises((OptionError, AudioValueError, StateError)):
        engine.open(**bad)
    assert engine._slots.used == 0


def test_a_stream_that_fails_ends_alone_and_is_logged(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = engine.open(latency_ms=80, endpoint=None), engine.open(latency_ms=80)
    step = engine.runner.step

    def fails_for_one(works: Any, grid: Any) -> Any:
        if any(work.slot == bad.slot for work in works):
            raise RuntimeError("bad luck")
        return step(works, grid)

    monkeypatch.setattr(engine.runner, "step", fails_for_one)
    with engine.lock:  # both are in the queue before the next step
        good.push(noise(40_000))
        bad.push(noise(40_000))
    good.finish()
    assert text_of(said(good)) == alone(engine.recognizer, noise(40_000), 80).text
    with pytest.raises(EngineError, match="bad luck"):
        said(bad)
    with pytest.raises(EngineError, match="failed"):
        bad.push([0.0])
    assert engine.stats.failed == 1
    assert settled(engine)
    logged = [each for each in caplog.records if "a stream failed" in each.getMessage()]
    assert len(logged) == 1 and "in fails_for_one" in logged[0].exc_text, "with its traceback"


def test_a_stream_that_fails_without_neighbors_is_logged(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine.runner, "step", lambda works, grid: 1 / 0)
    session = engine.open(latency_ms=80)
    session.push(noise(20_000))
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        said(session)
    assert [each.exc_info[0] for each in caplog.records] == [ZeroDivisionError]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_thread_dies_everyone_hears_of_it(
    recognizer: NativeRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(recognizer)
    session = engine.open()
    monkeypatch.setattr(engine, "_begin", lambda _: 1 / 0)
    session.push(noise(20_000))
    with pytest.raises(EngineError, match="stopped"):
        said(session)
    for _ in range(3):
        with pytest.raises(EngineError, match="stopped") as raised:
            engine.open()
    # Who comes again and again is not kept in the trace of what happened once.
    assert sum(entry.name == "open" for entry in raised.traceback) == 1
    engine.close()


def test_closing_the_engine_ends_its_streams(recognizer: NativeRecognizer) -> None:
    engine = make_engine(recognizer)
    session = engine.open()
    waiter = threading.Thread(target=lambda: list(session))
    waiter.start()
    engine.close()
    waiter.join(SOON)
    assert not waiter.is_alive()
    with pytest.raises(EngineError, match="closed"):
        engine.open()
    with pytest.raises(StreamError):
        session.push([0.0])
    engine.close()


@pytest.mark.parametrize(
    "bad", [{"largest_batch": 0}, {"backlog_seconds": 0.0}, {"threads": 0}, {"unread_events": 0}]
)
def test_options_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        EngineOptions(**bad)


def test_a_model_that_cannot_stream_is_refused(tiny_tokenizer: Tokenizer) -> None:
    whole = make_model(encoder=WHOLE_CONTEXT, vocab_size=tiny_tokenizer.vocab_size)
    with pytest.raises(OptionError, match="cannot stream"):
        Engine(NativeRecognizer(whole, tiny_tokenizer))


def test_an_engine_needs_a_stream(recognizer: NativeRecognizer) -> None:
    with pytest.raises(OptionError):
        Engine(recognizer, max_streams=0)


# -- saving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [16_000, 8_000, 44_100])
@pytest.mark.parametrize("gain", ["off", "on"])
@pytest.mark.parametrize("at", [0, 7, 30_001])
def test_a_saved_stream_goes_on_as_if_nothing_had_happened(
    talker: AsrModel, tiny_tokenizer: Tokenizer, rate: int, gain: Any, at: int
) -> None:
    recognizer = NativeRecognizer(talker, tiny_tokenizer, front_end=FrontEnd(gain))
    samples = noise(round(4.4 * rate), seed=6)
    with make_engine(recognizer) as engine:
        whole = engine.open(latency_ms=160, sample_rate=rate, endpoint=None)
        whole.push(samples)
        whole.finish()
        expected = text_of(said(whole))
        first = engine.open(latency_ms=160, sample_rate=rate, endpoint=None)
        first.push(samples[:at])
        state = first.export()
        first.close()
    assert b"pickle" not in state
    with make_engine(recognizer) as engine:
        second = engine.open(state=state, endpoint=None)
        for part in cut(len(samples) - at, [1000, 3333]):
            second.push(samples[at:][part])
        second.finish()
        assert text_of(said(second)) == expected != ""


def test_a_stream_goes_on_in_another_process(
    recognizer: NativeRecognizer, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from pianissimo.zoo.load import load

    tiny = load(tiny_model_folder, gain="off")  # so nothing guards against text from noise
    samples = noise(100_000, seed=7)
    np.save(tmp_path / "rest.npy", samples[41_000:])
    with make_engine(tiny) as engine:  # type: ignore[arg-type]
        whole = engine.open(latency_ms=560, endpoint=None)
        whole.push(samples)
        whole.finish()
        expected = text_of(said(whole))
        first = engine.open(latency_ms=560, endpoint=None)
        first.push(samples[:41_000])
        (tmp_path / "state").write_bytes(first.export())
    code = f"""
import numpy, pianissimo
recognizer = pianissimo.load({str(tiny_model_folder)!r}, gain="off")
engine = pianissimo.Engine(recognizer, max_streams=1)
session = engine.open(state=open({str(tmp_path / "state")!r}, "rb").read(), endpoint=None)
session.push(numpy.load({str(tmp_path / "rest.npy")!r}))
session.finish()
print([event.text for event in session if event.type == "final"][-1])
engine.close()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected != ""


def test_states_that_were_tampered_with_are_refused(engine: Engine) -> None:
    session = engine.open(latency_ms=160)
    session.push(noise(20_000))
    state = session.export()
    session.close()
    assert settled(engine)
    for damaged in (
        state[:50],
        state[:-10],
        state.replace(b'\\"version\\": 1', b'\\"version\\": 9'),
    ):
        with pytest.raises(StateError):
            engine.open(state=damaged)
    assert engine._slots.used == 0


def test_the_state_of_another_model_is_refused(engine: Engine, tiny_model_folder: Path) -> None:
    from pianissimo.zoo.load import load

    with make_engine(load(tiny_model_folder)) as other:  # type: ignore[arg-type]
        state = other.open().export()
    with pytest.raises(StateError, match="another model"):
        engine.open(state=state)


def test_an_int8_stream_does_not_hear_a_loud_neighbour(tiny_model_folder: Path) -> None:
    from pianissimo.zoo.load import load

    recognizer: Any = load(tiny_model_folder, dtype="int8")
    quiet = noise(60_000, seed=1) * 0.01
    with make_engine(recognizer) as engine:
        texts = []
        for loud in (False, True):
            session = engine.open(latency_ms=160, endpoint=None)
            other = engine.open(latency_ms=160) if loud else None
            for part in cut(len(quiet), [2560]):
                with engine.lock:
                    if other:
                        other.push(noise(2560, seed=part.start) * 3)
                    session.push(quiet[part])
            session.finish()
            texts.append(said(session)[-1].words)
    without, beside = texts
    assert [(w.text, w.start) for w in without] == [(w.text, w.start) for w in beside]
    assert [w.confidence for w in without] == pytest.approx(
        [w.confidence for w in beside], abs=1e-4
    )
    assert len(without) > 5


def test_bfloat16_streams(talker: AsrModel, tiny_tokenizer: Tokenizer) -> None:
    import copy

    model = copy.deepcopy(talker).to(torch.bfloat16)
    model.features.float()
    with make_engine(NativeRecognizer(model, tiny_tokenizer)) as engine:
        assert engine.runner.arena.tensors["key"].dtype == torch.bfloat16
        session = engine.open(latency_ms=160)
        session.push(noise(40_000))
        session.finish()
        assert text_of(said(session))
