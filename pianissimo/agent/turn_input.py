"""The audio of a user: to the recognizer's stream, and to the detector of turns."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pianissimo.agent.turn_detector import TurnDetector, TurnSignal
from pianissimo.audio.level import Samples
from pianissimo.streaming.input import StreamInput
from pianissimo.transcript import StreamEvent

PIECE_SECONDS = 0.04
"""Longer audio is processed in pieces: a pause is found, and its text finalized, within one."""

Sound = npt.NDArray[np.int16] | npt.NDArray[np.float32]


class RecognizerStream(Protocol):
    """What is asked of a live stream; the server's `Feed` is one."""

    sample_rate: int

    async def push_samples(self, samples: Sound) -> float:
        """Push samples (n,) at `sample_rate`, waiting for room; returns their seconds."""
        ...

    async def finalize(self) -> None:
        """Request the final text of everything pushed."""
        ...

    def __aiter__(self) -> AsyncIterator[StreamEvent]: ...


class TurnInput:
    """One stream of a recognizer and the detector of its turns, None where the client ends them.

    `intake` brings the detector its samples: 16 kHz, at the level of speech. `offset` is when the
    stream began; all times here are in seconds of audio.
    """

    def __init__(
        self,
        stream: RecognizerStream,
        detector: TurnDetector | None,
        intake: StreamInput,
        threads: Executor,
        offset: float = 0.0,
    ) -> None:
        self.stream, self.detector = stream, detector
        self._intake, self._threads, self._offset = intake, threads, offset
        self._unread: list[StreamEvent] = []
        self._finals: deque[asyncio.Future[None]] = deque()
        self.samples = 0

    @property
    def seconds(self) -> float:
        """Audio pushed so far."""
        return self._offset + self.samples / self.stream.sample_rate

    def pieces(self, samples: Sound) -> Sequence[Sound]:
        step = round(PIECE_SECONDS * self.stream.sample_rate)
        return [samples[start : start + step] for start in range(0, len(samples), step)]

    async def push(self, piece: Sound) -> list[TurnSignal]:
        """Push a piece; returns what the detector finds in it."""
        await self.stream.push_samples(piece)
        self.samples += len(piece)
        if self.detector is None:
            return []
        return await self._detect(piece)

    async def continued(self) -> list[TurnSignal]:
        """What the detector finds in audio that waited for the final after a pause."""
        return await self._detect(None)

    async def _detect(self, piece: Sound | None) -> list[TurnSignal]:
        events, self._unread = self._unread, []
        detector, intake = self.detector, self._intake
        assert detector is not None

        def work() -> list[TurnSignal]:
            block: Samples = np.zeros(0, np.float32) if piece is None else intake.push(piece)
            return detector.push(block, events)

        signals = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        return [replace(signal, at=self._offset + signal.at) for signal in signals]

    async def finalize(self) -> None:
        """Wait for the final text of everything pushed so far."""
        final: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._finals.append(final)
        await self.stream.finalize()
        await final

    async def events(self) -> AsyncIterator[StreamEvent]:
        """The events of the stream; resume `finalize` only after the final was taken."""
        try:
            async for event in self.stream:
                if self.detector is not None:
                    self._unread.append(event)
                yield event
                if event.reason == "finalize" and self._finals:
                    final = self._finals.popleft()
                    if not final.done():
                        final.set_result(None)
        finally:
            for final in self._finals:
                final.cancel()
