"""`--gain` of the commands: what it is set to reaches the recognizer."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import soundfile

import pianissimo
import pianissimo.zoo.load
from pianissimo.audio.io import load_audio
from pianissimo.cli import main

CLIP = Path(__file__).parents[2] / "examples" / "audio" / "number.flac"
RATE = 16_000
SMALL = ("--model", "embedded-commands", "--device", "cpu")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PIANISSIMO_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip about 45 dB softer than it was, in 16 bits."""
    path = tmp_path_factory.mktemp("quiet") / "clip.wav"
    soundfile.write(path, load_audio(CLIP) * 0.006, RATE, subtype="PCM_16")
    return path


def confidences(transcript: "pianissimo.Transcript") -> list[float | None]:
    return [word.confidence for word in transcript.words]


def test_transcribe_hears_with_the_gain_that_was_asked_for(
    quiet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {
        gain: pianissimo.load("embedded-commands", device="cpu", gain=gain).transcribe(quiet)
        for gain in ("off", "on")
    }
    assert confidences(expected["off"]) != confidences(expected["on"])
    for gain, transcript in expected.items():
        assert main(["transcribe", *SMALL, "--json", "--gain", gain, str(quiet)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert heard(found) == confidences(transcript)
    monkeypatch.setenv("PIANISSIMO_GAIN", "on")
    assert main(["transcribe", *SMALL, "--json", str(quiet)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert heard(found) == confidences(expected["on"])


def heard(record: dict) -> list[float | None]:
    return [word["confidence"] for segment in record["segments"] for word in segment["words"]]


@pytest.mark.parametrize(
    "arguments", [["transcribe", "x.wav"], ["listen", "-"], ["evaluate", "x.jsonl"]]
)
def test_an_unknown_gain_is_refused_by_every_command(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--gain", "loud"]) == 2
    error = capsys.readouterr().err
    assert "loud" in error
    assert "auto" in error


def test_evaluate_and_listen_hand_it_to_the_model(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = tmp_path / "manifest.jsonl"
    row = {"audio_filepath": str(quiet), "text": "one", "duration": 1.0}
    manifest.write_text(json.dumps(row) + "\n", "utf-8")
    loaded = []
    load = pianissimo.zoo.load.load

    def watched(*arguments: Any, **options: Any) -> Any:
        recognizer = load(*arguments, **options)
        loaded.append(recognizer.front_end.mode)
        return recognizer

    monkeypatch.setattr("pianissimo.zoo.load.load", watched)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(640))))
    options = ["--latency", "1120", *SMALL, "-q"]
    for gain in ("off", "on"):
        assert main(["evaluate", str(manifest), "--gain", gain, *options]) == 0
        assert main(["listen", "-", "--gain", gain, *options]) == 0
    assert loaded == ["off", "off", "on", "on"]
