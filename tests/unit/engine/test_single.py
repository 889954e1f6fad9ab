import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import WHOLE_CONTEXT, cut, make_model, noise

from pianissimo.engine.segmented import SegmentedStream
from pianissimo.engine.single import SingleStream
from pianissimo.errors import AudioValueError, OptionError, StreamError
from pianissimo.models.asr import AsrModel
from pianissimo.protocols import Stream, StreamRecognizer
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import StreamEvent, Transcript

LATENCIES = (80, 160, 560, 1120)
SAMPLES = 50_003
SIZES = {
    "10 ms": [160],
    "odd": [1279],
    "regular": [1280],
    "random": [0, 1, 100, 1000, 5000],
    "at once": [SAMPLES],
}


@pytest.fixture(scope="module")
def recognizer(talker: AsrModel, tiny_tokenizer: Tokenizer) -> NativeRecognizer:
    return NativeRecognizer(talker, tiny_tokenizer)


@pytest.fixture(scope="module")
def sound() -> NDArray[np.float32]:
    return noise(SAMPLES, seed=3)


def open_stream(recognizer: NativeRecognizer, **options: Any) -> SingleStream:
    """A stream without endpoints: one final at its end, to compare with a transcript."""
    return recognizer.stream(**{"endpoint": None, **options})


def run(stream: SingleStream, samples: NDArray[np.generic], sizes: list[int]) -> list[StreamEvent]:
    events = [e for part in cut(len(samples), sizes) for e in stream.push(samples[part])]
    return events + stream.finish()


def assert_final(events: list[StreamEvent], whole: Transcript) -> None:
    """The last event says what the transcript of all samples says."""
    assert len(whole.words) > 5
    final = events[-1]
    assert final.type == "final"
    assert final.text == whole.text
    assert [w.text for w in final.words] == [w.text for w in whole.words]
    assert [(w.start, w.end) for w in final.words] == [(w.start, w.end) for w in whole.words]
    found, expected = ([w.confidence for w in words] for words in (final.words, whole.words))
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("latency", LATENCIES)
def test_pushes_of_any_size_end_in_the_transcript_of_the_whole(
    recognizer: NativeRecognizer, sound: NDArray[np.float32], latency: int, sizes: str
) -> None:
    events = run(open_stream(recognizer, latency_ms=latency), sound, SIZES[sizes])
    whole = recognizer.transcribe(sound, sample_rate=16_000, latency_ms=latency)
    assert_final(events, whole)
    assert [e.type for e in events] == ["partial"] * (len(events) - 1) + ["final"]


def test_pushes_of_one_sample_end_in_the_transcript_of_the_whole(
    recognizer: NativeRecognizer, sound: NDArray[np.float32]
) -> None:
    short = sound[:7001]
    stream = open_stream(recognizer, latency_ms=80)
    events = run(stream, short[:1500], [1])[:-1]
    whole = recognizer.transcribe(short[:1500], sample_rate=16_000, latency_ms=80)
    at_once = run(open_stream(recognizer, latency_ms=80), short[:1500], [1500])
    assert at_once[-1].text == whole.text
    assert all(at_once[-1].text.startswith(e.text) for e in events)


def test_the_latencies_differ(recognizer: NativeRecognizer, sound: NDArray[np.float32]) -> None:
    """Otherwise the tests above would not see a wrong one."""
    finals = [run(open_stream(recognizer, latency_ms=n), sound, [4000])[-1].text for n in LATENCIES]
    assert len(set(finals)) == len(finals)


@pytest.mark.parametrize("sizes", ["10 ms", "random"])
@pytest.mark.parametrize("latency", LATENCIES)
def test_what_was_said_is_never_taken_back(
    recognizer: NativeRecognizer, sound: NDArray[np.float32], latency: int, sizes: str
) -> None:
    events = run(open_stream(recognizer, latency_ms=latency), sound, SIZES[sizes])
    assert len(events) >= 3
    for before, after in itertools.pairwise(events):
        assert after.text.startswith(before.text)
        assert after.words[: len(before.words)] == before.words
        assert before.stable


@pytest.mark.parametrize("latency", LATENCIES)
def test_words_come_as_soon_as_their_chunk_is_complete(
    recognizer: NativeRecognizer, sound: NDArray[np.float32], latency: int
) -> None:
    """A partial holds all tokens of the complete chunks: nothing waits for further audio."""
    stream = open_stream(recognizer, latency_ms=latency)
    chunk = latency * 16
    heard = ""
    for k in range(1, SAMPLES // chunk):
        complete = chunk * k - 1280 + 200
        begin = complete - chunk if k > 1 else 0
        early = stream.push(sound[begin : complete - 1])
        assert early == []
        for event in stream.push(sound[complete - 1 : complete]):
            heard = event.text
    assert heard == said(recognizer, sound[:complete], latency) != ""


@torch.no_grad()
def said(recognizer: NativeRecognizer, samples: NDArray[np.float32], latency: int) -> str:
    """The text of all tokens of the complete chunks, without a session."""
    model, search = recognizer.model, recognizer.live_search
    plan = model.encoder.plan(model.config.latencies_ms[latency])
    mel = model.features.push(torch.from_numpy(samples), model.features.start())
    encoded = model.encoder.step(mel[None], model.encoder.start(), plan)
    tokens = search.decode(encoded, None, search.start())[0].tokens
    return recognizer.tokenizer.decode(tokens).strip()


def test_events_span_their_words_and_stay_inside_the_audio(
    recognizer: NativeRecognizer, sound: NDArray[np.float32]
) -> None:
    events = run(open_stream(recognizer, latency_ms=160), sound, [1600])
    for event in events:
        assert 0 <= event.start < event.end
    final = events[-1]
    assert final.start == final.words[0].start
    assert final.end == final.words[-1].end <= SAMPLES / 16_000


def test_times_of_words_rise_and_stay_inside_the_audio(
    recognizer: NativeRecognizer, sound: NDArray[np.float32]
) -> None:
    for latency in LATENCIES:
        words = run(open_stream(recognizer, latency_ms=latency), sound, [1600])[-1].words
        assert_rising(words_times(words), SAMPLES / 16_000)


def words_times(words: tuple[object, ...]) -> Iterator[tuple[float, float]]:
    return ((w.start, w.end) for w in words)  # type: ignore[attr-defined]


def assert_rising(times: Iterator[tuple[float, float]], duration: float) -> None:
    last = 0.0
    for start, end in times:
        assert last <= start <= end <= duration
        last = end


# -- how samples come in ---------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_other_sample_rates_are_converted_as_they_come(
    recognizer: NativeRecognizer, rate: int
) -> None:
    samples = noise(2 * rate + 17, seed=1)
    events = run(open_stream(recognizer, sample_rate=rate), samples, [0, 50, 441, 3000])
    whole = recognizer.transcribe(samples, sample_rate=rate, latency_ms=160)
    assert_final(events, whole)


def test_integers_lists_and_channels_are_what_their_floats_are(
    recognizer: NativeRecognizer, sound: NDArray[np.float32]
) -> None:
    integers = (sound * 32768).astype(np.int16)
    floats = integers.astype(np.float32) / 32768
    expected = run(open_stream(recognizer), floats, [3000])
    assert run(open_stream(recognizer), integers, [3000]) == expected
    stereo = np.stack([floats, floats], axis=1)
    assert run(open_stream(recognizer), stereo, [3000]) == expected
    stream = open_stream(recognizer)
    for part in cut(SAMPLES, [3000]):
        stream.push(floats[part].tolist())
    assert stream.finish() == expected[-1:]


def test_unusable_samples_are_refused_and_the_stream_goes_on(
    recognizer: NativeRecognizer, sound: NDArray[np.float32]
) -> None:
    stream = open_stream(recognizer)
    stream.push(sound[:20_000])
    spoiled = sound[20_000:21_000].copy()
    spoiled[7] = np.nan
    with pytest.raises(AudioValueError, match="NaN"):
        stream.push(spoiled)
    with pytest.raises(AudioValueError):
        stream.push(np.zeros((2, 500), np.float32))
    stream.push(sound[20_000:])
    other = open_stream(recognizer)
    other.push(sound[:20_000])
    other.push(sound[20_000:])
    assert stream.finish() == other.finish()


# -- beginning and end -----------------------------------------------------------------------------


def test_a_finished_stream_takes_nothing_more(
    recognizer: NativeRecognizer, sound: NDArray[np.float32]
) -> None:
    stream = open_stream(recognizer)
    stream.push(sound)
    stream.finish()
    with pytest.raises(StreamError, match="push"):
        stream.push(sound)
    with pytest.raises(StreamError, match="finish"):
        stream.finish()


def test_leaving_the_context_ends_the_stream(
    recognizer: NativeRecognizer, sound: NDArray[np.float32]
) -> None:
    with open_stream(recognizer) as stream:
        stream.push(sound[:100])
    with pytest.raises(StreamError):
        stream.push(sound)
    with open_stream(recognizer) as stream:
        stream.finish()


@pytest.mark.parametrize("samples", [0, 1, 159])
def test_a_stream_without_a_frame_says_nothing(recognizer: NativeRecognizer, samples: int) -> None:
    stream = open_stream(recognizer)
    assert stream.push(np.zeros(samples, np.float32)) == []
    [final] = stream.finish()
    assert (final.type, final.text, final.words, final.reason) == ("final", "", (), "finish")


def test_streams_side_by_side_do_not_mix(
    recognizer: NativeRecognizer, sound: NDArray[np.float32]
) -> None:
    sounds = {latency: noise(30_000, seed=latency) for latency in LATENCIES}
    alone = {
        n: run(open_stream(recognizer, latency_ms=n), s, [2000])[-1] for n, s in sounds.items()
    }
    streams = {latency: open_stream(recognizer, latency_ms=latency) for latency in LATENCIES}
    for part in cut(30_000, [500, 2000]):
        for latency, stream in streams.items():
            stream.push(sounds[latency][part])
    for latency, stream in streams.items():
        [final] = stream.finish()
        assert (final.text, len(final.words)) == (alone[latency].text, len(alone[latency].words))


def test_the_latency_of_a_stream_is_checked(recognizer: NativeRecognizer) -> None:
    with pytest.raises(OptionError, match=r"100 ms .*80, 160, 560, 1120"):
        open_stream(recognizer, latency_ms=100)
    with pytest.raises(AudioValueError, match="sample rate of 0 Hz"):
        open_stream(recognizer, sample_rate=0)


def test_the_default_latency_is_the_shortest_from_160_ms_on(
    recognizer: NativeRecognizer, sound: NDArray[np.float32]
) -> None:
    usual = run(open_stream(recognizer), sound, [SAMPLES])
    assert usual == run(open_stream(recognizer, latency_ms=160), sound, [SAMPLES])


def test_a_model_that_sees_whole_recordings_has_no_latency(tiny_tokenizer: Tokenizer) -> None:
    model = make_model(encoder=WHOLE_CONTEXT, vocab_size=tiny_tokenizer.vocab_size)
    recognizer = NativeRecognizer(model, tiny_tokenizer)
    assert recognizer.latencies_ms == ()
    assert isinstance(open_stream(recognizer), SegmentedStream)
    with pytest.raises(OptionError, match="cannot stream"):
        open_stream(recognizer, latency_ms=160)


def test_sessions_and_recognizers_keep_their_protocols(recognizer: NativeRecognizer) -> None:
    assert isinstance(recognizer, StreamRecognizer)
    assert isinstance(open_stream(recognizer), Stream)
