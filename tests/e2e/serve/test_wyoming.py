"""The Wyoming port: its own client, unmodified, and hostile peers."""

import asyncio
import json
import re
import select
import socket as sockets
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import httpx
import pytest
from serving import RATE, Server, pcm, serving, speech
from tiny_voice import TinyVoice

from pianissimo.errors import OptionError
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

pytest.importorskip("wyoming", reason="no wyoming client: the extra clients has it")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # audioop, which the client uses, is deprecated
    from wyoming.asr import Transcribe, Transcript, TranscriptChunk, TranscriptStart, TranscriptStop
    from wyoming.audio import AudioChunk, AudioStart, AudioStop
    from wyoming.client import AsyncTcpClient
    from wyoming.error import Error
    from wyoming.event import Event
    from wyoming.info import Describe, Info
    from wyoming.ping import Ping, Pong
    from wyoming.tts import (
        Synthesize,
        SynthesizeChunk,
        SynthesizeStart,
        SynthesizeStop,
        SynthesizeVoice,
    )

NUMBER = "enter four five two nine"
FORMAT = {"rate": RATE, "width": 2, "channels": 1}
SECONDS = 60.0
"""Longer than anything here takes: a test that waits so long has found a hang."""


@pytest.fixture(scope="module")
def talking(embedded: NativeRecognizer) -> Iterator[Server]:
    with serving(embedded, Settings(wyoming_port=0)) as server:
        yield server


@pytest.fixture(scope="module")
def strict(tiny: NativeRecognizer) -> Iterator[Server]:
    """One stream, and little patience."""
    with serving(tiny, Settings(wyoming_port=0, max_streams=1, idle_seconds=1.0)) as server:
        yield server


def dial(server: Server) -> AsyncTcpClient:
    return AsyncTcpClient("127.0.0.1", server.wyoming_port, SECONDS, SECONDS)


async def say(client: AsyncTcpClient, sound: bytes, step: int = 2048) -> None:
    """One utterance, as Home Assistant sends it."""
    await client.write_event(Transcribe(language="en").event())
    await client.write_event(AudioStart(**FORMAT).event())
    for start in range(0, len(sound), step):
        chunk = AudioChunk(**FORMAT, audio=sound[start : start + step])
        await client.write_event(chunk.event())
    await client.write_event(AudioStop().event())


async def until(client: AsyncTcpClient, *kinds: str) -> list[Event]:
    """The events up to the first of one of these kinds."""
    events = []
    while not events or events[-1].type not in kinds:
        event = await client.read_event()
        assert event is not None, f"the connection ended after {events}"
        events.append(event)
    return events


# -- speech out ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaking(tiny: NativeRecognizer) -> Iterator[Server]:
    voices = {"tones": TinyVoice(), "low": TinyVoice(sample_rate=16_000)}
    with serving(tiny, Settings(wyoming_port=0), voices) as server:
        yield server


def spoken_seconds(events: list[Event]) -> float:
    """The audio between `audio-start` and `audio-stop`, whose formats must agree."""
    start = AudioStart.from_event(events[0])
    assert events[-1].type == "audio-stop"
    chunks = [AudioChunk.from_event(event) for event in events[1:-1]]
    assert {(c.rate, c.width, c.channels) for c in chunks} == {(start.rate, 2, 1)}
    return sum(len(chunk.audio) for chunk in chunks) / 2 / start.rate


def test_describe_lists_the_voices(speaking: Server) -> None:
    async def talk() -> Info:
        async with dial(speaking) as client:
            await client.write_event(Describe().event())
            return Info.from_event((await until(client, "info"))[-1])

    (program,) = asyncio.run(talk()).tts
    assert program.supports_synthesize_streaming and program.installed
    assert [(v.name, v.languages) for v in program.voices] == [
        ("tones", ["en-US"]),
        ("low", ["en-US"]),
    ]


@pytest.mark.parametrize(
    ("voice", "rate"),
    [(None, 24_000), (SynthesizeVoice(name="low"), 16_000), (SynthesizeVoice("tones"), 24_000)],
)
def test_a_text_is_spoken(speaking: Server, voice: SynthesizeVoice | None, rate: int) -> None:
    async def talk() -> list[Event]:
        async with dial(speaking) as client:
            await client.write_event(Synthesize("One two three. Four five.", voice).event())
            return await until(client, "audio-stop", "error")

    events = asyncio.run(talk())
    assert AudioStart.from_event(events[0]).rate == rate
    assert spoken_seconds(events) == pytest.approx(0.9, abs=0.01)


def test_text_in_chunks_is_spoken_while_it_arrives(speaking: Server) -> None:
    async def talk() -> tuple[list[Event], list[Event]]:
        async with dial(speaking) as client:
            await client.write_event(SynthesizeStart(SynthesizeVoice("tones")).event())
            for text in ("One two ", "three. Fo", "ur five"):
                await client.write_event(SynthesizeChunk(text).event())
            early = await until(client, "audio-chunk", "error")
            await client.write_event(SynthesizeChunk(" six. 🙂").event())
            await client.write_event(Synthesize("One two three. Four five six.").event())
            await client.write_event(SynthesizeStop().event())
            return early, await until(client, "synthesize-stopped", "error")

    early, late = asyncio.run(talk())
    assert [event.type for event in early] == ["audio-start", "audio-chunk"]
    assert late[-1].type == "synthesize-stopped"
    assert spoken_seconds([*early, *late[:-1]]) == pytest.approx(1.0, abs=0.01)


def test_no_text_in_chunks_gives_no_audio(speaking: Server) -> None:
    async def talk() -> list[Event]:
        async with dial(speaking) as client:
            await client.write_event(SynthesizeStart().event())
            await client.write_event(SynthesizeStop().event())
            return await until(client, "synthesize-stopped", "error")

    assert [event.type for event in asyncio.run(talk())] == ["synthesize-stopped"]


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (Synthesize("").event(), "text_empty"),
        (Synthesize("🙂").event(), "text_empty"),
        (Synthesize("你好").event(), "text_script_unsupported"),
        (Synthesize("x" * 5_000).event(), "text_too_long"),
        (Synthesize("x" * 100_000).event(), "event_too_large"),
        (Synthesize("<speak>Hello</speak>").event(), "text_markup_unsupported"),
        (Synthesize("Hi.", SynthesizeVoice(name="nobody")).event(), "unknown_voice"),
        (Synthesize("Hi.", SynthesizeVoice(language="de")).event(), "unknown_voice"),
        (Synthesize("<b/>", text_format="ssml").event(), "text_markup_unsupported"),
        (SynthesizeChunk("Hi.").event(), "no_synthesis"),
        (Event("synthesize", {"text": "Hi.", "voice": 3}), "invalid_value"),
    ],
)
def test_unspeakable_requests_get_an_error(speaking: Server, event: Event, code: str) -> None:
    async def talk() -> Error:
        async with dial(speaking) as client:
            await client.write_event(event)
            return Error.from_event((await until(client, "error"))[-1])

    assert asyncio.run(talk()).code == code


def test_a_listener_that_vanishes_ends_the_speech(tiny: NativeRecognizer) -> None:
    voice = TinyVoice(gates=40)
    for gate in voice.gates[:3]:
        gate.set()

    async def talk(server: Server) -> None:
        async with dial(server) as client:
            await client.write_event(Synthesize("One two. " * 40).event())
            await until(client, "audio-chunk")
            while len(voice.spoken) < 4:
                await asyncio.sleep(0.01)

    with serving(tiny, Settings(wyoming_port=0), {"tones": voice}) as server:
        asyncio.run(talk(server))
        time.sleep(0.1)
        for gate in voice.gates:
            gate.set()
        server.wait_until_empty()
    assert len(voice.spoken) < 20


# -- the client ------------------------------------------------------------------------------------


def test_describe_lists_the_models(talking: Server) -> None:
    async def talk() -> tuple[Info, Pong]:
        async with dial(talking) as client:
            await client.write_event(Describe().event())
            (info,) = await until(client, "info")
            await client.write_event(Ping(text="there?").event())
            (pong,) = await until(client, "pong")
            return Info.from_event(info), Pong.from_event(pong)

    info, pong = asyncio.run(talk())
    (program,) = info.asr
    (model,) = program.models
    assert model.name == talking.service.recognizer.name and model.languages == ["en"]
    assert model.installed and program.installed and program.supports_transcript_streaming
    assert pong.text == "there?"


def test_an_utterance_gets_its_words_while_they_come_and_once_whole(talking: Server) -> None:
    async def talk() -> list[list[Event]]:
        async with dial(talking) as client:
            turns = []
            for _ in range(2):  # a connection may be used again
                await say(client, pcm(speech(2.5)))
                turns.append(await until(client, "transcript-stop"))
            return turns

    for start, *chunks, whole, stop in asyncio.run(talk()):
        assert TranscriptStart.is_type(start.type) and TranscriptStop.is_type(stop.type)
        assert TranscriptStart.from_event(start).language == "en"
        assert Transcript.from_event(whole) == Transcript(text=NUMBER, language="en")
        assert len(chunks) >= 2 and all(TranscriptChunk.is_type(each.type) for each in chunks)
        assert "".join(TranscriptChunk.from_event(each).text for each in chunks) == NUMBER
    talking.wait_until_empty()
    page = httpx.get(talking.http + "/metrics").text
    assert re.search(r'time_to_final_seconds_count\{dialect="wyoming"[^}]*\} 2.0', page)
    assert re.search(r'audio_seconds_total\{dialect="wyoming"[^}]*\} 5.0', page)


def test_silence_and_nothing_get_an_empty_text(talking: Server) -> None:
    async def talk() -> list[Event]:
        async with dial(talking) as client:
            await say(client, bytes(RATE))
            events = await until(client, "transcript-stop")
            await client.write_event(AudioStop().event())
            return events + await until(client, "transcript-stop")

    events = asyncio.run(talk())
    kinds = ["transcript-start", "transcript", "transcript-stop"]
    assert [event.type for event in events] == kinds * 2
    assert events[1].data["text"] == events[4].data["text"] == ""


def test_an_older_client_gets_only_what_it_knows(talking: Server) -> None:
    sound = pcm(speech(2.5))
    with closing(raw(talking)) as socket:
        for event in ("audio-start", "audio-chunk", "audio-stop"):
            payload = sound if event == "audio-chunk" else b""
            head = {"type": event, "version": "1.5.3", "data": FORMAT}
            socket.sendall(line({**head, "payload_length": len(payload)}) + payload)
        with socket.makefile("rb") as file:
            head = json.loads(file.readline())
            assert head["type"] == "transcript"
            assert json.loads(file.read(head["data_length"]))["text"] == NUMBER


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (Transcribe(name="nova").event(), "model_not_found"),
        (Transcribe(language="fr").event(), "invalid_option"),
        (AudioStart(rate=RATE, width=4, channels=1).event(), "bad_audio"),
        (AudioStart(rate=7, width=2, channels=1).event(), "audio_invalid_values"),
        (AudioStart(rate=RATE, width=2, channels=99).event(), "audio_invalid_values"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_connection_ends(
    talking: Server, event: Event, code: str
) -> None:
    async def talk() -> tuple[Event, Event | None]:
        async with dial(talking) as client:
            await client.write_event(event)
            (error,) = await until(client, "error")
            return error, await client.read_event()

    error, after = asyncio.run(talk())
    assert Error.from_event(error).code == code and Error.from_event(error).text
    assert after is None
    talking.wait_until_empty()


def test_clients_above_capacity_are_refused_at_once(strict: Server) -> None:
    async def talk() -> tuple[Event, Event]:
        async with dial(strict) as first, dial(strict) as second:
            await first.write_event(AudioStart(**FORMAT).event())
            await first.write_event(Ping().event())
            await until(first, "pong")
            await second.write_event(AudioStart(**FORMAT).event())
            (refused,) = await until(second, "error")
            await first.write_event(AudioStop().event())
            return refused, (await until(first, "transcript"))[-1]

    refused, answered = asyncio.run(talk())
    assert refused.data["code"] == "server_full"
    assert Transcript.is_type(answered.type)
    strict.wait_until_empty()


def test_other_machines_are_not_let_in_by_accident() -> None:
    with pytest.raises(OptionError, match="no authentication"):
        Settings(host="0.0.0.0", api_keys=("secret",), wyoming_port=10300)
    Settings(host="0.0.0.0", api_keys=("secret",), wyoming_port=10300, insecure=True)


def test_the_end_of_the_server_ends_connections(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(wyoming_port=0)) as server:
        socket = raw(server)
        socket.sendall(line({"type": "audio-start", "data": FORMAT}))
        socket.sendall(line({"type": "ping"}))
        assert socket.recv(1)
    with closing(socket):
        while socket.recv(4096):
            pass


# -- peers that mean no good -----------------------------------------------------------------------


def raw(server: Server) -> sockets.socket:
    return sockets.create_connection(("127.0.0.1", server.wyoming_port), SECONDS)


def line(head: dict[str, Any]) -> bytes:
    return json.dumps(head).encode() + b"\n"


CHUNK = {"type": "audio-chunk", "data": FORMAT}
HOSTILE = {
    "a header without end": b'{"type": "' + b"x" * (1 << 20),
    "a header that is too long": b'{"type": "' + b"x" * (1 << 20) + b'"}\n',
    "no JSON": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "binary": bytes(range(256)) + b"\n",
    "not an object": b"[1, 2]\n",
    "no type": line({"data": {}}),
    "a type that is a number": line({"type": 5}),
    "data that are no object": line({"type": "ping", "data": [1]}),
    "data that are no JSON": line({"type": "ping", "data_length": 3}) + b"{{{",
    "data of gigabytes": line({"type": "ping", "data_length": 1 << 40}),
    "a payload of gigabytes": line({**CHUNK, "payload_length": 1 << 40}),
    "a negative length": line({**CHUNK, "payload_length": -1}),
    "a length that is text": line({**CHUNK, "payload_length": "12"}),
    "half a header": b'{"type": "des',
    "half the data": line({"type": "ping", "data_length": 10}) + b"{",
    "half a payload": line({**CHUNK, "payload_length": 6400}) + bytes(99),
    "a format that changes": line({"type": "audio-start", "data": FORMAT})
    + line({"type": "audio-chunk", "data": {**FORMAT, "rate": 8000}}),
    "a rate that is no number": line({"type": "audio-start", "data": {"rate": [1]}}),
    "deep nesting": b"[" * 60_000 + b"\n",
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE.keys())
def test_nonsense_ends_the_connection_and_nothing_else(strict: Server, sent: bytes) -> None:
    """Whatever comes, the connection ends by itself, and the seat is free again."""
    before = strict.outcomes("failed")
    with closing(raw(strict)) as socket:
        socket.sendall(sent)
        answer = b""
        with socket.makefile("rb") as file:
            answer = file.read()
    assert not answer or json.loads(answer.splitlines()[0])["type"] == "error"
    strict.wait_until_empty()
    assert strict.outcomes("failed") == before


def test_clients_that_never_read_cost_no_memory(strict: Server) -> None:
    """Questions whose answers nobody reads are asked no longer than the buffers last."""
    question = line({"type": "describe"}) * 1000
    with closing(raw(strict)) as socket:
        socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        socket.settimeout(0.5)
        sent = 0
        with pytest.raises((TimeoutError, ConnectionError)):
            while sent < 64 << 20:
                sent += socket.send(question)
        assert sent < 32 << 20
    strict.wait_until_empty()


def test_clients_that_read_nothing_are_cut_off(strict: Server) -> None:
    """A connection that is only closed stays until what waits for the client is read."""
    ping = line({"type": "ping", "data": {"text": "x" * 60_000}})
    with closing(raw(strict)) as socket:
        socket.setblocking(False)
        hung_up = select.poll()
        hung_up.register(socket, 0)
        end = time.monotonic() + SECONDS
        while not hung_up.poll(10):
            assert time.monotonic() < end, "the connection is still there"
            with suppress(OSError):
                socket.send(ping)
    strict.wait_until_empty()
