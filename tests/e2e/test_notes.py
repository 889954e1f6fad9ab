"""What is worth telling about how a recording was read: one line of stderr for each file."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pianissimo.audio.notes import NOTE_TEXTS
from pianissimo.cli import main

CLIPS = Path(__file__).parents[2] / "examples" / "audio"

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    monkeypatch.setenv("PIANISSIMO_MODEL", str(tiny_model_folder))
    monkeypatch.setenv("PIANISSIMO_DEVICE", "cpu")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def opposite(tmp_path: Path) -> Path:
    samples, rate = soundfile.read(CLIPS / "number.flac")
    path = tmp_path / "opposite.wav"
    soundfile.write(path, np.stack([samples, -samples], axis=1), rate)
    return path


def test_each_file_with_notes_gets_one_line(cli: Cli, opposite: Path) -> None:
    joined = opposite.with_name("joined.wav")
    joined.write_bytes(opposite.read_bytes() * 2)
    code, _, err = cli("transcribe", opposite, CLIPS / "number.flac", joined)
    assert code == 0
    first, second = err.splitlines()
    assert first == f"pianissimo: {opposite}: {NOTE_TEXTS['opposite_phase']}"
    assert second.startswith(f"pianissimo: {joined}: ") and NOTE_TEXTS["joined_files"] in second


def test_a_file_that_is_streamed_gets_it_too(cli: Cli, opposite: Path) -> None:
    code, _, err = cli("transcribe", "--stream", opposite)
    assert code == 0 and NOTE_TEXTS["opposite_phase"] in err


def test_quiet_means_quiet(cli: Cli, opposite: Path) -> None:
    code, _, err = cli("transcribe", "--quiet", opposite)
    assert (code, err) == (0, "")
