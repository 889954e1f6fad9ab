"""The audio of one client: bytes of a known encoding, pushed into a stream of the engine."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from pianissimo.errors import BacklogError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.audio_in.pcm import PcmReader
from pianissimo.serve.intake import Intake
from pianissimo.serve.live_speakers import LiveSpeakers
from pianissimo.serve.tracing import StreamTrace
from pianissimo.serve.written import WrittenForm
from pianissimo.transcript import StreamEvent

if TYPE_CHECKING:
    from pianissimo.streaming.session import Session

PIECE_SECONDS = 0.5
"""Longer audio is pushed in pieces, so that the audio of other clients gets its turn between."""
SHORTEST_SECONDS = 0.01
"""Shorter audio is held until more arrives: a frame of one byte costs no call of the detector."""
RETRY_SECONDS = 0.02
"""How soon a push is tried again after the stream refused it for its backlog."""
MOST_FINALS_OWED = 8
"""Finals that a client may request before it gets the first; the next request waits for one."""

T = TypeVar("T")


class Shadow(Protocol):
    """What is told of everything that passes a feed; `ShadowStream` is one."""

    def push(self, samples: npt.NDArray[np.int16] | npt.NDArray[np.float32]) -> None: ...

    def finalize(self) -> None: ...

    def finish(self) -> None: ...

    def observe(self, event: StreamEvent) -> None: ...

    def close(self) -> None: ...


class Feed:
    """One stream and its client's audio.

    Resampling, gain and voice detection run in threads, not in the event loop: those of all feeds
    of one `intake` in one call. Everything pushed
    and every event read is passed to the shadow, if there is one. Finals are in the form `written`.
    """

    def __init__(
        self,
        session: "Session",
        reader: PcmReader,
        sample_rate: int,
        threads: Executor,
        intake: Intake,
        shadow: Shadow | None = None,
        account: Account | None = None,
        speakers: LiveSpeakers | None = None,
        trace: StreamTrace | None = None,
        written: WrittenForm | None = None,
    ) -> None:
        self.session, self.reader, self.sample_rate = session, reader, sample_rate
        self._threads, self._intake = threads, intake
        self._shadow, self._account = shadow, account
        self._speakers, self._trace, self._written = speakers, trace, written
        self._shortest = math.ceil(SHORTEST_SECONDS * sample_rate)
        self._finals_owed = 0
        self._final_came = asyncio.Event()
        self.samples = 0

    @property
    def seconds(self) -> float:
        """Audio pushed so far, in seconds."""
        return self.samples / self.sample_rate

    def seconds_of(self, data: bytes) -> float:
        """Length of the audio of a message."""
        return len(data) / self.reader.frame_bytes / self.sample_rate

    def hold(self, data: bytes) -> bool:
        """Keep audio that is too short to be pushed; False if it is long enough."""
        return self.reader.hold(data, self._shortest)

    async def push(self, data: bytes) -> float:
        """Push the audio of one message; returns its seconds, those that are held included.

        Raises Refusal, before anything is pushed, if the audio allowance of the key is used up.
        """
        if self._account is not None:
            self._account.check_audio()
        if not self.hold(data):
            await self.push_samples(self.reader.push(data))
        return self.seconds_of(data)

    async def push_samples(self, samples: npt.NDArray[np.int16] | npt.NDArray[np.float32]) -> float:
        """Push samples (n,) or (n, channels), waiting for room; returns their seconds."""
        step = max(1, math.ceil(PIECE_SECONDS * self.sample_rate))
        for start in range(0, len(samples), step):
            piece = samples[start : start + step]
            while True:
                try:
                    await self._intake.push(self.session, piece)
                    break
                except BacklogError:
                    await asyncio.sleep(RETRY_SECONDS)
            if self._trace is not None:
                self._trace.pushed()
            if self._shadow is not None:
                self._shadow.push(piece)
            if self._speakers is not None:
                self._speakers.push(piece)
            self.samples += len(piece)
        return len(samples) / self.sample_rate

    async def set_language(self, language: str) -> None:
        """Choose the language of what is pushed from now on; raises OptionError."""
        await self.push_samples(self.reader.push(b""))  # what was held
        await self._in_thread(partial(self.session.set_language, language))

    async def finalize(self) -> None:
        """Request the final text of everything pushed; waits while too many finals are owed."""
        await self._request(self.session.finalize)
        if self._shadow is not None:
            self._shadow.finalize()

    async def finish(self) -> None:
        """End the audio and request the last final text."""
        await self._request(self.session.finish)
        if self._speakers is not None:
            self._speakers.finish()
        if self._shadow is not None:
            self._shadow.finish()

    async def _request(self, request: Callable[[], None]) -> None:
        await self.push_samples(self.reader.push(b""))  # what was held
        while self._finals_owed >= MOST_FINALS_OWED and not self.session.ended:
            self._final_came.clear()
            await self._final_came.wait()
        await self._in_thread(request)
        self._finals_owed += 1

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def observe(self, event: StreamEvent) -> None:
        """An event of the session was read."""
        if event.reason in ("finalize", "finish"):
            self._finals_owed -= 1
            self._final_came.set()
        if self._trace is not None:
            self._trace.observe(event)
        if self._shadow is not None:
            self._shadow.observe(event)

    def written(self, event: StreamEvent) -> StreamEvent:
        """An event as this client gets it, of one that was read from the session."""
        return event if self._written is None else self._written.write(event)

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        try:
            async for event in self.session:
                self.observe(event)
                if self._speakers is not None:
                    event = await self._speakers.attributed(event)
                if self._written is not None and event.type == "final":
                    event = await self._in_thread(partial(self._written.write, event))
                yield event
        finally:
            self._final_came.set()

    async def release(self) -> None:
        """Close the stream, and wait until the engine has freed its slot."""
        if self._shadow is not None:
            self._shadow.close()
        if self._speakers is not None:
            self._speakers.close()
        self.session.close()
        self._final_came.set()
        while self.session.slot is not None:
            await asyncio.sleep(0.002)


class GrowingText:
    """The append-only text of one item, from the events of its stream.

    Nothing is added by an unstable partial, which may be taken back, nor by an event whose text is
    shorter than what was sent: its last word moved to the next utterance. A final that a second
    pass changed adds nothing either; `sent` is then its text.
    """

    def __init__(self) -> None:
        self.locked, self.sent = "", ""

    def add(self, event: StreamEvent) -> str:
        """What the event appends, "" if nothing."""
        if event.type == "endpoint" or (event.type == "partial" and not event.stable):
            return ""
        text = f"{self.locked} {event.text}".strip() if event.text else self.locked
        if event.type == "final":
            self.locked = text
        if not text.startswith(self.sent):
            if event.type == "final" and not self.sent.startswith(text):
                self.sent = text  # a second pass wrote it again
            return ""
        added, self.sent = text[len(self.sent) :], text
        return added
