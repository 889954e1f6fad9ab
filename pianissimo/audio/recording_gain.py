"""One gain per stretch of a recording: constant for up to 30 s, changed only in pauses.

A recording need not be causal, so its first word gets the right gain already, and inside a stretch
nothing pumps. Longer recordings are cut at the quietest tenth of a second of the last four; what is
held in memory is one stretch, however long the recording.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.agc import FRAME_SAMPLES, Gained, GainReading, amplified
from pianissimo.audio.level import (
    GainMode,
    GainOptions,
    Samples,
    check_samples,
    constant_gain,
    measure_levels,
    quietest_point,
)
from pianissimo.audio.limiter import LOOKAHEAD_SAMPLES, Limiter, LimiterState

STRETCH_SECONDS = 30.0
CUT_SECONDS = 4.0
"""The end of a full stretch in which the place to cut is looked for."""
SHORT_SECONDS = 3.0
"""Too short to measure a level: a last stretch this short keeps the gain before it."""
PAUSE_SECONDS = 0.1

_STRETCH, _CUT, _SHORT, _PAUSE = (
    round(seconds * SAMPLE_RATE)
    for seconds in (STRETCH_SECONDS, CUT_SECONDS, SHORT_SECONDS, PAUSE_SECONDS)
)


@dataclass
class RecordingState:
    """What one recording remembers: its open stretch, the gain of the last one, the limiter."""

    waiting: Samples = field(default_factory=lambda: np.zeros(0, np.float32))
    gain_db: float | None = None
    """None before the first stretch."""
    received: int = 0
    sent: int = 0
    done: int = 0
    """Samples in closed stretches."""
    limiter: LimiterState = field(default_factory=LimiterState)


class RecordingGain:
    """The gain of recordings at 16 kHz. Holds options only; any number of recordings share one.

    Output sample n is input sample n, and blocks of any size give the same bits. Mode "off" passes
    samples through at once, bit by bit.
    """

    def __init__(self, mode: GainMode = "on", options: GainOptions | None = None) -> None:
        self.mode, self.options = mode, options or GainOptions()
        self._limiter = Limiter(self.options.ceiling_db, FRAME_SAMPLES)

    def push(self, samples: npt.ArrayLike, state: RecordingState) -> Gained:
        """Take float samples (n,), any number of them, and return those of closed stretches.

        Raises AudioValueError for NaN, infinity, integers or more than one channel.
        """
        block = check_samples(samples)
        state.received += len(block)
        if self.mode == "off":
            state.sent = state.received
            return Gained(block.copy())
        state.waiting = np.concatenate([state.waiting, block])
        parts, readings = [np.zeros(0, np.float32)], list[GainReading]()
        while len(state.waiting) >= _STRETCH:
            cut = quietest_point(state.waiting, _STRETCH - _CUT, _STRETCH, _PAUSE)
            samples, reading = self._close(cut - cut % FRAME_SAMPLES, state)
            parts.append(samples)
            readings.append(reading)
        return Gained(np.concatenate(parts), tuple(readings))

    def finish(self, state: RecordingState) -> Gained:
        """The last stretch, so that as many samples have left as came."""
        if state.sent == state.received:
            return Gained(np.zeros(0, np.float32))
        parts, readings = list[Samples](), tuple[GainReading, ...]()
        if len(state.waiting):
            samples, reading = self._close(len(state.waiting), state)
            parts, readings = [samples], (reading,)
        tail = self._limiter.push(np.zeros((1, FRAME_SAMPLES)), state.limiter)
        tail = tail[: state.received - state.sent]
        state.sent += len(tail)
        return Gained(np.concatenate([*parts, tail]), readings)

    def _close(self, size: int, state: RecordingState) -> tuple[Samples, GainReading]:
        """Measure the next `size` samples, choose their gain, apply it."""
        stretch, state.waiting = state.waiting[:size], state.waiting[size:].copy()
        levels = measure_levels(stretch, active=False)
        before = state.gain_db
        if before is None or size >= _SHORT:
            state.gain_db = constant_gain(levels, self.mode, self.options)
        gain = 0.0 if state.gain_db is None else state.gain_db
        frames = np.pad(stretch.astype(np.float64), (0, -size % FRAME_SAMPLES))
        frames = frames.reshape(-1, FRAME_SAMPLES)
        gains = [gain if before is None else before] + [gain] * len(frames)
        loud = amplified(frames, gains)
        state.done += size
        reading = GainReading(
            seconds=state.done / SAMPLE_RATE,
            gain_db=gain,
            speech_db=levels.speech_db if levels.has_speech else None,
            noise_db=levels.noise_db,
            speech=levels.has_speech,
            limited=bool(np.abs(loud).max() > self._limiter.ceiling),
        )
        out = self._limiter.push(loud, state.limiter)
        if state.sent == 0:
            out = out[LOOKAHEAD_SAMPLES:]
        out = out[: state.received - state.sent]
        state.sent += len(out)
        return out, reading
