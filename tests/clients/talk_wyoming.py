"""What the Wyoming client makes of a clip, as JSON: python talk_wyoming.py HOST:PORT CLIP.wav

The events are those of Home Assistant's speech-to-text entity, in its order.
"""

import asyncio
import json
import sys
import wave

from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info

PATIENCE_SECONDS = 60.0


async def main(place: str, clip: str) -> None:
    host, _, port = place.rpartition(":")
    text, chunks = None, ""
    async with AsyncTcpClient(host, int(port), read_timeout=PATIENCE_SECONDS) as client:
        await client.write_event(Describe().event())
        info = Info.from_event(await client.read_event())
    async with AsyncTcpClient(host, int(port), read_timeout=PATIENCE_SECONDS) as client:
        await client.write_event(Transcribe(language="en").event())
        with wave.open(clip) as file:
            shape = {"rate": file.getframerate(), "width": 2, "channels": file.getnchannels()}
            await client.write_event(AudioStart(**shape).event())
            while block := file.readframes(1024):
                await client.write_event(AudioChunk(**shape, audio=block).event())
        await client.write_event(AudioStop().event())
        while text is None and (event := await client.read_event()) is not None:
            if TranscriptChunk.is_type(event.type):
                chunks += TranscriptChunk.from_event(event).text
            elif Transcript.is_type(event.type):
                text = Transcript.from_event(event).text
    (program,) = info.asr
    found = {
        "text": text,
        "chunks": chunks,
        "models": [model.name for model in program.models],
        "languages": [language for model in program.models for language in model.languages],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
