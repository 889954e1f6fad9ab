"""`pianissimo export`: what it writes can be used, and what it refuses."""

import json
import os
from pathlib import Path

import pytest

from pianissimo.cli import main

CLIP = Path(__file__).parents[2] / "examples" / "audio" / "sentence.flac"


@pytest.fixture(autouse=True)
def environment(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIANISSIMO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIANISSIMO_MODEL", str(tiny_model_folder))
    monkeypatch.setenv("PIANISSIMO_DEVICE", "cpu")


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_folder_is_a_model(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", tmp_path / "new", "--dtype", dtype) == 0
    told = capsys.readouterr().out
    assert "model.safetensors" in told and " MB " in told
    assert run("transcribe", CLIP, "--model", tmp_path / "new") == 0
    assert capsys.readouterr().out.strip()


def test_a_folder_that_cannot_be_made_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for options in ([], ["--onnx", "--latency", "80"]):
        assert run("export", tmp_path / "file" / "new", *options) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("cannot be written: Not a directory")


def test_what_makes_no_sense_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for options in (
        [tmp_path / "full"],
        [tmp_path / "new", "--latency", "160"],
        [tmp_path / "new", "--onnx", "--dtype", "float16"],
        [tmp_path / "new", "--onnx", "--latency", "81"],
        [tmp_path / "new", "--dtype", "int4"],
    ):
        assert run("export", *options) == 2, options
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_onnx_files_of_every_mode(tmp_path: Path) -> None:
    assert run("export", tmp_path / "new", "--onnx", "--quiet") == 0
    about = json.loads((tmp_path / "new" / "onnx.json").read_text(encoding="utf-8"))
    files = {mode["file"] for mode in about["modes"].values()}
    assert files == {f"encoder-{ms}ms.onnx" for ms in (80, 160, 560, 1120)}
    assert files < {path.name for path in (tmp_path / "new").iterdir()}
