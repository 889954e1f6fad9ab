"""Turns by voice: speech is embedded window by window, and windows of one voice are one speaker.

push ──(speech)──> stretches ──(windows of 1.6 s)──> vectors ──(finish: clusters)──> turns

Memory grows by 5 MB per hour of speech, for the vectors; the audio is not kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.level import Samples
from pianissimo.diarization.clustering import (
    Labels,
    Vectors,
    find_speakers,
    steady_voices,
)
from pianissimo.diarization.embedding import (
    BATCH_WINDOWS,
    HOP_SECONDS,
    Embedder,
    built_in_embedder,
    voice_of,
    windows_in,
)
from pianissimo.diarization.options import Diarization
from pianissimo.diarization.speech import SpeechPieces
from pianissimo.text.turns import Turn

KNOWN_VOICE = 0.75
"""A speaker whose mean has this cosine with a known voice gets its name."""
ISLAND_SECONDS = 0.3
"""A shorter stretch of a speaker inside the speech of others belongs to the one before."""
SHARPNESS = 20.0
"""Of the confidence: a softmax over the cosines times this."""


@dataclass(frozen=True)
class Stretch:
    """Speech from `start` to `end` seconds, with the center of each of its windows."""

    start: float
    end: float
    centers: tuple[float, ...]


class VoiceTurns:
    """The `TurnSource` of voices. Raises what reading the known voices raises."""

    def __init__(self, options: Diarization, embedder: Embedder | None = None) -> None:
        self._options = options
        self._embedder = embedder or built_in_embedder()
        self._known = {
            name: voice_of(source, self._embedder) for name, source in options.voices.items()
        }
        self._speech = SpeechPieces()
        self._stretches: list[Stretch] = []
        self._windows: list[Samples] = []
        self._vectors: list[npt.NDArray[np.float16]] = []

    def push(self, samples: Samples) -> None:
        self._add(self._speech.push(samples))
        if len(self._windows) >= BATCH_WINDOWS:
            self._embed()

    def finish(self) -> tuple[Turn, ...]:
        self._add(self._speech.finish())
        self._embed()
        vectors = np.zeros((0, 1), np.float32)
        if self._vectors:
            vectors = np.concatenate(self._vectors).astype(np.float32)
        return turns_by_voice(self._stretches, vectors, self._options, self._known)

    def _add(self, pieces: Sequence[tuple[float, float, Samples]]) -> None:
        for start, end, samples in pieces:
            windows = windows_in(len(samples))
            self._windows += [samples[first:stop] for first, stop in windows]
            centers = (start + (first + stop) / 2 / SAMPLE_RATE for first, stop in windows)
            self._stretches.append(Stretch(start, end, tuple(centers)))

    def _embed(self) -> None:
        if self._windows:
            self._vectors.append(self._embedder.embed(self._windows).astype(np.float16))
            self._windows = []


def turns_by_voice(
    stretches: Sequence[Stretch],
    vectors: Vectors,
    options: Diarization,
    known: Mapping[str, Vectors],
    hop_seconds: float = HOP_SECONDS,
) -> tuple[Turn, ...]:
    """The turns of stretches, whose windows, `hop_seconds` apart, have the vectors (W, D) in the
    same order."""
    if not len(vectors):
        return ()
    fewest, most = options.bounds
    seconds = [
        (each.end - each.start) / len(each.centers) for each in stretches for _ in each.centers
    ]
    counts = [len(each.centers) for each in stretches]
    steady = steady_voices(vectors, seconds, counts, hop_seconds)
    if len(steady.vectors) >= fewest:
        voices = find_speakers(
            steady.vectors,
            steady.seconds,
            weights=steady.windows,
            join_distance=steady.join_distance,
            fewest=fewest,
            most=most,
        )
    else:
        voices = find_speakers(vectors, seconds, fewest=fewest, most=most)
    cosines = vectors @ voices.T
    labels = np.argmax(cosines, axis=1)
    weights = np.exp(SHARPNESS * (cosines - cosines.max(axis=1, keepdims=True)))
    certain = 1 / weights.sum(axis=1)
    turns: list[Turn] = []
    first = 0
    for stretch in stretches:
        stop = first + len(stretch.centers)
        turns += _turns_in(stretch, labels[first:stop], certain[first:stop])
        first = stop
    names = _names(turns, voices, known)
    return tuple(Turn(turn.start, turn.end, names[turn.speaker], turn.confidence) for turn in turns)


def _turns_in(stretch: Stretch, labels: Labels, certain: Vectors) -> list[Turn]:
    """The turns of one stretch: a speaker changes halfway between two windows."""
    middles = [(a + b) / 2 for a, b in zip(stretch.centers, stretch.centers[1:], strict=False)]
    edges = [stretch.start, *middles, stretch.end]
    runs: list[tuple[float, float, int, list[float]]] = []
    for i, label in enumerate(labels):
        start, end, sure = edges[i], edges[i + 1], float(certain[i])
        if runs and runs[-1][2] == label:
            runs[-1] = (runs[-1][0], end, int(label), [*runs[-1][3], sure])
        else:
            runs.append((start, end, int(label), [sure]))
    kept: list[tuple[float, float, int, list[float]]] = []
    for run in runs:
        short = run[1] - run[0] < ISLAND_SECONDS
        if kept and (short or kept[-1][2] == run[2]):
            kept[-1] = (kept[-1][0], run[1], kept[-1][2], kept[-1][3])
        else:
            kept.append(run)
    return [
        Turn(float(start), float(end), str(label), round(float(np.mean(sure)), 4))
        for start, end, label, sure in kept
    ]


def _names(turns: Sequence[Turn], voices: Vectors, known: Mapping[str, Vectors]) -> dict[str, str]:
    """Label of a cluster -> name: that of a known voice, otherwise a number by first appearance."""
    order = list(dict.fromkeys(turn.speaker for turn in turns))
    names: dict[str, str] = {}
    alike = sorted(
        (
            (float(voices[int(label)] @ voice), label, name)
            for label in order
            for name, voice in known.items()
        ),
        reverse=True,
    )
    for cosine, label, name in alike:
        if cosine >= KNOWN_VOICE and label not in names and name not in names.values():
            names[label] = name
    numbers = (str(i) for i in count() if str(i) not in known)
    return names | {label: next(numbers) for label in order if label not in names}
