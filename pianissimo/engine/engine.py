"""Many live streams on one model and one device.

One thread owns the device. Each tick it selects the most urgent streams of one latency mode that
have a complete chunk, runs them as one batch, and delivers their events. Streams open and close
between any two ticks. Each has its own latency, and none affects another: neither its text, nor its
place in the queue, nor by a failure.
"""

import gc
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import Samples
from pianissimo.decoding.hotwords import Boost, Phrase, PhraseTrie
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine import saved
from pianissimo.engine.base import Answered, StreamEngine, close_at_exit
from pianissimo.engine.live_model import LiveModel
from pianissimo.engine.runner import Runner
from pianissimo.engine.scheduler import Batch, Group, Scheduler
from pianissimo.errors import EngineError, OptionError, PianissimoError, StateError
from pianissimo.streaming.endpoint import ENDPOINT, WATCHDOG, EndpointRules, Mark, WatchdogRules
from pianissimo.streaming.grid import ChunkWork, TailWork
from pianissimo.streaming.host import HostedStream
from pianissimo.streaming.input import SavedInput, StreamInput
from pianissimo.streaming.live import LiveOptions
from pianissimo.streaming.live_segments import Live, listen, open_live
from pianissimo.streaming.session import Session
from pianissimo.text.tokenizer import Tokenizer

SMALL_MODEL_PARAMETERS = 50_000_000
"""Below this size a step is too short to benefit from a second thread."""
CPU_STEP, GPU_STEP = (64, 256), (1024, 8192)
"""Streams and encoder frames of the largest step."""

log = logging.getLogger(__name__)

Work: TypeAlias = ChunkWork | TailWork


@runtime_checkable
class StreamingRecognizer(Protocol):
    """What an engine needs of a recognizer."""

    @property
    def name(self) -> str: ...
    @property
    def latencies_ms(self) -> tuple[int, ...]: ...
    @property
    def parameter_count(self) -> int | None: ...
    @property
    def live(self) -> LiveModel: ...
    @property
    def stream_tokenizer(self) -> Tokenizer: ...
    @property
    def front_end(self) -> FrontEnd | None: ...
    def live_lookahead(self, latency_ms: int | None) -> int:
        """The lookahead of a latency mode in encoder frames."""
        ...

    def live_trie(self, boost: Boost | None) -> PhraseTrie | None:
        """The hotwords of a stream; OptionError for those that the model cannot boost."""
        ...

    def live_options(
        self,
        lookahead: int,
        endpoint: EndpointRules | None,
        watchdog: WatchdogRules | None,
        *,
        guard: bool = True,
        language: str | None = None,
        second_pass: bool | None = None,
    ) -> LiveOptions:
        """The options of a stream with these rules."""
        ...


@dataclass(frozen=True)
class EngineOptions:
    """The limits of an engine.

    `largest_batch` streams and `largest_frames` encoder frames limit one step, and with it the
    delay of every stream; None chooses 64 and 256 on a CPU, 1024 and 8192 on a GPU. A stream may
    have `backlog_seconds` of audio waiting before `push` blocks, and `unread_events` before it
    pauses. `threads` is the number of CPU threads of a step; None chooses by the size of the model.
    `guard` holds back text that the audio does not support; like the onset rules of the watchdog,
    it needs a voice detector per stream.
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


@dataclass(eq=False)
class _LiveRecord:
    """What the engine knows of one stream."""

    live: Live
    restores: saved.SavedSlot | None = None
    """Tensors to restore before the first step."""
    fresh: bool = True
    """The slot does not hold this stream's state yet."""
    busy: bool = False
    """A step with this stream is running."""
    due_since: float = 0.0
    """When the audio of the queued work was complete."""
    waits_since: float | None = None
    """When the queued or running work became the oldest of this stream."""
    arrivals: deque[tuple[int, float]] = field(default_factory=deque)
    """The end of each push, in samples, and its time."""

    @property
    def backlog_seconds(self) -> float:
        return self.live.backlog_seconds


class Engine(StreamEngine[_LiveRecord]):
    """Live streams of one recognizer: `open` them, `push` audio, iterate over their events.

    All slots are allocated here; the memory of a slot is touched when it is first used. The engine
    sets the number of threads PyTorch uses in its own thread, and excludes the objects that exist
    now from garbage collection, whose pauses would delay every stream.
    """

    def __init__(
        self,
        recognizer: StreamingRecognizer,
        *,
        max_streams: int = 64,
        options: EngineOptions | None = None,
    ) -> None:
        if max_streams < 1:
            raise OptionError(f"max_streams must be at least 1, not {max_streams}")
        if not recognizer.latencies_ms:
            raise OptionError(
                f"{recognizer.name} is an offline model and cannot stream; choose a streaming "
                "model, or a SegmentedEngine"
            )
        self.recognizer, self.options = recognizer, options or EngineOptions()
        super().__init__(max_streams, self.options.backlog_seconds, self.options.unread_events)
        self.model = recognizer.live
        self.runner = Runner(self.model, max_streams)
        self._work = threading.Condition(self.lock)
        streams, frames = GPU_STEP if self.model.device.type == "cuda" else CPU_STEP
        self._scheduler: Scheduler[HostedStream] = Scheduler(
            min(max_streams, self.options.largest_batch or streams),
            self.options.largest_frames or frames,
        )
        self._stopping = False
        self._error: EngineError | None = None
        self._thread = threading.Thread(target=self._serve, name="pianissimo-engine", daemon=True)
        close_at_exit(self)
        self._thread.start()

    # -- for clients -------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether streams are served: not closed, and no failure ended the thread."""
        return self._error is None and not self._stopping and self._thread.is_alive()

    def open(
        self,
        *,
        latency_ms: int | None = None,
        sample_rate: int | None = None,
        endpoint: EndpointRules | None = ENDPOINT,
        watchdog: WatchdogRules | None = WATCHDOG,
        boost: Boost | None = None,
        language: str | None = None,
        second_pass: bool | None = None,
        state: bytes | None = None,
    ) -> Session:
        """Open a stream of samples at `sample_rate` Hz (the model's, by default).

        `latency_ms` is one of the recognizer's, by default the shortest from 160 ms on. `endpoint`
        and `watchdog` None turn those rules off. `boost` are the hotwords of this stream, and
        `language` is what is spoken in it, for a model with language prompts; by default the
        recognizer's language. `second_pass` decodes each final again from the whole utterance, by
        default where the model has a cheap one. With the `state` of an exported stream it continues
        that one, in its latency, rate and language and with its hotwords.

        Raises EngineFullError when all streams are in use, OptionError for an unknown latency or
        language or a hotword that cannot be boosted, AudioValueError for an unusable rate,
        StateError for a state of another model.
        """
        rate = self.model.sample_rate
        document: saved.SavedStream | None = None
        slot_state: saved.SavedSlot | None = None
        if state is None:
            lookahead = self.recognizer.live_lookahead(latency_ms)
            sample_rate = rate if sample_rate is None else sample_rate
        else:
            document, slot_state = saved.stream_from_bytes(state)
            if document["model"] != self.model.fingerprint:
                raise StateError("the stream was saved with another model; load the same model")
            lookahead, sample_rate = document["lookahead"], document["input"]["sample_rate"]
            boost = [Phrase(text, weight) for text, weight in document["boost"]]
            second_pass = document["second_pass"]
        options = self.recognizer.live_options(
            lookahead,
            endpoint,
            watchdog,
            guard=self.options.guard,
            language=language,
            second_pass=second_pass,
        )
        if document is not None and document["prompt"] is not None:
            if not 0 <= document["prompt"] < self.model.decoder.prompts:
                raise StateError(f"the model has no language prompt {document['prompt']}")
            options = replace(options, prompt=document["prompt"], language=document["language"])
        options = replace(options, trie=self.recognizer.live_trie(boost))
        try:
            live = open_live(self.model.grid(lookahead), self.recognizer.stream_tokenizer, options)
            input = StreamInput(sample_rate, rate, self.recognizer.front_end)
            if document is not None:
                live.restore(document["live"])
                input.restore(document["input"])
        except (KeyError, TypeError, ValueError) as error:
            if document is None:
                raise
            raise StateError(f"the saved stream is damaged ({error})") from error
        with self.lock:
            self._check_serves()
            # A stream that was closed during a step frees its slot after that step.
            self._room.wait_for(
                lambda: (
                    self._slots.used < self._slots.count
                    or not any(stream.mailbox.ended for stream in self._streams)
                )
            )
            self._check_serves()
            return self._admit(_LiveRecord(live, slot_state), input, live.replays)

    def close(self) -> None:
        """End all streams and the engine's thread; may be called again."""
        with self.lock:
            self._stopping = True
            self._work.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._end_all(None)

    # -- for sessions ------------------------------------------------------------------------------

    def accept(self, stream: HostedStream, samples: Samples) -> None:
        [error] = self.accept_many([stream], [samples])
        if error is not None:
            raise error

    def accept_many(
        self, streams: Sequence[HostedStream], blocks: Sequence[Samples]
    ) -> list[PianissimoError | None]:
        errors: list[PianissimoError | None] = [None] * len(streams)
        heard: list[tuple[int, _LiveRecord]] = []
        with self.lock:
            for i, stream in enumerate(streams):
                try:
                    stream.check_accepts("push")
                    heard.append((i, self._streams[stream]))
                except PianissimoError as error:
                    errors[i] = error
        # Without the lock, which every stream needs.
        listen([record.live for _, record in heard], [blocks[i] for i, _ in heard])
        with self.lock:
            now = time.monotonic()
            for i, record in heard:
                try:
                    streams[i].check_accepts("push")
                except PianissimoError as error:
                    errors[i] = error
                    continue
                record.live.push(blocks[i])
                if len(blocks[i]):
                    record.arrivals.append((record.live.buffer.end, now))
                self._schedule(streams[i])
        return errors

    def mark(self, stream: HostedStream, kind: Mark) -> None:
        with self.lock:
            stream.check_accepts(kind)
            self._streams[stream].live.mark(kind)
            stream.input_ended = kind == "finish"
            self._schedule(stream)

    def set_language(self, stream: HostedStream, language: str) -> None:
        with self.lock:
            stream.check_accepts("set the language")
            live = self._streams[stream].live
            options = self.recognizer.live_options(
                live.options.lookahead, None, None, guard=False, language=language
            )
            live.set_language(options.prompt, options.language)

    def leave(self, stream: HostedStream) -> None:
        with self.lock:
            if stream in self._streams:
                self._end(stream)

    def snapshot(self, stream: HostedStream, input: SavedInput) -> Callable[[], bytes]:
        with self._room:
            stream.check_accepts("export")
            record = self._streams[stream]
            self._room.wait_for(lambda: not record.busy)
            stream.check_accepts("export")
            assert stream.slot is not None
            if record.fresh:
                self._settle(stream, record)
            self._renew(stream, record)
            options = record.live.options
            document: saved.SavedStream = {
                "model": self.model.fingerprint,
                "lookahead": options.lookahead,
                "frames": self.runner.arena.frames[stream.slot],
                "live": record.live.save(),
                "boost": [(p.text, p.weight) for p in options.trie.phrases] if options.trie else [],
                "language": options.language,
                "prompt": options.prompt,
                "second_pass": options.second_pass,
                "input": input,
            }
            return partial(saved.to_bytes, document, self.runner.arena.save(stream.slot))

    # -- with the lock held ------------------------------------------------------------------------

    def _check_serves(self) -> None:
        if self._error is not None:
            # A new one each time: an exception keeps the frames of everybody it was raised to.
            raise EngineError(str(self._error)) from self._error
        if self._stopping:
            raise EngineError("this engine is closed; make a new one")
        if not self._thread.is_alive():
            raise EngineError("the thread of this engine is gone; make a new one")

    def _waits_since(self, stream: HostedStream, record: _LiveRecord) -> float | None:
        return record.waits_since

    def _schedule(self, stream: HostedStream) -> None:
        record = self._streams.get(stream)
        if record is None or record.busy or stream.mailbox.ended or stream.mailbox.full:
            return
        record.live.look_out()
        due = record.live.due()
        if due is None:
            return
        now, arrivals = time.monotonic(), record.arrivals
        while len(arrivals) > 1 and arrivals[0][0] < record.live.due_position:
            arrivals.popleft()
        record.due_since = arrivals[0][1] if arrivals else now
        if record.waits_since is None:
            record.waits_since = now
        grid, tail = record.live.grid, due == "tail"
        apart = self.runner.graphs is not None and record.live.options.trie is not None
        group = Group(grid.chunk - 1, tail, apart)
        self._scheduler.add(stream, group, now + (0.0 if tail else grid.chunk_seconds))
        self._work.notify()

    def _end(self, stream: HostedStream, error: EngineError | None = None) -> None:
        """End a stream; its slot is released at once, or after the step that uses it."""
        if not stream.mailbox.ended:
            self._scheduler.remove(stream)
            stream.mailbox.end(error)
        if not self._streams[stream].busy:
            self._release(stream)

    def _settle(self, stream: HostedStream, record: _LiveRecord) -> None:
        """Prepare the slot of a new stream: cleared, or restored from a saved state."""
        assert stream.slot is not None
        options = record.live.options
        self.runner.clear(stream.slot, trie=options.trie, prompt=options.prompt)
        record.fresh, state, record.restores = False, record.restores, None
        if state is not None:
            try:
                with torch.inference_mode():
                    self.runner.arena.restore(stream.slot, state.tensors, state.frames)
            except (ValueError, RuntimeError) as error:
                raise StateError(f"the saved stream is damaged ({error})") from error

    def _renew(self, stream: HostedStream, record: _LiveRecord) -> None:
        """Give the stream a fresh state or another language if it requests one."""
        live, options = record.live, record.live.options
        if live.language_changed:
            assert stream.slot is not None
            self.runner.set_prompt(stream.slot, options.prompt)
            live.language_changed = False
        if live.restart is not None:
            assert stream.slot is not None
            rest = self.runner.renew(stream.slot, live.restart, options.trie, options.prompt)
            stream.mailbox.deliver(live.renewed(rest))

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
                    works = [self._begin(stream) for stream in batch.members]
                began = time.monotonic()
                results = iter(self._run(batch.group, [w for w in works if isinstance(w, Work)]))
                with self.lock:
                    self.stats.steps += 1
                    self.stats.step_seconds += time.monotonic() - began
                    for stream, work in zip(batch.members, works, strict=True):
                        self._end_step(
                            stream, batch, next(results) if isinstance(work, Work) else work
                        )
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
            few = (self.recognizer.parameter_count or 0) < SMALL_MODEL_PARAMETERS
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

    def _begin(self, stream: HostedStream) -> Work | StateError:
        """The work of a stream for the next step, or why it cannot take part."""
        record = self._streams[stream]
        record.busy = True
        if record.fresh:
            try:
                self._settle(stream, record)
            except StateError as error:
                return error
        self._renew(stream, record)
        assert stream.slot is not None
        return record.live.work(stream.slot)

    def _run(self, group: Group, works: Sequence[Work]) -> list[Hypothesis | Exception]:
        """The results of a step. If it fails, each member runs alone, so that only those fail that
        cause it; a step changes nothing unless it succeeds, and can be repeated."""
        if not works:
            return []
        grid = self.model.grid(group.lookahead)
        try:
            if group.tail:
                tails = [work for work in works if isinstance(work, TailWork)]
                return [*self.runner.finish(tails, grid)]
            chunks = [work for work in works if isinstance(work, ChunkWork)]
            return [*self.runner.step(chunks, grid)]
        except Exception as error:
            if len(works) == 1:
                return [error]
            log.exception("a step of %d streams failed; each runs alone now", len(works))
            return [self._run(group, [work])[0] for work in works]

    def _end_step(
        self, stream: HostedStream, batch: Batch[HostedStream], result: Hypothesis | Exception
    ) -> None:
        record, now = self._streams[stream], time.monotonic()
        waits_since, record.waits_since, record.busy = record.waits_since, None, False
        assert waits_since is not None
        if stream.mailbox.ended:
            self._release(stream)
            return
        if isinstance(result, Exception):
            self._fail(stream, result)
            self._release(stream)
            return
        live = record.live
        self.stats.tokens += len(result.tokens)
        if batch.group.tail:
            events = live.accept_tail(result)
        else:
            events = live.accept_chunk(result)
            self.stats.chunks += 1
            self.stats.delays.append((batch.group.lookahead, now - record.due_since))
            self.stats.answered.append(Answered(live.grid.chunk_seconds, now - waits_since, now))
            self.stats.replays += live.replays - stream.replays
            stream.replays = live.replays
        self.stats.finals += sum(event.type == "final" for event in events)
        stream.mailbox.deliver(events)
        if live.finished:
            self._end(stream)
        else:
            self._schedule(stream)

    def _end_all(self, error: EngineError | None) -> None:
        with self.lock:
            for stream, record in list(self._streams.items()):
                record.busy = False
                self._end(stream, error)
