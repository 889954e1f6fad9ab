"""Recognizing with wav2vec 2.0 and its kin: windows, batches, words; tiny models as saved."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from spoken import pink, speech
from tiny import cut, noise

import pianissimo
from pianissimo.errors import (
    AudioDecodeError,
    AudioNotFoundError,
    CheckpointError,
    OptionError,
)
from pianissimo.protocols import Recognizer, StreamRecognizer
from pianissimo.recognizers import base as offline
from pianissimo.recognizers import wav2vec2 as ctc_family
from pianissimo.recognizers.wav2vec2 import CtcFamilyRecognizer, GreedyPath
from pianissimo.text.characters import Run
from pianissimo.transcript import Transcript

GOLDEN = Path(__file__).parents[2] / "parity" / "golden_families"
RATE = 16_000
LENGTHS = [40_000, 8_000, 52_345, 399, 39_111, 400, 41_600]


@pytest.fixture(
    scope="module", params=["wav2vec2", "mms", "data2vec", "wavlm", "bert", "bert_adapter"]
)
def recognizer(request: pytest.FixtureRequest) -> CtcFamilyRecognizer:
    found = pianissimo.load(GOLDEN / request.param, device="cpu")
    assert isinstance(found, CtcFamilyRecognizer)
    return found


@pytest.fixture(scope="module")
def base() -> CtcFamilyRecognizer:
    found = pianissimo.load(GOLDEN / "wav2vec2", device="cpu")
    assert isinstance(found, CtcFamilyRecognizer)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    paths = [folder / f"{i}.wav" for i in range(len(LENGTHS))]
    for seed, (path, n) in enumerate(zip(paths, LENGTHS, strict=True)):
        soundfile.write(path, noise(n, seed), RATE, subtype="FLOAT")
    return paths


@pytest.fixture(autouse=True)
def nobody_doubts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models hear noise here, in which no detector would find speech."""
    if "doubted" not in request.node.name:
        monkeypatch.setattr(offline, "default_detector", lambda: None)


@pytest.mark.parametrize("family", ["wav2vec2", "robust", "bert"])
def test_text_of_what_is_no_speech_is_doubted_and_dropped(family: str) -> None:
    recognizer = pianissimo.load(GOLDEN / family, device="cpu")
    steady = {
        "hiss": pink(6.0, -70.0),
        "offset": np.full(3 * RATE, 0.4, np.float32),
        "mute": np.zeros(2 * RATE, np.float32),
        "short": speech(0.08),
    }
    for name, samples in steady.items():
        found = recognizer.transcribe(samples, sample_rate=RATE)
        assert (found.text, found.words, found.segments) == ("", (), ()), name
        assert found.reasons, name
    for level_db in (-26.0, -55.0):
        found = recognizer.transcribe(speech(4.0, level_db), sample_rate=RATE)
        assert found.text and not found.reasons


def assert_same(found: Transcript, expected: Transcript) -> None:
    """Equal but for the rounding of confidences."""
    assert found.text == expected.text
    assert (found.duration, found.model) == (expected.duration, expected.model)
    for a, b in zip(found.words, expected.words, strict=True):
        assert (a.text, a.start, a.end) == (b.text, b.start, b.end)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


# -- windows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.02, 29.99, 30.0, 30.01, 50.0, 50.02, 75.5])
def test_windows_give_every_frame_once_and_in_order(
    base: CtcFamilyRecognizer, seconds: float
) -> None:
    """Each window's frames are those of the recording where the window lies."""
    samples = np.arange(round(seconds * RATE), dtype=np.float32)
    blocks = [samples[part] for part in cut(len(samples), [1, 7_000, 160_000, 999_999])]
    config, due = base.model.config, 0
    for window in base._windows(0, blocks):
        start = int(window.samples[0])
        assert start % config.hop_samples == 0
        assert start // config.hop_samples + window.first == due
        assert window.last <= config.frames(len(window.samples))
        assert len(window.samples) <= 30 * RATE
        due += window.last - window.first
    assert due == config.frames(len(samples))


def test_frames_in_the_middle_of_a_long_recording_have_context_on_both_sides(
    base: CtcFamilyRecognizer,
) -> None:
    for window in list(base._windows(0, [np.zeros(100 * RATE, np.float32)]))[1:-1]:
        assert window.first == 250
        assert window.last == 1_250


def test_the_size_of_the_blocks_has_no_influence(base: CtcFamilyRecognizer) -> None:
    samples = noise(70 * RATE)
    expected = base.transcribe(samples, sample_rate=RATE)
    parts = (samples[part] for part in cut(len(samples), [1, 777, 16_000, 333_333], seed=1))
    assert_same(next(base.recognize([parts], True)), expected)
    assert len(expected.words) > 50


def test_windows_of_longer_frames_leave_none_out() -> None:
    found = pianissimo.load(GOLDEN / "bert_adapter", device="cpu")
    assert isinstance(found, CtcFamilyRecognizer)
    config, due = found.model.config, 0
    samples = np.arange(80 * RATE, dtype=np.float32)
    for window in found._windows(0, [samples]):
        assert int(window.samples[0]) // config.hop_samples + window.first == due
        due += window.last - window.first
    assert config.hop_samples == 1_280 and due == config.frames(len(samples))


def test_a_path_is_the_same_however_it_is_cut() -> None:
    drawn = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    log_probs = drawn.repeat_interleave(3, dim=0).log_softmax(-1)
    whole = GreedyPath(blank=0)
    whole.extend(log_probs)
    for seed in range(5):
        parts = GreedyPath(blank=0)
        for part in cut(len(log_probs), [0, 1, 2, 5, 100], seed):
            parts.extend(log_probs[part])
        assert parts.runs == whole.runs
    best = log_probs.argmax(-1)
    spoken = sum(run.end - run.start for run in whole.runs)
    assert spoken == int((best != 0).sum())
    assert all(int(best[run.start]) == int(best[run.end - 1]) == run.symbol for run in whole.runs)
    for run, following in pairwise(whole.runs):
        assert run.end < following.start or run.symbol != following.symbol


def test_a_blank_divides_equal_letters_and_a_seam_does_not() -> None:
    sure = torch.eye(3).mul(20).log_softmax(-1)
    path = GreedyPath(blank=0)
    path.extend(sure[[1, 1]])
    path.extend(sure[[1, 0, 1]])
    path.extend(sure[[0]])
    path.extend(sure[[1, 2]])
    ends = [(run.symbol, run.start, run.end) for run in path.runs]
    assert ends == [(1, 0, 3), (1, 4, 5), (1, 6, 7), (2, 7, 8)]
    assert isinstance(path.runs[0], Run)


# -- transcripts -----------------------------------------------------------------------------------


def test_a_file_its_bytes_and_its_samples_give_one_transcript(
    recognizer: CtcFamilyRecognizer, files: list[Path]
) -> None:
    samples = noise(LENGTHS[2], 2)
    expected = recognizer.transcribe(samples, sample_rate=RATE)
    assert expected.words and len(expected.text) > 5
    assert expected.duration == pytest.approx(LENGTHS[2] / RATE)
    sources = (files[2], str(files[2]), files[2].read_bytes(), io.BytesIO(files[2].read_bytes()))
    for source in sources:
        assert_same(recognizer.transcribe(source), expected)
    assert recognizer.transcribe(torch.from_numpy(samples), sample_rate=RATE) == expected


def test_times_rise_and_stay_inside_the_recording(recognizer: CtcFamilyRecognizer) -> None:
    for n in (40_000, 40_160, 500_123):
        transcript = recognizer.transcribe(noise(n, n), sample_rate=RATE)
        last = 0.0
        for word in transcript.words:
            assert last <= word.start < word.end <= transcript.duration == n / RATE
            assert word.confidence is not None
            assert 0 < word.confidence <= 1
            last = word.end
        assert " ".join(w.text for w in transcript.words) == transcript.text
        assert " ".join(s.text for s in transcript.segments) == transcript.text


def test_words_are_left_out_if_not_asked_for(base: CtcFamilyRecognizer, files: list[Path]) -> None:
    full = base.transcribe(files[0])
    plain = base.transcribe(files[0], word_timestamps=False)
    assert plain.words == ()
    assert all(segment.words == () for segment in plain.segments)
    assert plain.text == full.text != ""


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_a_recording_without_a_frame_has_an_empty_transcript(
    recognizer: CtcFamilyRecognizer, samples: int
) -> None:
    found = recognizer.transcribe(noise(samples), sample_rate=RATE)
    assert (found.text, found.words, found.segments) == ("", (), ())
    assert found.duration == samples / RATE


@pytest.mark.parametrize("batch_seconds", [0.01, 6.0, 600.0])
def test_many_equal_one_by_one_in_the_order_given(
    recognizer: CtcFamilyRecognizer, files: list[Path], batch_seconds: float
) -> None:
    found = list(recognizer.transcribe_many(files, batch_seconds=batch_seconds))
    assert len(found) == len(files)
    for transcript, file in zip(found, files, strict=True):
        assert_same(transcript, recognizer.transcribe(file))


def test_long_and_short_recordings_share_a_batch(base: CtcFamilyRecognizer) -> None:
    recordings = [noise(n, seed) for seed, n in enumerate((700_000, 20_000, 100, 990_000, 30_000))]
    found = list(base.recognize([[samples] for samples in recordings], True))
    for transcript, samples in zip(found, recordings, strict=True):
        assert_same(transcript, base.transcribe(samples, sample_rate=RATE))


def test_a_silent_stretch_says_nothing_and_shifts_nothing(base: CtcFamilyRecognizer) -> None:
    speech, silence = noise(30 * RATE), np.zeros(70 * RATE, np.float32)
    found = base.transcribe(np.concatenate([speech, silence, speech]), sample_rate=RATE)
    inside = [word for word in found.words if 35 < word.start < 95]
    assert inside == []
    before = [word for word in found.words if word.end < 25]
    after = [word for word in found.words if word.start > 105]
    assert len(before) > 5 and len(after) > 5
    assert found.words[-1].end > 125


@pytest.mark.parametrize("most", [1.0, 40.0, 1000.0])
def test_how_much_goes_through_at_once_has_no_influence(
    base: CtcFamilyRecognizer, files: list[Path], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [base.transcribe(file) for file in files]
    monkeypatch.setitem(ctc_family.GROUP_SECONDS, "cpu", most)
    for found, transcript in zip(base.transcribe_many(files), expected, strict=True):
        assert_same(found, transcript)


def test_a_bad_recording_is_an_outcome_among_good_ones(
    base: CtcFamilyRecognizer, files: list[Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.wav"
    text.write_text("not audio at all", encoding="utf-8")
    spoiled = tmp_path / "nan.wav"
    samples = noise(30_000)
    samples[20_000] = np.nan
    soundfile.write(spoiled, samples, RATE, subtype="FLOAT")
    sources = [files[0], text, files[4], tmp_path / "missing.wav", spoiled]
    for batch_seconds in (600.0, 0.01):
        outcomes = {o.index: o for o in base.outcomes(sources, batch_seconds=batch_seconds)}
        assert sorted(outcomes) == list(range(len(sources)))
        for i in (0, 2):
            transcript = outcomes[i].transcript
            assert transcript is not None
            assert_same(transcript, base.transcribe(sources[i]))
        assert isinstance(outcomes[1].error, AudioDecodeError)
        assert isinstance(outcomes[3].error, AudioNotFoundError)
        assert outcomes[4].error is not None
    with pytest.raises(AudioDecodeError):
        list(base.transcribe_many(sources))


@pytest.mark.parametrize("family", ["wav2vec2", "bert"])
def test_half_precision_finds_about_the_same(family: str, files: list[Path]) -> None:
    full, half = (
        pianissimo.load(GOLDEN / family, device="cpu", dtype=dtype)
        for dtype in ("float32", "bfloat16")
    )
    assert isinstance(half, CtcFamilyRecognizer)
    assert half.model.dtype == torch.bfloat16
    expected, found = full.transcribe(files[2]), half.transcribe(files[2])
    assert found.words
    assert abs(len(found.text) - len(expected.text)) <= len(expected.text) / 4


def test_spectra_stay_exact_in_half_precision() -> None:
    full, half = (
        pianissimo.load(GOLDEN / "bert", device="cpu", dtype=dtype).model.features
        for dtype in ("float32", "bfloat16")
    )
    samples = torch.from_numpy(noise(20_000))
    assert full(samples).equal(half(samples))


# -- what it is ------------------------------------------------------------------------------------


def test_it_is_a_recognizer_without_latency_modes(
    recognizer: CtcFamilyRecognizer, files: list[Path]
) -> None:
    assert isinstance(recognizer, Recognizer)
    assert isinstance(recognizer, StreamRecognizer)
    assert recognizer.latencies_ms == ()
    assert [event.text for event in recognizer.stream().finish()] == [""]
    for call in (recognizer.stream, lambda **options: recognizer.transcribe(files[0], **options)):
        with pytest.raises(OptionError, match=r"latency 160 ms .*needs whole recordings"):
            call(latency_ms=160)
    with pytest.raises(OptionError, match="latency 160 ms"):
        list(recognizer.transcribe_many(files, latency_ms=160))
    with pytest.raises(OptionError, match="sample_rate"):
        recognizer.transcribe(noise(100))


def test_the_folder_gives_the_name_and_the_language_its_tag() -> None:
    french = pianissimo.load(GOLDEN / "mms", device="cpu", language="fra")
    found = french.transcribe(noise(30_000), sample_rate=RATE)
    assert (french.name, found.model, found.language) == ("mms", "mms", "fra")
    english = pianissimo.load(GOLDEN / "mms", device="cpu")
    assert english.transcribe(noise(30_000), sample_rate=RATE).text != found.text


def test_heads_and_languages_it_lacks_are_refused() -> None:
    assert pianissimo.load(GOLDEN / "wav2vec2", device="cpu", head="ctc").name == "wav2vec2"
    with pytest.raises(OptionError, match="no transducer head"):
        pianissimo.load(GOLDEN / "wav2vec2", head="transducer")
    with pytest.raises(OptionError, match="no choice of languages"):
        pianissimo.load(GOLDEN / "wav2vec2", language="en")
    with pytest.raises(OptionError, match="speaks only 'en'"):
        pianissimo.load("embedded-commands", language="fr")
    with pytest.raises(OptionError, match="does not know the language 'fr'; it has en"):
        pianissimo.load(language="fr")
    assert pianissimo.load(language="en", device="cpu").language == "en"


def test_an_unknown_kind_of_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["SewForCTC"], "model_type": "sew"}')
    with pytest.raises(CheckpointError, match="kind 'sew'"):
        pianissimo.load(tmp_path)
