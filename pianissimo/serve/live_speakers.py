"""Speakers of a live stream, found in threads of their own: text never waits for them."""

import asyncio
import logging
from collections import deque
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from pianissimo.audio.io import SAMPLE_RATE, from_piece
from pianissimo.audio.resample import StreamingResampler
from pianissimo.diarization.options import Diarization, LiveTurnSource
from pianissimo.diarization.sources import live_source
from pianissimo.transcript import StreamEvent

FINAL_WAIT_SECONDS = 1.1
"""A final waits this long for its speakers at most, then goes without those that are missing."""
MOST_WAITING_SECONDS = 30.0
"""If the threads are this far behind, audio is passed over as silence: memory stays bounded."""

log = logging.getLogger(__name__)

Piece = npt.NDArray[np.int16] | npt.NDArray[np.float32]


class LiveSpeakers:
    """The speakers of one stream of samples at `sample_rate` Hz.

    The audio waits in a queue that one task empties in `threads`. Partials get the speakers that
    are known by then. All methods are called by the event loop.
    """

    def __init__(
        self, sample_rate: int, threads: Executor, options: Diarization | None = None
    ) -> None:
        self._rate, self._threads = sample_rate, threads
        self._options = options or Diarization()
        self._turns: LiveTurnSource | None = None  # made in a thread: it loads the network
        self._ended = False  # no more audio comes
        self._done = False  # and all turns are known
        self._resampler = StreamingResampler(sample_rate, SAMPLE_RATE)
        self._waiting: deque[Piece | int] = deque()  # a number is so much silence
        self._waiting_samples = 0
        self._closed = False
        self._worker: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()

    def push(self, samples: Piece) -> None:
        """Take samples (n,) or (n, channels) of the client."""
        if self._closed or self._ended:
            return
        if self._waiting_samples <= MOST_WAITING_SECONDS * self._rate:
            self._waiting.append(samples)
        elif isinstance(self._waiting[-1], int):
            self._waiting[-1] += len(samples)
        else:
            self._waiting.append(len(samples))
        self._waiting_samples += len(samples)
        self._start()

    def _start(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    def finish(self) -> None:
        """The audio has ended: the last turn can be decided."""
        if not self._closed and not self._ended:
            self._ended = True
            self._start()

    def close(self) -> None:
        """Nothing more is asked."""
        self._closed = True
        self._waiting.clear()
        self._settled.set()

    async def attributed(self, event: StreamEvent) -> StreamEvent:
        """The event with the speakers of its words; a final waits a moment for them."""
        if not event.words:
            return event
        if event.type == "final":
            loop = asyncio.get_running_loop()
            until = loop.time() + FINAL_WAIT_SECONDS
            while not self._knows(event.words[-1].end) and loop.time() < until:
                self._settled.clear()
                try:
                    async with asyncio.timeout_at(until):
                        await self._settled.wait()
                except TimeoutError:
                    break
        return event if self._turns is None else event.with_turns(self._turns.recent)

    def _knows(self, seconds: float) -> bool:
        if self._closed or self._done or self._worker is None or self._worker.done():
            return True
        return self._turns is not None and self._turns.seconds >= seconds

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closed and (self._waiting or (self._ended and not self._done)):
            last = self._ended
            pieces = list(self._waiting)
            self._waiting.clear()
            self._waiting_samples = 0
            try:
                await loop.run_in_executor(self._threads, self._push, pieces, last)
            except Exception:
                # The text of the stream continues; the recognizer reports unusable samples.
                log.exception("the speakers of a stream cannot be found")
                self.close()
            self._done = last
            self._settled.set()

    def _push(self, pieces: list[Piece | int], last: bool) -> None:
        if self._turns is None:
            if not pieces:
                return
            self._turns = live_source(self._options, keep=False)
        for piece in pieces:
            if self._closed:
                return
            if isinstance(piece, int):
                for first in range(0, piece, self._rate):
                    silence = np.zeros(min(self._rate, piece - first), np.float32)
                    self._turns.push(self._resampler.push(silence))
                continue
            mono = from_piece(piece, self._rate).mean(axis=1, dtype=np.float32)
            self._turns.push(self._resampler.push(mono))
        if last:
            self._turns.push(self._resampler.finish())
            self._turns.finish()
