"""OpenAI's package holds a spoken conversation of three turns with one interruption."""

import asyncio
import base64
from typing import Any

import numpy as np
import openai
import pytest
import soxr
from scripted_llm import FakeLLM, Reply, scripted, words
from serving import CLIPS, RATE, Server, pcm, serving

import pianissimo
from pianissimo.audio.io import load_audio
from pianissimo.errors import MissingExtraError
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

OUTPUT_RATE = 24_000
BLOCK_SECONDS = 0.1
NUMBER = "enter four five two nine"
STORY = "Once upon a time there was a very long story. " * 4
ANSWERS = ("You said four five two nine.", Reply(words(STORY), holds=True), "Good bye.")


class Caller:
    """A person with a loudspeaker: speaks in real time, hears, and stops playing when it speaks."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.events = connection, list[Any]()
        self.silence = True
        self.sound = b""
        self.audio: dict[str, bytes] = {}
        self.done = asyncio.Event()
        self.playing = asyncio.Event()

    async def speak(self) -> None:
        """The microphone: what is said, or silence."""
        size = 2 * round(BLOCK_SECONDS * OUTPUT_RATE)
        while True:
            block, self.sound = self.sound[:size], self.sound[size:]
            audio = base64.b64encode(block.ljust(size, b"\0")).decode()
            await self.connection.input_audio_buffer.append(audio=audio)
            await asyncio.sleep(BLOCK_SECONDS)

    async def hear(self) -> None:
        async for event in self.connection:
            self.events.append(event)
            match event.type:
                case "response.output_audio.delta":
                    before = self.audio.get(event.item_id, b"")
                    self.audio[event.item_id] = before + base64.b64decode(event.delta)
                    self.playing.set()
                case "input_audio_buffer.speech_started" if self.playing.is_set() and self.audio:
                    item = list(self.audio)[-1]
                    if not self.done.is_set():
                        await self.connection.conversation.item.truncate(
                            item_id=item, content_index=0, audio_end_ms=800
                        )
                case "response.done":
                    self.done.set()

    async def turn(self, sound: bytes) -> None:
        self.done.clear()
        self.playing.clear()
        self.sound = sound
        await asyncio.wait_for(self.playing.wait(), 30)


async def converse(server: Server, sound: bytes) -> Caller:
    client = openai.AsyncOpenAI(base_url=f"{server.http}/v1", api_key="any", max_retries=0)
    async with client, client.realtime.connect(model="gpt-realtime") as connection:
        caller = Caller(connection)
        await connection.session.update(
            session={
                "type": "realtime",
                "instructions": "Be brief.",
                "audio": {
                    "input": {
                        "transcription": {"model": "gpt-4o-transcribe"},
                        "turn_detection": {"type": "server_vad", "silence_duration_ms": 400},
                    },
                    "output": {"voice": "marin"},
                },
            }
        )
        tasks = [asyncio.create_task(caller.speak()), asyncio.create_task(caller.hear())]
        try:
            await caller.turn(sound)
            await asyncio.wait_for(caller.done.wait(), 30)
            await asyncio.sleep(3.0)  # the answer is played
            await caller.turn(sound)
            await asyncio.sleep(1.0)
            caller.sound = sound  # interrupts the story
            await asyncio.wait_for(caller.done.wait(), 30)
            caller.done.clear()
            await asyncio.wait_for(caller.done.wait(), 30)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return caller


def check_texts(fake: FakeLLM) -> None:
    told = [[(m["role"], m["content"]) for m in r["messages"]] for r in fake.requests]
    assert told[0] == [("system", "Be brief."), ("user", NUMBER)]
    assert told[1][1:] == [("user", NUMBER), ("assistant", ANSWERS[0]), ("user", NUMBER)]
    role, heard = told[2][4]
    assert role == "assistant" and heard.endswith(" —") and len(heard.split()) < 10
    assert STORY.startswith(heard.removesuffix(" —"))
    assert told[2][5] == ("user", NUMBER)


def test_three_turns_with_one_interruption(embedded: NativeRecognizer) -> None:
    try:
        voice = pianissimo.load_voice()
    except MissingExtraError as error:
        pytest.skip(str(error))
    number = load_audio(CLIPS / "number.flac")
    sound = pcm(soxr.resample(number, RATE, OUTPUT_RATE))
    with scripted(*ANSWERS) as fake:
        settings = Settings(llm_url=fake.url, llm_model="scripted", llm_eager=False)
        with serving(embedded, settings, {"heart": voice}) as server:
            caller = asyncio.run(converse(server, sound))
            server.wait_until_empty()
        check_texts(fake)
        assert fake.hung_up == 1
    responses = [e.response for e in caller.events if e.type == "response.done"]
    assert [r.status for r in responses] == ["completed", "cancelled", "completed"]
    assert responses[1].status_details.reason == "turn_detected"
    assert not [e for e in caller.events if e.type == "error"]
    said = [e.transcript for e in caller.events if e.type.endswith("transcription.completed")]
    assert said == [NUMBER] * 3
    truncated = [e for e in caller.events if e.type == "conversation.item.truncated"]
    assert [e.audio_end_ms for e in truncated] == [800]
    first, _, last = caller.audio.values()
    samples = np.frombuffer(first, "<i2").astype(np.float32) / 32768
    assert 1.5 < len(samples) / OUTPUT_RATE < 4 and np.abs(samples).max() > 0.05
    assert len(last) > OUTPUT_RATE
    # The words of the answer are heard back by a recognizer.
    heard = embedded.transcribe(samples, sample_rate=OUTPUT_RATE).text
    assert "four five two nine" in heard
