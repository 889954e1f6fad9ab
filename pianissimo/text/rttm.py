"""RTTM, the file format of speaker turns that NIST defined and every scorer reads.

SPEAKER <recording> 1 <start> <duration> <NA> <NA> <speaker> <NA> <NA>
"""

import math
import os
from pathlib import Path

from pianissimo.errors import ManifestError
from pianissimo.text.turns import Turn

FAULTS_SHOWN = 20
"""Faulty lines named in an error."""
_FIELDS = 8


def read_rttm(path: str | os.PathLike[str]) -> dict[str, list[Turn]]:
    """The turns of each recording in a file, in the order of the file.

    Lines of other types than SPEAKER and comments (";;") are skipped. Raises ManifestError for a
    file that cannot be read, and for faulty lines, which it lists.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ManifestError(f"{path} cannot be read: {reason}") from error
    recordings: dict[str, list[Turn]] = {}
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        try:
            if len(fields) < _FIELDS:
                raise ValueError(f"{len(fields)} fields, expected {_FIELDS} or more")
            start, duration = float(fields[3]), float(fields[4])
            if not (0 <= start < math.inf and 0 <= duration < math.inf):
                raise ValueError(f"start {fields[3]} or duration {fields[4]} is not 0 or more")
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            continue
        turn = Turn(start, start + duration, fields[7])
        recordings.setdefault(fields[1], []).append(turn)
    if faults:
        shown = "\n  ".join(faults[:FAULTS_SHOWN])
        more = f"\n  and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise ManifestError(f"{path} is not RTTM:\n  {shown}{more}")
    return recordings
