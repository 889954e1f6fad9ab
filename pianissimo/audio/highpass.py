"""The 80 Hz high-pass of everything that measures levels: rumble and DC are not speech.

It filters whole frames on an absolute grid, many at a time, and the bits do not depend on how many:
only sums that run from left to right and operations on single numbers are used.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE

CUTOFF_HZ = 80.0

Float64 = npt.NDArray[np.float64]


@dataclass
class HighPassState:
    """What the filter remembers: its resonator and the last two samples; None before the first."""

    real: float = 0.0
    imag: float = 0.0
    last: tuple[float, float] | None = None


class HighPass:
    """Butterworth of order 2, for frames of `frame_samples` at 16 kHz.

    The two poles p and its conjugate make w[n] = Im(p z[n]) / Im(p) out of z[n] = p z[n-1] + u[n],
    where u is the second difference of the input. Inside a frame z is p^n times a running sum of
    p^-m u[m]; a frame is so short that p^-m stays near 1.
    """

    def __init__(self, frame_samples: int, sample_rate: int = SAMPLE_RATE) -> None:
        warped = math.tan(math.pi * CUTOFF_HZ / sample_rate)
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
