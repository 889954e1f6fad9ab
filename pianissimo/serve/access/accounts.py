"""Usage and limits of each API key."""

import math
import time
from dataclasses import dataclass, field

from pianissimo.serve.access.budget import Budget
from pianissimo.serve.access.keys import Limits
from pianissimo.serve.errors import RETRY_SECONDS, Refusal

MINUTE = 60.0
MESSAGES_PER_SECOND, MESSAGES_BURST = 4000.0, 8000.0
"""Socket messages of one key: 80 clients that send frames of 20 ms."""


@dataclass
class Account:
    """The usage of one key, under the name of that key. Used by the event loop's thread only.

    Audio is metered against an allowance of one minute's worth, which refills continuously. Audio
    beyond it is owed: no more is accepted until the debt is repaid. `messages` is the budget of
    socket messages that all connections of the key share.
    """

    name: str
    limits: Limits
    requests: int = 0
    streams: int = 0
    streams_opened: int = 0
    audio_seconds: float = 0.0
    refused: int = 0
    messages: Budget = field(default_factory=lambda: Budget(MESSAGES_PER_SECOND, MESSAGES_BURST))
    _owed: float = field(default=0.0, init=False)
    _owed_at: float = field(default=0.0, init=False)

    def acquire_stream(self) -> None:
        """Raises Refusal at the limit of the key; call `release_stream` once afterwards."""
        most = self.limits.streams
        if most is not None and self.streams >= most:
            raise self._refusal(f"all {most} streams of this key are in use", RETRY_SECONDS)
        self.streams += 1
        self.streams_opened += 1

    def release_stream(self) -> None:
        self.streams -= 1

    def check_audio(self) -> None:
        """Raises Refusal if the audio allowance is used up."""
        allowance = self.limits.audio_seconds_per_minute
        if allowance is None:
            return
        self._repay(allowance)
        if self._owed >= allowance:
            wait = (self._owed - allowance) / allowance * MINUTE
            raise self._refusal(
                f"this key has used its {allowance:g} s of audio per minute", math.ceil(wait)
            )

    def record_audio(self, seconds: float) -> None:
        """Meter audio that was accepted."""
        self.audio_seconds += seconds
        if self.limits.audio_seconds_per_minute is not None:
            self._repay(self.limits.audio_seconds_per_minute)
            self._owed += seconds

    def largest_upload_bytes(self, most: int) -> int:
        """The limit of an upload, on a server whose own limit is `most`."""
        own = self.limits.upload_mb
        return most if own is None else min(most, round(own * 1e6))

    def _repay(self, allowance: float) -> None:
        now = time.monotonic()
        self._owed = max(0.0, self._owed - (now - self._owed_at) / MINUTE * allowance)
        self._owed_at = now

    def _refusal(self, message: str, seconds: int) -> Refusal:
        self.refused += 1
        wait = max(RETRY_SECONDS, seconds)
        return Refusal(
            429,
            f"{message}; try again in {wait} s",
            "key_limit",
            headers={"retry-after": str(wait)},
        )
