"""The protocol once for all voices: text checks, sentences, pauses and speed."""

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator

import numpy as np

from pianissimo.audio.io import Samples
from pianissimo.errors import OptionError
from pianissimo.synthesis.sentences import CLAUSE_MARKS, split_sentences
from pianissimo.synthesis.text import prepare, pronounceable

SLOWEST, FASTEST = 0.25, 4.0
SENTENCE_PAUSE_SECONDS, CLAUSE_PAUSE_SECONDS = 0.2, 0.06
"""Silence after a sentence, and after a piece of one that was cut at a clause or between words."""
AUDIBLE_DB = -60.0
"""Of 10 ms against the loudest 10 ms of a sentence; what is below counts as silence at its ends."""
MARGIN_SECONDS = 0.03
"""Kept around the audible part, where soft consonants begin and end."""


class BaseSynthesizer(ABC):
    """`Synthesizer` for a voice that speaks one sentence at a time.

    `script` names the letters that it reads, as `text.prepare` wants it.
    """

    def __init__(
        self, name: str, language: str | None, sample_rate: int, script: str | None = "LATIN"
    ) -> None:
        self.name = name
        self.language = language
        self.sample_rate = sample_rate
        self._script = script

    @abstractmethod
    def _sentence(self, text: str, speed: float, seed: int | None) -> Iterator[Samples]:
        """Speak one sentence: blocks (n,) of mono float32. It may run in several threads."""

    def sentences(self, text: str) -> list[str]:
        return list(filter(pronounceable, split_sentences(prepare(text, self._script))))

    def stream(
        self, text: str, *, speed: float = 1.0, seed: int | None = None
    ) -> Generator[Samples]:
        if not SLOWEST <= speed <= FASTEST:  # NaN is refused, too
            raise OptionError(f"speed {speed} is not possible; use {SLOWEST} to {FASTEST:g}")
        if seed is not None and seed < 0:
            raise OptionError(f"seed {seed} is not possible; use 0 or a larger number")
        return self._blocks(self.sentences(text), speed, seed)

    def _blocks(self, sentences: list[str], speed: float, seed: int | None) -> Generator[Samples]:
        for sentence in sentences:
            yield from self._sentence(sentence, speed, seed)
            yield self._pause(sentence, speed)

    def speak(self, text: str, *, speed: float = 1.0, seed: int | None = None) -> Samples:
        return np.concatenate(list(self.stream(text, speed=speed, seed=seed)))

    def _pause(self, sentence: str, speed: float) -> Samples:
        clause = sentence[-1] in CLAUSE_MARKS or sentence[-1].isalnum()
        seconds = CLAUSE_PAUSE_SECONDS if clause else SENTENCE_PAUSE_SECONDS
        return np.zeros(round(seconds / speed * self.sample_rate), np.float32)


def trim_silence(samples: Samples, sample_rate: int) -> Samples:
    """The samples (n,) without the silence at both ends, of which a margin stays."""
    size = sample_rate // 100
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    levels = np.square(frames).mean(axis=1)
    if not len(levels) or levels.max() == 0:
        return samples[:0]
    audible = np.flatnonzero(levels > levels.max() * 10 ** (AUDIBLE_DB / 10))
    margin = math.ceil(MARGIN_SECONDS * sample_rate)
    start = max(0, int(audible[0]) * size - margin)
    return samples[start : (int(audible[-1]) + 1) * size + margin]
