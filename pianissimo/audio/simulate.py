"""Simulation of recording conditions: rooms, noises, telephone lines, and 16-bit samples.

All functions map float64 samples (n,) at 16 kHz to such samples and draw from a given NumPy
generator, so a seed determines the result. Only `quantize`, the last step, quantizes. Rooms need
pyroomacoustics (extra `quietbench`).
"""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.level import amplitude, rms_level
from pianissimo.errors import MissingExtraError

Float64 = npt.NDArray[np.float64]
Codec = Literal["ALAW", "ULAW", "GSM610"]
Background = Literal["hvac", "diffuse", "floor", "music"]
"""Kinds of background noise; "diffuse" is air conditioning through the room."""

_MAX_ORDER = 40
_MIC_HEIGHT, _MOUTH_HEIGHT = 1.1, 1.5
_WALL_METERS = 0.5  # the least distance of a person from a wall
_LOG_METRES = (np.log(0.45), np.log(3.0))
_FLAT_BELOW_HZ = 60.0
_FRAME = SAMPLE_RATE // 50
_TELEPHONE_RATE = 8_000
_TELEPHONE_BAND_HZ = (300.0, 3400.0)
_TELEPHONE_TAPS = 255
_SOFT_CLIP_DB = -3.0


@dataclass(frozen=True)
class Room:
    """A shoebox: its size in meters and the reverberation time that Sabine's formula aims at."""

    size: tuple[float, float, float]
    rt60_seconds: float


SMALL_ROOM = Room((5.0, 4.0, 2.7), 0.3)
MEDIUM_ROOM = Room((6.0, 5.0, 2.8), 0.5)
LARGE_ROOM = Room((7.0, 6.0, 3.0), 0.7)


def room_response(room: Room, distance: float, rng: np.random.Generator) -> Float64:
    """Impulse response (n,) from a mouth to a microphone `distance` meters away, direct path first.

    Image sources up to order 40, each slightly displaced to avoid flutter. Its energy
    is 1. Raises MissingExtraError without pyroomacoustics.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports packages in ways that they deprecated
            import pyroomacoustics as pra
    except ImportError as error:
        raise MissingExtraError(
            "simulated rooms need the extra quietbench: pip install 'pianissimo[quietbench]'"
        ) from error
    width, depth, _ = room.size
    absorption, order = pra.inverse_sabine(room.rt60_seconds, room.size)
    box = pra.ShoeBox(
        room.size,
        fs=SAMPLE_RATE,
        materials=pra.Material(absorption),
        max_order=min(order, _MAX_ORDER),
        use_rand_ism=True,
        max_rand_disp=0.05,
    )
    while True:  # a position in the room that leaves space for the other one
        x, y = (rng.uniform(_WALL_METERS, side - _WALL_METERS) for side in (width, depth))
        angle = rng.uniform(0, 2 * np.pi)
        flat = np.sqrt(max(distance**2 - (_MOUTH_HEIGHT - _MIC_HEIGHT) ** 2, 0.01))
        other_x, other_y = x + flat * np.cos(angle), y + flat * np.sin(angle)
        inside_x = _WALL_METERS <= other_x <= width - _WALL_METERS
        if inside_x and _WALL_METERS <= other_y <= depth - _WALL_METERS:
            break
    box.add_source([x, y, _MOUTH_HEIGHT])
    box.add_microphone([other_x, other_y, _MIC_HEIGHT])
    pra.random.seed(int(rng.integers(2**31)))
    box.compute_rir()
    response = np.asarray(box.rir[0][0], np.float64)
    loud = np.flatnonzero(np.abs(response) > 0.2 * np.abs(response).max())
    response = response[max(0, int(loud[0]) - 8) :]
    return response / np.sqrt(np.sum(np.square(response)))


def draw_responses(count: int, seed: int) -> tuple[Float64, ...]:
    """Impulse responses of the three rooms in turn, at 0.45 to 3 m."""
    rng = np.random.default_rng(seed)
    rooms = (SMALL_ROOM, MEDIUM_ROOM, LARGE_ROOM)
    return tuple(
        room_response(rooms[i % len(rooms)], float(np.exp(rng.uniform(*_LOG_METRES))), rng)
        for i in range(count)
    )


def convolve(samples: Float64, response: Float64) -> Float64:
    """Convolve (n,) samples with an impulse response; the tail after the end is cut off."""
    n = len(samples)
    size = 1 << max(1, (n + len(response) - 2).bit_length())
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[:n]


def at_rms(samples: Float64, level_db: float) -> Float64:
    """Scaled to a mean power in dB; silence stays silence."""
    return samples * amplitude(level_db - rms_level(samples)) if samples.any() else samples


def colored_noise(n: int, slope_db: float, rng: np.random.Generator, low_hz: float = 60) -> Float64:
    """Noise that falls by `slope_db` per octave above `low_hz`, and is flat below; RMS 1."""
    if not n:
        return np.zeros(0)
    spectrum = np.fft.rfft(rng.standard_normal(n))
    hertz = np.maximum(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), _FLAT_BELOW_HZ)
    spectrum *= (hertz / _FLAT_BELOW_HZ) ** (-slope_db / 20 / np.log10(2))
    return at_rms(np.fft.irfft(spectrum, n), 0.0)


def hvac(n: int, rng: np.random.Generator) -> Float64:
    """Air conditioning: noise falling by 6 dB per octave and the hum of a fan; RMS 1."""
    time = np.arange(n) / SAMPLE_RATE
    blade = rng.uniform(90, 130)
    phases = rng.uniform(0, 2 * np.pi, 4)
    hum = sum(np.sin(2 * np.pi * blade * k * time + phases[k - 1]) / k**1.5 for k in range(1, 5))
    return at_rms(colored_noise(n, 6.0, rng) + 0.4 * hum, 0.0)


def background(kind: Background, n: int, rng: np.random.Generator) -> Float64:
    """Noise of one kind (n,); RMS 1. The diffuse kind must still be convolved with a room."""
    if kind == "music":
        return music(n, rng)
    return colored_noise(n, 0.0, rng) if kind == "floor" else hvac(n, rng)


def key_clicks(n: int, rng: np.random.Generator) -> Float64:
    """Typing: four to nine strokes a second, each a burst and the thump of the key; RMS 1."""
    out = np.zeros(n)
    burst = round(0.03 * SAMPLE_RATE)
    decay = np.exp(-np.arange(burst) / (0.004 * SAMPLE_RATE))
    thump = np.sin(2 * np.pi * 180 * np.arange(burst) / SAMPLE_RATE)
    place = 0.0
    while (start := round(place * SAMPLE_RATE)) + burst < n:
        stroke = rng.standard_normal(burst) * decay + 0.5 * thump * decay
        out[start : start + burst] += stroke * rng.uniform(0.4, 1.0)
        place += rng.uniform(0.11, 0.25)
    return at_rms(out, 0.0)


def music(n: int, rng: np.random.Generator) -> Float64:
    """An instrumental bed: slow chords with an arpeggio over them, faded in and out; RMS 1."""
    time = np.arange(n) / SAMPLE_RATE
    out = np.zeros(n)
    root = 110 * 2 ** (rng.integers(0, 12) / 12)
    chords = [(0, 4, 7), (9, 12, 16), (5, 9, 12), (7, 11, 14)]
    beat = rng.uniform(0.4, 0.6)
    for k in range(int(np.ceil(time[-1] / beat)) if n else 0):
        chord = chords[k // 4 % 4]
        since = time - k * beat
        if k % 4 == 0:
            swell = np.clip(since / 0.2, 0, 1) * np.clip((4.2 * beat - since) / 0.2, 0, 1)
            for note in chord:
                out += swell * _tone(root * 2 ** (note / 12), time, 6) * 0.25
        pluck = np.where(since >= 0, np.exp(-np.maximum(since, 0) / 0.35), 0.0)
        out += pluck * _tone(2 * root * 2 ** (chord[int(rng.integers(3))] / 12), time, 4)
    fade = np.minimum(np.minimum(time, time[-1] - time) / 0.5, 1.0) if n else out
    return at_rms(out * fade, 0.0)


def _tone(hertz: float, time: Float64, partials: int) -> Float64:
    return sum(
        (np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, partials + 1)),
        start=np.zeros(len(time)),
    )


def babble(voices: list[Float64], n: int, rng: np.random.Generator) -> Float64:
    """Babble of many voices without pauses, each from a random position; RMS 1."""
    out = np.zeros(n)
    for voice in voices:
        talking = _without_pauses(voice)
        if not len(talking):
            continue
        repeated = np.tile(at_rms(talking, 0.0), -(-n // len(talking)) + 1)
        start = int(rng.integers(len(talking)))
        out += repeated[start : start + n]
    return at_rms(out, 0.0)


def _without_pauses(voice: Float64) -> Float64:
    """The frames of 20 ms that are within 25 dB of the loudest, joined."""
    frames = voice[: len(voice) // _FRAME * _FRAME].reshape(-1, _FRAME)
    power = np.mean(np.square(frames), axis=1)
    return frames[power > power.max(initial=0.0) * 10**-2.5].reshape(-1)


def soft_clip(samples: Float64, from_db: float = _SOFT_CLIP_DB) -> Float64:
    """Compress peaks from `from_db` below the highest sample on, which is never exceeded."""
    peak = float(np.abs(samples).max(initial=0.0))
    knee = peak * amplitude(from_db)
    if not peak:
        return samples
    size = np.abs(samples)
    bent = knee + (peak - knee) * np.tanh((size - knee) / (peak - knee))
    return np.sign(samples) * np.where(size > knee, bent, size)


def telephone(samples: Float64, codec: Codec | None) -> Float64:
    """Simulate a telephone: 300 to 3400 Hz at 8 kHz, compressed peaks, and a codec: (n,).

    Without a codec only the line is simulated.
    """
    import soundfile
    import soxr

    low, high = (edge / _TELEPHONE_RATE for edge in _TELEPHONE_BAND_HZ)
    t = np.arange(_TELEPHONE_TAPS) - _TELEPHONE_TAPS // 2
    taps = (2 * high * np.sinc(2 * high * t) - 2 * low * np.sinc(2 * low * t)) * np.hamming(len(t))
    narrow = soxr.resample(samples, SAMPLE_RATE, _TELEPHONE_RATE, quality="HQ")
    if not len(narrow):
        return samples
    line = np.convolve(narrow, taps)[len(taps) // 2 :][: len(narrow)]
    # The tables of libsndfile's codecs end at full scale, and it reads beyond them.
    line = np.clip(soft_clip(line), -1.0, 1.0)
    if codec is not None:
        file = io.BytesIO()
        soundfile.write(file, line, _TELEPHONE_RATE, format="WAV", subtype=codec)
        file.seek(0)
        # GSM works in blocks and rounds the length up.
        line = soundfile.read(file, dtype="float64")[0][: len(line)]
    wide = soxr.resample(line, _TELEPHONE_RATE, SAMPLE_RATE, quality="HQ")
    return np.pad(wide, (0, max(0, len(samples) - len(wide))))[: len(samples)]


def quantize(samples: Float64, rng: np.random.Generator) -> npt.NDArray[np.int16]:
    """Quantize to 16 bits with triangular dither of one step, which turns distortion into noise.

    Digital silence gets no dither.
    """
    if not samples.any():
        return np.zeros(len(samples), np.int16)
    dither = rng.uniform(-0.5, 0.5, (2, len(samples))).sum(axis=0)
    return np.clip(np.round(samples * 32768 + dither), -32768, 32767).astype(np.int16)
