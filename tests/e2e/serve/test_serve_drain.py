"""Draining: a real process, a real signal, and streams that resume in the next process."""

import json
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import pcm, process, speech
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

SOUND = pcm(speech(6.0))
HALF = len(SOUND) // 2


def ask(socket: ClientConnection, first: dict[str, Any]) -> dict[str, Any]:
    socket.send(json.dumps(first))
    return json.loads(socket.recv(timeout=60))


def until(socket: ClientConnection, kind: str) -> dict[str, Any]:
    while (event := json.loads(socket.recv(timeout=60)))["type"] != kind:
        pass
    return event


def closed(socket: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        while True:
            socket.recv(timeout=60)
    return socket.close_code


def test_drained_streams_finish_or_resume_elsewhere(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    state = ("--state-folder", str(tmp_path), "--drain-seconds")
    start = {"type": "start", "endpoint": None}
    with process(tiny_model_folder, *state, "4") as (running, port):
        url = f"ws://127.0.0.1:{port}/v1/stream"
        with connect(url) as short, connect(url) as long:
            ask(short, start)
            token = ask(long, start)["stream"]
            short.send(SOUND)
            long.send(SOUND[:HALF])
            long.send('{"type": "finalize"}')
            first = until(long, "final")
            long.send(json.dumps({"type": "ack", "events": first["event"]}))
            running.send_signal(signal.SIGTERM)
            while httpx.get(f"http://127.0.0.1:{port}/readyz").text != "draining\n":
                pass
            with connect(url) as late:
                assert ask(late, start)["code"] == "draining"
                assert closed(late) == 1013
            # Who is there has time to end.
            short.send('{"type": "finish"}')
            whole = until(short, "final")
            short.send(json.dumps({"type": "ack", "events": until(short, "end")["event"]}))
            assert closed(short) == 1000
            # Who does not end is sent away when the state lies there, not before.
            assert closed(long) == 1012
            assert len([*tmp_path.glob("*/state-*")]) == 1
        assert running.wait(60) == 0
    with process(tiny_model_folder, *state, "60") as (running, port):
        with connect(f"ws://127.0.0.1:{port}/v1/stream") as long:
            resume = {"type": "resume", "stream": token, "events": first["event"]}
            assert ask(long, resume)["frames"] == 2
            long.send(SOUND[HALF:])
            long.send('{"type": "finish"}')
            second = until(long, "final")
            assert second["event"] == first["event"] + 1
            halves = [*first["words"], *second["words"]]
            assert len(halves) > 5 and abs(len(halves) - len(whole["words"])) <= 2
            assert halves[-1]["end"] == pytest.approx(whole["words"][-1]["end"], abs=0.2)
        with connect(f"ws://127.0.0.1:{port}/v1/stream") as last:
            ask(last, start)
            # A second signal does not wait for anybody.
            running.send_signal(signal.SIGTERM)
            while httpx.get(f"http://127.0.0.1:{port}/readyz").text != "draining\n":
                pass
            running.send_signal(signal.SIGTERM)
            assert closed(last) == 1012
        assert running.wait(60) == 0


@pytest.mark.parametrize("work", ["recording", "frame"])
def test_sigterm_ends_the_server_in_time_whatever_runs(tiny_model_folder: Path, work: str) -> None:
    """Within the drain and 5 s, with an hour of audio in the works, or minutes in one frame."""
    minutes = pcm(speech(240.0))
    with process(tiny_model_folder, "--drain-seconds", "1") as (running, port):
        if work == "recording":
            busy = threading.Thread(
                target=_post, args=(f"http://127.0.0.1:{port}", minutes * 15), daemon=True
            )
            busy.start()
            time.sleep(3.0)
            running.send_signal(signal.SIGTERM)
            began = time.monotonic()
            running.wait(30)
            ended = time.monotonic()
        else:
            url = f"ws://127.0.0.1:{port}/v1/stream"
            # Events are not read, so the end of the connection is not seen either.
            unread = connect(url, ping_interval=None, close_timeout=0.5)
            with unread as socket, suppress(ConnectionClosed):
                ask(socket, {"type": "start"})
                socket.send((2 * minutes)[: 15 << 20])
                time.sleep(1.0)
                running.send_signal(signal.SIGTERM)
                began = time.monotonic()
                running.wait(30)
                ended = time.monotonic()
        assert ended - began <= 6.0
        assert running.returncode == 0


def _post(url: str, samples: bytes) -> None:
    query = "encoding=linear16&sample_rate=16000"
    with suppress(httpx.HTTPError):
        httpx.post(f"{url}/v1/listen?{query}", content=samples, timeout=60)
