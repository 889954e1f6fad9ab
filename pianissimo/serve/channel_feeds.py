"""The channels of one client as streams side by side: interleaved bytes in, their events out."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields

from pianissimo.serve.access.accounts import Account
from pianissimo.serve.audio_in.pcm import PcmReader
from pianissimo.serve.feed import SHORTEST_SECONDS, Feed
from pianissimo.streaming.session import Session
from pianissimo.transcript import StreamEvent

MOST_EVENTS = 16
"""Events that wait to be read, of all channels."""


@dataclass(frozen=True)
class ChannelEvent(StreamEvent):
    """An event of one channel; those of a channel are in the order of time."""

    channel: int = 0


class ChannelFeeds:
    """One `Feed` per channel behind what `Feed` offers for one.

    `reader` reads the interleaved samples. Each channel is metered: a second of two channels is
    two seconds of audio.
    """

    def __init__(self, feeds: Sequence[Feed], reader: PcmReader, account: Account | None) -> None:
        self._feeds, self._reader, self._account = feeds, reader, account
        self._shortest = math.ceil(SHORTEST_SECONDS * feeds[0].sample_rate)

    @property
    def session(self) -> Session:
        """The stream of the first channel."""
        return self._feeds[0].session

    def seconds_of(self, data: bytes) -> float:
        """Length of the audio of a message."""
        return len(data) / self._reader.frame_bytes / self._feeds[0].sample_rate

    def hold(self, data: bytes) -> bool:
        """Audio of any length is pushed: `push` meters it, and holds what is too short."""
        return False

    async def push(self, data: bytes) -> float:
        """Push the interleaved audio of one message; returns the seconds of all channels.

        Raises Refusal, before anything is pushed, if the audio allowance of the key is used up.
        """
        if self._account is not None:
            self._account.check_audio()
        if not self._reader.hold(data, self._shortest):
            await self._push(data)
        return len(self._feeds) * self.seconds_of(data)

    async def _push(self, data: bytes) -> None:
        samples = self._reader.push(data)
        for channel, feed in enumerate(self._feeds):
            await feed.push_samples(samples[:, channel].copy())

    async def set_language(self, language: str) -> None:
        """Choose the language of what is pushed from now on; raises OptionError."""
        await self._push(b"")
        for feed in self._feeds:
            await feed.set_language(language)

    async def finalize(self) -> None:
        """Request the final text of every channel."""
        await self._push(b"")
        for feed in self._feeds:
            await feed.finalize()

    async def finish(self) -> None:
        """End the audio of every channel."""
        await self._push(b"")
        for feed in self._feeds:
            await feed.finish()

    async def __aiter__(self) -> AsyncIterator[ChannelEvent]:
        """The events as they come, until all channels have ended."""
        waiting: asyncio.Queue[ChannelEvent | Exception | None] = asyncio.Queue(MOST_EVENTS)

        async def read(channel: int, feed: Feed) -> None:
            try:
                async for event in feed:
                    values = {field.name: getattr(event, field.name) for field in fields(event)}
                    await waiting.put(ChannelEvent(**values, channel=channel))
                await waiting.put(None)
            except Exception as error:  # raised by the reader of the events
                await waiting.put(error)

        tasks = [asyncio.create_task(read(*item)) for item in enumerate(self._feeds)]
        try:
            ended = 0
            while ended < len(tasks):
                event = await waiting.get()
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    ended += 1
                else:
                    yield event
        finally:
            for task in tasks:
                task.cancel()

    async def release(self) -> None:
        """Close the streams, and wait until the engine has freed their slots."""
        for feed in self._feeds:
            await feed.release()

    def observe(self, event: StreamEvent) -> None:
        """The feeds observe the events themselves."""
