"""Recordings as faulty microphones and cables make them, through the embedded model."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

import pianissimo
from pianissimo.audio.io import load_audio
from pianissimo.errors import AudioValueError
from pianissimo.recognizers.fastconformer import NativeRecognizer

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "../shared/cases"
NUMBER = ROOT / "examples" / "audio" / "number.flac"
RATE = 16_000

Samples = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def embedded() -> NativeRecognizer:
    recognizer = pianissimo.load("embedded-commands")
    assert isinstance(recognizer, NativeRecognizer)
    return recognizer


def soft(offset: float) -> Samples:
    """The example at a peak of -50 dBFS, in steps of 16 bits, on an offset."""
    samples = load_audio(NUMBER)
    samples = samples * np.float32(10 ** (-50 / 20) / np.abs(samples).max()) + np.float32(offset)
    return (np.round(samples * 32768) / 32768).astype(np.float32)


def live(recognizer: NativeRecognizer, samples: Samples) -> str:
    stream = recognizer.stream(latency_ms=160)
    events = [e for i in range(0, len(samples), 1600) for e in stream.push(samples[i : i + 1600])]
    events += stream.finish()
    return " ".join(event.text for event in events if event.type == "final")


@pytest.mark.parametrize("gain", ["auto", "off"])
def test_an_offset_changes_no_word_of_soft_speech(embedded: NativeRecognizer, gain: str) -> None:
    recognizer = embedded.with_gain("off") if gain == "off" else embedded
    for offset in (0.05, -0.1):
        expected, heard = soft(0.0), soft(offset)
        text = recognizer.transcribe(expected, sample_rate=RATE).text
        assert text
        assert recognizer.transcribe(heard, sample_rate=RATE).text == text
        assert live(recognizer, heard) == live(recognizer, expected)


def test_stereo_in_opposite_phase_has_its_text(embedded: NativeRecognizer) -> None:
    samples = load_audio(NUMBER)
    mono = embedded.transcribe(samples, sample_rate=RATE)
    stereo = embedded.transcribe(np.stack([samples, -samples], axis=1), sample_rate=RATE)
    assert mono.text and stereo.text == mono.text
    assert (mono.reasons, stereo.reasons) == ((), ("opposite_phase",))


def test_loud_noise_on_one_channel_leaves_the_text_of_the_other(
    embedded: NativeRecognizer,
) -> None:
    samples = load_audio(NUMBER)
    noise = np.random.default_rng(7).normal(0, 0.3, len(samples)).astype(np.float32)
    mono = embedded.transcribe(samples, sample_rate=RATE)
    for channels in ([samples, noise], [noise, samples]):
        stereo = embedded.transcribe(np.stack(channels, axis=1), sample_rate=RATE)
        assert stereo.text == mono.text
        assert stereo.reasons == ("one_channel",)


@pytest.mark.parametrize("name", ["dc-5-percent-quiet.flac", "stereo-opposite-phase.flac"])
def test_the_recorded_cases(embedded: NativeRecognizer, name: str) -> None:
    if not (CASES / name).is_file():
        pytest.skip("the recorded cases are not here")
    assert embedded.transcribe(CASES / name).text == "enter seven one five four"
    # The first word, at -50 dBFS, is at the limit of the live model with and without an offset.
    assert live(embedded, load_audio(CASES / name)).endswith("seven one five four")


def test_a_float_file_of_integer_scale_gets_advice_for_files(
    embedded: NativeRecognizer, tmp_path: Path
) -> None:
    path = tmp_path / "integers.wav"
    soundfile.write(path, load_audio(NUMBER) * 32768, RATE, subtype="FLOAT")
    with pytest.raises(AudioValueError, match="export a file again as 16-bit PCM"):
        embedded.transcribe(path)
