"""Limits and counters of API keys, through every dialect that has keys."""

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
from serving import RATE, Server, pcm, serving, speech, wav
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.access.keys import ApiKey, Limits
from pianissimo.serve.settings import Settings

KEYS = (
    ApiKey("free", "k-free"),
    ApiKey("one", "k-one", Limits(streams=1)),
    ApiKey("brief", "k-brief", Limits(audio_seconds_per_minute=3.0)),
    ApiKey("small", "k-small", Limits(upload_mb=0.05)),
)
SOUND = speech(4.0)
PLACES = {
    "stream": "/v1/stream",
    "realtime": "/v1/realtime?intent=transcription",
    "listen": f"/v1/listen?encoding=linear16&sample_rate={RATE}",
}


@pytest.fixture
def keyed(tiny: NativeRecognizer) -> Iterator[Server]:
    with serving(tiny, Settings(api_keys=KEYS, admin_key="boss")) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@contextmanager
def socket(server: Server, dialect: str, key: str) -> Iterator[ClientConnection]:
    """A socket of that key that was let in, or closed."""
    with connect(server.ws + PLACES[dialect], additional_headers=bearer(key)) as one:
        if dialect == "stream":
            one.send(json.dumps({"type": "start", "latency_ms": 80}))
        yield one


def hear(one: ClientConnection, dialect: str, seconds: float = 1.0) -> None:
    data = pcm(SOUND[: round(seconds * RATE)])
    if dialect == "realtime":  # of twice as many samples a second
        audio = base64.b64encode(data + data).decode()
        one.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
    else:
        one.send(data)


def answered(one: ClientConnection, dialect: str) -> None:
    """Return once the stream has answered, so that it has a seat."""
    asking = {"stream": "finalize", "realtime": "input_audio_buffer.commit", "listen": "Finalize"}
    one.send(json.dumps({"type": asking[dialect]}))
    wanted = {"stream": "final", "realtime": "completed", "listen": "Results"}[dialect]
    while not json.loads(one.recv(timeout=60))["type"].endswith(wanted):
        pass


def closed(one: ClientConnection) -> list[dict[str, Any]]:
    """What the server still says until it closes."""
    said = []
    try:
        while True:
            said.append(json.loads(one.recv(timeout=60)))
    except ConnectionClosed:
        return said


def posted(server: Server, key: str, path: str = "/v1/audio/transcriptions") -> httpx.Response:
    url, sound = server.http + path, wav(SOUND)
    body: dict[str, Any] = {"content": sound} if "listen" in path else {"files": {"file": sound}}
    return httpx.post(url, headers=bearer(key), timeout=60, **body)


def account(server: Server, name: str) -> dict[str, Any]:
    """What the operator is shown of a key."""
    found = httpx.get(server.http + "/admin/keys", headers=bearer("boss"))
    assert found.status_code == 200 and "k-" not in found.text
    (one,) = [each for each in found.json()["keys"] if each["name"] == name]
    return one


@pytest.mark.parametrize("dialect", PLACES)
def test_streams_at_once(keyed: Server, dialect: str) -> None:
    with socket(keyed, dialect, "k-one") as first:
        answered(first, dialect)
        assert account(keyed, "one")["streams"] == 1
        for other in PLACES:
            with socket(keyed, other, "k-one") as second:
                closed(second)
                assert second.close_code == 1013 and "of this key" in str(second.close_reason)
        with socket(keyed, dialect, "k-free") as others:
            answered(others, dialect)
        answered(first, dialect)  # nothing happened to it
    if dialect != "stream":  # of those one that was cut keeps its seat for a while
        keyed.wait_until_empty()
        with socket(keyed, dialect, "k-one") as again:
            answered(again, dialect)
    used = account(keyed, "one")
    assert used["limited"] == 3 and used["limits"]["streams"] == 1


@pytest.mark.parametrize("dialect", PLACES)
def test_audio_in_a_minute(keyed: Server, dialect: str) -> None:
    with socket(keyed, dialect, "k-brief") as one:
        for _ in range(3):
            hear(one, dialect)
        answered(one, dialect)
        with suppress(ConnectionClosed):  # it may be told before it has sent everything
            hear(one, dialect, 3.0)
            hear(one, dialect)
        closed(one)
        assert one.close_code == 1013 and "per minute" in str(one.close_reason)
    used = account(keyed, "brief")
    assert 3.0 <= used["audio_seconds"] <= 6.1 and used["limited"] == 1
    for path in ("/v1/audio/transcriptions", PLACES["listen"]):
        answer = posted(keyed, "k-brief", path)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert posted(keyed, "k-free", path).status_code == 200


def test_a_recording_is_taken_whole_and_then_waited_for(keyed: Server) -> None:
    assert posted(keyed, "k-brief").status_code == 200
    answer = posted(keyed, "k-brief")
    assert answer.status_code == 429 and answer.json()["error"]["code"] == "key_limit"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 20
    assert account(keyed, "brief")["audio_seconds"] == 4.0


def test_a_commit_that_waits_is_answered_when_the_session_ends(keyed: Server) -> None:
    with socket(keyed, "realtime", "k-brief") as one:
        for seconds in (3.5, 0.5):
            hear(one, "realtime", seconds)
            one.send(json.dumps({"type": "input_audio_buffer.commit"}))
        kinds = [event["type"].rpartition(".")[2] for event in closed(one)]
        assert one.close_code == 1013
    assert kinds.count("committed") == kinds.count("completed") + kinds.count("failed") == 1
    assert "error" not in kinds


def test_a_stream_that_was_refused_audio_continues_later(keyed: Server) -> None:
    with socket(keyed, "stream", "k-brief") as one:
        token = json.loads(one.recv(timeout=60))["stream"]
        hear(one, "stream", 3.5)
        hear(one, "stream")
        assert closed(one)[-1]["code"] == "key_limit"
    with connect(keyed.ws + PLACES["stream"], additional_headers=bearer("k-free")) as one:
        one.send(json.dumps({"type": "resume", "stream": token, "events": 0}))
        assert json.loads(one.recv(timeout=60))["frames"] == 1


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", PLACES["listen"], "/page/recordings"])
def test_uploads(keyed: Server, path: str) -> None:
    assert posted(keyed, "k-small", path).status_code == 413
    assert posted(keyed, "k-free", path).status_code == 200


def test_a_client_secret_counts_for_the_key_that_made_it(keyed: Server) -> None:
    url = keyed.http + "/v1/realtime/client_secrets"
    secrets = [httpx.post(url, headers=bearer("k-one")).json()["value"] for _ in range(2)]
    with socket(keyed, "realtime", secrets[0]) as first:
        answered(first, "realtime")
        assert account(keyed, "one")["streams"] == 1
        with socket(keyed, "realtime", secrets[1]) as second:
            closed(second)
            assert second.close_code == 1013


def test_counters_name_the_keys(keyed: Server) -> None:
    assert posted(keyed, "k-free").status_code == 200
    with socket(keyed, "listen", "k-free") as one:
        hear(one, "listen", 2.0)
        answered(one, "listen")
        page = httpx.get(keyed.http + "/metrics", headers=bearer("boss")).text
    found = dict(re.findall(r'^pianissimo_key_(\w+){key="free"} (\S+)$', page, re.M))
    assert {name: float(value) for name, value in found.items()} == {
        "streams": 1.0,
        "requests_total": 2.0,
        "streams_opened_total": 1.0,
        "audio_seconds_total": 6.0,
        "limited_total": 0.0,
    }
    assert "k-free" not in page
    assert httpx.get(keyed.http + "/admin/keys", headers=bearer("k-free")).status_code == 401


def test_a_server_without_keys_counts_anyone(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(admin_key="boss", wyoming_port=0)) as server:
        assert posted(server, "any").status_code == 200
        assert account(server, "anyone")["audio_seconds"] == 4.0
        assert account(server, "wyoming")["requests"] == 0
