"""A client's handle on one stream of an engine: push audio from any thread, read events."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy.typing as npt

from pianissimo.audio.io import Samples
from pianissimo.streaming.host import HostedStream, StreamHost
from pianissimo.streaming.input import StreamInput
from pianissimo.transcript import StreamEvent


class Session:
    """One stream of an `Engine` or `SegmentedEngine`; created by its `open`.

    Every method may be called from any thread. Events arrive in order, by iteration or
    asynchronous iteration, and end after the final that answers `finish`, or at `close`. An unread
    partial is replaced by the next one, which contains its text. Finals are kept; too many unread
    finals pause the stream until they are read.
    """

    def __init__(self, host: StreamHost, stream: HostedStream, input: StreamInput) -> None:
        self.host, self.stream, self.input = host, stream, input
        self.input_lock = threading.Lock()

    # -- in ----------------------------------------------------------------------------------------

    def push(
        self,
        samples: npt.ArrayLike,
        sample_rate: int | None = None,
        *,
        wait: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Append samples: floats in [-1, 1] or integers, mono or (samples, channels).

        While the stream's backlog exceeds the engine's limit, `push` waits at most `timeout`
        seconds, or not at all with `wait=False`; then it raises BacklogError and no sample was
        accepted. Raises StreamError after `finish` or `close`, and AudioValueError for unusable
        samples, which does not end the stream.
        """
        with self.input_lock:
            self.host.await_room(self.stream, wait=wait, timeout=timeout)
            self.host.accept(self.stream, self.input.push(samples, sample_rate))

    @staticmethod
    def push_many(pushes: Sequence[tuple["Session", npt.ArrayLike]]) -> list[Exception | None]:
        """As `push` with `wait=False` to each of several different sessions, in one call.

        It takes a fraction of the time of one by one, because the gain and the voice detector work
        on all streams at once; what each stream hears is the same to the bit. Returns the error of
        each session, None where the samples were accepted.
        """
        errors: list[Exception | None] = [None] * len(pushes)
        with ExitStack() as held:
            for session in sorted((session for session, _ in pushes), key=id):
                held.enter_context(session.input_lock)
            taken: list[int] = []
            for i, (session, _) in enumerate(pushes):
                try:
                    session.host.await_room(session.stream, wait=False, timeout=None)
                    taken.append(i)
                except Exception as error:  # of one stream, which must not affect the others
                    errors[i] = error
            leveled = StreamInput.push_many(
                [pushes[i][0].input for i in taken], [pushes[i][1] for i in taken]
            )
            hosts: dict[StreamHost, list[tuple[int, HostedStream, Samples]]] = {}
            for i, block in zip(taken, leveled, strict=True):
                if isinstance(block, Exception):
                    errors[i] = block
                else:
                    session = pushes[i][0]
                    hosts.setdefault(session.host, []).append((i, session.stream, block))
            for host, members in hosts.items():
                streams = [stream for _, stream, _ in members]
                failures = host.accept_many(streams, [block for _, _, block in members])
                for (i, _, _), failure in zip(members, failures, strict=True):
                    errors[i] = failure
        return errors

    def finalize(self) -> None:
        """Lock the text of everything pushed so far; the stream continues.

        Answered by exactly one final with reason "finalize", empty if there is no text.
        """
        with self.input_lock:
            self.host.mark(self.stream, "finalize")

    finalise = finalize
    """The British spelling, accepted as well."""

    def set_language(self, language: str) -> None:
        """Choose the language of what is pushed from now on, from its next utterance on.

        Raises OptionError for a model without a choice or without this language, and StreamError
        after `finish` or `close`.
        """
        with self.input_lock:
            self.host.set_language(self.stream, language)

    def finish(self) -> None:
        """End the audio. Answered by exactly one final with reason "finish", the last event."""
        with self.input_lock:
            with self.host.lock:
                self.stream.check_accepts("finish")
            self.host.accept(self.stream, self.input.finish())
            self.host.mark(self.stream, "finish")

    def close(self) -> None:
        """End the stream at once, without its remaining text; may be called again."""
        self.host.leave(self.stream)

    def export(self) -> bytes:
        """The stream as bytes for `Engine.open(state=...)` here or in another process.

        They contain everything that was pushed, consumed or not, and no unread events. The stream
        continues here unless it is closed. Raises StreamError after its end.
        """
        return self.snapshot()()

    def snapshot(self) -> Callable[[], bytes]:
        """As `export`, but it only copies the state, which takes the engine a moment; the call of
        the result makes the bytes, in any thread."""
        with self.input_lock:
            return self.host.snapshot(self.stream, self.input.save())

    # -- out ---------------------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> StreamEvent | None:
        """The next event, after at most `timeout` seconds; None when the stream has ended.

        Raises TimeoutError, and EngineError if the stream failed.
        """
        return self.stream.mailbox.get(timeout)

    def get_nowait(self) -> StreamEvent | None:
        """The next event if there is one."""
        return self.stream.mailbox.get_nowait()

    def __iter__(self) -> Iterator[StreamEvent]:
        while (event := self.get()) is not None:
            yield event

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self.stream.mailbox.__aiter__()

    @property
    def backlog_seconds(self) -> float:
        """Audio that was pushed and not yet consumed by the model."""
        return self.host.backlog_seconds(self.stream)

    @property
    def gain_db(self) -> float:
        """The gain at the end of what was pushed."""
        return self.input.gain_db

    @property
    def replays(self) -> int:
        """How often the watchdog restarted the stream a few seconds back."""
        return self.stream.replays

    @property
    def slot(self) -> int | None:
        """The stream's slot in its engine; None once the engine has it back."""
        return self.stream.slot

    @property
    def ended(self) -> bool:
        """Whether no further events are added; unread ones may remain."""
        return self.stream.mailbox.ended

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()
