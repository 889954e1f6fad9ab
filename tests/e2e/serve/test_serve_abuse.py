"""Clients that send nonsense, vanish, or never read: the server goes on and keeps nothing."""

import base64
import json
import re
import socket as sockets
import threading
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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

FIELDS = (
    "format type rate turn_detection transcription noise_reduction language include model delay "
    "silence_duration_ms prefix_padding_ms eagerness input_audio_format trailing_silence"
).split()
KINDS = (
    "session.update transcription_session.update input_audio_buffer.append start resume finish "
    "input_audio_buffer.commit input_audio_buffer.clear finalise ack keepalive Finalize Configure ?"
).split()
PARAMETERS = (
    "session audio events stream endpoint latency_ms sample_rate encoding channels event_id model"
).split()

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(
            [SOUND, "audio/pcm", "server_vad", "pcm_s16le", "en", 500, 16_000, "\ud800"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=8,
)
sessions = st.dictionaries(st.sampled_from(FIELDS), values, max_size=4).map(
    lambda input: {"audio": {"input": input}}
)
messages = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={"session": sessions | values} | {name: values for name in PARAMETERS[1:]},
)
frames = st.one_of(
    messages.map(lambda message: json.dumps(message)),
    st.binary(min_size=1, max_size=999),
    st.text(max_size=20),
    values.map(json.dumps),
)


def outcomes(server: Server, outcome: str) -> float:
    page = httpx.get(server.http + "/metrics").text
    found = re.findall(rf'requests_total{{[^}}]*outcome="{outcome}"}} ([\d.]+)', page)
    return sum(map(float, found))


@pytest.mark.parametrize("place", PLACES)
def test_nonsense_is_answered_and_nothing_fails(server: Server, place: str) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(frames, max_size=6))
    def send(sent: list[str | bytes]) -> None:
        with connect(server.ws + place) as socket, suppress(ConnectionClosed):
            for first in STARTS.get(place, []):
                socket.send(json.dumps(first))
            for frame in sent:
                socket.send(frame)
            socket.send('{"type": "CloseStream"}')
            socket.send("{")  # the end of every dialect that had none yet

    send()
    server.wait_until_empty(30.0)
    assert outcomes(server, "failed") == 0


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
        assert outcomes(server, "failed") == 0
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


def test_a_page_of_another_site_gets_no_socket(server: Server) -> None:
    def code(**options: Any) -> int | None:
        with connect(server.ws + "/v1/realtime", **options) as socket:
            with suppress(ConnectionClosed, TimeoutError):
                socket.recv(timeout=30)
                return None
            return socket.close_code

    assert code(origin="https://evil.example") == 1008
    assert code(origin=f"http://127.0.0.1:{server.port}") is None
