"""Windows of speech for the distillation of live encoders: clean ones, and as streams bring them.

A window has one or several utterances with pauses, silence around them, and at most 30 s. The
damaged copy has a level near that of the gain front end, a noise floor, and often a room, noise or
a telephone line.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pianissimo.audio import simulate
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.models.whisper import FRAME_SECONDS
from pianissimo.train.augment import change_speed, color, telephone_band
from pianissimo.train.data import AudioCache

WINDOW_SECONDS = 30.0
FRAME_SAMPLES = round(FRAME_SECONDS * SAMPLE_RATE)
LEVEL = 0.07
"""RMS of the loud frames of speech behind the gain front end."""
LEVEL_JITTER_DB = 4.0
SILENCE_AFTER_SECONDS = (1.0, 10.0)
PAUSE_SECONDS = (0.15, 1.6)
UTTERANCES = (1, 2, 3, 6, 12, 12, 12)
ROOMS, ROOM_SEED = 30, 7
ROOM_SHARE, NOISE_SHARE, CODEC_SHARE, BAND_SHARE = 0.15, 0.3, 0.08, 0.05


@dataclass(frozen=True)
class Window:
    """Clean samples for the teacher, damaged ones for the student, and the words.

    `speech` (S,) is True for each frame of 20 ms that may hold speech; it ends with the silence
    that the student gets. `text` is as Whisper would write it, empty where it is unknown.
    """

    clean: Samples
    damaged: Samples
    speech: NDArray[np.bool_]
    text: str


class WindowSource:
    """Draws windows from the utterances of a manifest, each utterance once before any comes again.

    `damaged` is the share of windows that may get rooms, noise and lines.
    """

    def __init__(
        self, audio: AudioCache, texts: Sequence[str], seed: int, damaged: float = 1.0
    ) -> None:
        self._audio, self._texts, self._share = audio, texts, damaged
        self._random, self._numpy = random.Random(seed), np.random.default_rng(seed)
        self._rooms = simulate.draw_responses(ROOMS, ROOM_SEED)
        self._order: list[int] = []

    def draw(self) -> Window:
        """The next window."""
        rng = self._random
        before = rng.uniform(0.0, 0.5) if rng.random() < 0.8 else rng.uniform(0.0, 3.0)
        most, end = rng.choice(UTTERANCES), round((WINDOW_SECONDS - 2.0) * SAMPLE_RATE)
        parts, spans = [silence(before)], []
        texts: list[str] = []
        at = len(parts[0])
        while len(texts) < most:
            item = self._next()
            x = change_speed(self._audio[item], rng.choice((0.9, 1.0, 1.0, 1.0, 1.1)))
            if texts and at + len(x) > end:
                break
            if rng.random() < 0.3:
                x = color(x, 5.0, rng)
            x = at_level(x, LEVEL * 10 ** (rng.gauss(0, 1.5) / 20))
            spans.append((at, at + len(x)))
            parts += [x, silence(rng.uniform(*PAUSE_SECONDS))]
            at += len(x) + len(parts[-1])
            texts.append(written(self._texts[item]))
        whole = np.concatenate([*parts, silence(rng.uniform(*SILENCE_AFTER_SECONDS))])
        clean: Samples = whole[: round(WINDOW_SECONDS * SAMPLE_RATE)]
        speech = np.zeros(len(clean) // FRAME_SAMPLES, np.bool_)
        for first, last in spans:
            speech[max(0, first // FRAME_SAMPLES - 5) : last // FRAME_SAMPLES + 5] = True
        known = all(texts) and spans[-1][1] <= len(clean)
        return Window(clean, self._damage(clean), speech, " ".join(texts) if known else "")

    def _next(self) -> int:
        if not self._order:
            self._order = list(range(len(self._texts)))
            self._random.shuffle(self._order)
        return self._order.pop()

    def _damage(self, clean: Samples) -> Samples:
        rng = self._random
        x = clean.astype(np.float64)
        share = 1.0 if rng.random() < self._share else 0.0
        if rng.random() < ROOM_SHARE * share:
            x = simulate.convolve(x, self._rooms[rng.randrange(len(self._rooms))])
        if rng.random() < NOISE_SHARE * share:
            x = x + self._noise(len(x)) * LEVEL * 0.6 * 10 ** (-rng.uniform(8, 35) / 20)
        if rng.random() < CODEC_SHARE * share:
            loudest = max(1.0, float(np.abs(x).max()))
            x = simulate.telephone(x / loudest, rng.choice(("ALAW", "ULAW", "GSM610", None)))
        elif rng.random() < BAND_SHARE * share:
            band = telephone_band(x.astype(np.float32), 0.0, rng.uniform(3300, 4000))
            x = band.astype(np.float64)
        floor = 10 ** (rng.uniform(-90, -55) / 20)
        x = x + self._numpy.standard_normal(len(x)) * floor
        jitter = 10 ** (rng.uniform(-LEVEL_JITTER_DB, LEVEL_JITTER_DB) / 20)
        return at_level(x.astype(np.float32), LEVEL * jitter)

    def _noise(self, n: int) -> simulate.Float64:
        """Noise of one kind, RMS 1: generated, or babble of the training voices."""
        rng, numpy = self._random, self._numpy
        kind = rng.choice(("hvac", "floor", "color", "music", "keys", "babble", "babble"))
        if kind == "babble":
            chosen = [rng.randrange(len(self._texts)) for _ in range(rng.choice((1, 3, 6)))]
            return simulate.babble([self._audio[i].astype(np.float64) for i in chosen], n, numpy)
        if kind == "music":
            return simulate.music(n, numpy)
        if kind == "keys":
            return simulate.key_clicks(n, numpy)
        if kind == "hvac":
            return simulate.hvac(n, numpy)
        return simulate.colored_noise(n, 0.0 if kind == "floor" else rng.uniform(1, 6), numpy)


def silence(seconds: float) -> Samples:
    """Zeros of this length."""
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def at_level(samples: Samples, level: float) -> Samples:
    """Scaled so that the loud frames of 25 ms (95th percentile) have this RMS."""
    frames = samples[: len(samples) // 400 * 400].reshape(-1, 400)
    rms = np.sqrt(np.mean(np.square(frames), axis=1)) if len(frames) else np.zeros(1)
    loud = rms[rms > 1e-4 * rms.max(initial=0.0)]
    top = float(np.quantile(loud, 0.95)) if len(loud) else 0.0
    scaled: Samples = samples * np.float32(level / max(top, 1e-5))
    return scaled


def written(text: str) -> str:
    """A transcript about as Whisper would write it: a capital letter first, a mark at the end."""
    text = " ".join(text.split())
    if text.isupper():
        text = text.lower()
    text = text[:1].upper() + text[1:]
    return text if not text or text[-1] in ".?!" else text + "."
