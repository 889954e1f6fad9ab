import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from tiny import WHOLE_CONTEXT, make_model, make_talker, noise

from pianissimo.audio.io import AudioSource
from pianissimo.decoding.search import Decoding, Head
from pianissimo.errors import AudioDecodeError, AudioError, AudioNotFoundError, OptionError
from pianissimo.models.asr import AsrModel, PromptConfig
from pianissimo.protocols import Recognizer
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.transcript import Transcript

RATE = 16_000
LENGTHS = [40_000, 8_000, 52_345, 100, 39_111, 7_999, 41_600]
"""Samples of the recordings below: several of about one length, one without a frame."""


@pytest.fixture(scope="module")
def recognizer(talker: AsrModel, tiny_tokenizer: Tokenizer) -> NativeRecognizer:
    return NativeRecognizer(talker, tiny_tokenizer)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    paths = [folder / f"{i}.wav" for i in range(len(LENGTHS))]
    for seed, (path, n) in enumerate(zip(paths, LENGTHS, strict=True)):
        soundfile.write(path, noise(n, seed), RATE, subtype="FLOAT")
    return paths


def whole_context(tokenizer: Tokenizer, **changes: Any) -> NativeRecognizer:
    """A recognizer that sees whole recordings and says something to most frames."""
    pieces = tokenizer.vocab_size
    model = make_talker(0.0, vocab_size=pieces, encoder=WHOLE_CONTEXT, max_symbols=2, **changes)
    return NativeRecognizer(model, tokenizer)


def assert_same(found: Transcript, expected: Transcript) -> None:
    """Equal but for the rounding of confidences."""
    assert found.text == expected.text
    assert (found.duration, found.model) == (expected.duration, expected.model)
    for words in ("words", "segments"):
        a, b = getattr(found, words), getattr(expected, words)
        assert [(w.text, w.start, w.end) for w in a] == [(w.text, w.start, w.end) for w in b]
        scores = [w.confidence for w in a]
        assert scores == pytest.approx([w.confidence for w in b], abs=1e-4)


# -- one recording ---------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [None, 80, 160, 560, 1120])
def test_a_file_its_bytes_and_its_samples_give_one_transcript(
    recognizer: NativeRecognizer, files: list[Path], latency: int | None
) -> None:
    samples = noise(LENGTHS[2], 2)
    expected = recognizer.transcribe(samples, sample_rate=RATE, latency_ms=latency)
    assert len(expected.words) > 5
    assert expected.duration == pytest.approx(LENGTHS[2] / RATE)
    sources = (files[2], str(files[2]), files[2].read_bytes(), io.BytesIO(files[2].read_bytes()))
    for source in sources:
        assert_same(recognizer.transcribe(source, latency_ms=latency), expected)
    tensor = torch.from_numpy(samples)
    assert recognizer.transcribe(tensor, sample_rate=RATE, latency_ms=latency) == expected


@pytest.mark.parametrize("seconds", [0.08, 0.331, 1.0])
def test_the_size_of_the_blocks_has_no_influence(
    recognizer: NativeRecognizer,
    files: list[Path],
    seconds: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = [recognizer.transcribe(f) for f in files]
    monkeypatch.setattr(NativeRecognizer, "block_seconds", seconds)
    for file, transcript in zip(files, expected, strict=True):
        assert_same(recognizer.transcribe(file), transcript)
    for found, transcript in zip(recognizer.transcribe_many(files), expected, strict=True):
        assert_same(found, transcript)


def test_the_longest_latency_is_the_default(
    recognizer: NativeRecognizer, files: list[Path]
) -> None:
    usual = recognizer.transcribe(files[0])
    assert usual == recognizer.transcribe(files[0], latency_ms=1120)
    assert usual.text != recognizer.transcribe(files[0], latency_ms=80).text


def test_integers_and_other_rates_are_converted(recognizer: NativeRecognizer) -> None:
    integers = (noise(20_000) * 32768).astype(np.int16)
    expected = recognizer.transcribe(integers.astype(np.float32) / 32768, sample_rate=RATE)
    assert recognizer.transcribe(integers, sample_rate=RATE) == expected
    other = recognizer.transcribe(noise(24_000), sample_rate=48_000)
    assert other.duration == pytest.approx(0.5)
    assert other.text != recognizer.transcribe(noise(24_000), sample_rate=RATE).text


def test_times_rise_and_stay_inside_the_recording(
    recognizer: NativeRecognizer, tiny_tokenizer: Tokenizer
) -> None:
    for r in (recognizer, whole_context(tiny_tokenizer)):
        for n in (40_000, 40_000 + 160, 40_000 + 320, 40_000 + 480):
            transcript = r.transcribe(noise(n, n), sample_rate=RATE)
            assert len(transcript.words) > 5
            last = 0.0
            for word in transcript.words:
                assert last <= word.start <= word.end <= transcript.duration
                assert word.confidence is not None
                assert 0 <= word.confidence <= 1
                last = word.end
            assert " ".join(w.text for w in transcript.words) == " ".join(transcript.text.split())


def test_words_are_left_out_if_not_asked_for(
    recognizer: NativeRecognizer, files: list[Path]
) -> None:
    full = recognizer.transcribe(files[0])
    plain = recognizer.transcribe(files[0], word_timestamps=False)
    assert plain.words == ()
    assert all(segment.words == () for segment in plain.segments)
    assert plain.text == full.text
    assert [(s.text, s.start, s.end) for s in plain.segments] == [
        (s.text, s.start, s.end) for s in full.segments
    ]
    assert len(full.words) == sum(len(s.words) for s in full.segments) > 0


@pytest.mark.parametrize("samples", [0, 1, 159])
@pytest.mark.parametrize("streams", [True, False])
def test_a_recording_without_a_frame_has_an_empty_transcript(
    recognizer: NativeRecognizer, tiny_tokenizer: Tokenizer, samples: int, streams: bool
) -> None:
    r = recognizer if streams else whole_context(tiny_tokenizer)
    found = r.transcribe(np.zeros(samples, np.float32), sample_rate=RATE)
    assert (found.text, found.words, found.segments) == ("", (), ())
    assert found.duration == samples / RATE


def test_what_the_model_is_stands_in_the_transcript(
    recognizer: NativeRecognizer, files: list[Path]
) -> None:
    found = recognizer.transcribe(files[1])
    assert (found.language, found.model, recognizer.name) == ("en", "unnamed", "unnamed")
    assert isinstance(recognizer, Recognizer)
    assert recognizer.latencies_ms == (80, 160, 560, 1120)


def test_a_prompt_goes_in_whichever_way_the_recording_does(
    tiny_tokenizer: Tokenizer, files: list[Path]
) -> None:
    texts = set()
    for default in (0, 1):
        prompts = PromptConfig(count=2, hidden=16, default=default)
        pieces = tiny_tokenizer.vocab_size
        model = make_talker(0.0, vocab_size=pieces, prompts=prompts, max_symbols=2)
        r = NativeRecognizer(model, tiny_tokenizer)
        expected = r.transcribe(files[0], latency_ms=160)
        [batched, _] = r.transcribe_many([files[0], files[4]], latency_ms=160)
        assert_same(batched, expected)
        stream = r.stream(latency_ms=160, endpoint=None)
        stream.push(noise(LENGTHS[0], 0))
        assert stream.finish()[-1].text == expected.text
        texts.add(expected.text)
    assert len(texts) == 2


def test_either_head_can_be_asked_for(tiny_tokenizer: Tokenizer, files: list[Path]) -> None:
    model = make_model(vocab_size=tiny_tokenizer.vocab_size)
    usual, transducer, ctc = (
        NativeRecognizer(model, tiny_tokenizer, head=head).transcribe(files[0]).text
        for head in (None, "transducer", "ctc")
    )
    assert usual == transducer != ctc


def test_recordings_are_searched_as_the_model_says_and_streams_greedily(
    tiny_tokenizer: Tokenizer, files: list[Path]
) -> None:
    model = make_talker(0.0, vocab_size=tiny_tokenizer.vocab_size, beam=4)

    def texts(decoding: Decoding | None, head: Head | None = None) -> list[str]:
        recognizer = NativeRecognizer(model, tiny_tokenizer, head=head, decoding=decoding)
        stream = recognizer.stream(latency_ms=1120, endpoint=None, watchdog=None)
        samples, _ = soundfile.read(files[0], dtype="float32")
        stream.push(samples)
        live = stream.finish()[-1].text
        return [*(recognizer.transcribe(path).text for path in files[:3]), live]

    usual, greedy, beam = texts(None), texts(Decoding(beam=1)), texts(Decoding(beam=4))
    assert usual[:3] == beam[:3] != greedy[:3]
    assert usual[3] == greedy[3] != beam[3]
    assert texts(None, "ctc") == texts(Decoding(beam=1), "ctc")
    with pytest.raises(OptionError, match="beam"):
        make_model(beam=0)


def test_recordings_are_rescored_as_the_model_says(
    tiny_tokenizer: Tokenizer, files: list[Path]
) -> None:
    def texts(decoding: Decoding | None, **config: float) -> list[str]:
        model = make_talker(0.0, vocab_size=tiny_tokenizer.vocab_size, beam=4, **config)
        recognizer = NativeRecognizer(model, tiny_tokenizer, decoding=decoding)
        return [recognizer.transcribe(path).text for path in files[:3]]

    usual, asked = texts(None, rescoring=3.0), texts(Decoding(beam=4, rescoring=3.0))
    assert usual == asked == texts(Decoding(beam=4), rescoring=3.0) != texts(None)
    assert texts(Decoding(beam=4, rescoring=0.0), rescoring=3.0) == texts(None)


# -- many recordings -------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [80, 560])
@pytest.mark.parametrize("batch_seconds", [0.01, 6.0, 600.0])
def test_many_equal_one_by_one_in_the_order_given(
    recognizer: NativeRecognizer, files: list[Path], batch_seconds: float, latency: int
) -> None:
    options: dict[str, Any] = {"latency_ms": latency}
    found = list(recognizer.transcribe_many(files, batch_seconds=batch_seconds, **options))
    assert len(found) == len(files)
    for transcript, file in zip(found, files, strict=True):
        assert_same(transcript, recognizer.transcribe(file, **options))


@pytest.mark.parametrize("batch_seconds", [0.01, 600.0])
def test_many_equal_one_by_one_with_unlimited_context(
    tiny_tokenizer: Tokenizer, files: list[Path], batch_seconds: float
) -> None:
    r = whole_context(tiny_tokenizer)
    usable = [f for f, n in zip(files, LENGTHS, strict=True) if n >= 160]
    found = list(r.transcribe_many(usable, batch_seconds=batch_seconds))
    for transcript, file in zip(found, usable, strict=True):
        assert_same(transcript, r.transcribe(file))
    assert sum(len(t.words) for t in found) > 20


def test_features_normalized_over_the_recording_are_so_in_a_batch_and_alone(
    tiny_tokenizer: Tokenizer, files: list[Path]
) -> None:
    pieces = tiny_tokenizer.vocab_size
    features = dataclasses.replace(make_model().config.features, normalize="per_feature")
    r = whole_context(tiny_tokenizer, features=features)
    plain = make_talker(0.0, vocab_size=pieces, encoder=WHOLE_CONTEXT, max_symbols=2)
    alone = r.transcribe(files[0])
    [batched, _] = r.transcribe_many([files[0], files[4]])
    assert_same(batched, alone)
    assert alone.text != NativeRecognizer(plain, tiny_tokenizer).transcribe(files[0]).text


def test_bytes_and_file_objects_of_unknown_length_come_one_by_one(
    recognizer: NativeRecognizer, files: list[Path]
) -> None:
    sources: list[AudioSource] = [
        files[0],
        files[1].read_bytes(),
        io.BytesIO(files[2].read_bytes()),
    ]
    found = list(recognizer.transcribe_many(sources))
    for transcript, file in zip(found, files, strict=False):
        assert_same(transcript, recognizer.transcribe(file))


def test_a_bad_recording_is_an_outcome_among_good_ones(
    recognizer: NativeRecognizer, files: list[Path], tmp_path: Path
) -> None:
    text, missing = tmp_path / "text.wav", tmp_path / "missing.wav"
    text.write_text("not audio at all", encoding="utf-8")
    spoiled = tmp_path / "nan.wav"  # its header is in order: only decoding finds the fault
    samples: NDArray[np.float32] = noise(30_000)
    samples[20_000] = np.nan
    soundfile.write(spoiled, samples, RATE, subtype="FLOAT")
    sources: list[AudioSource] = [
        files[0],
        text,
        files[4],
        missing,
        spoiled,
        files[6],
        b"neither this",
    ]
    for batch_seconds in (600.0, 0.01):
        outcomes = {o.index: o for o in recognizer.outcomes(sources, batch_seconds=batch_seconds)}
        assert sorted(outcomes) == list(range(len(sources)))
        for i in (0, 2, 5):
            outcome = outcomes[i]
            assert outcome.error is None
            assert outcome.transcript is not None
            assert_same(outcome.transcript, recognizer.transcribe(sources[i]))
        for i, kind in ((1, AudioDecodeError), (3, AudioNotFoundError), (4, AudioError)):
            assert isinstance(outcomes[i].error, kind)
            assert outcomes[i].transcript is None
        assert isinstance(outcomes[6].error, AudioDecodeError)


def test_transcribe_many_raises_at_the_turn_of_the_bad_recording(
    recognizer: NativeRecognizer, files: list[Path], tmp_path: Path
) -> None:
    results = recognizer.transcribe_many([files[0], files[1], tmp_path / "no.wav", files[2]])
    assert next(results).text
    assert_same(next(results), recognizer.transcribe(files[1]))
    with pytest.raises(AudioNotFoundError, match=r"no\.wav"):
        next(results)


def test_of_no_recordings_come_no_transcripts(recognizer: NativeRecognizer) -> None:
    assert list(recognizer.transcribe_many([])) == []


# -- refusals --------------------------------------------------------------------------------------


def test_an_unknown_latency_is_refused(recognizer: NativeRecognizer, files: list[Path]) -> None:
    with pytest.raises(OptionError, match=r"latency 100 ms .*80, 160, 560, 1120"):
        recognizer.transcribe(files[0], latency_ms=100)
    with pytest.raises(OptionError, match="latency 100 ms"):
        list(recognizer.transcribe_many(files, latency_ms=100))


def test_one_recording_is_not_many(recognizer: NativeRecognizer, files: list[Path]) -> None:
    for source in (files[0], str(files[0]), files[0].read_bytes()):
        with pytest.raises(OptionError, match=r"transcribe_many\(\[path\]\)"):
            list(recognizer.transcribe_many(source))  # type: ignore[arg-type]


def test_samples_need_their_rate(recognizer: NativeRecognizer) -> None:
    for samples in (noise(100), torch.zeros(100), [0.0, 0.1], (0.0, 0.1)):
        with pytest.raises(OptionError, match="sample_rate"):
            recognizer.transcribe(samples)


def test_recordings_that_cannot_be_read_raise_their_error(
    recognizer: NativeRecognizer, tmp_path: Path
) -> None:
    with pytest.raises(AudioNotFoundError):
        recognizer.transcribe(tmp_path / "missing.wav")
    with pytest.raises(AudioDecodeError):
        recognizer.transcribe(b"not audio at all")
