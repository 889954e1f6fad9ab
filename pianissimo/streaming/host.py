"""What a session asks of its engine, and what both know of a stream."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pianissimo.audio.io import Samples
from pianissimo.errors import EngineError, PianissimoError, StreamError
from pianissimo.streaming.endpoint import Mark
from pianissimo.streaming.input import SavedInput
from pianissimo.streaming.mailbox import Mailbox


@dataclass(eq=False)
class HostedStream:
    """One stream of an engine: its identity, its mailbox and its public state.

    The engine keeps everything else in a record of its own, under this object as key.
    """

    mailbox: Mailbox
    slot: int | None
    """The slot of the stream; None once the engine has it back."""
    input_ended: bool = False
    """`finish` was called."""
    replays: int = 0
    """How often the watchdog restarted the stream."""

    def check_accepts(self, action: str) -> None:
        """Raises EngineError if the stream failed, StreamError if its input has ended."""
        if self.mailbox.error is not None:
            raise EngineError(f"cannot {action}: this stream failed ({self.mailbox.error})")
        if self.input_ended or self.mailbox.ended:
            raise StreamError(f"cannot {action}: this stream has ended; open a new one")


class StreamHost(Protocol):
    """The engine as its sessions see it; every method may be called from any thread."""

    @property
    def lock(self) -> threading.RLock: ...

    def await_room(self, stream: HostedStream, *, wait: bool, timeout: float | None) -> None:
        """Return once the stream may accept samples; raises what `Session.push` documents."""
        ...

    def accept(self, stream: HostedStream, samples: Samples) -> None:
        """Append samples (n,) at the model's rate."""
        ...

    def accept_many(
        self, streams: Sequence[HostedStream], blocks: Sequence[Samples]
    ) -> list[PianissimoError | None]:
        """As `accept` for each of several streams; the error of each, None without one."""
        ...

    def mark(self, stream: HostedStream, kind: Mark) -> None:
        """Request the text of everything accepted so far; "finish" also ends the input."""
        ...

    def set_language(self, stream: HostedStream, language: str) -> None:
        """Change the language at the next utterance; OptionError as `Session.set_language`."""
        ...

    def leave(self, stream: HostedStream) -> None:
        """End the stream without its remaining text."""
        ...

    def snapshot(self, stream: HostedStream, input: SavedInput) -> Callable[[], bytes]:
        """A copy of the stream, with the state of its input filters; the call makes it bytes."""
        ...

    def backlog_seconds(self, stream: HostedStream) -> float:
        """Accepted audio that the model has not consumed."""
        ...
