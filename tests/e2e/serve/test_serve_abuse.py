"""Clients that send invalid data, vanish, or never read: the server keeps nothing of them."""

import base64
import json
import select
import socket as sockets
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
from serving import Server, pcm, serving, speech, wav
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve import shutdown
from pianissimo.serve.dialects import sockets as deaf
from pianissimo.serve.settings import Settings
from pianissimo.serve.websocket import FIRST_MESSAGE_BYTES

PLACES = ["/v1/stream", "/v1/realtime", "/v1/listen?encoding=linear16&sample_rate=16000"]
STARTS = {
    "/v1/stream": [{"type": "start"}],
    "/v1/realtime": [{"type": "session.update", "session": {}}],
}
SOUND = base64.b64encode(pcm(speech(0.3))).decode()


def test_hundreds_of_vanished_clients_leave_nothing_behind(tiny: NativeRecognizer) -> None:
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


def test_unread_events_hold_up_only_their_client(words_server: Server) -> None:
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
        assert answer.json()["text"] == "enter four five two nine"
        with connect(words_server.ws + PLACES[2]) as polite:
            polite.send(pcm(speech(2.5)))
            polite.send('{"type": "Finalize"}')
            while not (result := json.loads(polite.recv(timeout=60)))["from_finalize"]:
                pass
            said = result["channel"]["alternatives"][0]["transcript"]
            assert said == "enter four five two nine"
        engine = words_server.service.engine
        assert engine is not None
        waiting = [engine.backlog_seconds(stream) for stream in list(engine._streams)]
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


@pytest.mark.parametrize("place", PLACES)
def test_idle_sockets_are_closed(tiny: NativeRecognizer, place: str) -> None:
    """Before and after the first message."""
    code = 1011 if "listen" in place else 1001
    with serving(tiny, Settings(idle_seconds=0.5)) as server:
        for first in ([], STARTS.get(place, [])):
            with connect(server.ws + place) as socket:
                for message in first:
                    socket.send(json.dumps(message))
                with pytest.raises(ConnectionClosed):
                    while True:
                        socket.recv(timeout=30)
                assert socket.close_code == code
        server.wait_until_empty()


def test_no_url_in_a_request_is_fetched(server: Server) -> None:
    """Neither as the source of a recording nor as a callback."""
    with sockets.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.5)
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/a.wav"
        listen = server.http + "/v1/listen"
        answer = httpx.post(listen, json={"url": address})
        assert answer.status_code == 400
        assert answer.json()["err_code"] == "REMOTE_CONTENT_UNSUPPORTED"
        answer = httpx.post(listen, params={"callback": address}, content=wav(speech(1.0)))
        assert answer.status_code == 200
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n"
        place = server.http + "/v1/audio/transcriptions"
        for upload in (playlist, address):
            files = {"file": (address, upload.encode())}
            assert httpx.post(place, files=files, timeout=60).status_code == 400
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def test_a_form_of_many_fields_is_refused(server: Server) -> None:
    place = server.http + "/v1/audio/transcriptions"
    files = {"file": ("a.wav", wav(speech(0.5)))}
    fields = {f"field{number}": "x" for number in range(201)}
    answer = httpx.post(place, files=files, data=fields, timeout=60)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_form"
    answer = httpx.post(place, files=files, data={"prompt": "x" * (2 << 20)}, timeout=60)
    assert answer.status_code == 400


def test_sessions_of_secrets_have_a_largest_size(server: Server) -> None:
    """They are kept until their secret expires, so a large one is not even read."""
    place = server.http + "/v1/realtime/client_secrets"
    session = {"type": "transcription", "audio": {"input": {"noise_reduction": "x" * 20_000}}}
    answer = httpx.post(place, json={"session": session})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "file_too_large"

    undeclared = (b" " * 9999 for _ in range(9))
    assert httpx.post(place, content=undeclared).status_code == 413


@pytest.mark.parametrize("length", ["transfer-encoding: chunked", "content-length: 99999999999999"])
@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/audio/transcriptions", 413), ("/v1/listen", 413), ("/page/nothing", 404)],
)
def test_a_body_without_end_is_not_read_for_ever(
    tiny: NativeRecognizer, monkeypatch: pytest.MonkeyPatch, length: str, path: str, status: int
) -> None:
    """Its client gets the answer while it sends, and is cut off when it goes on."""
    monkeypatch.setattr(shutdown, "LINGER_SECONDS", 0.5)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{length}\r\n"
        "content-type: multipart/form-data; boundary=b\r\n\r\n"
    )
    first = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    chunked = length.endswith("chunked")

    def framed(data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if chunked else data

    answer, end = b"", time.monotonic() + 60
    with (
        serving(tiny, Settings(largest_upload_mb=1)) as server,
        sockets.create_connection(("127.0.0.1", server.port), timeout=60) as raw,
    ):
        raw.sendall(head.encode() + framed(first))
        with pytest.raises(ConnectionError):
            while time.monotonic() < end:
                raw.sendall(framed(bytes(1 << 16)))
                while select.select([raw], [], [], 0)[0] and (data := raw.recv(1 << 16)):
                    answer += data
        server.wait_until_empty()
    assert answer.startswith(b"HTTP/1.1 %d" % status) and b"\r\nconnection: close\r\n" in answer
    assert answer.endswith(b"}") and answer.count(b"HTTP/1.1") == 1


def test_clients_that_send_everything_first_read_an_early_answer(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(largest_upload_mb=1)) as server, httpx.Client() as client:
        for place in ("/v1/audio/transcriptions", "/v1/listen"):
            files = {"file": ("a.wav", bytes(20_000_000))}
            answer = client.post(server.http + place, files=files, timeout=60)
            assert answer.status_code == 413 and answer.headers["connection"] == "close"
        assert client.get(server.http + "/healthz").status_code == 200


def test_a_page_of_another_site_gets_no_socket(server: Server) -> None:
    """Refused by the status of the handshake: no socket is ever opened."""
    for origin in ("https://evil.example", "http://["):
        address = server.ws + "/v1/realtime"
        with pytest.raises(InvalidStatus) as refused, connect(address, origin=origin):
            pass
        assert refused.value.response.status_code == 403
    with connect(server.ws + "/v1/realtime", origin=f"http://127.0.0.1:{server.port}") as socket:
        assert json.loads(socket.recv(timeout=30))["type"] == "session.created"
    assert httpx.get(server.http + "/healthz", headers={"origin": "http://["}).status_code == 403


def test_a_client_has_a_limit_of_open_sockets(tiny: NativeRecognizer) -> None:
    settings = Settings(max_streams=1)
    with serving(tiny, settings) as server:
        with ExitStack() as opened:
            for _ in range(settings.most_connections):
                opened.enter_context(connect(server.ws + "/v1/stream"))
            with pytest.raises(InvalidStatus) as refused, connect(server.ws + "/v1/stream"):
                pass
            assert refused.value.response.status_code == 429
            assert "retry-after" in refused.value.response.headers
        with connect(server.ws + "/v1/stream") as socket:
            socket.send('{"type": "start"}')
            assert json.loads(socket.recv(timeout=30))["type"] == "ready"


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "unfinished"])
def test_the_first_message_has_a_small_limit(server: Server, whole: bool) -> None:
    """100 sockets with unfinished first messages must not take a gigabyte."""
    with connect(server.ws + "/v1/stream") as socket, suppress(ConnectionClosed):
        if whole:
            socket.send('{"type": "start", "user": "' + "x" * FIRST_MESSAGE_BYTES + '"}')
        else:
            socket.send(["{", "x" * FIRST_MESSAGE_BYTES])
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=30)
    assert socket.close_code == 1009


def test_a_message_that_is_too_large_gets_its_close_code_and_no_reset(server: Server) -> None:
    """A reset would destroy the close frame before a slow client reads it."""
    with connect(server.ws + "/v1/stream") as socket:
        with pytest.raises(ConnectionClosed) as end:
            socket.send(bytes(8 * FIRST_MESSAGE_BYTES))
            while True:
                socket.recv(timeout=30)
        assert socket.close_code == 1009
        assert not isinstance(end.value.__cause__, (ConnectionResetError, BrokenPipeError))


def test_large_text_is_refused_where_audio_is_binary(server: Server) -> None:
    with connect(server.ws + "/v1/stream") as socket:
        socket.send('{"type": "start"}')
        assert json.loads(socket.recv(timeout=30))["type"] == "ready"
        socket.send('{"type": "keepalive", "x": "' + "x" * (1 << 20) + '"}')
        while (event := json.loads(socket.recv(timeout=30)))["type"] != "error":
            pass
        assert event["code"] == "message_too_large"


def test_streams_that_were_refused_are_not_kept(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(linger_seconds=0.0, resume_seconds=0.2)) as server:

        def ask(first: dict[str, Any]) -> dict[str, Any]:
            with connect(server.ws + "/v1/stream") as socket:
                socket.send(json.dumps(first))
                return json.loads(socket.recv(timeout=30))

        token = ask({"type": "start"})["stream"]
        for first in ({"type": "start"}, {"type": "resume", "stream": token}):
            assert ask({**first, "events": -1})["code"] == "invalid_value"
        server.wait_until_empty()
        end = time.monotonic() + 30
        while len(server.streams):
            assert time.monotonic() < end, "a stream was kept"
            time.sleep(0.01)


def test_clients_that_read_nothing_lose_their_seat(
    tiny: NativeRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although they continue to send."""
    monkeypatch.setattr(deaf, "CLOSE_SECONDS", 0.2)
    upgrade = (
        "GET /v1/realtime HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\n"
        "upgrade: websocket\r\nsec-websocket-version: 13\r\n"
        "sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
    )
    settings = {"audio": {"input": {"noise_reduction": {"type": "x" * 1_000_000}}}}
    nonsense = json.dumps({"type": "session.update", "session": settings}).encode()  # is sent back
    masked = b"\x81\xff" + len(nonsense).to_bytes(8, "big") + bytes(4) + nonsense
    with (
        serving(tiny, Settings(idle_seconds=1.0)) as server,
        sockets.create_connection(("127.0.0.1", server.port), timeout=60) as raw,
    ):
        raw.sendall(upgrade.encode())
        raw.recv(1)

        def flood() -> None:
            with suppress(OSError):
                while True:
                    raw.sendall(masked)

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        end = time.monotonic() + 30
        while server.outcomes("gone") + server.outcomes("idle") == 0:
            assert time.monotonic() < end, "the socket goes on"
            time.sleep(0.05)
        server.wait_until_empty()
        raw.shutdown(sockets.SHUT_RDWR)
        thread.join(30)


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/listen"])
def test_interrupted_uploads_are_not_logged_as_failures(
    tiny: NativeRecognizer, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9999\r\n"
        "content-type: multipart/form-data; boundary=b\r\n\r\n"
    )
    with serving(tiny) as server:
        with sockets.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
            raw.sendall(head.encode() + b"--b\r\n")
        end = time.monotonic() + 30
        while not server.outcomes("400"):
            assert time.monotonic() < end, "the request was not counted as broken"
            time.sleep(0.05)
    assert not caplog.records


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/listen"])
def test_recordings_are_canceled_when_their_client_leaves(
    tiny: NativeRecognizer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A client that retries after a timeout finds its place free."""
    go_on = threading.Event()
    transcribe = tiny.transcribe

    def slowly(*asked: Any, **options: Any) -> Any:
        go_on.wait(60)
        return transcribe(*asked, **options)

    monkeypatch.setattr(tiny, "transcribe", slowly)
    sound = {"files": {"file": ("a.wav", wav(speech(0.5)))}}
    if path == "/v1/listen":
        sound = {"content": wav(speech(0.5))}  # type: ignore[dict-item]
    with serving(tiny, Settings(max_files=1)) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.http + path, **sound, timeout=2.0)  # type: ignore[arg-type]
        end = time.monotonic() + 30
        while server.service.files.in_use:
            assert time.monotonic() < end, "the recording is still in work"
            time.sleep(0.05)
        go_on.set()
        answer = httpx.post(server.http + path, **sound, timeout=60)  # type: ignore[arg-type]
        assert answer.status_code == 200
    assert all(model.leases == 0 for model in server.service.store.models.values())
