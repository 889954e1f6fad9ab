"""A voice agent in pipecat: speech recognition and voice of this server, and any language model.

    pip install 'pipecat-ai[deepgram,openai]'
    python examples/agent_pipecat.py 127.0.0.1:7860 http://127.0.0.1:11434/v1 llama3.2 question.wav

Answers one recorded question and prints both sides as JSON. For a live agent replace the recording
by a transport of pipecat, such as LocalAudioTransport.
"""

import asyncio
import json
import sys
import wave

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import (
    BotStoppedSpeakingFrame,
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSStoppedFrame,
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
PATIENCE_SECONDS = 60.0
INSTRUCTIONS = "You are a voice assistant. Answer in one short sentence."


class Transcripts(FrameProcessor):
    """Notes what the user said."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame):
            self.text = f"{self.text} {frame.text}".strip()
        await self.push_frame(frame, direction)


class Loudspeaker(FrameProcessor):
    """Notes what the agent said."""

    def __init__(self) -> None:
        super().__init__()
        self.samples, self.text, self.errors = 0, "", list[str]()
        self.done = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        match frame:
            case TTSAudioRawFrame():
                self.samples += len(frame.audio) // 2
            case TTSTextFrame():
                self.text = f"{self.text} {frame.text}".strip()
            case TTSStoppedFrame() | BotStoppedSpeakingFrame() if self.samples:
                self.done.set()
            case ErrorFrame():
                self.errors.append(frame.error)
                self.done.set()
        await self.push_frame(frame, direction)


async def main(place: str, llm_url: str, llm_model: str, question: str) -> None:
    with wave.open(question) as file:
        rate, sound = file.getframerate(), file.readframes(file.getnframes())
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
    # min_volume would drop quiet speakers; the server levels their speech.
    vad = SileroVADAnalyzer(params=VADParams(min_volume=0.0))
    pair = LLMContextAggregatorPair(context, user_params=LLMUserAggregatorParams(vad_analyzer=vad))
    transcripts, loudspeaker = Transcripts(), Loudspeaker()
    pipeline = Pipeline([stt, transcripts, pair.user(), llm, tts, loudspeaker, pair.assistant()])
    params = PipelineParams(audio_in_sample_rate=rate, audio_out_sample_rate=24_000)
    worker, runner = PipelineWorker(pipeline, params=params), WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())

    async def speak() -> None:
        step = round(PIECE_SECONDS * rate) * 2
        for start in range(0, len(sound), step):
            await worker.queue_frame(InputAudioRawFrame(sound[start : start + step], rate, 1))
            await asyncio.sleep(PIECE_SECONDS)
        while True:  # the microphone stays open
            await worker.queue_frame(InputAudioRawFrame(bytes(step), rate, 1))
            await asyncio.sleep(PIECE_SECONDS)

    speaking = asyncio.create_task(speak())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await loudspeaker.done.wait()
        speaking.cancel()
        await worker.queue_frame(EndFrame())
        await running
    seconds = loudspeaker.samples / 24_000
    found = {"you": transcripts.text, "agent": loudspeaker.text, "seconds": seconds}
    print(json.dumps({**found, "errors": loudspeaker.errors}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
