"""A recording on its way from a decoder process to a recognizer thread, block by block."""

import asyncio
import queue
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.notes import Note
from pianissimo.decoding.hotwords import Boost
from pianissimo.diarization.options import Diarization
from pianissimo.serve.audio_in.decode import Decoders, Upload
from pianissimo.serve.errors import restarting
from pianissimo.transcript import Transcript

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer

BLOCKS_AHEAD = 8
"""Decoded blocks that wait for the recognizer; the decoder pauses at this number."""


class RecordingCanceled(Exception):
    """The transcript is no longer needed."""


class RecordingBlocks(Iterator[npt.NDArray[np.float32]]):
    """Blocks of float32 at 16 kHz, (n,) or (n, channels): filled by the event loop, read by one
    thread.

    After `cancel` the reader gets RecordingCanceled instead of its next block.
    """

    def __init__(self) -> None:
        self.decoded = self.consumed = 0.0  # seconds
        self.channels = 1
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(BLOCKS_AHEAD)
        self._items: queue.SimpleQueue[npt.NDArray[np.float32] | BaseException] = (
            queue.SimpleQueue()
        )
        self._canceled = False

    async def fill(self, blocks: AsyncGenerator[npt.NDArray[np.float32]]) -> None:
        """Pass on all blocks, and the error of the decoder if it fails."""
        try:
            async for block in blocks:
                await self._room.acquire()
                self.decoded += len(block) / SAMPLE_RATE
                self.channels = 1 if block.ndim == 1 else block.shape[1]
                self._items.put(block)
        except Exception as error:
            self._items.put(error)
        else:
            self._items.put(StopIteration())

    def cancel(self) -> None:
        """Stop the reader at its next block."""
        self._canceled = True
        self._items.put(RecordingCanceled())

    def __next__(self) -> npt.NDArray[np.float32]:
        item = self._items.get()
        if self._canceled:
            raise RecordingCanceled
        if isinstance(item, BaseException):
            raise item
        self.consumed += len(item) / SAMPLE_RATE
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._room.release)
        return item


class Transcriber:
    """Decodes recordings in processes and transcribes them in `threads`."""

    def __init__(self, decoders: Decoders) -> None:
        self.decoders = decoders
        self._running: set[RecordingBlocks] = set()

    async def transcribe(
        self,
        upload: Upload,
        recognizer: "Recognizer",
        threads: Executor,
        boost: Boost = (),
        blocks: RecordingBlocks | None = None,
        diarize: Diarization | None = None,
    ) -> Transcript:
        """The transcript of an upload; stops at the next block if the caller is canceled.

        Raises AudioError, OptionError for phrases that the model cannot boost, and Refusal if the
        server ends meanwhile.
        """
        blocks = blocks or RecordingBlocks()
        self._running.add(blocks)
        try:
            notes = set[Note]()
            split = diarize is not None and diarize.by == "channels"
            decoding = (
                self.decoders.channel_blocks(upload)
                if split
                else self.decoders.blocks(upload, SAMPLE_RATE, notes)
            )
            async with aclosing(decoding) as decoded:
                filling = asyncio.create_task(blocks.fill(decoded))
                try:
                    found = await asyncio.get_running_loop().run_in_executor(
                        threads,
                        lambda: recognizer.transcribe(
                            blocks, boost=boost, diarize=diarize or False
                        ),
                    )
                    return found.noted(notes) if notes else found
                finally:
                    blocks.cancel()
                    filling.cancel()
                    await asyncio.gather(filling, return_exceptions=True)
        except RecordingCanceled:
            raise restarting() from None
        finally:
            self._running.discard(blocks)

    def cancel_all(self) -> None:
        """The server ends: stop every recording at its next block."""
        for blocks in self._running:
            blocks.cancel()
