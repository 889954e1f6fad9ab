"""A voice agent in LiveKit: speech recognition and voice of this server, and any language model.

    pip install livekit-agents livekit-plugins-deepgram livekit-plugins-openai
    python examples/agent_livekit.py 127.0.0.1:7860 http://127.0.0.1:11434/v1 llama3.2 question.wav

Answers one recorded question and prints both sides as JSON. For a live agent give the same three
parts to an `AgentSession(stt=..., llm=..., tts=...)` in a room.
"""

import asyncio
import json
import sys
import wave

from livekit import rtc
from livekit.agents import llm, stt, utils
from livekit.plugins import deepgram, openai

PIECE_SECONDS = 0.02
SILENCE_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
INSTRUCTIONS = "You are a voice assistant. Answer in one short sentence."


async def transcribe(service: stt.STT, sound: bytes, rate: int) -> str:
    """The first turn of a recording."""
    stream = service.stream()

    async def feed() -> None:
        step = round(PIECE_SECONDS * rate) * 2
        data = sound + bytes(round(SILENCE_SECONDS * rate) * 2)
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            stream.push_frame(rtc.AudioFrame(piece, rate, 1, len(piece) // 2))
            await asyncio.sleep(PIECE_SECONDS)
        stream.flush()

    feeding, text = asyncio.create_task(feed()), ""
    async for event in stream:
        if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
            text = f"{text} {event.alternatives[0].text}".strip()
        if event.type == stt.SpeechEventType.END_OF_SPEECH and text:
            break
    feeding.cancel()
    await stream.aclose()
    return text


async def main(place: str, llm_url: str, llm_model: str, question: str) -> None:
    with wave.open(question) as file:
        rate, sound = file.getframerate(), file.readframes(file.getnframes())
    async with utils.http_context.open(), asyncio.timeout(PATIENCE_SECONDS):
        recognizer = deepgram.STT(base_url=f"http://{place}/v1/listen", api_key="any")
        model = openai.LLM(base_url=llm_url, api_key="any", model=llm_model)
        voice = openai.TTS(
            base_url=f"http://{place}/v1", api_key="any", model="tts-1", voice="alloy"
        )
        asked = await transcribe(recognizer, sound, rate)
        context = llm.ChatContext()
        context.add_message(role="system", content=INSTRUCTIONS)
        context.add_message(role="user", content=asked)
        answer = ""
        async with model.chat(chat_ctx=context) as chunks:
            async for chunk in chunks:
                answer += (chunk.delta.content or "") if chunk.delta else ""
        seconds = 0.0
        async with voice.synthesize(answer) as audio:
            async for piece in audio:
                seconds += piece.frame.duration
    print(json.dumps({"you": asked, "agent": answer, "seconds": seconds, "errors": []}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
