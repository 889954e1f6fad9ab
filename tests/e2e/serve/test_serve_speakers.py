"""Speakers in every dialect: recordings by voice and by channel, and live streams."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from serving import CLIPS, RATE, Server, pcm
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pianissimo.audio.io import load_audio

openai = pytest.importorskip("openai", reason="no openai client: the extra clients has it")
pytestmark = pytest.mark.filterwarnings("ignore")  # the client's warnings are not ours

ONE, OTHER = load_audio(CLIPS / "sentence.flac"), load_audio(CLIPS / "number.flac")
PAUSE = np.zeros(RATE, np.float32)


def flac(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="FLAC")
    return file.getvalue()


@pytest.fixture(scope="module")
def talk() -> bytes:
    return flac(np.concatenate([ONE, PAUSE, OTHER, PAUSE, OTHER, PAUSE, ONE]))


@pytest.fixture(scope="module")
def call() -> bytes:
    """Two channels: the first person ends before the second one begins."""
    samples = np.zeros((len(ONE) + len(OTHER), 2), np.float32)
    samples[: len(ONE), 0] = ONE
    samples[len(ONE) :, 1] = OTHER
    return flac(samples)


@pytest.fixture(scope="module")
def client(words_server: Server) -> Any:
    return openai.OpenAI(base_url=f"{words_server.http}/v1", api_key="none", max_retries=0)


def test_openai_gets_segments_with_speakers(client: Any, talk: bytes) -> None:
    found = client.audio.transcriptions.create(
        file=("talk.flac", talk),
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
        chunking_strategy="auto",
    )
    speakers = [segment.speaker for segment in found.segments]
    assert speakers[0] == speakers[-1] == "A"
    assert set(speakers) == {"A", "B"}
    assert " ".join(segment.text for segment in found.segments) == found.text
    assert found.duration == pytest.approx(2 * (len(ONE) + len(OTHER)) / RATE + 3)


def test_openai_names_known_speakers(client: Any, talk: bytes) -> None:
    reference = "data:audio/flac;base64," + base64.b64encode(flac(OTHER)).decode()
    events = client.audio.transcriptions.create(
        file=("talk.flac", talk),
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
        stream=True,
        extra_body={"known_speaker_names": ["agent"], "known_speaker_references": [reference]},
    )
    found = list(events)
    named = [event.speaker for event in found if event.type == "transcript.text.segment"]
    assert set(named) == {"A", "agent"}
    [done] = [event.text for event in found if event.type == "transcript.text.done"]
    assert "".join(e.delta for e in found if e.type == "transcript.text.delta") == done


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"known_speaker_names[]": ["a"]}, "1 known_speaker_names and 0"),
        (
            {"known_speaker_names[]": ["a"], "known_speaker_references[]": ["http://x"]},
            "must be a data URL",
        ),
        (
            {
                "known_speaker_names[]": ["a"],
                "known_speaker_references[]": ["data:audio/wav;base64,AAAA"],
            },
            "not audio",
        ),
        (
            {
                "known_speaker_names[]": [*"abcde"],
                "known_speaker_references[]": ["data:audio/wav;base64,AAAA"] * 5,
            },
            "at most 4",
        ),
    ],
)
def test_senseless_known_speakers_are_refused(
    server: Server, talk: bytes, fields: dict[str, Any], message: str
) -> None:
    answer = httpx.post(
        f"{server.http}/v1/audio/transcriptions",
        files={"file": ("a.flac", talk)},
        data={"response_format": "diarized_json", **fields},
        timeout=60,
    )
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def listen(server: Server, data: bytes, query: str) -> dict[str, Any]:
    answer = httpx.post(f"{server.http}/v1/listen?{query}", content=data, timeout=60)
    return {"status": answer.status_code, **answer.json()}


def test_deepgram_gets_speakers_of_words_and_utterances(words_server: Server, talk: bytes) -> None:
    results = listen(words_server, talk, "diarize=true&utterances=true")["results"]
    [channel] = results["channels"]
    words = channel["alternatives"][0]["words"]
    assert words[0]["speaker"] == words[-1]["speaker"] == 0
    assert {word["speaker"] for word in words} == {0, 1}
    assert all(0 <= word["speaker_confidence"] <= 1 for word in words)
    assert {utterance["speaker"] for utterance in results["utterances"]} == {0, 1}
    plain = listen(words_server, talk, "")["results"]["channels"][0]["alternatives"][0]
    assert plain["transcript"] == channel["alternatives"][0]["transcript"]
    assert "speaker" not in plain["words"][0]


def test_deepgram_gets_each_channel(words_server: Server, call: bytes) -> None:
    answer = listen(words_server, call, "multichannel=true&utterances=true")
    assert answer["metadata"]["channels"] == 2
    texts = [c["alternatives"][0]["transcript"] for c in answer["results"]["channels"]]
    assert texts[1] == "enter four five two nine"
    assert texts[0]
    assert "four" not in texts[0]
    assert answer["results"]["utterances"][-1]["channel"] == 1


def test_deepgram_gets_channels_of_raw_samples(words_server: Server) -> None:
    both = np.stack([OTHER, np.zeros_like(OTHER)], axis=1)
    query = "multichannel=true&encoding=linear16&sample_rate=16000&channels=2"
    channels = listen(words_server, pcm(both), query)["results"]["channels"]
    texts = [channel["alternatives"][0]["transcript"] for channel in channels]
    assert texts == ["enter four five two nine", ""]


def test_deepgram_refuses_what_it_cannot_split(server: Server, talk: bytes) -> None:
    mono = listen(server, talk, "multichannel=true")
    assert mono["status"] == 400
    assert "one channel" in json.dumps(mono)
    assert listen(server, talk, "diarize_model=v9")["status"] == 400


def received(socket: ClientConnection) -> list[dict[str, Any]]:
    messages = []
    try:
        while True:
            messages.append(json.loads(socket.recv(timeout=60)))
    except ConnectionClosed:
        return messages


def hear(socket: ClientConnection, samples: np.ndarray) -> None:
    for start in range(0, len(samples), RATE // 10):
        socket.send(pcm(samples[start : start + RATE // 10]))


def test_a_live_stream_has_speakers_in_its_finals(words_server: Server) -> None:
    samples = np.concatenate([ONE, PAUSE, OTHER, PAUSE])
    with connect(f"{words_server.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "start", "sample_rate": RATE, "diarize": True}))
        hear(socket, samples)
        socket.send(json.dumps({"type": "finish"}))
        messages: list[dict[str, Any]] = []
        while not messages or messages[-1]["type"] != "end":
            messages.append(json.loads(socket.recv(timeout=60)))
    finals = [message for message in messages if message["type"] == "final" and message["words"]]
    assert len(finals) >= 2
    assert all(word["speaker"] for final in finals for word in final["words"])
    first, last = finals[0]["words"][0]["speaker"], finals[-1]["words"][-1]["speaker"]
    assert first == "0"
    assert last != "0"


def test_deepgram_gets_speakers_live(words_server: Server) -> None:
    query = "encoding=linear16&sample_rate=16000&diarize=true"
    with connect(f"{words_server.ws}/v1/listen?{query}") as socket:
        hear(socket, np.concatenate([OTHER, PAUSE]))
        socket.send(json.dumps({"type": "CloseStream"}))
        messages = received(socket)
    words = [
        word
        for message in messages
        if message["type"] == "Results" and message["is_final"]
        for word in message["channel"]["alternatives"][0]["words"]
    ]
    assert words
    assert {word["speaker"] for word in words} == {0}


def test_a_stream_refuses_another_kind_of_diarize(server: Server) -> None:
    with connect(f"{server.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "start", "diarize": "yes"}))
        assert "true or false" in json.loads(socket.recv(timeout=60))["message"]
