"""Speakers on the command line: formats, channels, and what cannot be told apart."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pianissimo.audio.io import load_audio
from pianissimo.cli import main
from pianissimo.text.rttm import read_rttm
from pianissimo.transcript import Transcript

CLIPS = Path(__file__).parents[2] / "examples" / "audio"
RATE = 16_000
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """A command's exit code, stdout and stderr."""
    monkeypatch.setenv("PIANISSIMO_MODEL", str(tiny_model_folder))
    monkeypatch.setenv("PIANISSIMO_DEVICE", "cpu")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """talk.wav: two people in turn, twice; call.wav: one on each channel."""
    folder = tmp_path_factory.mktemp("speakers")
    one, other = load_audio(CLIPS / "sentence.flac"), load_audio(CLIPS / "number.flac")
    pause = np.zeros(RATE, np.float32)
    talk = np.concatenate([one, pause, other, pause, one, pause, other])
    soundfile.write(folder / "talk.wav", talk, RATE)
    call = np.zeros((len(one) + len(other), 2), np.float32)
    call[: len(one), 0], call[len(one) :, 1] = one, other
    soundfile.write(folder / "call.wav", call, RATE)
    return folder


def test_all_formats_of_two_voices(run: Run, folder: Path, tmp_path: Path) -> None:
    code, _, err = run(
        "transcribe", folder / "talk.wav", "--speakers", "2", "-f", "all", "-o", tmp_path
    )
    assert (code, err) == (0, "")
    turns = read_rttm(tmp_path / "talk.rttm")["talk"]
    assert {turn.speaker for turn in turns} == {"0", "1"}
    found = Transcript.from_json((tmp_path / "talk.json").read_text())
    assert found.speakers == ("0", "1")
    assert found.turns is not None
    assert found.turns[0].start == pytest.approx(turns[0].start, abs=1e-3)


def test_channels_are_speakers(run: Run, folder: Path) -> None:
    code, out, err = run("transcribe", folder / "call.wav", "--channels", "-f", "rttm")
    assert (code, err) == (0, "")
    first, *_, last = out.splitlines()
    assert (first.split()[1], first.split()[7], last.split()[7]) == ("call", "0", "1")


def test_a_stream_has_speakers_at_its_end(run: Run, folder: Path) -> None:
    options = ("--diarize", "--stream", "-q", "-f", "json")
    code, out, _ = run("transcribe", folder / "talk.wav", *options)
    assert code == 0
    assert {turn["speaker"] for turn in json.loads(out)["turns"]} == {"0", "1"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--channels",), 3, "one channel"),
        (("-f", "rttm"), 2, "add --diarize or --channels"),
        (("--speakers", "two"), 2, "N or MIN-MAX"),
        (("--speakers", "0"), 2, "from 1 to 20"),
        (("--channels", "--diarize"), 2, "remove --diarize"),
        (("--channels", "--stream"), 2, "remove --stream"),
        (("--known-speaker", "Ann"), 2, "NAME=FILE"),
        (("--known-speaker", "Ann=none.wav"), 3, "no such file"),
        (("--diarize-model", "none"), 3, "not a diarization model"),
        (("--diarize-model", "none", "--speakers", "2"), 2, "finds speakers and their number"),
        (("--diarize-latency", "320"), 2, "name one"),
    ],
)
def test_what_cannot_be_done_is_one_clear_error(
    run: Run, folder: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    found, out, err = run("transcribe", folder / "talk.wav", *options)
    assert (found, out) == (code, "")
    assert message in err


@pytest.mark.parametrize("live", [(), ("--stream", "--diarize-latency", "320")])
@pytest.mark.parametrize("name", ["nemotron", "sortformer.nemo"])
def test_a_diarization_network_takes_the_place_of_voices(
    run: Run, folder: Path, tmp_path: Path, name: str, live: tuple[str, ...]
) -> None:
    """Its weights are random here, so only the times of its turns are known."""
    model = CLIPS.parents[1] / "tests" / "parity" / "golden_diarizers" / name
    talk = folder / "call.wav"
    options = ("--diarize-model", model, "-f", "json,rttm", "-o", tmp_path, "--quiet", *live)
    code, _, err = run("transcribe", talk, *options)
    assert (code, err) == (0, "")
    found = Transcript.from_json((tmp_path / "call.json").read_text())
    assert found.turns is not None
    assert all(0 <= turn.start < turn.end <= found.duration for turn in found.turns)
    assert len(read_rttm(tmp_path / "call.rttm").get("call", ())) == len(found.turns)
    plain = json.loads(run("transcribe", talk, "-f", "json", *live[:1])[1])
    assert found.text == plain["text"]


def test_errors_over_rttm(run: Run, folder: Path, tmp_path: Path) -> None:
    run("transcribe", folder / "talk.wav", "--speakers", "2", "-f", "rttm", "-o", tmp_path)
    row = {"audio_filepath": str(folder / "talk.wav"), "rttm_filepath": "talk.rttm"}
    (tmp_path / "talks.jsonl").write_text(json.dumps(row) + "\n")
    manifest = tmp_path / "talks.jsonl"
    code, out, _ = run("evaluate", manifest, "--diarize", "--speakers", "2", "--json")
    figures = json.loads(out)
    assert code == 0
    assert figures["der"] == pytest.approx(0, abs=1e-3)
    assert figures["right_number_of_speakers"] == 1
    assert figures["cpwer"] is None
    code, _, err = run("evaluate", manifest, "--speakers", "2")
    assert code == 2
    assert "add --diarize" in err
