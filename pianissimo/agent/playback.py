"""How much of the audio that was sent has been played, by the clock."""

import time
from collections.abc import Callable

from pianissimo.agent.history import Message

MOST_AHEAD_SECONDS = 10.0
"""Audio that is sent before it is played; the rest of an answer waits, and costs nothing if the
answer is interrupted."""


class Playback:
    """A client that plays audio as it arrives, without gaps of its own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = 0.0
        """When everything that was sent is played."""
        self._message: Message | None = None

    @property
    def ahead_seconds(self) -> float:
        """Audio that was sent and is not played yet."""
        return max(0.0, self._end - self._clock())

    @property
    def playing(self) -> bool:
        return self.ahead_seconds > 0

    def sent(self, message: Message, seconds: float) -> None:
        self._message = message
        self._end = max(self._end, self._clock()) + seconds

    def stop(self) -> None:
        """The client plays no more: cut the message in play to what was played."""
        if self._message is not None and self.playing:
            self._message.played_seconds = max(0.0, self._message.seconds - self.ahead_seconds)
        self._end, self._message = 0.0, None
