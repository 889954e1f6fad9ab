"""Many recordings for one recogniser: which share a batch, and results in the order given."""

import os
from collections.abc import Iterable, Iterator, Sequence

from pianissimo.audio.io import AudioSource, describe
from pianissimo.errors import PianissimoError
from pianissimo.recognizer import Outcome
from pianissimo.transcript import Transcript


def batches_of(
    sources: Sequence[AudioSource], batch_seconds: float
) -> Iterator[Outcome | list[int]]:
    """Indices grouped by about equal length, at most `batch_seconds` of audio with padding.

    First come the recordings whose length cannot be read, as outcomes with their error.
    """
    lengths: dict[int, float] = {}
    for i, source in enumerate(sources):
        seconds = None
        # Standard input and file objects are read once, so they are not asked beforehand.
        if isinstance(source, (str, os.PathLike)) and source != "-":
            try:
                seconds = describe(source).duration_seconds
            except PianissimoError as error:
                yield Outcome(i, error=error)
                continue
        # A recording of unknown length cannot share a batch.
        lengths[i] = batch_seconds if seconds is None else seconds
    batch: list[int] = []
    for i in sorted(lengths, key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > batch_seconds:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def in_order(outcomes: Iterable[Outcome]) -> Iterator[Transcript]:
    """The transcripts by index, each as soon as those before it are there; raises their errors."""
    waiting: dict[int, Outcome] = {}
    due = 0
    for outcome in outcomes:
        waiting[outcome.index] = outcome
        while due in waiting:
            ready = waiting.pop(due)
            due += 1
            if ready.error is not None:
                raise ready.error
            assert ready.transcript is not None
            yield ready.transcript
