"""WAV files whose header does not tell all: every sample is heard."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pianissimo.audio.io import load_audio, stream_audio

RATE = 16_000
CASES = Path(__file__).parents[4] / "shared" / "cases"
RNG = np.random.default_rng(4)
FIRST, SECOND = (RNG.integers(-9000, 9000, n, np.int16) for n in (20_000, 7_001))


def wav(samples, rate=RATE, subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def chunk(name, data):
    return struct.pack("<4sI", name, len(data)) + data


def heard(data):
    return np.round(load_audio(data) * 32768).astype(np.int16)


def test_joined_files_are_all_heard():
    joined = wav(FIRST) + wav(SECOND) + wav(FIRST)
    expected = np.concatenate([FIRST, SECOND, FIRST])
    np.testing.assert_array_equal(heard(joined), expected)
    parts = stream_audio(joined, block_seconds=0.3)
    np.testing.assert_array_equal(np.concatenate(list(parts)), load_audio(joined))


def test_joined_files_may_have_other_rates_and_channels():
    joined = wav(FIRST) + wav(np.stack([SECOND, SECOND], axis=1), 8_000, "PCM_24")
    samples = load_audio(joined)
    assert len(samples) == len(FIRST) + 2 * len(SECOND)
    np.testing.assert_array_equal(samples[: len(FIRST)], load_audio(wav(FIRST)))


def test_several_data_chunks_are_all_heard():
    data = wav(FIRST)
    for between in (b"", chunk(b"LIST", b"INFOICMT\4\0\0\0abc\0")):
        both = data + between + chunk(b"data", SECOND.tobytes())
        np.testing.assert_array_equal(heard(both), np.concatenate([FIRST, SECOND]))


@pytest.mark.parametrize("stated", [2, 20_000, 39_000])
def test_a_size_that_is_too_small_loses_nothing(stated):
    data = bytearray(wav(FIRST))
    data[40:44] = stated.to_bytes(4, "little")
    np.testing.assert_array_equal(heard(bytes(data)), FIRST)


@pytest.mark.parametrize("stated", [0xFFFFFFFF, 80_000])
def test_a_size_that_is_too_large_is_the_rest(stated):
    data = bytearray(wav(FIRST))
    data[40:44] = stated.to_bytes(4, "little")
    np.testing.assert_array_equal(heard(bytes(data)), FIRST)


@pytest.mark.parametrize(
    "tail", [b"", chunk(b"LIST", b"INFO"), chunk(b"id3 ", b"x" * 11 + b"\0"), b"TAG" + b"a" * 125]
)
def test_what_follows_the_samples_is_no_sound(tail):
    np.testing.assert_array_equal(heard(wav(FIRST) + tail), FIRST)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("wav-after-wav.wav", 2.6), ("two-data-chunks.wav", 3.2), ("size-too-small.wav", 3.2)],
)
def test_the_recorded_cases_are_heard_whole(name, seconds):
    path = CASES / name
    if not path.is_file():
        pytest.skip("the recorded cases are not here")
    assert len(load_audio(path)) == pytest.approx(path.stat().st_size / 2, abs=200)
    assert len(load_audio(path)) / RATE > seconds
