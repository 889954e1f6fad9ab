"""A voice for tests: it speaks in tones, and can be made to wait before each sentence."""

import threading
from collections.abc import Iterator

import numpy as np

from pianissimo.audio.io import Samples
from pianissimo.synthesis.base import BaseSynthesizer

RATE = 24_000
TONES_HZ = (300, 500, 700, 900)


class TinyVoice(BaseSynthesizer):
    """Speaks each sentence as a tone of 0.1 s for each word.

    With `gates`, sentence N waits for the Nth of them. `spoken` are the sentences that were begun.
    """

    def __init__(self, gates: int = 0, sample_rate: int = RATE) -> None:
        super().__init__("tones", "en-US", sample_rate)
        self.gates = [threading.Event() for _ in range(gates)]
        self.spoken: list[str] = []

    def _sentence(self, text: str, speed: float, seed: int | None) -> Iterator[Samples]:
        number = len(self.spoken)
        self.spoken.append(text)
        if number < len(self.gates):
            assert self.gates[number].wait(30)
        seconds = 0.1 * len(text.split()) / speed
        times = np.arange(round(seconds * self.sample_rate)) / self.sample_rate
        tone = TONES_HZ[len(text) % len(TONES_HZ)]
        yield (0.3 * np.sin(2 * np.pi * tone * times)).astype(np.float32)
