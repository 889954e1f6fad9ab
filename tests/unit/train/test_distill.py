"""Distillation of a Whisper's encoder into short chunks, on a tiny random model."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("transformers", reason="needs the extra families")
sys.path.insert(0, str(Path(__file__).parents[1] / "recognizers"))
from spoken import speech
from tiny_whisper import save_tiny_whisper

from pianissimo.cli import main
from pianissimo.errors import ManifestError, OptionError
from pianissimo.recognizers.whisper import WhisperRecognizer, read_parts
from pianissimo.train.data import AudioCache, read_manifest
from pianissimo.train.distill import RUN, Distiller, DistillOptions, distill
from pianissimo.train.live_windows import LEVEL, WindowSource, at_level, written

RATE = 16_000
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("teacher") / "tiny"
    save_tiny_whisper(folder, multilingual=False)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings of speech-like sound, one of them without a text."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i, seconds in enumerate((1, 2, 3)):
        soundfile.write(folder / f"{i}.wav", speech(seconds), RATE)
        rows.append({"audio_filepath": f"{i}.wav", "duration": seconds, "text": "a word"})
    del rows[1]["text"]
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def source(manifest: Path, cache: Path, damaged: float = 1.0) -> WindowSource:
    utterances = read_manifest(manifest, texts=False)
    return WindowSource(AudioCache(utterances, cache), [u.text for u in utterances], 1, damaged)


def test_windows_have_speech_at_the_level_of_streams(manifest: Path, tmp_path: Path) -> None:
    windows = [source(manifest, tmp_path).draw() for _ in range(1)]
    drawn = source(manifest, tmp_path)
    windows += [drawn.draw() for _ in range(12)]
    for window in windows:
        assert len(window.clean) == len(window.damaged) <= 30 * RATE
        assert len(window.speech) == len(window.clean) // 320
        assert window.speech.any() and not window.speech.all()
        loud = window.clean[: len(window.speech) * 320].reshape(-1, 320)[window.speech]
        assert np.sqrt(np.mean(loud**2)) > LEVEL / 10
        outside = window.clean[: len(window.speech) * 320].reshape(-1, 320)[~window.speech]
        assert not outside.any()
    texts = {window.text for window in windows}
    assert "" in texts, "a window with an utterance of unknown words has no text"
    assert any(text.startswith("A word.") for text in texts)


def test_undamaged_windows_differ_by_a_noise_floor_only(manifest: Path, tmp_path: Path) -> None:
    drawn = source(manifest, tmp_path, damaged=0.0)
    for window in (drawn.draw() for _ in range(8)):
        same_level = at_level(window.damaged, LEVEL) - at_level(window.clean, LEVEL)
        assert np.sqrt(np.mean(same_level**2)) < 0.2 * LEVEL


def test_texts_are_written_as_whisper_writes() -> None:
    assert written("HE  COULD WAIT") == "He could wait."
    assert written("Is it?") == "Is it?"
    assert written(" ") == ""


def test_the_student_comes_nearer_to_the_teacher(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    options = DistillOptions(
        manifest, tmp_path / "live", model, steps=30, batch=1, rate=3e-3, damaged=0.0, words=0.5
    )
    windows = [source(manifest, tmp_path, damaged=0.0).draw()]
    before = Distiller(read_parts(model), options, CPU).loss(windows, 8, True)
    distill(options, CPU)
    after = Distiller(read_parts(tmp_path / "live"), options, CPU).loss(windows, 8, True)
    assert float(after.squared.detach()) < 0.8 * float(before.squared.detach())
    assert float(after.total.detach()) < float(before.total.detach())


def test_a_run_resumes_and_its_model_has_short_chunks(
    model: Path, manifest: Path, tmp_path: Path
) -> None:
    options = DistillOptions(manifest, tmp_path / "live", model, steps=10, batch=1)
    distill(replace(options, steps=4), CPU)
    distill(options, CPU)
    log = (tmp_path / "live" / RUN / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [10]
    parts = read_parts(tmp_path / "live")
    published = read_parts(model).network.encoder.state_dict()
    for name, tensor in parts.network.encoder.state_dict().items():
        torch.testing.assert_close(tensor, published[name], atol=2e-3, rtol=2e-3)
    recognizer = WhisperRecognizer(parts)
    assert recognizer.latencies_ms == (160, 560, 1120)
    with recognizer.stream(latency_ms=160) as stream:
        events = stream.push(speech(3)) + stream.finish()
    assert events[-1].type == "final"


def test_bad_options_and_data_are_refused(model: Path, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at least 1 step"):
        DistillOptions(manifest, tmp_path, model, steps=0)
    with pytest.raises(OptionError, match="shares of 0 to 1"):
        DistillOptions(manifest, tmp_path, model, words=2.0)
    with pytest.raises(OptionError, match="does not know the language 'de'"):
        distill(DistillOptions(manifest, tmp_path, model, language="de"), CPU)
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"audio_filepath": "none.wav", "duration": 1}\n')
    with pytest.raises(ManifestError, match="no file"):
        distill(DistillOptions(empty, tmp_path, model), CPU)


def test_the_command_line(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", "--manifest", str(manifest), "--out", str(tmp_path / "live")]
    assert main([*command]) == 2
    assert "--val is missing" in capsys.readouterr().err
    assert main([*command, "--live", "--val", str(manifest)]) == 2
    assert "--live does not use --val" in capsys.readouterr().err
    assert main([*command, "--live", "-m", "embedded-commands", "--steps", "1"]) == 2
    assert "embedded-commands is not a Whisper" in capsys.readouterr().err
    assert main([*command, "--live", "-m", str(model), "--steps", "1"]) == 0
    assert "model: " in capsys.readouterr().err
    assert read_parts(tmp_path / "live").live_encoder is not None
