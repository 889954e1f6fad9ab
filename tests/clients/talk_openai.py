"""What OpenAI's package makes of a clip, as JSON: python talk_openai.py HOST:PORT CLIP.wav"""

import asyncio
import base64
import json
import sys
import wave
from pathlib import Path
from typing import Any

import openai


def recordings(client: openai.OpenAI, clip: str) -> dict[str, Any]:
    def create(**options: Any) -> Any:
        file = ("clip.wav", Path(clip).read_bytes(), "audio/wav")
        return client.audio.transcriptions.create(file=file, model="gpt-transcribe", **options)

    verbose = create(response_format="verbose_json", timestamp_granularities=["word"])
    events = list(create(stream=True))
    try:
        client.audio.transcriptions.create(file=Path(clip), model="nova")
        refused = None
    except openai.NotFoundError as error:
        refused = error.code
    return {
        "text": create(language="en", temperature=0.2, chunking_strategy="auto").text,
        "words": [[word.word, word.start, word.end] for word in verbose.words],
        "srt": create(response_format="srt"),
        "deltas": "".join(e.delta for e in events if e.type == "transcript.text.delta"),
        "done": [e.text for e in events if e.type == "transcript.text.done"],
        "refused": refused,
        "models": [model.id for model in client.models.list()],
    }


def speakers(client: openai.OpenAI, clip: str) -> dict[str, Any]:
    """Who says what in a recording of several people, in the client's own types."""
    found = client.audio.transcriptions.create(
        file=("clip.wav", Path(clip).read_bytes(), "audio/wav"),
        model="gpt-4o-transcribe-diarize",
        response_format="diarized_json",
        chunking_strategy="auto",
    )
    return {
        "types": sorted({type(part).__name__ for part in (found, *found.segments)}),
        "speakers": [segment.speaker for segment in found.segments],
    }


async def realtime(client: openai.AsyncOpenAI, clip: str, model: str, turns: Any) -> dict[str, Any]:
    """A session that hears the clip and two seconds of silence."""
    with wave.open(clip) as file:
        rate, sound = file.getframerate(), file.readframes(file.getnframes())
    sound += bytes(4 * rate)
    deltas, kinds = "", []
    async with client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        input = {"format": {"type": "audio/pcm", "rate": rate}, "transcription": {"model": model}}
        input |= {} if turns is None else {"turn_detection": turns}
        await connection.session.update(
            session={"type": "transcription", "audio": {"input": input}}
        )
        for start in range(0, len(sound), 3200):
            block = base64.b64encode(sound[start : start + 3200]).decode()
            await connection.input_audio_buffer.append(audio=block)
        if turns is None:
            await connection.input_audio_buffer.commit()
        async for event in connection:
            kinds.append(event.type)
            if event.type.endswith("transcription.delta"):
                deltas += event.delta
            if event.type.endswith("transcription.completed"):
                return {"text": event.transcript, "deltas": deltas, "events": kinds}
    return {"events": kinds}


def main(place: str, clip: str) -> None:
    options = {"base_url": f"http://{place}/v1", "api_key": "any", "max_retries": 0}

    async def live() -> dict[str, Any]:
        async with openai.AsyncOpenAI(**options) as client:
            return {
                "realtime": await realtime(
                    client, clip, "gpt-4o-transcribe", {"type": "server_vad"}
                ),
                "realtime, committed": await realtime(client, clip, "gpt-realtime-whisper", None),
            }

    with openai.OpenAI(**options) as client:
        found = {
            "recordings": recordings(client, clip),
            "speakers": speakers(client, str(Path(clip).with_name("people.wav"))),
        }
    print(json.dumps(found | asyncio.run(live())))


if __name__ == "__main__":
    main(*sys.argv[1:])
