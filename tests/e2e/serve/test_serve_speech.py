"""/v1/audio/speech and /v1/speak: the clients of OpenAI and Deepgram, unmodified, and bad input."""

import asyncio
import base64
import json
import socket as sockets
import threading
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import websockets
from serving import Server, serving
from tiny_voice import RATE, TinyVoice

from pianissimo.audio.io import load_audio
from pianissimo.errors import OptionError
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

openai = pytest.importorskip("openai", reason="no openai client: pip install 'pianissimo[clients]'")
deepgram = pytest.importorskip("deepgram", reason="no deepgram client: the extra clients has it")
pytestmark = pytest.mark.filterwarnings("ignore")  # their warnings are not ours

TEXT = "One two three. Four five. Six."
SECONDS = 0.6 + 3 * 0.2
"""Of TEXT: six words and three pauses."""


@pytest.fixture(scope="module")
def talking(tiny: NativeRecognizer) -> Iterator[Server]:
    with serving(tiny, voices={"tones": TinyVoice(), "other": TinyVoice(sample_rate=22_050)}) as it:
        yield it


@pytest.fixture
def client(talking: Server) -> Iterator["openai.OpenAI"]:
    with openai.OpenAI(base_url=f"{talking.http}/v1", api_key="k", max_retries=0) as client:
        yield client


def post(server: Server, **body: object) -> httpx.Response:
    return httpx.post(f"{server.http}/v1/audio/speech", json=body, timeout=60)


def duration(audio: bytes) -> float:
    return len(load_audio(audio, sample_rate=RATE)) / RATE


# -- openai ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["mp3", "opus", "aac", "flac", "wav"])
def test_openai_formats_decode_to_the_whole_text(client: "openai.OpenAI", format: str) -> None:
    create = client.audio.speech.with_streaming_response.create
    with create(model="tts-1", voice="alloy", input=TEXT, response_format=format) as response:
        audio = b"".join(response.iter_bytes())
    assert duration(audio) == pytest.approx(SECONDS, abs=0.1)
    assert response.headers["content-type"].startswith("audio/")


@pytest.mark.parametrize("voice", ["tones", "other", {"id": "tones"}, "coral"])
def test_openai_pcm_is_24_khz_for_every_voice(client: "openai.OpenAI", voice: object) -> None:
    audio = client.audio.speech.create(
        model="gpt-4o-mini-tts", voice=voice, input=TEXT, response_format="pcm", speed=2.0
    ).content
    samples = np.frombuffer(audio, "<i2")
    assert len(samples) / RATE == pytest.approx(SECONDS / 2, abs=0.01)
    assert 0.25 < np.abs(samples).max() / 32_767 < 0.35


def test_openai_events_carry_the_same_audio(client: "openai.OpenAI") -> None:
    create = client.audio.speech.with_streaming_response.create
    fields = {"model": "tts-1", "voice": "alloy", "input": TEXT, "response_format": "pcm"}
    with create(**fields, stream_format="sse") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    audio = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert audio == client.audio.speech.create(**fields).content
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["input_tokens"] == len(TEXT)
    assert done["usage"]["total_tokens"] == len(TEXT) + done["usage"]["output_tokens"]


def test_openai_models_list_the_voices(client: "openai.OpenAI") -> None:
    tasks = {model.id: model.task for model in client.models.list().data}
    assert tasks.pop("tones") == tasks.pop("other") == "text-to-speech"
    assert set(tasks.values()) == {"automatic-speech-recognition"}
    assert client.models.retrieve("tones").task == "text-to-speech"


def test_audio_comes_before_the_last_sentence_is_synthesized(tiny: NativeRecognizer) -> None:
    voice = TinyVoice(gates=3)
    voice.gates[0].set()
    body = {"input": TEXT, "response_format": "pcm"}
    with (
        serving(tiny, voices={"tones": voice}) as server,
        httpx.stream("POST", f"{server.http}/v1/audio/speech", json=body, timeout=30) as response,
    ):
        pieces = response.iter_bytes()
        received = len(next(pieces))
        assert response.status_code == 200 and received > 0
        assert len(voice.spoken) <= 2
        for gate in voice.gates:
            gate.set()
        received += sum(map(len, pieces))
    assert received == pytest.approx(2 * RATE * SECONDS, abs=2)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input": ""}, 400, "text_empty", "input"),
        ({"input": "🙂🎉"}, 400, "text_empty", "input"),
        ({"input": "x" * 100_000}, 400, "text_too_long", "input"),
        ({"input": "x" * 4_097}, 400, "text_too_long", "input"),
        ({"input": "<speak>Hello</speak>"}, 400, "text_markup_unsupported", "input"),
        ({"input": "你好"}, 400, "text_script_unsupported", "input"),
        ({}, 400, "missing_input", "input"),
        ({"input": 5}, 400, "invalid_value", "input"),
        ({"input": "Hi.", "voice": "nobody"}, 400, "unknown_voice", "voice"),
        ({"input": "Hi.", "voice": 7}, 400, "invalid_value", "voice"),
        ({"input": "Hi.", "model": "whisper-1"}, 404, "model_not_found", "model"),
        ({"input": "Hi.", "response_format": "ogg"}, 400, "unsupported_response_format", None),
        ({"input": "Hi.", "stream_format": "xml"}, 400, "unsupported_stream_format", None),
        ({"input": "Hi.", "speed": 9}, 400, "invalid_option", None),
        ({"input": "Hi.", "speed": "fast"}, 400, "invalid_value", "speed"),
        ({"input": "Hi.", "speed": True}, 400, "invalid_value", "speed"),
    ],
)
def test_bad_requests_get_a_typed_error(
    talking: Server, body: dict[str, object], status: int, code: str, param: str | None
) -> None:
    answer = post(talking, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert param is None or error["param"] == param
    assert post(talking, input="Still here.").status_code == 200


def test_bodies_that_are_no_json_are_refused(talking: Server) -> None:
    url = f"{talking.http}/v1/audio/speech"
    assert httpx.post(url, data={"input": "Hi."}).status_code == 400
    answer = httpx.post(url, content=b"{", headers={"content-type": "application/json"})
    assert answer.json()["error"]["code"] == "invalid_json"
    answer = httpx.post(url, content=b"x" * (2 << 20), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_ignored_instructions_are_named_in_a_header(talking: Server) -> None:
    answer = post(talking, input="Hi.", instructions="Speak like a pirate.")
    assert answer.headers["x-ignored-fields"] == "instructions"
    assert answer.headers["x-voice"] == "tones"


def vanish(server: Server, request: bytes, wait: float = 0.2) -> None:
    """Send a request, read a little, and cut the connection."""
    with sockets.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request)
        connection.recv(64)
        time.sleep(wait)


def test_synthesis_stops_for_a_client_that_vanishes(tiny: NativeRecognizer) -> None:
    text = "One two. " * 40
    voice = TinyVoice(gates=40)
    for gate in voice.gates[:3]:
        gate.set()
    body = json.dumps({"input": text, "response_format": "pcm"}).encode()
    head = (
        b"POST /v1/audio/speech HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    )
    with serving(tiny, voices={"tones": voice}) as server:
        vanish(server, head + body)
        voices = server.service.voices
        assert voices.in_use == 1  # the sentence that waits for its gate
        for gate in voice.gates:
            gate.set()
        server.wait_until_empty()
        begun = len(voice.spoken)
        assert begun < 10
        assert post(server, input="Still here.").status_code == 200
        assert len(voice.spoken) == begun + 1


def test_texts_above_the_capacity_wait_and_then_are_refused(tiny: NativeRecognizer) -> None:
    voice = TinyVoice(gates=1)
    settings = Settings(max_speeches=1)
    with serving(tiny, settings, {"tones": voice}) as server:
        statuses = list[int]()
        threads = [
            threading.Thread(target=lambda: statuses.append(post(server, input="Hi.").status_code))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        voices = server.service.voices
        end = time.monotonic() + 10
        while voices.in_use + voices.waiting < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        refused = post(server, input="Hi.")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "server_full")
        voice.gates[0].set()
        for thread in threads:
            thread.join()
        assert statuses == [200, 200]


def test_a_server_without_voices_says_what_to_install(tiny: NativeRecognizer) -> None:
    with serving(tiny, voices={}) as server:
        answer = post(server, input="Hi.")
        assert answer.status_code == 501 and "pianissimo[tts]" in answer.text
        assert len(httpx.get(f"{server.http}/v1/models").json()["data"]) == 1


def test_keys_and_draining_apply_to_speech(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(api_keys=("secret",)), {"tones": TinyVoice()}) as server:
        assert post(server, input="Hi.").status_code == 401
        headers = {"authorization": "Bearer secret"}
        url = f"{server.http}/v1/audio/speech"
        assert httpx.post(url, json={"input": "Hi."}, headers=headers).status_code == 200
        assert server.service.keys.accounts[0].audio_seconds == pytest.approx(0.3)
        server.service.set_draining(True)
        assert httpx.post(url, json={"input": "Hi."}, headers=headers).status_code == 503


def test_metrics_count_speech(talking: Server) -> None:
    post(talking, input="One two three.")
    page = httpx.get(f"{talking.http}/metrics").text
    assert 'pianissimo_speech_seconds_total{dialect="openai",voice="tones"}' in page
    assert 'pianissimo_time_to_first_audio_seconds_count{dialect="openai",voice="tones"}' in page


def test_a_voice_must_not_have_the_name_of_a_model(tiny: NativeRecognizer) -> None:
    from pianissimo.serve.service import Service

    with pytest.raises(OptionError, match="names a model and a voice"):
        Service(Settings(), tiny, {tiny.name: TinyVoice()})


def test_the_default_voice_is_loaded_on_first_use(tiny: NativeRecognizer) -> None:
    pytest.importorskip("hibari", reason="needs the extra tts")
    with serving(tiny) as server:
        answer = post(server, input="Seven streams at once.", response_format="wav")
        assert answer.headers["x-voice"] == "heart"
        samples = load_audio(answer.content, sample_rate=RATE)
        assert 1 < len(samples) / RATE < 3 and np.abs(samples).max() > 0.1


# -- deepgram --------------------------------------------------------------------------------------


@pytest.fixture
def deepgram_client(talking: Server) -> "deepgram.DeepgramClient":
    from deepgram.environment import DeepgramClientEnvironment

    environment = DeepgramClientEnvironment(
        base=talking.http, production=talking.ws, agent=talking.ws, agent_rest=talking.http
    )
    return deepgram.DeepgramClient(api_key="k", environment=environment)


@pytest.mark.parametrize("encoding", ["mp3", "opus", "flac", "aac", "linear16", None])
def test_deepgram_speaks_a_text(
    deepgram_client: "deepgram.DeepgramClient", encoding: str | None
) -> None:
    options = {} if encoding is None else {"encoding": encoding}
    pieces = deepgram_client.speak.v1.audio.generate(text=TEXT, model="aura-2-thalia-en", **options)
    assert duration(b"".join(pieces)) == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize(("encoding", "rate"), [("mulaw", 8_000), ("linear16", 48_000)])
def test_deepgram_raw_samples_have_the_requested_rate(
    talking: Server, encoding: str, rate: int
) -> None:
    query = {"encoding": encoding, "container": "none", "sample_rate": rate, "model": "tones"}
    answer = httpx.post(f"{talking.http}/v1/speak", params=query, json={"text": TEXT})
    width = 1 if encoding == "mulaw" else 2
    assert len(answer.content) == pytest.approx(width * rate * SECONDS, abs=4)
    assert answer.headers["dg-model-name"] == "tones"
    assert answer.headers["dg-char-count"] == str(len(TEXT))


@pytest.mark.parametrize(
    ("query", "body", "code"),
    [
        ({"encoding": "gsm"}, {"text": "Hi."}, "UNSUPPORTED_ENCODING"),
        ({"container": "avi"}, {"text": "Hi."}, "UNSUPPORTED_CONTAINER"),
        ({"sample_rate": "x"}, {"text": "Hi."}, "INVALID_VALUE"),
        ({"encoding": "opus", "sample_rate": "44100"}, {"text": "Hi."}, "INVALID_OPTION"),
        ({"model": "nobody"}, {"text": "Hi."}, "UNKNOWN_VOICE"),
        ({}, {"text": ""}, "TEXT_EMPTY"),
        ({}, {"text": "🙂🎉"}, "TEXT_EMPTY"),
        ({}, {"text": "x" * 100_000}, "TEXT_TOO_LONG"),
        ({}, {"text": "<speak>Hello</speak>"}, "TEXT_MARKUP_UNSUPPORTED"),
        ({}, {"text": "你好"}, "TEXT_SCRIPT_UNSUPPORTED"),
        ({}, {"url": "http://x"}, "MISSING_TEXT"),
    ],
)
def test_deepgram_errors_have_its_shape(
    talking: Server, query: dict[str, str], body: dict[str, str], code: str
) -> None:
    answer = httpx.post(f"{talking.http}/v1/speak", params=query, json=body)
    assert (answer.status_code, answer.json()["err_code"]) == (400, code)
    again = httpx.post(f"{talking.http}/v1/speak", json={"text": "Still here."})
    assert again.status_code == 200


def test_deepgram_speaks_on_a_socket(deepgram_client: "deepgram.DeepgramClient") -> None:
    from deepgram.core.events import EventType
    from deepgram.speak.v1.types import SpeakV1Text

    audio, kinds = bytearray(), list[str]()

    def on_message(message: object) -> None:
        if isinstance(message, bytes):
            audio.extend(message)
        else:
            kinds.append(message.type)
            if kinds[-1] == "Flushed":
                socket.send_close()

    with deepgram_client.speak.v1.connect(
        model="aura-2-thalia-en", encoding="linear16", sample_rate=RATE
    ) as socket:
        socket.on(EventType.MESSAGE, on_message)
        socket.send_text(SpeakV1Text(text="One two three. Four "))
        socket.send_text(SpeakV1Text(text="five. Six."))
        socket.send_flush()
        socket.start_listening()
    assert kinds[:2] == ["Metadata", "Flushed"]
    assert len(audio) == pytest.approx(2 * RATE * SECONDS, abs=2)


def test_deepgram_clear_drops_what_was_not_spoken(tiny: NativeRecognizer) -> None:
    voice = TinyVoice(gates=1)

    async def talk(server: Server) -> list[str | bytes]:
        messages = list[str | bytes]()
        async with websockets.connect(f"{server.ws}/v1/speak?encoding=linear16") as socket:
            text = {"type": "Speak", "text": "One two. Three four. Five six. "}
            await socket.send(json.dumps(text))
            while not voice.spoken:
                await asyncio.sleep(0.01)
            await socket.send(json.dumps({"type": "Clear"}))
            while not messages or b"Cleared" not in str(messages[-1]).encode():
                messages.append(await socket.recv())
            voice.gates[0].set()
            await socket.send(json.dumps({"type": "Speak", "text": "Seven."}))
            await socket.send(json.dumps({"type": "Close"}))
            async for message in socket:
                messages.append(message)
        return messages

    with serving(tiny, voices={"tones": voice}) as server:
        messages = asyncio.run(talk(server))
        server.wait_until_empty()
    assert voice.spoken == ["One two.", "Seven."]
    audio = b"".join(message for message in messages if isinstance(message, bytes))
    assert len(audio) == pytest.approx(2 * RATE * 0.3, abs=2)


def test_deepgram_warns_of_sentences_it_cannot_speak(talking: Server) -> None:
    async def talk() -> list[dict[str, object]]:
        async with websockets.connect(f"{talking.ws}/v1/speak") as socket:
            await socket.send(json.dumps({"type": "Speak", "text": "你好. 🙂. Hello there."}))
            await socket.send(json.dumps({"type": "Close"}))
            return [json.loads(m) for m in [m async for m in socket] if isinstance(m, str)]

    kinds = [message["type"] for message in asyncio.run(talk())]
    assert kinds == ["Metadata", "Warning", "Flushed"]


def test_a_socket_that_vanishes_while_spoken_to_frees_its_seat(tiny: NativeRecognizer) -> None:
    voice = TinyVoice(gates=40)
    for gate in voice.gates[:3]:
        gate.set()

    async def talk(server: Server) -> None:
        socket = await websockets.connect(f"{server.ws}/v1/speak")
        await socket.send(json.dumps({"type": "Speak", "text": "One two. " * 40 + "End. A"}))
        while len(voice.spoken) < 4:
            await asyncio.sleep(0.01)
        socket.transport.abort()

    with serving(tiny, voices={"tones": voice}) as server:
        asyncio.run(talk(server))
        for gate in voice.gates:
            gate.set()
        server.wait_until_empty()
        assert len(voice.spoken) < 10
