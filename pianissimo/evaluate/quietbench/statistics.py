"""Confidence intervals: percentile bootstrap over speakers, paired to compare two systems.

With thirty clips the interval at 8 % errors is about four points wide on either side, so 8 % and
10 % are not separable. Every rate has its interval, and two systems differ only if the interval of
their difference excludes zero.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
MIN_SPEAKERS = 8
"""Fewest speakers to resample; with fewer, clips are resampled."""
_SEED = 20_260
_ROWS_AT_ONCE = 500

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Observation:
    """One clip of one system: errors and number of reference words or characters."""

    clip: str
    speaker: str
    errors: int
    units: int


@dataclass(frozen=True)
class Interval:
    """A rate with its 95 % interval, as shares: 0.1 is 10 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The rate of B minus that of A on the same clips."""

    difference: Interval

    @property
    def separable(self) -> bool:
        return self.difference.low > 0 or self.difference.high < 0

    def verdict(self, a: str, b: str) -> str:
        """ "A better", "B better" or "not separable", with the given names."""
        if not self.separable:
            return "not separable"
        return f"{a} better" if self.difference.low > 0 else f"{b} better"


def rate(observations: Sequence[Observation]) -> Interval | None:
    """Errors per unit with their interval; None without units."""
    errors, words = _clusters(observations, _groups(observations))
    if not words.sum():
        return None
    rates = _resampled(errors, words)
    low, high = np.percentile(rates, [2.5, 97.5])
    return Interval(float(errors.sum() / words.sum()), float(low), float(high))


def compare(a: Sequence[Observation], b: Sequence[Observation]) -> Comparison | None:
    """Compare B with A on their common clips; None if there are none.

    Both are resampled with the same draws, so that the difficulty of a clip cancels.
    """
    shared = {one.clip for one in a} & {one.clip for one in b}
    ours = sorted((one for one in a if one.clip in shared), key=lambda one: one.clip)
    theirs = sorted((one for one in b if one.clip in shared), key=lambda one: one.clip)
    groups = _groups(ours)
    errors_a, words = _clusters(ours, groups)
    errors_b, words_b = _clusters(theirs, groups)
    if not words.sum() or not words_b.sum():
        return None
    differences = _resampled(errors_b, words_b) - _resampled(errors_a, words)
    low, high = np.percentile(differences, [2.5, 97.5])
    value = errors_b.sum() / words_b.sum() - errors_a.sum() / words.sum()
    return Comparison(Interval(float(value), float(low), float(high)))


def resampled_by(observations: Sequence[Observation]) -> str:
    """ "speakers" or "clips": the unit that is resampled."""
    return "speakers" if len({one.speaker for one in observations}) >= MIN_SPEAKERS else "clips"


def _groups(observations: Sequence[Observation]) -> Mapping[str, int]:
    """The cluster number of each clip."""
    by_speaker = resampled_by(observations) == "speakers"
    keys = {one.clip: one.speaker if by_speaker else one.clip for one in observations}
    numbers = {key: i for i, key in enumerate(sorted(set(keys.values())))}
    return {clip: numbers[key] for clip, key in keys.items()}


def _clusters(
    observations: Sequence[Observation], groups: Mapping[str, int]
) -> tuple[Float64, Float64]:
    """Errors and units summed per cluster: (C,), (C,)."""
    count = len(set(groups.values()))
    errors, words = np.zeros(count), np.zeros(count)
    for one in observations:
        errors[groups[one.clip]] += one.errors
        words[groups[one.clip]] += one.units
    return errors, words


def _resampled(errors: Float64, words: Float64) -> Float64:
    """The rate of each resample: (RESAMPLES,). Equal clusters give equal draws."""
    rng, count = np.random.default_rng(_SEED), len(errors)
    rates = []
    for _ in range(RESAMPLES // _ROWS_AT_ONCE):
        drawn = rng.integers(count, size=(_ROWS_AT_ONCE, count))
        totals = words[drawn].sum(axis=1)
        rates.append(errors[drawn].sum(axis=1) / np.maximum(totals, 1))
    return np.concatenate(rates)
