"""Numbers as people write them, on request in every dialect with a place for it."""

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from serving import CLIPS, RATE, Server, pcm, serving, speech, wav
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pianissimo import client
from pianissimo.recognizers.base import BaseRecognizer
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.transcript import Segment, Transcript, Word

SPOKEN = "it costs twenty five dollars"
WRITTEN = "it costs $25"
SOUND = speech(3.0)


class Prices(BaseRecognizer):
    """A model that hears a price in everything."""

    name, model, language = "prices", None, "en-US"

    def __init__(self, language: str | None = "en-US") -> None:
        self.language = language

    def recognize(
        self, recordings: Any, words: bool, latency_ms: int | None = None
    ) -> Iterator[Transcript]:
        for blocks in recordings:
            seconds = sum(map(len, blocks)) / RATE
            found = tuple(
                Word(text, index / 10, (index + 1) / 10, 0.5 + index / 10)
                for index, text in enumerate(SPOKEN.split())
            )
            segment = Segment(SPOKEN, 0.0, 0.5, found)
            yield Transcript(SPOKEN, (segment,), found, self.language, seconds, self.name)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(Prices()) as running:
        yield running


@pytest.fixture(scope="module")
def german() -> Iterator[Server]:
    with serving(Prices("de")) as running:
        yield running


def transcription(server: Server, **fields: str) -> httpx.Response:
    url = f"{server.http}/v1/audio/transcriptions"
    return httpx.post(url, files={"file": ("a.wav", wav(SOUND))}, data=fields, timeout=60)


def streamed(server: Server, **start: object) -> list[dict[str, Any]]:
    """The finals of a stream, or its error."""
    with connect(f"{server.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "start", "sample_rate": RATE, **start}))
        with suppress(ConnectionClosed):  # a refused start is closed behind its error
            socket.send(pcm(SOUND))
            socket.send(json.dumps({"type": "finish"}))
        found = []
        while True:
            message = json.loads(socket.recv(timeout=60))
            if message["type"] in ("final", "error"):
                found.append(message)
            if message["type"] in ("end", "error"):
                return found


def test_transcriptions_of_openai(server: Server) -> None:
    plain = transcription(server).json()
    assert plain["text"] == SPOKEN and "lexical" not in plain
    found = transcription(server, itn="true").json()
    assert (found["text"], found["lexical"]) == (WRITTEN, SPOKEN)
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    body = transcription(server, **fields, itn="1").json()
    assert body["lexical"] == SPOKEN
    assert body["words"][-1] == {"word": "$25", "start": 0.2, "end": 0.5}
    assert WRITTEN in transcription(server, response_format="srt", itn="true").text
    events = transcription(server, itn="true", stream="true").text
    done = json.loads(events.split("data: ")[-2])
    assert (done["text"], done["lexical"]) == (WRITTEN, SPOKEN)


def test_deltas_add_up_to_the_written_text(embedded: NativeRecognizer) -> None:
    data = (CLIPS / "number.flac").read_bytes()
    with serving(embedded) as server:
        url = f"{server.http}/v1/audio/transcriptions"
        for itn in ("true", "false"):
            fields = {"stream": "true", "itn": itn}
            text = httpx.post(url, files={"file": data}, data=fields, timeout=60).text
            events = [json.loads(each) for each in text.split("data: ")[1:-1]]
            deltas = [event["delta"] for event in events[:-1]]
            assert "".join(deltas) == events[-1]["text"] != ""
            assert (len(deltas) == 1) == (itn == "true")


def test_recordings_and_streams_of_deepgram(server: Server) -> None:
    for key in ("smart_format", "numerals"):
        listen = f"{server.http}/v1/listen?{key}=true"
        body = httpx.post(listen, content=wav(SOUND), timeout=60).json()
        [alternative] = body["results"]["channels"][0]["alternatives"]
        assert (alternative["transcript"], alternative["lexical"]) == (WRITTEN, SPOKEN)
        assert [word["punctuated_word"] for word in alternative["words"]] == WRITTEN.split()
        assert "warnings" not in body["metadata"]
    query = f"encoding=linear16&sample_rate={RATE}&smart_format=true"
    with connect(f"{server.ws}/v1/listen?{query}") as socket:
        socket.send(pcm(SOUND))
        socket.send(json.dumps({"type": "CloseStream"}))
        result = json.loads(socket.recv(timeout=60))
        while not (result["type"] == "Results" and result["is_final"]):
            result = json.loads(socket.recv(timeout=60))
    [alternative] = result["channel"]["alternatives"]
    assert (alternative["transcript"], alternative["lexical"]) == (WRITTEN, SPOKEN)


def test_resumable_streams_and_their_client(server: Server) -> None:
    [plain] = streamed(server)
    assert plain["text"] == SPOKEN and "lexical" not in plain
    [final] = streamed(server, itn=True)
    assert (final["text"], final["lexical"]) == (WRITTEN, SPOKEN)
    price = final["words"][-1]
    assert (price["text"], price["confidence"]) == ("$25", pytest.approx(0.7))
    assert price["start"] == plain["words"][2]["start"]
    assert price["end"] == plain["words"][-1]["end"]

    async def listen() -> list[tuple[str, str | None]]:
        async with client.connect(server.ws, itn=True) as stream:
            await stream.send(SOUND)
            await stream.finish()
            return [(event.text, event.lexical) async for event in stream if event.text]

    assert asyncio.run(listen())[-1] == (WRITTEN, SPOKEN)


def test_items_of_a_realtime_session(server: Server) -> None:
    with connect(f"{server.ws}/v1/realtime?intent=transcription") as socket:
        input = {
            "format": {"type": "audio/pcm", "rate": 16_000},
            "turn_detection": None,
            "transcription": {"itn": True},
        }
        socket.send(json.dumps({"type": "session.update", "session": {"audio": {"input": input}}}))
        audio = base64.b64encode(pcm(SOUND)).decode()
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        deltas, kind = [], ""
        while not kind.endswith("transcription.completed"):
            message = json.loads(socket.recv(timeout=60))
            kind = message["type"]
            assert kind not in ("error", "warning"), message
            deltas += [message["delta"]] if kind.endswith("delta") else []
    assert "".join(deltas) == message["transcript"] == WRITTEN
    assert message["lexical"] == SPOKEN


def test_a_language_without_a_written_form(german: Server) -> None:
    refused = transcription(german, itn="true")
    assert refused.status_code == 400
    assert "there is no written form for 'de'" in refused.json()["error"]["message"]
    [error] = streamed(german, itn=True)
    assert "there is no written form for 'de'" in error["message"]
    listen = f"{german.http}/v1/listen?smart_format=true"  # which clients always send
    body = httpx.post(listen, content=wav(SOUND), timeout=60).json()
    assert body["results"]["channels"][0]["alternatives"][0]["transcript"] == SPOKEN
    [warning] = body["metadata"]["warnings"]
    assert (warning["parameter"], warning["type"]) == ("smart_format", "unsupported_language")


def test_a_language_that_only_the_text_has() -> None:
    with serving(Prices(None)) as server:
        found = transcription(server, itn="true").json()
        assert (found["text"], found["lexical"]) == (SPOKEN, SPOKEN)
