"""What pipecat's services play of a text, as JSON: python speak_pipecat.py HOST:PORT TEXT"""

import array
import asyncio
import json
import sys
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.deepgram.tts import DeepgramTTSService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.services.tts_service import TTSService
from pipecat.workers.runner import WorkerRunner

RATE = 24_000
PATIENCE_SECONDS = 60.0


class Collector(FrameProcessor):
    """Notes the audio that comes out of the service."""

    def __init__(self) -> None:
        super().__init__()
        self.samples, self.errors = array.array("h"), list[str]()
        self.done = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        match frame:
            case TTSAudioRawFrame():
                assert frame.sample_rate == RATE
                self.samples.frombytes(frame.audio)
            case TTSStoppedFrame():
                self.done.set()
            case ErrorFrame():
                self.errors.append(frame.error)
                self.done.set()
        await self.push_frame(frame, direction)


async def spoken(service: TTSService, text: str) -> dict[str, Any]:
    """Seconds and largest sample of the audio, and errors."""
    played = Collector()
    worker = PipelineWorker(
        Pipeline([service, played]), params=PipelineParams(audio_out_sample_rate=RATE)
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    await worker.queue_frame(TTSSpeakFrame(text))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await played.done.wait()
        await worker.queue_frame(EndFrame())
        await running
    return {
        "seconds": len(played.samples) / RATE,
        "peak": max(map(abs, played.samples), default=0),
        "errors": played.errors,
    }


async def main(place: str, text: str) -> None:
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    found = {
        "openai": await spoken(
            OpenAITTSService(api_key="any", base_url=f"http://{place}/v1"), text
        ),
        "deepgram": await spoken(DeepgramTTSService(api_key="any", base_url=f"ws://{place}"), text),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
