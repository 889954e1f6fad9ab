"""Unknown keys and types of messages, and both spellings of finalize, on every socket."""

import base64
import json
from typing import Any

import pytest
from serving import Server, pcm, speech
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

AUDIO = pcm(speech(0.5))


def receive(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(socket.recv(timeout=60))


def until(socket: ClientConnection, kind: str) -> dict[str, Any]:
    while (event := receive(socket))["type"] != kind:
        pass
    return event


@pytest.mark.parametrize("spelling", ["finalize", "finalise"])
def test_stream_accepts_both_spellings(server: Server, spelling: str) -> None:
    with connect(server.ws + "/v1/stream") as socket:
        socket.send('{"type": "start"}')
        assert receive(socket)["type"] == "ready"
        socket.send(AUDIO)
        socket.send(json.dumps({"type": spelling}))
        assert until(socket, "final")["reason"] == "finalize"


@pytest.mark.parametrize("spelling", ["Finalize", "Finalise"])
def test_deepgram_accepts_both_spellings(server: Server, spelling: str) -> None:
    with connect(server.ws + "/v1/listen?encoding=linear16&sample_rate=16000") as socket:
        socket.send(AUDIO)
        socket.send(json.dumps({"type": spelling}))
        assert until(socket, "Results")["from_finalize"]


@pytest.mark.parametrize(
    ("messages", "code", "expected"),
    [
        ([{"type": "strat"}], "unknown_type", "valid types: start, resume"),
        ([{"type": "start", "sampel_rate": 8000}], "unknown_key", "valid keys: sample_rate, "),
        (
            [{"type": "start", "endpoint": {"trailing": 1}}],
            "unknown_key",
            "valid keys: trailing_silence, ",
        ),
        ([{"type": "resume", "steam": "x"}], "unknown_key", "valid keys: stream, "),
        ([{"type": "start"}, {"type": "finalyze"}], "unknown_type", "valid types: finalize, "),
        ([{"type": "start"}, {"type": "ack", "event": 1}], "unknown_key", "valid keys: events, "),
    ],
)
def test_stream_refuses_what_is_unknown_and_names_the_nearest(
    server: Server, messages: list[dict[str, Any]], code: str, expected: str
) -> None:
    with connect(server.ws + "/v1/stream") as socket:
        for message in messages:
            socket.send(json.dumps(message))
        error = until(socket, "error")
        assert error["code"] == code and expected in error["message"]
        with pytest.raises(ConnectionClosed):
            while True:
                socket.recv(timeout=60)
        assert socket.close_code == 1008


def test_realtime_refuses_unknown_types_and_continues(server: Server) -> None:
    with connect(server.ws + "/v1/realtime") as socket:
        socket.send('{"type": "input_audio_buffer.comit", "event_id": "mine"}')
        error = until(socket, "error")["error"]
        assert error["code"] == "unknown_type" and error["event_id"] == "mine"
        assert "valid types: input_audio_buffer.commit, " in error["message"]
        socket.send('{"type": "session.update", "session": {}}')
        assert until(socket, "session.updated")


def test_realtime_warns_once_about_an_unknown_key(server: Server) -> None:
    """Newer SDKs send optional fields that are unknown here; that ends no session."""
    with connect(server.ws + "/v1/realtime") as socket:
        session = {"audio": {"input": {"transcription": {"langage": "en"}}}}
        for _ in range(3):
            socket.send(json.dumps({"type": "session.update", "session": session}))
        append = {"type": "input_audio_buffer.append", "audio": base64.b64encode(AUDIO).decode()}
        socket.send(json.dumps({**append, "sequence": 1}))
        socket.send('{"type": "input_audio_buffer.commit"}')
        events = []
        while not events or not events[-1]["type"].endswith("transcription.completed"):
            events.append(receive(socket))
    warnings = [event["warning"] for event in events if event["type"] == "warning"]
    assert [each["param"] for each in warnings] == [
        "session.audio.input.transcription.langage",
        "sequence",
    ]
    assert "valid keys: language, " in warnings[0]["message"]
    assert not [event for event in events if event["type"] == "error"]
