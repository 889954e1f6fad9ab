"""What pipecat's services make of a clip, as JSON: python talk_pipecat.py HOST:PORT CLIP.wav"""

import asyncio
import json
import sys
import wave
from collections.abc import Callable
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterimTranscriptionFrame,
    ProposedUserStartedSpeakingFrame,
    ProposedUserStoppedSpeakingFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.services.openai.stt import OpenAIRealtimeSTTService, OpenAISTTService
from pipecat.services.stt_service import STTService
from pipecat.workers.runner import WorkerRunner

PIECE_SECONDS = 0.02
PAUSE_SECONDS = {True: 0.2, False: 2.0}
"""Silence after the clip: a detector here tells the service soon, the server waits longer."""
PATIENCE_SECONDS = 60.0


class Collector(FrameProcessor):
    """Notes what comes out of the service."""

    def __init__(self) -> None:
        super().__init__()
        self.interim, self.proposed, self.errors = "", list[str](), list[str]()
        self.final: TranscriptionFrame | None = None
        self.done = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        match frame:
            case TranscriptionFrame():
                self.final = frame
                self.done.set()
            case InterimTranscriptionFrame():
                self.interim += f"|{frame.text}"
            case ProposedUserStartedSpeakingFrame():
                self.proposed.append("started")
            case ProposedUserStoppedSpeakingFrame():
                self.proposed.append("stopped")
            case ErrorFrame():
                self.errors.append(frame.error)
                self.done.set()
        await self.push_frame(frame, direction)


async def talk(
    make: Callable[[], STTService], sound: bytes, rate: int, *, local_vad: bool
) -> dict[str, Any]:
    """One pipeline with one service, which hears the clip and a pause."""
    heard = Collector()
    worker = PipelineWorker(
        Pipeline([make(), heard]), params=PipelineParams(audio_in_sample_rate=rate)
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    if local_vad:
        await worker.queue_frame(VADUserStartedSpeakingFrame())
    step = round(PIECE_SECONDS * rate) * 2
    sound += bytes(round(PAUSE_SECONDS[local_vad] * rate) * 2)
    for start in range(0, len(sound), step):
        piece = sound[start : start + step]
        await worker.queue_frame(InputAudioRawFrame(piece, rate, 1))
        await asyncio.sleep(PIECE_SECONDS / 4)
    if local_vad:
        await worker.queue_frame(VADUserStoppedSpeakingFrame())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await heard.done.wait()
        if heard.final is None:
            sys.exit(f"no final text: {heard.errors}")
        await worker.queue_frame(EndFrame())
        await running
    return {
        "text": heard.final.text,
        "finalized": heard.final.finalized,
        "interim": heard.interim,
        "proposed": heard.proposed,
        "errors": heard.errors,
    }


async def main(place: str, clip: str) -> None:
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    with wave.open(clip) as file:
        rate, sound = file.getframerate(), file.readframes(file.getnframes())

    def realtime(**options: Any) -> Callable[[], STTService]:
        return lambda: OpenAIRealtimeSTTService(
            api_key="any", base_url=f"ws://{place}/v1/realtime", **options
        )

    found = {
        "deepgram": await talk(
            lambda: DeepgramSTTService(api_key="any", base_url=f"ws://{place}"),
            sound,
            rate,
            local_vad=True,
        ),
        "realtime": await talk(realtime(), sound, rate, local_vad=True),
        "realtime with server VAD": await talk(
            realtime(turn_detection={"type": "server_vad"}), sound, rate, local_vad=False
        ),
        "rest": await talk(
            lambda: OpenAISTTService(api_key="any", base_url=f"http://{place}/v1"),
            sound,
            rate,
            local_vad=True,
        ),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
