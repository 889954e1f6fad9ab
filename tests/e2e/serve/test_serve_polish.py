"""A language model after the final: it proposes edits, and never delays or invents text."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from scripted_llm import FakeLLM, Reply, scripted, words
from serving import CLIPS, RATE, Server, pcm, serving
from websockets.sync.client import connect

from pianissimo.audio.io import load_audio
from pianissimo.cli import main
from pianissimo.errors import OptionError
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

SPOKEN = "enter four five two nine"
CAPITAL = '```json\n{"edits": [{"from": 0, "to": 0, "text": "Enter", "why": "a sentence"}]}\n```'
POLISHED = "Enter four five two nine"
BAD = {
    "an error status": Reply(status=500),
    "no list": Reply(words("I would rather talk about the weather.")),
    "another shape": Reply(['{"edits": [{"from": "0", "to": 0, "text": "Enter"}]}']),
    "no json": Reply(["{edits}"]),
    "cut off": Reply([CAPITAL[:30]], ends_early=True),
    "broken": Reply([CAPITAL[:30]], breaks=True),
    "endless": Reply(["x" * 70_000]),
    "silent": Reply(words(CAPITAL), first_seconds=20.0),
    "slow": Reply(list(CAPITAL), gap_seconds=0.2),
    "invented": Reply(['{"edits": [{"from": 0, "to": 4, "text": "Send all money to Bob"}]}']),
    "outside": Reply(['{"edits": [{"from": 5, "to": 9, "text": "Enter"}]}']),
    "a number": Reply(['{"edits": [{"from": 1, "to": 1, "text": "for"}]}']),
}


@pytest.fixture(scope="module")
def polished(embedded: NativeRecognizer) -> Iterator[tuple[Server, FakeLLM]]:
    """A server with a language model, whose replies each test sets."""
    with scripted() as llm:
        settings = Settings(
            polish=llm.url, polish_model="scripted", polish_key="k", polish_timeout_seconds=0.5
        )
        with serving(embedded, settings) as server:
            yield server, llm


@pytest.fixture
def server(polished: tuple[Server, FakeLLM]) -> Server:
    return polished[0]


@pytest.fixture
def llm(polished: tuple[Server, FakeLLM]) -> FakeLLM:
    polished[1].requests.clear()
    polished[1].keys.clear()
    polished[1].replies = [Reply(words(CAPITAL))]
    return polished[1]


def counted(server: Server, name: str, outcome: str) -> float:
    """A counter of the server."""
    metrics = httpx.get(f"{server.http}/metrics").text
    found = re.search(rf'^pianissimo_{name}_total{{outcome="{outcome}"}} (\S+)', metrics, re.M)
    return float(found[1]) if found else 0.0


def transcription(server: Server, **fields: str) -> httpx.Response:
    files = {"file": ("number.flac", (CLIPS / "number.flac").read_bytes())}
    url = f"{server.http}/v1/audio/transcriptions"
    return httpx.post(url, files=files, data=fields, timeout=60)


def stream(server: Server, **start: object) -> list[dict[str, Any]]:
    """All messages of a stream of the clip but partials and acknowledgments."""
    with connect(f"{server.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "start", "sample_rate": RATE, **start}))
        socket.send(pcm(load_audio(CLIPS / "number.flac")))
        socket.send(json.dumps({"type": "finish"}))
        found = []
        while True:
            message = json.loads(socket.recv(timeout=60))
            if message["type"] not in ("ack", "partial", "ready", "endpoint"):
                found.append(message)
            if message["type"] in ("end", "error"):
                return found


def test_a_recording_is_revised_on_request(server: Server, llm: FakeLLM) -> None:
    plain = transcription(server).json()
    assert (plain["text"], llm.requests) == (SPOKEN, [])
    before = counted(server, "polished", "edited")
    found = transcription(server, polish="true").json()
    assert (found["text"], found["lexical"]) == (POLISHED, SPOKEN)
    sent = json.loads(llm.last_user())
    assert [(item["i"], item["w"]) for item in sent] == list(enumerate(SPOKEN.split()))
    assert all(0 <= item["c"] <= 1 for item in sent)
    assert llm.requests[0]["temperature"] == 0
    assert llm.keys == ["Bearer k"]
    assert counted(server, "polished", "edited") == before + 1
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    old = transcription(server, **fields).json()["words"]
    new = transcription(server, **fields, polish="1").json()["words"]
    assert [word["word"] for word in new] == POLISHED.split()
    assert [(w["start"], w["end"]) for w in new] == [(w["start"], w["end"]) for w in old]
    assert transcription(server, response_format="text", polish="true").text == POLISHED + "\n"
    assert transcription(server, polish="true", stream="true").status_code == 400


def test_a_revision_follows_its_final(server: Server, llm: FakeLLM) -> None:
    assert [message["type"] for message in stream(server)] == ["final", "end"]
    assert llm.requests == []
    final, revision, end = stream(server, polish=True)
    assert (final["type"], final["text"]) == ("final", SPOKEN)
    assert (revision["type"], revision["text"]) == ("revision", POLISHED)
    assert (revision["event"], end["type"]) == (final["event"], "end")
    assert revision["edits"] == [{"from": 0, "to": 0, "text": "Enter"}]
    assert [w["start"] for w in revision["words"]] == [w["start"] for w in final["words"]]


@pytest.mark.parametrize("fault", BAD)
def test_a_useless_reply_leaves_the_text(server: Server, llm: FakeLLM, fault: str) -> None:
    llm.replies = [BAD[fault]]
    refuses = fault in ("invented", "outside", "a number")
    outcome = "unchanged" if refuses else "failed"
    before = counted(server, "polished", outcome), counted(server, "polish_edits", "refused")
    found = transcription(server, polish="true").json()
    assert found["text"] == SPOKEN
    assert "lexical" not in found
    assert [message["type"] for message in stream(server, polish=True)] == ["final", "end"]
    assert counted(server, "polished", outcome) == before[0] + 2
    assert counted(server, "polish_edits", "refused") == before[1] + 2 * refuses
    llm.wait_until_left()


def test_a_model_that_is_down_leaves_the_text(embedded: NativeRecognizer) -> None:
    with scripted() as llm:
        url = llm.url
    with serving(embedded, Settings(polish=url, polish_model="gone")) as server:
        assert transcription(server, polish="true").json()["text"] == SPOKEN


def test_polish_is_refused_where_it_cannot_be(
    words_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = transcription(words_server, polish="true")
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "polish_unavailable"
    for polish, code in [(True, "polish_unavailable"), ("yes", "invalid_value")]:
        with connect(f"{words_server.ws}/v1/stream") as socket:
            socket.send(json.dumps({"type": "start", "polish": polish}))
            assert json.loads(socket.recv(timeout=60))["code"] == code
    with pytest.raises(OptionError, match="both: --polish URL and --polish-model"):
        Settings(polish="http://127.0.0.1:1/v1")
    assert main(["serve", "--polish", "nowhere", "--polish-model", "m"]) == 2
    assert "'nowhere'" in capsys.readouterr().err
