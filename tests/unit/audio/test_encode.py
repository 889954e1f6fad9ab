"""Encoded audio decodes to what was written, whole or while it is written."""

import io
from pathlib import Path

import numpy as np
import pytest

from pianissimo.audio.encode import FORMATS, AudioEncoder
from pianissimo.audio.io import describe, load_audio
from pianissimo.errors import AudioError, OptionError

RATE = 24_000
SECONDS = 1.5
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(SECONDS * RATE)) / RATE)).astype(np.float32)
FILES = ["wav", "mp3", "opus", "aac", "flac"]


def streamed(format: str, block: int = 2_400, rate: int | None = None) -> list[bytes]:
    """What is written after each block, and at the end."""
    pieces, new = list[bytes](), list[bytes]()
    encoder = AudioEncoder(new.append, format, RATE, rate)
    for start in range(0, len(TONE), block):
        encoder.write(TONE[start : start + block])
        pieces.append(b"".join(new))
        new.clear()
    encoder.close()
    return [*pieces, b"".join(new)]


def correlation(samples: np.ndarray, reference: np.ndarray) -> float:
    """The largest correlation over shifts of up to 0.1 s."""
    middle = reference[4_800:24_000]
    scores = []
    for shift in range(0, 2_400, 5):
        found = samples[4_800 + shift - 1_200 :][: len(middle)]
        if len(found) == len(middle):
            scores.append(np.dot(found, middle) / np.linalg.norm(found) / np.linalg.norm(middle))
    return float(max(scores))


@pytest.mark.parametrize("format", FILES)
def test_a_stream_decodes_to_the_tone(format: str) -> None:
    samples = load_audio(b"".join(streamed(format)), sample_rate=RATE)
    assert len(samples) / RATE == pytest.approx(SECONDS, abs=0.1)
    assert correlation(samples, TONE) > 0.99


@pytest.mark.parametrize("format", FILES)
def test_a_file_states_its_exact_duration(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"tone.{format}"
    with path.open("wb") as file:
        encoder = AudioEncoder(file, format, RATE)
        encoder.write(TONE)
        encoder.close()
    assert load_audio(path, sample_rate=RATE).size / RATE == pytest.approx(SECONDS, abs=0.1)
    if format in ("wav", "flac"):
        assert describe(path).duration_seconds == pytest.approx(SECONDS)
        assert np.abs(load_audio(path, sample_rate=RATE) - TONE).max() < 1e-4


@pytest.mark.parametrize("format", FORMATS)
def test_bytes_come_while_audio_is_written(format: str) -> None:
    pieces = streamed(format)
    half = sum(map(len, pieces[: len(pieces) // 2]))
    assert half > 0.2 * sum(map(len, pieces))


@pytest.mark.parametrize("format", FORMATS)
def test_any_blocks_give_the_same_bytes(format: str) -> None:
    whole = b"".join(streamed(format, len(TONE)))
    assert b"".join(streamed(format, 777)) == whole


def test_raw_samples_are_16_bits_without_a_header() -> None:
    data = np.frombuffer(b"".join(streamed("pcm")), "<i2")
    assert np.abs(data / 32_767 - TONE).max() < 1e-4
    assert len(b"".join(streamed("mulaw", rate=8_000))) == round(8_000 * SECONDS)


def test_too_loud_samples_are_clipped() -> None:
    pieces = list[bytes]()
    encoder = AudioEncoder(pieces.append, "pcm", RATE)
    encoder.write(np.array([2.0, -2.0], np.float32))
    encoder.close()
    assert np.frombuffer(b"".join(pieces), "<i2").tolist() == [32_767, -32_767]


def test_impossible_formats_and_rates_are_refused() -> None:
    with pytest.raises(OptionError, match=r"'ogg'; choose wav, mp3, opus"):
        AudioEncoder(io.BytesIO(), "ogg", RATE)
    with pytest.raises(OptionError, match="opus has no rate of 44100 Hz"):
        AudioEncoder(io.BytesIO(), "opus", RATE, 44_100)
    assert AudioEncoder(io.BytesIO(), "opus", 22_050).sample_rate == 24_000


def test_a_full_disk_is_an_error_of_the_package() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with full.open("wb", buffering=0) as file, pytest.raises(AudioError, match="cannot be written"):
        encoder = AudioEncoder(file, "wav", RATE)
        for _ in range(20):
            encoder.write(TONE)
        encoder.close()
