"""One of the processes of `transcribe --jobs`: it has the model and recognizes batch after batch.

Requests come in on standard input and answers go out on standard output, both pickled: the two ends
are the same program. The request `Setup` comes first and is answered by `READY`; then each list of
names by its outcomes and `DONE`. An exception as an answer ends the whole job.
"""

import os
import pickle
import queue
import sys
import threading
from typing import Any, BinaryIO

from pianissimo.cli.jobs import DONE, READY, Setup, recognized
from pianissimo.errors import PianissimoError


def work(requests: "queue.SimpleQueue[Any]", out: BinaryIO) -> None:
    """Answer requests until this process is ended."""

    def answer(value: object) -> None:
        pickle.dump(value, out)
        out.flush()

    try:
        import torch

        from pianissimo.zoo.load import load

        setup: Setup = requests.get()
        torch.set_num_threads(max(1, torch.get_num_threads() // setup.processes))
        recognizer = load(**setup.load)
        answer(READY)
        while True:
            for outcome in recognized(recognizer, requests.get(), setup.recognize):
                answer(outcome)
            answer(DONE)
    except PianissimoError as error:
        answer(error)


def _read(source: BinaryIO, requests: "queue.SimpleQueue[Any]") -> None:
    """Pass requests on; when the other end is gone, so is this process, in the midst of work."""
    while True:
        try:
            requests.put(pickle.load(source))
        except EOFError:
            os._exit(0)


def main() -> None:
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        # A library that prints must not write into the answers.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        work(requests, out)


if __name__ == "__main__":
    main()
