"""Removes a constant offset: cheap microphones add one, and a gain for soft speech multiplies it.

A high-pass of first order at 10 Hz, y[n] = r y[n-1] + x[n] - x[n-1]. Inside a stretch of samples on
an absolute grid it is r^n times a running sum of r^-m (x[m] - x[m-1]); the sum runs from left to
right, so that blocks of any size give the same bits. A constant input gives exact zeros.
"""

import math
from dataclasses import dataclass

import numpy as np

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.io import Samples

CUTOFF_HZ = 10.0

_STRETCH = 1024  # r^-m stays below 60, so that no digits of float64 are lost
_RATIO = math.exp(-2 * math.pi * CUTOFF_HZ / SAMPLE_RATE)
_SHRINK = _RATIO ** np.arange(1, _STRETCH + 1)
_GROW = 1 / _SHRINK


@dataclass
class OffsetState:
    """What the filter remembers of one stream."""

    last: float | None = None
    """The last input sample; None before the first."""
    total: float = 0.0
    """The running sum, which starts in each stretch with the last output."""
    place: int = 0
    """Samples of the current stretch so far."""


def remove_offset(samples: Samples, state: OffsetState) -> Samples:
    """Samples (n,) at 16 kHz without their constant part, n >= 0.

    The first sample counts as if it had been there for ever, so that an offset makes no step.
    """
    if not len(samples):
        return samples
    x = np.empty(len(samples) + 1)
    x[0] = samples[0] if state.last is None else state.last
    x[1:] = samples
    state.last = float(x[-1])
    change = x[1:] - x[:-1]
    out = np.empty(len(samples), np.float32)
    done = 0
    while done < len(change):
        part = change[done : done + _STRETCH - state.place]
        last = state.place + len(part)
        sums = part * _GROW[state.place : last]
        sums[0] += state.total
        np.add.accumulate(sums, out=sums)
        filtered = sums * _SHRINK[state.place : last]
        out[done : done + len(part)] = filtered
        done += len(part)
        state.total, state.place = float(sums[-1]), last
        if last == _STRETCH:
            state.total, state.place = float(filtered[-1]), 0
    return out
