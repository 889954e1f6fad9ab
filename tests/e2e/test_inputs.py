"""Which audio the commands read: pipes, directories, parts of recordings, manifests."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tones import sentences, write_clips

from pianissimo.cli import main
from pianissimo.transcript import Transcript

CLIPS = Path(__file__).parents[2] / "examples" / "audio"
RATE = 16_000

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def environment(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIANISSIMO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIANISSIMO_MODEL", str(tiny_model_folder))
    monkeypatch.setenv("PIANISSIMO_DEVICE", "cpu")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of speech: two different halves of two seconds."""
    path = tmp_path_factory.mktemp("recordings") / "long.flac"
    speech, _ = soundfile.read(CLIPS / "sentence.flac", dtype="float32")
    number, _ = soundfile.read(CLIPS / "number.flac", dtype="float32")
    halves = [np.resize(part, 2 * RATE) for part in (speech[RATE // 4 :], number[RATE // 4 :])]
    soundfile.write(path, np.concatenate(halves), RATE)
    return path


@pytest.fixture
def second_half(recording: Path, tmp_path: Path) -> Path:
    path = tmp_path / "second.flac"
    soundfile.write(path, soundfile.read(recording)[0][2 * RATE :], RATE)
    return path


# -- pipes -----------------------------------------------------------------------------------------


def piped(script: str, recording: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-c", script, sys.executable, str(recording)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "script",
    [
        '"$0" -m pianissimo transcribe <(cat "$1")',
        'cat "$1" | "$0" -m pianissimo transcribe /dev/stdin',
        '"$0" -m pianissimo transcribe /dev/stdin < "$1"',
    ],
)
def test_pipes_are_read_once(script: str, cli: Cli, recording: Path) -> None:
    code, text, _ = cli("transcribe", recording)
    assert code == 0 and text.strip()
    found = piped(script, recording)
    assert (found.returncode, found.stdout, found.stderr) == (0, text, "")


def test_a_named_pipe_is_read_once(cli: Cli, recording: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.flac"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(recording.read_bytes(),), daemon=True)
    writer.start()
    assert cli("transcribe", pipe) == cli("transcribe", recording)
    writer.join(10)
    assert not writer.is_alive()
    code, _, err = cli("transcribe", pipe, "--jobs", "2")
    assert code == 2 and "pipes" in err


# -- directories -----------------------------------------------------------------------------------


def test_the_decoder_decides_what_is_audio_in_a_directory(
    cli: Cli, recording: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.weba", "b.mpga", "no suffix"):
        (folder / name).write_bytes(recording.read_bytes())
    (folder / "notes.txt").write_text("These are words and no samples.\n" * 99)
    (folder / "data.bin").write_bytes(bytes(range(256)) * 40)
    (folder / ".hidden").write_bytes(recording.read_bytes())
    os.mkfifo(folder / "pipe.wav")
    code, out, err = cli("transcribe", "--json", folder)
    assert code == 0
    names = {Path(json.loads(line)["file"]).name for line in out.splitlines()}
    assert names == {"a.weba", "b.mpga", "no suffix"}
    assert err.startswith("pianissimo: skipped 3 files without audio: ")
    assert all(name in err for name in ("notes.txt", "data.bin", "pipe.wav"))
    assert ".hidden" not in err
    assert cli("transcribe", "--json", "--quiet", folder)[2] == ""


# -- parts of recordings ---------------------------------------------------------------------------


def transcript(out: str) -> Transcript:
    return Transcript.from_json(out)


@pytest.mark.parametrize("options", [[], ["--stream", "--latency", "1120"]])
def test_start_and_duration_select_a_part_with_times_of_the_recording(
    cli: Cli, recording: Path, second_half: Path, tmp_path: Path, options: list[str]
) -> None:
    part = ["--start", "0:02", "--duration", "1.5"]
    output = ["--quiet", "-f", "json", "-o", tmp_path]
    assert cli("transcribe", recording, *part, *options, *output)[0] == 0
    found = transcript((tmp_path / "long.json").read_text())
    assert cli("transcribe", second_half, "--duration", "1.5", *options, *output)[0] == 0
    alone = transcript((tmp_path / "second.json").read_text())
    assert found.text and found.text == alone.text
    assert found.duration == pytest.approx(1.5)
    assert [w.start for w in found.words] == pytest.approx([w.start + 2 for w in alone.words])
    assert found.segments[0].end == pytest.approx(alone.segments[0].end + 2)


def test_a_part_is_the_same_in_worker_processes(
    cli: Cli, recording: Path, second_half: Path
) -> None:
    given = ["transcribe", "--json", "--start", "1", recording, second_half]
    found = []
    for jobs in ("1", "2"):
        records = map(json.loads, cli(*given, "--jobs", jobs)[1].splitlines())
        times = {r["file"]: (r["text"], [s["start"] for s in r["segments"]]) for r in records}
        found.append(times)
    assert found[0] == found[1] and len(found[0]) == 2
    assert all(text and start[0] >= 1.0 for text, start in found[0].values())


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--start", "soon"], 2, "[HH:]MM:SS"),
        (["--duration", "0"], 2, "above 0"),
        (["--duration", "-1"], 2, "[HH:]MM:SS"),
        (["--start", "1:00:00"], 3, "ends at 4.00 s, before the requested start at 3600 s"),
    ],
)
def test_parts_that_do_not_exist_are_refused(
    cli: Cli, recording: Path, options: list[str], code: int, says: str
) -> None:
    found, out, err = cli("transcribe", recording, *options)
    assert (found, out) == (code, "")
    assert says in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("language", ["en", "en-US", "EN_gb", "auto"])
def test_the_language_of_a_model_with_one_language_is_accepted(
    cli: Cli, recording: Path, language: str
) -> None:
    assert cli("transcribe", recording, "--language", language) == cli("transcribe", recording)


def test_a_language_that_the_model_does_not_speak_is_refused(cli: Cli, recording: Path) -> None:
    code, out, err = cli("transcribe", recording, "--language", "de")
    assert (code, out) == (2, "")
    assert "does not support 'de'; it speaks only 'en'" in err


# -- manifests -------------------------------------------------------------------------------------


def score(cli: Cli, manifest: Path, *rows: dict, encoding: str = "utf-8") -> dict:
    manifest.write_text("\n".join(map(json.dumps, rows)), encoding=encoding)
    code, out, err = cli("evaluate", manifest, "--latency", "1120", "--json")
    assert (code, err) == (0, "")
    return json.loads(out)["passes"][0]["total"]


def test_evaluate_scores_the_part_that_a_line_selects(
    cli: Cli, recording: Path, second_half: Path, tmp_path: Path
) -> None:
    text = cli("transcribe", second_half, "--latency", "1120")[1].strip()
    row = {"audio_filepath": str(recording), "text": text, "offset": 2.0}
    manifest = tmp_path / "manifest.jsonl"
    part = score(cli, manifest, row, encoding="utf-8-sig")
    assert (part["wer"], part["audio_seconds"]) == (0.0, 2.0)
    assert score(cli, manifest, {**row, "offset": 0.0})["wer"] > 0.0
    first = score(cli, manifest, {**row, "offset": None, "duration": 1.25})
    assert first["audio_seconds"] == 1.25
    rounded = score(cli, manifest, {**row, "offset": 0, "duration": 3.98})
    assert rounded["audio_seconds"] == 4.0, "a rounded duration cuts nothing off"


@pytest.mark.parametrize("value", ["1.0", [1], True, -1.0])
def test_an_offset_of_the_wrong_type_is_named(
    cli: Cli, recording: Path, tmp_path: Path, value: object
) -> None:
    manifest = tmp_path / "manifest.jsonl"
    row = {"audio_filepath": str(recording), "text": "one", "duration": 1.0, "offset": value}
    manifest.write_text(json.dumps(row))
    for command in (
        ["evaluate", manifest],
        ["finetune", "--check-only", "--manifest", manifest, "--val", manifest],
    ):
        code, out, err = cli(*command)
        assert code == 3
        assert "'offset' must be" in out + err and "'<='" not in out + err


def test_fine_tuning_accepts_parts_nulls_and_a_bom(cli: Cli, tmp_path: Path) -> None:
    for name, seed in (("train", 1), ("val", 2)):
        manifest = write_clips(tmp_path, name, list(sentences(2, seed)), seed, offset=None)
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        rows[1] |= {"offset": 0.25, "duration": rows[1]["duration"] - 0.25}
        manifest.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    given = ["--manifest", tmp_path / "train.jsonl", "--val", tmp_path / "val.jsonl"]
    code, out, _ = cli("finetune", "--check-only", *given)
    assert code == 0, out
    assert out.count("2 usable lines") == 2
