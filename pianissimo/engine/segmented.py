"""Live streams of offline recognizers: each pause of the speaker ends a segment, and its text
arrives as a final.

The caller's thread finds the segments. One thread per engine, which exists only while there is
work, recognizes them: the oldest segment of each stream, longest waiting stream first, so a stream
waits for at most one segment of each other stream. Segments of several streams are recognized in
one batch where the model supports it. A streaming model may write partials in the caller's thread
until then; the final replaces them.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy.typing as npt

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.hotwords import Boost
from pianissimo.engine.base import Answered, StreamEngine, close_at_exit
from pianissimo.errors import EngineError, OptionError, StreamError
from pianissimo.hallucination.evidence import Intake
from pianissimo.hallucination.verdict import judge
from pianissimo.protocols import Recognizer, Stream, StreamRecognizer
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules, Mark
from pianissimo.streaming.host import HostedStream
from pianissimo.streaming.input import SavedInput, StreamInput
from pianissimo.streaming.segmenter import LiveSegment, Segmenter
from pianissimo.streaming.session import Session
from pianissimo.text.words import joined
from pianissimo.transcript import StreamEvent, Transcript, Word

BACKLOG_SECONDS = 60.0
BATCH_SECONDS = 240.0
UNREAD_EVENTS = 256

log = logging.getLogger(__name__)

Work: TypeAlias = tuple[HostedStream, LiveSegment]


@dataclass(eq=False)
class _SegmentedRecord:
    """What the engine knows of one stream."""

    segmenter: Segmenter
    draft: "Draft | None"
    recognizer: Recognizer
    """With the hotwords of this stream."""
    waiting: deque[LiveSegment] = field(default_factory=deque)
    """Segments without an answer, the running one included."""
    waits_since: float = 0.0
    """When the first of them became the first."""

    @property
    def backlog_seconds(self) -> float:
        return sum(len(segment.samples) for segment in self.waiting) / SAMPLE_RATE


class SegmentedEngine(StreamEngine[_SegmentedRecord]):
    """What `Engine` is for streaming models: `open` sessions, push audio, read their events.

    A stream may have `backlog_seconds` of speech waiting before `push` blocks, and `unread_events`
    before it pauses. A batch of segments has at most `batch_seconds` with padding; 0 recognizes
    them one by one. `partials` is a streaming recognizer that writes the partials; without it there
    are only finals.
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
        super().__init__(max_streams, backlog_seconds, unread_events)
        self.recognizer, self.partials = recognizer, partials
        self.batch_seconds = batch_seconds
        self._thread: threading.Thread | None = None
        self._closed = False
        self._front_end = recognizer.front_end or FrontEnd()
        self._detector = recognizer.detector or VoiceDetector()

    # -- for clients -------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether streams are served: until `close`."""
        return not self._closed

    def open(
        self,
        *,
        sample_rate: int = SAMPLE_RATE,
        endpoint: EndpointRules | None = ENDPOINT,
        boost: Boost | None = None,
    ) -> Session:
        """Open a stream of samples at `sample_rate` Hz.

        `endpoint` says which pauses end an utterance; None leaves it to `finalize` and `finish`,
        with finals of reason "length" in longer pauses. `boost` are the hotwords of its finals.
        Raises EngineFullError when all streams are in use, OptionError for hotwords that cannot be
        boosted, AudioValueError for an unusable rate.
        """
        recognizer = self.recognizer.boosted(boost) if boost else self.recognizer
        draft = None if self.partials is None else Draft(self.partials.stream())
        segmenter = Segmenter(self._detector, self._front_end, endpoint)
        input = StreamInput(sample_rate, SAMPLE_RATE)
        with self.lock:
            if self._closed:
                raise EngineError("this engine is closed; make a new one")
            return self._admit(_SegmentedRecord(segmenter, draft, recognizer), input)

    def close(self) -> None:
        """End all streams; returns when the running segment is done. May be called again."""
        with self.lock:
            self._closed = True
            for stream in list(self._streams):
                self.leave(stream)
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    # -- for sessions ------------------------------------------------------------------------------

    def accept(self, stream: HostedStream, samples: Samples) -> None:
        with self.lock:
            stream.check_accepts("push")
            record = self._streams[stream]
        # Without the lock, which every stream needs: detector and draft take a while.
        segments, partial = record.segmenter.push(samples), None
        if record.draft is not None:
            partial = record.draft.push(samples)
            if segments:
                record.draft.clear()
        with self.lock:
            stream.check_accepts("push")
            self._queue(stream, record, segments)
            # A partial must not overtake the final of the segment before it.
            if partial is not None and record.segmenter.speaking and not record.waiting:
                stream.mailbox.deliver([partial])

    def mark(self, stream: HostedStream, kind: Mark) -> None:
        with self.lock:
            stream.check_accepts(kind)
            record = self._streams[stream]
        if record.draft is not None:
            record.draft.clear()
        segments = record.segmenter.mark(kind)
        with self.lock:
            stream.check_accepts(kind)
            stream.input_ended = kind == "finish"
            self._queue(stream, record, segments)

    def set_language(self, stream: HostedStream, language: str) -> None:
        """Raises OptionError: an offline model has the language that it was loaded with."""
        raise OptionError(
            f"{self.recognizer.name} is an offline model: choose its language when it is loaded"
        )

    def leave(self, stream: HostedStream) -> None:
        with self.lock:
            if stream in self._streams:
                stream.mailbox.end()
                self._release(stream)

    def snapshot(self, stream: HostedStream, input: SavedInput) -> Callable[[], bytes]:
        """Raises StreamError: segments that wait for their model cannot be saved."""
        raise StreamError(
            f"a stream of {self.recognizer.name} cannot be exported; finish it instead"
        )

    # -- with the lock held ------------------------------------------------------------------------

    def _queue(
        self, stream: HostedStream, record: _SegmentedRecord, segments: list[LiveSegment]
    ) -> None:
        if segments and not record.waiting:
            record.waits_since = time.monotonic()
        record.waiting += segments
        self._start()

    def _waits_since(self, stream: HostedStream, record: _SegmentedRecord) -> float | None:
        return record.waits_since if record.waiting and not stream.mailbox.full else None

    def _schedule(self, stream: HostedStream) -> None:
        """A stream that was paused continues: its segments wait from now on."""
        self._streams[stream].waits_since = time.monotonic()
        self._start()

    def _start(self) -> None:
        """Start the thread if there is work and no thread."""
        if self._thread is None and self._next():
            self._thread = threading.Thread(
                target=self._serve, name="pianissimo-segments", daemon=True
            )
            close_at_exit(self)
            self._thread.start()

    def _next(self) -> list[Work]:
        """The next batch: the oldest segment of the stream that has waited longest, and those of
        other streams that fit beside it. Streams with a full mailbox are paused."""
        ready = [
            (since, record, stream)
            for stream, record in self._streams.items()
            if (since := self._waits_since(stream, record)) is not None
        ]
        ready.sort(key=lambda each: (each[0], each[2].slot))
        group: list[Work] = []
        recognizer, longest = self.recognizer, 0
        for _, record, stream in ready:
            segment = record.waiting[0]
            if not group:
                group, recognizer, longest = [(stream, segment)], record.recognizer, 0
                longest = len(segment.samples)
                if not longest or not recognizer.capabilities.batched_recordings:
                    break
                continue
            if record.recognizer is not recognizer or not len(segment.samples):
                continue
            longest = max(longest, len(segment.samples))
            if longest * (len(group) + 1) > self.batch_seconds * SAMPLE_RATE:
                break
            group.append((stream, segment))
        return group

    # -- the thread --------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self.lock:
                group = self._next()
                if not group:
                    self._thread = None
                    return
                recognizer = self._streams[group[0][0]].recognizer
            began = time.monotonic()
            for i, (stream, segment, answer) in enumerate(self._answers(recognizer, group)):
                with self.lock:
                    now = time.monotonic()
                    self.stats.steps += i == 0
                    self.stats.step_seconds += now - began
                    began = now
                    self._end_segment(stream, segment, answer)
                    if self._closed:
                        break

    def _answers(
        self, recognizer: Recognizer, group: list[Work]
    ) -> Iterator[tuple[HostedStream, LiveSegment, list[StreamEvent] | Exception]]:
        """The events of each segment, or the error that prevented them.

        A batch that fails is repeated one by one, so that only the segment that causes it fails.
        """
        left = deque(group)
        if len(group) > 1:
            try:
                for transcript in recognizer.transcribe_together([s.samples for _, s in group]):
                    events = self._events(left[0][1], transcript)
                    yield *left.popleft(), events
            except Exception:
                log.exception("a batch of segments failed; each runs alone now")
        for stream, segment in left:
            try:
                found: Transcript | None = None
                if len(segment.samples):
                    found = recognizer.transcribe(segment.samples, sample_rate=SAMPLE_RATE)
                answer: list[StreamEvent] | Exception = self._events(segment, found)
            except Exception as error:
                answer = error
            yield stream, segment, answer

    def _end_segment(
        self, stream: HostedStream, segment: LiveSegment, answer: list[StreamEvent] | Exception
    ) -> None:
        """With the lock held: deliver the events of the oldest segment, or end its stream."""
        record = self._streams.get(stream)
        if record is None:
            return  # it was closed
        if isinstance(answer, Exception):
            self._fail(stream, answer)
            self._release(stream)
            return
        now = time.monotonic()
        record.waiting.popleft()
        waited, record.waits_since = now - record.waits_since, now
        if len(segment.samples):
            self.stats.answered.append(Answered(len(segment.samples) / SAMPLE_RATE, waited, now))
        self.stats.finals += sum(event.type == "final" for event in answer)
        stream.mailbox.deliver(answer)
        if segment.reason == "finish":
            stream.mailbox.end()
            self._release(stream)
        self._room.notify_all()

    def _events(self, segment: LiveSegment, found: Transcript | None) -> list[StreamEvent]:
        """The final of a segment, unless it is empty and answers no mark; then the endpoint.

        Text that the audio does not support is dropped.
        """
        start = segment.start / SAMPLE_RATE
        end = start + len(segment.samples) / SAMPLE_RATE
        text, words = "", list[Word]()
        if found is not None:
            intake = Intake(self._front_end, self._detector)
            for block in (segment.samples, None):
                intake.push(block)
            assert intake.evidence is not None
            tokens = [word.text for word in found.words]
            verdict = judge(
                found.text.strip(), intake.evidence, language=found.language, tokens=tokens
            )
            if verdict.keep:
                text = found.text.strip()
                for word in found.words:
                    first, last = min(start + word.start, end), min(start + word.end, end)
                    words.append(replace(word, start=round(first, 6), end=round(last, 6)))
        if not text and segment.reason in ("endpoint", "length"):
            return []
        if words:
            start, end = words[0].start, words[-1].end
        start, end = round(start, 6), round(end, 6)
        final = StreamEvent("final", text, tuple(words), start, end, reason=segment.reason)
        if segment.reason != "endpoint":
            return [final]
        return [final, StreamEvent("endpoint", "", (), end, end)]


class Draft:
    """The text of an unfinished utterance, as a streaming model writes it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._locked: list[StreamEvent] = []
        self._text = ""

    def push(self, samples: Samples) -> StreamEvent | None:
        """Append samples (n,); the whole text since `clear`, if it changed."""
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
    """One stream with an engine of its own; each call returns the events since the last one.

    `push` returns at once unless the backlog exceeds the engine's limit; `finalize` and `finish`
    return after their final, once everything before it is recognized.
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

    def push(self, samples: npt.ArrayLike, sample_rate: int | None = None) -> list[StreamEvent]:
        """Append any number of samples: floats in [-1, 1] or integers, mono or
        (samples, channels).

        Raises StreamError after `finish`, AudioValueError for unusable samples.
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
