"""Live sockets with messages in random order and shape: none fails, and each promise is kept."""

import base64
import json
import socket as sockets
from contextlib import closing, suppress
from itertools import pairwise
from typing import Any

import pytest
from fuzzing import fuzzing
from hypothesis import given
from hypothesis import strategies as st
from serving import Server, pcm, speech
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

SECONDS = 60.0
"""Longer than anything here takes: who waits so long has found a hang."""
FIRST = {
    "/v1/stream": [{"type": "start"}],
    "/v1/realtime": [{"type": "session.update", "session": {}}],
    "/v1/listen?encoding=linear16&sample_rate=16000": [],
}
SOUND = pcm(speech(2.0))
WRONG = [{"type": "?"}, {"type": "input_audio_buffer.append", "audio": 5}]
"""What a realtime session answers with an error, and goes on."""
TRANSCRIPTION = "conversation.item.input_audio_transcription"

sounds = st.tuples(st.integers(0, 40_000), st.integers(1, 9000)).map(
    lambda place: SOUND[place[0] : place[0] + place[1]]
)

# -- nonsense --------------------------------------------------------------------------------------

FIELDS = (
    "format type rate turn_detection transcription noise_reduction language languages include "
    "model delay silence_duration_ms prefix_padding_ms eagerness input_audio_format "
    "trailing_silence minimum_speech maximum_utterance"
).split()
KINDS = (
    "session.update transcription_session.update input_audio_buffer.append start resume finish "
    "input_audio_buffer.commit input_audio_buffer.clear finalize ack keepalive Finalize Configure "
    "KeepAlive CloseStream ?"
).split()
PARAMETERS = (
    "audio events stream endpoint latency_ms sample_rate encoding channels event_id model language"
).split()
WORTHWHILE = [
    base64.b64encode(SOUND[:9600]).decode(),
    *("audio/pcm", "audio/pcmu", "server_vad", "semantic_vad", "pcm_s16le", "alaw", "en", "\ud800"),
    *(0, 1, 500, 8000, 16_000, 24_000),
]

values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(WORTHWHILE),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=8,
)
sessions = st.dictionaries(st.sampled_from(FIELDS), values, max_size=4).map(
    lambda input: {"type": "transcription", "audio": {"input": input}}
)
messages = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)},
    optional={"session": sessions | values} | {name: values for name in PARAMETERS},
)
frames = st.one_of(
    messages.map(json.dumps),
    sounds,
    st.binary(max_size=999),
    st.text(max_size=20),
    values.map(json.dumps),
)


@pytest.mark.parametrize("place", FIRST)
def test_nonsense_is_answered_and_nothing_fails(fuzzed: Server, place: str) -> None:
    @fuzzing(80)
    @given(st.booleans(), st.lists(frames, max_size=8))
    def talk(properly_begun: bool, sent: list[str | bytes]) -> None:
        with connect(fuzzed.ws + place) as socket:
            with suppress(ConnectionClosed):
                for first in FIRST[place] if properly_begun else ():
                    socket.send(json.dumps(first))
                for frame in sent:
                    socket.send(frame)
                socket.send('{"type": "CloseStream"}')
                socket.send("{")  # the end of every dialect that had none yet
            read_to_the_end(socket, until_error=place == "/v1/realtime")
            assert socket.close_code != 1011

    talk()
    fuzzed.wait_until_empty(SECONDS)
    assert fuzzed.outcomes("failed") == 0


def read_to_the_end(socket: ClientConnection, until_error: bool = False) -> list[dict[str, Any]]:
    """All messages until the socket closes, or until one is an error."""
    told = []
    with suppress(ConnectionClosed):
        while True:
            told.append(json.loads(socket.recv(timeout=SECONDS)))
            if until_error and told[-1]["type"] == "error":
                break
    return told


# -- promises --------------------------------------------------------------------------------------


def test_deepgram_answers_each_finalize_once(fuzzed: Server) -> None:
    """Finals follow each other without a gap, and Metadata is the last word."""
    place = "/v1/listen?encoding=linear16&sample_rate=16000&interim_results=true&endpointing=300"

    @fuzzing(25)
    @given(st.lists(sounds | st.sampled_from(["Finalize", "KeepAlive"]), max_size=10))
    def talk(sent: list[str | bytes]) -> None:
        with connect(fuzzed.ws + place) as socket:
            for each in [*sent, "CloseStream"]:
                socket.send(each if isinstance(each, bytes) else json.dumps({"type": each}))
            told = read_to_the_end(socket)
            assert socket.close_code == 1000
        finals = [each for each in told if each["type"] == "Results" and each["is_final"]]
        assert sum(each["from_finalize"] for each in finals) == sent.count("Finalize")
        ends = [0.0, *(each["start"] + each["duration"] for each in finals)]
        assert [each["start"] for each in finals] == pytest.approx(ends[:-1])
        assert all(each["duration"] >= 0 for each in finals)
        size = sum(len(each) for each in sent if isinstance(each, bytes))
        assert told[-1]["type"] == "Metadata" and told[-1]["duration"] == size // 2 / 16_000

    talk()
    fuzzed.wait_until_empty(SECONDS)


def test_realtime_answers_each_commit_once(fuzzed: Server) -> None:
    """Deltas add up to the text of their item, whatever the session becomes meanwhile."""
    updates = st.fixed_dictionaries(
        {},
        optional={
            "format": st.sampled_from(
                [{"type": "audio/pcm", "rate": 16_000}, {"type": "audio/pcmu"}, None]
            ),
            "transcription": st.sampled_from(
                [{"model": "whisper-1"}, {"delay": "low"}, {"delay": "xhigh"}, None]
            ),
        },
    ).map(lambda input: {"type": "session.update", "session": {"audio": {"input": input}}})
    commit = {"type": "input_audio_buffer.commit"}
    clear = {"type": "input_audio_buffer.clear"}
    appends = sounds.map(
        lambda sound: {
            "type": "input_audio_buffer.append",
            "audio": base64.b64encode(sound).decode(),
        }
    )
    wrong = st.sampled_from(WRONG)

    @fuzzing(25)
    @given(st.lists(st.one_of(appends, appends, updates, st.just(commit), st.just(clear), wrong)))
    def talk(sent: list[dict[str, Any]]) -> None:
        first = {"type": "session.update", "session": {"turn_detection": None}}
        told = []
        with connect(f"{fuzzed.ws}/v1/realtime") as socket:
            for each in [first, *sent, commit]:
                socket.send(json.dumps(each))
            commits = sent.count(commit) + 1
            done = 0
            while done < commits:
                told.append(json.loads(socket.recv(timeout=SECONDS)))
                done += told[-1]["type"] == f"{TRANSCRIPTION}.completed"
        kinds = [each["type"] for each in told]
        assert kinds.count("input_audio_buffer.committed") == commits
        assert kinds.count("input_audio_buffer.cleared") == sent.count(clear)
        assert kinds.count("error") == sum(each in WRONG for each in sent)
        deltas: dict[str, str] = {}
        for each in told:
            if each["type"] == f"{TRANSCRIPTION}.delta":
                deltas[each["item_id"]] = deltas.get(each["item_id"], "") + each["delta"]
            if each["type"] == f"{TRANSCRIPTION}.completed":
                assert each["transcript"] == deltas.get(each["item_id"], "")

    talk()
    fuzzed.wait_until_empty(SECONDS)


def test_our_stream_answers_each_finalize_once(fuzzed: Server) -> None:
    """Events are numbered without a gap, and the last of them is the end."""

    @fuzzing(25)
    @given(st.lists(sounds | st.sampled_from(["finalize", "keepalive"]), max_size=10))
    def talk(sent: list[str | bytes]) -> None:
        with connect(f"{fuzzed.ws}/v1/stream") as socket:
            socket.send(json.dumps({"type": "start", "endpoint": {"trailing_silence": 0.3}}))
            for each in [*sent, "finish"]:
                socket.send(each if isinstance(each, bytes) else json.dumps({"type": each}))
            told = []
            while not told or told[-1]["type"] != "end":
                told.append(json.loads(socket.recv(timeout=SECONDS)))
            socket.send(json.dumps({"type": "ack", "events": told[-1]["event"]}))
            assert not [each for each in read_to_the_end(socket) if each["type"] != "ack"]
        numbers = [each["event"] for each in told if "event" in each]
        assert numbers == list(range(1, len(numbers) + 1))
        reasons = [each["reason"] for each in told if each["type"] == "final"]
        assert reasons.count("finalize") == sent.count("finalize")
        assert reasons.count("finish") == 1
        finals = [each for each in told if each["type"] == "final"]
        assert all(one["start"] <= other["start"] for one, other in pairwise(finals))

    talk()
    fuzzed.wait_until_empty(SECONDS)


# -- wyoming ---------------------------------------------------------------------------------------

FORMAT = {"rate": 16_000, "width": 2, "channels": 1}


def event(kind: str, data: Any = None, payload: bytes = b"", **head: Any) -> bytes:
    body = b"" if data is None else json.dumps(data).encode()
    head = {"type": kind, "version": "1.10.2", **head}
    head |= {"data_length": len(body), "payload_length": len(payload) + head.pop("too_long", 0)}
    return json.dumps(head).encode() + b"\n" + body + payload


def answers(server: Server, sent: list[bytes]) -> list[dict[str, Any]]:
    """The heads of all events that a Wyoming connection gives until it ends."""
    found = []
    address = ("127.0.0.1", server.wyoming_port)
    with closing(sockets.create_connection(address, SECONDS)) as socket:
        with suppress(ConnectionError):
            socket.sendall(b"".join(sent))
            socket.shutdown(sockets.SHUT_WR)
        with socket.makefile("rb") as file, suppress(ConnectionError):
            while line := file.readline():
                found.append(json.loads(line))
                file.read(found[-1].get("data_length", 0))
    return found


wyoming_fields = st.fixed_dictionaries(
    {},
    optional={
        "rate": st.sampled_from([16_000, 8000]) | values,
        "width": st.just(2) | values,
        "channels": st.integers(1, 3) | values,
        "text": values,
        "name": values,
        "language": st.just("en") | values,
    },
)
wyoming_events = st.builds(
    event,
    st.sampled_from(
        "describe ping transcribe audio-start audio-chunk audio-stop select-program ?".split()
    ),
    wyoming_fields | values,
    sounds | st.just(b""),
    version=st.sampled_from(["1.10.2", "1.5", 7, "x.y", None]),
    too_long=st.sampled_from([0] * 9 + [7]),
)


def test_wyoming_events_of_any_shape_are_answered_and_nothing_fails(fuzzed: Server) -> None:
    @fuzzing(80)
    @given(st.lists(wyoming_events | st.binary(max_size=99), max_size=8))
    def talk(sent: list[bytes]) -> None:
        answers(fuzzed, sent)

    talk()
    fuzzed.wait_until_empty(SECONDS)
    assert fuzzed.outcomes("failed") == 0


def test_wyoming_answers_each_stop_once(fuzzed: Server) -> None:
    start, stop = event("audio-start", FORMAT), event("audio-stop")
    chunks = sounds.map(lambda sound: event("audio-chunk", FORMAT, sound))
    others = st.sampled_from([event("describe"), event("ping", {"text": "x"}), event("?")])

    @fuzzing(25)
    @given(st.lists(st.one_of(chunks, chunks, st.just(start), st.just(stop), others), max_size=10))
    def talk(sent: list[bytes]) -> None:
        kinds = [each["type"] for each in answers(fuzzed, [*sent, stop])]
        for kind in ("transcript-start", "transcript", "transcript-stop"):
            least = sent.count(stop) + 1
            # Text that came before its turn was begun anew was announced as well.
            most = least + sent.count(start) if kind == "transcript-start" else least
            assert least <= kinds.count(kind) <= most, kinds
        assert "error" not in kinds

    talk()
    fuzzed.wait_until_empty(SECONDS)
