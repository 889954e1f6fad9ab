"""What Deepgram's package makes of a clip, as JSON: python talk_deepgram.py HOST:PORT CLIP.wav"""

import asyncio
import json
import sys
import wave
from pathlib import Path
from typing import Any

from deepgram import AsyncDeepgramClient
from deepgram.environment import DeepgramClientEnvironment

PATIENCE_SECONDS = 60.0


async def live(client: AsyncDeepgramClient, clip: str) -> dict[str, Any]:
    with wave.open(clip) as file:
        rate, sound = file.getframerate(), file.readframes(file.getnframes())
    messages: list[Any] = []
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        client.listen.v1.connect(
            model="nova-3",
            language="en-US",
            encoding="linear16",
            sample_rate=rate,
            interim_results=True,
            vad_events=True,
            smart_format=True,
        ) as socket,
    ):
        for start in range(0, len(sound), 3200):
            await socket.send_media(sound[start : start + 3200])
        await socket.send_keep_alive()
        await socket.send_finalize()
        while not (messages and getattr(messages[-1], "from_finalize", False)):
            messages.append(await socket.recv())
        await socket.send_close_stream()
        while messages[-1].type != "Metadata":
            messages.append(await socket.recv())
    results = [message for message in messages if message.type == "Results"]
    (final,) = [result for result in results if result.from_finalize]
    best = final.channel.alternatives[0]
    return {
        "text": best.transcript,
        "words": [[word.punctuated_word, word.start, word.end] for word in best.words],
        "interim": [r.channel.alternatives[0].transcript for r in results if not r.is_final],
        "types": list(dict.fromkeys(type(message).__name__ for message in messages)),
        "duration": messages[-1].duration,
    }


async def main(place: str, clip: str) -> None:
    http, ws = f"http://{place}", f"ws://{place}"
    environment = DeepgramClientEnvironment(base=http, production=ws, agent=ws, agent_rest=http)
    client = AsyncDeepgramClient(api_key="any", environment=environment)
    recording = await client.listen.v1.media.transcribe_file(
        request=Path(clip).read_bytes(), model="nova-3", smart_format=True
    )
    people = await client.listen.v1.media.transcribe_file(
        request=Path(clip).with_name("people.wav").read_bytes(), model="nova-3", diarize=True
    )
    words = people.results.channels[0].alternatives[0].words
    found = {
        "live": await live(client, clip),
        "speakers": [word.speaker for word in words],
        "type": type(words[0]).__name__,
        "recording": {"text": recording.results.channels[0].alternatives[0].transcript},
    }
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
