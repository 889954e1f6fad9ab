"""Sockets with several channels: Deepgram's multichannel and the channels of /v1/stream."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from serving import CLIPS, RATE, Server, pcm, serving, wav
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pianissimo.audio.io import load_audio
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

NUMBER = "enter four five two nine"
ONE, OTHER = load_audio(CLIPS / "sentence.flac"), load_audio(CLIPS / "number.flac")
PAUSE = np.zeros(RATE, np.float32)
QUERY = "encoding=linear16&sample_rate=16000&multichannel=true&channels="


def call(*channels: list[np.ndarray]) -> np.ndarray:
    """Channels (n, channels), each of which is a list of parts."""
    joined = [np.concatenate(parts) for parts in channels]
    length = max(map(len, joined))
    return np.stack([np.pad(each, (0, length - len(each))) for each in joined], axis=1)


BOTH = call([ONE, PAUSE, PAUSE], [np.zeros_like(ONE), PAUSE, OTHER])


@contextmanager
def listening(server: Server, channels: int, query: str = QUERY) -> Iterator[ClientConnection]:
    with connect(f"{server.ws}/v1/listen?{query}{channels}") as socket:
        yield socket


def send(socket: ClientConnection, samples: np.ndarray, block: int = 1603) -> None:
    """Blocks of bytes that do not end with a frame."""
    data = pcm(samples)
    for start in range(0, len(data), 2 * block):
        socket.send(data[start : start + 2 * block])


def received(socket: ClientConnection) -> list[dict[str, Any]]:
    messages = []
    try:
        while True:
            messages.append(json.loads(socket.recv(timeout=60)))
    except ConnectionClosed:
        return messages


def finals(messages: list[dict[str, Any]], channel: int) -> list[dict[str, Any]]:
    return [
        m
        for m in messages
        if m["type"] == "Results" and m["is_final"] and m["channel_index"][0] == channel
    ]


def text(messages: list[dict[str, Any]]) -> str:
    texts = [message["channel"]["alternatives"][0]["transcript"] for message in messages]
    return " ".join(filter(None, texts))


def close(socket: ClientConnection) -> list[dict[str, Any]]:
    socket.send(json.dumps({"type": "CloseStream"}))
    return received(socket)


def mono(server: Server, samples: np.ndarray) -> str:
    with listening(server, 1, QUERY.replace("true", "false")) as socket:
        send(socket, samples)
        return text(finals(close(socket), 0))


def test_deepgram_hears_each_channel_by_itself(words_server: Server) -> None:
    with listening(words_server, 2) as socket:
        send(socket, BOTH)
        messages = close(socket)
        assert socket.close_code == 1000
    results = [m for m in messages if m["type"] == "Results"]
    assert {tuple(m["channel_index"]) for m in results} == {(0, 2), (1, 2)}
    for channel in range(2):
        assert text(finals(messages, channel)) == mono(words_server, BOTH[:, channel])
        for before, after in pairwise(finals(messages, channel)):
            assert after["start"] == pytest.approx(before["start"] + before["duration"])
    assert NUMBER in text(finals(messages, 1))
    words = [w for m in finals(messages, 1) for w in m["channel"]["alternatives"][0]["words"]]
    assert words[-1]["start"] > len(ONE) / RATE
    about = messages[-1]
    assert about["type"] == "Metadata"
    assert about["channels"] == 2
    assert about["duration"] == pytest.approx(len(BOTH) / RATE)


def test_a_silent_channel_answers_with_empty_results(words_server: Server) -> None:
    with listening(words_server, 3) as socket:
        send(socket, call([OTHER], [np.zeros_like(OTHER)], [OTHER]))
        socket.send(json.dumps({"type": "Finalize"}))
        messages = []
        while sum(m.get("from_finalize", False) for m in messages) < 3:
            messages.append(json.loads(socket.recv(timeout=60)))
        assert [text(finals(messages, channel)) for channel in range(3)] == [NUMBER, "", NUMBER]
        send(socket, call([PAUSE], [OTHER], [PAUSE]))
        rest = close(socket)
    assert [text(finals(rest, channel)) for channel in range(3)] == ["", NUMBER, ""]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (QUERY + "1", "channels=2 to 8"),
        (QUERY + "9", "channels=2 to 8"),
        ("multichannel=true&channels=2", "raw samples"),
        ("multichannel=true&channels=2&encoding=opus", "raw samples"),
    ],
)
def test_deepgram_refuses_channels_that_are_none(server: Server, query: str, says: str) -> None:
    with listening(server, 0, query + "&x=") as socket:
        received(socket)
        assert socket.close_code == 1008
        assert says in (socket.close_reason or "")
    server.wait_until_empty()


def test_a_container_has_no_channels_on_a_socket(server: Server) -> None:
    with listening(server, 2) as socket:
        socket.send(wav(BOTH))
        [error] = received(socket)
    assert "POST" in error["message"]
    server.wait_until_empty()


def test_every_channel_has_a_seat(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(max_streams=3)) as server:
        with listening(server, 2) as first:
            send(first, BOTH[:RATE])
            first.send(json.dumps({"type": "Finalize"}))
            first.recv(timeout=60)
            assert server.service.seats.in_use == 2
            with listening(server, 2) as second:
                received(second)
                assert second.close_code == 1013
            assert server.service.seats.in_use == 2
            close(first)
        server.wait_until_empty()
        with listening(server, 3) as third:
            assert close(third)[-1]["type"] == "Metadata"
        server.wait_until_empty()


@pytest.mark.filterwarnings("ignore")  # the client's warnings are not ours
def test_the_deepgram_sdk_gets_channels_in_its_own_types(words_server: Server) -> None:
    pytest.importorskip("deepgram", reason="no deepgram client: see tests/clients")
    from deepgram import AsyncDeepgramClient
    from deepgram.environment import DeepgramClientEnvironment

    async def talk() -> list[Any]:
        http, ws = words_server.http, words_server.ws
        place = DeepgramClientEnvironment(base=http, production=ws, agent=ws, agent_rest=http)
        client = AsyncDeepgramClient(api_key="any", environment=place)
        options = {"encoding": "linear16", "sample_rate": RATE, "channels": 2}
        messages: list[Any] = []
        async with (
            asyncio.timeout(60),
            client.listen.v1.connect(model="nova-3", multichannel=True, **options) as socket,
        ):
            await socket.send_media(pcm(BOTH))
            await socket.send_close_stream()
            while not messages or messages[-1].type != "Metadata":
                messages.append(await socket.recv())
        return messages

    *results, about = asyncio.run(talk())
    assert {type(message).__name__ for message in results} == {"ListenV1Results"}
    said: dict[int, list[str]] = {0: [], 1: []}
    for message in results:
        index, count = message.channel_index
        assert count == 2
        said[int(index)] += filter(None, [message.channel.alternatives[0].transcript])
    assert NUMBER in " ".join(said[1])
    assert said[0]
    assert type(about).__name__ == "ListenV1Metadata"
    assert about.channels == 2


# -- /v1/stream ------------------------------------------------------------------------------------


@contextmanager
def streaming(server: Server, **options: object) -> Iterator[ClientConnection]:
    with connect(f"{server.ws}/v1/stream") as socket:
        start = {"type": "start", "channels": 2, "multichannel": True, "events": 0, **options}
        socket.send(json.dumps({key: value for key, value in start.items() if value is not None}))
        yield socket


def until_end(socket: ClientConnection) -> list[dict[str, Any]]:
    """All events, which are acknowledged at the end, so that the server closes."""
    events = []
    while True:
        event = json.loads(socket.recv(timeout=60))
        events.append(event)
        if event["type"] == "end":
            socket.send(json.dumps({"type": "ack", "events": event["event"]}))
        if event["type"] in ("end", "error"):
            return events


def test_a_stream_has_events_of_each_channel(words_server: Server) -> None:
    with streaming(words_server) as socket:
        send(socket, BOTH)
        socket.send(json.dumps({"type": "finish"}))
        events = until_end(socket)
    finals = [event for event in events if event["type"] == "final"]
    for channel in range(2):
        own = [event for event in finals if event["channel"] == channel]
        said = " ".join(filter(None, (event["text"] for event in own)))
        assert said == mono(words_server, BOTH[:, channel])
        assert [event["start"] for event in own] == sorted(event["start"] for event in own)
    assert NUMBER in " ".join(event["text"] for event in finals if event["channel"] == 1)
    partials = [event for event in events if event["type"] == "partial"]
    assert {event["channel"] for event in partials} == {0, 1}
    numbers = [event["event"] for event in events if "event" in event]
    assert numbers == list(range(1, len(numbers) + 1))
    words_server.wait_until_empty()


def test_frames_are_answered_when_every_channel_has_answered(words_server: Server) -> None:
    with streaming(words_server) as socket:
        send(socket, call([OTHER], [np.zeros_like(OTHER)]), block=len(OTHER) + 1)
        socket.send(json.dumps({"type": "finalize"}))
        finals: list[dict[str, Any]] = []
        while sum(event.get("reason") == "finalize" for event in finals) < 2:
            event = json.loads(socket.recv(timeout=60))
            finals += [event] if event["type"] == "final" else []
        counts = [event["frames"] for event in finals]
        assert counts == sorted(counts)
        assert counts[-1] == 3
        assert counts[-2] < 3
        socket.send(json.dumps({"type": "finish"}))
        until_end(socket)
    words_server.wait_until_empty()


def test_a_stream_of_channels_resumes_on_its_server(words_server: Server) -> None:
    data, half = pcm(BOTH), 4 * (len(BOTH) // 2)
    with streaming(words_server) as socket:
        ready = json.loads(socket.recv(timeout=60))
        socket.send(data[:half])
        while json.loads(socket.recv(timeout=60))["type"] != "partial":
            pass
        socket.close()
    with connect(f"{words_server.ws}/v1/stream") as socket:
        again = {"type": "resume", "stream": ready["stream"], "events": 0}
        socket.send(json.dumps(again))
        assert json.loads(socket.recv(timeout=60))["frames"] == 1
        socket.send(data[half:])
        socket.send(json.dumps({"type": "finish"}))
        events = until_end(socket)
    texts = [e["text"] for e in events if e["type"] == "final" and e["channel"] == 1]
    assert NUMBER in " ".join(texts)
    words_server.wait_until_empty()


@pytest.mark.parametrize("channels", [None, 1, 9])
def test_a_stream_refuses_channels_that_are_none(server: Server, channels: int | None) -> None:
    with streaming(server, channels=channels) as socket:
        [error] = until_end(socket)
    assert error["type"] == "error"
    assert "channels from 2 to 8" in error["message"]


def test_every_channel_of_a_stream_has_a_seat(tiny: NativeRecognizer) -> None:
    settings = Settings(max_streams=3, resume_seconds=0.2, linger_seconds=0.1)
    with serving(tiny, settings) as server:
        with streaming(server) as socket:
            assert json.loads(socket.recv(timeout=60))["type"] == "ready"
            assert server.service.seats.in_use == 2
            with streaming(server) as second:
                assert until_end(second)[-1]["code"] == "server_full"
            assert server.service.seats.in_use == 2
        server.wait_until_empty()
