"""Voices as vectors: windows over stretches of speech, and the network that embeds them.

Shape legend: W windows, N samples, D width of the embedding.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.level import Samples
from pianissimo.diarization.clustering import Vectors, unit

if TYPE_CHECKING:
    from pianissimo.audio.io import AudioSource

WINDOW_SECONDS = 1.6
HOP_SECONDS = 0.4
BATCH_WINDOWS = 64
_WINDOW_SAMPLES = round(WINDOW_SECONDS * SAMPLE_RATE)


class Embedder(Protocol):
    """Turns speech into unit vectors whose cosine says how alike two voices are."""

    def embed(self, windows: Sequence[Samples]) -> Vectors:
        """Windows (N,) at 16 kHz, of any lengths, to vectors (W, D)."""
        ...


class BuiltInEmbedder:
    """The network that comes with the package, on the CPU."""

    def __init__(self) -> None:
        from pianissimo.models.speaker_encoder import load_speaker_encoder

        self._model = load_speaker_encoder()

    def embed(self, windows: Sequence[Samples]) -> Vectors:
        import torch

        vectors = np.zeros((len(windows), self._model.config.dim), np.float32)
        by_length: dict[int, list[int]] = {}
        for i, window in enumerate(windows):
            by_length.setdefault(len(window), []).append(i)
        with torch.inference_mode():
            for rows in by_length.values():
                for first in range(0, len(rows), BATCH_WINDOWS):
                    batch = rows[first : first + BATCH_WINDOWS]
                    samples = torch.from_numpy(np.stack([windows[i] for i in batch]))
                    vectors[batch] = self._model(self._model.features(samples)).numpy()
        return vectors


@cache
def built_in_embedder() -> BuiltInEmbedder:
    """The one embedder of this process; it holds weights only."""
    return BuiltInEmbedder()


def windows_in(samples: int) -> list[tuple[int, int]]:
    """The windows (first, stop) over a stretch of samples, evenly spaced.

    Neighbors are at most `HOP_SECONDS` apart; a stretch shorter than a window is one.
    """
    rest = samples - _WINDOW_SAMPLES
    if rest <= 0:
        return [(0, samples)]
    steps = math.ceil(rest / (HOP_SECONDS * SAMPLE_RATE))
    starts = [round(step * rest / steps) for step in range(steps + 1)]
    return [(start, start + _WINDOW_SAMPLES) for start in starts]


def voice_of(source: "AudioSource | Samples", embedder: Embedder) -> Vectors:
    """The mean voice (D,) of a recording of one person, or of samples (n,) at 16 kHz.

    Raises AudioValueError without 0.5 s of speech, and the errors of `load_audio`.
    """
    from pianissimo.audio.io import load_audio
    from pianissimo.diarization.speech import SpeechPieces
    from pianissimo.errors import AudioValueError

    pieces = SpeechPieces()
    samples = source if isinstance(source, np.ndarray) else load_audio(source)
    found = [*pieces.push(samples), *pieces.finish()]
    if sum(end - start for start, end, _ in found) < 0.5:
        raise AudioValueError(
            "a known voice needs at least 0.5 s of speech, better 2 to 10 s; this recording has "
            "less"
        )
    windows = [speech[a:b] for _, _, speech in found for a, b in windows_in(len(speech))]
    mean: Vectors = unit(embedder.embed(windows).mean(axis=0))
    return mean
