"""What LiveKit's OpenAI service plays of a text, as JSON: python speak_livekit.py HOST:PORT TEXT"""

import array
import asyncio
import json
import sys

from livekit.agents import utils
from livekit.plugins import openai


async def spoken(service: openai.TTS, text: str) -> dict[str, object]:
    """Seconds and largest sample of the audio."""
    seconds, peak = 0.0, 0
    async with service.synthesize(text) as stream:
        async for audio in stream:
            seconds += audio.frame.duration
            peak = max(peak, *map(abs, array.array("h", bytes(audio.frame.data))))
    await service.aclose()
    return {"seconds": seconds, "peak": peak}


async def main(place: str, text: str) -> None:
    found = {}
    async with utils.http_context.open():
        for model in ("gpt-4o-mini-tts", "tts-1"):  # events, and plain audio
            service = openai.TTS(model=model, base_url=f"http://{place}/v1", api_key="any")
            found[model] = await spoken(service, text)
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
