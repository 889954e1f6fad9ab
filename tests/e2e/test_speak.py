"""`pianissimo speak`: sources of text, audio files, speakers and errors."""

import io
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import pianissimo
from pianissimo.audio.io import load_audio
from pianissimo.cli import main
from pianissimo.evaluate.wer import word_errors
from pianissimo.text.normalize import normalize_for_scoring
from pianissimo.zoo import voices

pytest.importorskip("hibari", reason="needs the extra tts")
TEXT = "Seven streams at once. And a second sentence."
RATE = 24_000


@pytest.fixture(scope="module")
def voice() -> pianissimo.Synthesizer:
    return pianissimo.load_voice()


@pytest.fixture(autouse=True)
def one_voice(voice: pianissimo.Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the default voice once for the commands that run in this process."""
    plain = voices.load_voice
    monkeypatch.setattr(
        voices, "load_voice", lambda name=None, **options: voice if name is None else plain(name)
    )


def spoken(path: Path) -> np.ndarray:
    return load_audio(path, sample_rate=RATE)


@pytest.mark.parametrize("format", ["wav", "mp3", "opus", "flac", "aac"])
def test_a_text_becomes_a_file(
    tmp_path: Path, format: str, voice: pianissimo.Synthesizer, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"said.{format}"
    assert main(["speak", TEXT, "-o", str(path), "--seed", "1"]) == 0
    expected = voice.speak(TEXT, seed=1)
    assert len(spoken(path)) == pytest.approx(len(expected), abs=0.1 * RATE)
    if format in ("wav", "flac"):
        assert np.abs(spoken(path) - expected).max() < 1e-4
    out, err = capsys.readouterr()
    assert out == ""
    assert str(path) in err and "voice heart" in err


def test_a_file_and_standard_input_are_spoken(
    tmp_path: Path, voice: pianissimo.Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\ufeff" + TEXT, encoding="utf-8")
    expected = voice.speak(TEXT, seed=2)
    one, two = tmp_path / "one.wav", tmp_path / "two.ogg"
    assert main(["speak", "--file", str(text), "-o", str(one), "--seed", "2", "-q"]) == 0
    assert np.abs(spoken(one) - expected).max() < 1e-4
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert main(["speak", "-", "-o", str(two), "--seed", "2", "-q"]) == 0
    assert two.read_bytes()[:4] == b"OggS"
    assert len(spoken(two)) == pytest.approx(len(expected), abs=0.1 * RATE)


def test_audio_goes_through_a_pipe() -> None:
    command = [sys.executable, "-m", "pianissimo", "speak", "-", "-o", "-", "--seed", "1"]
    done = subprocess.run(command, input=TEXT.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout[:4] == b"RIFF"
    assert len(load_audio(done.stdout, sample_rate=RATE)) > 2 * RATE


def test_speed_shortens_the_file(tmp_path: Path) -> None:
    plain, fast = tmp_path / "plain.wav", tmp_path / "fast.wav"
    assert main(["speak", TEXT, "-o", str(plain), "-q"]) == 0
    assert main(["speak", TEXT, "-o", str(fast), "-q", "--speed", "2"]) == 0
    assert len(spoken(fast)) < 0.6 * len(spoken(plain))


class FakeSpeakers:
    """The part of sounddevice that playing needs; `failure` breaks the first write."""

    class PortAudioError(Exception):
        pass

    def __init__(self, failure: Exception | None = None) -> None:
        self.played: list[np.ndarray] = []
        self.options: dict[str, object] = {}
        self.failure = failure

    def OutputStream(self, **options: object) -> "FakeSpeakers":
        self.options = options
        return self

    def __enter__(self) -> "FakeSpeakers":
        return self

    def __exit__(self, *error: object) -> None: ...

    def write(self, block: np.ndarray) -> None:
        if self.failure is not None:
            raise self.failure
        time.sleep(0.01)
        self.played.append(block)


def test_without_a_file_the_audio_is_played(
    voice: pianissimo.Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    speakers = FakeSpeakers()
    monkeypatch.setitem(sys.modules, "sounddevice", speakers)  # type: ignore[arg-type]
    assert main(["speak", TEXT, "--seed", "3"]) == 0
    assert speakers.options == {"samplerate": RATE, "channels": 1, "dtype": "float32"}
    assert np.array_equal(np.concatenate(speakers.played), voice.speak(TEXT, seed=3))


@pytest.mark.parametrize(
    ("failure", "code"), [(FakeSpeakers.PortAudioError("unplugged"), 3), (KeyboardInterrupt(), 130)]
)
def test_speakers_that_fail_end_the_command(
    failure: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSpeakers(failure))  # type: ignore[arg-type]
    assert main(["speak", "Word. " * 30]) == code


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["speak", ""], 2, "it is empty"),
        (["speak", "🙂"], 2, "nothing to pronounce"),
        (["speak", "x" * 100_000], 2, "100000 characters"),
        (["speak", "<speak>Hi</speak>"], 2, "SSML"),
        (["speak", "你好"], 2, "'你好'"),
        (["speak", "Hi.", "--speed", "9", "-o", "OUT.wav"], 2, "speed 9"),
        (["speak", "Hi.", "--voice", "nobody", "-o", "OUT.wav"], 4, "choose heart"),
        (["speak", "Hi.", "-o", "OUT.doc"], 2, "unknown format 'doc'"),
        (["speak", "Hi.", "-o", "none/OUT.wav"], 3, "cannot be written"),
        (["speak", "Hi.", "--file", "text.txt"], 2, "not both"),
        (["speak", "--file", "missing.txt"], 2, "missing.txt cannot be read"),
        (["speak", "Hi.", "--format", "mp3"], 2, "--format needs --output"),
    ],
)
def test_bad_input_gets_one_line_and_no_file(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_not_utf8_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("Grüße".encode("latin-1"))
    assert main(["speak", "--file", str(path)]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_no_text_at_all_is_explained(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["speak"]) == 2
    assert "nothing to speak" in capsys.readouterr().err


def test_a_synthesis_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise pianissimo.PianissimoError("the voice broke")

    fake = SimpleNamespace(name="fake", sample_rate=RATE, sentences=lambda text: [text])
    fake.stream = broken
    monkeypatch.setattr(voices, "load_voice", lambda name, **options: fake)
    assert main(["speak", "Hi.", "-o", str(tmp_path / "said.wav")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_recognizer_understands_what_was_said(tmp_path: Path) -> None:
    text = "The train to the north leaves from the second platform. Please call me before Friday."
    path = tmp_path / "said.wav"
    assert main(["speak", text, "-o", str(path), "-q", "--seed", "0"]) == 0
    found = pianissimo.load("whisper-tiny-en", device="cpu").transcribe(path).text
    errors = word_errors(normalize_for_scoring(text), normalize_for_scoring(found))
    assert errors.rate <= 0.1, found


def test_the_voices_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speak", "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "heart\ten-US"
