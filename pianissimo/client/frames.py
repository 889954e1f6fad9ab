"""The frames of a stream that may have to be sent again.

A frame is a message with audio or a command. Both sides count frames from 1. The server says how
many it has received (`acknowledged`), how many its final texts answer (`covered`), and how many are
in the state that it stored (`saved`).
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""A message of the server, parsed."""

MOST_UNACKNOWLEDGED = 600
"""Frames that the server has not acknowledged; with more, `ClientStream.send` waits."""
SHORTEST_SECONDS = 0.1
"""Audio that waits for a connection is joined to frames of this length."""


@dataclass(frozen=True)
class Frame:
    """A message with audio or a command, and where it ends in the audio, in seconds."""

    data: bytes | str
    end: float


class KeptFrames:
    """Frames in order, from the first that the server may need again.

    At most `keep_seconds` of audio that the server has received are kept.
    """

    def __init__(self, bytes_per_second: float, keep_seconds: float) -> None:
        self.bytes_per_second, self.keep_seconds = bytes_per_second, keep_seconds
        self.frames: deque[Frame] = deque()
        self.dropped = self.sent = self.acknowledged = self.covered = 0
        self.saved: int | None = None
        """None if the server stores nothing."""
        self.start = 0.0
        """Where the stream that the server has begins in the audio, in seconds."""
        self.kept_from = self.end = 0.0
        """Where the first frame begins and the last one ends in the audio, in seconds."""

    @property
    def count(self) -> int:
        """All frames of the stream so far."""
        return self.dropped + len(self.frames)

    @property
    def full(self) -> bool:
        return self.count - self.acknowledged >= MOST_UNACKNOWLEDGED

    def add_audio(self, data: bytes) -> None:
        self.end += len(data) / self.bytes_per_second
        last = self.frames[-1].data if self.count > self.sent else None
        longest = SHORTEST_SECONDS * self.bytes_per_second
        if isinstance(last, bytes) and len(last) + len(data) <= longest:
            self.frames[-1] = Frame(last + data, self.end)
        else:
            self.frames.append(Frame(data, self.end))

    def add_command(self, command: str) -> None:
        self.frames.append(Frame(command, self.end))

    def next_unsent(self) -> Frame | None:
        """The next frame to send, which counts as sent from now on."""
        if self.sent == self.count:
            return None
        self.sent += 1
        return self.frames[self.sent - 1 - self.dropped]

    def resume(self, ready: Message) -> None:
        """A connection is ready: `ready` says how many frames its server has."""
        self.acknowledged = self.sent = ready["frames"]
        self._drop(ready)

    def acknowledge(self, ack: Message) -> None:
        self.acknowledged = max(self.acknowledged, ack["frames"])
        self._drop(ack)

    def cover(self, final: Message) -> None:
        """A final text says how many frames it answers."""
        self.covered = max(self.covered, final["frames"])
        self._drop(final)

    def start_again(self) -> bool:
        """Count from the first kept frame, for another stream.

        False if frames that no final text answers are missing.
        """
        complete = self.dropped <= self.covered
        self.start = self.kept_from
        self.dropped = self.sent = self.acknowledged = self.covered = 0
        self.saved = None
        return complete

    def _drop(self, message: Message) -> None:
        """Drop what is received, answered and stored, and what is received and too old."""
        self.saved = message.get("saved", self.saved)
        safe = self.covered if self.saved is None else min(self.covered, self.saved)
        while self.frames and self.dropped < self.acknowledged:
            if self.dropped >= safe and self.end - self.kept_from <= self.keep_seconds:
                return
            self.kept_from = self.frames.popleft().end
            self.dropped += 1
