"""Offline models live on every socket: finals in pauses, one answer each."""

import asyncio
import base64
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import RATE, Server, pcm, serving, speech, wav
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import pianissimo
from pianissimo.engine.segmented import SegmentedEngine
from pianissimo.recognizers.base import BaseRecognizer
from pianissimo.serve.settings import Settings
from pianissimo.transcript import StreamEvent, Transcript, Word

WAV2VEC2 = Path(__file__).parents[2] / "parity" / "golden_families" / "wav2vec2"
SPOKEN = speech(4.0)
SOUND = np.concatenate([SPOKEN, np.zeros(2 * RATE, np.float32)])
"""Speech, and a pause long enough to end it."""


@pytest.fixture(scope="module")
def whole() -> Iterator[Server]:
    settings = Settings(wyoming_port=0, linger_seconds=0.1, resume_seconds=60)
    with serving(pianissimo.load(WAV2VEC2, device="cpu"), settings) as server:
        assert isinstance(server.service.engine, SegmentedEngine)
        yield server


@pytest.fixture(scope="module")
def written() -> str:
    """What the model says to the sound when nobody but the test pushes it."""
    recognizer = pianissimo.load(WAV2VEC2, device="cpu")
    with recognizer.stream() as stream:
        events = [*stream.push(SOUND), *stream.finish()]
    (text,) = [event.text for event in events if event.text]
    return text


def received(socket: ClientConnection) -> list[dict[str, Any]]:
    """All messages until the server closes."""
    messages = []
    try:
        while True:
            messages.append(json.loads(socket.recv(timeout=60)))
    except ConnectionClosed:
        return messages


def until(socket: ClientConnection, kind: str) -> list[dict[str, Any]]:
    messages = [json.loads(socket.recv(timeout=60))]
    while messages[-1]["type"] != kind:
        messages.append(json.loads(socket.recv(timeout=60)))
    return messages


def test_our_own_socket(whole: Server, written: str) -> None:
    with connect(f"{whole.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "start"}))
        ready = json.loads(socket.recv(timeout=60))
        assert ready["type"] == "ready" and ready["latency_ms"] is None
        socket.send(pcm(SOUND))
        for kind in ("finalize", "finalize", "finish"):
            socket.send(json.dumps({"type": kind}))
        events = until(socket, "end")
    finals = [event for event in events if event["type"] == "final"]
    assert [event["reason"] for event in finals] == ["endpoint", "finalize", "finalize", "finish"]
    assert [event["text"] for event in finals] == [written, "", "", ""]
    assert sum(event["type"] == "endpoint" for event in events) == 1
    whole.wait_until_empty()


def test_a_latency_is_refused(whole: Server) -> None:
    with connect(f"{whole.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "start", "latency_ms": 160}))
        error = json.loads(socket.recv(timeout=60))
        assert error["type"] == "error" and "no latency modes" in error["message"]
        assert received(socket) == [] and socket.close_code == 1008


def test_a_cut_stream_stays_in_memory_until_it_is_resumed(whole: Server, written: str) -> None:
    with connect(f"{whole.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "start"}))
        token = json.loads(socket.recv(timeout=60))["stream"]
        socket.send(pcm(SOUND[: 2 * RATE]))
        socket.socket.close()
    time.sleep(1.0)  # it lingers for less: it would be parked by now
    assert whole.service.engine.stats.streams == 1
    with connect(f"{whole.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "resume", "stream": token, "events": 0}))
        frames = json.loads(socket.recv(timeout=60))["frames"]
        socket.send(pcm(SOUND[2 * RATE * frames :]))
        socket.send(json.dumps({"type": "finish"}))
        finals = [event for event in until(socket, "end") if event["type"] == "final"]
        socket.send(json.dumps({"type": "ack", "events": 9}))
    assert [event["text"] for event in finals] == [written, ""]
    whole.wait_until_empty()


def test_realtime_answers_each_commit_once(whole: Server, written: str) -> None:
    with connect(f"{whole.ws}/v1/realtime?intent=transcription") as socket:
        input = {
            "format": {"type": "audio/pcm", "rate": RATE},
            "turn_detection": None,
            "transcription": {"model": "whisper-1", "delay": "low"},
        }
        session = {"audio": {"input": input}}
        socket.send(json.dumps({"type": "session.update", "session": session}))
        until(socket, "session.updated")
        events = []
        for samples in (SPOKEN, SPOKEN, SPOKEN[:0]):
            audio = base64.b64encode(pcm(samples)).decode()
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        while sum(event["type"].endswith(".completed") for event in events) < 3:
            events.append(json.loads(socket.recv(timeout=60)))
        socket.send(json.dumps({"type": "session.update", "session": session}))
        events += until(socket, "session.updated")
    kinds = [event["type"].rpartition(".")[2] for event in events]
    assert kinds.count("committed") == kinds.count("completed") == 3 and "error" not in kinds
    texts = [e["transcript"] for e in events if e["type"].endswith("completed")]
    assert texts[0] and texts[1] and texts[2] == ""
    whole.wait_until_empty()


def test_realtime_ends_turns_in_pauses(whole: Server, written: str) -> None:
    with connect(f"{whole.ws}/v1/realtime?intent=transcription") as socket:
        input = {"format": {"type": "audio/pcm", "rate": RATE}}
        session = {"audio": {"input": input}}
        socket.send(json.dumps({"type": "session.update", "session": session}))
        audio = base64.b64encode(pcm(SOUND)).decode()
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        events = until(socket, "conversation.item.input_audio_transcription.completed")
    assert events[-1]["transcript"].replace(" ", "")
    assert "input_audio_buffer.speech_stopped" in [event["type"] for event in events]


def test_deepgram_answers_each_finalize_once(whole: Server, written: str) -> None:
    with connect(f"{whole.ws}/v1/listen?encoding=linear16&sample_rate={RATE}") as socket:
        socket.send(pcm(SOUND))
        for kind in ("Finalize", "Finalize", "CloseStream"):
            socket.send(json.dumps({"type": kind}))
        messages = received(socket)
        assert socket.close_code == 1000
    results = [m for m in messages if m["type"] == "Results"]
    assert [m["from_finalize"] for m in results] == [False, True, True, False]
    assert [m["channel"]["alternatives"][0]["transcript"] for m in results] == [written, "", "", ""]
    assert results[0]["speech_final"]


def test_wyoming_answers_each_stop_once(whole: Server, written: str) -> None:
    pytest.importorskip("wyoming", reason="no wyoming client: the extra clients has it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # audioop, which the client uses, is deprecated
        from wyoming.asr import Transcript
        from wyoming.audio import AudioChunk, AudioStart, AudioStop
        from wyoming.client import AsyncTcpClient

    async def turn(client: AsyncTcpClient, samples: np.ndarray) -> list[str]:
        format = {"rate": RATE, "width": 2, "channels": 1}
        await client.write_event(AudioStart(**format).event())
        await client.write_event(AudioChunk(**format, audio=pcm(samples)).event())
        await client.write_event(AudioStop().event())
        found = []
        while (event := await client.read_event()).type != "transcript-stop":
            found += [Transcript.from_event(event).text] if event.type == "transcript" else []
        return found

    async def talk() -> list[list[str]]:
        async with AsyncTcpClient("127.0.0.1", whole.wyoming_port, 60, 60) as client:
            return [await turn(client, part) for part in (SOUND, SOUND[:0])]

    spoken, nothing = asyncio.run(talk())
    assert len(spoken) == 1 and spoken[0] and nothing == [""]


def test_recordings_are_transcribed_whole_also_as_events(whole: Server) -> None:
    files = {"file": ("a.wav", wav(SOUND))}
    url = whole.http + "/v1/audio/transcriptions"
    text = httpx.post(url, files=files, timeout=60).json()["text"]
    answer = httpx.post(url, files=files, data={"stream": "true"}, timeout=60).text
    done = json.loads(answer.split("data: ")[-2])
    assert done["type"] == "transcript.text.done" and done["text"] == text != ""


class Drafting(BaseRecognizer):
    """A model that streams on its own terms: its final is not what its partials said."""

    name, model, latencies_ms = "drafting", None, (600,)

    def recognize(
        self, recordings: Any, words: bool, latency_ms: int | None = None
    ) -> Iterator[Transcript]:
        for blocks in recordings:
            seconds = sum(map(len, blocks)) / RATE
            word = Word("right", 0.5, 1.0, 0.9)
            yield Transcript("right", (), (word,), "en", seconds, self.name)

    def stream(self, **_: Any) -> Any:
        return Drafts()


class Drafts:
    """A stream that says something else all the time."""

    said = 0

    def push(self, samples: Any) -> list[StreamEvent]:
        self.said += 1
        return [StreamEvent("partial", f"wrong {self.said}", (), 0.0, 1.0, stable=False)]

    def finalize(self) -> list[StreamEvent]:
        return []


def test_partials_that_are_taken_back() -> None:
    with serving(Drafting()) as server:
        with connect(f"{server.ws}/v1/stream") as socket:
            socket.send(json.dumps({"type": "start"}))
            assert until(socket, "ready")[0]["latency_ms"] is None
            for start in range(0, len(SOUND), RATE // 4):
                socket.send(pcm(SOUND[start : start + RATE // 4]))
            events = until(socket, "endpoint")
        partials = [event["text"] for event in events if event["type"] == "partial"]
        finals = [event["text"] for event in events if event["type"] == "final"]
        assert partials and partials[0].startswith("wrong") and finals == ["right"]
        with connect(f"{server.ws}/v1/realtime?intent=transcription") as socket:
            input = {"format": {"type": "audio/pcm", "rate": RATE}}
            session = {"audio": {"input": input}}
            socket.send(json.dumps({"type": "session.update", "session": session}))
            for start in range(0, len(SOUND), RATE // 4):
                audio = base64.b64encode(pcm(SOUND[start : start + RATE // 4])).decode()
                socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            events = until(socket, "conversation.item.input_audio_transcription.completed")
        deltas = [event["delta"] for event in events if event["type"].endswith(".delta")]
        assert deltas == ["right"] and events[-1]["transcript"] == "right"


def test_the_numbers_name_the_model(whole: Server) -> None:
    page = httpx.get(whole.http + "/metrics").text
    name = whole.service.store.default
    assert f'pianissimo_engine_alive{{model="{name}"}} 1.0' in page
    assert "pianissimo_engine_chunk_delay_seconds{" not in page
