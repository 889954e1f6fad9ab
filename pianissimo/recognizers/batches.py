"""Which recordings share a batch: their lengths, and groups of about equal length."""

import os
from collections.abc import Iterable, Iterator, Mapping

from pianissimo.audio.io import AudioSource, Excerpt, describe
from pianissimo.audio.remote import RemoteFile
from pianissimo.errors import PianissimoError


def lengths(sources: Iterable[AudioSource]) -> Iterator[float | PianissimoError | None]:
    """The seconds of each recording, None where nothing states them, or why it cannot be read."""
    for source in sources:
        if _read_once(source):
            yield None
            continue
        try:
            yield describe(source).duration_seconds
        except PianissimoError as error:
            yield error


def _read_once(source: AudioSource) -> bool:
    """Whether reading a source consumes it: file objects, standard input and pipes."""
    source = source.source if isinstance(source, Excerpt) else source
    if isinstance(source, RemoteFile):
        return False
    if not isinstance(source, (str, os.PathLike)) or source == "-":
        return True
    return os.path.exists(source) and not (os.path.isfile(source) or os.path.isdir(source))


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
