"""OpenAI's realtime dialect over a real socket: sessions, turns and commits."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import soxr
from serving import RATE, Server, pcm, serving, speech
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.audio_in.pcm import ALAW, MULAW
from pianissimo.serve.dialects.sockets import Client
from pianissimo.serve.settings import Settings

DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
NUMBER = "enter four five two nine"


class Talk:
    """One socket, and what came from it."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.events = socket, list[dict[str, Any]]()

    def send(self, kind: str, **fields: object) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def update(self, turns: object = None, **input: object) -> dict[str, Any]:
        settings = {"turn_detection": turns, **input}
        self.send("session.update", session={"type": "transcription", "audio": {"input": settings}})
        return self.until("session.updated")

    def append(self, data: bytes, block: int = 2400) -> None:
        for start in range(0, len(data), block):
            audio = base64.b64encode(data[start : start + block]).decode()
            self.send("input_audio_buffer.append", audio=audio)

    def until(self, kind: str, count: int = 1) -> dict[str, Any]:
        """The event of that type that comes as number `count` from now."""
        while True:
            event = json.loads(self.socket.recv(timeout=60))
            self.events.append(event)
            count -= event["type"] == kind
            if count == 0:
                return event

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def closed(self) -> int | None:
        """The code with which the server closed."""
        try:
            while True:
                self.events.append(json.loads(self.socket.recv(timeout=60)))
        except ConnectionClosed:
            return self.socket.close_code


@contextmanager
def talking(server: Server, query: str = "intent=transcription", **options: Any) -> Iterator[Talk]:
    with connect(f"{server.ws}/v1/realtime?{query}", **options) as socket:
        yield Talk(socket)


def sound(rate: int = 24_000) -> bytes:
    return pcm(soxr.resample(speech(2.5), RATE, rate))


def check(talk: Talk) -> None:
    """What holds for every conversation."""
    committed = [event["item_id"] for event in talk.of("input_audio_buffer.committed")]
    completed = [event["item_id"] for event in talk.of(COMPLETED)]
    assert sorted(committed) == sorted(completed)
    assert len(set(committed)) == len(committed)
    for event in talk.of(COMPLETED):
        deltas = [e["delta"] for e in talk.of(DELTA) if e["item_id"] == event["item_id"]]
        assert "".join(deltas) == event["transcript"]
    previous = None
    for event in talk.of("input_audio_buffer.committed"):
        assert event["previous_item_id"] == previous
        previous = event["item_id"]
    assert len({event["event_id"] for event in talk.events}) == len(talk.events)
    assert not talk.of("error")


# -- sessions --------------------------------------------------------------------------------------


def test_a_session_is_shown_and_changed_in_parts(server: Server) -> None:
    with talking(server, "intent=transcription&model=gpt-realtime-whisper") as talk:
        created = talk.until("session.created")["session"]
        assert created["object"] == "realtime.transcription_session"
        assert created["type"] == "transcription" and created["id"].startswith("sess_")
        assert created["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
        vad = {"type": "server_vad", "silence_duration_ms": 700}
        transcription = {"model": "gpt-4o-transcribe", "language": "en", "prompt": "x"}
        session = talk.update(vad, transcription=transcription)["session"]
        assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 700
        assert session["audio"]["input"]["turn_detection"]["prefix_padding_ms"] == 300
        talk.send("session.update", session={"include": []})
        session = talk.until("session.updated")["session"]
        assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 700
        assert session["audio"]["input"]["transcription"] == transcription
        assert session["id"] == created["id"]
        old = {"input_audio_format": "g711_ulaw", "turn_detection": None}
        talk.send("transcription_session.update", session=old)
        session = talk.until("session.updated")["session"]
        assert session["audio"]["input"]["format"] == {"type": "audio/pcmu"}
        assert session["audio"]["input"]["turn_detection"] is None
        check(talk)


def test_invalid_messages_are_reported_and_change_nothing(server: Server) -> None:
    def input(**fields: object) -> dict:
        return {"session": {"audio": {"input": fields}}}

    with talking(server) as talk:
        before = talk.until("session.created")["session"]
        for number, (kind, fields, code) in enumerate(
            [
                ("session.update", {"session": {"type": "realtime"}}, "invalid_value"),
                ("session.update", input(format={"type": "audio/pcm", "rate": 7}), "invalid_value"),
                ("session.update", input(turn_detection={"type": "magic"}), "invalid_value"),
                ("session.update", input(transcription={"language": "de"}), "invalid_option"),
                ("session.update", input(transcription={"model": "nova"}), "model_not_found"),
                ("session.update", {"session": 7}, "invalid_value"),
                ("input_audio_buffer.append", {"audio": "?"}, "invalid_audio"),
                ("input_audio_buffer.append", {}, "invalid_audio"),
                ("response.create", {}, "unknown_type"),
            ]
        ):
            talk.send(kind, event_id=f"mine_{number}", **fields)
            error = talk.until("error")["error"]
            assert (error["code"], error["event_id"]) == (code, f"mine_{number}")
            assert error.keys() == {"type", "code", "message", "param", "event_id"}
        talk.socket.send("{")
        assert talk.until("error")["error"]["code"] == "invalid_json"
        talk.send("session.update", session={})
        after = talk.until("session.updated")["session"]
        assert after == before


# -- commits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000, 48_000])
def test_a_commit_is_completed_with_the_words(words_server: Server, rate: int) -> None:
    with talking(words_server) as talk:
        include = ["item.input_audio_transcription.logprobs"]
        talk.send("session.update", session={"include": include})
        talk.update(None, format={"type": "audio/pcm", "rate": rate})
        talk.append(sound(rate))
        talk.send("input_audio_buffer.commit")
        completed = talk.until(COMPLETED)
        assert completed["transcript"].startswith("enter four")
        assert completed["usage"] == {"type": "duration", "seconds": 3}
        tokens = [entry["token"] for entry in completed["logprobs"]]
        assert "".join(tokens) == completed["transcript"]
        assert len(talk.of(DELTA)) >= 2
        check(talk)
        order = [event["type"] for event in talk.events if event["type"] != DELTA]
        assert order[3:] == [
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            COMPLETED,
        ]


def test_every_commit_is_answered_also_an_empty_one(words_server: Server) -> None:
    with talking(words_server) as talk:
        talk.update(None)
        talk.send("input_audio_buffer.commit")
        for _ in range(3):
            talk.append(sound())
            talk.send("input_audio_buffer.commit")
            talk.send("input_audio_buffer.commit")
        talk.until(COMPLETED, 7)
        check(talk)
        texts = [event["transcript"] for event in talk.of(COMPLETED)]
        assert texts[0::2] == [""] * 4 and texts[1] == NUMBER and all(texts[1::2])


def test_strict_commits_of_nothing_are_an_error(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(strict_commits=True)) as server, talking(server) as talk:
        talk.send("input_audio_buffer.commit")
        error = talk.until("error")["error"]
        assert error["code"] == "input_audio_buffer_commit_empty"


def test_clear_forgets_what_was_not_committed(words_server: Server) -> None:
    with talking(words_server) as talk:
        talk.update(None)
        talk.append(sound())
        talk.send("input_audio_buffer.clear")
        talk.send("input_audio_buffer.commit")
        assert talk.until(COMPLETED)["transcript"] == ""
        assert len(talk.of("input_audio_buffer.cleared")) == 1
        talk.append(sound())
        talk.send("input_audio_buffer.commit")
        assert "four five" in talk.until(COMPLETED)["transcript"]
        check(talk)


def test_a_long_item_is_one_item(words_server: Server) -> None:
    """Longer than what the engine keeps open: its text is locked in between."""
    long = pcm(np.tile(speech(2.5), 16))
    with talking(words_server) as talk:
        talk.update(None, format={"type": "audio/pcm", "rate": RATE})
        talk.append(long, 32_000)
        talk.send("input_audio_buffer.commit")
        assert talk.until(COMPLETED)["transcript"].count("five") >= 11
        check(talk)


# -- turns -----------------------------------------------------------------------------------------


def test_pauses_make_turns(words_server: Server) -> None:
    pause = bytes(2 * 24_000 * 3)
    with talking(words_server) as talk:
        talk.append(sound() + pause + sound() + pause)
        talk.until(COMPLETED, 2)
        check(talk)
        starts = talk.of("input_audio_buffer.speech_started")
        stops = talk.of("input_audio_buffer.speech_stopped")
        items = [event["item_id"] for event in talk.of(COMPLETED)]
        assert [event["item_id"] for event in starts] == items
        assert [event["item_id"] for event in stops] == items
        times = [start["audio_start_ms"] for start in starts], [s["audio_end_ms"] for s in stops]
        assert 0 <= times[0][0] < times[1][0] <= 3000
        assert 4500 <= times[0][1] < times[1][1] <= 9000
        # A commit while turns are found is answered as well.
        talk.send("input_audio_buffer.commit")
        assert talk.until(COMPLETED)["transcript"] == ""
        check(talk)


def test_a_session_changed_in_between_loses_nothing(words_server: Server) -> None:
    with talking(words_server) as talk:
        talk.update(None)
        talk.append(sound())
        talk.update(None, format={"type": "audio/pcmu"})
        coded = soxr.resample(speech(2.5), RATE, 8000)
        talk.append(encode(coded, MULAW))
        talk.update(None, format={"type": "audio/pcma"}, transcription={"delay": "minimal"})
        talk.append(encode(coded, ALAW))
        talk.send("input_audio_buffer.commit")
        completed = talk.until(COMPLETED)
        assert completed["transcript"].count("four") == 3
        assert completed["usage"]["seconds"] == 8
        check(talk)
    words_server.wait_until_empty()


def encode(samples: np.ndarray, table: np.ndarray) -> bytes:
    """The nearest level of a G.711 table for each sample."""
    order = np.argsort(table, kind="stable")
    levels = table[order].astype(np.float64)
    nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, samples * 32767)
    return order[nearest].astype(np.uint8).tobytes()


# -- keys and ends ---------------------------------------------------------------------------------


def test_secrets_open_the_socket_and_nothing_else(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(api_keys=("k",))) as server:
        url, headers = server.http + "/v1/realtime/client_secrets", {"authorization": "Bearer k"}
        assert httpx.post(url, json={}).status_code == 401
        body = {
            "expires_after": {"anchor": "created_at", "seconds": 60},
            "session": {"type": "transcription", "audio": {"input": {"turn_detection": None}}},
        }
        made = httpx.post(url, json=body, headers=headers).json()
        assert made["value"].startswith("ek_") and made["session"]["type"] == "transcription"
        wrong = {"expires_after": {"seconds": 9e9}}
        assert httpx.post(url, json=wrong, headers=headers).status_code == 400
        protocols = ["realtime", f"openai-insecure-api-key.{made['value']}"]
        with talking(server, subprotocols=protocols) as talk:
            assert talk.socket.subprotocol == "realtime"
            session = talk.until("session.created")["session"]
            assert session["audio"]["input"]["turn_detection"] is None
        bearer = {"authorization": f"Bearer {made['value']}"}
        assert httpx.get(server.http + "/v1/models", headers=bearer).status_code == 401
        with talking(server) as talk:
            assert talk.closed() == 1008
        with talking(server, additional_headers=headers) as talk:
            talk.until("session.created")
        old = httpx.post(
            server.http + "/v1/realtime/transcription_sessions",
            json={"input_audio_format": "g711_alaw"},
            headers=headers,
        ).json()
        assert old["client_secret"]["value"].startswith("ek_")
        assert old["audio"]["input"]["format"] == {"type": "audio/pcma"}


def test_a_full_server_says_come_back(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(max_streams=1)) as server, talking(server) as first:
        first.until("session.created")
        with talking(server) as second:
            assert second.closed() == 1013
        assert httpx.get(server.http + "/readyz").status_code == 503


def test_a_server_that_ends_closes_with_1012(
    tiny: NativeRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if audio is on its way that the server has not read."""
    reading = threading.Event()

    async def waits(client: Client, idle_seconds: float | None = None) -> str | bytes:
        await asyncio.to_thread(reading.wait)
        return await receive(client, idle_seconds)

    receive = Client.receive
    monkeypatch.setattr(Client, "receive", waits)
    with ExitStack() as stack:
        with serving(tiny) as server:
            talk = stack.enter_context(talking(server))
            talk.until("session.created")
            talk.append(sound() * 4)  # more than one read of the socket
            threading.Timer(0.5, reading.set).start()
        with pytest.raises(ConnectionClosed) as end:
            talk.until("never")
        assert talk.socket.close_code == 1012
        assert end.value.__cause__ is None, "the connection was reset"


def test_a_stream_that_breaks_fails_its_commits(tiny: NativeRecognizer) -> None:
    with serving(tiny) as server, talking(server) as talk:
        talk.update(None)
        engine = server.service.engine
        assert engine is not None

        def broken(*arguments: object) -> None:
            raise RuntimeError("the device is gone")

        engine.runner.finish = broken  # type: ignore[method-assign]
        talk.append(sound())
        talk.send("input_audio_buffer.commit")
        assert talk.closed() == 1013
        (failed,) = talk.of("conversation.item.input_audio_transcription.failed")
        (committed,) = talk.of("input_audio_buffer.committed")
        assert failed["item_id"] == committed["item_id"]
        assert failed["error"]["code"] == "engine_failed" and not talk.of(COMPLETED)
