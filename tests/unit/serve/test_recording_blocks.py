"""Recordings from a decoder to a recognizer thread: order, errors, backpressure, cancellation."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pianissimo.audio.notes import Note
from pianissimo.errors import AudioDecodeError
from pianissimo.serve.audio_in.decode import Decoders, Upload
from pianissimo.serve.audio_in.recording import BLOCKS_AHEAD, Transcriber
from pianissimo.serve.errors import Refusal

Blocks = Iterable[np.ndarray]


class FakeDecoders:
    """Blocks that count up, one second each, and then an error if there is one."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count, self.error, self.decoded, self.closed = count, error, 0, False

    async def blocks(
        self, upload: Upload, sample_rate: int, notes: set[Note] | None = None
    ) -> AsyncGenerator[np.ndarray]:
        try:
            for number in range(self.count):
                await asyncio.sleep(0)
                self.decoded += 1
                yield np.full(sample_rate, number, np.float32)
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


def transcriber(decoders: FakeDecoders) -> Transcriber:
    return Transcriber(cast(Decoders, decoders))


def run(decoders: FakeDecoders, transcribe: Callable[[Blocks], Any]) -> Any:
    def recognize(blocks: Blocks, boost: object, diarize: object) -> Any:
        return transcribe(blocks)

    async def work() -> Any:
        with ThreadPoolExecutor(1) as threads:
            recognizer = cast(Any, SimpleNamespace(transcribe=recognize))
            return await transcriber(decoders).transcribe(Upload(Path("x")), recognizer, threads)

    return asyncio.run(work())


def test_all_blocks_arrive_in_order() -> None:
    decoders = FakeDecoders(50)
    assert run(decoders, lambda blocks: [int(each[0]) for each in blocks]) == [*range(50)]
    assert decoders.closed


def test_an_error_of_the_decoder_reaches_the_caller() -> None:
    with pytest.raises(AudioDecodeError, match="damaged"):
        run(FakeDecoders(3, AudioDecodeError("damaged")), list)


def test_the_decoder_waits_for_the_recognizer() -> None:
    decoders = FakeDecoders(100)

    def first(blocks: Blocks) -> int:
        next(iter(blocks))
        time.sleep(0.3)
        return decoders.decoded

    assert run(decoders, first) <= BLOCKS_AHEAD + 2


def test_a_canceled_recording_stops_at_its_next_block() -> None:
    """The thread is free again, although the recognizer knows nothing of the cancellation."""
    decoders, started, ended = FakeDecoders(10_000), threading.Event(), threading.Event()
    consumed = 0

    def slow(blocks: Blocks, boost: object, diarize: object) -> None:
        nonlocal consumed
        try:
            for _ in blocks:
                consumed += 1
                started.set()
                time.sleep(0.01)
        finally:
            ended.set()

    async def work() -> None:
        threads = ThreadPoolExecutor(1)
        recognizer = cast(Any, SimpleNamespace(transcribe=slow))
        job = asyncio.create_task(
            transcriber(decoders).transcribe(Upload(Path("x")), recognizer, threads)
        )
        await asyncio.to_thread(started.wait, 10)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        before = consumed
        assert await asyncio.to_thread(ended.wait, 5), "the thread is still busy"
        assert consumed <= before + 1
        threads.shutdown()

    asyncio.run(work())
    assert decoders.closed


def test_recordings_are_canceled_when_the_server_ends() -> None:
    async def work() -> None:
        running = transcriber(FakeDecoders(10_000))

        def slow(blocks: Blocks, boost: object, diarize: object) -> None:
            for _ in blocks:
                time.sleep(0.01)

        with ThreadPoolExecutor(1) as threads:
            recognizer = cast(Any, SimpleNamespace(transcribe=slow))
            job = asyncio.create_task(running.transcribe(Upload(Path("x")), recognizer, threads))
            await asyncio.sleep(0.1)
            running.cancel_all()
            with pytest.raises(Refusal) as refused:
                await job
        assert refused.value.code == "restarting" and refused.value.status == 503

    asyncio.run(work())
