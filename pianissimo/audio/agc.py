"""Streaming gain: quiet talkers become as loud as the recognizer expects, noise does not.

frames of 10 ms ─> 80 Hz high-pass ─> energy ─┬─> noise floor ─┬─> speech? ─> level ─> wanted gain
                                              └────────────────┘                          │
samples ──────────────────────────────────────────────> x gain, slewed <──────────────────┘
                                                            └─> limiter with 5 ms look-ahead ─> out

The level comes from the 80th percentile of the last 3 s of speech, not from a mean, so that pauses,
clicks and a change of talker do not pump. Everything happens on an absolute grid of frames: a
stream cut into blocks of any size gives the same bits. What a stream remembers is a `GainState`,
made of numbers and arrays, owned by the caller.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.highpass import HighPass, HighPassState
from pianissimo.audio.level import GainMode, GainOptions, Samples, check_samples
from pianissimo.audio.limiter import LOOKAHEAD_SAMPLES, Limiter, LimiterState
from pianissimo.errors import OptionError

FRAME_SAMPLES = 160
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
READING_FRAMES = 100

Float64 = npt.NDArray[np.float64]

_NEPERS_PER_DB = math.log(10) / 20
_RAMP = np.arange(1, FRAME_SAMPLES + 1) / FRAME_SAMPLES
_QUIETEST = 1e-12  # mean power that stands for silence: -120 dB
_ENERGY_SHARE = 1 - math.exp(-FRAME_SECONDS / 0.03)
_NOISE_RISE_DB = 3.0 * FRAME_SECONDS
_NOISE_SHARE = 1 - math.exp(-FRAME_SECONDS / 0.05)
_ON_DB, _STAY_DB = 9.0, 6.0
_LOWEST_SPEECH_DB = -75.0
_HANGOVER_FRAMES = 20
_LEVEL_FRAMES = 300
_LEVEL_SHARE = 0.8
# How far that percentile stands above the active speech level: the mean over 81 recordings of
# several corpora, deviation 1.2 dB. Without it streams end up softer than recordings.
_LEVEL_OVER_ACTIVE_DB = 2.3
_FRAMES_BEFORE_GAIN = 5
_FRAMES_BEFORE_AUTO = 30  # the onset of a word says little about its level
_FIRST_FRAMES = 100  # of speech, in which the gain follows faster and without dead zone
_FAST_RISE, _RISE, _FALL = (rate * FRAME_SECONDS for rate in (40.0, 6.0, 80.0))
_FAR_DB = 9.0
# Mode auto, once it acts, acts until the level is clearly back inside its range.
_AUTO_HYSTERESIS_DB = 6.0


@dataclass(frozen=True)
class GainReading:
    """What the gain did in one second: dB. `speech_db` is None before any speech was heard."""

    seconds: float
    """Since the beginning of the stream, at the end of this second."""
    gain_db: float
    speech_db: float | None
    noise_db: float
    speech: bool
    """Whether any of it was taken for speech."""
    limited: bool
    """Whether a peak was held down."""


@dataclass(frozen=True)
class Gained:
    """Samples (n,) that are ready, and the readings of the seconds that ended in them."""

    samples: Samples
    readings: tuple[GainReading, ...] = ()


@dataclass
class GainState:
    """What one stream remembers. Numbers, lists and arrays only, so it can be stored and moved."""

    gain_db: float = 0.0
    held_db: float = 0.0
    """The gain aimed at, held while the wanted one stays within the dead zone."""
    started: bool = False
    energy_db: float = 0.0
    noise_db: float = 0.0
    speech: bool = False
    hangover: int = 0
    speech_frames: int = 0
    levels: list[float] = field(default_factory=list)
    """Energies of the last 300 frames of speech, oldest first."""
    ranked: list[float] = field(default_factory=list)
    """The same, lowest first."""
    acting: bool = False
    """Mode auto: the level left its range and the gain acts."""
    frames: int = 0
    received: int = 0
    sent: int = 0
    heard_speech: bool = False
    limited: bool = False
    rest: Float64 = field(default_factory=lambda: np.zeros(0))
    """Samples of the frame that is not complete."""
    highpass: HighPassState = field(default_factory=HighPassState)
    limiter: LimiterState = field(default_factory=LimiterState)


class StreamGain:
    """The gain of live streams at 16 kHz. Holds options only; any number of streams share one.

    Output sample n is input sample n: nothing shifts in time, but the last 5 to 15 ms come out
    with the next push or with `finish`. `dead_zone_db` keeps the gain still while the wanted one
    differs by no more. Mode "off" passes samples through at once, bit by bit.
    """

    def __init__(
        self,
        mode: GainMode = "on",
        options: GainOptions | None = None,
        *,
        dead_zone_db: float = 3.0,
    ) -> None:
        if not 0 <= dead_zone_db < math.inf:
            raise OptionError(f"dead_zone_db must be 0 or more, not {dead_zone_db}")
        self.mode, self.options, self.dead_zone_db = mode, options or GainOptions(), dead_zone_db
        self._highpass = HighPass(FRAME_SAMPLES)
        self._limiter = Limiter(self.options.ceiling_db, FRAME_SAMPLES)

    def start(self, gain_db: float = 0.0) -> GainState:
        """The state of a stream that has heard nothing.

        `gain_db` is where the last stream of the same device ended: with it the first word is not
        too quiet. Raises OptionError outside the bounds of the options.
        """
        low, high = self.options.min_gain_db, self.options.max_gain_db
        if not low <= gain_db <= high:
            raise OptionError(f"a gain of {gain_db} dB is not within {low} to {high} dB")
        if self.mode == "off":
            gain_db = 0.0
        return GainState(gain_db=gain_db, held_db=gain_db, acting=gain_db != 0.0)

    def push(self, samples: npt.ArrayLike, state: GainState) -> Gained:
        """Take float samples (n,), any number of them, and return those that are ready.

        Raises AudioValueError for NaN, infinity, integers or more than one channel; the stream can
        go on with the next samples as if that push had not been.
        """
        block = check_samples(samples)
        state.received += len(block)
        if self.mode == "off":
            state.sent = state.received
            return Gained(block.copy())
        x = np.concatenate([state.rest, block])
        whole = len(x) - len(x) % FRAME_SAMPLES
        state.rest = x[whole:].copy()
        frames = x[:whole].reshape(-1, FRAME_SAMPLES)
        filtered = self._highpass.push(frames, state.highpass)
        powers = np.add.accumulate(filtered * filtered, axis=1)[:, -1] / FRAME_SAMPLES
        gains = [state.gain_db]
        moments: list[tuple[int, GainReading]] = []
        for k, power in enumerate(powers.tolist()):
            self._follow(10 * math.log10(power + _QUIETEST), state)
            gains.append(state.gain_db)
            state.frames += 1
            if state.frames % READING_FRAMES == 0:
                reading = GainReading(
                    seconds=state.frames * FRAME_SECONDS,
                    gain_db=state.gain_db,
                    speech_db=_level(state.ranked) if state.ranked else None,
                    noise_db=state.noise_db,
                    speech=state.heard_speech,
                    limited=False,
                )
                state.heard_speech = False
                moments.append((k, reading))
        return self._send(amplified(frames, gains), moments, state)

    def finish(self, state: GainState) -> Gained:
        """The samples that still wait, so that as many have left as came."""
        missing = state.received - state.sent
        if not missing:
            return Gained(np.zeros(0, np.float32))
        # The unfinished frame, and silence for the limiter to look at; the gain stays as it is.
        frames = np.zeros((2, FRAME_SAMPLES))
        frames.reshape(-1)[: len(state.rest)] = state.rest
        state.rest = np.zeros(0)
        gained = self._send(amplified(frames, [state.gain_db] * 3), [], state)
        return Gained(gained.samples[:missing])

    def _send(
        self, frames: Float64, moments: Sequence[tuple[int, GainReading]], state: GainState
    ) -> Gained:
        """Through the limiter; without the zeros that it puts before the first sample."""
        over = (np.abs(frames).max(axis=1, initial=0.0) > self._limiter.ceiling).tolist()
        readings, done = [], 0
        for k, reading in moments:
            limited = state.limited or any(over[done : k + 1])
            readings.append(replace(reading, limited=limited))
            state.limited, done = False, k + 1
        state.limited = state.limited or any(over[done:])
        samples = self._limiter.push(frames, state.limiter)
        if state.sent == 0 and len(samples):
            samples = samples[LOOKAHEAD_SAMPLES:]
        samples = samples[: state.received - state.sent]
        state.sent += len(samples)
        return Gained(samples, tuple(readings))

    def _follow(self, energy: float, state: GainState) -> None:
        """One frame: update the noise floor and the speech level from its `energy` in dB, choose
        the gain to aim at, and move toward it by at most one frame's slew."""
        if not state.started:
            state.started = True
            state.energy_db = state.noise_db = energy
        state.energy_db += _ENERGY_SHARE * (energy - state.energy_db)
        smoothed = state.energy_db
        if smoothed > state.noise_db:
            state.noise_db = min(state.noise_db + _NOISE_RISE_DB, smoothed)
        else:
            state.noise_db += _NOISE_SHARE * (smoothed - state.noise_db)
        over = smoothed - state.noise_db
        loud = over > (_STAY_DB if state.speech else _ON_DB) and smoothed > _LOWEST_SPEECH_DB
        state.hangover = _HANGOVER_FRAMES if loud else max(0, state.hangover - 1)
        state.speech = state.hangover > 0
        if state.speech:
            state.heard_speech = True
            if over > _STAY_DB:
                state.speech_frames += 1
                if len(state.levels) == _LEVEL_FRAMES:
                    oldest = state.levels.pop(0)
                    del state.ranked[bisect_left(state.ranked, oldest)]
                state.levels.append(energy)
                insort(state.ranked, energy)
        options = self.options
        cap = max(0.0, options.noise_out_db - state.noise_db)
        early = state.speech_frames <= _FIRST_FRAMES
        if state.speech and state.speech_frames >= _FRAMES_BEFORE_GAIN:
            level, acts = _level(state.ranked), True
            if self.mode == "auto":
                acts = state.acting or state.speech_frames >= _FRAMES_BEFORE_AUTO
                if acts:
                    margin = _AUTO_HYSTERESIS_DB if state.acting else 0.0
                    low, high = options.auto_below_db + margin, options.auto_above_db - margin
                    acts = state.acting = not low <= level <= high
            want = 0.0
            if acts:
                want = min(max(options.target_db - level, options.min_gain_db), options.max_gain_db)
            want = min(want, cap)
            if early or abs(want - state.held_db) > self.dead_zone_db:
                state.held_db = want
        state.held_db = min(state.held_db, cap)
        distance = state.held_db - state.gain_db
        if distance < 0:
            state.gain_db += max(distance, -_FALL)
        elif state.speech:
            fast = early or distance > _FAR_DB
            state.gain_db += min(distance, _FAST_RISE if fast else _RISE)


def amplified(frames: Float64, gains: Sequence[float]) -> Float64:
    """Frames (K, 160) times a gain that goes from gains[k] to gains[k + 1] dB, evenly in dB."""
    out = frames * np.array([10.0 ** (gain / 20) for gain in gains[1:]]).reshape(-1, 1)
    moving = [k for k in range(len(frames)) if gains[k] != gains[k + 1]]
    if moving:
        before = np.array([[gains[k]] for k in moving])
        after = np.array([[gains[k + 1]] for k in moving])
        out[moving] = frames[moving] * np.exp((before + (after - before) * _RAMP) * _NEPERS_PER_DB)
    return out


def _level(ranked: Sequence[float]) -> float:
    """The active speech level from sorted energies: their 80th percentile, less its bias."""
    place = _LEVEL_SHARE * (len(ranked) - 1)
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    percentile = ranked[below] + (place - below) * (ranked[above] - ranked[below])
    return percentile - _LEVEL_OVER_ACTIVE_DB
