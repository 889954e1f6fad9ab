"""Make the three example clips with flite and festival, and the table of their texts.

apt-get install flite festival festvox-kallpc16k festvox-us-slt-hts
python examples/audio/make_clips.py
"""

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from pianissimo.audio.io import SAMPLE_RATE, load_audio

HERE = Path(__file__).parent
PEAK = 0.5
SILENCE_SECONDS = 0.25  # before and after the speech


@dataclass(frozen=True)
class Clip:
    """One clip: its text, the input of the synthesizer, and its level."""

    file: str
    text: str
    spoken: str
    speak: Callable[[str, Path], None]
    rms_dbfs: float | None = None


def flite(voice: str) -> Callable[[str, Path], None]:
    """Return a function that speaks a text with a flite voice into a WAV file."""

    def speak(text: str, path: Path) -> None:
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", path], check=True)

    return speak


def festival(voice: str) -> Callable[[str, Path], None]:
    """Return a function that speaks a text with a festival voice into a WAV file."""

    def speak(text: str, path: Path) -> None:
        command = ["text2wave", "-eval", f"({voice})", "-o", path]
        subprocess.run(command, input=text.encode(), check=True)

    return speak


CLIPS = (
    Clip(
        "number.flac",
        text="enter four five two nine",
        spoken="enter four five two nine",
        speak=flite("rms"),
    ),
    Clip(
        "sentence.flac",
        text="The boy was there with his mother and father.",
        spoken="The boy was there with his mother and father.",
        speak=festival("voice_cmu_us_slt_arctic_hts"),
    ),
    Clip(
        "quiet.flac",
        text="five one three",
        spoken="five one three",
        speak=festival("voice_kal_diphone"),
        rms_dbfs=-45.0,
    ),
)


def level(samples: npt.NDArray[np.float32], rms_dbfs: float | None) -> npt.NDArray[np.float32]:
    """Scale to a mean power in dB below full scale, or to the usual peak."""
    if rms_dbfs is None:
        return samples * (PEAK / np.abs(samples).max())
    rms = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    return samples * np.float32(10 ** (rms_dbfs / 20) / rms)


def main() -> None:
    silence = np.zeros(round(SILENCE_SECONDS * SAMPLE_RATE), dtype=np.float32)
    for clip in CLIPS:
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "speech.wav"
            clip.speak(clip.spoken, wav)
            speech = load_audio(wav)
        samples = level(np.concatenate([silence, speech, silence]), clip.rms_dbfs)
        soundfile.write(HERE / clip.file, samples, SAMPLE_RATE, subtype="PCM_16")
        print(f"{clip.file}: {len(samples) / SAMPLE_RATE:.2f} s")
    texts = {clip.file: clip.text for clip in CLIPS}
    (HERE / "clips.json").write_text(json.dumps(texts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
