"""Deepgram's dialect over a real socket: results, finalize, endpoints, and recordings by POST."""

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import soxr
from serving import CLIPS, RATE, Server, pcm, serving, speech, wav
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.dialects import deepgram
from pianissimo.serve.settings import Settings

QUERY = "model=nova-3&encoding=linear16&sample_rate=16000"


@contextmanager
def listening(server: Server, query: str = QUERY, **options: object) -> Iterator[ClientConnection]:
    with connect(f"{server.ws}/v1/listen?{query}", **options) as socket:  # type: ignore[arg-type]
        yield socket


def say(socket: ClientConnection, kind: str) -> None:
    socket.send(json.dumps({"type": kind}))


def hear(socket: ClientConnection, samples: np.ndarray, block: int = 1600) -> None:
    for start in range(0, len(samples), block):
        socket.send(pcm(samples[start : start + block]))


def rest(socket: ClientConnection) -> list[dict]:
    """All messages until the server closes."""
    messages = []
    try:
        while True:
            messages.append(json.loads(socket.recv(timeout=60)))
    except ConnectionClosed:
        return messages


def finals(messages: list[dict]) -> list[dict]:
    return [m for m in messages if m["type"] == "Results" and m["is_final"]]


def transcript(message: dict) -> str:
    return message["channel"]["alternatives"][0]["transcript"]


def number() -> np.ndarray:
    return speech(2.5, first=0)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def test_the_words_of_a_clip_with_times_and_confidence(words_server: Server) -> None:
    with listening(words_server, QUERY + "&interim_results=true") as socket:
        hear(socket, number())
        say(socket, "CloseStream")
        messages = rest(socket)
        assert socket.close_code == 1000
    (final,) = finals(messages)
    assert transcript(final) == "enter four five two nine"
    words = final["channel"]["alternatives"][0]["words"]
    assert [word["punctuated_word"] for word in words] == transcript(final).split()
    times = [t for word in words for t in (word["start"], word["end"])]
    assert times == sorted(times) and times[-1] <= 2.5
    assert all(0 < word["confidence"] <= 1 for word in words)
    assert final["start"] == 0.0 and final["channel_index"] == [0, 1]
    interim = [m for m in messages if m["type"] == "Results" and not m["is_final"]]
    assert len(interim) >= 2
    for before, after in zip(interim, [*interim[1:], final], strict=True):
        assert transcript(after).startswith(transcript(before))
    about = messages[-1]
    assert about["type"] == "Metadata" and about["duration"] == 2.5 and about["channels"] == 1


def test_finalize_is_answered_once_each_time_even_when_nothing_was_said(
    words_server: Server,
) -> None:
    with listening(words_server) as socket:
        say(socket, "Finalize")
        hear(socket, number())
        say(socket, "Finalize")
        say(socket, "Finalize")
        hear(socket, number())
        say(socket, "CloseStream")
        messages = finals(rest(socket))
    assert [m["from_finalize"] for m in messages] == [True, True, True, False]
    texts = [transcript(m) for m in messages]
    assert texts[0] == texts[2] == ""
    assert texts[1] == "enter four five two nine" and texts[3]
    for before, after in pairwise(messages):
        assert after["start"] == pytest.approx(before["start"] + before["duration"])
    assert messages[3]["start"] >= 2.5 - 0.1


def test_a_pause_ends_an_utterance(words_server: Server) -> None:
    query = QUERY + "&endpointing=500&vad_events=true&utterance_end_ms=1500&interim_results=true"
    with listening(words_server, query) as socket:
        for _ in range(2):
            hear(socket, number())
            hear(socket, silence(4.0))
        say(socket, "CloseStream")
        messages = rest(socket)
    said = [m for m in finals(messages) if transcript(m)]
    assert [m["speech_final"] for m in said] == [True, True]
    assert [m["from_finalize"] for m in said] == [False, False]
    kinds = [m["type"] for m in messages if m["type"] != "Results"]
    assert kinds == ["SpeechStarted", "UtteranceEnd"] * 2 + ["Metadata"]
    ends = [m["last_word_end"] for m in messages if m["type"] == "UtteranceEnd"]
    assert ends == [m["channel"]["alternatives"][0]["words"][-1]["end"] for m in said]


def test_without_endpointing_no_pause_ends_anything(words_server: Server) -> None:
    with listening(words_server, QUERY + "&endpointing=false") as socket:
        hear(socket, np.concatenate([number(), silence(3.0), number()]))
        say(socket, "CloseStream")
        messages = finals(rest(socket))
    assert [m["speech_final"] for m in messages] == [False]
    assert transcript(messages[0]).count("four") == 2


@pytest.mark.parametrize("encoding", ["mulaw", "alaw"])
def test_telephone_audio(words_server: Server, encoding: str) -> None:
    file = io.BytesIO()
    subtype = {"mulaw": "ULAW", "alaw": "ALAW"}[encoding]
    soundfile.write(file, soxr.resample(number(), RATE, 8000), 8000, format="RAW", subtype=subtype)
    data = file.getvalue()
    query = f"encoding={encoding}&sample_rate=8000"
    with listening(words_server, query) as socket:
        for start in range(0, len(data), 333):
            socket.send(data[start : start + 333])
        say(socket, "CloseStream")
        (final,) = finals(rest(socket))
    posted = httpx.post(f"{words_server.http}/v1/listen?{query}", content=data).json()
    for text in (
        transcript(final),
        posted["results"]["channels"][0]["alternatives"][0]["transcript"],
    ):
        assert text.startswith("enter four")


def test_a_silent_socket_is_closed_and_keepalive_prevents_it(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(idle_seconds=0.6)) as server, listening(server) as socket:
        for _ in range(4):
            time.sleep(0.3)
            say(socket, "KeepAlive")
        assert rest(socket) == []
        assert socket.close_code == 1011 and "NET-0001" in (socket.close_reason or "")


def test_an_empty_frame_closes_as_it_used_to(server: Server) -> None:
    with listening(server) as socket:
        socket.send(b"")
        *_, about = rest(socket)
        assert about["type"] == "Metadata" and socket.close_code == 1000


def test_invalid_queries_are_refused_with_a_reason(server: Server) -> None:
    for query, word in (
        ("encoding=speex", "speex"),
        (QUERY + "&multichannel=true", "channels=2"),
        (QUERY + "&language=de", "'de'"),
        ("encoding=linear16&sample_rate=many", "sample_rate"),
        ("encoding=linear16&sample_rate=10", "sample rate"),
        ("encoding=linear16&sample_rate=0", "sample rate"),
    ):
        with listening(server, query) as socket:
            rest(socket)
            assert socket.close_code == 1008, query
            assert word in (socket.close_reason or "")
    with listening(server) as socket:
        socket.send("no json")
        (error,) = rest(socket)
        assert error["type"] == "Error" and error["variant"] == "INVALID_JSON"
        assert socket.close_code == 1008
    server.wait_until_empty()


def test_keys_and_places(tiny: NativeRecognizer) -> None:
    settings = Settings(api_keys=("k",), max_streams=1)
    with serving(tiny, settings) as server:
        with listening(server) as socket:
            rest(socket)
            assert socket.close_code == 1008
        headers = {"additional_headers": {"authorization": "Token k"}}
        with listening(server, **headers) as first:
            with listening(server, subprotocols=["token", "k"]) as second:
                rest(second)
                assert second.close_code == 1013
            say(first, "CloseStream")
            assert rest(first)[-1]["type"] == "Metadata"
        with listening(server, subprotocols=["token", "k"]) as third:
            assert third.subprotocol == "token"
            say(third, "CloseStream")
            assert rest(third)[-1]["type"] == "Metadata"
        answer = httpx.post(f"{server.http}/v1/listen", content=b"x")
        assert answer.status_code == 401 and answer.json()["err_code"] == "INVALID_API_KEY"


def test_a_recording_by_post(words_server: Server) -> None:
    url = f"{words_server.http}/v1/listen?utterances=true"
    answer = httpx.post(url, content=(CLIPS / "number.flac").read_bytes()).json()
    (channel,) = answer["results"]["channels"]
    (alternative,) = channel["alternatives"]
    assert alternative["transcript"] == "enter four five two nine"
    assert answer["results"]["utterances"][0]["transcript"] == alternative["transcript"]
    assert answer["metadata"]["duration"] == pytest.approx(2.5, abs=0.1)
    # Some clients name an encoding though they send a whole file.
    named = httpx.post(url + "&" + QUERY, content=wav(number())).json()
    assert named["results"]["channels"][0]["alternatives"][0]["transcript"]
    remote = httpx.post(url, json={"url": "http://localhost/a.wav"})
    assert remote.status_code == 400
    assert remote.json()["err_code"] == "REMOTE_CONTENT_UNSUPPORTED"
    assert remote.json().keys() == {"err_code", "err_msg", "request_id"}
    unusable = httpx.post(url, content=b"no audio" * 99)
    assert unusable.status_code == 400 and unusable.json()["err_code"] == "AUDIO_UNDECODABLE"


def test_metrics_time_the_finals(tiny: NativeRecognizer) -> None:
    with serving(tiny) as server:
        with listening(server) as socket:
            hear(socket, number())
            say(socket, "Finalize")
            say(socket, "CloseStream")
            rest(socket)
        page = httpx.get(server.http + "/metrics").text
        labels = '{dialect="deepgram",experiment="",model="tiny"}'
        assert f"pianissimo_time_to_final_seconds_count{labels} 2.0" in page
        assert f"pianissimo_audio_seconds_total{labels} 2.5" in page
        assert 'pianissimo_sockets{dialect="deepgram"} 0.0' in page


def test_the_rest_may_take_longer_than_silence_is_borne(
    tiny: NativeRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who said CloseStream waits in silence, however busy the server is."""
    monkeypatch.setattr(deepgram, "IDLE_SECONDS", 0.3)
    with serving(tiny) as server:
        runner = server.service.engine.runner  # type: ignore[union-attr]
        finish = runner.finish

        def slowly(*work: Any) -> Any:
            time.sleep(1.0)
            return finish(*work)

        monkeypatch.setattr(runner, "finish", slowly)
        with listening(server) as socket:
            hear(socket, number())
            say(socket, "CloseStream")
            messages = rest(socket)
            assert socket.close_code == 1000
        assert messages[-1]["type"] == "Metadata"
