"""The clients of OpenAI and Deepgram, unmodified, against our server: they are the judges."""

import asyncio
import base64
from collections.abc import Iterator

import httpx
import pytest
import soxr
from serving import CLIPS, RATE, Server, pcm, serving, speech

from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

openai = pytest.importorskip("openai", reason="no openai client: pip install 'pianissimo[clients]'")
deepgram = pytest.importorskip("deepgram", reason="no deepgram client: the extra clients has it")
pytestmark = pytest.mark.filterwarnings("ignore")  # their warnings are not ours

NUMBER = "enter four five two nine"


@pytest.fixture
def client(words_server: Server) -> Iterator["openai.OpenAI"]:
    with dial(words_server, "k") as client:
        yield client


def dial(server: Server, key: str) -> "openai.OpenAI":
    return openai.OpenAI(base_url=f"{server.http}/v1", api_key=key, max_retries=0)


@pytest.fixture
def clip() -> tuple[str, bytes, str]:
    return ("number.flac", (CLIPS / "number.flac").read_bytes(), "audio/flac")


# -- openai ----------------------------------------------------------------------------------------


def test_openai_transcriptions(client: "openai.OpenAI", clip: tuple[str, bytes, str]) -> None:
    create = client.audio.transcriptions.create
    assert create(file=clip, model="whisper-1").text == NUMBER
    assert create(file=clip, model="whisper-1", response_format="text").strip() == NUMBER
    assert "-->" in create(file=clip, model="whisper-1", response_format="srt")
    assert create(file=clip, model="whisper-1", response_format="vtt").startswith("WEBVTT")
    verbose = create(
        file=clip,
        model="whisper-1",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
        language="en",
        prompt="numbers",
        temperature=0.0,
    )
    assert [word.word for word in verbose.words] == NUMBER.split()
    assert verbose.segments[0].text == NUMBER and verbose.duration == pytest.approx(2.5, abs=0.1)
    heard = create(
        file=clip, model="gpt-4o-transcribe", include=["logprobs"], chunking_strategy="auto"
    )
    assert "".join(entry.token for entry in heard.logprobs) == NUMBER
    assert heard.usage.type == "duration"


def test_openai_events(client: "openai.OpenAI", clip: tuple[str, bytes, str]) -> None:
    events = list(
        client.audio.transcriptions.create(file=clip, model="gpt-4o-transcribe", stream=True)
    )
    *deltas, done = events
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert done.type == "transcript.text.done" and done.text == NUMBER
    assert "".join(event.delta for event in deltas) == NUMBER


def test_openai_models_and_errors(client: "openai.OpenAI", clip: tuple[str, bytes, str]) -> None:
    model, *voices = client.models.list().data
    assert [voice.id for voice in voices] in ([], ["heart"])
    assert client.models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(file=clip, model="nova")
    with pytest.raises(openai.BadRequestError, match="translate"):
        client.audio.translations.create(file=clip, model="whisper-1")
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(file=("a.wav", b"nonsense" * 99), model="whisper-1")
    assert caught.value.code == "audio_undecodable" and caught.value.param == "file"
    with pytest.raises(openai.BadRequestError) as caught:
        file = ("a.wav", b"nonsense" * 99)
        client.audio.transcriptions.create(file=file, model="whisper-1", stream=True)
    assert caught.value.code == "audio_undecodable"


def test_openai_errors_of_a_closed_server(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(api_keys=("right",))) as server:
        with dial(server, "wrong") as wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        with dial(server, "right") as right:
            with right.realtime.connect(extra_query={"intent": "transcription"}) as connection:
                assert connection.recv().type == "session.created"
            secret = right.realtime.client_secrets.create(session={"type": "transcription"})
        with dial(server, secret.value) as short:
            with short.realtime.connect(extra_query={"intent": "transcription"}) as connection:
                assert connection.recv().type == "session.created"


@pytest.mark.parametrize("turns", [None, {"type": "server_vad"}])
def test_openai_realtime(client: "openai.OpenAI", turns: object) -> None:
    sound = pcm(soxr.resample(speech(2.5), RATE, 24_000)) + bytes(2 * 24_000 * 2)
    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        connection.session.update(
            session={
                "type": "transcription",
                "audio": {
                    "input": {
                        "format": {"type": "audio/pcm", "rate": 24_000},
                        "transcription": {"model": "gpt-4o-transcribe", "language": "en"},
                        "turn_detection": turns,
                    }
                },
            }
        )
        for start in range(0, len(sound), 2400):
            block = base64.b64encode(sound[start : start + 2400]).decode()
            connection.input_audio_buffer.append(audio=block)
        if turns is None:
            connection.input_audio_buffer.commit()
        kinds, text = [], ""
        for event in connection:
            kinds.append(event.type)
            if event.type.endswith("transcription.delta"):
                text += event.delta
            if event.type.endswith("transcription.completed"):
                assert event.transcript == text == NUMBER
                assert event.usage.type == "duration"
                break
    assert "error" not in kinds and "session.updated" in kinds
    assert ("input_audio_buffer.speech_started" in kinds) == (turns is not None)


def test_openai_models_that_find_no_turns(client: "openai.OpenAI") -> None:
    """Whoever names one of them commits, and would be cut twice by a server that also did."""

    def turns(**changes: object) -> object:
        input = {"transcription": {"model": "gpt-live-transcribe"}, **changes}
        session = {"type": "transcription", "audio": {"input": input}}
        connection.session.update(session=session)
        while (event := connection.recv()).type != "session.updated":
            assert event.type == "session.created"
        return event.session.audio.input.turn_detection

    with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        assert turns() is None
        assert turns(turn_detection={"type": "server_vad"}).type == "server_vad"
        assert turns().type == "server_vad"


def test_openai_languages(client: "openai.OpenAI", clip: tuple[str, bytes, str]) -> None:
    """Several may be spoken: the model has to know one of them."""

    def text(*languages: str) -> str:
        body = {"languages": list(languages)}
        create = client.audio.transcriptions.create
        return create(file=clip, model="gpt-transcribe", extra_body=body).text

    assert text("fr", "en-GB") == NUMBER
    with pytest.raises(openai.BadRequestError, match="'fr, de'"):
        text("fr", "de")


# -- deepgram --------------------------------------------------------------------------------------


def place(server: Server) -> object:
    from deepgram.environment import DeepgramClientEnvironment

    return DeepgramClientEnvironment(
        base=server.http, production=server.ws, agent=server.ws, agent_rest=server.http
    )


def test_deepgram_live(words_server: Server) -> None:
    async def talk() -> list:
        client = deepgram.AsyncDeepgramClient(api_key="k", environment=place(words_server))
        messages = []
        async with client.listen.v1.connect(
            model="nova-3", encoding="linear16", sample_rate=RATE, interim_results=True
        ) as socket:
            await socket.send_keep_alive()
            for start in range(0, 40_000, 1600):
                await socket.send_media(pcm(speech(2.5)[start : start + 1600]))
            await socket.send_finalize()
            while not (messages and getattr(messages[-1], "from_finalize", False)):
                messages.append(await asyncio.wait_for(socket.recv(), 30))
            await socket.send_close_stream()
            while messages[-1].type != "Metadata":
                messages.append(await asyncio.wait_for(socket.recv(), 30))
        return messages

    messages = asyncio.run(talk())
    results = [message for message in messages if message.type == "Results"]
    (final,) = [result for result in results if result.from_finalize]
    best = final.channel.alternatives[0]
    assert best.transcript == NUMBER and final.is_final
    assert [word.punctuated_word for word in best.words] == NUMBER.split()
    assert sum(not result.is_final for result in results) >= 2
    assert messages[-1].duration == 2.5


def test_deepgram_recording(words_server: Server, clip: tuple[str, bytes, str]) -> None:
    with httpx.Client() as http:
        client = deepgram.DeepgramClient(
            api_key="k", environment=place(words_server), httpx_client=http
        )
        answer = client.listen.v1.media.transcribe_file(
            request=clip[1], model="nova-3", utterances=True
        )
    assert answer.results.channels[0].alternatives[0].transcript == NUMBER
    assert answer.metadata.duration == pytest.approx(2.5, abs=0.1)


def test_deepgram_speakers(words_server: Server, clip: tuple[str, bytes, str]) -> None:
    with httpx.Client() as http:
        client = deepgram.DeepgramClient(
            api_key="k", environment=place(words_server), httpx_client=http
        )
        answer = client.listen.v1.media.transcribe_file(
            request=clip[1], model="nova-3", utterances=True, diarize=True
        )
    words = answer.results.channels[0].alternatives[0].words
    assert [word.speaker for word in words] == [0] * len(NUMBER.split())
    assert all(0 <= word.speaker_confidence <= 1 for word in words)
    assert answer.results.utterances[0].speaker == 0
