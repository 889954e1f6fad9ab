"""Filters of the front end: offset removal, the high-pass of level meters, and a peak limiter.

All of them work on an absolute grid, with sums that run from left to right and operations on single
numbers, so the bits do not depend on how a stream was cut into blocks. The caller owns the state.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE

OFFSET_HZ = 10.0
RUMBLE_HZ = 80.0
LOOKAHEAD_SECONDS = 0.005
RELEASE_SECONDS = 0.08
LOOKAHEAD_SAMPLES = round(LOOKAHEAD_SECONDS * SAMPLE_RATE)

Float64 = npt.NDArray[np.float64]
Samples = npt.NDArray[np.float32]

_STRETCH = 1024  # r^-m stays below 60, so that no digits of float64 are lost
_RATIO = math.exp(-2 * math.pi * OFFSET_HZ / SAMPLE_RATE)
_SHRINK = _RATIO ** np.arange(1, _STRETCH + 1)
_GROW = 1 / _SHRINK
# A reduction that has recovered to within 0.0001 dB ends, so that quiet passages stay untouched.
_NEGLIGIBLE = 1e-5


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

    Cheap microphones add an offset, and a gain for soft speech multiplies it. This is a high-pass
    of first order at 10 Hz, y[n] = r y[n-1] + x[n] - x[n-1]. Inside a stretch of samples it is r^n
    times a running sum of r^-m (x[m] - x[m-1]). A constant input gives exact zeros.

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


@dataclass
class HighPassState:
    """What the filter remembers: its resonator and the last two samples; None before the first."""

    real: float = 0.0
    imag: float = 0.0
    last: tuple[float, float] | None = None


class HighPass:
    """Butterworth of order 2 at 80 Hz, for frames of `frame_samples`: rumble and DC are not speech.

    The two poles p and its conjugate make w[n] = Im(p z[n]) / Im(p) out of z[n] = p z[n-1] + u[n],
    where u is the second difference of the input. Inside a frame z is p^n times a running sum of
    p^-m u[m]; a frame is so short that p^-m stays near 1.
    """

    def __init__(self, frame_samples: int, sample_rate: int = SAMPLE_RATE) -> None:
        warped = math.tan(math.pi * RUMBLE_HZ / sample_rate)
        norm = 1 + math.sqrt(2) * warped + warped**2
        product = (1 - math.sqrt(2) * warped + warped**2) / norm
        half = (1 - warped**2) / norm
        self._pole = complex(half, math.sqrt(product - half**2))
        n = np.arange(frame_samples)
        inverse, power = self._pole ** (-n), self._pole ** (n + 1)
        scale = 1 / norm / self._pole.imag
        self._in_real, self._in_imag = inverse.real.copy(), inverse.imag.copy()
        self._out_real, self._out_imag = power.real * scale, power.imag * scale
        self._advance = complex(self._pole**frame_samples)

    def push(self, frames: Float64, state: HighPassState) -> Float64:
        """Frames (K, frame_samples) float64 -> the same shape, filtered."""
        K, N = frames.shape
        if not K:
            return frames
        if state.last is None:  # as if the first sample had been there for ever: no step from DC
            first = float(frames[0, 0])
            state.last = (first, first)
        x = np.concatenate([state.last, frames.reshape(-1)])
        u = (x[2:] - x[1:-1] - (x[1:-1] - x[:-2])).reshape(K, N)
        real = np.add.accumulate(u * self._in_real, axis=1)
        imag = np.add.accumulate(u * self._in_imag, axis=1)
        carried = np.empty((2, K, 1))
        z = complex(state.real, state.imag)
        for k in range(K):
            z = self._pole * z
            carried[:, k, 0] = z.real, z.imag
            z = self._advance * (z + complex(real[k, -1], imag[k, -1])) / self._pole
        state.real, state.imag = z.real, z.imag
        state.last = (float(x[-2]), float(x[-1]))
        real += carried[0]
        imag += carried[1]
        return real * self._out_imag + imag * self._out_real


@dataclass
class LimiterState:
    """The samples that still wait for their look-ahead, and the reduction at the last one sent."""

    waiting: Float64 = field(default_factory=lambda: np.zeros(LOOKAHEAD_SAMPLES))
    reduction: float = 0.0


class Limiter:
    """Limits frames of `frame_samples`, a multiple of the look-ahead, at 16 kHz.

    The gain needed at a sample is the least of the next 5 ms, so it falls before the peak comes; it
    recovers over 80 ms. No sample leaves above the ceiling, whatever comes in.

    Output is LOOKAHEAD_SAMPLES late: the first frame comes out with that many zeros before it.
    """

    def __init__(self, ceiling_db: float, frame_samples: int) -> None:
        assert frame_samples % LOOKAHEAD_SAMPLES == 0
        # Rounded toward zero, so that no product in float32 ends above the ceiling that was asked.
        exact = 10 ** (ceiling_db / 20)
        near = np.float32(exact)
        self.ceiling = float(near if near <= exact else np.nextafter(near, np.float32(0)))
        decay = math.exp(-1 / (RELEASE_SECONDS * SAMPLE_RATE))
        self._fall = decay ** np.arange(1, frame_samples + 1)
        self._rise = 1 / self._fall

    def push(self, frames: Float64, state: LimiterState) -> Samples:
        """Frames (K, N) float64 -> the (K * N,) samples up to one look-ahead ago."""
        K, N = frames.shape
        if not K:
            return np.zeros(0, np.float32)
        x = np.concatenate([state.waiting, frames.reshape(-1)])
        state.waiting = x[-LOOKAHEAD_SAMPLES:].copy()
        size = np.abs(x)
        if state.reduction == 0.0 and size.max() <= self.ceiling:
            return x[: K * N].astype(np.float32)
        needed = 1.0 - self.ceiling / np.maximum(size, self.ceiling)
        ahead = _leading_max(needed, K * N).reshape(K, N)
        # d[n] = max(ahead[n], d[n - 1] * decay), as a running maximum of values scaled up by decay.
        scaled = np.maximum.accumulate(ahead * self._rise, axis=1)
        for k in range(K):
            np.maximum(scaled[k], state.reduction, out=scaled[k])
            last = float(scaled[k, -1] * self._fall[-1])
            state.reduction = last if last > _NEGLIGIBLE else 0.0
        reduction = scaled * self._fall
        # The scaling rounds: what is needed must not be missed by the last bit.
        gain = 1.0 - np.maximum(reduction, ahead)
        out = x[: K * N] * gain.reshape(-1)
        return np.clip(out, -self.ceiling, self.ceiling).astype(np.float32)


def _leading_max(x: Float64, count: int) -> Float64:
    """The greatest of x[n .. n + LOOKAHEAD_SAMPLES - 1] for the first `count` places n."""
    rows = x.reshape(-1, LOOKAHEAD_SAMPLES)
    forward = np.maximum.accumulate(rows, axis=1).reshape(-1)
    backward = np.maximum.accumulate(rows[:, ::-1], axis=1)[:, ::-1].reshape(-1)
    return np.maximum(backward[:count], forward[LOOKAHEAD_SAMPLES - 1 :][:count])
