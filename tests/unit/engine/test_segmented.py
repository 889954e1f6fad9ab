"""Recognizers that hear recordings whole, live: order, times, answers, back-pressure, failures."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clock import Clock
from numpy.typing import NDArray
from spoken import pink, speech
from tiny import WHOLE_CONTEXT, cut, make_model

import pianissimo
from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.vad import VoiceDetector
from pianissimo.engine import base, segmented
from pianissimo.engine.base import Answered
from pianissimo.engine.segmented import SegmentedEngine, SegmentedStream
from pianissimo.errors import (
    AudioValueError,
    BacklogError,
    EngineError,
    EngineFullError,
    OptionError,
    StreamError,
)
from pianissimo.models.asr import AsrModel
from pianissimo.protocols import Capabilities, Stream
from pianissimo.recognizers import wav2vec2 as ctc_family
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules
from pianissimo.streaming.segmenter import Segmenter
from pianissimo.streaming.session import Session
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import StreamEvent, Transcript, Word

RATE = 16_000
SOON = 60.0
FAMILIES = Path(__file__).parents[2] / "parity" / "golden_families"
Samples = NDArray[np.float32]


class Stopwatch:
    """A recognizer that writes how long each segment is, in hundredths of a second."""

    name, language, latencies_ms = "stopwatch", "en", ()

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.meanwhile, self.heard = meanwhile, list[Samples]()
        self.front_end, self.detector = None, VoiceDetector()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities()

    def boosted(self, boost: Any) -> "Stopwatch":
        raise OptionError("stopwatch cannot boost phrases: leave them out")

    def transcribe(self, source: Any, *, sample_rate: int | None = None, **_: Any) -> Transcript:
        assert sample_rate == RATE
        self.heard.append(source)
        self.meanwhile()
        seconds = len(source) / RATE
        word = Word(str(round(100 * seconds)), 0.5, seconds + 1.0, 0.9)
        return Transcript(word.text, (), (word,), "en", seconds, self.name)

    def transcribe_many(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def paused(sentences: int = 2) -> Samples:
    """Sentences of 3 s, each after 1 s and before 1 s of soft noise."""
    silence = np.zeros(RATE, np.float32)
    once = np.concatenate([silence, speech(3.0), silence])
    return np.tile(once, sentences) + pink(5.0 * sentences, -75)


def run(stream: Stream, samples: Samples, sizes: list[int] | None = None) -> list[StreamEvent]:
    events = [e for part in cut(len(samples), sizes or [1280]) for e in stream.push(samples[part])]
    return events + stream.finish()


def finals(events: list[StreamEvent]) -> list[StreamEvent]:
    return [event for event in events if event.type == "final"]


# -- one stream ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["wav2vec2", "bert"])
def test_finals_are_what_the_model_says_to_each_segment(family: str) -> None:
    recognizer = pianissimo.load(FAMILIES / family, device="cpu")
    samples = paused()
    events = run(recognizer.stream(), samples)
    found = finals(events)
    assert [event.reason for event in found] == ["endpoint", "endpoint", "finish"]
    assert [event.type for event in events[:4]] == ["final", "endpoint"] * 2
    assert found[-1].text == "" and found[-1].start == found[-1].end == 10.0
    segments = Segmenter(recognizer.detector, FrontEnd(), ENDPOINT).push(samples)
    heard = [recognizer.transcribe(s.samples, sample_rate=RATE).text for s in segments]
    assert [event.text for event in found] == [*heard, ""]
    for event, start, endpoint in zip(found, (1.0, 6.0), (events[1], events[3]), strict=False):
        assert event.text and len(event.words) > 0
        assert endpoint.end == event.end
        assert start - 0.7 < event.words[0].start <= event.words[-1].end < start + 3.7


def test_a_segment_is_heard_as_it_came_and_its_words_keep_their_time() -> None:
    model = Stopwatch()
    samples = paused() * np.float32(0.3)
    [first, second, _] = finals(run(SegmentedStream(model), samples))
    for event, heard in zip((first, second), model.heard, strict=True):
        at = round((event.start - 0.5) * RATE)
        assert np.array_equal(heard, samples[at : at + len(heard)])
        [word] = event.words
        assert word.end == pytest.approx((at + len(heard)) / RATE), "no word ends after its segment"
        assert (event.start, event.end, event.text) == (word.start, word.end, word.text)


@pytest.mark.parametrize("sizes", [[160], [1, 999, 7000], [10**9]])
def test_blocks_of_any_size_and_rate_give_the_same(sizes: list[int]) -> None:
    samples = paused()
    usual = run(SegmentedStream(Stopwatch()), samples)
    assert run(SegmentedStream(Stopwatch()), samples, sizes) == usual
    stereo = np.stack([samples, samples], axis=1)
    assert SegmentedStream(Stopwatch()).push(stereo) == []
    doubled = np.repeat(samples, 3)
    fast = SegmentedStream(Stopwatch(), sample_rate=48_000)
    found = run(fast, doubled, [3840])
    assert [event.start for event in finals(found)] == pytest.approx(
        [event.start for event in finals(usual)], abs=0.3
    )


def test_each_finalize_gets_one_answer_with_all_before_it() -> None:
    model, samples = Stopwatch(), paused()
    stream = SegmentedStream(model)
    assert [(e.text, e.reason) for e in stream.finalize()] == [("", "finalize")]
    stream.push(samples[: 3 * RATE])
    [middle] = stream.finalize()
    assert middle.reason == "finalize" and 150 < int(middle.text) < 240
    assert [e.text for e in stream.finalize()] == [""]
    events = [*stream.push(samples[3 * RATE :]), *stream.finalize(), *stream.finish()]
    reasons = [event.reason for event in finals(events)]
    assert reasons == ["endpoint", "endpoint", "finalize", "finish"]
    assert sum(map(len, model.heard)) < 8.5 * RATE
    for call in (stream.finalize, stream.finish, lambda: stream.push(samples)):
        with pytest.raises(StreamError, match="has ended"):
            call()


def test_silence_never_reaches_the_model() -> None:
    model = Stopwatch()
    for samples in (np.zeros(10 * RATE, np.float32), pink(10, -60)):
        [final] = run(SegmentedStream(model), samples)
        assert (final.text, final.reason) == ("", "finish")
    assert model.heard == []


def test_text_that_nothing_speaks_for_is_dropped() -> None:
    model = Stopwatch()
    model.detector = VoiceDetector(model=_Deaf())
    [final] = run(SegmentedStream(model), paused())
    assert len(model.heard) == 2, "the energy alone made them segments"
    assert (final.text, final.words, final.reason) == ("", (), "finish")


class _Deaf:
    """A speech model that never hears any."""

    def start(self) -> Samples:
        return np.zeros((2, 128), np.float32)

    def step(self, windows: Samples, state: Samples) -> tuple[Samples, Samples]:
        return np.zeros(windows.shape[:2], np.float32), state


def test_no_answer_waits_for_the_model_unless_it_was_asked_for() -> None:
    gate = threading.Event()
    stream = SegmentedStream(Stopwatch(lambda: gate.wait(SOON)))
    samples = paused(3)
    assert [e for part in cut(len(samples), [1280]) for e in stream.push(samples[part])] == []
    gate.set()
    assert [e.reason for e in finals(stream.finish())] == ["endpoint"] * 3 + ["finish"]


def test_no_thread_outlives_its_work() -> None:
    stream = SegmentedStream(Stopwatch())
    stream.push(paused())
    stream.finalize()
    for thread in threading.enumerate():
        if thread.name == "pianissimo-segments":
            thread.join(SOON)
    assert "pianissimo-segments" not in {thread.name for thread in threading.enumerate()}
    assert stream.finish()[-1].reason == "finish"


EXITS_EARLY = """
import sys, threading, time
sys.path[:0] = {paths!r}
from test_segmented import Stopwatch, paused
from pianissimo.engine.segmented import SegmentedEngine

began = threading.Event()

def work():
    began.set()
    time.sleep(0.5)
    print("done")

SegmentedEngine(Stopwatch(work)).open().push(paused(1))
assert began.wait(60)
"""


def test_the_work_that_runs_at_the_exit_of_the_process_ends_before_it() -> None:
    here = Path(__file__).parent
    script = EXITS_EARLY.format(paths=[str(here), str(here.parent)])
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "done\n", "")


def test_a_model_of_ours_that_sees_recordings_whole_streams_too(tiny_tokenizer: Tokenizer) -> None:
    model = make_model(encoder=WHOLE_CONTEXT, vocab_size=tiny_tokenizer.vocab_size)
    recognizer = NativeRecognizer(model, tiny_tokenizer)
    with recognizer.stream(endpoint=EndpointRules(trailing_silence=0.5)) as stream:
        assert isinstance(stream, Stream)
        found = finals(run(stream, paused()))
    assert len(found) > 1 and found[-1].reason == "finish"
    with pytest.raises(OptionError, match="cannot stream"):
        recognizer.stream(latency_ms=160)


# -- two passes ------------------------------------------------------------------------------------


@pytest.fixture
def talking(talker: AsrModel, tiny_tokenizer: Tokenizer) -> NativeRecognizer:
    return NativeRecognizer(talker, tiny_tokenizer)


def test_partials_come_from_the_other_model_and_give_way_to_the_final(
    talking: NativeRecognizer,
) -> None:
    stream = SegmentedStream(Stopwatch(), partials=talking)
    events = run(stream, paused())
    partials = [event for event in events if event.type == "partial"]
    assert len(partials) > 4
    assert not any(event.stable for event in partials)
    first = next(i for i, event in enumerate(events) if event.type == "final")
    assert 1 < first < len(events) - 3, "words come before the pause, and after it again"
    assert all(event.end < 5.0 for event in events[:first] if event.type == "partial")
    later = [event for event in events[first:] if event.type == "partial"]
    ended = events[first].end - 1.0  # the stopwatch puts its word behind the segment
    assert later and min(event.start for event in later) > ended, "each utterance begins anew"
    assert [e.text for e in finals(events)] == [
        e.text for e in finals(run(SegmentedStream(Stopwatch()), paused()))
    ]


def test_a_partial_never_overtakes_a_final(talking: NativeRecognizer) -> None:
    gate = threading.Event()
    stream = SegmentedStream(Stopwatch(lambda: gate.wait(SOON)), partials=talking)
    samples = paused()
    events = [e for part in cut(len(samples), [1280]) for e in stream.push(samples[part])]
    assert {event.type for event in events} == {"partial"}
    assert max(event.end for event in events) < 5.0
    gate.set()
    stream.finish()


def test_a_model_with_partials_of_its_own_takes_no_others(talking: NativeRecognizer) -> None:
    with pytest.raises(OptionError, match="partials by itself"):
        talking.stream(partials=talking)


# -- many streams ----------------------------------------------------------------------------------


def said(session: Session) -> list[StreamEvent]:
    found = []
    while (event := session.get(SOON)) is not None:
        found.append(event)
    return found


def test_streams_side_by_side_say_what_they_say_alone() -> None:
    samples = [paused(1), paused(2)[8000:], paused(3)[:100_000]]
    alone = [run(SegmentedStream(Stopwatch()), s) for s in samples]
    with SegmentedEngine(Stopwatch(), max_streams=3) as engine:
        sessions = [engine.open() for _ in samples]
        for start in range(0, max(map(len, samples)), 4000):
            for session, s in zip(sessions, samples, strict=True):
                session.push(s[start : start + 4000])
        for session in sessions:
            session.finish()
        assert [said(session) for session in sessions] == alone
        assert engine.stats.finals == sum(len(finals(events)) for events in alone)
        assert (engine.stats.opened, engine.stats.streams) == (3, 0)
        assert all(session.slot is None and session.ended for session in sessions)


class Together(Stopwatch):
    """Hears several recordings at once, and remembers how long those were."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        super().__init__(meanwhile)
        self.batches = list[list[float]]()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(batched_recordings=True)

    def transcribe_together(self, recordings: Sequence[Samples]) -> Iterator[Transcript]:
        self.batches.append([round(len(samples) / RATE, 2) for samples in recordings])
        for samples in recordings:
            yield self.transcribe(samples, sample_rate=RATE)


def gathered(
    model: Stopwatch, recordings: list[Samples], **options: Any
) -> tuple[list[list[StreamEvent]], SegmentedEngine]:
    """The events of streams whose segments all wait while the model hears a first one."""
    begun, gate = threading.Event(), threading.Event()
    meanwhile = model.meanwhile

    def hold() -> None:
        begun.set()
        assert gate.wait(SOON)
        meanwhile()

    model.meanwhile = hold
    with SegmentedEngine(model, **options) as engine:
        first = engine.open()
        first.push(paused(1))
        assert begun.wait(SOON)
        sessions = [engine.open() for _ in recordings]
        for session, samples in zip(sessions, recordings, strict=True):
            session.push(samples)
            session.finish()
        gate.set()
        first.finish()
        events = []
        for session in sessions:
            try:
                events.append(said(session))
            except EngineError:
                events.append([])
    return events, engine


def test_segments_of_several_streams_are_recognized_together() -> None:
    recordings = [paused(1), paused(2)[8000:], paused(3)[:130_000]]
    alone = [run(SegmentedStream(Stopwatch()), samples) for samples in recordings]
    model = Together()
    events, engine = gathered(model, recordings)
    assert events == alone
    assert [len(batch) for batch in model.batches] == [3, 2]
    assert engine.stats.finals == sum(len(finals(found)) for found in alone) + 2
    seconds = model.batches[0]
    narrow = Together()
    assert gathered(narrow, recordings, batch_seconds=2 * max(seconds))[0] == alone
    assert {len(batch) for batch in narrow.batches} == {2}
    single = Together()
    assert gathered(single, recordings, batch_seconds=0.0)[0] == alone
    assert single.batches == []


def test_who_says_much_keeps_nobody_waiting() -> None:
    model = Stopwatch()
    gathered(model, [paused(4), paused(1) * np.float32(0.3)])
    peaks = [float(np.abs(heard).max()) for heard in model.heard]
    assert [peak < 0.5 * peaks[0] for peak in peaks] == [False, False, True, False, False, False]


def test_a_batch_that_fails_ends_only_the_stream_that_made_it_fail() -> None:
    model = Together()

    def fail_for_the_longest() -> None:
        if len(model.heard[-1]) > 4.0 * RATE:
            raise RuntimeError("out of memory")

    model.meanwhile = fail_for_the_longest
    long = np.concatenate([np.zeros(RATE, np.float32), speech(6.0), np.zeros(RATE, np.float32)])
    recordings = [paused(1), long, paused(1)[1000:]]
    events, engine = gathered(model, recordings)
    assert [len(finals(found)) for found in events] == [2, 0, 2]
    assert engine.stats.failed == 1


@pytest.mark.parametrize("family", ["wav2vec2", "bert"])
def test_neighbours_in_a_batch_change_nothing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ctc_family.GROUP_SECONDS, "cpu", 480.0)
    recognizer = pianissimo.load(FAMILIES / family, device="cpu")
    assert recognizer.capabilities.batched_recordings
    samples = [speech(2.0), speech(5.0, level_db=-60), speech(3.0)[2 * RATE :]]
    for found, alone in zip(recognizer.transcribe_together(samples), samples, strict=True):
        expected = recognizer.transcribe(alone, sample_rate=RATE)
        assert found.text == expected.text != ""
        assert [(w.text, w.start, w.end) for w in found.words] == [
            (w.text, w.start, w.end) for w in expected.words
        ]


def test_a_model_of_ours_hears_segments_together(tiny_tokenizer: Tokenizer) -> None:
    model = make_model(encoder=WHOLE_CONTEXT, vocab_size=tiny_tokenizer.vocab_size)
    recognizer = NativeRecognizer(model, tiny_tokenizer)
    samples = [speech(2.0), speech(3.0)[RATE:]]
    expected = [recognizer.transcribe(each, sample_rate=RATE) for each in samples]
    assert list(recognizer.transcribe_together(samples)) == expected


def test_events_can_be_awaited() -> None:
    async def listen(engine: SegmentedEngine) -> list[StreamEvent]:
        session = engine.open()
        session.push(paused())
        session.finish()
        return [event async for event in session]

    with SegmentedEngine(Stopwatch()) as engine:
        found = asyncio.run(asyncio.wait_for(listen(engine), SOON))
    assert [e.reason for e in finals(found)] == ["endpoint", "endpoint", "finish"]


def test_who_pushes_faster_than_the_model_waits_or_is_refused() -> None:
    gate = threading.Event()
    with SegmentedEngine(Stopwatch(lambda: gate.wait(SOON)), backlog_seconds=5.0) as engine:
        session = engine.open()
        session.push(paused(2))
        assert session.backlog_seconds > 5.0
        with pytest.raises(BacklogError, match="wait for the model"):
            session.push(np.zeros(160, np.float32), wait=False)
        with pytest.raises(BacklogError):
            session.push(np.zeros(160, np.float32), timeout=0.01)
        waiting = threading.Thread(target=session.push, args=(paused(1),))
        waiting.start()
        gate.set()
        waiting.join(SOON)
        assert not waiting.is_alive()
        session.finish()
        assert len(finals(said(session))) == 4
        assert session.backlog_seconds == 0.0


def test_a_stream_whose_events_nobody_reads_pauses_and_the_others_go_on() -> None:
    with SegmentedEngine(Stopwatch(), unread_events=2) as engine:
        lazy, keen = engine.open(), engine.open()
        lazy.push(paused(4))
        keen.push(paused(1))
        keen.finish()
        assert len(finals(said(keen))) == 2
        lazy.finish()
        assert len(finals(said(lazy))) == 5


def test_who_waits_and_who_waited_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in (base, segmented):
        monkeypatch.setattr(module, "time", clock)
    begun, gate = threading.Semaphore(0), threading.Semaphore(0)

    def hold() -> None:
        begun.release()
        assert gate.acquire(timeout=SOON)

    model = Stopwatch(hold)
    with SegmentedEngine(model, unread_events=2) as engine:
        session, other = engine.open(), engine.open()
        assert engine.queue_age() == 0.0
        session.push(paused(2))
        assert begun.acquire(timeout=SOON)
        clock.now += 4
        assert engine.queue_age() == 4, "work counts as long as it takes"
        thread = engine._thread
        assert thread is not None
        gate.release()
        thread.join(SOON)  # two events are unread, so the stream pauses
        clock.now += 100
        assert engine.queue_age() == 0, "who does not read keeps nobody waiting"
        assert session.get(SOON) is not None
        assert begun.acquire(timeout=SOON)
        clock.now += 1
        other.push(paused(1))
        clock.now += 2
        assert engine.queue_age() == 3
        gate.release(2)
        for each in (session, other):
            each.finish()
            said(each)
        assert engine.queue_age() == 0
    seconds = [len(heard) / RATE for heard in model.heard]
    assert list(engine.stats.answered) == [
        Answered(seconds[0], 4.0, 1004.0),
        Answered(seconds[1], 3.0, 1107.0),
        Answered(seconds[2], 2.0, 1107.0),
    ]


def test_a_failure_ends_its_stream_only_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    model = Stopwatch(fail)
    with SegmentedEngine(model) as engine:
        session = engine.open()
        session.push(paused(1))
        with pytest.raises(EngineError, match="out of memory"):
            session.get(SOON)
        with pytest.raises(EngineError, match="out of memory"):
            session.push(paused(1))
        assert session.slot is None and engine.stats.failed == 1
        logged = [each for each in caplog.records if "a stream failed" in each.getMessage()]
        assert len(logged) == 1 and "in fail" in logged[0].exc_text, "with its traceback"
        model.meanwhile = lambda: None
        other = engine.open()
        other.push(paused(1))
        other.finish()
        assert len(finals(said(other))) == 2


def test_leaving_frees_the_seat_at_once_and_bounds_are_kept() -> None:
    gate = threading.Event()
    with SegmentedEngine(Stopwatch(lambda: gate.wait(SOON)), max_streams=1) as engine:
        session = engine.open()
        with pytest.raises(EngineFullError):
            engine.open()
        session.push(paused(2))
        session.close()
        session.close()
        assert session.slot is None
        assert session.get(SOON) is None
        other = engine.open()
        gate.set()
        other.finish()
        assert [event.reason for event in said(other)] == ["finish"]
        assert engine.stats.refused == 1
    with pytest.raises(EngineError, match="closed"):
        engine.open()


def test_what_there_is_not_is_refused_with_its_reason() -> None:
    model = Stopwatch()
    with SegmentedEngine(model) as engine:
        with pytest.raises(AudioValueError, match="0 Hz"):
            engine.open(sample_rate=0)
        session = engine.open()
        with pytest.raises(StreamError, match="cannot be exported"):
            session.export()
        with pytest.raises(AudioValueError):
            session.push(np.array([np.nan], np.float32))
        session.finish()
        assert [event.reason for event in said(session)] == ["finish"]
    with pytest.raises(OptionError, match="above 0"):
        SegmentedEngine(model, backlog_seconds=0.0)
    with pytest.raises(OptionError, match="batch_seconds"):
        SegmentedEngine(model, batch_seconds=-1.0)


# -- phrases ---------------------------------------------------------------------------------------


class Hinted(Stopwatch):
    """Once it was told phrases it writes nothing but the first of them."""

    told = ""

    def boosted(self, boost: list[str]) -> "Hinted":
        other = Hinted()
        other.told = boost[0]
        return other

    def transcribe(self, source: Any, **options: Any) -> Transcript:
        found = super().transcribe(source, **options)
        return replace(found, text=self.told or found.text)


def test_each_stream_has_its_own_phrases() -> None:
    with SegmentedEngine(Hinted()) as engine:
        sessions = [engine.open(boost=boost) for boost in (["Ada"], None, ["Babbage"])]
        for session in sessions:
            session.push(paused(1))
            session.finish()
        texts = [finals(list(session))[0].text for session in sessions]
    assert texts[0] == "Ada" and texts[1].isdigit() and texts[2] == "Babbage"


def test_a_model_that_cannot_boost_says_so_before_it_takes_a_slot() -> None:
    with SegmentedEngine(Stopwatch(), max_streams=1) as engine:
        assert engine.alive
        with pytest.raises(OptionError, match="cannot boost"):
            engine.open(boost=["Ada"])
        engine.open(boost=[]).close()
    assert not engine.alive
