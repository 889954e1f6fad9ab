"""`pianissimo finetune` as people use it: the documented commands, bad data, a kill."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tones import sentences, write_clips

from pianissimo.audio.features import FeatureConfig
from pianissimo.cli import main
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.models.checkpoints.model_folder import read_tokenizer, save_model
from pianissimo.models.fastconformer import EncoderConfig
from pianissimo.train.finetune.plan import FinetuneOptions
from pianissimo.train.finetune.run import find_learning_rate

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FAMILIES = Path(__file__).parents[1] / "parity" / "golden_families"
LIMIT_SECONDS = 300


@pytest.fixture(autouse=True)
def environment(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIANISSIMO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIANISSIMO_MODEL", str(tiny_model_folder))
    monkeypatch.setenv("PIANISSIMO_DEVICE", "cpu")
    monkeypatch.setenv("PIANISSIMO_WORKERS", "0")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def beginner(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A model with a CTC head, untrained: it learns tones in a few hundred quick steps."""
    tokenizer = read_tokenizer(tiny_model_folder)
    encoder = EncoderConfig(
        n_mels=16, dim=16, layers=2, heads=2, ff_dim=32, conv_kernel=5, subsampling_channels=4
    )
    features = FeatureConfig(n_mels=16)
    torch.manual_seed(1)
    model = AsrModel(AsrConfig(tokenizer.vocab_size, features, encoder, ctc=True))
    save_model(tmp_path / "beginner", model, tokenizer)
    return tmp_path / "beginner"


def documented(part: str) -> list[list[str]]:
    """The commands of the first example of a section of the page, without the program's name."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index(f"\n{part}\n") :]
    blocks = [block for block in FENCE.findall(section) if block.startswith("pianissimo ")]
    return [shlex.split(line)[1:] for line in blocks[0].replace("\\\n", "").splitlines()]


def rates(report: Path, when: str) -> list[float]:
    return list(json.loads(report.read_text())[when].values())


def test_the_page_on_fine_tuning_is_true(
    beginner: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its commands, on tones and a model of a few thousand weights: word errors fall.

    The second example goes on from the model of the first, to words at another pitch.
    """
    # Nothing of a beginner is worth being pulled back to.
    monkeypatch.setattr("pianissimo.train.finetune.plan.L2SP", 0.0)
    settings = {"MODEL": beginner, "STEPS": 240, "LR": 0.01, "BATCH_SECONDS": 20}
    for name, value in (settings | {"VALIDATE_EVERY": 120, "AUGMENT": 0}).items():
        monkeypatch.setenv(f"PIANISSIMO_{name}", str(value))
    write_clips(tmp_path, "train", list(sentences(40, 1)), 1)
    write_clips(tmp_path, "val", list(sentences(8, 2)), 2)
    (tmp_path / "train").rename(tmp_path / "clips")
    (tmp_path / "clips" / "0.wav").rename(tmp_path / "clips" / "001.wav")
    move_audio(tmp_path / "train.jsonl", '"train/0.wav', '"clips/001.wav')
    move_audio(tmp_path / "train.jsonl", '"train/', '"clips/')

    check, train, listen = documented("## Fine-tuning")
    assert main(check) == 0
    assert "40 usable lines" in capsys.readouterr().out
    assert main(train) == 0
    assert row_names(capsys.readouterr().out) == ["new before", "new after"]
    report = tmp_path / "my-model" / "finetune" / "report.json"
    for before, after in zip(rates(report, "before"), rates(report, "after"), strict=True):
        assert after < 0.5 < before
    assert main(listen) == 0
    capsys.readouterr()

    (tmp_path / "my-model").rename(tmp_path / "general-model")
    (tmp_path / "train.jsonl").rename(tmp_path / "general.jsonl")
    (tmp_path / "val").rename(tmp_path / "old")
    (tmp_path / "val.jsonl").rename(tmp_path / "general_val.jsonl")
    move_audio(tmp_path / "general_val.jsonl", '"val/', '"old/')
    write_clips(tmp_path, "train", list(sentences(24, 3)), 3, pitch=1.5)
    write_clips(tmp_path, "val", list(sentences(8, 4)), 4, pitch=1.5)
    settings = {"MODEL": tmp_path / "general-model", "STEPS": 240, "VALIDATE_EVERY": 40}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIANISSIMO_{name}", str(value))
    (adapt,) = documented("### Forgetting")
    assert main(adapt) == 0
    names = row_names(capsys.readouterr().out)
    assert names == ["new before", "new after", "general before", "general after"]
    for before, after in zip(rates(report, "before"), rates(report, "after"), strict=True):
        assert after < 0.7 * before
    assert max(rates(report, "old_after")) < 0.5


def move_audio(manifest: Path, old: str, new: str) -> None:
    manifest.write_text(manifest.read_text().replace(old, new))


def row_names(table: str) -> list[str]:
    return [" ".join(line.split()[:2]) for line in table.splitlines()[1:]]


def test_bad_data_is_reported_line_by_line_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_clips(tmp_path, "train", ["yes", "no", "end"])
    write_clips(tmp_path, "val", ["no yes"], 5)
    lines = manifest.read_text().splitlines()
    lines[1] = lines[1].replace('"no"', '"no 1 2 1"')
    lines.insert(1, "not json")
    manifest.write_text("\n".join(lines))
    given = ["finetune", "--manifest", "train.jsonl", "--val", "val.jsonl"]
    assert main([*given, "--check-only"]) == 3
    out = capsys.readouterr().out
    assert "line 2: " in out
    assert "line 3: " in out
    assert "'1' 2 times, '2' 1 times" in out
    assert main([*given, "--out", "new"]) == 3
    said = capsys.readouterr().err
    assert "line 2: " in said
    assert "2 lines cannot be used" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train",
        "train.jsonl",
        "val",
        "val.jsonl",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--out", "new", "--full", "--lora", "2"],
        ["--out", "new", "--freeze", "decoder"],
        ["--out", "new", "--lr", "0"],
        ["--out", "new", "--ewc", "1"],
        ["--out", "train.jsonl"],
        [],
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(wrong: list[str], tmp_path: Path) -> None:
    write_clips(tmp_path, "train", ["yes"])
    assert main(["finetune", "--manifest", "train.jsonl", "--val", "train.jsonl", *wrong]) == 2
    assert not (tmp_path / "new").exists()


def test_settings_that_moved_to_python_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["finetune", "--manifest", "train.jsonl", "--val", "val.jsonl", "--out", "new"]
    assert main([*given, "--find-lr"]) == 2
    assert "find_learning_rate(FinetuneOptions(...))" in capsys.readouterr().err
    monkeypatch.setenv("PIANISSIMO_BLEND", "0.8")
    assert main(given) == 2
    assert "PIANISSIMO_BLEND is no longer read" in capsys.readouterr().err


def test_a_rate_is_suggested(tiny_model_folder: Path, tmp_path: Path) -> None:
    train = write_clips(tmp_path, "train", list(sentences(4)))
    val = write_clips(tmp_path, "val", ["yes"], 5)
    options = FinetuneOptions(
        train,
        val,
        tmp_path / "new",
        model=str(tiny_model_folder),
        batch_seconds=4,
        augment=False,
        workers=0,
    )
    assert 0 < find_learning_rate(options).suggestion < 1
    assert (tmp_path / "new" / "finetune" / "find-lr.csv").is_file()


def test_a_folder_of_wav2vec2_is_fine_tuned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("accelerate")
    write_clips(tmp_path, "train", list(sentences(4, 1)), 1)
    write_clips(tmp_path, "val", ["yes no"], 2)
    given = ["finetune", "--manifest", "train.jsonl", "--val", "val.jsonl"]
    given += ["--model", str(FAMILIES / "wav2vec2")]
    assert main([*given, "--check-only"]) == 0
    assert main([*given, "--out", "new", "--lora", "2"]) == 2
    capsys.readouterr()
    options = ["--steps", "2", "--validate-every", "2", "--batch-seconds", "6"]
    assert main([*given, "--out", "new", *options]) == 0
    assert row_names(capsys.readouterr().out)[:2] == ["new before", "new after"]
    assert main(["transcribe", "--model", "new", "val/0.wav"]) == 0


def losses(out: Path) -> list[dict]:
    lines = (out / "finetune" / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row.pop("audio_seconds_per_second", None)
    return rows


def test_a_run_that_is_killed_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    """kill -9 between two checkpoints."""
    write_clips(tmp_path, "train", list(sentences(10, 1)), 1)
    write_clips(tmp_path, "val", ["yes no"], 2)
    command = ["finetune", "--manifest", "train.jsonl", "--val", "val.jsonl", "--lora", "2"]
    command += [
        "--steps",
        "60",
        "--validate-every",
        "5",
        "--batch-seconds",
        "6",
        "--patience",
        "99",
    ]
    assert main([*command, "--out", "whole"]) == 0
    process = start([*command, "--out", "parts"])
    wait_for_step(tmp_path / "parts" / "finetune" / "log.jsonl", 12, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "parts" / "config.json").exists()
    progress = tmp_path / "parts" / "finetune" / "checkpoint" / "progress.json"
    assert 10 <= json.loads(progress.read_text())["step"] < 60
    assert main([*command, "--out", "parts"]) == 0
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert len([row for row in expected if "loss" in row]) == 12
    assert found == expected
    first, second = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()


def start(arguments: list[str]) -> "subprocess.Popen[bytes]":
    """The real command, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pianissimo", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for_step(log: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, "it ended before it could be killed"
        rows = log.read_text().splitlines() if log.is_file() else []
        if any(f'"step": {n},' in row for row in rows[-2:] for n in range(step, step + 20)):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached in {LIMIT_SECONDS} s")


@pytest.mark.slow
def test_torchrun_starts_processes_that_train_together(beginner: Path, tmp_path: Path) -> None:
    write_clips(tmp_path, "train", list(sentences(16, 1)), 1)
    write_clips(tmp_path, "val", ["yes no"], 2)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "pianissimo", "finetune", "--manifest", "train.jsonl", "--val", "val.jsonl"]
    command += ["--model", str(beginner), "--steps", "6", "--validate-every", "3"]
    done = subprocess.run(
        [sys.executable, *command, "--batch-seconds", "4", "--out", "new"],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert row_names(done.stdout)[:2] == ["new before", "new after"]
    assert done.stderr.count("step 6 ") == 1  # one process speaks
    assert main(["transcribe", "--model", "new", "val/0.wav"]) == 0
