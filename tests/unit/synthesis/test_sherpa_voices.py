"""Voices of sherpa-onnx: a tiny VITS that speaks, and folders that are refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import pianissimo
from pianissimo.errors import (
    CheckpointError,
    MissingExtraError,
    ModelNotFoundError,
    NothingToSayError,
    OptionError,
)
from pianissimo.synthesis.sherpa import check_folder

pytest.importorskip("sherpa_onnx", reason="needs the extra sherpa")
onnx = pytest.importorskip("onnx", reason="makes the tiny networks")

RATE, HOP = 16_000, 800
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("seven", "streams", "at", "once", "hello")
VITS = {
    "model_type": "vits",
    "sample_rate": RATE,
    "n_speakers": 3,
    "language": "English",
    "comment": "tiny",
    "add_blank": 0,
    "punctuation": ", . ! ?",
}
KOKORO = {
    "model_type": "kokoro",
    "sample_rate": 24_000,
    "n_speakers": 2,
    "has_espeak": 1,
    "style_dim": "10,1,4",
    "speaker_names": "anna,bert",
}
MATCHA = {"model_type": "matcha-tts", "sample_rate": 22_050, "n_speakers": 1, "has_espeak": 1}


def save_network(path: Path, metadata: dict[str, Any]) -> None:
    """A network with the inputs of VITS: each symbol is a tone of its own, louder by speaker, for
    HOP samples times `length_scale`."""
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: Any) -> Any:
        return numpy_helper.from_array(np.asarray(value), name)

    tones = np.sin(np.outer(np.arange(1, 40), np.arange(4 * HOP)) / 20).astype(np.float32) / 4
    constants = [
        constant("tones", tones),
        constant("hop", np.float32(HOP)),
        constant("zero", np.array([0], np.int64)),
        constant("one", np.array([1], np.int64)),
        constant("flat", np.array([1, 1, -1], np.int64)),
        constant("quarter", np.float32(0.25)),
    ]
    nodes = [
        helper.make_node("Gather", ["tones", "x"], ["long"]),
        helper.make_node("Mul", ["length_scale", "hop"], ["wanted"]),
        helper.make_node("Cast", ["wanted"], ["size"], to=TensorProto.INT64),
        helper.make_node("Constant", [], ["axis"], value_ints=[2]),
        helper.make_node("Slice", ["long", "zero", "size", "axis"], ["cut"]),
        helper.make_node("Reshape", ["cut", "flat"], ["wave"]),
        helper.make_node("Cast", ["sid"], ["speaker"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["speaker", "quarter"], ["more"]),
        helper.make_node("Mul", ["wave", "more"], ["extra"]),
        helper.make_node("Add", ["wave", "extra"], ["y"]),
        *(
            helper.make_node("Identity", [name], [f"unused_{name}"])
            for name in ("x_length", "noise_scale", "noise_scale_w")
        ),
    ]
    integer, number = TensorProto.INT64, TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("x", integer, ["N", "L"]),
        helper.make_tensor_value_info("x_length", integer, ["N"]),
        helper.make_tensor_value_info("noise_scale", number, [1]),
        helper.make_tensor_value_info("length_scale", number, [1]),
        helper.make_tensor_value_info("noise_scale_w", number, [1]),
        helper.make_tensor_value_info("sid", integer, [1]),
    ]
    output = helper.make_tensor_value_info("y", number, [1, 1, "T"])
    graph = helper.make_graph(nodes, "tiny", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {name: str(value) for name, value in metadata.items()})
    onnx.save(model, path)


def save_texts(folder: Path) -> None:
    symbols = ["_", *LETTERS, " ", ",", ".", "!", "?"]
    lines = "".join(f"{symbol} {number}\n" for number, symbol in enumerate(symbols))
    (folder / "tokens.txt").write_text(lines)
    (folder / "lexicon.txt").write_text("".join(f"{w} {' '.join(w)}\n" for w in WORDS))


def save_espeak(folder: Path) -> None:
    (folder / "espeak-ng-data").mkdir()
    for name in ("phontab", "phonindex", "phondata", "intonations"):
        (folder / "espeak-ng-data" / name).touch()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voices") / "vits-tiny"
    folder.mkdir()
    save_network(folder / "vits-tiny.onnx", VITS)
    (folder / "vits-tiny.int8.onnx").write_bytes(b"not read")
    save_texts(folder)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "voice"))


def test_a_vits_speaks(published: Path) -> None:
    voice = pianissimo.load_voice(published)
    assert isinstance(voice, pianissimo.Synthesizer)
    assert (voice.name, voice.language, voice.sample_rate) == ("vits-tiny", "en", RATE)
    whole = voice.speak("Seven streams. At once!")
    pieces = [voice.speak(sentence) for sentence in voice.sentences("Seven streams. At once!")]
    assert len(pieces) == 2 and np.array_equal(np.concatenate(pieces), whole)
    assert whole.dtype == np.float32 and 0.1 < np.abs(whole).max() <= 1.0
    assert len(list(voice.stream("Seven streams. At once!"))) == 4  # with the pauses
    assert len(voice.speak("hello", speed=0.5)) > 1.5 * len(voice.speak("hello"))


def test_speakers_are_named_behind_the_folder(published: Path) -> None:
    first, last = (pianissimo.load_voice(published / name) for name in ("0", "2"))
    assert last.name == "vits-tiny/2"
    louder = np.abs(last.speak("hello")).max() / np.abs(first.speak("hello")).max()
    assert louder == pytest.approx(1.5, abs=0.01)
    with pytest.raises(ModelNotFoundError, match=r"no speaker '3'; choose 0, 1, 2"):
        pianissimo.load_voice(published / "3")


def test_what_a_voice_cannot_do_is_refused(published: Path) -> None:
    voice = pianissimo.load_voice(published)
    with pytest.raises(OptionError, match="omit seed"):
        voice.stream("hello", seed=1)
    with pytest.raises(OptionError, match="speed"):
        voice.stream("hello", speed=9.0)
    with pytest.raises(NothingToSayError):
        voice.speak("...")


def test_it_needs_its_package(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sherpa_onnx", None)
    with pytest.raises(MissingExtraError, match=r"pianissimo\[sherpa\]"):
        pianissimo.load_voice(published)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": None}, "no number sample_rate"),
        ({"sample_rate": "1"}, "sample_rate cannot be 1"),
        ({"n_speakers": "-1"}, "n_speakers cannot be"),
        ({"n_speakers": "99999"}, "n_speakers cannot be"),
        ({"comment": None}, "no comment"),
        ({"comment": "melo"}, "old export of MeloTTS"),
        ({"language": None}, "no voice that is known"),
    ],
)
def test_networks_that_would_end_the_process_are_refused(
    folder: Path, changes: dict[str, str | None], message: str
) -> None:
    metadata = {k: v for k, v in {**VITS, **changes}.items() if v is not None}
    save_network(folder / "vits-tiny.onnx", metadata)
    with pytest.raises(CheckpointError, match=message):
        pianissimo.load_voice(folder)


def test_damaged_folders_are_refused(folder: Path) -> None:
    (folder / "lexicon.txt").unlink()
    with pytest.raises(CheckpointError, match=r"no lexicon\.txt"):
        pianissimo.load_voice(folder)
    (folder / "tokens.txt").write_text("a one\n")
    with pytest.raises(CheckpointError, match="a symbol and its number"):
        pianissimo.load_voice(folder)
    (folder / "vits-tiny.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="not a complete ONNX file"):
        pianissimo.load_voice(folder)
    (folder / "other.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match="one network"):
        pianissimo.load_voice(folder)


def test_a_voice_of_piper_itself_is_explained(folder: Path) -> None:
    save_network(folder / "vits-tiny.onnx", {})
    (folder / "vits-tiny.onnx.json").write_text("{}")
    with pytest.raises(CheckpointError, match="as Piper publishes it"):
        pianissimo.load_voice(folder)


def test_a_kokoro_is_recognized(folder: Path) -> None:
    save_network(folder / "vits-tiny.onnx", KOKORO)
    with pytest.raises(CheckpointError, match=r"voices\.bin of 320 bytes for 2 speakers"):
        check_folder(folder)
    (folder / "voices.bin").write_bytes(bytes(320))
    with pytest.raises(CheckpointError, match="espeak-ng-data/phontab"):
        check_folder(folder)
    save_espeak(folder)
    found = check_folder(folder)
    assert (found.kind, found.sample_rate) == ("kokoro", 24_000)
    assert found.speakers == ("anna", "bert")
    with pytest.raises(ModelNotFoundError, match="choose anna, bert"):
        pianissimo.load_voice(folder / "carl")
    save_network(folder / "vits-tiny.onnx", KOKORO | {"style_dim": "10,2,4"})
    with pytest.raises(CheckpointError, match="style_dim"):
        check_folder(folder)


def test_a_matcha_needs_its_vocoder(folder: Path) -> None:
    save_network(folder / "vits-tiny.onnx", MATCHA)
    save_espeak(folder)
    with pytest.raises(CheckpointError, match="one vocoder"):
        check_folder(folder)
    save_network(folder / "vocos-22khz-univ.onnx", {"model_type": "other"})
    with pytest.raises(CheckpointError, match="no vocoder"):
        check_folder(folder)
    save_network(folder / "vocos-22khz-univ.onnx", {"model_type": "vocos"})
    found = check_folder(folder)
    assert found.kind == "matcha" and found.vocoder == folder / "vocos-22khz-univ.onnx"


def test_a_pocket_voice_is_a_recording(tmp_path: Path) -> None:
    for name in ("lm_main.int8", "lm_flow", "encoder", "decoder", "text_conditioner"):
        save_network(tmp_path / f"{name}.onnx", {})
    for name in ("vocab", "token_scores"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="no voice to speak with"):
        check_folder(tmp_path)
    soundfile.write(tmp_path / "bria.wav", np.zeros((RATE, 2), np.float32), RATE)
    found = check_folder(tmp_path)
    assert (found.kind, found.speakers, found.sample_rate) == ("pocket", ("bria",), 24_000)
    (tmp_path / "vocab.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        check_folder(tmp_path)
    (tmp_path / "encoder.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"no encoder\.onnx"):
        check_folder(tmp_path)
