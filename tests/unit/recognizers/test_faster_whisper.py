"""Whisper on CTranslate2: equal to faster-whisper's own pipeline, in our segments and guards."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spoken import pink, speech

import pianissimo
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import CheckpointError, MissingExtraError, OptionError
from pianissimo.hallucination.verdict import max_new_tokens
from pianissimo.protocols import StreamRecognizer

ctranslate2 = pytest.importorskip("ctranslate2", reason="needs the extra faster-whisper")
pytest.importorskip("faster_whisper", reason="needs the extra faster-whisper")
pytest.importorskip("transformers", reason="needs the extra families")

from tiny_faster_whisper import save_tiny_faster_whisper  # noqa: E402, after the skip

from pianissimo.recognizers.faster_whisper import (  # noqa: E402, after the skip
    FAMILY,
    FasterWhisperRecognizer,
)
from pianissimo.recognizers.whisper import WhisperRecognizer  # noqa: E402, after the skip

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CLIPS = [speech(3.0), speech(27.9), speech(1.0), speech(9.9) * np.float32(0.2)]


def load(folder: Path, **options: Any) -> Any:
    return pianissimo.load(folder, device="cpu", families=[FAMILY], **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("faster-whisper")
    for name in ("english", "many"):
        save_tiny_faster_whisper(root / name, multilingual=name == "many")
    return {name: root / name for name in ("english", "many")}


@pytest.fixture(scope="module")
def english(folders: dict[str, Path]) -> FasterWhisperRecognizer:
    recognizer = load(folders["english"])
    assert isinstance(recognizer, FasterWhisperRecognizer)
    return recognizer


def theirs(recognizer: FasterWhisperRecognizer, samples: Any, **options: Any) -> Any:
    """The first segment of the package's pipeline, without what we leave out of it."""
    segments, info = recognizer.model.transcribe(
        samples,
        beam_size=5,
        temperature=0.0,
        condition_on_previous_text=False,
        without_timestamps=True,
        no_speech_threshold=None,
        log_prob_threshold=None,
        compression_ratio_threshold=None,
        word_timestamps=True,
        **options,
    )
    return next(iter(segments)), info


def test_its_folders_are_read_natively_unless_it_is_named(folders: dict[str, Path]) -> None:
    native = pianissimo.load(folders["many"], device="cpu", language="de")
    assert isinstance(native, WhisperRecognizer)
    assert native.transcribe(CLIPS[0], sample_rate=SAMPLE_RATE).language == "de"


def test_texts_times_and_scores_are_those_of_the_pipeline(
    english: FasterWhisperRecognizer,
) -> None:
    for samples in CLIPS:
        [ours] = english._decode([samples], True)
        expected, _ = theirs(english, samples, language="en")
        assert len(ours.tokens) > 3
        limit = max_new_tokens(len(samples) / SAMPLE_RATE)
        assert list(ours.tokens) == list(expected.tokens)[:limit]
        assert ours.cut_off == (len(expected.tokens) >= min(limit, 224))
        assert ours.mean_log_probability == pytest.approx(expected.avg_logprob, abs=1e-4)
        if len(expected.tokens) > limit:
            continue  # a text that is cut has its times changed
        assert ours.text == expected.text.strip()
        spoken = [word for word in expected.words if word.word.strip()]
        assert [word.text for word in ours.words] == [word.word.strip() for word in spoken]
        assert [word.confidence for word in ours.words] == pytest.approx(
            [word.probability for word in spoken], abs=1e-4
        )
        # The pipeline shortens the first and last word of a sentence afterwards; ours keep theirs.
        inner = slice(2, -2)
        assert [w.start for w in ours.words[inner]] == pytest.approx(
            [w.start for w in spoken[inner]], abs=0.011
        )


def test_a_batch_gives_what_each_piece_gives_alone(english: FasterWhisperRecognizer) -> None:
    together = english._decode(CLIPS[:3], True)
    for samples, batched in zip(CLIPS[:3], together, strict=True):
        [alone] = english._decode([samples], True)
        assert batched.tokens == alone.tokens
        assert [w.start for w in batched.words] == [w.start for w in alone.words]


def test_recordings_are_cut_and_silence_says_nothing(english: FasterWhisperRecognizer) -> None:
    assert english.name == "english" and english.language == "en"
    found = english.transcribe(speech(65.0), sample_rate=SAMPLE_RATE)
    assert found.segments[-1].end > 60 and found.language == "en"
    starts = [segment.start for segment in found.segments]
    assert starts == sorted(starts) and found.segments[-1].end <= 65.0
    plain = english.transcribe(speech(65.0), sample_rate=SAMPLE_RATE, word_timestamps=False)
    assert plain.text == found.text and plain.words == ()
    for samples in (np.zeros(48_000, np.float32), speech(0.05), pink(5.0, -60)):
        empty = english.transcribe(samples, sample_rate=SAMPLE_RATE)
        assert (empty.text, empty.segments) == ("", ()) and empty.reasons


def test_it_is_live_from_pause_to_pause(english: FasterWhisperRecognizer) -> None:
    assert isinstance(english, StreamRecognizer)
    with english.stream() as stream:
        events = [*stream.push(np.concatenate([speech(3.0), np.zeros(32_000, np.float32)]))]
        events += stream.finish()
    finals = [event for event in events if event.type == "final"]
    assert [event.reason for event in finals] == ["endpoint", "finish"]
    assert finals[0].text and finals[0].end < 4.0


def test_languages_are_found_or_chosen(folders: dict[str, Path]) -> None:
    finds = load(folders["many"])
    assert isinstance(finds, FasterWhisperRecognizer)
    [ours] = finds._decode(CLIPS[:1], False)
    expected, info = theirs(finds, CLIPS[0])
    assert ours.language == info.language in ("en", "de", "zh")
    limit = max_new_tokens(len(CLIPS[0]) / SAMPLE_RATE)
    assert list(ours.tokens) == list(expected.tokens)[:limit]
    found = finds.transcribe(CLIPS[0], sample_rate=SAMPLE_RATE)
    assert found.language == info.language
    for options in ({"language": "zh"}, {"language": "DE", "task": "translate"}):
        chosen = load(folders["many"], **options)
        language, task = options["language"].lower(), options.get("task", "transcribe")
        expected, _ = theirs(chosen, CLIPS[0], language=language, task=task)
        [ours] = chosen._decode(CLIPS[:1], True)
        assert list(ours.tokens) == list(expected.tokens)[:limit]
        said = chosen.transcribe(CLIPS[0], sample_rate=SAMPLE_RATE)
        assert said.language == ("en" if task == "translate" else language)


def test_precisions(folders: dict[str, Path]) -> None:
    exact = load(folders["english"], dtype="float32")
    small = load(folders["english"], dtype="int8")
    assert exact.model.model.compute_type == "float32"
    assert small.model.model.compute_type.startswith("int8")
    assert exact._decode(CLIPS[:1], False)[0].text
    assert small._decode(CLIPS[:1], False)[0].text
    unable = {"float16", "bfloat16"} - ctranslate2.get_supported_compute_types("cpu")
    for dtype in unable:
        with pytest.raises(OptionError, match="cannot be computed"):
            load(folders["english"], dtype=dtype)


def test_options_it_lacks_are_refused(folders: dict[str, Path]) -> None:
    for name, options, message in (
        ("english", {"language": "de"}, "it has en"),
        ("many", {"language": "fr"}, "de, en, zh"),
        ("english", {"task": "translate"}, "translates nothing"),
        ("many", {"head": "ctc"}, "no ctc head"),
        ("many", {"task": "sing"}, "unknown task"),
    ):
        with pytest.raises(OptionError, match=message):
            load(folders[name], **options)


def test_damaged_folders_are_refused_and_nothing_is_fetched(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = sorted(path.name for path in folders["english"].iterdir())
    for damaged, data in (
        ("tokenizer.json", None),
        ("tokenizer.json", b"{}"),
        ("config.json", b"not json"),
        ("model.bin", b""),
        ("model.bin", b"\6\0\0\0\x0c\0Transformer\0" + bytes(100)),
        ("model.bin", (folders["english"] / "model.bin").read_bytes()[:5000]),
    ):
        folder = tmp_path / f"{damaged}-{0 if data is None else len(data)}"
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes((folders["english"] / name).read_bytes())
        (folder / damaged).unlink()
        if data is not None:
            (folder / damaged).write_bytes(data)
        with pytest.raises(CheckpointError, match=folder.name):
            load(folder)


def test_without_the_package_the_error_names_the_extra(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(MissingExtraError, match=r"pianissimo\[faster-whisper\]"):
        load(folders["english"])
