"""pianissimo.client against a real server, and against one that misbehaves."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cutting import Cutter, check_same, events_of
from serving import RATE, Server, as_heard, process, serving, speech, wav
from websockets.asyncio.server import ServerConnection, serve

from pianissimo.client import ClientStream, connect
from pianissimo.errors import (
    AudioValueError,
    OptionError,
    ServerRefusedError,
    ServerUnreachableError,
    StreamError,
    StreamLostError,
)
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings
from pianissimo.transcript import StreamEvent
from pianissimo.zoo.catalog import ASSETS, EMBEDDED

PAUSE = np.zeros(RATE, np.float32)
TALK = as_heard(np.concatenate([speech(2.5), PAUSE, speech(5.0), PAUSE]))
BLOCK = 1600
ROOT = Path(__file__).parents[3]


async def transcribed(
    url: str, samples: np.ndarray, pause: float = 0.0, **options: object
) -> tuple[ClientStream, list[StreamEvent]]:
    """All but the partials, with a finalize in the middle; and the stream."""
    async with connect(url, **options) as stream:  # type: ignore[arg-type]
        reading = asyncio.create_task(events_of(stream))
        for start in range(0, len(samples), BLOCK):
            await stream.send(samples[start : start + BLOCK])
            if start == 30 * BLOCK:
                await stream.finalize()
            await asyncio.sleep(pause)
        await stream.finish()
        return stream, await asyncio.wait_for(reading, 60)


def direct(recognizer: NativeRecognizer, latency_ms: int | None = None) -> list[StreamEvent]:
    """The same without a server."""
    events: list[StreamEvent] = []
    with recognizer.stream(latency_ms=latency_ms) as stream:
        for start in range(0, len(TALK), BLOCK):
            events += stream.push(TALK[start : start + BLOCK])
            events += stream.finalize() if start == 30 * BLOCK else []
        events += stream.finish()
    return [replace(event, reasons=()) for event in events if event.type != "partial"]


@pytest.mark.parametrize("encoding", ["pcm_s16le", "pcm_f32le"])
def test_events_are_those_of_direct_transcription(
    words_server: Server, embedded: NativeRecognizer, encoding: str
) -> None:
    """From float samples, in both formats of the wire, at an address for browsers."""
    url = words_server.http + "/"
    stream, events = asyncio.run(transcribed(url, TALK, encoding=encoding))
    assert next(event.text for event in events if event.text) == "enter four five two nine"
    check_same(events, direct(embedded, stream.latency_ms))
    assert stream.connections == 1 and stream.model
    words_server.wait_until_empty()


def test_a_cut_connection_loses_and_doubles_nothing(
    words_server: Server, embedded: NativeRecognizer
) -> None:
    async def cut() -> tuple[ClientStream, list[StreamEvent]]:
        cutter = Cutter(words_server.port, seed=7, shortest=0.05, longest=0.5)
        async with cutter.running() as port:
            return await transcribed(f"ws://127.0.0.1:{port}", TALK, pause=0.03)

    stream, events = asyncio.run(cut())
    assert stream.connections > 2 and stream.restarts == 0
    check_same(events, direct(embedded, stream.latency_ms))


def test_partials_grow_and_bytes_may_be_cut_anywhere(words_server: Server) -> None:
    async def read() -> list[StreamEvent]:
        data = (speech(2.5) * 32767).astype("<i2").tobytes()
        async with connect(words_server.ws) as stream:
            for start in range(0, len(data), 1111):
                await stream.send(data[start : start + 1111])
                await asyncio.sleep(0.005)
            await stream.finish()
            return [event async for event in stream]

    *partials, final = asyncio.run(read())
    assert final.text == "enter four five two nine" and final.reason == "finish"
    assert partials and all(final.text.startswith(partial.text) for partial in partials)


def test_a_block_left_after_finish_ends_the_stream_on_the_server(words_server: Server) -> None:
    async def unread() -> None:
        async with connect(words_server.ws) as stream:
            await stream.send(speech(1.0))
            await stream.finish()

    asyncio.run(unread())
    words_server.wait_until_empty()


def test_a_refused_key_and_a_refused_option_are_typed(embedded: NativeRecognizer) -> None:
    async def opened(url: str, key: str | None, **options: object) -> str:
        async with connect(url, key=key, **options) as stream:  # type: ignore[arg-type]
            return stream.model

    with serving(embedded, Settings(api_keys=("right",))) as server:
        assert asyncio.run(opened(server.ws, "right"))
        assert asyncio.run(opened(server.ws, "right", second_pass=False))
        for key in (None, "wrong"):
            with pytest.raises(ServerRefusedError, match="needs an API key") as refused:
                asyncio.run(opened(server.ws, key))
            assert refused.value.reason == "invalid_api_key"
        with pytest.raises(ServerRefusedError) as refused:
            asyncio.run(opened(server.ws, "right", model="no-such-model"))
        assert refused.value.reason == "model_not_found"


def test_a_server_that_is_gone_for_good_is_reported_after_the_limit() -> None:
    async def forsaken(running: "subprocess.Popen[str]", port: int) -> float:
        async with connect(f"ws://127.0.0.1:{port}", retry_seconds=1.0) as stream:
            await stream.send(speech(1.0))
            running.send_signal(signal.SIGKILL)
            began = asyncio.get_running_loop().time()
            with pytest.raises(ServerUnreachableError, match="for 1 s"):
                await asyncio.wait_for(events_of(stream), 20)
            with pytest.raises(ServerUnreachableError):
                await stream.send(speech(1.0))
            with pytest.raises(ServerUnreachableError):
                await stream.finish()
            return asyncio.get_running_loop().time() - began

    with process(ASSETS / EMBEDDED) as (running, port):
        assert 0.9 < asyncio.run(forsaken(running, port)) < 10


def test_an_address_without_a_server_fails_at_once() -> None:
    async def opened(url: str) -> None:
        async with connect(url):
            raise AssertionError("there is no server")

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServerUnreachableError, match="check the address"):
        asyncio.run(opened(f"ws://127.0.0.1:{port}"))
    with pytest.raises(OptionError, match="ws://HOST:PORT"):
        asyncio.run(opened("127.0.0.1:7860"))


def test_another_server_is_refused(words_server: Server) -> None:
    async def opened() -> None:
        async with connect(f"{words_server.ws}/elsewhere"):
            raise AssertionError("this is no address of streams")

    with pytest.raises(ServerRefusedError, match="HTTP status"):
        asyncio.run(opened())


def test_unusable_samples_and_late_calls_are_refused(words_server: Server) -> None:
    async def misuse() -> None:
        async with connect(words_server.ws) as stream:
            for samples, message in (
                (np.zeros((10, 2), np.float32), "shape"),
                (np.zeros(10, np.int64), "int64"),
                (np.array([0.0, np.nan]), "NaN"),
            ):
                with pytest.raises(AudioValueError, match=message):
                    await stream.send(samples)
            await stream.finish()
            with pytest.raises(StreamError, match="finished"):
                await stream.send(speech(0.1))

    asyncio.run(misuse())


def test_the_example_of_the_page_prints_the_words(words_server: Server, tmp_path: Path) -> None:
    """As it stands in docs/clients.md, but for the port."""
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if "pianissimo.client.connect(" in block)
    (tmp_path / "talk.wav").write_bytes(wav(speech(2.5)))
    done = subprocess.run(
        [sys.executable, "-c", code.replace("7860", str(words_server.port))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "final enter four five two nine" in done.stdout.splitlines()


# -- servers that misbehave ------------------------------------------------------------------------


@asynccontextmanager
async def scripted(handle: Callable[[ServerConnection], Awaitable[None]]) -> AsyncIterator[str]:
    """The address of a server that does what `handle` does with each connection."""
    async with serve(handle, "127.0.0.1", 0) as server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def ready(frames: int = 0) -> str:
    fields = {"stream": "token", "model": "m", "latency_ms": 160, "frames": frames}
    return json.dumps({"type": "ready", **fields})


def test_audio_that_is_no_longer_kept_and_lost_by_the_server_is_reported() -> None:
    async def forgetful(connection: ServerConnection) -> None:
        first = json.loads(await connection.recv())
        if first["type"] == "resume":
            error = {"type": "error", "code": "no_stream", "message": "gone"}
            await connection.send(json.dumps(error))
            return
        await connection.send(ready())
        for number in range(1, 6):
            await connection.recv()
            await connection.send(json.dumps({"type": "ack", "frames": number}))

    async def lost() -> None:
        async with scripted(forgetful) as url, connect(url, keep_seconds=2.0) as stream:
            await stream.send(np.zeros(5 * RATE, np.float32))
            with pytest.raises(StreamLostError, match="keep_seconds"):
                await asyncio.wait_for(events_of(stream), 20)

    asyncio.run(lost())


def test_a_stream_that_is_lost_after_its_last_text_is_complete() -> None:
    """Killed between the final and `end`, with nothing left to send to another stream."""

    async def killed(connection: ServerConnection) -> None:
        first = json.loads(await connection.recv())
        if first["type"] == "resume":
            await connection.send(json.dumps({"type": "error", "code": "no_stream"}))
            return
        assert first["type"] == "start", "another stream would never end"
        await connection.send(ready())
        await connection.recv()
        await connection.recv()
        text = {"text": "last", "words": [], "start": 0.0, "end": 0.5, "reason": "finish"}
        await connection.send(json.dumps({"type": "ack", "frames": 2}))
        await connection.send(json.dumps({"type": "final", "event": 1, "frames": 2, **text}))
        await connection.recv()
        connection.transport.abort()

    async def read() -> list[StreamEvent]:
        async with scripted(killed) as url, connect(url) as stream:
            await stream.send(np.zeros(RATE // 2, np.float32))
            await stream.finish()
            return await asyncio.wait_for(events_of(stream), 20)

    assert [event.text for event in asyncio.run(read())] == ["last"]


def test_a_stream_whose_events_nobody_reads_stops_sending() -> None:
    received: list[bytes] = []
    all_acknowledged = asyncio.Event()

    async def talkative(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(ready())
        for number in range(1, 501):
            event = {"type": "endpoint", "event": number, "end": float(number)}
            await connection.send(json.dumps(event))
        async for message in connection:
            if isinstance(message, bytes):
                received.append(message)
            elif json.loads(message).get("events") == 500:
                all_acknowledged.set()

    async def unread() -> None:
        async with scripted(talkative) as url, connect(url) as stream:
            await asyncio.wait_for(all_acknowledged.wait(), 20)
            await stream.send(b"\0\0")
            await asyncio.sleep(0.2)
            assert not received
            event = await anext(stream)
            assert event.end == 1.0
            async with asyncio.timeout(5):
                while not received:
                    await asyncio.sleep(0.01)

    asyncio.run(unread())


def test_a_server_that_fails_each_connection_is_given_up() -> None:
    async def flapping(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(ready())

    async def given_up() -> int:
        async with scripted(flapping) as url, connect(url, retry_seconds=0.5) as stream:
            with pytest.raises(ServerUnreachableError, match="has not served"):
                await asyncio.wait_for(events_of(stream), 20)
            return stream.connections

    assert 1 <= asyncio.run(given_up()) < 50


def test_the_client_loads_no_pytorch() -> None:
    code = "import sys, pianissimo.client; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
