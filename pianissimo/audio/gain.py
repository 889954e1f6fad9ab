"""The gain of live streams and of recordings: quiet speech reaches the level of the models.

A live stream (`StreamGain`) is causal and its gain follows the speech:

frames of 10 ms ─> 80 Hz high-pass ─> energy ─┬─> noise floor ─┬─> speech? ─> level ─> wanted gain
                                              └────────────────┘                          │
samples ──────────────────────────────────────────────> x gain, slewed <──────────────────┘
                                                            └─> limiter with 5 ms look-ahead ─> out

The level is the 80th percentile of the last 3 s of speech, not a mean, so that pauses, clicks and a
change of talker do not pump.

A recording (`RecordingGain`) has one gain per stretch of up to 30 s, changed only in pauses, so the
first word has the right gain and nothing pumps inside a stretch. Longer recordings are cut at the
quietest tenth of a second of the last four; one stretch is held in memory.

Both work on an absolute grid of frames: blocks of any size give the same bits. The caller owns the
state of a stream or recording, which is made of numbers and arrays.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.filters import (
    LOOKAHEAD_SAMPLES,
    STREAMS_TOGETHER,
    HighPass,
    HighPassState,
    Limiter,
    LimiterState,
)
from pianissimo.audio.level import Levels, Samples, check_samples, measure_levels, quietest_point
from pianissimo.errors import OptionError

GainMode = Literal["auto", "on", "off"]
GAIN_MODES: tuple[GainMode, ...] = ("auto", "on", "off")

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
_LOWEST_SPEECH_DB = -78.0  # soft syllables of speech whose peaks are at -50 dBFS
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


@dataclass(frozen=True)
class GainOptions:
    """What the gain aims at. All in dB.

    `target_db` is the active speech level to reach; `min_gain_db` and `max_gain_db` bound the gain;
    `noise_out_db` is the level to which background noise may be raised at most; `ceiling_db` the
    highest sample that leaves. Mode "auto" acts only on speech below `auto_below_db` or above
    `auto_above_db`. Raises OptionError for bounds that contradict each other.
    """

    target_db: float = -26.0
    min_gain_db: float = -12.0
    max_gain_db: float = 40.0
    noise_out_db: float = -40.0
    ceiling_db: float = -1.0
    auto_below_db: float = -36.0
    auto_above_db: float = -10.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in vars(self).values()):
            raise OptionError(f"gain options must be finite numbers of dB, not {self}")
        if not self.min_gain_db <= 0 <= self.max_gain_db:
            raise OptionError(
                "min_gain_db must be at most 0 and max_gain_db at least 0, "
                f"not {self.min_gain_db} and {self.max_gain_db}"
            )
        if self.ceiling_db > 0 or not self.auto_below_db < self.target_db < self.auto_above_db:
            raise OptionError(
                "ceiling_db must not be above 0, and target_db must lie between auto_below_db and "
                f"auto_above_db, not {self}"
            )


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
        continue with the next samples as if that push had not happened.
        """
        return self.push_many([check_samples(samples)], [state])[0]

    def push_many(self, blocks: Sequence[Samples], states: Sequence[GainState]) -> list[Gained]:
        """As `push` of one block (n,) of each of several streams, with the same bits.

        It takes a fraction of the time of one by one. The blocks must be what `check_samples`
        returns.
        """
        gained = [Gained(np.zeros(0, np.float32))] * len(blocks)
        same_count: dict[int, list[int]] = {}
        for i, (block, state) in enumerate(zip(blocks, states, strict=True)):
            state.received += len(block)
            if self.mode == "off":
                state.sent = state.received
                gained[i] = Gained(block.copy())
                continue
            count = (len(state.rest) + len(block)) // FRAME_SAMPLES
            if count:
                same_count.setdefault(count, []).append(i)
            else:
                state.rest = np.concatenate([state.rest, block])
        for count, members in same_count.items():
            for start in range(0, len(members), STREAMS_TOGETHER):
                some = members[start : start + STREAMS_TOGETHER]
                frames = np.empty((len(some), count * FRAME_SAMPLES))
                for row, i in zip(frames, some, strict=True):
                    rest, block = states[i].rest, blocks[i]
                    used = len(row) - len(rest)
                    row[: len(rest)] = rest
                    row[len(rest) :] = block[:used]
                    states[i].rest = block[used:].astype(np.float64)
                found = self._push_frames(
                    frames.reshape(-1, count, FRAME_SAMPLES), [states[i] for i in some]
                )
                for i, ready in zip(some, found, strict=True):
                    gained[i] = ready
        return gained

    def _push_frames(self, frames: Float64, states: Sequence[GainState]) -> list[Gained]:
        """Complete frames (S, K, 160) of S streams."""
        filtered = self._highpass.push_many(frames, [state.highpass for state in states])
        filtered *= filtered
        powers = np.add.accumulate(filtered, axis=2)[:, :, -1] / FRAME_SAMPLES
        before: list[float] = []
        after: list[float] = []
        readings = []
        for row, state in zip(powers.tolist(), states, strict=True):
            before.append(state.gain_db)
            gains, moments = self._follow(
                [10 * math.log10(power + _QUIETEST) for power in row], state
            )
            before += gains[:-1]
            after += gains
            readings.append(moments)
        loud = amplified(frames.reshape(-1, FRAME_SAMPLES), before, after)
        return self._send(loud.reshape(frames.shape), readings, states)

    def finish(self, state: GainState) -> Gained:
        """The samples that still wait, so that as many have left as came."""
        missing = state.received - state.sent
        if not missing:
            return Gained(np.zeros(0, np.float32))
        # The unfinished frame, and silence for the limiter to look at; the gain stays as it is.
        frames = np.zeros((2, FRAME_SAMPLES))
        frames.reshape(-1)[: len(state.rest)] = state.rest
        state.rest = np.zeros(0)
        gains = [state.gain_db] * 2
        [gained] = self._send(amplified(frames, gains, gains)[None], [[]], [state])
        return Gained(gained.samples[:missing])

    def _send(
        self,
        frames: Float64,
        readings: Sequence[Sequence[tuple[int, GainReading]]],
        states: Sequence[GainState],
    ) -> list[Gained]:
        """Frames (S, K, 160) through the limiter; without the zeros that it puts before the first
        sample. Readings come with the place of their frame."""
        ceiling, gained = self._limiter.ceiling, []
        over = np.maximum(frames.max(axis=2), -frames.min(axis=2)) > ceiling
        limited = self._limiter.push_many(frames, [state.limiter for state in states])
        any_over = over.any(axis=1).tolist()
        for i, (state, moments) in enumerate(zip(states, readings, strict=True)):
            done, complete = 0, []
            for k, reading in moments:
                held = state.limited or bool(over[i, done : k + 1].any())
                complete.append(replace(reading, limited=held))
                state.limited, done = False, k + 1
            if any_over[i]:
                state.limited = state.limited or bool(over[i, done:].any())
            skipped = LOOKAHEAD_SAMPLES if state.sent == 0 else 0
            samples = limited[i, skipped:][: state.received - state.sent]
            state.sent += len(samples)
            gained.append(Gained(samples, tuple(complete)))
        return gained

    def _follow(
        self, energies: Sequence[float], state: GainState
    ) -> tuple[list[float], list[tuple[int, GainReading]]]:
        """Frames of one stream by their energy in dB: each updates the noise floor and the speech
        level, chooses the gain to aim at, and moves toward it by at most one frame's slew.

        Returns the gain at the end of each frame, and the readings with the place of their frame.
        """
        if not state.started:
            state.started, state.energy_db, state.noise_db = True, energies[0], energies[0]
        smoothed, noise, gain, held = state.energy_db, state.noise_db, state.gain_db, state.held_db
        speech, hangover, frames = state.speech, state.hangover, state.frames
        noise_out_db, gains, moments = self.options.noise_out_db, [], []
        for k, energy in enumerate(energies):
            smoothed += _ENERGY_SHARE * (energy - smoothed)
            if smoothed > noise:
                risen = noise + _NOISE_RISE_DB
                noise = risen if risen < smoothed else smoothed
            else:
                noise += _NOISE_SHARE * (smoothed - noise)
            over = smoothed - noise
            if over > (_STAY_DB if speech else _ON_DB) and smoothed > _LOWEST_SPEECH_DB:
                hangover = _HANGOVER_FRAMES
            elif hangover:
                hangover -= 1
            speech = hangover > 0
            cap = noise_out_db - noise
            if cap < 0.0:
                cap = 0.0
            if speech:
                state.heard_speech = True
                if over > _STAY_DB:
                    _remember(energy, state)
                held = self._aim(held, cap, state)
            if held > cap:
                held = cap
            distance = held - gain
            if distance < 0:
                gain += distance if distance > -_FALL else -_FALL
            elif distance > 0 and speech:
                fast = distance > _FAR_DB or state.speech_frames <= _FIRST_FRAMES
                rise = _FAST_RISE if fast else _RISE
                gain += distance if distance < rise else rise
            gains.append(gain)
            frames += 1
            if frames % READING_FRAMES == 0:
                level = _speech_level(state.ranked) if state.ranked else None
                seconds, heard = frames * FRAME_SECONDS, state.heard_speech
                moments.append((k, GainReading(seconds, gain, level, noise, heard, False)))
                state.heard_speech = False
        state.energy_db, state.noise_db, state.gain_db, state.held_db = smoothed, noise, gain, held
        state.speech, state.hangover, state.frames = speech, hangover, frames
        return gains, moments

    def _aim(self, held: float, cap: float, state: GainState) -> float:
        """The gain to aim at during speech; `held` while the wanted one is in the dead zone."""
        count = state.speech_frames
        if count < _FRAMES_BEFORE_GAIN:
            return held
        options, level, acts = self.options, _speech_level(state.ranked), True
        if self.mode == "auto":
            acts = state.acting or count >= _FRAMES_BEFORE_AUTO
            if acts:
                margin = _AUTO_HYSTERESIS_DB if state.acting else 0.0
                low, high = options.auto_below_db + margin, options.auto_above_db - margin
                acts = state.acting = not low <= level <= high
        want = 0.0
        if acts:
            want = min(max(options.target_db - level, options.min_gain_db), options.max_gain_db)
        if want > cap:
            want = cap
        moves = count <= _FIRST_FRAMES or abs(want - held) > self.dead_zone_db
        return want if moves else held


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
        [tail] = self._limiter.push_many(np.zeros((1, 1, FRAME_SAMPLES)), [state.limiter])
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
        first = gain if before is None else before
        loud = amplified(frames, [first] + [gain] * (len(frames) - 1), [gain] * len(frames))
        state.done += size
        reading = GainReading(
            seconds=state.done / SAMPLE_RATE,
            gain_db=gain,
            speech_db=levels.speech_db if levels.has_speech else None,
            noise_db=levels.noise_db,
            speech=levels.has_speech,
            limited=bool(np.abs(loud).max() > self._limiter.ceiling),
        )
        [out] = self._limiter.push_many(loud[None], [state.limiter])
        if state.sent == 0:
            out = out[LOOKAHEAD_SAMPLES:]
        out = out[: state.received - state.sent]
        state.sent += len(out)
        return out, reading


def constant_gain(
    levels: Levels, mode: GainMode = "on", options: GainOptions | None = None
) -> float:
    """The one gain in dB that brings this stretch of speech to the target level.

    It never raises noise above `noise_out_db`, nor a recording without speech at all. Isolated
    peaks do not lower it: they are for the limiter.
    """
    options = options or GainOptions()
    if mode == "off" or not levels.has_speech:
        return 0.0
    if mode == "auto" and options.auto_below_db <= levels.speech_db <= options.auto_above_db:
        return 0.0
    wanted = options.target_db - levels.speech_db
    gain = min(max(wanted, options.min_gain_db), options.max_gain_db)
    gain = min(gain, max(0.0, options.noise_out_db - levels.noise_db))
    return min(gain, options.ceiling_db - levels.loud_peak_db)


def amplified(frames: Float64, before: Sequence[float], after: Sequence[float]) -> Float64:
    """Frames (K, 160) times a gain that goes from before[k] to after[k] dB, evenly in dB."""
    out = frames * np.array([10.0 ** (gain / 20) for gain in after]).reshape(-1, 1)
    moving = [k for k in range(len(frames)) if before[k] != after[k]]
    if moving:
        start = np.array([[before[k]] for k in moving])
        end = np.array([[after[k]] for k in moving])
        out[moving] = frames[moving] * np.exp((start + (end - start) * _RAMP) * _NEPERS_PER_DB)
    return out


def _remember(energy: float, state: GainState) -> None:
    """Count a frame of speech among the last ones."""
    state.speech_frames += 1
    if len(state.levels) == _LEVEL_FRAMES:
        oldest = state.levels.pop(0)
        del state.ranked[bisect_left(state.ranked, oldest)]
    state.levels.append(energy)
    insort(state.ranked, energy)


def _speech_level(ranked: Sequence[float]) -> float:
    """The active speech level from sorted energies: their 80th percentile, less its bias."""
    place = _LEVEL_SHARE * (len(ranked) - 1)
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    percentile = ranked[below] + (place - below) * (ranked[above] - ranked[below])
    return percentile - _LEVEL_OVER_ACTIVE_DB
