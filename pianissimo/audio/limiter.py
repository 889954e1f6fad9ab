"""A look-ahead limiter: no sample leaves above the ceiling, whatever comes in.

The gain needed at a sample is the least of the next 5 ms, so it falls before the peak comes; it
recovers over 80 ms. Everything is minima, maxima and products on an absolute grid of frames, so the
bits do not depend on how the stream was cut into blocks.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE

LOOKAHEAD_SECONDS = 0.005
RELEASE_SECONDS = 0.08
LOOKAHEAD_SAMPLES = round(LOOKAHEAD_SECONDS * SAMPLE_RATE)

Float64 = npt.NDArray[np.float64]
Samples = npt.NDArray[np.float32]

# A reduction that has recovered to within 0.0001 dB ends, so that quiet passages stay untouched.
_NEGLIGIBLE = 1e-5


@dataclass
class LimiterState:
    """The samples that still wait for their look-ahead, and the reduction at the last one sent."""

    waiting: Float64 = field(default_factory=lambda: np.zeros(LOOKAHEAD_SAMPLES))
    reduction: float = 0.0


class Limiter:
    """Limits frames of `frame_samples`, a multiple of the look-ahead, at 16 kHz.

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
