"""Deepgram with containers: by POST whatever `encoding` says, and live as browsers send them."""

import io
import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import httpx
import numpy as np
import pytest
from serving import RATE, Server, speech, wav
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pianissimo.evaluate.wer import word_errors

SENTENCE = "enter four five two nine"
SECONDS = 2.5
RAW = "encoding=linear16&sample_rate=16000"
OPUS_MS = 20


def encoded(container: str, codec: str, samples: np.ndarray, rate: int = 48_000) -> bytes:
    """Speech at 16 kHz, samples (n,) or (2, n), in a container."""
    samples = np.atleast_2d(samples)
    layout = "mono" if len(samples) == 1 else "stereo"
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.format.name, layout, rate, size)
        for each in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(each))
        output.mux(stream.encode(None))
    return file.getvalue()


def opus_packets(samples: np.ndarray) -> Iterator[bytes]:
    context = av.AudioCodecContext.create("libopus", "w")
    context.sample_rate, context.layout, context.format = 48_000, "mono", "s16"
    context.options = {"frame_duration": str(OPUS_MS)}
    context.open()
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
    resampler = av.AudioResampler("s16", "mono", 48_000, 48 * OPUS_MS)
    for each in resampler.resample(frame):
        for packet in context.encode(each):
            yield bytes(packet)


def text_of(results: list[dict[str, Any]]) -> str:
    finals = [each for each in results if each["type"] == "Results" and each["is_final"]]
    return " ".join(f["channel"]["alternatives"][0]["transcript"] for f in finals).strip()


def live(server: Server, query: str, messages: list[bytes]) -> list[dict[str, Any]]:
    with connect(f"{server.ws}/v1/listen?{query}") as socket:
        for message in messages:
            socket.send(message)
        socket.send('{"type": "CloseStream"}')
        results = []
        while not results or results[-1]["type"] != "Metadata":
            results.append(json.loads(socket.recv(timeout=60)))
    return results


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        *[("mp3", "mp3", 44_100), ("mp4", "aac", 44_100), ("adts", "aac", 44_100)],
        *[("aiff", "pcm_s16be", RATE), ("au", "pcm_s16be", RATE), ("caf", "pcm_s16le", RATE)],
        *[("mpegts", "aac", 44_100), ("flv", "aac", 44_100), ("wv", "wavpack", RATE)],
        *[("webm", "libopus", 48_000), ("ogg", "libopus", 48_000), ("flac", "flac", RATE)],
    ],
)
def test_post_recognizes_a_container_whatever_encoding_says(
    words_server: Server, container: str, codec: str, rate: int
) -> None:
    body = encoded(container, codec, speech(SECONDS), rate)
    answer = httpx.post(f"{words_server.http}/v1/listen?{RAW}", content=body, timeout=60)
    assert answer.status_code == 200
    [channel] = answer.json()["results"]["channels"]
    assert channel["alternatives"][0]["transcript"] == SENTENCE


def test_post_of_a_big_endian_wav_and_amr(words_server: Server) -> None:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, speech(SECONDS), RATE, "PCM_16", "BIG", "WAV")
    answer = httpx.post(f"{words_server.http}/v1/listen?{RAW}", content=file.getvalue(), timeout=60)
    [channel] = answer.json()["results"]["channels"]
    assert channel["alternatives"][0]["transcript"] == SENTENCE
    broken = httpx.post(
        f"{words_server.http}/v1/listen?{RAW}", content=b"#!AMR\n" + bytes(20), timeout=60
    )
    assert broken.status_code in (200, 400)


def test_post_of_raw_samples_is_read_as_raw(words_server: Server) -> None:
    body = (speech(SECONDS) * 32767).astype("<i2").tobytes()
    answer = httpx.post(f"{words_server.http}/v1/listen?{RAW}", content=body, timeout=60)
    [channel] = answer.json()["results"]["channels"]
    assert channel["alternatives"][0]["transcript"] == SENTENCE
    assert answer.json()["metadata"]["duration"] == pytest.approx(SECONDS, abs=0.01)


@pytest.mark.parametrize(
    ("container", "codec", "query"),
    [
        *[("webm", "libopus", ""), ("webm", "libopus", RAW), ("ogg", "libopus", "")],
        *[("ogg", "libopus", "encoding=opus"), ("mp3", "mp3", ""), ("mp3", "mp3", RAW)],
    ],
)
def test_live_containers_are_recognized(
    words_server: Server, container: str, codec: str, query: str
) -> None:
    rate = 44_100 if codec == "mp3" else 48_000
    body = encoded(container, codec, speech(SECONDS), rate)
    assert text_of(live(words_server, query, cut(body, 1000))) == SENTENCE


def test_a_live_container_in_opposite_phase_has_its_words(words_server: Server) -> None:
    samples = speech(SECONDS)
    body = encoded("ogg", "libopus", np.stack([samples, -samples]))
    assert text_of(live(words_server, "", cut(body, 1000))) == SENTENCE


def test_a_live_container_gives_words_before_its_end(words_server: Server) -> None:
    """The decoder must not wait for the end of the stream, and Finalize covers what was sent."""
    body = encoded("webm", "libopus", speech(SECONDS))
    with connect(f"{words_server.ws}/v1/listen") as socket:
        for piece in cut(body, 1000):
            socket.send(piece)
        socket.send('{"type": "Finalize"}')
        results = []
        while not results or not results[-1].get("from_finalize"):
            results.append(json.loads(socket.recv(timeout=60)))
    assert word_errors(SENTENCE, text_of(results)).errors <= 1


def test_opus_packets_are_decoded(words_server: Server) -> None:
    packets = [*opus_packets(speech(SECONDS))]
    assert word_errors(SENTENCE, text_of(live(words_server, "encoding=opus", packets))).errors <= 1


def test_a_wav_header_before_raw_samples_is_recognized(words_server: Server) -> None:
    assert text_of(live(words_server, RAW, cut(wav(speech(SECONDS)), 3200))) == SENTENCE


def test_unknown_audio_without_an_encoding_is_refused(words_server: Server) -> None:
    with connect(f"{words_server.ws}/v1/listen") as socket:
        socket.send(bytes(3200))
        error = json.loads(socket.recv(timeout=60))
        assert error["type"] == "Error" and error["variant"] == "ENCODING_REQUIRED"
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=60)
        assert socket.close_code == 1008
    words_server.wait_until_empty()


def test_a_damaged_live_container_is_refused(words_server: Server) -> None:
    with connect(f"{words_server.ws}/v1/listen") as socket:
        socket.send(b"\x1aE\xdf\xa3" + bytes(range(256)) * 64)
        socket.send('{"type": "CloseStream"}')
        with pytest.raises(ConnectionClosed):
            while True:
                socket.recv(timeout=60)
        assert socket.close_code == 1008
    words_server.wait_until_empty()
    assert words_server.service.live_decoders.in_use == 0
