"""`transcribe --jobs`: several processes, each with the model, that share batches of recordings.

If a worker crashes, only its current recording fails; the rest of the batch is retried one by one
in a new process. Workers end when this program ends, even if it is killed.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pianissimo.cli.excerpts import WHOLE, ExcerptOptions
from pianissimo.cli.options import ModelOptions
from pianissimo.errors import PianissimoError
from pianissimo.protocols import Outcome, Recognizer

if TYPE_CHECKING:
    from pianissimo.audio.io import AudioSource
    from pianissimo.decoding.hotwords import Phrase
    from pianissimo.decoding.search import Decoding
    from pianissimo.diarization.options import Diarization

BATCH_SECONDS = 600.0
"""Most audio per batch, and so the most that a killed process leaves unfinished."""
BATCHES_PER_PROCESS = 4
"""Fewest batches per process, if there is enough audio, so that no process runs out of work."""
EXIT_SECONDS = 5.0
"""Time for a process to exit after its last answer."""
STARTS = 2
"""How often a process is started before a recording fails that it never saw."""
READY, DONE = "ready", "done"


@dataclass(frozen=True)
class Setup:
    """What a worker needs to know: the model, and how to recognize with it."""

    model: ModelOptions
    decoding: "Decoding | None" = None
    latency_ms: int | None = None
    word_timestamps: bool = True
    hotwords: "Sequence[Phrase]" = ()
    excerpt: ExcerptOptions = WHOLE
    processes: int = 1
    """How many processes share the cores."""
    diarize: "Diarization | None" = None
    second_pass: bool | None = None
    """Of live streams."""
    itn: bool = False

    def load(self) -> Recognizer:
        """The recognizer; raises what `pianissimo.load` raises."""
        return self.model.load(self.decoding)


def recognized(
    recognizer: Recognizer, sources: "Sequence[AudioSource]", setup: Setup
) -> Iterator[Outcome]:
    """The recognizer's outcomes; an internal error fails only the recording that caused it.

    Raises PianissimoError for unusable options, which are no fault of a recording.
    """
    missing = set(range(len(sources)))
    try:
        outcomes = recognizer.outcomes(
            [setup.excerpt.source(source) for source in sources],
            latency_ms=setup.latency_ms,
            word_timestamps=setup.word_timestamps,
            boost=setup.hotwords,
            diarize=setup.diarize or False,
            itn=setup.itn,
        )
        for outcome in outcomes:
            missing.discard(outcome.index)
            if outcome.transcript is not None:
                outcome = replace(outcome, transcript=setup.excerpt.place(outcome.transcript))
            yield outcome
    except PianissimoError:
        raise
    except Exception as error:
        if os.environ.get("PIANISSIMO_DEBUG"):
            traceback.print_exc()
        if len(sources) == 1:
            what = f"unexpected {type(error).__name__}: {error}"
            advice = "set PIANISSIMO_DEBUG=1 for a traceback; please report it"
            yield Outcome(0, error=PianissimoError(f"{what} ({advice})"))
            return
        for index in sorted(missing):
            for outcome in recognized(recognizer, [sources[index]], setup):
                yield replace(outcome, index=index)


def batch_seconds(total: float, processes: int) -> float:
    """Most audio per batch, in seconds, if `processes` share `total` seconds."""
    return min(BATCH_SECONDS, total / (processes * BATCHES_PER_PROCESS))


def shared_out(
    sources: "Sequence[AudioSource]", batches: Sequence[list[int]], setup: Setup
) -> Generator[Outcome, None, None]:
    """The outcomes of all batches of indices into `sources`, in the order they are done.

    Raises the error of a worker that could not start. Closing the generator ends all workers.
    """
    todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for batch in batches:
        todo.put(batch)
    done: queue.SimpleQueue[Outcome | Exception | None] = queue.SimpleQueue()
    workers = [_Worker(sources, todo, done, setup) for _ in range(setup.processes)]
    for worker in workers:
        worker.start()
    working = len(workers)
    try:
        while working:
            match done.get():
                case None:
                    working -= 1
                case Outcome() as outcome:
                    yield outcome
                case error:
                    raise error
    finally:
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()


class _Ended(Exception):
    """The results are no longer wanted."""


class _Worker(threading.Thread):
    """Feeds one process and replaces it if it dies; puts None into `done` when it ends."""

    def __init__(
        self,
        sources: "Sequence[AudioSource]",
        todo: "queue.SimpleQueue[list[int]]",
        done: "queue.SimpleQueue[Outcome | Exception | None]",
        setup: Setup,
    ) -> None:
        super().__init__(daemon=True)
        self.sources, self.todo, self.done, self.setup = sources, todo, done, setup
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._lock = threading.Lock()

    def run(self) -> None:
        try:
            while True:
                self._batch(self.todo.get_nowait())
        except (queue.Empty, _Ended):
            pass
        except Exception as error:
            self.done.put(error)
        self.end()
        if self._process is not None:
            self._reap(self._process)
        self.done.put(None)

    def end(self) -> None:
        """Kill the process, from any thread, and start no other."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()

    def _batch(self, batch: list[int]) -> None:
        left = dict(enumerate(batch))
        self._start_process()
        try:
            self._ask([self.sources[i] for i in batch])
            while isinstance(outcome := self._answer(), Outcome):
                self.done.put(replace(outcome, index=left.pop(outcome.index)))
        except (EOFError, OSError, pickle.UnpicklingError):
            died = self._exit_reason()
            if len(batch) == 1:
                reason = PianissimoError(f"the process that transcribed it {died}")
                self.done.put(Outcome(batch[0], error=reason))
            else:
                for index in left.values():
                    self._batch([index])

    def _start_process(self) -> None:
        """Start a process unless there is one; raises PianissimoError if none loads the model.

        A process that is killed while it loads has seen no recording, so another one is started.
        """
        for start in range(1, STARTS + 1):
            with self._lock:
                if self._ended:
                    raise _Ended
                if self._process is not None:
                    return
                command = [sys.executable, "-m", "pianissimo.cli.job_worker"]
                pipe = subprocess.PIPE
                # Its own session, so that Ctrl-C reaches only this program.
                self._process = subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, start_new_session=True
                )
            try:
                self._ask(self.setup)
                if self._answer() != READY:
                    raise EOFError
                return
            except (EOFError, OSError, pickle.UnpicklingError) as error:
                reason = self._exit_reason()
                if start == STARTS:
                    raise PianissimoError(
                        f"a process of --jobs {reason} before the model was loaded, {STARTS} times;"
                        " fewer processes need less memory"
                    ) from error

    def _ask(self, request: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()

    def _answer(self) -> Outcome | str:
        """The next answer; raises it if it is a PianissimoError, and EOFError if there is none."""
        assert self._process is not None and self._process.stdout is not None
        answer: object = pickle.load(self._process.stdout)
        if isinstance(answer, PianissimoError):
            raise answer
        assert isinstance(answer, (Outcome, str))
        return answer

    def _exit_reason(self) -> str:
        """How the process ended; raises _Ended if `end` ended it."""
        if self._ended:
            raise _Ended
        with self._lock:
            process, self._process = self._process, None
        assert process is not None
        with suppress(subprocess.TimeoutExpired):
            process.wait(EXIT_SECONDS)
        code = self._reap(process)
        if code >= 0:
            return f"ended with code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was killed ({name}), perhaps because memory ran out"

    @staticmethod
    def _reap(process: "subprocess.Popen[bytes]") -> int:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # data that was not written before it ended
                pipe.close()
        return process.wait()
