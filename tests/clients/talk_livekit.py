"""What LiveKit's plugins make of a clip, as JSON: python talk_livekit.py HOST:PORT CLIP.wav"""

import asyncio
import json
import sys
import wave
from typing import Any

from livekit import rtc
from livekit.agents import inference, stt, utils
from livekit.plugins import deepgram, openai

PIECE_SECONDS = 0.02
SILENCE_SECONDS = 2.0
PATIENCE_SECONDS = 60.0


def frames(sound: bytes, rate: int) -> list[rtc.AudioFrame]:
    step = round(PIECE_SECONDS * rate) * 2
    pieces = (sound[start : start + step] for start in range(0, len(sound), step))
    return [rtc.AudioFrame(piece, rate, 1, len(piece) // 2) for piece in pieces]


async def listen(service: stt.STT, sound: bytes, rate: int) -> dict[str, Any]:
    """One stream, which hears the clip and two seconds of silence at four times their speed."""
    kinds, text, interim, words = [], "", "", 0
    stream = service.stream()

    async def feed() -> None:
        for frame in frames(sound + bytes(round(SILENCE_SECONDS * rate) * 2), rate):
            stream.push_frame(frame)
            await asyncio.sleep(PIECE_SECONDS / 4)
        stream.flush()

    feeding = asyncio.create_task(feed())
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for event in stream:
            kinds.append(event.type.value)
            match event.type:
                case stt.SpeechEventType.INTERIM_TRANSCRIPT:
                    interim = event.alternatives[0].text
                case stt.SpeechEventType.FINAL_TRANSCRIPT:
                    text = event.alternatives[0].text
                    words = len(event.alternatives[0].words or ())
            if text and stt.SpeechEventType.END_OF_SPEECH.value in kinds:
                break
    await feeding
    await stream.aclose()
    return {"text": text, "interim": interim, "words": words, "events": list(dict.fromkeys(kinds))}


async def recognize(service: stt.STT, sound: bytes, rate: int) -> dict[str, Any]:
    event = await service.recognize(rtc.combine_audio_frames(frames(sound, rate)))
    return {"text": event.alternatives[0].text}


async def main(place: str, clip: str) -> None:
    with wave.open(clip) as file:
        rate, sound = file.getframerate(), file.readframes(file.getnframes())

    def of_openai(**options: Any) -> openai.STT:
        return openai.STT(base_url=f"http://{place}/v1", api_key="any", **options)

    async with utils.http_context.open():
        of_deepgram = deepgram.STT(base_url=f"http://{place}/v1/listen", api_key="any")
        live = of_openai(use_realtime=True)
        # A model without turns of its own: the plugin's detector commits.
        committed = of_openai(model="gpt-live-transcribe", vad=inference.VAD(model="silero"))
        found = {
            "deepgram": await listen(of_deepgram, sound, rate),
            "deepgram recording": await recognize(of_deepgram, sound, rate),
            "realtime": await listen(live, sound, rate),
            "realtime, committed": await listen(committed, sound, rate),
            "rest": await recognize(of_openai(), sound, rate),
        }
        await live.aclose()
        await committed.aclose()
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
