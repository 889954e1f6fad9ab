"""Speech and noise at levels chosen by the test; the speech is that of the bundled clips."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pianissimo.audio.io import load_audio
from pianissimo.audio.level import measure_levels

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "audio"

Samples = NDArray[np.float32]


@cache
def _speech() -> Samples:
    clips = [load_audio(EXAMPLES / name) for name in ("sentence.flac", "number.flac")]
    return np.concatenate([at_level(clip, -26.0) for clip in clips])


def speech(seconds: float, level_db: float = -26.0) -> Samples:
    """Two voices in turn, with pauses, at an active speech level."""
    n = round(seconds * 16_000)
    clip = _speech()
    return scaled(np.tile(clip, -(-n // len(clip)))[:n], level_db + 26.0)


def pink(seconds: float, level_db: float, seed: int = 0) -> Samples:
    """Noise falling by 3 dB per octave from 150 Hz on, at a level."""
    n = round(seconds * 16_000)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(n))
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(n, 1 / 16_000), 150))
    noise = np.fft.irfft(spectrum, n)
    return (noise * (10 ** (level_db / 20) / np.sqrt(np.mean(noise**2)))).astype(np.float32)


def scaled(samples: Samples, db: float) -> Samples:
    return (samples * 10 ** (db / 20)).astype(np.float32)


def at_level(samples: Samples, level_db: float) -> Samples:
    """Scaled so that its speech is at `level_db`."""
    return scaled(samples, level_db - measure_levels(samples).speech_db)


def as_int16(samples: Samples, seed: int = 0) -> Samples:
    """What 16 bits with triangular dither leave."""
    draw = np.random.default_rng(seed).uniform(-0.5, 0.5, (2, len(samples))).sum(axis=0)
    steps = np.round(samples.astype(np.float64) * 32768 + draw)
    return (np.clip(steps, -32768, 32767) / 32768).astype(np.float32)


def with_click(samples: Samples, at_seconds: float, milliseconds: int = 5) -> Samples:
    """A click at -3 dBFS."""
    start = round(at_seconds * 16_000)
    clicked = samples.copy()
    clicked[start : start + 16 * milliseconds] = 10 ** (-3 / 20)
    return clicked
