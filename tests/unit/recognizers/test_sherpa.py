"""Paraformer and SenseVoice: equal to sherpa-onnx called directly, and safe where it is not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from spoken import pink, speech
from tiny import cut

import pianissimo
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import CheckpointError, MissingExtraError, OptionError, StreamError
from pianissimo.models.checkpoints.onnx_metadata import read_onnx_metadata
from pianissimo.protocols import Recognizer, Stream, StreamRecognizer
from pianissimo.transcript import StreamEvent

sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="needs the extra sherpa")
onnx = pytest.importorskip("onnx", reason="needs onnx to make models")

from tiny_sherpa import (  # noqa: E402, needs onnx
    save_tiny_paraformer,
    save_tiny_sense_voice,
    save_tiny_streaming_paraformer,
)

from pianissimo.recognizers.sherpa import (  # noqa: E402, after the skip
    STEP_SAMPLES,
    SherpaRecognizer,
    StreamingParaformer,
    timed_words,
)

Samples = NDArray[np.float32]
CLIPS = [speech(3.0), speech(27.9), speech(0.4), speech(9.9) * np.float32(0.2)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sherpa")
    save_tiny_paraformer(root / "paraformer")
    save_tiny_paraformer(root / "untimed", timestamps=False, name="model.onnx", seed=1)
    save_tiny_sense_voice(root / "sense-voice")
    save_tiny_streaming_paraformer(root / "streaming")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module", params=["paraformer", "untimed", "sense-voice"])
def offline(request: pytest.FixtureRequest, folders: dict[str, Path]) -> SherpaRecognizer:
    recognizer = pianissimo.load(folders[request.param], device="cpu")
    assert isinstance(recognizer, SherpaRecognizer)
    return recognizer


def theirs(folder: Path, samples: Samples, **options: Any) -> Any:
    """What the library makes of samples when it is called directly."""
    tokens = str(folder / "tokens.txt")
    [path] = map(str, folder.glob("model*.onnx"))
    if "sense" in folder.name:
        options = {"language": "auto", "use_itn": True, **options}
        model = sherpa_onnx.OfflineRecognizer.from_sense_voice(path, tokens, **options)
    else:
        model = sherpa_onnx.OfflineRecognizer.from_paraformer(path, tokens)
    stream = model.create_stream()
    stream.accept_waveform(SAMPLE_RATE, samples)
    model.decode_stream(stream)
    return stream.result


# -- whole recordings ------------------------------------------------------------------------------


def test_texts_and_tokens_are_those_of_the_library(
    offline: SherpaRecognizer, folders: dict[str, Path]
) -> None:
    for samples, ours in zip(CLIPS, offline._decode(CLIPS), strict=True):
        found = theirs(folders[offline.name], samples)
        assert len(found.tokens) > 0
        assert ours.text == found.text.strip()
        assert list(ours.tokens) == list(found.tokens)
        assert ours.language == ("zh" if offline.name == "sense-voice" else None)


def test_times_are_those_of_the_library(
    offline: SherpaRecognizer, folders: dict[str, Path]
) -> None:
    for samples, ours in zip(CLIPS, offline._decode(CLIPS), strict=True):
        found = theirs(folders[offline.name], samples)
        if offline.name == "untimed":
            assert ours.words == () and not found.timestamps
            continue
        starts = [word.start for word in ours.words]
        assert len(starts) > 0 and starts == sorted(starts)
        assert {*starts} <= {round(time, 6) for time in found.timestamps}
        assert all(0 <= w.start <= w.end <= len(samples) / SAMPLE_RATE for w in ours.words)
        letters = "".join(found.tokens).replace("▁", "").replace("@@", "")
        assert "".join(word.text for word in ours.words) == letters


def test_the_same_audio_gives_the_same_text_however_often(offline: SherpaRecognizer) -> None:
    quiet = speech(5.0) * np.float32(1e-3)  # dither of one step of 16 bits would be heard
    assert len({offline._decoded(quiet).text for _ in range(5)}) == 1
    config = offline.model.config.feat_config
    assert config.dither == 0.0


def test_recordings_of_any_length_are_heard(offline: SherpaRecognizer) -> None:
    for seconds in (0.05, 0.1, 0.3, 1.0, 65.0):
        found = offline.transcribe(speech(seconds), sample_rate=SAMPLE_RATE)
        assert found.duration == pytest.approx(seconds)
        assert bool(found.text) or seconds < 1.0
    assert found.segments[-1].end > 60
    for samples in (np.zeros(0, np.float32), np.zeros(48_000, np.float32)):
        empty = offline.transcribe(samples, sample_rate=SAMPLE_RATE)
        assert (empty.text, empty.segments) == ("", ()) and empty.reasons


def test_an_empty_result_is_normal(folders: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(folders["sense-voice"] / "model.onnx")
    [weights] = [c for c in model.graph.initializer if c.name == "weights"]
    weights.CopyFrom(onnx.numpy_helper.from_array(np.zeros(list(weights.dims), "f4"), "weights"))
    onnx.save(model, tmp_path / "model.onnx")
    (tmp_path / "tokens.txt").write_bytes((folders["sense-voice"] / "tokens.txt").read_bytes())
    found = pianissimo.load(tmp_path).transcribe(speech(5.0), sample_rate=SAMPLE_RATE)
    assert (found.text, found.words, found.segments) == ("", (), ())


def test_sense_voice_is_asked_for_the_language(folders: dict[str, Path]) -> None:
    for language in ("yue", "en"):
        recognizer = pianissimo.load(folders["sense-voice"], language=language)
        found = recognizer.transcribe(CLIPS[0], sample_rate=SAMPLE_RATE)
        assert found.language == language == recognizer.language
        [decoded] = recognizer._decode(CLIPS[:1])
        assert decoded.language == theirs(
            folders["sense-voice"], CLIPS[0], language=language
        ).lang.strip("<|>")
    assert (
        pianissimo.load(folders["sense-voice"])
        .transcribe(CLIPS[0], sample_rate=SAMPLE_RATE)
        .language
        == "zh"
    )


def test_symbols_become_words() -> None:
    times = [0.1 * i for i in range(9)]

    def words(tokens: list[str], marked: bool) -> list[str]:
        found = timed_words(tokens, times[: len(tokens)], 2.0, starts_marked=marked)
        return [word.text for word in found]

    assert words(["我", "hel@@", "lo", "wo@@", "rld", "能"], False) == [
        "我",
        "hello",
        "world",
        "能",
    ]
    assert words(["▁Hel", "lo", "▁world", ".", "我", "能", "。", "ok"], True) == [
        "Hello",
        "world.",
        "我",
        "能。",
        "ok",
    ]
    assert words(["▁", "你", "▁"], True) == ["你"]
    first, second = timed_words(["a@@", "b", "c"], [0.2, 0.5, 1.5], 1.6, starts_marked=False)
    assert (first.start, first.end) == (0.2, 1.1), "a symbol does not last through a pause"
    assert (second.start, second.end) == (1.5, 1.6)


def test_it_is_a_recognizer_that_streams_from_pause_to_pause(offline: SherpaRecognizer) -> None:
    assert isinstance(offline, StreamRecognizer)
    with offline.stream() as stream:
        events = [*stream.push(np.concatenate([speech(3.0), np.zeros(32_000, np.float32)]))]
        events += stream.finish()
    finals = [event for event in events if event.type == "final"]
    assert [event.reason for event in finals] == ["endpoint", "finish"]
    assert finals[0].text


# -- live ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def streaming(folders: dict[str, Path]) -> StreamingParaformer:
    recognizer = pianissimo.load(folders["streaming"], device="cpu", gain="off")
    assert isinstance(recognizer, StreamingParaformer)
    return recognizer


def run(stream: Stream, samples: Samples, sizes: list[int]) -> list[StreamEvent]:
    events = [e for part in cut(len(samples), sizes) for e in stream.push(samples[part])]
    return events + stream.finish()


def test_a_stream_says_what_the_library_says(
    streaming: StreamingParaformer, folders: dict[str, Path]
) -> None:
    folder = folders["streaming"]
    model = sherpa_onnx.OnlineRecognizer.from_paraformer(
        *(str(folder / name) for name in ("tokens.txt", "encoder.int8.onnx", "decoder.int8.onnx"))
    )
    samples = speech(12.0)
    stream, partials = model.create_stream(), list[str]()
    for part in cut(len(samples), [STEP_SAMPLES]):
        if part.stop - part.start == STEP_SAMPLES:
            stream.accept_waveform(SAMPLE_RATE, samples[part])
            while model.is_ready(stream):
                model.decode_stream(stream)
            partials.append(model.get_result(stream).strip())
    events = run(streaming.stream(endpoint=None), samples, [1000])
    said = [event.text for event in events if event.type == "partial"]
    assert len(said) > 5
    assert said == list(dict.fromkeys(filter(None, partials)))
    assert events[-1].reason == "finish" and events[-1].text.startswith(said[-1])


@pytest.mark.parametrize("sizes", [[160], [1, 999, 7000], [10**9]])
def test_blocks_of_any_size_give_the_same(streaming: StreamingParaformer, sizes: list[int]) -> None:
    samples = speech(10.0)
    assert run(streaming.stream(), samples, sizes) == run(streaming.stream(), samples, [1280])


class Scripted:
    """Writes the letters of a script, one for each step in which somebody speaks."""

    def __init__(self) -> None:
        self.heard = np.zeros(0, np.float32)

    def create_stream(self) -> "Scripted":
        return Scripted()

    def accept_waveform(self, rate: int, samples: Samples) -> None:
        self.heard = np.concatenate([self.heard, samples])

    # The model is handed its streams.
    def is_ready(self, stream: "Scripted") -> bool:
        return len(stream.heard) > stream.used + STEP_SAMPLES

    used = 0
    text = ""

    def decode_stream(self, stream: "Scripted") -> None:
        step = stream.heard[stream.used : stream.used + STEP_SAMPLES]
        stream.used += STEP_SAMPLES
        stream.text += "a" if np.abs(step).max() > 0.1 else ""

    def get_result(self, stream: "Scripted") -> str:
        return stream.text


def test_pauses_end_utterances_and_no_sample_is_lost_between_them() -> None:
    loud = np.tile(np.float32([0.5, -0.5]), 2 * STEP_SAMPLES)
    silence = np.zeros(3 * STEP_SAMPLES, "f4")
    recognizer = StreamingParaformer(Scripted(), name="scripted")
    recognizer.front_end = type(recognizer.front_end)("off")
    samples = np.concatenate([loud, silence, loud, silence, loud[:STEP_SAMPLES]])
    events = run(recognizer.stream(), samples, [1280])
    finals = [event for event in events if event.type == "final"]
    assert [event.text for event in finals] == ["aaaa", "aaaa", "a"]
    assert [event.reason for event in finals] == ["endpoint", "endpoint", "finish"]
    assert [(e.start, e.end) for e in finals[:2]] == [(0.0, 2.4), (4.2, 6.6)]
    assert [event.type for event in events].count("endpoint") == 2


def test_silence_and_clicks_say_nothing_live_either(streaming: StreamingParaformer) -> None:
    for samples in (np.zeros(50_000, np.float32), speech(3.0)[24_000:24_800]):
        events = run(streaming.stream(), samples, [1280])
        assert [(event.text, event.reason) for event in events] == [("", "finish")]
    late = np.concatenate([np.zeros(20 * STEP_SAMPLES, np.float32), speech(3.0)])
    events = run(streaming.stream(), late, [1280])
    assert events[-1].text and events[0].start >= 11.0


def test_each_finalize_gets_one_answer(streaming: StreamingParaformer) -> None:
    assert isinstance(streaming, Recognizer)
    assert streaming.latencies_ms == (600,)
    with streaming.stream(latency_ms=600, sample_rate=48_000) as stream:
        assert [event.text for event in stream.finalize()] == [""]
        stream.push(np.repeat(speech(4.0), 3))
        [final] = stream.finalize()
        assert final.text and final.reason == "finalize" and 0 <= final.start < final.end <= 4.0
        [last] = stream.finish()
        assert (last.text, last.start, last.end) == ("", 4.0, 4.0)
        with pytest.raises(StreamError, match="has ended"):
            stream.push(speech(1.0))
    for options, message in (
        ({"latency_ms": 160}, "160 ms is not a mode"),
        ({"partials": streaming}, "partials by itself"),
    ):
        with pytest.raises(OptionError, match=message):
            streaming.stream(**options)


def test_a_recording_goes_through_it_to_its_end(streaming: StreamingParaformer) -> None:
    found = streaming.transcribe(speech(30.0), sample_rate=SAMPLE_RATE)
    assert found.duration == pytest.approx(30.0)
    assert found.segments[-1].end > 29 and len(found.text) > 30
    again = streaming.transcribe(speech(30.0), sample_rate=SAMPLE_RATE, latency_ms=600)
    assert again == found
    for samples in (np.zeros(0, np.float32), np.zeros(48_000, np.float32), speech(0.05)):
        assert streaming.transcribe(samples, sample_rate=SAMPLE_RATE).text == ""
    assert streaming.transcribe(pink(5.0, -50), sample_rate=SAMPLE_RATE).text == ""


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    for path in folders["paraformer"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    yield tmp_path


def test_metadata_is_read_without_a_runtime(folders: dict[str, Path]) -> None:
    for path in (p for folder in folders.values() for p in folder.glob("*.onnx")):
        expected = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert read_onnx_metadata(path) == expected


def test_damaged_models_are_refused_and_end_nothing(copied: Path) -> None:
    path = copied / "model.int8.onnx"
    whole = path.read_bytes()
    for data in (b"", b"not a model", whole[:100], whole[:-100], whole[:2000] + bytes(3000)):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"model\.int8\.onnx"):
            pianissimo.load(copied)
    model = onnx.load_model_from_string(whole)
    for name, value in (
        ("vocab_size", "many"),
        ("vocab_size", "29"),
        ("neg_mean", "1,2,3"),
        ("inv_stddev", ",".join(["nan"] * 560)),
        ("lfr_window_shift", None),
        ("neg_mean", None),
    ):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        entries = {e.key: e.value for e in model.metadata_props if e.key != name}
        if value is not None:
            entries[name] = value
        del changed.metadata_props[:]
        onnx.helper.set_model_props(changed, entries)
        onnx.save(changed, path)
        with pytest.raises(CheckpointError):
            pianissimo.load(copied)


def test_damaged_tokens_are_refused(copied: Path) -> None:
    tokens = copied / "tokens.txt"
    lines = tokens.read_text(encoding="utf-8").splitlines()
    for text in ("", "\n".join(lines[:-1]), "a b c\n" * 28, "\n".join(reversed(lines[1:]))):
        tokens.write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"tokens\.txt"):
            pianissimo.load(copied)
    tokens.write_text("\n".join(reversed(lines)), encoding="utf-8")
    assert isinstance(pianissimo.load(copied), SherpaRecognizer)


def test_other_models_of_the_library_are_refused_by_what_is_read(
    copied: Path, folders: dict[str, Path]
) -> None:
    streaming = folders["streaming"]
    (copied / "model.int8.onnx").write_bytes((streaming / "decoder.int8.onnx").read_bytes())
    with pytest.raises(CheckpointError, match="neither a Paraformer nor a SenseVoice"):
        pianissimo.load(copied)
    (copied / "model.int8.onnx").rename(copied / "encoder-epoch-99.onnx")
    with pytest.raises(CheckpointError, match=r"no encoder\.int8\.onnx"):
        pianissimo.load(copied)


def test_the_precision_chooses_the_file(copied: Path, folders: dict[str, Path]) -> None:
    assert isinstance(pianissimo.load(copied, dtype="int8"), SherpaRecognizer)
    with pytest.raises(OptionError, match=r"no model in float32; there is model\.int8\.onnx"):
        pianissimo.load(copied, dtype="float32")
    (copied / "model.onnx").write_bytes((folders["untimed"] / "model.onnx").read_bytes())
    assert pianissimo.load(copied).transcribe(CLIPS[0], sample_rate=SAMPLE_RATE).words
    plain = pianissimo.load(copied, dtype="float32")
    assert not plain.transcribe(CLIPS[0], sample_rate=SAMPLE_RATE).words
    with pytest.raises(OptionError, match="not in bfloat16"):
        pianissimo.load(copied, dtype="bfloat16")


def test_options_it_lacks_are_refused(folders: dict[str, Path]) -> None:
    for name, options, message in (
        ("paraformer", {"language": "zh"}, "no choice of languages"),
        ("sense-voice", {"language": "fr"}, "zh, en, ja, ko, yue"),
        ("paraformer", {"head": "ctc"}, "no ctc head"),
        ("streaming", {"task": "translate"}, "only transcribes"),
    ):
        with pytest.raises(OptionError, match=message):
            pianissimo.load(folders[name], **options)


def test_without_the_package_the_error_names_the_extra(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sherpa_onnx", None)
    with pytest.raises(MissingExtraError, match=r"pianissimo\[sherpa\]"):
        pianissimo.load(folders["paraformer"])
