"""A client's handle on one stream of the engine: push audio from any thread, read events."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from pianissimo.errors import EngineError, PianissimoError, StreamError
from pianissimo.streaming.input import StreamInput
from pianissimo.streaming.live import LiveStream
from pianissimo.transcript import StreamEvent

if TYPE_CHECKING:
    from pianissimo.engine.engine import Engine
    from pianissimo.engine.segmented import Listening, SegmentedEngine


class Session:
    """One stream of an `Engine` or `SegmentedEngine`; made by its `open`.

    Every method may be called from any thread. Events come in order from one queue, either by
    iterating or asynchronously; they end after the final that answers `finish`, or at `close`. A
    partial that was not read yet gives way to the next one, which holds its text; finals wait, and
    if too many do, the stream pauses until they are read.
    """

    def __init__(
        self,
        engine: "Engine | SegmentedEngine",
        slot: int,
        live: "LiveStream | Listening",
        input: StreamInput,
    ) -> None:
        self._engine, self._input = engine, input
        self._live: Any = live  # which of the two, only the engine knows
        self.slot: int | None = slot
        self._input_lock = threading.Lock()
        self._news = threading.Condition(engine.lock)
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._events: deque[StreamEvent] = deque()
        self._error: PianissimoError | None = None
        self._accepts = True
        self._ended = False

    # -- in ----------------------------------------------------------------------------------------

    def push(
        self,
        samples: Any,
        sample_rate: int | None = None,
        *,
        wait: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Take further samples: floats in [-1, 1] or integers, mono or (samples, channels).

        While more audio waits than the engine allows a stream, `push` waits for it to fall, at
        most `timeout` seconds, or with `wait=False` not at all; then it raises BacklogError and
        has taken nothing. Raises StreamError after `finish` or `close`, and AudioValueError for
        samples that are not usable, which does not end the stream.
        """
        with self._input_lock:
            self._engine.make_room(self, wait=wait, timeout=timeout)
            self._engine.take_samples(self, self._input.push(samples, sample_rate))

    def finalize(self) -> None:
        """Lock the text of everything pushed so far; the stream goes on.

        Answered by exactly one final with reason "finalize", empty if nothing was said.
        """
        with self._input_lock:
            self._engine.mark(self, "finalize")

    finalise = finalize
    """The British spelling, accepted as well."""

    def finish(self) -> None:
        """End the audio. Answered by exactly one final with reason "finish", the last event."""
        with self._input_lock:
            self._engine.check_accepts(self, "finish")
            self._engine.take_samples(self, self._input.finish())
            self._engine.mark(self, "finish")

    def close(self) -> None:
        """Leave at once, without the rest of the text; may be called again."""
        self._engine.leave(self)

    def export(self) -> bytes:
        """The stream as bytes for `Engine.open(state=...)` here or in another process.

        Whatever was pushed is in it, heard or not; unread events are not. The stream goes on here
        unless it is closed. Raises StreamError after its end.
        """
        with self._input_lock:
            return self._engine.export(self, self._input.save())

    # -- out ---------------------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> StreamEvent | None:
        """The next event, waiting at most `timeout` seconds; None when the stream has ended.

        Raises TimeoutError, and EngineError if the stream failed.
        """
        with self._news:
            if not self._news.wait_for(lambda: self._events or self._ended, timeout):
                raise TimeoutError(f"no event within {timeout} s")
            return self._next()

    def get_nowait(self) -> StreamEvent | None:
        """The next event if there is one."""
        with self._news:
            return self._next() if self._events else None

    def __iter__(self) -> Iterator[StreamEvent]:
        while (event := self.get()) is not None:
            yield event

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        wake = asyncio.Event()
        listener = (asyncio.get_running_loop(), wake)
        with self._news:
            self._listeners.add(listener)
        try:
            while True:
                wake.clear()
                with self._news:
                    waiting = not self._events and not self._ended
                    event = None if waiting else self._next()
                if waiting:
                    await wake.wait()
                elif event is None:
                    return
                else:
                    yield event
        finally:
            with self._news:
                self._listeners.discard(listener)

    @property
    def backlog_seconds(self) -> float:
        """Audio that was pushed and not yet heard."""
        with self._news:
            return self._live.backlog_seconds

    @property
    def gain_db(self) -> float:
        """The gain at the end of what was pushed."""
        return self._input.gain_db

    @property
    def replays(self) -> int:
        """How often the watchdog heard the last seconds anew."""
        return self._live.replays

    @property
    def ended(self) -> bool:
        """Whether no further events will come but those that are unread."""
        return self._ended

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    # -- for the engine, which holds its lock ------------------------------------------------------

    def _next(self) -> StreamEvent | None:
        if self._events:
            event = self._events.popleft()
            self._engine.was_read(self)
            return event
        if self._error is not None:
            raise self._error
        return None

    def _deliver(self, events: list[StreamEvent]) -> None:
        for event in events:
            if event.type == "partial" and self._events and self._events[-1].type == "partial":
                self._events[-1] = event
            else:
                self._events.append(event)
        if events:
            self._wake()

    def _end(self, error: PianissimoError | None = None) -> None:
        self._accepts, self._ended, self._error = False, True, error
        self._wake()

    def _wake(self) -> None:
        self._news.notify_all()
        for loop, wake in list(self._listeners):
            try:
                loop.call_soon_threadsafe(wake.set)
            except RuntimeError:  # that loop is closed: nobody listens there any more
                self._listeners.discard((loop, wake))

    def _check_accepts(self, action: str) -> None:
        if self._error is not None:
            raise EngineError(f"cannot {action}: this stream failed ({self._error})")
        if not self._accepts:
            raise StreamError(f"cannot {action}: this stream has ended; open a new one")
