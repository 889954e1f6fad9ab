"""Errors of speaker turns and of speaker-attributed words: DER, JER and cpWER.

DER and JER are exact: time is cut at every edge of a turn, and nothing is rounded to frames.
Overlapping speech counts for each of its speakers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pianissimo.diarization.assignment import assignment
from pianissimo.errors import OptionError
from pianissimo.evaluate.wer import ErrorCounts, word_errors
from pianissimo.text.turns import Turn

COLLAR_SECONDS = 0.25
"""The collar that is usual in publications: this much on both sides of each reference edge."""


@dataclass(frozen=True)
class TurnErrors:
    """Seconds of error against seconds of reference speech; sums over recordings are errors too.

    `missed` speech has no speaker, `false_alarm` is speech where there is none, `confused` speech
    has another speaker.
    """

    missed: float = 0.0
    false_alarm: float = 0.0
    confused: float = 0.0
    speech: float = 0.0

    @property
    def rate(self) -> float:
        """The diarization error rate; infinite for errors without reference speech."""
        errors = self.missed + self.false_alarm + self.confused
        if self.speech:
            return errors / self.speech
        return float("inf") if errors else 0.0

    def __add__(self, other: "TurnErrors") -> "TurnErrors":
        return TurnErrors(
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confused + other.confused,
            self.speech + other.speech,
        )


def turn_errors(
    reference: Iterable[Turn], found: Iterable[Turn], *, collar: float = 0.0
) -> TurnErrors:
    """The errors of `found` under the best one-to-one mapping of speakers.

    `collar` seconds on both sides of each edge of a reference turn do not count. Raises OptionError
    for a negative collar.
    """
    if not 0 <= collar < float("inf"):
        raise OptionError(f"a collar is 0 or more seconds, not {collar}")
    activity = _Activity(list(reference), list(found), collar)
    theirs, ours, seconds = activity.reference, activity.found, activity.seconds
    counts, found_counts = theirs.sum(axis=0), ours.sum(axis=0)
    together = (theirs * seconds) @ ours.T
    correct = sum(together[pair] for pair in assignment(-together))
    both = float(np.minimum(counts, found_counts) @ seconds)
    return TurnErrors(
        missed=float(np.maximum(counts - found_counts, 0) @ seconds),
        false_alarm=float(np.maximum(found_counts - counts, 0) @ seconds),
        confused=max(0.0, both - float(correct)),
        speech=float(counts @ seconds),
    )


def jaccard_error(reference: Iterable[Turn], found: Iterable[Turn]) -> float:
    """JER: the mean over reference speakers of 1 - |both| / |either|, as in DIHARD.

    The mapping of speakers is that of `turn_errors`. A speaker without a counterpart counts as 1.
    0 if both are empty, 1 if only the reference is.
    """
    activity = _Activity(list(reference), list(found), 0.0)
    theirs, ours, seconds = activity.reference, activity.found, activity.seconds
    if not len(theirs):
        return float(bool(len(ours)))
    together = (theirs * seconds) @ ours.T
    errors = np.ones(len(theirs))
    for row, column in assignment(-together):
        either = float(np.maximum(theirs[row], ours[column]) @ seconds)
        errors[row] = 1 - together[row, column] / either if either else 0.0
    return float(errors.mean())


class _Activity:
    """Who speaks in each stretch between two edges: (R, K) and (H, K) of 0 and 1, (K,) seconds."""

    def __init__(self, reference: list[Turn], found: list[Turn], collar: float) -> None:
        edges = {time for turn in (*reference, *found) for time in (turn.start, turn.end)}
        around: list[tuple[float, float]] = []
        if collar:
            for turn in reference:
                around += [(time - collar, time + collar) for time in (turn.start, turn.end)]
            edges |= {time for pair in around for time in pair}
        times = np.array(sorted(edges))
        self.seconds = np.diff(times)
        for first, last in around:
            self.seconds[(times[:-1] >= first) & (times[1:] <= last)] = 0.0
        self.reference = _by_speaker(reference, times)
        self.found = _by_speaker(found, times)


def _by_speaker(turns: Sequence[Turn], times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    speakers = {name: row for row, name in enumerate(dict.fromkeys(t.speaker for t in turns))}
    active = np.zeros((len(speakers), max(len(times) - 1, 0)))
    for turn in turns:
        first, last = np.searchsorted(times, [turn.start, turn.end])
        active[speakers[turn.speaker], first:last] = 1.0
    return active


def attributed_word_errors(reference: Mapping[str, str], found: Mapping[str, str]) -> ErrorCounts:
    """cpWER: word errors of each speaker's words in a row, under the best mapping of speakers.

    Both map a speaker to all that this speaker says, in scoring form. Speakers without a
    counterpart are compared with silence. Watanabe et al., "CHiME-6" (2020).
    """
    theirs, ours = list(reference.values()), list(found.values())
    size = max(len(theirs), len(ours))
    theirs += [""] * (size - len(theirs))
    ours += [""] * (size - len(ours))
    pairs = [[word_errors(a, b) for b in ours] for a in theirs]
    costs = [[each.errors for each in row] for row in pairs]
    total = ErrorCounts()
    for row, column in assignment(np.array(costs).reshape(size, size)):
        total += pairs[row][column]
    return total
