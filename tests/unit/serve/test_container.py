"""Containers are told from raw samples by their first bytes."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile

from pianissimo.serve.audio_in.container import SIGNATURE_BYTES, is_container

FORMATS = [
    *[("wav", "pcm_s16le"), ("mp3", "mp3"), ("mp4", "aac"), ("mov", "aac"), ("adts", "aac")],
    *[("aiff", "pcm_s16be"), ("au", "pcm_s16be"), ("caf", "pcm_s16le"), ("mpegts", "aac")],
    *[("flv", "aac"), ("wv", "wavpack"), ("ogg", "libopus"), ("webm", "libopus")],
    *[("matroska", "aac"), ("flac", "flac"), ("w64", "pcm_s16le"), ("mp2", "mp2")],
    *[("rm", "ac3"), ("tta", "tta"), ("avi", "mp3")],
]


def encoded(container: str, codec: str, seconds: float = 1.0) -> bytes:
    """A noisy tone in a container, as its encoder writes it."""
    file, rate = io.BytesIO(), 44_100
    noise = np.random.default_rng(1).normal(0, 0.1, round(rate * seconds)).astype(np.float32)
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000 if codec == "libopus" else rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(noise[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        resampler = av.AudioResampler(
            stream.format.name,
            stream.layout.name,
            stream.rate,
            stream.codec_context.frame_size or 0,
        )
        for each in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(each))
        output.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("container", "codec"), FORMATS)
def test_containers_are_recognized(container: str, codec: str) -> None:
    assert is_container(encoded(container, codec)[:SIGNATURE_BYTES])


@pytest.mark.parametrize("endian", ["BIG", "LITTLE"])
def test_wav_of_both_byte_orders_is_recognized(endian: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(800, np.float32), 8000, "PCM_16", endian, "WAV")
    assert is_container(file.getvalue()[:SIGNATURE_BYTES])


@pytest.mark.parametrize(
    "start",
    [b"#!AMR\n", b"#!AMR-WB\n", b"Creative Voice File", bytes.fromhex("3026b2758e66cf11")],
    ids=["amr", "amr-wb", "voc", "asf"],
)
def test_signatures_are_recognized(start: bytes) -> None:
    assert is_container(start + bytes(100))


def test_an_mp3_that_begins_within_a_frame_is_recognized() -> None:
    data = encoded("mp3", "mp3")
    start = data.index(b"\xff\xfb", 1000) + 100
    assert is_container(data[start : start + SIGNATURE_BYTES])


def test_raw_samples_are_no_container() -> None:
    random = np.random.default_rng(2)
    for kind in ("speech", "noise", "silence", "clipped", "bytes"):
        for _ in range(100):
            noise = random.normal(0, 0.1, SIGNATURE_BYTES // 2)
            samples = {
                "speech": noise.cumsum() / 50,
                "noise": noise,
                "silence": np.zeros_like(noise),
                "clipped": np.sign(noise),
                "bytes": random.uniform(-1, 1, len(noise)),
            }[kind]
            data = (samples.clip(-1, 1) * 32767).astype("<i2").tobytes()
            assert not is_container(data), kind


@pytest.mark.parametrize("data", [b"", b"\xff", b"RIF", b"\x47" * 10, b"\xff\xfb\x90"])
def test_too_few_bytes_are_no_container(data: bytes) -> None:
    assert not is_container(data)
