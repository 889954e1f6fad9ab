"""The built-in Whisper on every live dialect: partials while people speak, then the sentence."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import CLIPS, RATE, Server, pcm, serving
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

import pianissimo
from pianissimo.audio.io import load_audio
from pianissimo.serve.settings import Settings

SENTENCE = "The boy was there with his mother and father."
SOUND = pcm(load_audio(CLIPS / "sentence.flac"))
PAUSE = pcm(np.zeros(3 * RATE // 2, np.float32))
BLOCK = RATE // 5
ROOT = Path(__file__).resolve().parents[3]
SPEECH = Path(os.environ.get("PIANISSIMO_SPEECH", ROOT.parent / "shared" / "data" / "speech"))
NORSEMEN = SPEECH / "vctk" / "p225_016.flac"


@pytest.fixture(scope="module")
def whisper() -> Iterator[Server]:
    recognizer = pianissimo.load("whisper-tiny-en", device="cpu")
    with serving(recognizer, Settings(wyoming_port=0)) as server:
        yield server


def hear(socket: ClientConnection, sound: bytes) -> None:
    for start in range(0, len(sound), BLOCK):
        socket.send(sound[start : start + BLOCK])


def rest(socket: ClientConnection) -> list[dict[str, Any]]:
    """All messages until the server closes."""
    messages = []
    try:
        while True:
            messages.append(json.loads(socket.recv(timeout=60)))
    except ConnectionClosed:
        return messages


@pytest.mark.parametrize("second_pass", [True, False])
def test_our_own_socket(whisper: Server, second_pass: bool) -> None:
    with connect(f"{whisper.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "start", "second_pass": second_pass}))
        assert json.loads(socket.recv(timeout=60))["latency_ms"] == 560
        hear(socket, SOUND)
        socket.send(json.dumps({"type": "finish"}))
        events = [json.loads(socket.recv(timeout=60))]
        while events[-1]["type"] != "end":
            events.append(json.loads(socket.recv(timeout=60)))
    partials = [event["text"] for event in events if event["type"] == "partial"]
    finals = [event["text"] for event in events if event["type"] == "final"]
    assert partials and partials[-1]
    if second_pass:
        assert finals == [SENTENCE]
    else:
        assert len(finals) == 1 and finals[0].startswith(partials[-1])
    whisper.wait_until_empty()


@pytest.mark.skipif(not NORSEMEN.is_file(), reason="no development speech beside the checkout")
def test_a_stream_and_a_recording_boost_hotwords(whisper: Server) -> None:
    """The model alone hears "Norseman"."""
    form = {"model": "whisper-1", "prompt": "Norsemen, Ada Lovelace"}
    answer = httpx.post(
        f"{whisper.http}/v1/audio/transcriptions",
        files={"file": ("clip.flac", NORSEMEN.read_bytes())},
        data=form,
        timeout=60,
    )
    assert "The Norsemen considered" in answer.json()["text"]
    for boost, heard in (([], "Norseman"), (["Norsemen"], "Norsemen")):
        with connect(f"{whisper.ws}/v1/stream") as socket:
            socket.send(json.dumps({"type": "start", "boost": boost}))
            hear(socket, pcm(load_audio(NORSEMEN)))
            socket.send(json.dumps({"type": "finish"}))
            events = [json.loads(socket.recv(timeout=60))]
            while events[-1]["type"] != "end":
                events.append(json.loads(socket.recv(timeout=60)))
        finals = " ".join(event["text"] for event in events if event["type"] == "final")
        assert f"The {heard} considered" in finals


def test_a_second_pass_is_true_or_false_and_of_a_model_that_has_one(
    whisper: Server, words_server: Server
) -> None:
    for server, given, said in (
        (whisper, "yes", "second_pass must be true or false"),
        (words_server, True, "has no second pass"),
    ):
        with connect(f"{server.ws}/v1/stream") as socket:
            socket.send(json.dumps({"type": "start", "second_pass": given}))
            [error] = rest(socket)
        assert error["type"] == "error" and said in error["message"]


def test_deepgram(whisper: Server) -> None:
    query = "model=nova-3&encoding=linear16&sample_rate=16000&interim_results=true"
    with connect(f"{whisper.ws}/v1/listen?{query}") as socket:
        hear(socket, SOUND)
        socket.send(json.dumps({"type": "CloseStream"}))
        results = [message for message in rest(socket) if message["type"] == "Results"]
    said = [(r["is_final"], r["channel"]["alternatives"][0]["transcript"]) for r in results]
    assert any(text for final, text in said if not final)
    assert [text for final, text in said if final and text] == [SENTENCE]


def test_openai_realtime_finds_the_turn(whisper: Server) -> None:
    with connect(f"{whisper.ws}/v1/realtime?intent=transcription") as socket:
        input = {
            "format": {"type": "audio/pcm", "rate": RATE},
            "transcription": {"model": "whisper-1"},
            "turn_detection": {"type": "server_vad"},
        }
        session = {"type": "transcription", "audio": {"input": input}}
        socket.send(json.dumps({"type": "session.update", "session": session}))
        for start in range(0, len(SOUND + PAUSE), BLOCK):
            audio = base64.b64encode((SOUND + PAUSE)[start : start + BLOCK]).decode()
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        message = json.loads(socket.recv(timeout=60))
        while not message["type"].endswith("transcription.completed"):
            assert message["type"] != "error", message
            message = json.loads(socket.recv(timeout=60))
    assert message["transcript"] == SENTENCE
