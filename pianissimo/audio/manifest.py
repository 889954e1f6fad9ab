"""Manifests as NeMo writes them: one JSON object per line, a recording or a part of one.

`audio_filepath` is relative to the manifest. `offset` and `duration` in seconds select a part;
a missing or null value means the beginning, or the end.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pianissimo.audio.io import AudioSource, Excerpt, describe
from pianissimo.audio.remote import RemoteFile
from pianissimo.errors import AudioError, ManifestError

TOLERANCE_SECONDS, TOLERANCE_SHARE = 0.1, 0.02
"""A `duration` that is shorter than its recording by less than one of these means all of it."""


def manifest_rows(path: Path) -> Iterator[tuple[int, dict[str, object] | str]]:
    """The number of each line that is not empty, with its object or what is wrong with it.

    Raises ManifestError if the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # Windows editors write a BOM
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ManifestError(f"manifest {path} cannot be read: {reason}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, str(error)
            continue
        yield number, row if isinstance(row, dict) else "not a JSON object"


def seconds_in(row: Mapping[str, object], key: str) -> float | None:
    """The seconds of a key, None if it is missing or null; ValueError for anything else."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key!r} must be a number of seconds, but is {json.dumps(value)[:40]}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{key!r} must be 0 or more seconds, but is {value}")
    return float(value)


def recording_part(path: Path | RemoteFile, offset: float, duration: float | None) -> AudioSource:
    """The audio of a line: the file, or a part of it if the line selects less than all of it."""
    if duration is None:
        return Excerpt(path, offset) if offset else path
    if not offset and isinstance(path, Path) and os.path.isfile(path):
        try:
            length = describe(path).duration_seconds
        except AudioError:
            return path  # decoding it reports the error
        if length is not None:
            missing = length - duration
            if missing <= max(TOLERANCE_SECONDS, TOLERANCE_SHARE * duration):
                return path
    return Excerpt(path, offset, duration)
