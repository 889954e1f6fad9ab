"""`pianissimo listen` as a process, its sound through a pipe."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pianissimo.audio.io import load_audio
from pianissimo.cli import main

CLIP = Path(__file__).parents[2] / "examples" / "audio" / "number.flac"


def raw(rate: int = 16_000) -> bytes:
    samples = load_audio(CLIP)
    if rate == 48_000:
        samples = np.interp(np.arange(3 * len(samples)) / 3, np.arange(len(samples)), samples)
    return (samples * 32767).astype("<i2").tobytes()


MODEL = ("--model", "embedded-commands")


def listen(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "pianissimo", "listen", *MODEL, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture(scope="module")
def text() -> str:
    from pianissimo.zoo.load import load

    return load("embedded-commands").transcribe(CLIP, latency_ms=160).text


def test_words_come_before_the_sound_ends(text: str) -> None:
    process = listen("-", "--json")
    assert process.stdin is not None
    assert process.stdout is not None
    samples = raw()
    process.stdin.write(samples[:48_000])
    process.stdin.flush()
    first = json.loads(process.stdout.readline())
    assert first["type"] == "partial"
    assert text.startswith(first["text"]) != ""
    rest, errors = process.communicate(samples[48_000:], timeout=60)
    assert process.returncode == 0, errors
    events = [json.loads(line) for line in rest.decode().splitlines()]
    said = [event["text"] for event in events if event["type"] == "final"]
    assert " ".join(filter(None, said)) == text
    assert events[-1]["reason"] == "finish"


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_the_text_goes_to_stdout(text: str, rate: int) -> None:
    process = listen("-", "--sample-rate", str(rate), "--quiet")
    out, errors = process.communicate(raw(rate) + b"x", timeout=60)
    assert process.returncode == 0, errors
    assert out.decode().split() == text.split()
    assert errors == b""


def test_a_model_that_hears_recordings_whole_listens_too() -> None:
    model = Path(__file__).parents[1] / "parity" / "golden_families" / "wav2vec2"
    options = ("--model", str(model), "--partials", "embedded-commands", "--json")
    out, errors = listen("-", *options).communicate(raw() + bytes(64_000), timeout=120)
    events = [json.loads(line) for line in out.decode().splitlines()]
    assert errors == b""
    assert {event["file"] for event in events} == {"-"}
    kinds = [event["type"] for event in events]
    assert kinds.count("final") == 2 and kinds.index("partial") < kinds.index("final")
    assert events[kinds.index("final")]["words"] and events[-1]["reason"] == "finish"


def test_the_built_in_whisper_listens() -> None:
    sound = (load_audio(CLIP.with_name("sentence.flac")) * 32767).astype("<i2").tobytes()
    process = subprocess.run(
        [sys.executable, "-m", "pianissimo", "listen", "-", "-m", "whisper-tiny-en", "--quiet"],
        input=sound,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (process.returncode, process.stderr) == (0, b"")
    assert process.stdout == b"The boy was there with his mother and father.\n"


def test_nothing_in_nothing_out() -> None:
    process = listen("-", "--quiet")
    out, _ = process.communicate(b"", timeout=60)
    assert (process.returncode, out) == (0, b"")


def test_a_microphone_that_is_not_there_is_one_clear_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(["listen", "no such microphone"])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code != 0
    assert len(lines) == 1
    assert "listen --list" in lines[0] or "PortAudio" in lines[0] or "pianissimo[mic]" in lines[0]


def test_a_file_is_not_heard_as_samples() -> None:
    process = listen("-", "--quiet")
    out, errors = process.communicate(CLIP.read_bytes(), timeout=60)
    assert (process.returncode, out) == (3, b"")
    assert errors.startswith(b"pianissimo: standard input is an audio file")
    assert len(errors.splitlines()) == 1


def test_an_impossible_rate_and_no_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["listen", "-", "--sample-rate", "0"]) == 2
    assert "--sample-rate" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["listen", "-"]) == 3
    assert capsys.readouterr().err.startswith("pianissimo: standard input is closed")


def test_an_unknown_latency_is_a_usage_error() -> None:
    read, write = os.pipe()
    os.close(write)
    process = subprocess.run(
        [sys.executable, "-m", "pianissimo", "listen", "-", *MODEL, "--latency", "100"],
        stdin=read,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert "100 ms is not a mode" in process.stderr
