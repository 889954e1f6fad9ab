"""What each key has used, and whether it may use more."""

import math
import time
from dataclasses import dataclass, field

from pianissimo.serve.access.keys import Limits
from pianissimo.serve.errors import RETRY_SECONDS, Refusal

MINUTE = 60.0


@dataclass
class Account:
    """The use of one key by the name of that key. Used by the event loop's thread only.

    Audio is taken from an allowance of one minute's worth, which fills up all the time. What a
    recording takes beyond it is owed: nothing more is taken until it is filled again.
    """

    name: str
    limits: Limits
    requests: int = 0
    streams: int = 0
    streams_opened: int = 0
    audio_seconds: float = 0.0
    refused: int = 0
    _owed: float = field(default=0.0, init=False)
    _owed_at: float = field(default=0.0, init=False)

    def take_stream(self) -> None:
        """Raises Refusal when this key has all its streams; otherwise `leave_stream` follows."""
        most = self.limits.streams
        if most is not None and self.streams >= most:
            raise self._refusal(f"all {most} streams of this key are in use", RETRY_SECONDS)
        self.streams += 1
        self.streams_opened += 1

    def leave_stream(self) -> None:
        self.streams -= 1

    def check_audio(self) -> None:
        """Raises Refusal when the allowance of audio is used up."""
        allowance = self.limits.audio_seconds_per_minute
        if allowance is None:
            return
        self._repay(allowance)
        if self._owed >= allowance:
            wait = (self._owed - allowance) / allowance * MINUTE
            raise self._refusal(
                f"this key may send {allowance:g} s of audio in a minute and has", math.ceil(wait)
            )

    def heard(self, seconds: float) -> None:
        """So much audio was taken in."""
        self.audio_seconds += seconds
        if self.limits.audio_seconds_per_minute is not None:
            self._repay(self.limits.audio_seconds_per_minute)
            self._owed += seconds

    def largest_upload_bytes(self, most: int) -> int:
        """What an upload may hold, on a server that takes `most`."""
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
