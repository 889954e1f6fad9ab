"""Live streams of recognizers that hear recordings whole: each pause of the speaker ends a segment,
and what was said in it comes as a final.

The caller's thread finds the segments; one thread per engine, which lives only while there is work,
recognizes them: of each stream the oldest, and first the one whose stream has waited longest. So
nobody waits for more than one segment of each of the others. Those of several streams go to the
model together where it can hear them so. A model that streams may write partials meanwhile, in the
caller's thread: the final then replaces what it wrote.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.hotwords import Boost
from pianissimo.engine.engine import Answered, EngineStats
from pianissimo.engine.slots import Slots
from pianissimo.errors import BacklogError, EngineError, OptionError, StateError, StreamError
from pianissimo.hallucination.evidence import Evidence, Witness
from pianissimo.hallucination.verdict import judge
from pianissimo.protocols import Recognizer, Stream, StreamRecognizer
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules
from pianissimo.streaming.input import StreamInput
from pianissimo.streaming.live import Mark
from pianissimo.streaming.segmenter import LiveSegment, Segmenter
from pianissimo.streaming.session import Session
from pianissimo.text.words import joined
from pianissimo.transcript import StreamEvent, Transcript, Word

BACKLOG_SECONDS = 60.0
BATCH_SECONDS = 240.0
UNREAD_EVENTS = 256

log = logging.getLogger(__name__)


Work = tuple[Session, LiveSegment]


class SegmentedEngine:
    """What `Engine` is to models that stream: `open` sessions, push audio, read their events.

    A stream may have `backlog_seconds` of speech waiting before `push` makes its caller wait, and
    `unread_events` before it pauses. Segments that are recognized together have `batch_seconds`
    with padding at most; 0 recognizes them one by one. `partials` is a recognizer whose streams
    write the partials; without it there are only finals.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        *,
        max_streams: int = 64,
        partials: StreamRecognizer | None = None,
        backlog_seconds: float = BACKLOG_SECONDS,
        batch_seconds: float = BATCH_SECONDS,
        unread_events: int = UNREAD_EVENTS,
    ) -> None:
        if min(max_streams, unread_events) < 1 or backlog_seconds <= 0:
            raise OptionError("the bounds of an engine must be above 0")
        if not batch_seconds >= 0:
            raise OptionError(f"batch_seconds must be 0 or more, not {batch_seconds}")
        self.recognizer, self.partials = recognizer, partials
        self.backlog_seconds, self.unread_events = backlog_seconds, unread_events
        self.batch_seconds = batch_seconds
        self.lock = threading.RLock()
        self.stats = EngineStats()
        self._room = threading.Condition(self.lock)
        self._slots = Slots(max_streams)
        self._sessions: set[Session] = set()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._front_end = recognizer.front_end or FrontEnd()
        self._detector = recognizer.detector or VoiceDetector()

    # -- clients -----------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether streams are served: until `close`."""
        return not self._closed

    def queue_age(self) -> float:
        """Seconds that the oldest segment has waited, its own recognition included; 0 without.

        Streams that pause because nobody reads their events do not count.
        """
        with self.lock:
            waits = [
                _listening(session).waits_since
                for session in self._sessions
                if _listening(session).waiting and len(session._events) < self.unread_events
            ]
            return time.monotonic() - min(waits) if waits else 0.0

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

        `endpoint` says which pauses end an utterance; None leaves it to `finalize` and `finish`,
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
        recognizer = self.recognizer.boosted(boost) if boost else self.recognizer
        draft = None if self.partials is None else Draft(self.partials.stream())
        live = Listening(Segmenter(self._detector, self._front_end, endpoint), draft, recognizer)
        input = StreamInput(SAMPLE_RATE if sample_rate is None else sample_rate, SAMPLE_RATE)
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

    def __exit__(self, *reason: object) -> None:
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
            _listening(session).waits_since = time.monotonic()
            self._start()

    # -- under the lock ----------------------------------------------------------------------------

    def _check_serves(self) -> None:
        if self._closed:
            raise EngineError("this engine is closed; make a new one")

    def _queue(self, session: Session, segments: list[LiveSegment]) -> None:
        live = _listening(session)
        if segments and not live.waiting:
            live.waits_since = time.monotonic()
        live.waiting += segments
        self._start()

    def _start(self) -> None:
        """A thread for the work, if there is any and none does it."""
        if self._thread is None and self._next():
            self._thread = threading.Thread(
                target=self._serve, name="pianissimo-segments", daemon=True
            )
            self._thread.start()

    def _next(self) -> list[Work]:
        """What is to be recognized next: the oldest segment of the stream that has waited longest,
        and those of others that may share its batch. Streams whose events nobody reads wait."""
        heads = [
            (session, _listening(session).waiting[0])
            for session in self._sessions
            if _listening(session).waiting and len(session._events) < self.unread_events
        ]
        heads.sort(key=lambda head: (_listening(head[0]).waits_since, head[0].slot))
        group, longest = heads[:1], 0
        for session, segment in heads[1:]:
            recognizer = _listening(group[0][0]).recognizer
            if _listening(session).recognizer is not recognizer or not len(segment.samples):
                continue
            if not recognizer.capabilities.batched_recordings or not len(group[0][1].samples):
                break
            longest = max(longest, len(group[0][1].samples), len(segment.samples))
            if longest * (len(group) + 1) > self.batch_seconds * SAMPLE_RATE:
                break
            group.append((session, segment))
        return group

    def _answered(self, live: "Listening") -> None:
        """The oldest segment of a stream is done with."""
        segment, now = live.waiting.popleft(), time.monotonic()
        waited, live.waits_since = now - live.waits_since, now
        if len(segment.samples):
            seconds = len(segment.samples) / SAMPLE_RATE
            self.stats.answered.append(Answered(seconds, waited, now))

    def _end(self, session: Session, error: EngineError | None = None) -> None:
        """End a session, whatever still waits of it."""
        if session not in self._sessions:
            return
        self._sessions.remove(session)
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
                group = self._next()
                if not group:
                    self._thread = None
                    return
            began = time.monotonic()
            for i, (session, segment, heard) in enumerate(self._heard(group)):
                answer = self._answer(segment, heard)
                with self.lock:
                    now = time.monotonic()
                    self.stats.steps += i == 0
                    self.stats.step_seconds += now - began
                    began = now
                    self._deliver(session, segment, answer)
                    if self._closed:
                        break

    def _heard(
        self, group: list[Work]
    ) -> Iterator[tuple[Session, LiveSegment, Transcript | Exception | None]]:
        """What the model made of each segment, or what went wrong; None for one without samples.

        A batch that fails is tried again one by one, so that it ends no stream but who caused it.
        """
        recognizer = _listening(group[0][0]).recognizer
        left = deque(group)
        if len(group) > 1:
            try:
                for found in recognizer.transcribe_together([s.samples for _, s in group]):
                    yield *left.popleft(), found
            except Exception:
                log.exception("segments could not be recognized together; they go one by one")
        for session, segment in left:
            heard: Transcript | Exception | None = None
            if len(segment.samples):
                try:
                    heard = recognizer.transcribe(segment.samples, sample_rate=SAMPLE_RATE)
                except Exception as error:
                    heard = error
            yield session, segment, heard

    def _answer(
        self, segment: LiveSegment, heard: Transcript | Exception | None
    ) -> list[StreamEvent] | Exception:
        if isinstance(heard, Exception):
            return heard
        try:
            return self._events(segment, heard)
        except Exception as error:
            return error

    def _deliver(
        self, session: Session, segment: LiveSegment, answer: list[StreamEvent] | Exception
    ) -> None:
        """Under the lock: give a stream its events, or end it."""
        if isinstance(answer, Exception):
            log.error("a segment could not be recognized", exc_info=answer)
            failure = EngineError(f"this stream failed: {answer!r}")
            failure.__cause__ = answer
            self.stats.failed += 1
            self._end(session, failure)
            return
        if session not in self._sessions:
            return
        self._answered(_listening(session))
        self.stats.finals += sum(event.type == "final" for event in answer)
        session._deliver(answer)
        if segment.reason == "finish":
            self._end(session)
        self._room.notify_all()

    def _events(self, segment: LiveSegment, heard: Transcript | None) -> list[StreamEvent]:
        """What was said in a segment. Nothing is nothing, unless somebody waits for the answer."""
        start = segment.start / SAMPLE_RATE
        end = start + len(segment.samples) / SAMPLE_RATE
        text, words = self._said(heard, segment.samples)
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

    def _said(self, found: Transcript | None, samples: Samples) -> tuple[str, tuple[Word, ...]]:
        """The text of a segment and its words, timed from its start, unless nothing speaks for
        them."""
        if found is None:
            return "", ()
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
        self.waits_since = 0.0
        """When the first of them became the first."""

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
        self._stream.finalize()
        self._locked, self._text = [], ""


class SegmentedStream:
    """One stream with an engine of its own; each call returns what became known meanwhile.

    `push` returns at once unless more speech waits than an engine allows; `finalize` and `finish`
    return with their final, once everything before it is recognized.
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

    def finalize(self) -> list[StreamEvent]:
        """Lock the text of everything pushed so far without ending the stream.

        The last event is its final, empty if nothing was said. Raises StreamError after `finish`.
        """
        self._session.finalize()
        events: list[StreamEvent] = []
        for event in self._session:
            events.append(event)
            if event.reason == "finalize":
                break
        return events

    finalise = finalize
    """The British spelling, accepted as well."""

    def finish(self) -> list[StreamEvent]:
        """End the stream; the last event is its final. Raises StreamError if it ended before."""
        self._session.finish()
        return list(self._session)

    def __enter__(self) -> "SegmentedStream":
        return self

    def __exit__(self, *reason: object) -> None:
        self._session.close()


def _listening(session: Session) -> Listening:
    live = session._live
    assert isinstance(live, Listening)
    return live
