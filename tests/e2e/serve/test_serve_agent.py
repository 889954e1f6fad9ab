"""Spoken conversations over the realtime socket, with a scripted language model."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import soxr
from scripted_llm import FakeLLM, Reply, call, scripted, words
from serving import CLIPS, RATE, Server, pcm, serving
from tiny_voice import TinyVoice
from tone_voice import WORD_SECONDS, ToneVoice
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pianissimo.agent.agent import SILENCE_NOTE
from pianissimo.agent.answer import MOST_CHARACTERS
from pianissimo.audio.io import load_audio
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

OUTPUT_RATE = 24_000
NUMBER = "enter four five two nine"
LONG = "This is a long answer. " * 8
DONE, DELTA = "response.done", "response.output_audio.delta"


class Talk:
    """One socket, and what came from it."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.events = socket, list[dict[str, Any]]()

    def send(self, kind: str, **fields: object) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def update(self, turns: object = ..., **session: object) -> dict[str, Any]:
        heard: dict[str, object] = {"transcription": {"model": "gpt-4o-transcribe"}}
        if turns is not ...:
            heard["turn_detection"] = turns
        self.send(
            "session.update", session={"type": "realtime", "audio": {"input": heard}, **session}
        )
        return self.until("session.updated")["session"]

    def say(self, samples: np.ndarray, *, silence: float = 0.0, realtime: bool = False) -> None:
        """Send samples at 16 kHz as 24 kHz, then silence."""
        data = pcm(soxr.resample(samples, RATE, OUTPUT_RATE)) + bytes(
            2 * round(silence * OUTPUT_RATE)
        )
        for start in range(0, len(data), 4800):
            audio = base64.b64encode(data[start : start + 4800]).decode()
            self.send("input_audio_buffer.append", audio=audio)
            if realtime:
                time.sleep(0.1)

    def until(self, kind: str, count: int = 1, seconds: float = 30.0) -> dict[str, Any]:
        """The event of that type that comes as number `count` from now."""
        while True:
            event = json.loads(self.socket.recv(timeout=seconds))
            self.events.append(event)
            count -= event["type"] == kind
            if count == 0:
                return event

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def kinds(self) -> list[str]:
        """The types of the events in order, repeated ones once."""
        found: list[str] = []
        for event in self.events:
            if not found or found[-1] != event["type"]:
                found.append(event["type"])
        return found

    def audio_seconds(self, since: int = 0) -> float:
        deltas = [e["delta"] for e in self.events[since:] if e["type"] == DELTA]
        return sum(len(base64.b64decode(delta)) for delta in deltas) / 2 / OUTPUT_RATE

    def ask(self, text: str) -> dict[str, Any]:
        """A typed question, and the response to it."""
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content}
        self.send("conversation.item.create", item=item)
        self.send("response.create")
        return self.until(DONE)["response"]


@contextmanager
def agents(
    recognizer: NativeRecognizer, *replies: Reply | str, **settings: Any
) -> Iterator[tuple[Server, FakeLLM, ToneVoice]]:
    """A server with a scripted language model and a voice of tones."""
    voice = ToneVoice()
    with scripted(*replies) as fake:
        given = Settings(llm_url=fake.url, llm_model="scripted", **settings)
        with serving(recognizer, given, {"tone": voice}) as server:
            yield server, fake, voice


@contextmanager
def talking(server: Server, query: str = "model=gpt-realtime") -> Iterator[Talk]:
    with connect(f"{server.ws}/v1/realtime?{query}") as socket:
        talk = Talk(socket)
        talk.until("session.created")
        yield talk


@pytest.fixture(scope="module")
def number() -> np.ndarray:
    return load_audio(CLIPS / "number.flac")


def test_a_turn_is_answered_in_the_order_of_the_dialect(
    embedded: NativeRecognizer, number: np.ndarray
) -> None:
    with agents(embedded, "I heard you. All is well.") as (server, fake, voice):
        with talking(server) as talk:
            session = talk.update()
            assert session["type"] == "realtime" and session["object"] == "realtime.session"
            assert session["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": 24_000}
            talk.say(number, silence=1.0)
            response = talk.until(DONE)["response"]
        order = [kind for kind in talk.kinds() if "transcription.delta" not in kind]
        assert order[:9] == [
            "session.created",
            "session.updated",
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            "conversation.item.input_audio_transcription.completed",
            "response.created",
        ]
        assert order[9:13] == [
            "response.output_item.added",
            "conversation.item.added",
            "response.content_part.added",
            "response.output_audio_transcript.delta",
        ]
        assert order[-7:] == [
            "response.output_audio.delta",
            "response.output_audio.done",
            "response.output_audio_transcript.done",
            "response.content_part.done",
            "response.output_item.done",
            "conversation.item.done",
            "response.done",
        ]
        assert fake.last_user() == NUMBER
        assert response["status"] == "completed" and response["usage"]["output_tokens"] == 6
        said = response["output"][0]["content"][0]
        assert said == {"type": "output_audio", "transcript": "I heard you. All is well."}
        assert voice.spoken == ["I heard you.", "All is well."]
        assert talk.audio_seconds() == pytest.approx(6 * WORD_SECONDS, abs=0.01)
        started = talk.of("input_audio_buffer.speech_started")[0]
        stopped = talk.of("input_audio_buffer.speech_stopped")[0]
        user = talk.of("input_audio_buffer.committed")[0]["item_id"]
        assert started["item_id"] == stopped["item_id"] == user
        assert 0 <= started["audio_start_ms"] < 1000 < stopped["audio_end_ms"] < 2600
        assert not talk.of("error")
        server.wait_until_empty()


def test_speech_stops_an_answer_and_cuts_it_to_what_was_played(
    embedded: NativeRecognizer, number: np.ndarray
) -> None:
    endless = Reply(words(LONG), holds=True)
    with agents(embedded, endless, "Yes.") as (server, fake, _), talking(server) as talk:
        talk.update({"type": "server_vad", "silence_duration_ms": 300})
        talk.say(number, silence=0.6)
        first = talk.until(DELTA)
        time.sleep(1.0)
        talk.say(number, silence=0.8)
        assert talk.until("input_audio_buffer.speech_started")
        cancelled = talk.until(DONE)["response"]
        assert cancelled["status"] == "cancelled"
        assert cancelled["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert cancelled["output"][0]["status"] == "incomplete"
        fake.wait_until_left()
        assert fake.hung_up == 1
        item = first["item_id"]
        talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=1100)
        truncated = talk.until("conversation.item.truncated")
        assert (truncated["item_id"], truncated["audio_end_ms"]) == (item, 1100)
        while not talk.of("response.done")[-1]["response"]["status"] == "completed":
            talk.until(DONE)
        told = fake.requests[-1]["messages"]
        assert [m["role"] for m in told] == ["system", "user", "assistant", "user"]
        heard = told[2]["content"]
        assert heard.endswith(" —") and LONG.startswith(heard.removesuffix(" —"))
        assert 3 <= len(heard.split()) <= 9
        # Nothing of the stopped answer came after its end.
        end = next(i for i, e in enumerate(talk.events) if e["type"] == DONE)
        late = [e for e in talk.events[end:] if e.get("response_id") == cancelled["id"]]
        assert late == []
    server.wait_until_empty()


def test_the_client_decides_without_turn_detection(
    embedded: NativeRecognizer, number: np.ndarray
) -> None:
    with agents(embedded, "Good.") as (server, fake, _), talking(server) as talk:
        talk.update(None)
        talk.send("input_audio_buffer.commit")
        assert talk.until("error")["error"]["code"] == "input_audio_buffer_commit_empty"
        talk.say(number)
        talk.send("input_audio_buffer.clear")
        talk.until("input_audio_buffer.cleared")
        talk.say(number)
        talk.send("input_audio_buffer.commit")
        completed = talk.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == NUMBER
        assert not fake.requests
        talk.send("response.create", response={"metadata": {"a": "b"}, "instructions": "Short."})
        response = talk.until(DONE)["response"]
        assert response["metadata"] == {"a": "b"}
        assert fake.requests[0]["messages"] == [
            {"role": "system", "content": "Short."},
            {"role": "user", "content": NUMBER},
        ]


def test_a_silent_user_is_asked_again(embedded: NativeRecognizer, number: np.ndarray) -> None:
    with agents(embedded, "Good.", "Are you there?", "Fine.") as (server, fake, _):
        with talking(server) as talk:
            turns = {"type": "server_vad", "idle_timeout_ms": 5000}
            assert talk.update(turns)["audio"]["input"]["turn_detection"]["idle_timeout_ms"] == 5000
            silence = np.zeros(7 * RATE, np.float32)
            talk.say(silence)  # before the first answer nothing is asked
            talk.say(number, silence=1.0)
            talk.until(DONE)
            time.sleep(2 * WORD_SECONDS)  # the answer is played
            talk.say(silence)
            idle = talk.until("input_audio_buffer.timeout_triggered")
            assert 5000 <= idle["audio_end_ms"] - idle["audio_start_ms"] < 5100
            assert talk.until("input_audio_buffer.committed")["item_id"] == idle["item_id"]
            assert talk.until(DONE)["response"]["output"][0]["content"][0]["transcript"] == (
                "Are you there?"
            )
            asked = fake.requests[-1]["messages"]
            assert asked[-1] == {"role": "user", "content": SILENCE_NOTE}
            talk.ask("Yes.")  # the note is no part of the conversation
            assert [m["content"] for m in fake.requests[-1]["messages"][1:]] == [
                NUMBER,
                "Good. Are you there?",
                "Yes.",
            ]
        server.wait_until_empty()


def test_the_audio_of_an_item_is_transcribed(
    embedded: NativeRecognizer, number: np.ndarray
) -> None:
    sound = base64.b64encode(pcm(soxr.resample(number, RATE, OUTPUT_RATE))).decode()
    with agents(embedded, "Good.") as (server, fake, _), talking(server) as talk:
        talk.update()
        content = [{"type": "input_audio", "audio": sound}]
        item = {"type": "message", "role": "user", "content": content}
        talk.send("conversation.item.create", item=item)
        done = talk.until("conversation.item.done")["item"]
        assert done["content"] == [{"type": "input_audio", "transcript": NUMBER}]
        completed = talk.until("conversation.item.input_audio_transcription.completed")
        assert (completed["item_id"], completed["transcript"]) == (done["id"], NUMBER)
        talk.send("response.create")
        talk.until(DONE)
        assert fake.last_user() == NUMBER
        content.append({"type": "input_text", "text": "Which number?"})
        talk.send("response.create", response={"conversation": "none", "input": [item]})
        response = talk.until(DONE)["response"]
        assert fake.last_user() == f"{NUMBER} Which number?"
        assert response["conversation_id"] is None
    server.wait_until_empty()


def test_text_answers_and_tool_calls(tiny: NativeRecognizer) -> None:
    tool = {
        "type": "function",
        "name": "look",
        "description": "d",
        "parameters": {"type": "object"},
    }
    looks = Reply([*words("Let me look."), *call("look", '{"at": 1}')], finish="tool_calls")
    answer = "It is **red**. `x`"
    with (
        agents(tiny, looks, answer) as (server, fake, voice),
        talking(server) as talk,
    ):
        talk.update(output_modalities=["text"], tools=[tool], tool_choice="auto")
        response = talk.ask("What color?")
        said, called = response["output"]
        assert said["content"] == [{"type": "output_text", "text": "Let me look."}]
        assert (called["type"], called["name"], called["arguments"]) == (
            "function_call",
            "look",
            '{"at": 1}',
        )
        done = talk.of("response.function_call_arguments.done")[0]
        deltas = [e["delta"] for e in talk.of("response.function_call_arguments.delta")]
        assert "".join(deltas) == done["arguments"] and done["call_id"] == "call_1"
        output = {"type": "function_call_output", "call_id": "call_1", "output": "red"}
        talk.send("conversation.item.create", item=output)
        talk.send("response.create", response={"output_modalities": ["audio"]})
        response = talk.until(DONE)["response"]
        assert response["output"][0]["content"][0]["transcript"] == answer
        assert voice.spoken == ["It is red.", "x"]
        messages = fake.requests[1]["messages"]
        assert [m["role"] for m in messages] == ["system", "user", "assistant", "assistant", "tool"]
        assert messages[3]["tool_calls"][0]["function"] == {
            "name": "look",
            "arguments": '{"at": 1}',
        }
        assert messages[4] == {"role": "tool", "tool_call_id": "call_1", "content": "red"}
        assert fake.requests[0]["tools"][0]["function"]["name"] == "look"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(status=500), "llm_reply"),
        (Reply(raw=b"<html>"), "llm_reply"),
        (Reply([], first_seconds=20.0), "llm_timeout"),
        (Reply([]), "llm_reply"),
        (Reply(words("Half of"), ends_early=True), "llm_reply"),
        (Reply(words("Half of"), holds=True), "llm_timeout"),
    ],
    ids=["error", "garbage", "slow", "empty", "cut off", "stuck"],
)
def test_a_failing_language_model_is_reported_and_the_session_goes_on(
    tiny: NativeRecognizer, reply: Reply, code: str
) -> None:
    with agents(tiny, reply, "Fine.", llm_timeout_seconds=0.5) as (server, _, voice):
        with talking(server) as talk:
            failed = talk.ask("Hello?")
            assert failed["status"] == "failed"
            assert failed["status_details"]["error"]["code"] == code
            assert talk.audio_seconds() > 0  # what there was of the answer, or the apology
            apologized = voice.spoken == ["Sorry, I cannot answer right now."]
            assert apologized or voice.spoken == ["Half of"]
            assert talk.ask("Again?")["status"] == "completed"


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        ("🙂🎉", "completed", None),
        ("你好。", "failed", "text_script_unsupported"),
        ("<speak>Hello there.</speak>", "failed", "text_markup_unsupported"),
    ],
)
def test_answers_that_cannot_be_spoken_end_and_the_session_goes_on(
    tiny: NativeRecognizer, answer: str, status: str, code: str | None
) -> None:
    with scripted(answer, "Fine.") as fake:
        settings = Settings(llm_url=fake.url, llm_model="m")
        with serving(tiny, settings, {"tones": TinyVoice()}) as server, talking(server) as talk:
            response = talk.ask("Hello?")
            assert response["status"] == status
            if code is not None:
                assert response["status_details"]["error"]["code"] == code
            assert talk.audio_seconds() == 0
            assert talk.ask("Again?")["status"] == "completed"
            assert talk.audio_seconds() > 0
        server.wait_until_empty()


def test_an_answer_without_end_is_cut(tiny: NativeRecognizer) -> None:
    with agents(tiny, "word " * 20_000, "Fine.") as (server, _, _), talking(server) as talk:
        talk.update(output_modalities=["text"])
        response = talk.ask("Hello?")
        assert response["status"] == "incomplete"
        assert response["status_details"]["reason"] == "max_output_tokens"
        assert len(response["output"][0]["content"][0]["text"]) < MOST_CHARACTERS + 100
        assert talk.ask("Again?")["status"] == "completed"


def test_a_turn_during_an_answer_that_may_not_be_interrupted_is_kept(
    embedded: NativeRecognizer, number: np.ndarray
) -> None:
    endless = Reply(words(LONG), holds=True)
    with agents(embedded, endless, "Yes.") as (server, fake, _), talking(server) as talk:
        talk.update({"type": "server_vad", "interrupt_response": False})
        talk.send("response.create")
        talk.until(DELTA)
        talk.say(number, silence=1.0)
        completed = talk.until("conversation.item.input_audio_transcription.completed")
        assert completed["transcript"] == NUMBER
        assert len(fake.requests) == 1 and not talk.of(DONE) + talk.of("error")
        talk.send("response.cancel")
        assert talk.until(DONE)["response"]["status_details"]["reason"] == "client_cancelled"
        assert talk.ask("And now?")["status"] == "completed"
        assert fake.last_user() == f"{NUMBER} And now?"
    server.wait_until_empty()


def test_a_language_model_that_is_down_is_reported(tiny: NativeRecognizer) -> None:
    with scripted("x") as fake:
        gone = fake.url
    settings = Settings(llm_url=gone, llm_model="m")
    with serving(tiny, settings, {"tone": ToneVoice()}) as server, talking(server) as talk:
        failed = talk.ask("Hello?")
        assert failed["status_details"]["error"]["code"] == "llm_unreachable"
        assert talk.ask("Again?")["status"] == "failed"


def test_a_client_that_vanishes_leaves_nothing_behind(tiny: NativeRecognizer) -> None:
    with agents(tiny, Reply(words(LONG), gap_seconds=0.05)) as (server, fake, voice):
        with talking(server) as talk:
            talk.send("response.create")
            talk.until(DELTA)
            talk.socket.socket.close()
        fake.wait_until_left()
        assert fake.hung_up == 1
        spoken = len(voice.spoken)
        server.wait_until_empty()
        time.sleep(0.3)
        assert len(voice.spoken) <= spoken + 1


def test_wrong_messages_are_errors_and_change_nothing(tiny: NativeRecognizer) -> None:
    def message(**fields: object) -> dict[str, object]:
        content = [{"type": "input_text", "text": "x"}]
        return {"item": {"type": "message", "role": "user", "content": content, **fields}}

    def session(**fields: object) -> dict[str, object]:
        return {"session": {"type": "realtime", **fields}}

    def turns(**fields: object) -> dict[str, object]:
        return session(audio={"input": {"turn_detection": {"type": "server_vad", **fields}}})

    wrong: list[tuple[str, dict[str, object], str]] = [
        ("session.update", {"session": {"type": "transcription"}}, "invalid_value"),
        ("session.update", session(output_modalities=["video"]), "invalid_value"),
        ("session.update", session(audio={"output": {"voice": "nobody"}}), "unknown_voice"),
        ("session.update", session(audio={"output": {"speed": 9}}), "invalid_value"),
        ("session.update", session(audio={"output": {"format": {"type": "mp3"}}}), "invalid_value"),
        ("session.update", session(tools=[{"type": "mcp"}]), "invalid_value"),
        ("session.update", session(tool_choice="maybe"), "invalid_value"),
        ("session.update", session(instructions=7), "invalid_value"),
        ("session.update", session(max_output_tokens=0), "invalid_value"),
        ("session.update", turns(idle_timeout_ms=50), "invalid_value"),
        ("session.update", turns(type="semantic_vad", idle_timeout_ms=5000), "invalid_value"),
        ("session.update", turns(threshold=2), "invalid_value"),
        ("input_audio_buffer.append", {"audio": "?"}, "invalid_audio"),
        ("conversation.item.create", {}, "missing_required_parameter"),
        ("conversation.item.create", message(role="robot"), "invalid_value"),
        ("conversation.item.create", message(content=[{"type": "input_image"}]), "invalid_value"),
        ("conversation.item.create", message(content=[{"type": "input_audio"}]), "invalid_value"),
        (
            "conversation.item.create",
            message(content=[{"type": "input_audio", "audio": "?"}]),
            "invalid_audio",
        ),
        ("conversation.item.create", message() | {"previous_item_id": "no"}, "item_not_found"),
        ("conversation.item.retrieve", {"item_id": "no"}, "item_not_found"),
        ("conversation.item.delete", {}, "missing_required_parameter"),
        ("conversation.item.truncate", {"item_id": "no"}, "item_truncate_invalid_item_id"),
        ("response.cancel", {}, "response_cancel_not_active"),
        ("response.create", {"response": {"conversation": "x"}}, "invalid_value"),
        ("response.create", {"response": {"input": [{"type": "x"}]}}, "invalid_value"),
        ("output_audio_buffer.clear", {}, "unknown_type"),
    ]
    with agents(tiny, "Fine.") as (server, fake, _), talking(server) as talk:
        before = talk.update()
        for number, (kind, fields, code) in enumerate(wrong):
            talk.send(kind, event_id=f"mine_{number}", **fields)
            error = talk.until("error")["error"]
            assert (error["code"], error["event_id"]) == (code, f"mine_{number}"), (kind, error)
        assert not fake.requests
        assert talk.update() == before
        assert talk.ask("Hello?")["status"] == "completed"
        item = talk.of("response.output_item.done")[0]["item"]["id"]
        talk.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=9999)
        assert talk.until("error")["error"]["code"] == "invalid_audio_end_ms"
        talk.send("session.update", session={"audio": {"output": {"voice": "cedar"}}})
        assert talk.until("error")["error"]["code"] == "cannot_update_voice"


def test_one_response_at_a_time_and_a_client_may_cancel(tiny: NativeRecognizer) -> None:
    with agents(tiny, Reply(words(LONG), gap_seconds=0.05), "Next.") as (server, fake, _):
        with talking(server) as talk:
            talk.send("response.create")
            talk.until(DELTA)
            talk.send("response.create")
            error = talk.until("error")["error"]
            assert error["code"] == "conversation_already_has_active_response"
            talk.send("response.cancel")
            response = talk.until(DONE)["response"]
            assert response["status_details"]["reason"] == "client_cancelled"
            fake.wait_until_left()
            assert talk.ask("Next?")["status"] == "completed"


def test_items_are_inserted_retrieved_and_deleted(tiny: NativeRecognizer) -> None:
    with agents(tiny, "Fine.") as (server, fake, _), talking(server) as talk:
        for name, after in (("b", None), ("a", "root"), ("c", "b")):
            content = [{"type": "input_text", "text": name}]
            item = {"type": "message", "role": "user", "id": name, "content": content}
            extra = {} if after is None else {"previous_item_id": after}
            talk.send("conversation.item.create", item=item, **extra)
        talk.until("conversation.item.done", 3)
        before = [e["previous_item_id"] for e in talk.of("conversation.item.added")]
        assert before == [None, None, "b"]
        talk.send("conversation.item.retrieve", item_id="c")
        assert talk.until("conversation.item.retrieved")["item"]["content"][0]["text"] == "c"
        talk.send("conversation.item.delete", item_id="b")
        talk.until("conversation.item.deleted")
        talk.send("response.create")
        talk.until(DONE)
        assert fake.last_user() == "a c"
        reference = {"type": "item_reference", "id": "c"}
        talk.send("response.create", response={"conversation": "none", "input": [reference]})
        response = talk.until(DONE)["response"]
        assert fake.last_user() == "c"
        item_id = response["output"][0]["id"]
        talk.send("conversation.item.retrieve", item_id=item_id)
        assert talk.until("error")["error"]["code"] == "item_not_found"


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_telephone_audio_in_and_out(tiny: NativeRecognizer, kind: str) -> None:
    with agents(tiny, "One two three four.") as (server, _, _), talking(server) as talk:
        form = {"type": kind}
        talk.send("session.update", session={"audio": {"output": {"format": form}}})
        talk.until("session.updated")
        talk.ask("Hello?")
        sent = sum(len(base64.b64decode(e["delta"])) for e in talk.of(DELTA))
        assert sent / 8000 == pytest.approx(4 * WORD_SECONDS, abs=0.01)


def test_a_server_without_a_language_model_says_so(server: Server) -> None:
    with talking(server, "") as talk:
        talk.send("session.update", session={"type": "realtime"})
        assert "--llm-url" in talk.until("error")["error"]["message"]


def test_transcription_still_works_beside_an_agent(
    embedded: NativeRecognizer, number: np.ndarray
) -> None:
    with agents(embedded, "Fine.") as (server, fake, _):
        for query in ("intent=transcription", "model=gpt-realtime"):
            with talking(server, query) as talk:
                heard = {"turn_detection": None}
                session = {"type": "transcription", "audio": {"input": heard}}
                talk.send("session.update", session=session)
                assert talk.until("session.updated")["session"]["type"] == "transcription"
                talk.say(number)
                talk.send("input_audio_buffer.commit")
                completed = talk.until("conversation.item.input_audio_transcription.completed")
                assert completed["transcript"] == NUMBER
        assert not fake.requests
        body = {"session": {"type": "realtime", "instructions": "Be brief."}}
        secret = httpx.post(server.http + "/v1/realtime/client_secrets", json=body).json()
        assert secret["session"]["instructions"] == "Be brief."


def test_metrics_tell_the_stages(embedded: NativeRecognizer, number: np.ndarray) -> None:
    with agents(embedded, "Fine.") as (server, _, _):
        with talking(server) as talk:
            talk.say(number, silence=1.0)
            talk.until(DONE)
        page = httpx.get(server.http + "/metrics").text
        for stage in ("final", "first_token", "first_piece", "first_audio", "voice_to_voice"):
            assert f'pianissimo_agent_stage_seconds_count{{stage="{stage}"}} 1.0' in page
        assert 'pianissimo_agent_events_total{event="completed"} 1.0' in page


def test_a_server_that_ends_closes_the_conversation(tiny: NativeRecognizer) -> None:
    with ExitStack() as stack:
        with agents(tiny, Reply(words(LONG), gap_seconds=0.05)) as (server, _, _):
            talk = stack.enter_context(talking(server))
            talk.send("response.create")
            talk.until(DELTA)
        with pytest.raises(ConnectionClosed):
            talk.until("nothing more")
        assert talk.socket.close_code == 1012
