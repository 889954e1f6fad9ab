"""Many recordings for one recognizer: which share a batch, and results in the order given."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pianissimo.audio.io import AudioSource, describe
from pianissimo.errors import OptionError, PianissimoError
from pianissimo.protocols import Outcome
from pianissimo.transcript import Transcript


def listed(sources: Iterable[AudioSource]) -> list[AudioSource]:
    """The recordings as a list; OptionError for a single one, whose letters are no recordings."""
    if isinstance(sources, str | os.PathLike | bytes | bytearray | memoryview):
        raise OptionError("several recordings are a list: transcribe_many([path])")
    return list(sources)


def batches_of(
    sources: Sequence[AudioSource], batch_seconds: float
) -> Iterator[Outcome | list[int]]:
    """Indices grouped by about equal length, at most `batch_seconds` of audio with padding.

    First come the recordings whose length cannot be read, as outcomes with their error.
    """
    seconds: dict[int, float | None] = {}
    for i, length in enumerate(lengths(sources)):
        if isinstance(length, PianissimoError):
            yield Outcome(i, error=length)
        else:
            seconds[i] = length
    yield from grouped(seconds, batch_seconds)


def lengths(sources: Iterable[AudioSource]) -> Iterator[float | PianissimoError | None]:
    """For each recording its seconds, None where nothing says them, or why it cannot be read."""
    for source in sources:
        # Standard input and file objects are read once, so they are not asked beforehand.
        if not isinstance(source, (str, os.PathLike)) or source == "-":
            yield None
            continue
        try:
            yield describe(source).duration_seconds
        except PianissimoError as error:
            yield error


def grouped(seconds: Mapping[int, float | None], batch_seconds: float) -> Iterator[list[int]]:
    """Indices in batches of at most `batch_seconds` with padding, the shortest recordings first.

    A longer recording, or one of unknown length, is a batch by itself.
    """
    known = {i: batch_seconds if length is None else length for i, length in seconds.items()}
    batch: list[int] = []
    for i in sorted(known, key=lambda i: known[i]):
        if batch and known[i] * (len(batch) + 1) > batch_seconds:
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
