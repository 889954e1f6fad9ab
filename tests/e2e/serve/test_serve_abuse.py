"""Clients that send nonsense, vanish, or never read: the server goes on and keeps nothing."""

import base64
import json
import socket as sockets
import threading
from contextlib import suppress
from typing import Any

import httpx
import pytest
from serving import Server, pcm, serving, speech, wav
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pianissimo.native import NativeRecognizer
from pianissimo.serve.settings import Settings

PLACES = ["/v1/stream", "/v1/realtime", "/v1/listen?encoding=linear16&sample_rate=16000"]
STARTS = {
    "/v1/stream": [{"type": "start"}],
    "/v1/realtime": [{"type": "session.update", "session": {}}],
}
SOUND = base64.b64encode(pcm(speech(0.3))).decode()


def test_hundreds_who_vanish_leave_nothing_behind(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(linger_seconds=0.0, resume_seconds=0.1)) as server:

        def vanish(number: int) -> None:
            place = PLACES[number % len(PLACES)]
            with suppress(ConnectionClosed, OSError), connect(server.ws + place) as socket:
                for first in STARTS.get(place, []):
                    socket.send(json.dumps(first))
                if place == "/v1/realtime":
                    audio = {"type": "input_audio_buffer.append", "audio": SOUND}
                    socket.send(json.dumps(audio))
                    socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
                else:
                    socket.send(pcm(speech(1.0)))
                socket.socket.shutdown(sockets.SHUT_RDWR)

        for start in range(0, 240, 24):
            threads = [threading.Thread(target=vanish, args=(start + i,)) for i in range(24)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        server.wait_until_empty(30.0)
        assert server.outcomes("failed") == 0
        with connect(server.ws + "/v1/stream") as socket:
            socket.send('{"type": "start"}')
            assert json.loads(socket.recv(timeout=30))["type"] == "ready"


def test_who_never_reads_is_held_up_and_the_others_are_not(words_server: Server) -> None:
    """An hour of audio from a client that reads nothing waits at the client, not in memory."""
    hour = pcm(speech(60.0))
    sent = 0
    with connect(words_server.ws + PLACES[2], max_queue=1, ping_interval=None) as greedy:

        def flood() -> None:
            nonlocal sent
            with suppress(ConnectionClosed, OSError):
                for _ in range(60):
                    greedy.send(hour)
                    sent += 1

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        answer = httpx.post(
            words_server.http + "/v1/audio/transcriptions",
            files={"file": ("a.wav", wav(speech(2.5)))},
            timeout=60,
        )
        assert answer.json()["text"] == "enter four seven two nine"
        with connect(words_server.ws + PLACES[2]) as polite:
            polite.send(pcm(speech(2.5)))
            polite.send('{"type": "Finalize"}')
            while not (result := json.loads(polite.recv(timeout=60)))["from_finalize"]:
                pass
            said = result["channel"]["alternatives"][0]["transcript"]
            assert said == "enter four seven two nine"
        engine = words_server.service.engine
        assert engine is not None
        waiting = [session.backlog_seconds for session in list(engine._seats)]
        assert max(waiting, default=0.0) <= engine.options.backlog_seconds + 1.0
        assert sent < 60
        greedy.socket.shutdown(sockets.SHUT_RDWR)
        thread.join(30)
        # Its own reader is held up by what nobody read, and would never close it.
        greedy.socket.close()
    words_server.wait_until_empty(60.0)


def test_messages_have_a_largest_size(server: Server) -> None:
    with connect(server.ws + "/v1/stream") as socket:
        socket.send('{"type": "start"}')
        with pytest.raises(ConnectionClosed):
            socket.send(bytes(17 << 20))
            while True:
                socket.recv(timeout=30)
        assert socket.close_code == 1009


def test_sessions_of_secrets_have_a_largest_size(server: Server) -> None:
    """They are kept until their secret expires, so a large one is not even read."""
    place = server.http + "/v1/realtime/client_secrets"
    session = {"type": "transcription", "audio": {"input": {"noise_reduction": "x" * 20_000}}}
    answer = httpx.post(place, json={"session": session})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "file_too_large"

    undeclared = (b" " * 9999 for _ in range(9))
    assert httpx.post(place, content=undeclared).status_code == 413


def test_a_page_of_another_site_gets_no_socket(server: Server) -> None:
    def code(**options: Any) -> int | None:
        with connect(server.ws + "/v1/realtime", **options) as socket:
            with suppress(ConnectionClosed, TimeoutError):
                socket.recv(timeout=30)
                return None
            return socket.close_code

    assert code(origin="https://evil.example") == 1008
    assert code(origin=f"http://127.0.0.1:{server.port}") is None
