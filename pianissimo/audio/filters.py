"""Filters of the front end: offset removal, the high-pass of level meters, and a peak limiter.

All of them work on an absolute grid, with sums that run from left to right and operations on single
numbers, so the bits do not depend on how a stream was cut into blocks. The caller owns the state.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE

OFFSET_HZ = 10.0
RUMBLE_HZ = 80.0
LOOKAHEAD_SECONDS = 0.005
RELEASE_SECONDS = 0.08
LOOKAHEAD_SAMPLES = round(LOOKAHEAD_SECONDS * SAMPLE_RATE)
STREAMS_TOGETHER = 16
"""Streams that are filtered in one call: their samples of a tenth of a second stay in the cache."""

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
    """As `remove_offsets` of one block (n,) of one stream."""
    return remove_offsets([samples], [state])[0]


def remove_offsets(blocks: Sequence[Samples], states: Sequence[OffsetState]) -> list[Samples]:
    """One block (n,) at 16 kHz of each stream without its constant part, n >= 0.

    Cheap microphones add an offset, and a gain for soft speech multiplies it. This is a high-pass
    of first order at 10 Hz, y[n] = r y[n-1] + x[n] - x[n-1]. Inside a stretch of samples it is r^n
    times a running sum of r^-m (x[m] - x[m-1]). A constant input gives exact zeros. The bits of a
    stream do not depend on the others.

    The first sample counts as if it had been there for ever, so that an offset makes no step.
    """
    if not blocks:
        return []
    if len(blocks) > STREAMS_TOGETHER:
        some, rest = slice(STREAMS_TOGETHER), slice(STREAMS_TOGETHER, None)
        return remove_offsets(blocks[some], states[some]) + remove_offsets(
            blocks[rest], states[rest]
        )
    # One row per stream; the first column is the beginning of its current stretch.
    first = min(state.place for state in states)
    last = max(state.place + len(block) for block, state in zip(blocks, states, strict=True))
    sums, out = np.zeros((len(blocks), last)), np.empty((len(blocks), last), np.float32)
    for i, (block, state) in enumerate(zip(blocks, states, strict=True)):
        if len(block):
            before, place = block[0] if state.last is None else state.last, state.place
            sums[i, place] = float(block[0]) - float(before)
            np.subtract(
                block[1:],
                block[:-1],
                out=sums[i, place + 1 : place + len(block)],
                dtype=np.float64,
            )
            state.last = float(block[-1])
    ends = [state.place + len(block) for block, state in zip(blocks, states, strict=True)]
    totals = [state.total for state in states]
    for start in range(0, last, _STRETCH):
        begin, end = (first if start == 0 else 0), min(_STRETCH, last - start)
        part = sums[:, start + begin : start + end]
        part *= _GROW[begin:end]
        for i, state in enumerate(states):
            if start < ends[i] and len(blocks[i]):
                part[i, state.place - begin if start == 0 else 0] += totals[i]
        np.add.accumulate(part, axis=1, out=part)
        filtered = part * _SHRINK[begin:end]
        out[:, start + begin : start + end] = filtered
        if end == _STRETCH:
            totals = filtered[:, -1].tolist()
    samples = []
    for i, (state, end) in enumerate(zip(states, ends, strict=True)):
        samples.append(out[i, state.place : end])
        if end > state.place:
            whole = end % _STRETCH == 0
            state.total = totals[i] if whole else float(sums[i, end - 1])
            state.place = end % _STRETCH
    return samples


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

    def push_many(self, frames: Float64, states: Sequence[HighPassState]) -> Float64:
        """Frames (S, K, frame_samples) of S streams, float64 -> the same shape, filtered."""
        S, K, N = frames.shape
        if not K:
            return frames
        x = np.empty((S, 2 + K * N))
        x[:, 2:] = frames.reshape(S, K * N)
        for i, state in enumerate(states):
            if state.last is None:  # as if the first sample had been there for ever: no step
                state.last = (float(x[i, 2]), float(x[i, 2]))
            x[i, 0], x[i, 1] = state.last
        change = x[:, 1:] - x[:, :-1]
        u = (change[:, 1:] - change[:, :-1]).reshape(S, K, N)
        real, imag = u * self._in_real, u
        imag *= self._in_imag
        for sums in (real, imag):
            np.add.accumulate(sums, axis=2, out=sums)
        carried_real, carried_imag = [], []
        ends = zip(states, real[:, :, -1].tolist(), imag[:, :, -1].tolist(), strict=True)
        pole, advance = self._pole, self._advance
        for state, ends_real, ends_imag in ends:
            z = complex(state.real, state.imag)
            for end_real, end_imag in zip(ends_real, ends_imag, strict=True):
                z = pole * z
                carried_real.append(z.real)
                carried_imag.append(z.imag)
                z = advance * (z + complex(end_real, end_imag)) / pole
            state.real, state.imag = z.real, z.imag
        for state, (before, last) in zip(states, x[:, -2:].tolist(), strict=True):
            state.last = (before, last)
        real += np.array(carried_real).reshape(S, K, 1)
        imag += np.array(carried_imag).reshape(S, K, 1)
        real *= self._out_imag
        imag *= self._out_real
        real += imag
        return real


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

    def push_many(self, frames: Float64, states: Sequence[LimiterState]) -> Samples:
        """Frames (S, K, N) of S streams, float64 -> the (S, K * N) samples up to one look-ahead
        ago."""
        S, K, N = frames.shape
        if not K:
            return np.zeros((S, 0), np.float32)
        x = np.empty((S, LOOKAHEAD_SAMPLES + K * N))
        x[:, LOOKAHEAD_SAMPLES:] = frames.reshape(S, K * N)
        for i, state in enumerate(states):
            x[i, :LOOKAHEAD_SAMPLES] = state.waiting
            state.waiting = x[i, -LOOKAHEAD_SAMPLES:].copy()
        out = x[:, : K * N].astype(np.float32)
        highest, lowest = x.max(axis=1).tolist(), x.min(axis=1).tolist()
        for i, state in enumerate(states):
            if state.reduction != 0.0 or max(highest[i], -lowest[i]) > self.ceiling:
                out[i] = self._limited(x[i], K, N, state)
        return out

    def _limited(self, x: Float64, K: int, N: int, state: LimiterState) -> Samples:
        """Samples (K * N,) of one stream, held down where they need it."""
        size = np.abs(x)
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
