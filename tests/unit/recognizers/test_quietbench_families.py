"""`pianissimo quietbench` over models of several families, each a folder of random weights."""

import json
import os
from pathlib import Path

import pytest
from tiny_whisper import save_tiny_whisper

from pianissimo.cli import main
from pianissimo.evaluate.quietbench.run import fingerprint
from pianissimo.zoo.load import load

pytest.importorskip("transformers", reason="the extra families is not installed")
pytest.importorskip("sherpa_onnx", reason="the extra sherpa is not installed")
pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("pyroomacoustics", reason="the extra quietbench is not installed")

from tiny_sherpa import save_tiny_paraformer

RESULTS = 2 * (6 + 16 + 8 * 2)
"""Of one model: two gains over a clip per scenario, those without speech, and the sweep."""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIANISSIMO_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    save_tiny_whisper(root / "whisper-tiny-random")
    save_tiny_paraformer(root / "paraformer-random")
    return {name: root / name for name in ("whisper-tiny-random", "paraformer-random")}


def bench(out: Path, *models: Path) -> int:
    chosen = [part for model in models for part in ("-m", str(model))]
    common = ["--mini", "--clips", "1", "--device", "cpu", "-q", "-o", str(out)]
    return main(["quietbench", *chosen, *common])


@pytest.mark.slow
def test_any_models_share_a_table(
    folders: dict[str, Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert bench(out, *folders.values(), tiny_model_folder) == 0
    table = (out / "table.md").read_text("utf-8")
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]
    names = {row["recognizer"] for row in rows}
    assert names >= set(folders)
    assert len(names) == 3
    for name in names:
        assert f"| {name}, gain off |" in table
        assert f"| {name}, gain on |" in table
        own = [row for row in rows if row["recognizer"] == name]
        assert len(own) == RESULTS
        assert not any(row["error"] for row in own)
    assert any(row["text"] for row in rows if row["recognizer"] == "paraformer-random")
    # Other weights under the same name are another model: nothing of the old one is taken.
    save_tiny_paraformer(folders["paraformer-random"], seed=1)
    assert bench(out, folders["paraformer-random"]) == 0
    again = (out / "results.jsonl").read_text("utf-8").splitlines()
    assert len(again) == len(rows) + RESULTS


def test_two_models_of_one_name_are_refused(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = tmp_path / "paraformer-random"
    save_tiny_paraformer(twin, seed=2)
    assert bench(tmp_path / "out", folders["paraformer-random"], twin) == 2
    assert "same name" in capsys.readouterr().err


def test_a_fingerprint_is_of_parameters_or_files(folders: dict[str, Path]) -> None:
    whisper, paraformer = (load(folder, device="cpu") for folder in folders.values())
    assert fingerprint(whisper) == fingerprint(whisper, folders["whisper-tiny-random"])
    assert fingerprint(paraformer) != fingerprint(paraformer, folders["paraformer-random"])
