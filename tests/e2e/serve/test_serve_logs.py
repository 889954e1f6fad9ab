"""The log contains no speech, names or keys."""

import json
import signal
from pathlib import Path

import httpx
import pytest
from serving import pcm, process, speech, wav
from websockets.sync.client import connect

KEY = "pp-4c21f0"
TERM = "Zerbrochene Krug"
FIELDS = ("time", "level", "logger", "request", "message")


@pytest.mark.parametrize("options", [[], ["--log-json"]])
def test_the_log_holds_no_text_no_terms_and_no_keys(
    tiny_model_folder: Path, options: list[str]
) -> None:
    header = {"authorization": f"Bearer {KEY}"}
    with process(tiny_model_folder, "--api-key", KEY, *options) as (server, port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=header) as client:
            place = "/v1/audio/transcriptions"
            files = {"file": (f"{TERM}.wav", wav(speech(2.0)))}
            said = client.post(place, files=files, data={"prompt": TERM}, timeout=60).json()["text"]
            assert said
            assert client.post(place, files={"file": (TERM, b"nonsense")}).status_code == 400
            query = {"encoding": "linear16", "sample_rate": "16000", "keyterm": TERM, "user": TERM}
            answer = client.post("/v1/listen", params=query, content=b"RIFF")
            assert answer.status_code == 400
            wrong = {"authorization": f"Bearer {KEY}x"}
            assert client.get("/v1/models", headers=wrong).status_code == 401
        url = httpx.URL(f"ws://127.0.0.1:{port}/v1/listen", params={**query, "keyterm": "fox"})
        with connect(str(url), subprotocols=["token", KEY]) as socket:
            socket.send(pcm(speech(2.0)))
            socket.send('{"type": "CloseStream"}')
            while json.loads(socket.recv(timeout=60))["type"] != "Metadata":
                pass
        server.send_signal(signal.SIGTERM)
        assert server.stderr is not None
        log = server.stderr.read()
    if options:
        lines = [json.loads(line) for line in log.splitlines()]
        assert {frozenset(line) for line in lines} == {frozenset(FIELDS)}
        log = "\n".join(line["message"] for line in lines)
    assert f"POST {place} HTTP/1.1" in log and '"WebSocket /v1/listen" [accepted]' in log
    secrets = (KEY, "Krug", "fox", "keyterm", said, said.split()[0])
    assert not [secret for secret in secrets if secret in log]
