"""A worker process of `transcribe --jobs`: loads the model and recognizes batch after batch.

Requests arrive on standard input and answers leave on standard output, both pickled: both ends are
the same program. The first request is a `Setup`, answered by `READY`; each further request is a
list of sources, answered by its outcomes and `DONE`. An exception as an answer ends the whole job.
"""

import os
import pickle
import queue
import signal
import sys
import threading
from typing import Any, BinaryIO

from pianissimo.cli.jobs import DONE, READY, Setup, recognized
from pianissimo.errors import PianissimoError


def work(requests: "queue.SimpleQueue[Any]", out: BinaryIO) -> None:
    """Answer requests until the process ends."""

    def answer(value: object) -> None:
        pickle.dump(value, out)
        out.flush()

    try:
        import torch

        setup: Setup = requests.get()
        torch.set_num_threads(max(1, torch.get_num_threads() // setup.processes))
        recognizer = setup.load()
        answer(READY)
        while True:
            for outcome in recognized(recognizer, requests.get(), setup):
                answer(outcome)
            answer(DONE)
    except PianissimoError as error:
        answer(error)


def _read(source: BinaryIO, requests: "queue.SimpleQueue[Any]") -> None:
    """Queue requests; exit at once, even during work, if the other end is gone."""
    while True:
        try:
            requests.put(pickle.load(source))
        except EOFError:
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        # Output of libraries must not mix with the answers.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        work(requests, out)


if __name__ == "__main__":
    main()
