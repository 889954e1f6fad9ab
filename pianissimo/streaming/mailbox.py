"""The unread events of one stream: written by its engine, read by threads or coroutines."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from pianissimo.errors import PianissimoError
from pianissimo.transcript import StreamEvent


class Mailbox:
    """An ordered queue of events with an end; every method may be called from any thread.

    An unread partial is replaced by the next one, which contains its text. Finals are kept. The
    mailbox is full at `capacity` unread events. `lock` is the engine's lock, so an engine that
    holds it changes its records and the mailbox in one step.
    """

    def __init__(self, lock: threading.RLock, capacity: int) -> None:
        self._changed = threading.Condition(lock)
        self._capacity = capacity
        self._events: deque[StreamEvent] = deque()
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self.resume: Callable[[], None] | None = None
        """Called with the lock held when a reader makes room in a full mailbox; reset at the end,
        so that no cycle of references keeps a stream alive."""
        self.ended = False
        """No further events are added; unread ones may remain."""
        self.error: PianissimoError | None = None
        """Why the stream failed; raised to readers after the last event."""

    # -- for the engine ----------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether as many events are unread as the mailbox holds."""
        return len(self._events) >= self._capacity

    def deliver(self, events: Sequence[StreamEvent]) -> None:
        """Append events in order; a partial replaces an unread partial before it."""
        with self._changed:
            for event in events:
                if event.type == "partial" and self._events and self._events[-1].type == "partial":
                    self._events[-1] = event
                else:
                    self._events.append(event)
            if events:
                self._wake()

    def end(self, error: PianissimoError | None = None) -> None:
        """Mark the last event as delivered, or the stream as failed with `error`."""
        with self._changed:
            self.ended, self.error, self.resume = True, error, None
            self._wake()

    # -- for the reader ----------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._events)

    def get(self, timeout: float | None = None) -> StreamEvent | None:
        """The next event, after at most `timeout` seconds; None after the last one.

        Raises TimeoutError, and the error of a stream that failed.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._events or self.ended, timeout):
                raise TimeoutError(f"no event within {timeout} s")
            return self._next()

    def get_nowait(self) -> StreamEvent | None:
        """The next event if there is one."""
        with self._changed:
            return self._next() if self._events else None

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        wake = asyncio.Event()
        waiter = (asyncio.get_running_loop(), wake)
        with self._changed:
            self._waiters.add(waiter)
        try:
            while True:
                wake.clear()
                with self._changed:
                    waiting = not self._events and not self.ended
                    event = None if waiting else self._next()
                if waiting:
                    await wake.wait()
                elif event is None:
                    return
                else:
                    yield event
        finally:
            with self._changed:
                self._waiters.discard(waiter)

    def _next(self) -> StreamEvent | None:
        if self._events:
            event = self._events.popleft()
            if len(self._events) == self._capacity - 1 and self.resume is not None:
                self.resume()
            return event
        if self.error is not None:
            raise self.error
        return None

    def _wake(self) -> None:
        self._changed.notify_all()
        for loop, wake in list(self._waiters):
            try:
                loop.call_soon_threadsafe(wake.set)
            except RuntimeError:  # the loop is closed, and its reader gone
                self._waiters.discard((loop, wake))
