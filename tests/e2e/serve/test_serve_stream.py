"""/v1/stream: words, refusals, and nothing lost over broken connections."""

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from cutting import Cutter, check_same, listen, talk
from serving import RATE, Server, pcm, serving, speech
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.dialects import resumable
from pianissimo.serve.durable.streams import MOST_AWAY_PER_SEAT
from pianissimo.serve.settings import Settings
from pianissimo.streaming.session import Session

NUMBER = "enter four five two nine"
EXAMPLE = Path(__file__).parents[3] / "examples" / "stream_client.py"


@contextmanager
def streaming(server: Server, first: dict | None = None) -> Iterator[ClientConnection]:
    with connect(f"{server.ws}/v1/stream") as socket:
        socket.send(json.dumps(first or {"type": "start"}))
        yield socket


def receive(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(socket.recv(timeout=60))


def until(socket: ClientConnection, kind: str) -> dict[str, Any]:
    while (event := receive(socket))["type"] != kind:
        pass
    return event


def rest(socket: ClientConnection) -> list[dict[str, Any]]:
    events = []
    try:
        while True:
            events.append(receive(socket))
            if events[-1]["type"] == "end":
                with suppress(ConnectionClosed):
                    socket.send(json.dumps({"type": "ack", "events": events[-1]["event"]}))
    except ConnectionClosed:
        return events


# -- one connection --------------------------------------------------------------------------------


def test_partials_grow_and_every_event_is_numbered(
    words_server: Server, embedded: NativeRecognizer
) -> None:
    with streaming(words_server, {"type": "start", "latency_ms": 80}) as socket:
        ready = receive(socket)
        assert ready["type"] == "ready" and ready["frames"] == 0 and ready["latency_ms"] == 80
        for start in range(0, 40_000, 1600):
            socket.send(pcm(speech(2.5)[start : start + 1600]))
        socket.send(json.dumps({"type": "finalize"}))
        socket.send(json.dumps({"type": "finalize"}))
        socket.send(json.dumps({"type": "finish"}))
        events = rest(socket)
        assert socket.close_code == 1000
    kept = [event for event in events if "event" in event]
    assert [event["event"] for event in kept] == list(range(1, len(kept) + 1))
    finals = [event for event in events if event["type"] == "final"]
    assert [event["reason"] for event in finals] == ["finalize", "finalize", "finish"]
    with embedded.stream(latency_ms=80) as stream:
        same = [*stream.push(speech(2.5)), *stream.finalize()][-1]
    assert finals[0]["text"] == same.text
    assert [w["start"] for w in finals[0]["words"]] == [w.start for w in same.words]
    assert finals[1]["text"] == finals[2]["text"] == ""
    partials = [event["text"] for event in events if event["type"] == "partial"]
    assert len(partials) > 2
    for before, after in pairwise([*partials, finals[0]["text"]]):
        assert after.startswith(before)
    acks = [event["frames"] for event in events if event["type"] == "ack"]
    assert acks == sorted(acks) and acks[-1] == 28
    assert kept[-1]["type"] == "end"


def test_invalid_messages_are_reported_and_close(server: Server) -> None:
    for first, code in (
        ({"type": "hello"}, "unknown_type"),
        ({"type": "start", "latency_ms": 81}, "invalid_option"),
        ({"type": "start", "sample_rate": 10}, "invalid_value"),
        ({"type": "start", "sample_rate": "x"}, "invalid_value"),
        ({"type": "start", "encoding": "opus"}, "invalid_value"),
        ({"type": "start", "channels": 9}, "audio_invalid_values"),
        ({"type": "start", "model": "nova"}, "model_not_found"),
        ({"type": "start", "language": "de"}, "invalid_option"),
        ({"type": "start", "endpoint": 7}, "invalid_value"),
        ({"type": "start", "endpoint": {"trailing_silence": -1}}, "invalid_option"),
        ({"type": "resume", "stream": "../../etc/passwd"}, "no_stream"),
        ({"type": "resume", "stream": 7}, "invalid_value"),
    ):
        with streaming(server, first) as socket:
            (error,) = rest(socket)
            assert (error["type"], error["code"]) == ("error", code), first
            assert socket.close_code == 1008
    with connect(f"{server.ws}/v1/stream") as socket:
        socket.send(b"\0\0")
        assert rest(socket)[0]["code"] == "invalid_json"
    with streaming(server) as socket:
        receive(socket)
        socket.send(json.dumps({"type": "finish"}))
        socket.send(b"\0\0")
        assert rest(socket)[-1]["code"] == "stream_state"


def test_a_wrong_key_is_reported_as_other_refusals_are(
    tiny: NativeRecognizer, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tiny, Settings(api_keys=("right",))) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with connect(f"{server.ws}/v1/stream", additional_headers=headers) as socket:
                (error,) = rest(socket)
                assert (error["type"], error["code"]) == ("error", "invalid_api_key")
                assert "needs an API key" in error["message"]
                assert socket.close_code == 1008
        for path in ("/v1/listen", "/v1/speak", "/v1/realtime"):
            with connect(server.ws + path) as socket:
                assert rest(socket) == [] and socket.close_code == 1008
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_pause_is_an_endpoint_unless_it_was_turned_off(words_server: Server) -> None:
    samples = np.concatenate([speech(2.5), np.zeros(2 * RATE, np.float32)])
    found = {}
    for endpoint in ({"trailing_silence": 0.6}, None):
        with streaming(words_server, {"type": "start", "endpoint": endpoint}) as socket:
            for _ in range(2):
                socket.send(pcm(samples))
            socket.send(json.dumps({"type": "finish"}))
            found[endpoint is None] = [e for e in rest(socket) if e["type"] != "ack"]
    assert [e["type"] for e in found[False]].count("endpoint") == 2
    finals = [e for e in found[True] if e["type"] == "final"]
    assert [e["reason"] for e in finals] == ["finish"]
    assert finals[0]["text"].count("five") == 2


def test_a_full_server_keeps_nothing_of_whom_it_refused(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(max_streams=1)) as server:
        with streaming(server) as first:
            receive(first)
            with streaming(server) as second:
                assert rest(second)[0]["code"] == "server_full"
                assert second.close_code == 1013
            first.send(json.dumps({"type": "finish"}))
            rest(first)
        server.wait_until_empty()
        with streaming(server) as third:
            assert receive(third)["type"] == "ready"


# -- many connections ------------------------------------------------------------------------------


@pytest.mark.parametrize("linger_seconds", [5.0, 0.0], ids=["kept in its slot", "parked"])
def test_a_stream_cut_again_and_again_loses_nothing(
    embedded: NativeRecognizer, linger_seconds: float
) -> None:
    samples = talk()

    async def both(port: int) -> tuple[list, list, int]:
        whole, connections = await listen(port, samples, 0.1)
        assert connections == 1
        cutter = Cutter(port, seed=3, shortest=0.05, longest=0.65)
        async with cutter.running() as cut_port:
            cut, connections = await listen(cut_port, samples, 5.0)
        assert cutter.cuts >= 5
        return whole, cut, connections

    with serving(embedded, Settings(linger_seconds=linger_seconds)) as server:
        whole, cut, connections = asyncio.run(both(server.port))
        page = httpx.get(server.http + "/metrics").text
        server.wait_until_empty()
    assert connections >= 5
    assert f"pianissimo_resumed_total {connections - 1}.0" in page or connections > 5
    check_same(cut, whole)


def test_a_stream_outlives_its_server(embedded: NativeRecognizer, tmp_path: Path) -> None:
    settings = Settings(state_folder=tmp_path / "streams")
    samples = pcm(speech(2.5))
    with ExitStack() as stack:
        with serving(embedded, settings) as server:
            socket = stack.enter_context(streaming(server))
            token = receive(socket)["stream"]
            socket.send(samples[:33_333])  # a sample is cut in half
            socket.send(json.dumps({"type": "keepalive"}))
            socket.ping().wait(10)
        rest(socket)
        assert socket.close_code == 1012
        (folder,) = (tmp_path / "streams").iterdir()
        (file,) = folder.glob("state-*")
        assert token not in str(file) and token.encode() not in file.read_bytes()
        assert folder.stat().st_mode & 0o077 == file.stat().st_mode & 0o077 == 0
        with serving(embedded, settings) as server:
            first = {"type": "resume", "stream": token, "events": 0}
            socket = stack.enter_context(streaming(server, first))
            ready = receive(socket)
            assert ready["frames"] == ready["saved"] == 1
            socket.send(samples[33_333:])
            socket.send(json.dumps({"type": "finish"}))
            finals = [event for event in rest(socket) if event["type"] == "final"]
            assert [event["text"] for event in finals] == [NUMBER]
            assert finals[0]["frames"] == 3
            socket.close()
            server.wait_until_empty()
            assert not folder.exists()


def test_the_last_text_of_a_stream_outlives_its_server_too(
    embedded: NativeRecognizer, tmp_path: Path
) -> None:
    settings = Settings(state_folder=tmp_path)
    with ExitStack() as stack:
        with serving(embedded, settings) as server:
            socket = stack.enter_context(streaming(server))
            token = receive(socket)["stream"]
            socket.send(pcm(speech(2.5)))
            socket.send(json.dumps({"type": "finish"}))
            until(socket, "ack")
        with serving(embedded, settings) as server:
            first = {"type": "resume", "stream": token, "events": 0}
            socket = stack.enter_context(streaming(server, first))
            ready, final, end = rest(socket)
            assert ready["frames"] == 2 and final["text"] == NUMBER and end["event"] == 2
            server.wait_until_empty()


def test_a_second_connection_takes_over_the_stream(server: Server) -> None:
    with streaming(server) as first:
        token = receive(first)["stream"]
        first.send(pcm(speech(2.5)))
        first.send(json.dumps({"type": "finalize"}))
        final = until(first, "final")
        with streaming(server, {"type": "resume", "stream": token, "events": 0}) as second:
            assert receive(second)["frames"] == 2
            assert rest(first)[-1]["code"] == "taken_over"
            assert until(second, "final") == final
            second.send(json.dumps({"type": "finish"}))
            assert rest(second)[-1]["type"] == "end"
    with streaming(server, {"type": "resume", "stream": token}) as third:
        assert rest(third)[0]["code"] == "no_stream"


def test_streams_expire_if_they_are_not_resumed(tiny: NativeRecognizer) -> None:
    settings = Settings(linger_seconds=0.2, resume_seconds=0.5)
    with serving(tiny, settings) as server:
        with streaming(server) as socket:
            token = receive(socket)["stream"]
            socket.send(pcm(speech(1.0)))
        server.wait_until_empty()
        httpx.get(server.http + "/healthz")
        time.sleep(0.6)
        with streaming(server, {"type": "resume", "stream": token}) as socket:
            assert rest(socket)[0]["code"] == "no_stream"


def test_the_oldest_are_forgotten_when_many_were_cut(tiny: NativeRecognizer) -> None:
    """Streams that wait for their client hold no seat, but not more wait than there is room for."""
    most = MOST_AWAY_PER_SEAT
    tokens = []
    with serving(tiny, Settings(max_streams=1, linger_seconds=0.0)) as server:
        for _ in range(most + 2):
            with streaming(server) as socket:
                tokens.append(receive(socket)["stream"])
                socket.send(pcm(speech(0.5)))
            server.wait_until_empty()
        for number, token in enumerate(tokens):
            with streaming(server, {"type": "resume", "stream": token}) as socket:
                first = receive(socket)
                assert first.get("code") == ("no_stream" if number < 2 else None), first
                if number >= 2:
                    socket.send('{"type": "finish"}')
                    assert rest(socket)[-1]["type"] == "end"
            server.wait_until_empty()


def test_unacknowledged_events_pause_the_stream(
    tiny: NativeRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "MOST_UNACKNOWLEDGED", 5)
    with serving(tiny) as server, streaming(server) as socket:
        receive(socket)
        for _ in range(12):
            socket.send('{"type": "finalize"}')
        for most in (5, 10, 12):
            while until(socket, "final")["event"] < most:
                pass
            with suppress(TimeoutError):
                while True:
                    assert json.loads(socket.recv(timeout=0.3))["type"] == "ack", "no sixth final"
            socket.send(json.dumps({"type": "ack", "events": most}))
        socket.send('{"type": "finish"}')
        assert rest(socket)[-1]["type"] == "end"


def test_samples_that_are_none_end_their_stream(server: Server) -> None:
    with streaming(server, {"type": "start", "encoding": "pcm_f32le"}) as socket:
        receive(socket)
        socket.send(np.full(1600, np.nan, "<f4").tobytes())
        assert rest(socket)[-1]["code"] == "audio_invalid_values"
        assert socket.close_code == 1008
    server.wait_until_empty()


def test_the_example_writes_the_words(words_server: Server, tmp_path: Path) -> None:
    path = tmp_path / "number.wav"
    soundfile.write(path, speech(2.5), RATE, subtype="PCM_16")
    done = subprocess.run(
        [sys.executable, EXAMPLE, path, "--url", words_server.ws, "--fast"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == NUMBER + "\n"


def test_a_stream_that_cannot_be_parked_costs_no_other(
    tiny: NativeRecognizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It stays where it is until it is forgotten, and at the end of the server it alone is lost."""
    copied = resumable._copied
    broken: list[object] = []

    def fails_for_one(session: Session, engine: Any, close: bool) -> Any:
        broken.append(session)
        if session is broken[0]:
            raise RuntimeError("bad luck")
        return copied(session, engine, close)

    monkeypatch.setattr(resumable, "_copied", fails_for_one)
    with serving(tiny, Settings(linger_seconds=0.0, resume_seconds=0.5)) as server:
        with streaming(server) as socket:
            receive(socket)
        server.wait_until_empty()
        assert len(broken) == 1
    broken.clear()
    with (
        serving(tiny, Settings(state_folder=tmp_path)) as server,
        streaming(server) as one,
        streaming(server) as other,
    ):
        for socket in (one, other):
            receive(socket)
        assert server.service.seats.in_use == 2
    assert len(broken) == 2
    states = [path.read_bytes() for path in tmp_path.glob("*/state-*")]
    assert sum(b"pianissimo.stream" in state for state in states) == 1


def test_a_finished_stream_is_released_after_a_broken_connection(server: Server) -> None:
    """Whose acknowledgement of the end was lost says so once more when it resumes."""
    with streaming(server) as socket:
        token = receive(socket)["stream"]
        socket.send(json.dumps({"type": "finish"}))
        last = until(socket, "end")["event"]
    resume = {"type": "resume", "stream": token, "events": last}
    with streaming(server, resume) as socket:
        assert [event["type"] for event in rest(socket)] == ["ready"]
        assert socket.close_code == 1000
    with streaming(server, resume) as socket:
        assert receive(socket)["code"] == "no_stream"
