"""A voice for tests: a tone for each word, of a length that the test knows."""

import threading
import time
from collections.abc import Iterator

import numpy as np

from pianissimo.audio.io import Samples
from pianissimo.errors import NothingToSayError
from pianissimo.synthesis.sentences import split_sentences

WORD_SECONDS = 0.25


class ToneVoice:
    """A `Synthesizer` of one tone; `delay_seconds` is what a sentence takes."""

    name, language, sample_rate = "tone", "en-US", 24_000

    def __init__(self, delay_seconds: float = 0.0) -> None:
        self.delay_seconds = delay_seconds
        self.spoken: list[str] = []
        self.lock = threading.Lock()

    def sentences(self, text: str) -> list[str]:
        return split_sentences(text)

    def stream(
        self, text: str, *, speed: float = 1.0, seed: int | None = None
    ) -> Iterator[Samples]:
        if not any(c.isalnum() for c in text):
            raise NothingToSayError("nothing to say")
        return self._blocks(text, speed)

    def _blocks(self, text: str, speed: float) -> Iterator[Samples]:
        for sentence in self.sentences(text):
            time.sleep(self.delay_seconds)
            with self.lock:
                self.spoken.append(sentence)
            count = round(len(sentence.split()) * WORD_SECONDS / speed * self.sample_rate)
            tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(count) / self.sample_rate)
            yield tone.astype(np.float32)

    def speak(self, text: str, *, speed: float = 1.0, seed: int | None = None) -> Samples:
        return np.concatenate(list(self.stream(text, speed=speed, seed=seed)))
