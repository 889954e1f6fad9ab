"""A network that breaks every connection, and a client that survives it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from serving import RATE, pcm, speech

from pianissimo.client import ClientStream, connect
from pianissimo.transcript import StreamEvent


class Cutter:
    """Passes bytes on to a server and cuts every connection after a random time."""

    def __init__(self, port: int, seed: int, shortest: float, longest: float) -> None:
        self.target, self.random = port, random.Random(seed)
        self.shortest, self.longest = shortest, longest
        self.cuts = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        jobs = [
            asyncio.create_task(self._pass(reader, back)),
            asyncio.create_task(self._pass(there, writer)),
        ]
        seconds = self.random.uniform(self.shortest, self.longest)
        _, pending = await asyncio.wait(jobs, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self.cuts += len(pending) == 2
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        for end in (writer, back):
            end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()


def talk(times: int = 1) -> np.ndarray:
    """Half a minute with pauses that end utterances and some that do not."""
    quiet = np.zeros(round(1.6 * RATE), np.float32)
    once = np.concatenate([part for i in range(3) for part in (speech(7.5, first=i), quiet)])
    return np.tile(once, times)


async def events_of(stream: ClientStream) -> list[StreamEvent]:
    """All but the partials."""
    return [event async for event in stream if event.type != "partial"]


async def listen(
    port: int, samples: np.ndarray, seconds: float, **options: Any
) -> tuple[list[StreamEvent], int]:
    """All but the partials, of samples sent over about `seconds`, sometimes finalized; and
    how many connections it took."""
    size = 1600
    count = -(-len(samples) // size)
    async with connect(f"ws://127.0.0.1:{port}", sample_rate=RATE, **options) as stream:
        reading = asyncio.create_task(events_of(stream))
        for number in range(count):
            await stream.send(pcm(samples[number * size : (number + 1) * size]))
            if number % 97 == 96:
                await stream.finalize()
            await asyncio.sleep(seconds / count)
        await stream.finish()
        return await asyncio.wait_for(reading, 240), stream.connections


def check_same(cut: list[StreamEvent], whole: list[StreamEvent]) -> None:
    """Every event once and in order, each as it is without cuts."""
    assert len(cut) == len(whole)
    for one, other in zip(cut, whole, strict=True):
        assert replace(one, words=()) == replace(other, words=())
        for word, same in zip(one.words, other.words, strict=True):
            assert replace(word, confidence=None) == replace(same, confidence=None)
            assert word.confidence == pytest.approx(same.confidence, abs=1e-3)
