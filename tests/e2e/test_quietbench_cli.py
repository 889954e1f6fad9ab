"""`pianissimo quietbench` with the embedded model over the bundled clips, and what it refuses."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pianissimo.cli import main

pytest.importorskip("pyroomacoustics", reason="the extra quietbench is not installed")
pytest.importorskip("matplotlib", reason="the extra quietbench is not installed")


@pytest.fixture(scope="module", autouse=True)
def bare() -> Iterator[None]:
    """The environment of a user who set nothing, also for the run that the tests share."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("PIANISSIMO_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def folder(bare: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("bench") / "first"
    model = ["--model", "embedded-commands", "--device", "cpu"]
    assert main(["quietbench", "--mini", "--clips", "1", *model, "-q", "-o", str(out)]) == 0
    return out


def test_it_leaves_tables_curve_page_and_results(folder: Path) -> None:
    table = (folder / "table.md").read_text("utf-8")
    assert "embedded-commands, gain off" in table
    assert "embedded-commands, gain on" in table
    assert "whisper -45 dB" in table
    assert (folder / "sweep.csv").read_text("utf-8").count("\n") == 1 + 2 * 2 * 8
    assert "data:image/png;base64," in (folder / "report.html").read_text("utf-8")
    rows = (folder / "results.jsonl").read_text("utf-8").splitlines()
    assert len(rows) == 2 * (6 + 16 + 8 * 2)
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary["environment"]["recognizers"]["embedded-commands"]["device"] == "cpu"


def test_silence_and_microphone_noise_give_no_text(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        if row["clip"].startswith(("nonspeech/digitalsilence", "nonspeech/microphone")):
            assert row["text"] == ""
            assert row["reasons"]


def test_again_it_computes_nothing_and_fills_a_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "results.jsonl").read_bytes()
    page = tmp_path / "page.md"
    page.write_text("# Numbers\n<!-- quietbench: begin -->\n<!-- quietbench: end -->\n")
    arguments = ["--model", "embedded-commands", "--mini", "--clips", "1", "--device", "cpu"]
    arguments += ["-q", "-o", str(folder)]
    assert main(["quietbench", *arguments, "--json", "--page", str(page)]) == 0
    assert (folder / "results.jsonl").read_bytes().strip() == before.strip()
    assert "low-volume accuracy" in page.read_text("utf-8")
    out = capsys.readouterr().out
    summary = json.loads(out)
    assert {system["gain"] for system in summary["systems"]} == {"off", "on"}


def test_two_runs_are_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "second"
    other.mkdir()
    for line in (folder / "results.jsonl").read_text("utf-8").splitlines():
        row = {**json.loads(line), "recognizer": "mute", "text": ""}
        row |= {"deletions": row["units"], "substitutions": 0, "insertions": 0}
        with open(other / "results.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    assert main(["quietbench", "compare", str(folder), str(other)]) == 0
    out = capsys.readouterr().out
    control = [line for line in out.splitlines() if "| control |" in line]
    assert control
    assert all(line.endswith("| first better |") for line in control)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--gain", "loud"], 2, "choose auto, on, off"),
        (["--speech", "nowhere"], 3, "nowhere"),
        (["--clips", "0"], 2, "--clips"),
        (["--model", "no-such-model"], 4, "no-such-model"),
        (["compare", "a", "b"], 2, "holds no results"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["quietbench", *arguments]) == code
    assert says in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.wav"))


def test_an_output_that_is_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    assert main(["quietbench", "--mini", "--clips", "1", "-q", "-o", str(path)]) == 2
    assert "cannot be created" in capsys.readouterr().err
