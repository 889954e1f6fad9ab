"""A voice agent in LiveKit: speech recognition and voice of this server, and any language model.

    pip install livekit-agents livekit-plugins-deepgram livekit-plugins-openai
    python examples/agent_livekit.py 127.0.0.1:7860 http://127.0.0.1:11434/v1 llama3.2 \\
        first.wav second.wav +third.wav

Answers recorded questions of one rate and prints both sides as JSON. A + before a name asks that
question into the answer before it, which stops. Microphone and loudspeaker are those of this file;
for a live agent give the same session to a room.
"""

import asyncio
import json
import sys
import time
import wave

from livekit import rtc
from livekit.agents import Agent, AgentSession, ConversationItemAddedEvent, ErrorEvent, utils
from livekit.agents.voice import io
from livekit.plugins import deepgram, openai

PIECE_SECONDS = 0.02
PATIENCE_SECONDS = 60.0
INSTRUCTIONS = "You are a voice assistant. Answer in one short sentence."


class Microphone(io.AudioInput):
    """Recordings in real time, and silence between them."""

    def __init__(self, rate: int) -> None:
        super().__init__(label="recordings")
        self._rate, self._sound = rate, b""

    def say(self, sound: bytes) -> None:
        self._sound = sound

    async def __anext__(self) -> rtc.AudioFrame:
        await asyncio.sleep(PIECE_SECONDS)
        samples = round(PIECE_SECONDS * self._rate)
        piece, self._sound = self._sound[: 2 * samples], self._sound[2 * samples :]
        return rtc.AudioFrame(piece.ljust(2 * samples, b"\0"), self._rate, 1, samples)


class Loudspeaker(io.AudioOutput):
    """Plays in real time what the agent says, without a sound, and notes for how long."""

    def __init__(self) -> None:
        super().__init__(label="clock", capabilities=io.AudioOutputCapabilities(pause=False))
        self.playing = asyncio.Event()
        self.played_seconds = list[float]()
        self._started, self._seconds = 0.0, 0.0
        self._end: asyncio.TimerHandle | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._seconds:
            self._started = time.time()
            self.playing.set()
            self.on_playback_started(created_at=self._started)
        self._seconds += frame.duration

    def flush(self) -> None:
        """No more audio of this answer follows."""
        super().flush()
        if self._seconds:
            rest = self._started + self._seconds - time.time()
            self._end = asyncio.get_running_loop().call_later(rest, self._finish, False)

    def clear_buffer(self) -> None:
        """The user interrupts."""
        if self._seconds:
            self._finish(True)

    def _finish(self, interrupted: bool) -> None:
        if self._end is not None:
            self._end.cancel()
        position = min(self._seconds, time.time() - self._started)
        self._seconds, self._end = 0.0, None
        self.playing.clear()
        self.played_seconds.append(position)
        self.on_playback_finished(playback_position=position, interrupted=interrupted)


class Conversation:
    """What both sides said, and the errors of the session."""

    def __init__(self, session: AgentSession) -> None:
        self.you, self.errors = list[str](), list[str]()
        self.agent = list[dict[str, str | bool]]()
        self.answered = asyncio.Event()
        session.on("conversation_item_added", self._add)
        session.on("error", self._fail)

    def _add(self, event: ConversationItemAddedEvent) -> None:
        if event.item.type != "message":
            return
        text = event.item.text_content or ""
        if event.item.role == "user":
            self.you.append(text)
        elif event.item.role == "assistant":
            self.agent.append({"text": text, "interrupted": event.item.interrupted})
            self.answered.set()

    def _fail(self, event: ErrorEvent) -> None:
        self.errors.append(str(event.error))


def read(path: str) -> tuple[bytes, int]:
    with wave.open(path) as file:
        return file.readframes(file.getnframes()), file.getframerate()


async def converse(
    microphone: Microphone, loudspeaker: Loudspeaker, said: Conversation, questions: list[str]
) -> None:
    """Ask one question after the other; one with a + is asked into the answer before it."""
    for number, question in enumerate(questions):
        said.answered.clear()
        microphone.say(read(question.removeprefix("+"))[0])
        if questions[number + 1 :] and questions[number + 1].startswith("+"):
            await loudspeaker.playing.wait()
            continue
        while len(said.agent) <= number:
            await said.answered.wait()
            said.answered.clear()


async def main(place: str, llm_url: str, llm_model: str, *questions: str) -> None:
    microphone, loudspeaker = Microphone(read(questions[0])[1]), Loudspeaker()
    async with utils.http_context.open():
        session = AgentSession(
            stt=deepgram.STT(base_url=f"http://{place}/v1/listen", api_key="any"),
            llm=openai.LLM(base_url=llm_url, api_key="any", model=llm_model),
            tts=openai.TTS(
                base_url=f"http://{place}/v1", api_key="any", model="tts-1", voice="alloy"
            ),
            # LiveKit's own detectors of turns and of interruptions are services of its cloud.
            turn_handling={
                "turn_detection": "vad",
                "interruption": {"mode": "vad"},
                "preemptive_generation": {"enabled": False},
            },
            aec_warmup_duration=None,  # there is no echo
        )
        said = Conversation(session)
        session.input.audio, session.output.audio = microphone, loudspeaker
        await session.start(Agent(instructions=INSTRUCTIONS), record=False)
        async with asyncio.timeout(PATIENCE_SECONDS * len(questions)):
            await converse(microphone, loudspeaker, said, list(questions))
        await session.aclose()
    answers = [
        {**answer, "seconds": seconds}
        for answer, seconds in zip(said.agent, loudspeaker.played_seconds, strict=True)
    ]
    print(json.dumps({"you": said.you, "agent": answers, "errors": said.errors}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
