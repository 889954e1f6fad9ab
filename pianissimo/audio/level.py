"""How loud a recording is: active speech level, noise, SNR, clipping.

Levels are in dB relative to full scale: 20 log10(rms), so a full-scale sine is at -3.0. The active
speech level follows ITU-T P.56, method B; the robust variant first clips what stands far above the
loud frames, because a click of 5 ms moves the plain one by 15 dB. All results are plain floats.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.filters import HighPass, HighPassState
from pianissimo.errors import AudioValueError

SILENCE_DB = -150.0
"""What stands for the level of digital silence, whose logarithm has no value."""
FRAME_SECONDS = 0.02
MAX_PEAK = 16.0
"""+24 dBFS: no float recording is that hot, but integers that were never scaled are."""

_SMOOTHING_SECONDS = 0.03
_HANGOVER_SECONDS = 0.2
_MARGIN_DB = 15.9
_THRESHOLDS = 25  # 2^0 .. 2^-24: far enough down for float recordings
_FLOOR_PERCENTILE = 10
_LOUD_PERCENTILE = 80
_LOUD_OVER_FLOOR_DB = 6.0
_CLIP_OVER_LOUD_DB = 15.0
_CLICK_OVER_LOUD_DB = 12.0
_CLICK_FRAMES = 3
_FULL_SCALE = 1.0 - 1.5 / 32768
_MAX_SNR_DB = 100.0
# Where P.56 counts noise as speech, the level comes from the power of the loud frames instead.
_MOSTLY_ACTIVE = 0.95
_NOISY_SNR_DB = 15.0
_GATE_OVER_NOISE_DB = 3.0
_MIN_LOUD_FRAMES = 5
_BLOCK = 4096  # of smoothing; g^-4096 is about 5000: scaled sums of positive terms lose nothing

Float64 = npt.NDArray[np.float64]
Samples = npt.NDArray[np.float32]

_NO_SAMPLES = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Levels:
    """What was measured in one stretch of samples; dB relative to full scale.

    `active_db` is the active speech level of P.56, for reports; `speech_db` the robust estimate
    that gains are made from. `noise_db` is the 10th percentile of 20 ms frames, `snr_db` speech
    over noise. `activity` is the share of time that P.56 counts as speech, `clipped` the share of
    samples at full scale. `loud_peak_db` is the peak without isolated clicks. `has_speech` is False
    when nothing rises above the noise, so that no level of speech can be given.
    """

    seconds: float
    active_db: float
    speech_db: float
    rms_db: float
    peak_db: float
    loud_peak_db: float
    noise_db: float
    snr_db: float
    activity: float
    clipped: float
    has_speech: bool


def check_samples(samples: Any, owner: str = "the samples") -> Samples:
    """Return `samples` (n,) as float32 in about [-1, 1], or raise AudioValueError.

    Refuses integers, more than one channel, NaN and infinity, and floats above +24 dBFS, which are
    unscaled integers. Floats somewhat over full scale (+12 dBFS) are fine.
    """
    array = np.asarray(samples)
    if array.dtype.kind != "f":
        raise AudioValueError(
            f"{owner} are of type {array.dtype}, not floating point; "
            "audio.io.from_array scales integers to [-1, 1)"
        )
    if array.ndim != 1:
        raise AudioValueError(
            f"{owner} must be mono, of shape (samples,), but have shape {array.shape}"
        )
    if len(array) == 0:
        return array.astype(np.float32)
    # One pass finds all three: NaN and infinity go through minimum and maximum.
    peak = max(float(array.max()), -float(array.min()))
    if not peak <= MAX_PEAK:
        if not np.isfinite(array).all():
            first = int(np.argmin(np.isfinite(array)))
            raise AudioValueError(
                f"{owner} have a value that is not a finite number at sample {first}; "
                "repair the recording or leave that part out"
            )
        raise AudioValueError(
            f"{owner} reach {peak:.0f} where full scale is 1: they look like integers stored as "
            "floats; export a file again as 16-bit PCM, or, for an array, divide by 32768 for "
            "int16 or pass the integers themselves to from_array"
        )
    return array.astype(np.float32, copy=False)


def check_many(blocks: Sequence[npt.ArrayLike]) -> list[Samples | AudioValueError]:
    """As `check_samples` of each block, or its error; one pass if all of them are usable."""
    arrays = [block for block in blocks if isinstance(block, np.ndarray) and block.ndim == 1]
    mono = [array for array in arrays if array.dtype == np.float32]
    if len(mono) == len(blocks):
        joined = mono[0] if len(mono) == 1 else np.concatenate([_NO_SAMPLES, *mono])
        if not len(joined) or max(float(joined.max()), -float(joined.min())) <= MAX_PEAK:
            return list(mono)
    checked: list[Samples | AudioValueError] = []
    for block in blocks:
        try:
            checked.append(check_samples(block))
        except AudioValueError as error:
            checked.append(error)
    return checked


def decibels(power: float) -> float:
    """10 log10(power), no lower than SILENCE_DB."""
    return max(SILENCE_DB, 10 * math.log10(power)) if power > 0 else SILENCE_DB


def amplitude(db: float) -> float:
    """The factor that `db` decibels stand for."""
    return float(10.0 ** (db / 20))


def rms_level(samples: npt.NDArray[Any]) -> float:
    """The level of the mean power, in dB."""
    power = np.square(samples.astype(np.float64))
    return decibels(float(np.mean(power))) if len(samples) else SILENCE_DB


def peak_level(samples: npt.NDArray[Any]) -> float:
    """The level of the highest sample, in dB."""
    return decibels(float(np.abs(samples).max()) ** 2) if len(samples) else SILENCE_DB


def active_speech_level(samples: Any, sample_rate: int = SAMPLE_RATE) -> tuple[float, float]:
    """Active speech level in dB and activity in 0..1 of samples (n,), as ITU-T P.56, method B.

    Raises AudioValueError for samples that are not usable numbers.
    """
    return _p56(check_samples(samples).astype(np.float64), sample_rate, top=1.0)


def measure_levels(samples: Any, sample_rate: int = SAMPLE_RATE, *, active: bool = True) -> Levels:
    """Everything about the level of samples (n,); also of none, and of digital silence.

    Without `active`, which costs a third of the time, `active_db` and `activity` are those of the
    robust level. Raises AudioValueError for samples that are not usable numbers.
    """
    checked = check_samples(samples)
    raw = checked.astype(np.float64)
    highpass = HighPass(sample_rate // 40, sample_rate)  # without rumble
    padded = np.pad(raw, (0, -len(raw) % (sample_rate // 40)))
    frames = padded.reshape(1, -1, sample_rate // 40)
    x = highpass.push_many(frames, [HighPassState()]).reshape(-1)
    x = x[: len(raw)]
    frames = _frame_levels(x, sample_rate)
    real = frames[frames > SILENCE_DB]  # those of digital silence are padding, not noise
    noise_db = float(np.percentile(real, _FLOOR_PERCENTILE)) if len(real) else SILENCE_DB
    loud = frames[frames > noise_db + _LOUD_OVER_FLOOR_DB]
    # A clip of 0.1 s has five frames in all, so it may show speech with fewer.
    has_speech = len(loud) >= max(1, min(_MIN_LOUD_FRAMES, len(frames) // 3))
    peak_db = decibels(float(np.abs(checked).max(initial=0.0)) ** 2)
    plain = _p56(raw, sample_rate, top=1.0) if active or not len(loud) else None
    clipped = x
    if plain is not None:
        speech_db, busy = plain
    if len(loud):
        loud_db = float(np.percentile(loud, _LOUD_PERCENTILE))
        limit = float(10.0 ** ((loud_db + _CLIP_OVER_LOUD_DB) / 20))
        if frames.max() > loud_db + _CLICK_OVER_LOUD_DB:
            clipped = _without_clicks(x, frames, loud_db, sample_rate)
        clipped = np.clip(clipped, -limit, limit)
        speech_db, busy = _p56(clipped, sample_rate, top=limit)
    active_db, activity = plain or (speech_db, busy)
    snr_db = 0.0
    if has_speech:  # speech over noise, where the level is that of both together
        over = 10 ** ((speech_db - noise_db) / 10) - 1
        snr_db = min(_MAX_SNR_DB, max(-10.0, decibels(over)))
    if has_speech and (busy > _MOSTLY_ACTIVE or snr_db < _NOISY_SNR_DB):
        speech_db = _gated_level(clipped, sample_rate, noise_db)
        snr_db = min(_MAX_SNR_DB, speech_db - noise_db)
    return Levels(
        seconds=len(raw) / sample_rate,
        active_db=active_db,
        speech_db=speech_db,
        rms_db=decibels(float(np.mean(np.square(raw)))) if len(raw) else SILENCE_DB,
        peak_db=peak_db,
        loud_peak_db=decibels(float(np.abs(clipped).max(initial=0.0)) ** 2),
        noise_db=noise_db,
        snr_db=snr_db,
        activity=activity,
        clipped=float(np.mean(np.abs(raw) >= _FULL_SCALE)) if len(raw) else 0.0,
        has_speech=has_speech,
    )


def quietest_point(samples: npt.NDArray[Any], start: int, end: int, window: int) -> int:
    """The middle of the `window` samples with the least energy between `start` and `end`.

    Where to cut speech that does not pause. `end - start` must be at least `window`.
    """
    assert end - start >= window > 0
    power = np.square(samples[start:end].astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(power)])
    return start + int(np.argmin(sums[window:] - sums[:-window])) + window // 2


def _without_clicks(x: Float64, frames: Float64, loud_db: float, sample_rate: int) -> Float64:
    """Frames far above the loud ones, alone or in runs too short for speech, brought down to them.

    Clipping at 15 dB over the loud frames leaves a click of 5 ms the energy of 150 ms of speech: 3
    dB in a short clip.
    """
    over = np.append(frames > loud_db + _CLICK_OVER_LOUD_DB, False).astype(np.int8)
    edges = np.flatnonzero(np.diff(over, prepend=0))
    size = round(FRAME_SECONDS * sample_rate)
    x = x.copy()
    for start, end in edges.reshape(-1, 2):
        if end - start <= _CLICK_FRAMES:
            for k in range(start, end):
                x[k * size : (k + 1) * size] *= amplitude(loud_db - float(frames[k]))
    return x


def _frame_levels(x: Float64, sample_rate: int) -> Float64:
    """Levels in dB of consecutive 20 ms frames; a shorter recording is one frame."""
    size = round(FRAME_SECONDS * sample_rate)
    if not len(x):
        return np.zeros(0)
    if len(x) < size:
        return np.array([decibels(float(np.mean(np.square(x))))])
    power = np.square(x[: len(x) // size * size]).reshape(-1, size).mean(axis=1)
    return np.maximum(10 * np.log10(np.maximum(power, 1e-30)), SILENCE_DB)


def _gated_level(x: Float64, sample_rate: int, noise_db: float) -> float:
    """The mean power of the frames above the noise, without the power of the noise, in dB.

    Measured on speech in noise it is 1 to 2 dB high at 10 dB SNR, 2 to 3 at 5.
    """
    frames = _frame_levels(x, sample_rate)
    above = frames[frames > noise_db + _GATE_OVER_NOISE_DB]
    return decibels(float(np.mean(10 ** (above / 10))) - 10 ** (noise_db / 10))


def _p56(x: Float64, sample_rate: int, top: float) -> tuple[float, float]:
    """Active level in dB and activity; thresholds fall from `top` by factors of two.

    A `top` that scales with the samples makes the result independent of their level; the standard
    has 1.0.
    """
    energy = float(np.sum(np.square(x)))
    if energy <= 0:
        return SILENCE_DB, 0.0
    g = math.exp(-1 / (sample_rate * _SMOOTHING_SECONDS))
    envelope, powers = np.abs(x), g ** np.arange(_BLOCK)
    for _ in range(2):  # y[n] = g y[n-1] + (1 - g) x[n] from rest
        padded = np.pad(envelope, (0, -len(x) % _BLOCK)).reshape(-1, _BLOCK)
        sums, carry = np.cumsum(padded / powers, axis=1), 0.0
        for row in sums:
            row += carry
            carry = float(row[-1]) * g**_BLOCK  # the powers of the next block start again at 1
        envelope = ((1 - g) * sums * powers).reshape(-1)[: len(x)]
    # Active: at or above the threshold now, or at any time during the hangover before. The greatest
    # of the last `size` values is that of two running maxima (van Herk).
    size = round(_HANGOVER_SECONDS * sample_rate) + 1
    rows = np.pad(envelope, (size - 1, -(len(x) + size - 1) % size)).reshape(-1, size)
    forward = np.maximum.accumulate(rows, axis=1).reshape(-1)
    backward = np.maximum.accumulate(rows[:, ::-1], axis=1)[:, ::-1].reshape(-1)
    held = np.maximum(backward[: len(x)], forward[size - 1 : size - 1 + len(x)])
    below = np.ceil(-np.log2(np.maximum(held / top, 1e-30)))
    octaves = np.clip(below, 0, _THRESHOLDS).astype(np.int64)
    counts = np.cumsum(np.bincount(octaves, minlength=_THRESHOLDS + 1))
    previous: tuple[float, float] | None = None
    for j in range(_THRESHOLDS):
        if counts[j] == 0:
            continue
        level = 10 * math.log10(energy / counts[j])
        over = level - 20 * math.log10(top * 2.0**-j)
        if over >= _MARGIN_DB:
            if previous is not None:
                share = (_MARGIN_DB - previous[1]) / (over - previous[1])
                level = previous[0] + share * (level - previous[0])
            break
        previous = level, over
    else:
        level = previous[0] if previous is not None else decibels(energy / len(x))
    return level, min(1.0, energy / len(x) / 10 ** (level / 10))
