"""Live streams of recognisers that hear recordings whole: each pause of the speaker ends a segment,
and what was said in it comes as a final.

The caller's thread finds the segments; one thread per engine, which lives only while there is work,
recognises them in the order in which they ended. A model that streams may write partials meanwhile,
in the caller's thread: the final then replaces what it wrote.
"""

import logging
import threading
import time
from collections import deque
from dataclasses import replace
from types import TracebackType
from typing import Any

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.boosting import Boost
from pianissimo.errors import BacklogError, EngineError, OptionError, StateError, StreamError
from pianissimo.guards import Evidence, Witness, judge
from pianissimo.recognizer import Recognizer, Stream, StreamRecognizer
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules
from pianissimo.streaming.engine import EngineStats
from pianissimo.streaming.input import StreamInput
from pianissimo.streaming.live import Mark
from pianissimo.streaming.segmenter import LiveSegment, Segmenter
from pianissimo.streaming.session import Session
from pianissimo.streaming.slots import Slots
from pianissimo.text.words import joined
from pianissimo.transcript import StreamEvent, Word

BACKLOG_SECONDS = 60.0
UNREAD_EVENTS = 256

log = logging.getLogger(__name__)


class SegmentedEngine:
    """What `Engine` is to models that stream: `open` sessions, push audio, read their events.

    A stream may have `backlog_seconds` of speech waiting before `push` makes its caller wait, and
    `unread_events` before it pauses. `partials` is a recogniser whose streams write the partials;
    without it there are only finals.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        *,
        max_streams: int = 64,
        partials: StreamRecognizer | None = None,
        backlog_seconds: float = BACKLOG_SECONDS,
        unread_events: int = UNREAD_EVENTS,
    ) -> None:
        if min(max_streams, unread_events) < 1 or backlog_seconds <= 0:
            raise OptionError("the bounds of an engine must be above 0")
        self.recognizer, self.partials = recognizer, partials
        self.backlog_seconds, self.unread_events = backlog_seconds, unread_events
        self.lock = threading.RLock()
        self.stats = EngineStats()
        self._room = threading.Condition(self.lock)
        self._slots = Slots(max_streams)
        self._sessions: set[Session] = set()
        self._work: deque[tuple[Session, LiveSegment]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._front_end = getattr(recognizer, "front_end", None) or FrontEnd()
        self._detector = getattr(recognizer, "detector", None) or VoiceDetector()

    # -- clients -----------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether streams are served: until `close`."""
        return not self._closed

    def open(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int | None = None,
        endpoint: EndpointRules | None = ENDPOINT,
        watchdog: None = None,
        boost: Boost | None = None,
        state: bytes | None = None,
    ) -> Session:
        """Open a stream of samples at `sample_rate` Hz (16 kHz, by default).

        `endpoint` says which pauses end an utterance; None leaves it to `finalise` and `finish`,
        with finals of reason "length" in longer pauses; `boost` are phrases that its finals should
        rather have. There are no latency modes, there is nothing for a watchdog to do, and no saved
        state: `latency_ms`, `watchdog` and `state` are there to be None. Raises EngineFullError
        when all streams are in use, OptionError for a latency or for phrases that cannot be
        boosted, AudioValueError for an unusable rate, StateError for a state.
        """
        if latency_ms is not None:
            raise OptionError(
                f"latency {latency_ms} ms is not a mode of {self.recognizer.name} (none: it hears "
                "what was said between two pauses); leave the latency out"
            )
        if state is not None:
            raise StateError(
                f"a stream of {self.recognizer.name} cannot be taken up again: open a new one"
            )
        recognizer = _boosted(self.recognizer, boost)
        draft = None if self.partials is None else Draft(self.partials.stream())
        live = Listening(Segmenter(self._detector, self._front_end, endpoint), draft, recognizer)
        input = StreamInput(sample_rate or SAMPLE_RATE, SAMPLE_RATE)
        with self.lock:
            self._check_serves()
            try:
                slot = self._slots.take()
            except EngineError:
                self.stats.refused += 1
                raise
            session = Session(self, slot, live, input)
            self._sessions.add(session)
            self.stats.opened += 1
            self.stats.streams += 1
        return session

    def close(self) -> None:
        """End all streams; returns when the segment in work is done. May be called again."""
        with self.lock:
            self._closed = True
            for session in list(self._sessions):
                self._end(session)
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> "SegmentedEngine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- sessions ----------------------------------------------------------------------------------

    def check_accepts(self, session: Session, action: str) -> None:
        with self.lock:
            session._check_accepts(action)

    def make_room(self, session: Session, *, wait: bool, timeout: float | None) -> None:
        """Return once the session may push; raises what `Session.push` says."""
        with self._room:

            def may_push() -> bool:
                session._check_accepts("push")
                return session._live.backlog_seconds < self.backlog_seconds

            if may_push() or (wait and self._room.wait_for(may_push, timeout)):
                return
            raise BacklogError(
                f"{session._live.backlog_seconds:.0f} s of speech wait for "
                f"{self.recognizer.name} already; push more slowly, read the stream's events, or "
                "choose a faster model"
            )

    def take_samples(self, session: Session, samples: Samples) -> None:
        live = _listening(session)
        segments, partial = live.push(samples)
        with self.lock:
            session._check_accepts("push")
            self._queue(session, segments)
            # A partial must not overtake the final of what was said before.
            if partial is not None and not live.waiting:
                session._deliver([partial])

    def mark(self, session: Session, kind: Mark) -> None:
        self.check_accepts(session, kind)
        segments = _listening(session).mark(kind)
        with self.lock:
            session._check_accepts(kind)
            session._accepts = kind != "finish"
            self._queue(session, segments)

    def leave(self, session: Session) -> None:
        with self.lock:
            self._end(session)

    def export(self, session: Session, input: dict[str, Any]) -> bytes:
        """Raises StreamError: speech that waits for its model is not saved."""
        raise StreamError(
            f"a stream of {self.recognizer.name} cannot be exported; finish it instead"
        )

    def was_read(self, session: Session) -> None:
        """A session's event was read: it may have paused because too many were not."""
        if len(session._events) == self.unread_events - 1:
            self._start()

    # -- under the lock ----------------------------------------------------------------------------

    def _check_serves(self) -> None:
        if self._closed:
            raise EngineError("this engine is closed; make a new one")

    def _queue(self, session: Session, segments: list[LiveSegment]) -> None:
        for segment in segments:
            self._work.append((session, segment))
            _listening(session).waiting.append(segment)
        self._start()

    def _start(self) -> None:
        """A thread for the work, if there is any and none does it."""
        if self._thread is None and self._next() is not None:
            self._thread = threading.Thread(
                target=self._serve, name="pianissimo-segments", daemon=True
            )
            self._thread.start()

    def _next(self) -> tuple[Session, LiveSegment] | None:
        """The oldest segment of a session that reads its events."""
        for session, segment in self._work:
            if len(session._events) < self.unread_events:
                return session, segment
        return None

    def _end(self, session: Session, error: EngineError | None = None) -> None:
        """End a session, whatever still waits of it."""
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        self._work = deque(work for work in self._work if work[0] is not session)
        _listening(session).waiting.clear()
        if not session._ended:
            session._end(error)
        assert session.slot is not None
        self._slots.give_back(session.slot)
        session.slot = None
        self.stats.streams -= 1
        self._room.notify_all()

    # -- the thread --------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self.lock:
                work = self._next()
                if work is None:
                    self._thread = None
                    return
                self._work.remove(work)
            session, segment = work
            began = time.monotonic()
            try:
                events = self._events(_listening(session).recognizer, segment)
            except Exception as error:
                log.exception("a segment could not be recognised")
                failure = EngineError(f"this stream failed: {error!r}")
                failure.__cause__ = error
                with self.lock:
                    self.stats.failed += 1
                    self._end(session, failure)
                continue
            with self.lock:
                self.stats.steps += 1
                self.stats.step_seconds += time.monotonic() - began
                if session not in self._sessions:
                    continue
                _listening(session).waiting.popleft()
                self.stats.finals += sum(event.type == "final" for event in events)
                session._deliver(events)
                if segment.reason == "finish":
                    self._end(session)
                self._room.notify_all()

    def _events(self, recognizer: Recognizer, segment: LiveSegment) -> list[StreamEvent]:
        """What was said in a segment. Nothing is nothing, unless somebody waits for the answer."""
        start = segment.start / SAMPLE_RATE
        end = start + len(segment.samples) / SAMPLE_RATE
        text, words = self._said(recognizer, segment.samples)
        if not text and segment.reason in ("endpoint", "length"):
            return []
        words = tuple(
            replace(
                word,
                start=round(min(start + word.start, end), 6),
                end=round(min(start + word.end, end), 6),
            )
            for word in words
        )
        if words:
            start, end = words[0].start, words[-1].end
        final = StreamEvent(
            "final", text, words, round(start, 6), round(end, 6), reason=segment.reason
        )
        if segment.reason != "endpoint":
            return [final]
        return [final, StreamEvent("endpoint", "", (), final.end, final.end)]

    def _said(self, recognizer: Recognizer, samples: Samples) -> tuple[str, tuple[Word, ...]]:
        """The text of a segment and its words, timed from its start, unless nothing speaks for
        them."""
        if not len(samples):
            return "", ()
        found = recognizer.transcribe(samples, sample_rate=SAMPLE_RATE)
        text = found.text.strip()
        tokens = [word.text for word in found.words]
        verdict = judge(text, self._evidence(samples), language=found.language, tokens=tokens)
        return (text, found.words) if verdict.keep else ("", ())

    def _evidence(self, samples: Samples) -> Evidence:
        witness = Witness(self._detector)
        state = witness.start()
        witness.push(samples, self._front_end.whole(samples).samples, state)
        return witness.finish(state)


class Listening:
    """What an engine knows of one stream besides its client."""

    replays = 0

    def __init__(self, segmenter: Segmenter, draft: "Draft | None", recognizer: Recognizer) -> None:
        self._segmenter, self._draft, self.recognizer = segmenter, draft, recognizer
        self.waiting: deque[LiveSegment] = deque()
        """Segments that are not answered, the one in work included."""

    @property
    def backlog_seconds(self) -> float:
        """Speech that waits for the model."""
        return sum(len(segment.samples) for segment in self.waiting) / SAMPLE_RATE

    def push(self, samples: Samples) -> tuple[list[LiveSegment], StreamEvent | None]:
        """Take samples (n,): the segments that they end, and the newest partial."""
        segments = self._segmenter.push(samples)
        if self._draft is None:
            return segments, None
        partial = self._draft.push(samples)
        if segments:
            self._draft.clear()
        return segments, partial if self._segmenter.speaking and not segments else None

    def mark(self, kind: Mark) -> list[LiveSegment]:
        """The segments up to here, the last of which answers the mark."""
        if self._draft is not None:
            self._draft.clear()
        return self._segmenter.mark(kind)


class Draft:
    """The words of an utterance while it goes on, as a model that streams writes them."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._locked: list[StreamEvent] = []
        self._text = ""

    def push(self, samples: Samples) -> StreamEvent | None:
        """Take samples (n,); the whole text since `clear`, if there is more of it."""
        newest = None
        for event in self._stream.push(samples):
            if event.type == "endpoint" or not event.text:
                continue
            parts = [*self._locked, event]
            if event.type == "final":
                self._locked = parts
            text = joined(part.text for part in parts)
            if text == self._text:
                continue
            self._text = text
            newest = StreamEvent(
                "partial",
                text,
                tuple(word for part in parts for word in part.words),
                parts[0].start,
                event.end,
                stable=False,
            )
        return newest

    def clear(self) -> None:
        """Begin with an empty text."""
        self._stream.finalise()
        self._locked, self._text = [], ""


class SegmentedStream:
    """One stream with an engine of its own; each call returns what became known meanwhile.

    `push` returns at once unless more speech waits than an engine allows; `finalise` and `finish`
    return with their final, once everything before it is recognised.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        *,
        sample_rate: int = SAMPLE_RATE,
        endpoint: EndpointRules | None = ENDPOINT,
        partials: StreamRecognizer | None = None,
    ) -> None:
        engine = SegmentedEngine(recognizer, max_streams=1, partials=partials)
        self._session = engine.open(sample_rate=sample_rate, endpoint=endpoint)

    def push(self, samples: Any, sample_rate: int | None = None) -> list[StreamEvent]:
        """Take further samples, any number of them: floats in [-1, 1] or integers, mono or
        (samples, channels).

        Raises StreamError after `finish`, AudioValueError for samples that are not usable.
        """
        self._session.push(samples, sample_rate)
        events = []
        while (event := self._session.get_nowait()) is not None:
            events.append(event)
        return events

    def finalise(self) -> list[StreamEvent]:
        """Lock the text of everything pushed so far without ending the stream.

        The last event is its final, empty if nothing was said. Raises StreamError after `finish`.
        """
        self._session.finalise()
        events: list[StreamEvent] = []
        for event in self._session:
            events.append(event)
            if event.reason == "finalise":
                break
        return events

    def finish(self) -> list[StreamEvent]:
        """End the stream; the last event is its final. Raises StreamError if it ended before."""
        self._session.finish()
        return list(self._session)

    def __enter__(self) -> "SegmentedStream":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session.close()


def _listening(session: Session) -> Listening:
    live = session._live
    assert isinstance(live, Listening)
    return live


def _boosted(recognizer: Recognizer, boost: Boost | None) -> Recognizer:
    """The recogniser for recordings with these phrases; OptionError if it cannot be told any."""
    if not boost:
        return recognizer
    make = getattr(recognizer, "boosted", None)
    if make is None:
        raise OptionError(f"{recognizer.name} cannot boost phrases: leave them out")
    boosted: Recognizer = make(boost)
    return boosted
