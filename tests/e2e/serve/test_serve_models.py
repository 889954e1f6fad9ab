"""Several models behind one port: chosen by name, split, shadowed and swapped while they serve."""

import base64
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serving import Server, pcm, serving, speech, wav
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings
from pianissimo.serve.versions import shadow

BOSS = {"authorization": "Bearer boss"}
SOUND = speech(4.0)


@pytest.fixture(scope="module")
def other_model_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, but for the words it says."""
    folder = tmp_path_factory.mktemp("models") / "other"
    model, tokenizer = load_model(tiny_model_folder)
    assert model.joiner is not None
    with torch.no_grad():
        words = model.config.vocab_size
        for tensor in (model.joiner.out.weight, model.joiner.out.bias):
            tensor[:words] = tensor[:words].roll(7, 0)
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture
def place(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """Where the model `a` is read from."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "a"))


def recognizers(server: Server) -> list[str]:
    """The names in /v1/models but those of voices."""
    listed = httpx.get(server.http + "/v1/models").json()["data"]
    return [each["id"] for each in listed if each["task"] != "text-to-speech"]


@contextmanager
def two(place: Path, other: Path, **settings: Any) -> Iterator[Server]:
    given = Settings(
        models=(f"a={place}", f"b={other}"),
        spare_models=(f"c={other}", "d=/nowhere"),
        device="cpu",
        admin_key="boss",
        **settings,
    )
    with serving(None, given) as server:
        yield server


def admin(server: Server, method: str, path: str, **options: Any) -> httpx.Response:
    url = f"{server.http}/admin/{path}"
    return httpx.request(method, url, headers=BOSS, timeout=60, **options)


def done(server: Server, method: str, path: str, **options: Any) -> dict[str, Any]:
    answer = admin(server, method, path, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def put(by: Path, place: Path) -> None:
    """Put another model into a place, as the documentation advises."""
    shutil.copytree(by, place.with_name("new"))
    place.rename(place.with_name("old"))
    place.with_name("new").rename(place)


def transcribed(server: Server, **fields: str) -> str:
    answer = httpx.post(
        server.http + "/v1/audio/transcriptions",
        files={"file": ("a.wav", wav(SOUND))},
        data=fields,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["text"]


def metric(server: Server, name: str, **labels: str) -> float:
    """The sum of a metric over all label sets that have these labels."""
    page = httpx.get(server.http + "/metrics", headers=BOSS).text
    total = 0.0
    for found, value in re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", page, re.M):
        if all(f'{label}="{text}"' in found for label, text in labels.items()):
            total += float(value)
    return total


class Stream:
    """One of our own sockets."""

    def __init__(self, socket: ClientConnection, **first: Any) -> None:
        self.socket = socket
        socket.send(json.dumps({"type": "start", "latency_ms": 560, "endpoint": None, **first}))
        self.ready = json.loads(socket.recv(timeout=60))

    def send(self, seconds: float) -> None:
        self.socket.send(pcm(SOUND[: round(seconds * 16_000)]))

    def said(self, kind: str = "finish") -> str:
        self.socket.send(json.dumps({"type": kind}))
        while (event := json.loads(self.socket.recv(timeout=60)))["type"] != "final":
            pass
        return event["text"]


@contextmanager
def stream(server: Server, **first: Any) -> Iterator[Stream]:
    with connect(f"{server.ws}/v1/stream") as socket:
        yield Stream(socket, **first)


def heard(server: Server, place: str, **query: str) -> str:
    """The text of a Deepgram or realtime socket, by the model that its address names."""
    address = "&".join(f"{name}={value}" for name, value in query.items())
    with connect(f"{server.ws}{place}{address}") as socket:
        if "realtime" in place:
            input = {"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": None}
            session = {"audio": {"input": input}}
            socket.send(json.dumps({"type": "session.update", "session": session}))
            audio = base64.b64encode(pcm(SOUND)).decode()
            socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        else:
            socket.send(pcm(SOUND))
            socket.send(json.dumps({"type": "Finalize"}))
        while True:
            event = json.loads(socket.recv(timeout=60))
            if "transcript" in event:
                return event["transcript"]
            if event.get("from_finalize"):
                return event["channel"]["alternatives"][0]["transcript"]


# -- by name ---------------------------------------------------------------------------------------


def test_every_dialect_lets_the_client_choose(
    place: Path, other_model_folder: Path, tiny: NativeRecognizer
) -> None:
    listen = "/v1/listen?encoding=linear16&sample_rate=16000&endpointing=false&"
    realtime = "/v1/realtime?intent=transcription&"
    with two(place, other_model_folder) as server:
        names = recognizers(server)
        assert names == ["a", "b"]
        assert httpx.get(server.http + "/v1/models/c").status_code == 404
        first = transcribed(server, model="a")
        second = transcribed(server, model="b")
        assert first and second and first != second
        assert transcribed(server) == transcribed(server, model="whisper-1") == first
        for where, unknown in ((listen, "nova-3"), (realtime, "gpt-realtime-whisper")):
            texts = {model: heard(server, where, model=model) for model in ("a", "b", unknown)}
            assert texts["a"] == texts[unknown] != texts["b"]
        with stream(server, model="b") as one, stream(server) as two_:
            assert (one.ready["model"], two_.ready["model"]) == ("b", "a")
            one.send(4.0)
            two_.send(4.0)
            assert one.said() != two_.said()
        assert metric(server, "pianissimo_engine_finals_total", model="b") == 3
        for model in "ab":
            assert metric(server, "pianissimo_sessions_total", model=model) >= 4
            assert metric(server, "pianissimo_time_to_final_seconds_count", model=model) >= 3


# -- the operator's interface ----------------------------------------------------------------------


def test_admin_needs_its_own_key(tiny: NativeRecognizer, place: Path) -> None:
    with serving(tiny) as server:
        assert httpx.get(server.http + "/admin/models").status_code == 403
    with serving(tiny, Settings(api_keys=("k",), admin_key="boss")) as server:
        for headers in ({}, {"authorization": "Bearer k"}, {"authorization": "Bearer bos"}):
            for method, path in (("GET", "models"), ("POST", "drain"), ("PUT", "splits/x")):
                url = f"{server.http}/admin/{path}"
                assert httpx.request(method, url, headers=headers).status_code == 401
        assert done(server, "GET", "models")["draining"] is False
        # This one was handed over and has no place.
        assert admin(server, "POST", "models/tiny/swap").status_code == 409


def test_nonsense_for_the_operator_changes_nothing(place: Path, other_model_folder: Path) -> None:
    with two(place, other_model_folder) as server:
        before = done(server, "GET", "models")
        assert [model["name"] for model in before["models"]] == ["a", "b", "c", "d"]
        for method, path, body, status in (
            ("POST", "models/e/load", None, 404),
            ("POST", f"models/{place}/load", None, 404),
            ("POST", "models/..%2F..%2Fetc/swap", None, 404),
            ("POST", "models/a/load", None, 409),
            ("POST", "models/c/swap", None, 409),
            ("POST", "models/d/load", None, 404),
            ("POST", "models/a/unload", None, 409),
            ("PUT", "splits/a", {"weights": {"b": 1}}, 409),
            ("PUT", "splits/x", {"weights": {"c": 1}}, 409),
            ("PUT", "splits/x", {"weights": {"e": 1}}, 404),
            ("PUT", "splits/x", {"weights": {"a": 0}}, 400),
            ("PUT", "splits/x", {"weights": {"a": "1"}}, 400),
            ("PUT", "splits/x", {"weights": {"a": 1}, "bye": "key"}, 400),
            ("PUT", "splits/x", {"weights": {"a": 1}, "by": "weather"}, 400),
            ("PUT", "splits/x", {"weights": {"a": 1}, "by": {}}, 400),
            ("PUT", "splits/x", [1], 400),
            ("DELETE", "splits/x", None, 404),
            ("PUT", "shadow", {"model": "e"}, 404),
            ("PUT", "shadow", {"model": 7}, 400),
            ("PUT", "shadow", {"model": "a", "of": "a"}, 400),
            ("PUT", "shadow", {"model": "a", "share": 2}, 400),
        ):
            answer = admin(server, method, path, json=body)
            assert answer.status_code == status, (method, path, body, answer.text)
            assert answer.json()["error"]["message"]
        assert done(server, "GET", "models") == before
        assert transcribed(server)


# -- swaps -----------------------------------------------------------------------------------------


def test_a_swap_drops_no_stream(place: Path, other_model_folder: Path) -> None:
    with two(place, other_model_folder) as server:
        with stream(server, model="b") as other, stream(server) as old:
            other.send(4.0)
            after = other.said()
            old.send(2.0)
            before = old.said("finalize")
            put(other_model_folder, place)
            state = done(server, "POST", "models/a/swap")
            (model,) = [each for each in state["models"] if each["name"] == "a"]
            assert model["version"] == 2
            assert [each["version"] for each in model["retired"]] == [1]
            with stream(server) as new:
                new.send(4.0)
                assert new.said() == after
            old.send(2.0)
            assert old.said("finalize")
            assert metric(server, "pianissimo_models_draining", model="a") == 1
            opened = metric(server, "pianissimo_engine_streams_opened_total", model="a")
            assert old.said("finish") == ""
        deadline = time.monotonic() + 60
        while done(server, "GET", "models")["models"][0]["retired"]:
            assert time.monotonic() < deadline, "the old weights are kept"
            time.sleep(0.05)
        # What the old one did still counts.
        assert metric(server, "pianissimo_engine_streams_opened_total", model="a") == opened
        with stream(server) as third:
            third.send(2.0)
            assert third.said() not in (before, "")


def test_models_come_and_go(place: Path, other_model_folder: Path) -> None:
    with two(place, other_model_folder) as server:
        done(server, "POST", "models/c/load")
        assert transcribed(server, model="c") == transcribed(server, model="b")
        with stream(server, model="c") as kept:
            done(server, "POST", "models/c/unload")
            with connect(f"{server.ws}/v1/stream") as socket:
                socket.send(json.dumps({"type": "start", "model": "c"}))
                assert json.loads(socket.recv(timeout=60))["code"] == "model_not_found"
            kept.send(4.0)
            assert kept.said()
        names = recognizers(server)
        assert names == ["a", "b"]


# -- splits ----------------------------------------------------------------------------------------


def test_a_split_is_sticky_and_counted(place: Path, other_model_folder: Path) -> None:
    with two(place, other_model_folder, max_files=8) as server:
        texts = {model: transcribed(server, model=model) for model in "ab"}
        split = {"weights": {"a": 1, "b": 1}, "by": "user"}
        assert done(server, "PUT", "splits/trial", json=split)["splits"] == {"trial": split}
        names = recognizers(server)
        assert names == ["a", "b", "trial"]

        def arm(user: str) -> str:
            text = transcribed(server, model="trial", user=user)
            return next(model for model, same in texts.items() if same == text)

        users = [f"user {i}" for i in range(6)]
        arms = {user: arm(user) for user in users}
        assert set(arms.values()) == {"a", "b"}
        assert {user: arm(user) for user in users} == arms
        for user in users[:3]:
            with stream(server, model="trial", user=user) as one:
                assert one.ready["model"] == arms[user]
        sessions = {
            model: metric(server, "pianissimo_sessions_total", model=model, experiment="trial")
            for model in "ab"
        }
        assert sum(sessions.values()) == 2 * len(users) + 3 and min(sessions.values()) > 0
        done(server, "PUT", "splits/trial", json={"weights": {"a": 0, "b": 1}, "by": "user"})
        assert arm(next(user for user in users if arms[user] == "a")) == "b"
        done(server, "PUT", "splits/pianissimo", json={"weights": {"b": 1}})
        assert transcribed(server) == transcribed(server, model="whisper-1") == texts["b"]
        done(server, "DELETE", "splits/pianissimo")
        done(server, "DELETE", "splits/trial")
        assert transcribed(server) == texts["a"]


def test_a_running_session_keeps_its_arm(place: Path, other_model_folder: Path) -> None:
    with two(place, other_model_folder) as server:
        done(server, "PUT", "splits/trial", json={"weights": {"a": 1, "b": 0}})
        address = f"{server.ws}/v1/realtime?model=trial"
        with connect(address) as socket, stream(server, model="trial") as ours:
            ours.send(2.0)
            done(server, "PUT", "splits/trial", json={"weights": {"a": 0, "b": 1}})
            changed = {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}
            socket.send(json.dumps({"type": "session.update", "session": changed}))
            socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
            while "transcript" not in json.loads(socket.recv(timeout=60)):
                pass
            assert ours.said()
            assert metric(server, "pianissimo_sessions_total", model="b") == 0
            assert metric(server, "pianissimo_sessions_total", model="a") == 2


# -- the shadow ------------------------------------------------------------------------------------


def settled(server: Server, **expected: float) -> dict[str, float]:
    """The numbers of the shadow, once those expected are there."""
    deadline = time.monotonic() + 60
    while True:
        found = {
            name: metric(server, f"pianissimo_shadow_{name}_total")
            for name in ("words", "edits", "dropped")
        }
        if all(found[name] >= value for name, value in expected.items()):
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


def test_a_shadow_that_is_the_same_differs_in_nothing(place: Path, tiny_model_folder: Path) -> None:
    with two(place, tiny_model_folder) as server:
        done(server, "PUT", "shadow", json={"model": "b", "of": "a"})
        with stream(server, model="a") as one:
            one.send(4.0)
            middle = one.said("finalize")
            one.send(2.0)
            words = len(middle.split()) + len(one.said("finish").split())
        whole = len(transcribed(server, model="a").split())
        listen = "/v1/listen?encoding=linear16&sample_rate=16000&endpointing=false&"
        live = len(heard(server, listen, model="a").split())
        transcribed(server, model="b")
        assert min(words, whole, live) > 3
        found = settled(server, words=words + whole + live)
        assert found == {"words": words + whole + live, "edits": 0, "dropped": 0}


def test_shadow_differences_are_counted_and_not_sent(place: Path, other_model_folder: Path) -> None:
    with two(place, other_model_folder) as server:
        with stream(server, model="a") as one:
            one.send(4.0)
            alone = one.said()
        done(server, "PUT", "shadow", json={"model": "b"})
        with stream(server, model="a") as one:
            one.send(4.0)
            assert one.said() == alone
        found = settled(server, words=len(alone.split()))
        assert found["words"] == len(alone.split()) and found["edits"] > 0
        assert found["dropped"] == 0


@pytest.mark.parametrize("trouble", ["fails", "hangs"])
def test_a_shadow_in_trouble_is_no_trouble(
    place: Path, tiny_model_folder: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "MOST_WAITING_SECONDS", 5.0)
    with two(place, tiny_model_folder) as server:
        with stream(server, model="a") as one:
            one.send(4.0)
            alone = one.said()
        engine = server.service.store.models["b"].engine
        assert engine is not None
        engine.options = replace(engine.options, backlog_seconds=5.0)
        over = threading.Event()

        def broken(*arguments: object) -> None:
            if trouble == "hangs":
                over.wait(120)
            raise RuntimeError("the shadow's device is gone")

        engine.runner.step = broken  # type: ignore[method-assign]
        engine.runner.finish = broken  # type: ignore[method-assign]
        done(server, "PUT", "shadow", json={"model": "b"})
        try:
            with stream(server, model="a") as one:
                for _ in range(4 if trouble == "hangs" else 1):
                    one.send(4.0)
                    assert one.said("finalize")
                with stream(server, model="a") as other:
                    other.send(4.0)
                    assert other.said() == alone
                settled(server, dropped=1)
        finally:
            over.set()
        server.wait_until_empty(60)
        assert httpx.get(server.http + "/readyz").status_code == 200


# -- readiness and draining ------------------------------------------------------------------------


def test_a_stopped_engine_is_reported(place: Path, other_model_folder: Path) -> None:
    with two(place, other_model_folder) as server:
        engine = server.service.store.models["b"].engine
        assert engine is not None

        def broken(*arguments: object) -> None:
            raise SystemExit("the device is gone")

        engine.runner.step = broken  # type: ignore[method-assign]
        with connect(f"{server.ws}/v1/stream") as socket:
            with pytest.raises(ConnectionClosed):
                Stream(socket, model="b").send(4.0)
                while True:
                    socket.recv(timeout=60)
            assert socket.close_code == 1013
        for path in ("/ready", "/readyz"):
            ready = httpx.get(server.http + path)
            assert ready.status_code == 503 and "b" in ready.text
        assert httpx.get(server.http + "/health").status_code == 200
        assert metric(server, "pianissimo_engine_alive", model="b") == 0
        assert transcribed(server, model="a")
        done(server, "POST", "models/b/swap")
        assert httpx.get(server.http + "/ready").text == "ready\n"
        assert transcribed(server, model="b")


def test_draining_refuses_new_clients(place: Path, other_model_folder: Path) -> None:
    with two(place, other_model_folder) as server, stream(server) as running:
        running.send(2.0)
        assert done(server, "POST", "drain")["draining"] is True
        assert httpx.get(server.http + "/readyz").text == "draining\n"
        assert metric(server, "pianissimo_draining") == 1
        for path in ("/v1/audio/transcriptions", "/v1/listen"):
            answer = httpx.post(server.http + path, files={"file": ("a.wav", wav(SOUND))})
            assert answer.status_code == 503 and answer.headers["retry-after"]
        for path in ("/v1/stream", "/v1/realtime", "/v1/listen?encoding=linear16"):
            with connect(server.ws + path) as socket:
                if "stream" in path:
                    socket.send(json.dumps({"type": "start"}))
                with pytest.raises(ConnectionClosed):
                    while True:
                        socket.recv(timeout=60)
                assert socket.close_code == 1013
        # The running one goes on, also on another connection.
        resume = {"type": "resume", "stream": running.ready["stream"], "events": 0}
        with connect(f"{server.ws}/v1/stream") as socket:
            socket.send(json.dumps(resume))
            assert json.loads(socket.recv(timeout=60))["type"] == "ready"
        done(server, "DELETE", "drain")
        assert transcribed(server)
