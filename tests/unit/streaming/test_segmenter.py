"""What of a live stream reaches a model that hears segments: all speech, once, and no silence."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from spoken import pink, speech
from tiny import cut

from pianissimo.audio import vad
from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.vad import SpeechModel, VoiceDetector
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules
from pianissimo.streaming.segmenter import LiveSegment, Segmenter

RATE = 16_000
Samples = NDArray[np.float32]


@pytest.fixture(scope="module", params=["silero", "energy"])
def detector(request: pytest.FixtureRequest) -> VoiceDetector:
    if request.param == "energy":
        return VoiceDetector()
    if not vad.available():
        pytest.skip("the voice detector cannot be loaded")
    return VoiceDetector(model=SpeechModel())


def segmenter(
    detector: VoiceDetector | None = None, rules: EndpointRules | None = ENDPOINT
) -> Segmenter:
    return Segmenter(detector or VoiceDetector(), FrontEnd("auto"), rules)


def paused() -> Samples:
    """Speech from 1 to 4 s and from 6 to 9 s, in soft noise; 11 s altogether."""
    silence, sentence = np.zeros(RATE, np.float32), speech(3.0)
    parts = [silence, sentence, silence, silence, sentence, silence, silence]
    return np.concatenate(parts) + pink(11, -75)


def run(
    segmenter: Segmenter, samples: Samples, sizes: list[int] | None = None
) -> list[LiveSegment]:
    found = []
    for part in cut(len(samples), sizes or [1280]):
        found += segmenter.push(samples[part])
    return found + segmenter.mark("finish")


def shape(segments: list[LiveSegment]) -> list[tuple[int, int, str]]:
    return [(s.start, len(s.samples), s.reason) for s in segments]


def test_each_stretch_of_speech_is_a_segment_and_no_more(detector: VoiceDetector) -> None:
    samples = paused()
    first, second, answer = run(segmenter(detector), samples)
    for segment, start, end in ((first, 1.0, 4.0), (second, 6.0, 9.0)):
        last = (segment.start + len(segment.samples)) / RATE
        assert start - 0.6 < segment.start / RATE < start + 0.2
        assert end - 0.5 < last < end + 0.6
        assert segment.reason == "endpoint"
        there = samples[segment.start : segment.start + len(segment.samples)]
        assert np.array_equal(segment.samples, there)
    assert shape([answer]) == [(len(samples), 0, "finish")]


@pytest.mark.parametrize("sizes", [[160], [1, 999, 7000], [512], [10**9]])
def test_blocks_of_any_size_give_the_same_segments(sizes: list[int]) -> None:
    samples = np.concatenate([paused(), speech(40.0), paused()])
    assert shape(run(segmenter(), samples, sizes)) == shape(run(segmenter(), samples))


def test_speech_without_pauses_is_cut_without_losing_a_sample() -> None:
    samples = speech(100.0)
    rules = EndpointRules(trailing_silence=30.0)
    found = run(segmenter(rules=rules), samples)
    assert len(found) >= 4
    assert {s.reason for s in found[:-1]} == {"length"} and found[-1].reason == "finish"
    assert max(len(s.samples) for s in found) <= 28 * RATE
    for before, after in pairwise(found):
        assert after.start == before.start + len(before.samples)
        level = np.abs(samples[after.start - 800 : after.start + 800]).mean()
        assert level < np.abs(samples).mean() / 2, "not cut where it is quiet"
    assert found[0].start < RATE and found[-1].start + len(found[-1].samples) > 99 * RATE


def test_a_long_pause_ends_a_segment_without_rules(detector: VoiceDetector) -> None:
    found = run(segmenter(detector, rules=None), paused())
    assert [s.reason for s in found] == ["length", "length", "finish"]
    assert sum(len(s.samples) for s in found) < 8.5 * RATE


@pytest.mark.parametrize("level", [None, -70.0, -45.0])
def test_silence_and_steady_noise_reach_nobody(
    detector: VoiceDetector, level: float | None
) -> None:
    samples = np.zeros(20 * RATE, np.float32) if level is None else pink(20, level)
    assert shape(run(segmenter(detector), samples)) == [(len(samples), 0, "finish")]


def test_a_mark_takes_what_is_there_and_the_stream_goes_on(detector: VoiceDetector) -> None:
    samples, middle = paused(), int(2.7 * RATE)
    live = segmenter(detector)
    before = live.push(samples[:middle])
    assert live.speaking and not before
    [answer] = live.mark("finalize")
    assert answer.reason == "finalize" and not live.speaking
    assert answer.start + len(answer.samples) == middle
    assert shape(live.mark("finalize")) == [(middle, 0, "finalize")]
    rest, second, last = [*live.push(samples[middle:]), *live.mark("finish")]
    assert rest.start == middle and rest.reason == "endpoint"
    assert 6 * RATE - 9000 < second.start and last.reason == "finish"


def test_what_was_said_just_before_a_mark_is_in_its_answer(detector: VoiceDetector) -> None:
    live = segmenter(detector)
    # A quarter of a second is less than the detector takes at a time.
    live.push(np.concatenate([np.zeros(RATE + 384, np.float32), speech(3.0)[24_000:27_500]]))
    assert not live.speaking
    [answer] = live.mark("finish")
    assert len(answer.samples) > 3000


def test_a_mark_never_asks_for_more_than_a_model_can_hear() -> None:
    samples = speech(60.0)
    for seconds in (28.0, 28.1, 28.2, 28.3, 28.5):
        live = segmenter(rules=EndpointRules(trailing_silence=30.0))
        found = [*live.push(samples[: int(seconds * RATE)]), *live.mark("finalize")]
        assert max(len(s.samples) for s in found) <= 28 * RATE
        assert [s.reason for s in found].count("finalize") == 1
        assert found[-1].reason == "finalize"


def test_memory_does_not_grow_with_the_stream() -> None:
    live = segmenter(rules=EndpointRules(trailing_silence=30.0))
    block = np.concatenate([speech(50.0), np.zeros(30 * RATE, np.float32)])
    for _ in range(4):
        for part in cut(len(block), [8000]):
            live.push(block[part])
            assert live._buffer.end - live._buffer.start < 31 * RATE
    assert len(live._loud) < RATE
