"""Many live streams on one model and one device.

One thread owns the device. Each tick it takes the most urgent streams of one latency mode that have
a complete chunk, runs them as one batch, and hands out what they said. Streams come and go between
any two ticks; each has its own latency, and none can hear the others: not in its text, not in its
place in the queue, not when another one fails.
"""

import gc
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pianissimo.decoding.hotwords import Boost, Phrase, make_trie
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine import saved
from pianissimo.engine.runner import Runner
from pianissimo.engine.scheduler import Batch, Group, Scheduler
from pianissimo.engine.slots import Slots
from pianissimo.errors import BacklogError, EngineError, OptionError, StateError
from pianissimo.streaming.endpoint import ENDPOINT, WATCHDOG, EndpointRules, WatchdogRules
from pianissimo.streaming.grid import ChunkWork, TailWork
from pianissimo.streaming.input import StreamInput
from pianissimo.streaming.live import LiveStream, Mark
from pianissimo.streaming.session import Session

if TYPE_CHECKING:
    from pianissimo.recognizers.fastconformer import NativeRecognizer

SMALL_MODEL_PARAMETERS = 50_000_000
"""Below this a step is too short for a second thread to be worth waking."""
CPU_STEP, GPU_STEP = (64, 256), (1024, 8192)
"""Streams and encoder frames of the largest step."""
DELAYS_KEPT = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineOptions:
    """How much an engine takes on.

    `largest_batch` streams and `largest_frames` encoder frames bound one step, and with it how long
    anyone waits for it; None chooses 64 and 256 on a processor, 1024 and 8192 on a GPU. A stream
    may have `backlog_seconds` of audio waiting before `push` makes its caller wait, and
    `unread_events` before it pauses. `threads` are those of the processor that a step may use; None
    chooses by the size of the model. `guard` holds back text that nothing in the audio speaks for,
    at the cost of a detector for each stream.
    """

    largest_batch: int | None = None
    largest_frames: int | None = None
    backlog_seconds: float = 60.0
    unread_events: int = 256
    threads: int | None = None
    freeze_garbage: bool = True
    guard: bool = True

    def __post_init__(self) -> None:
        optional = (self.largest_batch, self.largest_frames, self.threads)
        bounds = [self.unread_events, *(bound for bound in optional if bound is not None)]
        if min(bounds) < 1 or self.backlog_seconds <= 0:
            raise OptionError("the bounds of an engine must be above 0")


class Answered(NamedTuple):
    """One chunk or segment: the seconds it holds, how many its stream waited for what was said in
    them once it had nothing older to wait for, and when that came by the monotonic clock."""

    seconds: float
    waited: float
    at: float


@dataclass
class EngineStats:
    """What an engine did so far. `delays` are the last chunks' seconds from complete to answered,
    with the chunk's lookahead; `answered` are the same chunks, without what their streams brought
    along to wait for."""

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


class _Seat:
    """What the engine knows of a session besides its stream."""

    __slots__ = ("arrivals", "busy", "due_since", "fresh", "saved", "waits_since")

    def __init__(self, saved: dict[str, torch.Tensor] | None, frames: int) -> None:
        self.fresh = True
        self.saved = None if saved is None else (saved, frames)
        self.busy = False
        self.due_since = 0.0
        self.waits_since: float | None = None  # when its turn came to be waited for, until it ends
        self.arrivals: deque[tuple[int, float]] = deque()  # where each push ended, and when

    def arrival(self, position: int) -> float:
        """When the audio reached this position; earlier ones will not be asked for again."""
        while len(self.arrivals) > 1 and self.arrivals[0][0] < position:
            self.arrivals.popleft()
        return self.arrivals[0][1] if self.arrivals else time.monotonic()


class Engine:
    """Live streams of one recognizer: `open` them, `push` audio, iterate over their events.

    All slots are allocated here; a slot costs memory once it is used. The engine changes the number
    of threads PyTorch uses in its own thread, and takes what exists now out of the garbage
    collector's sight, whose pauses would be heard.
    """

    def __init__(
        self,
        recognizer: "NativeRecognizer",
        *,
        max_streams: int = 64,
        options: EngineOptions | None = None,
    ) -> None:
        if max_streams < 1:
            raise OptionError(f"max_streams must be at least 1, not {max_streams}")
        if not recognizer.latencies_ms:
            raise OptionError(
                f"{recognizer.name} hears recordings whole and cannot stream; choose a streaming "
                "model"
            )
        self.recognizer, self.options = recognizer, options or EngineOptions()
        self.model = recognizer.live
        self.runner = Runner(self.model, max_streams)
        self.lock = threading.RLock()
        self.stats = EngineStats()
        self._work = threading.Condition(self.lock)
        self._room = threading.Condition(self.lock)
        self._slots = Slots(max_streams)
        streams, frames = GPU_STEP if self.model.device.type == "cuda" else CPU_STEP
        self._scheduler = Scheduler(
            min(max_streams, self.options.largest_batch or streams),
            self.options.largest_frames or frames,
        )
        self._seats: dict[Session, _Seat] = {}
        self._stopping = False
        self._error: EngineError | None = None
        self._thread = threading.Thread(target=self._serve, name="pianissimo-engine", daemon=True)
        self._thread.start()

    # -- clients -----------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether streams are served: not closed, and no failure ended the thread."""
        return self._error is None and not self._stopping and self._thread.is_alive()

    def queue_age(self) -> float:
        """Seconds that the oldest work has waited, the step in which it is included; 0 without."""
        with self.lock:
            waits = [s.waits_since for s in self._seats.values() if s.waits_since is not None]
            return time.monotonic() - min(waits) if waits else 0.0

    def open(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int | None = None,
        endpoint: EndpointRules | None = ENDPOINT,
        watchdog: WatchdogRules | None = WATCHDOG,
        boost: Boost | None = None,
        state: bytes | None = None,
    ) -> Session:
        """Open a stream of samples at `sample_rate` Hz (the model's, by default).

        `latency_ms` is one of the recognizer's, by default the shortest from 160 ms on; `endpoint`
        and `watchdog` None turn those rules off; `boost` are phrases that this stream should rather
        hear. With the `state` of an exported stream it goes on from there, in its own latency and
        rate and with its own phrases.

        Raises EngineFullError when all streams are in use, OptionError for an unknown latency or a
        phrase that cannot be boosted, AudioValueError for an unusable rate, StateError for a state
        of another model.
        """
        rate = self.model.sample_rate
        document, tensors = (None, None) if state is None else saved.from_bytes(state)
        if document is None:
            lookahead = self.recognizer.live_lookahead(latency_ms)
            sample_rate = rate if sample_rate is None else sample_rate
        else:
            lookahead, sample_rate = self._identify(document)
            boost = _phrases(document)
        options = self.recognizer.live_options(
            lookahead, endpoint, watchdog, guard=self.options.guard
        )
        options = replace(options, trie=make_trie(boost, self.recognizer.vocabulary))
        live = LiveStream(self.model.grid(lookahead), self.recognizer.tokenizer, options)
        input = StreamInput(sample_rate, rate, self.recognizer.front_end)
        frames = 0
        if document is not None:
            try:
                live.restore(document["live"])
                input.restore(document["input"])
                frames = int(document["frames"])
            except (KeyError, TypeError, ValueError) as error:
                raise StateError(f"the saved stream is damaged ({error})") from error
        with self.lock:
            self._check_serves()
            # A stream that was closed in the middle of a step frees its slot after it.
            self._room.wait_for(
                lambda: self._slots.taken < self._slots.count or not self._leaving()
            )
            self._check_serves()
            try:
                slot = self._slots.take()
            except EngineError:
                self.stats.refused += 1
                raise
            session = Session(self, slot, live, input)
            self._seats[session] = _Seat(tensors, frames)
            self.stats.opened += 1
            self.stats.streams += 1
            self._schedule(session)
        return session

    def close(self) -> None:
        """End all streams and the engine's thread; may be called again."""
        with self.lock:
            self._stopping = True
            self._work.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._end_all(None)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    # -- sessions ----------------------------------------------------------------------------------

    def check_accepts(self, session: Session, action: str) -> None:
        with self.lock:
            session._check_accepts(action)

    def make_room(self, session: Session, *, wait: bool, timeout: float | None) -> None:
        """Return once the session may push; raises what `Session.push` says."""
        most = self.options.backlog_seconds
        with self._room:

            def may_push() -> bool:
                session._check_accepts("push")
                return session._live.backlog_seconds < most

            if may_push() or (wait and self._room.wait_for(may_push, timeout)):
                return
            raise BacklogError(
                f"{session._live.backlog_seconds:.0f} s of audio wait for this stream already; "
                "push more slowly, read its events, or close some of the other streams"
            )

    def take_samples(self, session: Session, samples: npt.NDArray[np.float32]) -> None:
        session._live.listen(samples)  # before the lock, which everybody waits for
        with self.lock:
            session._check_accepts("push")
            session._live.push(samples)
            if len(samples):
                self._seats[session].arrivals.append((session._live.buffer.end, time.monotonic()))
            self._schedule(session)

    def mark(self, session: Session, kind: Mark) -> None:
        with self.lock:
            session._check_accepts(kind)
            session._live.mark(kind)
            session._accepts = kind != "finish"
            self._schedule(session)

    def leave(self, session: Session) -> None:
        with self.lock:
            if session in self._seats and not session._ended:
                self._scheduler.remove(session)
                session._end()
            self._release(session)

    def export(self, session: Session, input: dict[str, Any]) -> bytes:
        with self._room:
            session._check_accepts("export")
            seat = self._seats[session]
            self._room.wait_for(lambda: not seat.busy)
            session._check_accepts("export")
            assert session.slot is not None
            if seat.fresh:
                self._settle(session, seat)
            trie = session._live.options.trie
            document = {
                "model": self.model.fingerprint,
                "lookahead": session._live.options.lookahead,
                "frames": self.runner.arena.frames[session.slot],
                "live": session._live.save(),
                "boost": [(p.text, p.weight) for p in trie.phrases] if trie else [],
                "input": input,
            }
            return saved.to_bytes(document, self.runner.arena.save(session.slot))

    def was_read(self, session: Session) -> None:
        """A session's event was read: it may have paused because too many were not."""
        if len(session._events) == self.options.unread_events - 1:
            self._schedule(session)

    def _identify(self, document: dict[str, Any]) -> tuple[int, int]:
        if document.get("model") != self.model.fingerprint:
            raise StateError(
                "the stream was saved with another model; load the same one to take it up again"
            )
        try:
            lookahead = int(document["lookahead"])
            self.model.grid(lookahead)
            return lookahead, int(document["input"]["sample_rate"])
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"the saved stream is damaged ({error})") from error

    # -- under the lock ----------------------------------------------------------------------------

    def _check_serves(self) -> None:
        if self._error is not None:
            # A new one each time: an exception keeps the frames of everybody it was raised to.
            raise EngineError(str(self._error)) from self._error
        if self._stopping:
            raise EngineError("this engine is closed; make a new one")
        if not self._thread.is_alive():
            raise EngineError("the thread of this engine is gone; make a new one")

    def _schedule(self, session: Session) -> None:
        """Queue the session if it has something to do and nobody is doing it."""
        seat = self._seats.get(session)
        if seat is None or seat.busy or session._ended:
            return
        if len(session._events) >= self.options.unread_events:
            return
        due = session._live.due()
        if due is None:
            return
        now = time.monotonic()
        grid = session._live.grid
        tail = due == "tail"
        seat.due_since = seat.arrival(session._live.due_position)
        if seat.waits_since is None:
            seat.waits_since = now
        apart = self.runner.graphs is not None and session._live.options.trie is not None
        group = Group(grid.chunk - 1, tail, apart)
        self._scheduler.add(session, group, now + (0.0 if tail else grid.chunk_seconds))
        self._work.notify()

    def _leaving(self) -> bool:
        return any(session._ended for session in self._seats)

    def _release(self, session: Session) -> None:
        """Give the slot of an ended session back, unless a step is still using it."""
        seat = self._seats.get(session)
        if seat is None or seat.busy:
            return
        del self._seats[session]
        assert session.slot is not None
        self._slots.give_back(session.slot)
        session.slot = None
        self.stats.streams -= 1
        self._room.notify_all()

    def _settle(self, session: Session, seat: _Seat) -> None:
        """Fill the slot of a session that is new: with nothing, or with what was saved."""
        assert session.slot is not None
        seat.fresh = False
        self.runner.clear(session.slot, trie=session._live.options.trie)
        if seat.saved is not None:
            tensors, frames = seat.saved
            seat.saved = None
            try:
                with torch.inference_mode():
                    self.runner.arena.restore(session.slot, tensors, frames)
            except (ValueError, RuntimeError) as error:
                raise StateError(f"the saved stream is damaged ({error})") from error

    # -- the engine's thread -----------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._prepare()
            while True:
                with self._work:
                    self._work.wait_for(lambda: self._stopping or len(self._scheduler))
                    if self._stopping:
                        return
                    batch = self._scheduler.next_batch()
                    assert batch is not None
                    works = [self._begin(session) for session in batch.members]
                began = time.monotonic()
                results = self._run(batch.group, works)
                with self.lock:
                    self.stats.steps += 1
                    self.stats.step_seconds += time.monotonic() - began
                    for session, result in zip(batch.members, results, strict=True):
                        self._end_step(session, batch, result)
                    self._room.notify_all()
        except BaseException as error:
            log.exception("the streaming engine stopped")
            failure = EngineError(f"the streaming engine stopped: {error!r}; make a new one")
            failure.__cause__ = error
            with self.lock:
                self._error = failure
            self._end_all(failure)

    def _prepare(self) -> None:
        threads = self.options.threads
        if threads is None and self.model.device.type == "cpu":
            few = self.recognizer.model.parameter_count() < SMALL_MODEL_PARAMETERS
            threads = 1 if few else len(os.sched_getaffinity(0))
        if threads is not None:
            torch.set_num_threads(threads)
        for lookahead in self.model.lookaheads:
            grid = self.model.grid(lookahead)
            start, end = grid.window(0)
            self.runner.step([ChunkWork(0, np.zeros(end - start, np.float32))], grid)
            self.runner.clear(0)
        self.runner.capture(self._scheduler.largest_batch)
        if self.options.freeze_garbage:
            gc.collect()
            gc.freeze()

    def _begin(self, session: Any) -> ChunkWork | TailWork | EngineError:
        seat = self._seats[session]
        seat.busy = True
        try:
            if seat.fresh:
                self._settle(session, seat)
        except StateError as error:
            return EngineError(str(error))
        live: LiveStream = session._live
        work = live.tail_work if live.due() == "tail" else live.chunk_work
        return work(session.slot)

    def _run(self, group: Group, works: list[Any]) -> list[Hypothesis | Exception]:
        """The step of a batch; should it fail, of each member alone, to find out whose fault it is.

        A step changes nothing unless it succeeds, so that it can be tried again.
        """
        sound = [work for work in works if not isinstance(work, Exception)]
        run: Any = self.runner.finish if group.tail else self.runner.step
        grid = self.model.grid(group.lookahead)
        try:
            found = iter(run(sound, grid)) if sound else iter(())
        except Exception as error:
            if len(sound) == 1:
                return [w if isinstance(w, Exception) else error for w in works]
            log.exception("a step of %d streams failed; trying each alone", len(sound))
            alone = [self._run(group, [work])[0] for work in sound]
            found = iter(alone)
        return [work if isinstance(work, Exception) else next(found) for work in works]

    def _end_step(self, session: Any, batch: Batch, result: Hypothesis | Exception) -> None:
        seat, now = self._seats[session], time.monotonic()
        waits_since, seat.waits_since, seat.busy = seat.waits_since, None, False
        assert waits_since is not None
        if session._ended:
            self._release(session)
            return
        if isinstance(result, Exception):
            self.stats.failed += 1
            failure = EngineError(f"this stream failed: {result!r}")
            failure.__cause__ = result
            session._end(failure)
            self._release(session)
            return
        live: LiveStream = session._live
        self.stats.tokens += len(result.tokens)
        if batch.group.tail:
            events = live.take_tail(result)
        else:
            events = live.take_chunk(result)
            self.stats.chunks += 1
            self.stats.delays.append((batch.group.lookahead, now - seat.due_since))
            self.stats.answered.append(Answered(live.grid.chunk_seconds, now - waits_since, now))
            if (restart := live.take_restart()) is not None:
                assert session.slot is not None
                self.runner.clear(session.slot, restart, live.options.trie)
                self.stats.replays += 1
        self.stats.finals += sum(event.type == "final" for event in events)
        session._deliver(events)
        if live.finished:
            session._end()
            self._release(session)
        else:
            self._schedule(session)

    def _end_all(self, error: EngineError | None) -> None:
        with self.lock:
            for session in list(self._seats):
                self._seats[session].busy = False
                if not session._ended:
                    self._scheduler.remove(session)
                    session._end(error)
                self._release(session)


def _phrases(document: dict[str, Any]) -> list[Phrase]:
    """The phrases that a saved stream boosts; StateError for anything else."""
    try:
        return [Phrase(str(text), float(weight)) for text, weight in document.get("boost", [])]
    except (TypeError, ValueError) as error:
        raise StateError(f"the saved stream is damaged ({error})") from error
