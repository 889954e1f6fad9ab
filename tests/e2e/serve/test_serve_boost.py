"""Phrases to boost through every dialect: a model that is unsure writes them."""

import base64
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serving import RATE, Server, pcm, serving, speech, wav
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.recognizers.base import BaseRecognizer
from pianissimo.serve.access.phrases import terms
from pianissimo.serve.settings import Settings
from pianissimo.serve.versions.store import ShadowRule
from pianissimo.transcript import Transcript, Word

PHRASE = "tea"
SOUND = speech(2.5)
LISTEN = f"/v1/listen?encoding=linear16&sample_rate={RATE}"


class Deaf(BaseRecognizer):
    """A model that can boost no phrases, and always hears the same."""

    name, model = "deaf", None

    def recognize(
        self, recordings: Sequence[Iterable[Any]], words: bool, latency_ms: int | None = None
    ) -> Iterator[Transcript]:
        for blocks in recordings:
            seconds = sum(map(len, blocks)) / RATE
            yield Transcript("what", (), (Word("what", 0.5, 1.0, 0.9),), "en", seconds, self.name)


@pytest.fixture(scope="module")
def folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, which says the same, but holds everything else for nearly as likely."""
    folder = tmp_path_factory.mktemp("models") / "unsure"
    model, tokenizer = load_model(tiny_model_folder)
    assert model.joiner is not None
    with torch.no_grad():
        for tensor in (model.joiner.out.weight, model.joiner.out.bias):
            tensor *= 0.05
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def unsure(folder: Path) -> Iterator[Server]:
    with serving(None, Settings(models=(str(folder),), device="cpu", linger_seconds=0.05)) as one:
        yield one


@pytest.fixture(scope="module")
def refusing() -> Iterator[Server]:
    with serving(Deaf()) as server:
        yield server


def received(socket: ClientConnection) -> list[dict[str, Any]]:
    messages = []
    try:
        while True:
            messages.append(json.loads(socket.recv(timeout=60)))
    except ConnectionClosed:
        return messages


def transcribed(server: Server, **fields: str) -> str:
    answer = httpx.post(
        server.http + "/v1/audio/transcriptions",
        files={"file": ("a.wav", wav(SOUND))},
        data=fields,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    if "stream" in fields:
        return json.loads(answer.text.split("data: ")[-2])["text"]
    return answer.json()["text"]


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}])
def test_terms_in_the_prompt_of_a_recording(unsure: Server, fields: dict[str, str]) -> None:
    assert PHRASE not in transcribed(unsure, **fields)
    assert PHRASE in transcribed(unsure, **fields, prompt=f"Ada Lovelace, {PHRASE}")
    # What the model cannot write is left out, and so is prose.
    assert PHRASE in transcribed(unsure, **fields, prompt=f"日本語\n{PHRASE}")
    assert PHRASE not in transcribed(
        unsure, **fields, prompt=f"I think that the code was {PHRASE}, and no other"
    )


def realtime(server: Server, **transcription: object) -> str:
    with connect(f"{server.ws}/v1/realtime?intent=transcription") as socket:
        input = {
            "format": {"type": "audio/pcm", "rate": 16_000},
            "turn_detection": None,
            "transcription": {"delay": "high", **transcription},
        }
        session = {"audio": {"input": input}}
        socket.send(json.dumps({"type": "session.update", "session": session}))
        audio = base64.b64encode(pcm(SOUND)).decode()
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        while True:
            event = json.loads(socket.recv(timeout=60))
            assert event["type"] != "error", event
            if event["type"].endswith(".completed"):
                return str(event["transcript"])


def test_terms_in_the_prompt_of_a_session(unsure: Server) -> None:
    assert PHRASE not in realtime(unsure)
    assert PHRASE in realtime(unsure, prompt=f"{PHRASE}\nAda")
    assert PHRASE in realtime(unsure, keywords=[PHRASE])
    assert PHRASE not in realtime(unsure, keywords=7, prompt=["odd"])


def listened(server: Server, query: str) -> str:
    with connect(server.ws + LISTEN + query) as socket:
        socket.send(pcm(SOUND))
        socket.send(json.dumps({"type": "CloseStream"}))
        found = [m for m in received(socket) if m["type"] == "Results" and m["is_final"]]
        assert socket.close_code == 1000
    return " ".join(m["channel"]["alternatives"][0]["transcript"] for m in found)


def posted(server: Server, query: str) -> str:
    answer = httpx.post(server.http + LISTEN + query, content=wav(SOUND), timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]["channels"][0]["alternatives"][0]["transcript"]


@pytest.mark.parametrize("heard", [listened, posted])
def test_deepgram_keyterms_and_keywords_boost(unsure: Server, heard: Any) -> None:
    assert PHRASE not in heard(unsure, "")
    assert PHRASE in heard(unsure, f"&keyterm=Ada&keyterm={PHRASE}")
    assert PHRASE in heard(unsure, f"&keywords=ada:0.01&keywords={PHRASE}")
    assert PHRASE in heard(unsure, f"&keywords={PHRASE}:1.5")
    assert PHRASE not in heard(unsure, f"&keywords={PHRASE}:-10")


@contextmanager
def stream(server: Server, boost: object) -> Iterator[tuple[ClientConnection, dict[str, Any]]]:
    first = {"type": "start", "endpoint": None, "boost": boost}
    with connect(f"{server.ws}/v1/stream") as socket:
        socket.send(json.dumps(first))
        yield socket, json.loads(socket.recv(timeout=60))


def said(socket: ClientConnection) -> str:
    socket.send(json.dumps({"type": "finish"}))
    while (event := json.loads(socket.recv(timeout=60)))["type"] != "final":
        pass
    return str(event["text"])


@pytest.mark.parametrize(
    ("boost", "written"),
    [
        (None, False),
        ([PHRASE], True),
        ([{"text": PHRASE, "weight": 1.5}, "the sea"], True),
        ([{"text": PHRASE, "weight": 0.001}], False),
    ],
)
def test_phrases_of_our_own_socket(unsure: Server, boost: object, written: bool) -> None:
    with stream(unsure, boost) as (socket, _):
        socket.send(pcm(SOUND))
        assert (PHRASE in said(socket)) == written


def test_a_stream_that_was_parked_keeps_its_phrases(unsure: Server) -> None:
    with stream(unsure, [PHRASE]) as (socket, ready):
        socket.send(pcm(SOUND[:RATE]))
        socket.socket.close()
    unsure.wait_until_empty()
    with connect(f"{unsure.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "resume", "stream": ready["stream"], "events": 0}))
        frames = json.loads(socket.recv(timeout=60))["frames"]
        socket.send(pcm(SOUND[RATE * frames :]))
        assert PHRASE in said(socket)


def test_what_cannot_be_boosted_is_refused_by_name(unsure: Server) -> None:
    for boost in (PHRASE, [7], [{"weight": 1}], [{"text": "a", "weight": 9}], ["日本語"], [""]):
        with stream(unsure, boost) as (socket, answer):
            assert answer["type"] == "error" and answer["message"], boost
            assert received(socket) == [] and socket.close_code == 1008
    for query, what in (("&keyterm=日本語", "cannot write"), ("&keywords=ada:very", "a number")):
        with connect(unsure.ws + LISTEN + query) as socket:
            assert received(socket) == []
            assert socket.close_code == 1008 and what in str(socket.close_reason)
        answer = httpx.post(unsure.http + LISTEN + query, content=wav(SOUND))
        assert answer.status_code == 400 and what in answer.json()["err_msg"]


def test_a_model_without_a_search_for_phrases_ignores_hints_and_refuses_demands(
    refusing: Server,
) -> None:
    assert transcribed(refusing, prompt=PHRASE) == "what"
    assert realtime(refusing, prompt=PHRASE) == "what"
    with connect(refusing.ws + LISTEN + "&keyterm=ada") as socket:
        assert received(socket) == [] and "cannot boost" in str(socket.close_reason)
    answer = httpx.post(refusing.http + LISTEN + "&keyterm=ada", content=wav(SOUND), timeout=60)
    assert answer.status_code == 400 and "cannot boost" in answer.json()["err_msg"]
    with stream(refusing, ["ada"]) as (socket, answer):
        assert answer["type"] == "error"


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("", []),
        (" Ada Lovelace, Babbage.\n\nAda Lovelace,", ["Ada Lovelace", "Babbage"]),
        ("a b c d e", ["a b c d e"]),
        ("a b c d e f, Ada", []),
        (",".join(map(str, range(50))), [*map(str, range(50))]),
        (",".join(map(str, range(51))), []),
        ("x" * 201, []),
    ],
)
def test_a_prompt_is_a_list_of_terms_or_prose(prompt: str, found: list[str]) -> None:
    assert [asdict(phrase) for phrase in terms(prompt)] == [
        {"text": text, "weight": 1.0} for text in found
    ]


def test_a_shadow_hears_the_same_phrases(folder: Path, refusing: Server) -> None:
    """And where it cannot be told of any it hears the sound without them."""
    with serving(None, Settings(models=(f"a={folder}", f"b={folder}"), device="cpu")) as server:
        server.service.store.set_shadow(ShadowRule("b"))
        with stream(server, [PHRASE]) as (socket, _):
            socket.send(pcm(SOUND))
            assert PHRASE in said(socket)
            assert json.loads(socket.recv(timeout=60))["type"] == "end"
            socket.send(json.dumps({"type": "ack", "events": 9}))
        live = until_compared(server)
        assert PHRASE in transcribed(server, prompt=PHRASE)
        assert until_compared(server) > live > 0
        assert metric(server, "pianissimo_shadow_edits_total") == 0
        assert metric(server, "pianissimo_shadow_dropped_total") == 0
    model = next(iter(refusing.service.store.models.values()))
    assert model.hints([PHRASE]) == []


def until_compared(server: Server) -> float:
    """How many words the shadow was compared with, once it has nothing to do any more."""
    end = time.monotonic() + 60
    while server.service.shadows.tasks:
        assert time.monotonic() < end, "the shadow did not end"
        time.sleep(0.02)
    return metric(server, "pianissimo_shadow_words_total")


def metric(server: Server, name: str) -> float:
    page = httpx.get(server.http + "/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", page, re.M))
