# /// script
# requires-python = ">=3.11"
# dependencies = ["pianissimo[client]"]
# ///
"""Live transcription from a server, across broken connections and restarts of the server.

    pianissimo serve
    python examples/stream_client.py yours.wav
    arecord -q -f S16_LE -r 16000 -t raw | python examples/stream_client.py - --url ws://host:7860

Reads a WAV file of 16 bits, or raw samples (16 bit, mono, 16 kHz) from standard input; --fast sends
a file as fast as the server accepts it. `pianissimo.client` keeps the audio that the server may
need again. After a broken connection it continues where the server and the program were.
"""

import argparse
import asyncio
import os
import sys
import wave
from collections.abc import AsyncIterator

from pianissimo.client import ClientStream, connect
from pianissimo.errors import PianissimoError
from pianissimo.transcript import StreamEvent

BLOCK_SECONDS = 0.1


def show(event: StreamEvent) -> None:
    """Show partial text in one line that is overwritten, final text in lines of its own."""
    if event.type == "partial" and sys.stderr.isatty():
        print(f"\r\x1b[K{event.text[-78:]}", end="", file=sys.stderr, flush=True)
    elif event.type == "final" and event.text:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(event.text, flush=True)


def format_of(path: str) -> tuple[int, int]:
    """Rate and channels of a WAV file, or of standard input."""
    if path == "-":
        return 16_000, 1
    with wave.open(path) as file:
        if file.getsampwidth() != 2:
            raise SystemExit(f"{path} does not have 16 bits per sample; convert it first")
        return file.getframerate(), file.getnchannels()


async def blocks(path: str, paced: bool) -> AsyncIterator[bytes]:
    """Samples in blocks; in real time if `paced`."""
    if path == "-":
        size = 2 * round(16_000 * BLOCK_SECONDS)
        while data := await asyncio.to_thread(sys.stdin.buffer.read, size):
            yield data
        return
    with wave.open(path) as file:
        while data := file.readframes(round(file.getframerate() * BLOCK_SECONDS)):
            yield data
            await asyncio.sleep(BLOCK_SECONDS if paced else 0)


async def send(stream: ClientStream, path: str, paced: bool) -> None:
    async for data in blocks(path, paced):
        await stream.send(data)
    await stream.finish()


async def show_all(stream: ClientStream) -> None:
    async for event in stream:
        show(event)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", help="a WAV file, or - for raw samples from standard input")
    parser.add_argument("--url", default="ws://127.0.0.1:7860")
    parser.add_argument("--latency", type=int, help="latency mode in milliseconds")
    parser.add_argument("--fast", action="store_true", help="do not wait between blocks")
    given = parser.parse_args()
    rate, channels = format_of(given.file)
    async with connect(
        given.url,
        key=os.environ.get("PIANISSIMO_API_KEY"),
        latency_ms=given.latency,
        sample_rate=rate,
        channels=channels,
    ) as stream:
        await asyncio.gather(send(stream, given.file, not given.fast), show_all(stream))


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except PianissimoError as error:
        sys.exit(f"error: {error}")
