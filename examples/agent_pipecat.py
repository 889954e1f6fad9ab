"""A voice agent in pipecat: speech recognition and voice of this server, and any language model.

    pip install 'pipecat-ai[deepgram,openai]'
    python examples/agent_pipecat.py 127.0.0.1:7860 http://127.0.0.1:11434/v1 llama3.2 \\
        first.wav second.wav +third.wav

Answers recorded questions of one rate and prints both sides as JSON. A + before a name asks that
question into the answer before it, which stops. For a live agent replace the recordings by a
transport of pipecat, such as LocalAudioTransport.
"""

import asyncio
import json
import sys
import wave
from dataclasses import dataclass, field

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.workers.runner import WorkerRunner

PIECE_SECONDS = 0.02
OUTPUT_RATE = 24_000
PATIENCE_SECONDS = 60.0
INSTRUCTIONS = "You are a voice assistant. Answer in one short sentence."


class Transcripts(FrameProcessor):
    """Notes what the user said."""

    def __init__(self) -> None:
        super().__init__()
        self.texts = list[str]()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame):
            self.texts.append(frame.text)
        await self.push_frame(frame, direction)


@dataclass
class Answer:
    """What the agent said in one turn."""

    text: str = ""
    samples: int = 0
    interrupted: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Loudspeaker(FrameProcessor):
    """Notes what the agent said."""

    def __init__(self) -> None:
        super().__init__()
        self.answers, self.errors = list[Answer](), list[str]()
        self.asked, self.begun = asyncio.Event(), asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        answer = self.answers[-1] if self.answers else None
        match frame:
            case LLMFullResponseStartFrame():
                self.answers.append(Answer())
                self.asked.set()
            case TTSAudioRawFrame() if answer:
                answer.samples += len(frame.audio) // 2
                self.begun.set()
            case TTSTextFrame() if answer:
                answer.text = f"{answer.text} {frame.text}".strip()
            case InterruptionFrame() if answer and not answer.over.is_set():
                answer.interrupted = True
                answer.over.set()
            case LLMFullResponseEndFrame() if answer:
                answer.over.set()
            case ErrorFrame():
                self.errors.append(frame.error)
        await self.push_frame(frame, direction)


class Microphone:
    """Recordings in real time, and silence between them."""

    def __init__(self, worker: PipelineWorker, rate: int) -> None:
        self._worker, self._rate, self._sound = worker, rate, b""

    def say(self, sound: bytes) -> None:
        self._sound = sound

    async def run(self) -> None:
        size = round(PIECE_SECONDS * self._rate) * 2
        while True:
            piece, self._sound = self._sound[:size], self._sound[size:]
            frame = InputAudioRawFrame(piece.ljust(size, b"\0"), self._rate, 1)
            await self._worker.queue_frame(frame)
            await asyncio.sleep(PIECE_SECONDS)


def read(path: str) -> tuple[bytes, int]:
    with wave.open(path) as file:
        return file.readframes(file.getnframes()), file.getframerate()


async def converse(microphone: Microphone, loudspeaker: Loudspeaker, questions: list[str]) -> None:
    """Ask one question after the other; one with a + is asked into the answer before it."""
    for number, question in enumerate(questions):
        if number and question.startswith("+"):
            await loudspeaker.begun.wait()
        elif number:
            await loudspeaker.answers[-1].over.wait()
        loudspeaker.asked.clear()
        loudspeaker.begun.clear()
        microphone.say(read(question.removeprefix("+"))[0])
        await loudspeaker.asked.wait()
    await loudspeaker.answers[-1].over.wait()


async def main(place: str, llm_url: str, llm_model: str, *questions: str) -> None:
    rate = read(questions[0])[1]
    stt = DeepgramSTTService(api_key="any", base_url=f"ws://{place}")
    llm = OpenAILLMService(
        api_key="any", base_url=llm_url, settings=OpenAILLMService.Settings(model=llm_model)
    )
    tts = OpenAITTSService(
        api_key="any",
        base_url=f"http://{place}/v1",
        settings=OpenAITTSService.Settings(voice="alloy", model="tts-1"),
    )
    context = LLMContext([{"role": "system", "content": INSTRUCTIONS}])
    # min_volume would drop quiet speakers; the server levels their speech. The microphone never
    # stops, so a gap in its audio is a busy machine and does not end a turn.
    vad = SileroVADAnalyzer(params=VADParams(min_volume=0.0))
    user = LLMUserAggregatorParams(vad_analyzer=vad, audio_idle_timeout=0.0)
    pair = LLMContextAggregatorPair(context, user_params=user)
    transcripts, loudspeaker = Transcripts(), Loudspeaker()
    pipeline = Pipeline([stt, transcripts, pair.user(), llm, tts, loudspeaker, pair.assistant()])
    params = PipelineParams(audio_in_sample_rate=rate, audio_out_sample_rate=OUTPUT_RATE)
    worker, runner = PipelineWorker(pipeline, params=params), WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    microphone = Microphone(worker, rate)
    speaking = asyncio.create_task(microphone.run())
    async with asyncio.timeout(PATIENCE_SECONDS * len(questions)):
        await converse(microphone, loudspeaker, list(questions))
        speaking.cancel()
        await worker.queue_frame(EndFrame())
        await running
    answers = [
        {
            "text": answer.text,
            "seconds": answer.samples / OUTPUT_RATE,
            "interrupted": answer.interrupted,
        }
        for answer in loudspeaker.answers
    ]
    print(json.dumps({"you": transcripts.texts, "agent": answers, "errors": loudspeaker.errors}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
