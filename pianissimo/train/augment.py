"""Augmentation of training audio: speed, color, room, noise, line, level, and spectral masks.

Waveform transforms map (N,) float32 samples at 16 kHz to such samples and draw from a given
generator, so a seed determines the result.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pianissimo.audio import simulate
from pianissimo.audio.features import hz_to_mel, mel_to_hz
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.level import active_speech_level, amplitude
from pianissimo.audio.simulate import Background, Codec, Float64
from pianissimo.errors import OptionError

Samples = NDArray[np.float32]

COLOR_HZ = (60.0, 250.0, 700.0, 1500.0, 3000.0, 8000.0)
"""The corners of a drawn frequency response; between them it is linear in octaves."""
LINE_LOW_HZ = (0.0, 100.0, 200.0, 300.0)
LINE_HIGH_HZ = (3300.0, 4000.0)
"""Band edges of telephone lines and of 8 kHz recorders, which often keep low frequencies."""

LEAST_KEPT_SECONDS = 0.12
"""A late start that would leave less than this is not applied."""


@dataclass(frozen=True)
class Augmenter:
    """Random transforms of a waveform, each with its probability or range.

    `speeds` change tempo and pitch together; `gain_db` and `snr_db` are uniform ranges in dB;
    `rt60_seconds` the reverberation time of a synthetic room; `color_db` bounds the frequency
    response of a microphone; `late_db` is the level below the loudest 10 ms at which a
    voice-activated recorder starts and stops. `level_dbfs` is a range for the RMS level of the
    speech and replaces `gain_db`.
    """

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    gain_db: tuple[float, float] = (-25.0, 6.0)
    noise_probability: float = 0.4
    snr_db: tuple[float, float] = (5.0, 35.0)
    room_probability: float = 0.3
    rt60_seconds: tuple[float, float] = (0.1, 0.6)
    telephone_probability: float = 0.15
    pad_seconds: tuple[float, float] = (0.0, 0.4)
    pad_probability: float = 0.5
    level_dbfs: tuple[float, float] | None = None
    color_probability: float = 0.0
    color_db: float = 8.0
    late_probability: float = 0.0
    late_db: tuple[float, float] = (-32.0, -12.0)

    def __call__(self, samples: Samples, rng: random.Random) -> Samples:
        samples = change_speed(samples, rng.choice(self.speeds))
        if rng.random() < self.color_probability:
            samples = color(samples, self.color_db, rng)
        if rng.random() < self.room_probability:
            samples = reverberate(samples, rng.uniform(*self.rt60_seconds), rng)
        line = None
        if rng.random() < self.telephone_probability:
            line = rng.choice(LINE_LOW_HZ), rng.uniform(*LINE_HIGH_HZ)
            samples = telephone_band(samples, *line)
        if rng.random() < self.late_probability:
            kept = cut_weak_ends(samples, rng.uniform(*self.late_db))
            samples = kept if len(kept) > LEAST_KEPT_SECONDS * SAMPLE_RATE else samples
        speech_power = float(np.mean(samples**2)) if len(samples) else 0.0
        if rng.random() < self.pad_probability:
            before, after = (
                np.zeros(round(rng.uniform(*self.pad_seconds) * SAMPLE_RATE), np.float32)
                for _ in range(2)
            )
            samples = np.concatenate([before, samples, after])
        if rng.random() < self.noise_probability:
            tilt = rng.choice((0.0, 0.5, 1.0))
            samples = add_noise(samples, rng.uniform(*self.snr_db), tilt, rng)
        if line is not None:
            samples = telephone_band(samples, *line)  # the line limits the noise as well
        if self.level_dbfs is None:
            return change_level(samples, rng.uniform(*self.gain_db))
        level_dbfs = 10 * math.log10(speech_power + 1e-10)
        return change_level(samples, rng.uniform(*self.level_dbfs) - level_dbfs)


@dataclass(frozen=True)
class QuietAugmenter:
    """The degradations of QuietBench at random: room, noise, line, gain, 16 bits.

    `responses` are the rooms to draw from, see `simulate.draw_responses`; without them there is no
    room. At least `low_snr_share` of the clips get noise at `low_snr_db` below their active speech
    level, a further `noise_share` at `snr_db`, the others none. `gain_db` is the gain of the whole
    clip. Ranges are uniform, in dB. Raises OptionError for invalid shares.
    """

    responses: tuple[Float64, ...] = ()
    room_probability: float = 0.5
    backgrounds: tuple[Background, ...] = ("hvac", "diffuse", "floor", "music")
    low_snr_share: float = 0.2
    low_snr_db: tuple[float, float] = (0.0, 10.0)
    noise_share: float = 0.4
    snr_db: tuple[float, float] = (10.0, 30.0)
    telephone_probability: float = 0.15
    codecs: tuple[Codec | None, ...] = (None, "ALAW", "ULAW", "GSM610")
    gain_db: tuple[float, float] = (-40.0, -10.0)

    def __post_init__(self) -> None:
        shares = (self.low_snr_share, self.noise_share, self.low_snr_share + self.noise_share)
        if not all(0 <= share <= 1 for share in shares):
            raise OptionError(
                "low_snr_share, noise_share and their sum must be between 0 and 1, "
                f"not {self.low_snr_share} and {self.noise_share}"
            )

    def __call__(self, samples: Samples, rng: random.Random) -> Samples:
        generator = np.random.default_rng(rng.getrandbits(64))
        out = samples.astype(np.float64)
        in_room = bool(self.responses) and rng.random() < self.room_probability
        if in_room:
            out = simulate.convolve(out, rng.choice(self.responses))
        snr_db = self._snr(rng)
        if snr_db is not None and out.any():
            kind = rng.choice(self.backgrounds)
            noise = simulate.background(kind, len(out), generator)
            if kind == "diffuse" and in_room:
                noise = simulate.convolve(noise, rng.choice(self.responses))
            level_db = active_speech_level(out.astype(np.float32))[0]
            out = out + simulate.at_rms(noise, level_db - snr_db)
        if rng.random() < self.telephone_probability:
            out = simulate.telephone(out, rng.choice(self.codecs))
        out = out * amplitude(rng.uniform(*self.gain_db))
        return simulate.quantize(out, generator).astype(np.float32) / np.float32(32768)

    def _snr(self, rng: random.Random) -> float | None:
        drawn = rng.random()
        if drawn < self.low_snr_share:
            return rng.uniform(*self.low_snr_db)
        return rng.uniform(*self.snr_db) if drawn < self.low_snr_share + self.noise_share else None


def change_speed(samples: Samples, factor: float) -> Samples:
    """Play `factor` times as fast, pitch included."""
    if factor == 1.0:
        return samples
    import soxr

    return np.asarray(
        soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE, quality="LQ"), np.float32
    )


def change_level(samples: Samples, gain_db: float) -> Samples:
    """Scale by `gain_db`; samples beyond full scale are clipped, as a recorder does."""
    return np.clip(samples * np.float32(10 ** (gain_db / 20)), -1.0, 1.0)


def color(samples: Samples, most_db: float, rng: random.Random) -> Samples:
    """A microphone's frequency response: up to `most_db` up or down at each of `COLOR_HZ`."""
    gains_db = [rng.uniform(-most_db, most_db) for _ in COLOR_HZ]
    size = 1 << max(1, (len(samples) - 1).bit_length())
    hz = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1.0)
    response = 10 ** (np.interp(np.log(hz), np.log(COLOR_HZ), gains_db) / 20)
    spectrum = np.fft.rfft(samples, size) * response
    return np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32)


def cut_weak_ends(samples: Samples, below_db: float, margin_seconds: float = 0.0) -> Samples:
    """Cut both ends where they are `below_db` below the loudest 10 ms, except a margin.

    The result is empty for silence and for less than 10 ms.
    """
    block = SAMPLE_RATE // 100
    blocks = samples[: len(samples) // block * block].reshape(-1, block)
    power = np.mean(np.square(blocks, dtype=np.float64), axis=1)
    if not power.any():
        return samples[:0]
    loud = np.flatnonzero(power >= power.max() * 10 ** (below_db / 10))
    margin = round(margin_seconds * SAMPLE_RATE)
    start, end = max(0, int(loud[0]) * block - margin), (int(loud[-1]) + 1) * block + margin
    return samples[start:end]


def add_noise(samples: Samples, snr_db: float, tilt: float, rng: random.Random) -> Samples:
    """Add stationary noise `snr_db` below the clip's power, falling as 1 / f^(2 * tilt)."""
    generator = np.random.default_rng(rng.getrandbits(32))
    noise = generator.standard_normal(len(samples), dtype=np.float32)
    if tilt and len(samples) > 1:
        spectrum = np.fft.rfft(noise)
        spectrum /= np.maximum(np.arange(len(spectrum)), 8) ** tilt
        noise = np.fft.irfft(spectrum, len(samples)).astype(np.float32)
    power = float(np.mean(samples**2)) + 1e-12
    noise_power = float(np.mean(noise**2)) + 1e-12
    scale = math.sqrt(power / noise_power * 10 ** (-snr_db / 10))
    return (samples + np.float32(scale) * noise).astype(np.float32)


def reverberate(samples: Samples, rt60_seconds: float, rng: random.Random) -> Samples:
    """Convolve with exponentially decaying noise after a direct path, of the same energy."""
    generator = np.random.default_rng(rng.getrandbits(32))
    n = max(1, int(rt60_seconds * SAMPLE_RATE))
    time = np.arange(n, dtype=np.float32) / SAMPLE_RATE
    response = generator.standard_normal(n, dtype=np.float32) * 10 ** (-3 * time / rt60_seconds)
    response[: int(0.002 * SAMPLE_RATE)] = 0.0
    response *= rng.uniform(0.3, 1.0) / math.sqrt(float(np.sum(response**2)) + 1e-12)
    response[0] = 1.0
    response /= math.sqrt(float(np.sum(response**2)))
    size = 1 << (len(samples) + n - 1).bit_length()
    product = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    return np.fft.irfft(product, size)[: len(samples)].astype(np.float32)


def telephone_band(samples: Samples, low_hz: float = 200.0, high_hz: float = 3800.0) -> Samples:
    """Limit the band as an 8 kHz line does: from `low_hz` to `high_hz`."""
    size = 1 << max(1, (len(samples) - 1).bit_length())
    spectrum = np.fft.rfft(samples, size)
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
    spectrum[(hz < low_hz) | (hz > high_hz)] = 0.0
    return np.fft.irfft(spectrum, size)[: len(samples)].astype(np.float32)


def warp_frequencies(mel: Tensor, factor: float, top_hz: float = SAMPLE_RATE / 2) -> Tensor:
    """(T, F) -> (T, F): move energy at f Hz to `factor` * f, as from a shorter vocal tract.

    Jaitly and Hinton 2013, "Vocal tract length perturbation", without its bend near the top:
    bins that would come from above `top_hz` repeat the highest one.
    """
    bins = mel.shape[1]
    top = hz_to_mel(torch.tensor([top_hz], dtype=torch.float64))
    centers = torch.arange(1, bins + 1, dtype=torch.float64) * top / (bins + 1)
    source = hz_to_mel(mel_to_hz(centers) / factor) * (bins + 1) / top - 1
    source = source.clamp(0, bins - 1)
    low = source.floor().long().clamp(max=bins - 2)
    share = (source - low).to(mel.dtype)
    return torch.lerp(mel[:, low], mel[:, low + 1], share)


@dataclass(frozen=True)
class SpecAugment:
    """Random bands and spans of a spectrogram set to `fill` (Park et al. 2019).

    Masks cover at most half of the frames; widths in mel bins and as a share of the frames.
    `warp` is the range of factors by which frequencies are stretched first.
    """

    frequency_masks: int = 2
    frequency_width: int = 20
    time_masks: int = 4
    time_share: float = 0.05
    fill: float = -10.0
    warp: tuple[float, float] = (1.0, 1.0)

    def __call__(self, mel: Tensor, rng: random.Random) -> Tensor:
        """(T, F) -> (T, F), a masked copy."""
        warped = self.warp != (1.0, 1.0)
        mel = warp_frequencies(mel, rng.uniform(*self.warp)) if warped else mel.clone()
        frames, bins = mel.shape
        for _ in range(self.frequency_masks):
            width = rng.randint(0, min(self.frequency_width, bins))
            start = rng.randint(0, bins - width)
            mel[:, start : start + width] = self.fill
        budget = frames // 2
        for _ in range(self.time_masks):
            width = rng.randint(0, min(budget, int(self.time_share * frames)))
            start = rng.randint(0, frames - width)
            mel[start : start + width] = self.fill
            budget -= width
        return mel
