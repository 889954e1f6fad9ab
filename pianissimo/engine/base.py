"""What every engine does for its streams: slots, admission, backlog, failures and statistics."""

import atexit
import logging
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

from pianissimo.audio.io import Samples
from pianissimo.engine.slots import Slots
from pianissimo.errors import BacklogError, EngineError, EngineFullError, PianissimoError
from pianissimo.streaming.endpoint import Mark
from pianissimo.streaming.host import HostedStream
from pianissimo.streaming.input import SavedInput, StreamInput
from pianissimo.streaming.mailbox import Mailbox
from pianissimo.streaming.session import Session

DELAYS_KEPT = 10_000

log = logging.getLogger(__name__)


class Answered(NamedTuple):
    """One answered chunk or segment.

    `seconds` is its length, `waited` the time from when it became the oldest work of its stream to
    its answer, and `at` the time of the answer by the monotonic clock.
    """

    seconds: float
    waited: float
    at: float


@dataclass
class EngineStats:
    """Totals of an engine since it started.

    `delays` are lookahead and seconds from complete to answered of the last chunks; `answered` are
    the same chunks without the time that they waited for older work of their own stream.
    """

    streams: int = 0
    opened: int = 0
    refused: int = 0
    failed: int = 0
    steps: int = 0
    chunks: int = 0
    finals: int = 0
    tokens: int = 0
    replays: int = 0
    step_seconds: float = 0.0
    delays: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=DELAYS_KEPT))
    answered: deque[Answered] = field(default_factory=lambda: deque(maxlen=DELAYS_KEPT))


class StreamRecord(Protocol):
    """What an engine knows of one stream besides `HostedStream`."""

    @property
    def backlog_seconds(self) -> float: ...


Record = TypeVar("Record", bound=StreamRecord)
_with_threads: "weakref.WeakSet[StreamEngine[Any]]" = weakref.WeakSet()


class StreamEngine(ABC, Generic[Record]):
    """The streams of one engine, each with a slot and a record.

    `lock` guards all of it, the mailboxes included. A stream may have `backlog_seconds` of audio
    waiting before `push` blocks, and `unread_events` before the engine pauses it.
    """

    def __init__(self, max_streams: int, backlog_seconds: float, unread_events: int) -> None:
        self.backlog_limit, self.unread_events = backlog_seconds, unread_events
        self.lock = threading.RLock()
        self.stats = EngineStats()
        self._room = threading.Condition(self.lock)
        self._slots = Slots(max_streams)
        self._streams: dict[HostedStream, Record] = {}

    # -- for clients -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether the engine serves streams."""

    def queue_age(self) -> float:
        """Seconds that the oldest work has waited, its own step included; 0 without work.

        Streams that are paused because their events are not read do not count.
        """
        with self.lock:
            waits = [
                since
                for stream, record in self._streams.items()
                if (since := self._waits_since(stream, record)) is not None
            ]
            return time.monotonic() - min(waits) if waits else 0.0

    @abstractmethod
    def close(self) -> None:
        """End all streams; may be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    # -- for sessions ------------------------------------------------------------------------------

    def backlog_seconds(self, stream: HostedStream) -> float:
        """Accepted audio that the model has not consumed; 0 after the stream's end."""
        with self.lock:
            return self._streams[stream].backlog_seconds if stream in self._streams else 0.0

    def await_room(self, stream: HostedStream, *, wait: bool, timeout: float | None) -> None:
        """Return once the stream may accept samples; raises what `Session.push` documents."""

        def has_room() -> bool:
            stream.check_accepts("push")
            return self.backlog_seconds(stream) < self.backlog_limit

        with self._room:
            if has_room() or (wait and self._room.wait_for(has_room, timeout)):
                return
            raise BacklogError(
                f"{self.backlog_seconds(stream):.0f} s of audio of this stream wait for the model, "
                f"and the limit is {self.backlog_limit:g} s; push more slowly, read its events, "
                "close other streams, or choose a faster model"
            )

    @abstractmethod
    def accept(self, stream: HostedStream, samples: Samples) -> None:
        """Append samples (n,) at the model's rate."""

    def accept_many(
        self, streams: Sequence[HostedStream], blocks: Sequence[Samples]
    ) -> list[PianissimoError | None]:
        """As `accept` for each of several streams; the error of each, None without one."""
        errors: list[PianissimoError | None] = []
        for stream, samples in zip(streams, blocks, strict=True):
            try:
                self.accept(stream, samples)
                errors.append(None)
            except PianissimoError as error:
                errors.append(error)
        return errors

    @abstractmethod
    def mark(self, stream: HostedStream, kind: Mark) -> None:
        """Request the text of everything accepted so far; "finish" also ends the input."""

    @abstractmethod
    def set_language(self, stream: HostedStream, language: str) -> None:
        """Change the language at the next utterance; OptionError if the model has no choice."""

    @abstractmethod
    def leave(self, stream: HostedStream) -> None:
        """End the stream without its remaining text."""

    @abstractmethod
    def snapshot(self, stream: HostedStream, input: SavedInput) -> Callable[[], bytes]:
        """A copy of the stream, which the call makes bytes; StreamError if that is impossible."""

    # -- with the lock held ------------------------------------------------------------------------

    @abstractmethod
    def _waits_since(self, stream: HostedStream, record: Record) -> float | None:
        """When the oldest work of a stream began to wait; None without work."""

    @abstractmethod
    def _schedule(self, stream: HostedStream) -> None:
        """Queue the stream if it has work to do."""

    def _admit(self, record: Record, input: StreamInput, replays: int = 0) -> Session:
        """Give a new stream a slot; raises EngineFullError if there is none."""
        try:
            slot = self._slots.acquire()
        except EngineFullError:
            self.stats.refused += 1
            raise
        stream = HostedStream(Mailbox(self.lock, self.unread_events), slot, replays=replays)
        stream.mailbox.resume = partial(self._schedule, stream)
        self._streams[stream] = record
        self.stats.opened += 1
        self.stats.streams += 1
        self._schedule(stream)
        return Session(self, stream, input)

    def _fail(self, stream: HostedStream, error: Exception) -> None:
        """End a stream with the error that ended its work, which is logged with its traceback."""
        log.error("a stream failed in slot %s", stream.slot, exc_info=error)
        failure = EngineError(f"this stream failed: {error!r}")
        failure.__cause__ = error
        self.stats.failed += 1
        stream.mailbox.end(failure)

    def _release(self, stream: HostedStream) -> None:
        """Forget a stream and make its slot available."""
        assert stream.slot is not None
        del self._streams[stream]
        self._slots.release(stream.slot)
        stream.slot = None
        self.stats.streams -= 1
        self._room.notify_all()


def close_at_exit(engine: StreamEngine[Any]) -> None:
    """Have an engine that starts a thread closed before the interpreter ends, at the latest.

    A thread that Python ends within native code aborts the whole process.
    """
    _with_threads.add(engine)


@atexit.register
def _close_engines() -> None:
    for engine in list(_with_threads):
        engine.close()
