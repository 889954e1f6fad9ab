"""`transcribe --jobs`: several processes with a model each, which take batch after batch.

A process that dies, of a hostile file or for want of memory, costs the recording it died of: the
others of its batch are tried one by one in a new process. When this program ends, however it ends,
its processes end with it.
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
from typing import TYPE_CHECKING, Any

from pianissimo.errors import PianissimoError
from pianissimo.protocols import Outcome

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer

BATCH_SECONDS = 600.0
"""Most audio of a batch, and so of what a killed process had not finished."""
BATCHES_PER_PROCESS = 4
"""At least so many where there is enough to do, so that no process is left with nothing."""
DYING_SECONDS = 5.0
"""How long a process may take to end after its last answer."""
READY, DONE = "ready", "done"


@dataclass(frozen=True)
class Setup:
    """What `pianissimo.load` and `outcomes` are called with, and how many processes share cores."""

    load: dict[str, Any]
    recognize: dict[str, Any]
    processes: int


def recognized(
    recognizer: "Recognizer", names: Sequence[str], options: dict[str, Any]
) -> Iterator[Outcome]:
    """The recognizer's outcomes; a fault of ours costs no other recording than its own.

    Raises PianissimoError for what is wrong with the options, which no recording is to blame for.
    """
    missing = set(range(len(names)))
    try:
        for outcome in recognizer.outcomes(names, **options):
            missing.discard(outcome.index)
            yield outcome
    except PianissimoError:
        raise
    except Exception as error:
        if os.environ.get("PIANISSIMO_DEBUG"):
            traceback.print_exc()
        if len(names) == 1:
            what = f"unexpected {type(error).__name__}: {error}"
            advice = "PIANISSIMO_DEBUG=1 shows where; please report it"
            yield Outcome(0, error=PianissimoError(f"{what} ({advice})"))
            return
        for index in sorted(missing):
            for outcome in recognized(recognizer, [names[index]], options):
                yield replace(outcome, index=index)


def batch_seconds(total: float, processes: int) -> float:
    """How much audio a batch gets at most when so many processes share the total."""
    return min(BATCH_SECONDS, total / (processes * BATCHES_PER_PROCESS))


def shared_out(
    names: Sequence[str], batches: Sequence[list[int]], setup: Setup
) -> Generator[Outcome, None, None]:
    """The outcomes of all batches of indices into `names`, as `setup.processes` find them.

    Raises the error of a process that could not begin. Closing the generator ends them all.
    """
    todo: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for batch in batches:
        todo.put(batch)
    found: queue.SimpleQueue[Outcome | Exception | None] = queue.SimpleQueue()
    hands = [_Hand(names, todo, found, setup) for _ in range(setup.processes)]
    for hand in hands:
        hand.start()
    working = len(hands)
    try:
        while working:
            match found.get():
                case None:
                    working -= 1
                case Outcome() as outcome:
                    yield outcome
                case error:
                    raise error
    finally:
        for hand in hands:
            hand.end()
        for hand in hands:
            hand.join()


class _Ended(Exception):
    """Nobody waits for results any more."""


class _Hand(threading.Thread):
    """Feeds one process, and starts another where it dies. The last thing it finds is None."""

    def __init__(
        self,
        names: Sequence[str],
        todo: "queue.SimpleQueue[list[int]]",
        found: "queue.SimpleQueue[Outcome | Exception | None]",
        setup: Setup,
    ) -> None:
        super().__init__(daemon=True)
        self.names, self.todo, self.found, self.setup = names, todo, found, setup
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
            self.found.put(error)
        self.end()
        if self._process is not None:
            self._bury(self._process)
        self.found.put(None)

    def end(self) -> None:
        """Kill the process, from any thread; no other is started."""
        with self._lock:
            self._ended = True
            if self._process is not None:
                self._process.kill()

    def _batch(self, batch: list[int]) -> None:
        left = dict(enumerate(batch))
        self._begin()
        try:
            self._ask([self.names[i] for i in batch])
            while isinstance(outcome := self._answer(), Outcome):
                self.found.put(replace(outcome, index=left.pop(outcome.index)))
        except (EOFError, OSError, pickle.UnpicklingError):
            died = self._last_words()
            if len(batch) == 1:
                reason = PianissimoError(f"the process that transcribed it {died}")
                self.found.put(Outcome(batch[0], error=reason))
            else:
                for index in left.values():
                    self._batch([index])

    def _begin(self) -> None:
        """Start a process unless there is one; raises PianissimoError if it cannot begin."""
        with self._lock:
            if self._ended:
                raise _Ended
            if self._process is not None:
                return
            command = [sys.executable, "-m", "pianissimo.cli.job_worker"]
            pipe = subprocess.PIPE
            # In a session of its own, so that Ctrl-C reaches this program alone.
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, start_new_session=True
            )
        try:
            self._ask(self.setup)
            if self._answer() != READY:
                raise EOFError
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise PianissimoError(
                f"a process of --jobs {self._last_words()} before it had the model; "
                "fewer of them need less memory"
            ) from error

    def _ask(self, request: object) -> None:
        assert self._process is not None and self._process.stdin is not None
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()

    def _answer(self) -> Outcome | str:
        """The next answer; raises the PianissimoError that is one, EOFError if none comes."""
        assert self._process is not None and self._process.stdout is not None
        answer: Any = pickle.load(self._process.stdout)
        if isinstance(answer, PianissimoError):
            raise answer
        assert answer in (READY, DONE) or isinstance(answer, Outcome)
        return answer

    def _last_words(self) -> str:
        """What became of the process, which is no more; raises _Ended if it was told to go."""
        if self._ended:
            raise _Ended
        with self._lock:
            process, self._process = self._process, None
        assert process is not None
        with suppress(subprocess.TimeoutExpired):
            process.wait(DYING_SECONDS)
        code = self._bury(process)
        if code >= 0:
            return f"ended with code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was killed ({name}), perhaps for want of memory"

    @staticmethod
    def _bury(process: "subprocess.Popen[bytes]") -> int:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what could not be written before it died
                pipe.close()
        return process.wait()
