"""Word and character errors by the alignment with the fewest edits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ErrorCounts:
    """Errors against a reference of `words` words, or characters; counts add up over texts."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    words: int = 0

    @property
    def errors(self) -> int:
        """All edits together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference word; for an empty reference 0, or infinity if there are errors."""
        if self.words == 0:
            return float("inf") if self.errors else 0.0
        return self.errors / self.words

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        if not isinstance(other, ErrorCounts):
            return NotImplemented
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.words + other.words,
        )


def word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors between words separated by white space; normalize both texts first if needed."""
    return _count(reference.split(), hypothesis.split())


def character_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors between characters; any white space counts as one space."""
    return _count(list(" ".join(reference.split())), list(" ".join(hypothesis.split())))


def _count(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    """Count the edits of the cheapest alignment.

    Of several alignments with as few edits, the one with the fewest deletions and insertions
    counts, so the result is unique. A substitution costs `unit`, the others `unit + 1`: the last
    cell of the distance matrix then holds both numbers, and no path has to be traced back.
    """
    N, M = len(reference), len(hypothesis)
    unit = N + M + 1
    gap = unit + 1
    ids: dict[str, int] = {}
    ref = [ids.setdefault(token, len(ids)) for token in reference]
    hyp = np.array([ids.setdefault(token, len(ids)) for token in hypothesis], dtype=np.int64)

    ramp = gap * np.arange(M + 1, dtype=np.int64)
    row = ramp  # row[j]: the cost of turning the reference so far into hypothesis[:j]
    for token in ref:
        step = row + gap
        step[1:] = np.minimum(step[1:], row[:-1] + np.where(hyp == token, 0, unit))
        # An insertion continues from the left neighbor: a running minimum along the row.
        row = np.minimum.accumulate(step - ramp) + ramp

    edits, gaps = divmod(int(row[-1]), unit)
    deletions = (gaps + N - M) // 2
    return ErrorCounts(edits - gaps, deletions, gaps - deletions, N)
