"""The first word after a pause is heard, live and in recordings, by the embedded model."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pianissimo
from pianissimo import Decoding, EngineOptions, StreamEvent, Transcript, WatchdogRules
from pianissimo.audio.io import SAMPLE_RATE, Samples, load_audio
from pianissimo.engine.runner import Runner
from pianissimo.recognizers.fastconformer import NativeRecognizer

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared" / "cases"
LATENCIES = (80, 160, 560, 1120)
ENDS = (160, 1120)
"""For tests that take long and whose modes differ in their chunks only."""
COMMAND = "enter seven one five four"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="no recorded cases beside the project")


@pytest.fixture(scope="module")
def embedded() -> NativeRecognizer:
    return pianissimo.load("embedded-commands")


@pytest.fixture(scope="module")
def untouched() -> NativeRecognizer:
    """As a stream hears: greedily, and without the constant gain that only a recording can get."""
    recognizer = pianissimo.load("embedded-commands", gain="off", decoding=Decoding(beam=1))
    assert isinstance(recognizer, NativeRecognizer)
    return recognizer


@pytest.fixture(scope="module")
def clip() -> Samples:
    return load_audio(ROOT / "examples" / "audio" / "number.flac")


def paused(clip: Samples, seconds: float, times: int = 2) -> Samples:
    """A clip several times, with near silence between."""
    rng = np.random.default_rng(0)
    pause = rng.normal(0, 1e-4, round(seconds * SAMPLE_RATE)).astype(np.float32)
    return np.concatenate([clip, *[pause, clip] * (times - 1)])


def told(
    recognizer: NativeRecognizer, samples: Samples, *, block: int = 1600, **options: Any
) -> list[StreamEvent]:
    with recognizer.stream(**options) as stream:
        blocks = [samples[at : at + block] for at in range(0, len(samples), block)]
        events = [stream.push(part) for part in blocks]
        return [*chain.from_iterable(events), *stream.finish()]


def text(events: Sequence[StreamEvent]) -> str:
    return " ".join(event.text for event in events if event.type == "final" and event.text)


def words(found: StreamEvent | Transcript) -> list[tuple[str, float, float]]:
    return [(word.text, word.start, word.end) for word in found.words]


@needs_cases
@pytest.mark.parametrize("latency", LATENCIES)
def test_live_commands_behind_a_pause_are_whole(embedded: NativeRecognizer, latency: int) -> None:
    def heard(name: str) -> str:
        return text(told(embedded, load_audio(CASES / name), latency_ms=latency))

    assert heard("no-pause-no.flac") == "no no"
    assert heard("enter-pause-enter.flac") == f"{COMMAND} {COMMAND}"
    # Heard alone, the end of the second one is "ninety eight" in live modes.
    assert heard("two-utterances.flac").startswith(f"{COMMAND} enter nine")


@needs_cases
@pytest.mark.parametrize("latency", ENDS)
def test_recorded_commands_behind_a_pause_are_whole(
    embedded: NativeRecognizer, latency: int
) -> None:
    names = ("enter-pause-enter.flac", "two-utterances.flac", "no-pause-no.flac")
    twice, two, no = (embedded.transcribe(CASES / name, latency_ms=latency).text for name in names)
    assert twice == f"{COMMAND} {COMMAND}"
    assert two.startswith(f"{COMMAND} enter nine")
    assert no == "no no"


@pytest.mark.parametrize("seconds", [2.0, 10.0])
@pytest.mark.parametrize("latency", LATENCIES)
def test_each_copy_of_a_clip_is_heard_as_the_first(
    embedded: NativeRecognizer, clip: Samples, latency: int, seconds: float
) -> None:
    samples = paused(clip, seconds)
    finals = [
        e for e in told(embedded, samples, latency_ms=latency) if e.type == "final" and e.text
    ]
    assert [final.text for final in finals] == [finals[0].text] * 2
    assert finals[1].start - finals[0].start == pytest.approx(
        seconds + len(clip) / SAMPLE_RATE, abs=0.25
    )


@pytest.mark.parametrize("latency", ENDS)
def test_blocks_of_any_size_and_the_recording_are_alike(
    untouched: NativeRecognizer, clip: Samples, latency: int
) -> None:
    samples = paused(clip, 3.0)
    options: dict[str, Any] = {"latency_ms": latency, "endpoint": None}
    events = [told(untouched, samples, block=size, **options) for size in (160, 1600, 80_000)]
    assert events[0] == events[1] == events[2]
    whole = untouched.transcribe(samples, sample_rate=SAMPLE_RATE, latency_ms=latency)
    assert words(events[0][-1]) == words(whole)
    off = told(untouched, samples, watchdog=WatchdogRules(onset=None), **options)
    assert [w.confidence for w in off[-1].words] != [w.confidence for w in events[0][-1].words]


def test_recordings_in_a_batch_and_in_blocks_are_those_alone(
    embedded: NativeRecognizer, clip: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = [paused(clip, 1.7, 3), clip, paused(clip, 4.0)]

    def alone(samples: Samples, latency: int) -> list[tuple[str, float, float]]:
        return words(embedded.transcribe(samples, sample_rate=SAMPLE_RATE, latency_ms=latency))

    for latency in (160, 1120):
        batch = list(embedded.recognize([[samples] for samples in recordings], True, latency))
        expected = [alone(samples, latency) for samples in recordings]
        assert [words(transcript) for transcript in batch] == expected
        assert len(expected[0]) == 3 * len(expected[1])
        with monkeypatch.context() as patch:
            patch.setattr(NativeRecognizer, "block_seconds", 0.37)
            assert [alone(samples, latency) for samples in recordings] == expected


def test_without_a_detector_the_energy_tells_onsets(clip: Samples) -> None:
    plain = pianissimo.load("embedded-commands", gain="off", decoding=Decoding(beam=1))
    assert isinstance(plain, NativeRecognizer)
    plain.detector = None
    samples = paused(clip, 3.0)
    live = told(plain, samples, latency_ms=560, endpoint=None)[-1]
    whole = plain.transcribe(samples, sample_rate=SAMPLE_RATE, latency_ms=560)
    assert words(live) == words(whole)
    half = len(live.words) // 2
    assert [w.text for w in live.words[:half]] == [w.text for w in live.words[half:]]


def test_streams_of_an_engine_are_those_alone_saved_or_not(
    embedded: NativeRecognizer, clip: Samples
) -> None:
    samples = paused(clip, 2.5, 3)
    expected = [
        [e for e in told(embedded, samples, latency_ms=ms) if e.type != "partial"]
        for ms in LATENCIES
    ]

    def finals(session: Iterator[StreamEvent]) -> list[StreamEvent]:
        return [event for event in session if event.type != "partial"]

    with pianissimo.Engine(
        embedded, max_streams=4, options=EngineOptions(freeze_garbage=False)
    ) as engine:
        sessions = [engine.open(latency_ms=ms) for ms in LATENCIES]
        for session in sessions:
            session.push(samples)
            session.finish()
        for session, events in zip(sessions, expected, strict=True):
            assert_same(finals(iter(session)), events)
        # Saved in the pause, just before and just after the second onset.
        for seconds in (1.0, 2.6, 3.0):
            at = len(clip) + round(seconds * SAMPLE_RATE)
            first = engine.open(latency_ms=160)
            first.push(samples[:at])
            done = [event for event in drain(first) if event.type != "partial"]
            state = first.export()
            first.close()
            again = engine.open(state=state)
            again.push(samples[at:])
            again.finish()
            assert_same([*done, *finals(iter(again))], expected[1])


def drain(session: Any) -> Iterator[StreamEvent]:
    """What is there now."""
    while True:
        try:
            event = session.get(timeout=1.0)
        except TimeoutError:
            return
        if event is None:
            return
        yield event


def assert_same(found: Sequence[StreamEvent], expected: Sequence[StreamEvent]) -> None:
    assert [(e.type, e.text, words(e)) for e in found] == [
        (e.type, e.text, words(e)) for e in expected
    ]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The chunks that went through the model, by step."""
    counts: list[int] = []
    usual = Runner.step

    def step(self: Runner, works: Any, grid: Any) -> Any:
        counts.append(len(works))
        return usual(self, works, grid)

    monkeypatch.setattr(Runner, "step", step)
    return counts


def test_silence_costs_nothing_and_an_onset_at_most_a_second(
    embedded: NativeRecognizer, clip: Samples, steps: list[int]
) -> None:
    def chunks(samples: Samples, watchdog: WatchdogRules) -> int:
        steps.clear()
        told(embedded, samples, latency_ms=80, watchdog=watchdog)
        return sum(steps)

    silence = np.zeros(20 * SAMPLE_RATE, np.float32)
    off = WatchdogRules(onset=None)
    assert chunks(silence, WatchdogRules()) == chunks(silence, off)
    samples = paused(clip, 3.0)
    more = chunks(samples, WatchdogRules()) - chunks(samples, off)
    assert 1 <= more <= 12


def test_audio_whose_text_was_locked_is_not_heard_twice(
    embedded: NativeRecognizer, clip: Samples
) -> None:
    """Finalized in the pause, at the onset, and within the words that follow."""
    samples = paused(clip, 3.0)
    expected = text(told(embedded, samples, latency_ms=160)).split()
    for seconds in (1.0, 3.1, 3.4, 3.7, 4.2):
        at = len(clip) + round(seconds * SAMPLE_RATE)
        with embedded.stream(latency_ms=160) as stream:
            events = [*stream.push(samples[:at]), *stream.finalize()]
            events += [*stream.push(samples[at:]), *stream.finish()]
        found = text(events).split()
        assert abs(len(found) - len(expected)) <= 1, seconds
