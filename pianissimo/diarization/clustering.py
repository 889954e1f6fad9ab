"""Speakers from embeddings: average linkage over cosine distances, with a known or unknown number.

A window over the change of two speakers, or over both at once, is like neither and would be a
cluster of its own. So windows between two changes are averaged to one steady voice, and those at
the changes are left out. Steady voices are clustered, a speaker is a cluster with enough speech in
it, and each window then belongs to the speaker whose mean it is closest to.

Shape legend: W windows, R steady voices, C speakers, D width of the embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

# Chosen on mixtures of 1 to 4 speakers; see docs/speakers.md.
JOIN_DISTANCE = 0.36
"""Clusters of windows whose mean distance is below this are one speaker."""
STEADY_JOIN_DISTANCE, LONG_JOIN_DISTANCE = 0.32, 0.29
"""The same of steady voices, and of the longer ones alone: averages have less noise."""
CHANGE_COSINE = 0.7
"""Where the windows before and behind are less alike than this the speaker may have changed."""
CHANGE_SECONDS = 0.8
"""How far those windows are from the place."""
MANY_VOICES = 30
"""With this many longer steady voices, short ones are not needed to find the speakers."""
SAME_VOICE = 0.82
"""Speakers whose means have this cosine are one."""
LEAST_SECONDS, LEAST_SHARE = 2.0, 0.005
"""A speaker has at least this much speech, in seconds and of all speech."""
SHORT_SHARE = 0.15
"""In short recordings this share of all speech is enough."""
BLOCK_WINDOWS, BLOCK_CLUSTERS = 2000, 500
"""Windows clustered at once; of a longer recording the clusters of each block are clustered, of
which a block has at most that many."""


@dataclass(frozen=True)
class Merge:
    """Two clusters, named by one of their vectors each, that become one at a distance."""

    distance: float
    first: int
    second: int


def average_linkage(vectors: Vectors, weights: npt.ArrayLike) -> list[Merge]:
    """The W - 1 merges of unit vectors (W, D) to one cluster, by ascending distance.

    The distance of two clusters is the mean cosine distance of their vectors, each of which stands
    for `weights` (W,) windows. O(W^2) memory and time: a chain of nearest neighbors finds the same
    merges as a search for the closest pair (Murtagh 1983).
    """
    count = len(vectors)
    sizes = np.array(weights, np.float64)
    distances = 1.0 - (vectors @ vectors.T).astype(np.float64)
    np.fill_diagonal(distances, np.inf)
    merges: list[Merge] = []
    alive = np.ones(count, np.bool_)
    chain: list[int] = []
    for _ in range(count - 1):
        if not chain:
            chain.append(int(np.argmax(alive)))
        while True:
            last = chain[-1]
            nearest = int(np.argmin(distances[last]))
            # With ties the chain could go around in a circle: the vector before goes first.
            if len(chain) > 1 and distances[last, chain[-2]] <= distances[last, nearest]:
                nearest = chain[-2]
                break
            chain.append(nearest)
        del chain[-2:]
        merges.append(Merge(float(distances[last, nearest]), last, nearest))
        total = sizes[last] + sizes[nearest]
        row = (sizes[last] * distances[last] + sizes[nearest] * distances[nearest]) / total
        row[nearest] = np.inf
        distances[nearest], distances[:, nearest] = row, row
        distances[last], distances[:, last] = np.inf, np.inf
        sizes[nearest], alive[last] = total, False
    return sorted(merges, key=lambda merge: merge.distance)


def cut(merges: list[Merge], clusters: int) -> Labels:
    """The cluster (W,) of each vector when that many are left, numbered by first appearance."""
    count = len(merges) + 1
    parents = list(range(count))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    for merge in merges[: max(count - clusters, 0)]:
        parents[root(merge.first)] = root(merge.second)
    return numbered([root(i) for i in range(count)])


def numbered(labels: npt.ArrayLike) -> Labels:
    """Labels (W,) numbered from 0 by first appearance."""
    _, firsts, inverse = np.unique(np.asarray(labels), return_index=True, return_inverse=True)
    return np.argsort(np.argsort(firsts))[inverse].astype(np.int64)


@dataclass(frozen=True)
class SteadyVoices:
    """Mean vectors (R, D) of windows between two changes of speaker, their seconds (R,) and numbers
    of windows (R,), and the distance below which clusters of them are one speaker."""

    vectors: Vectors
    seconds: npt.NDArray[np.float64]
    windows: npt.NDArray[np.float64]
    join_distance: float


def steady_voices(
    vectors: Vectors, seconds: npt.ArrayLike, counts: Sequence[int], hop_seconds: float
) -> SteadyVoices:
    """Unit vectors (W, D) of stretches of `counts` windows, averaged between changes of speaker.

    Neighboring windows of a stretch are `hop_seconds` apart. If there are many voices over more
    than `CHANGE_SECONDS`, the others are left out.
    """
    durations = np.asarray(seconds, np.float64)
    reach = max(1, round(CHANGE_SECONDS / hop_seconds))
    runs: list[slice] = []
    first = 0
    for count in counts:
        here, places = vectors[first : first + count], np.arange(count)
        before = here[np.maximum(places - reach, 0)]
        behind = here[np.minimum(places + reach, count - 1)]
        alike = np.sum(before * behind, axis=1)
        changes = [
            i
            for i in range(1, count - 1)
            if alike[i] < CHANGE_COSINE
            and alike[i] == alike[max(i - reach, 0) : i + reach + 1].min()
        ]
        for start, stop in pairwise([0, *changes, count]):
            # The windows on both sides of a change have some of both speakers.
            run = slice(first + start + (start > 0), first + stop - (stop < count))
            if run.start < run.stop:
                runs.append(run)
        first += count
    longer = [run for run in runs if run.stop - run.start > reach]
    many = len(longer) >= MANY_VOICES
    runs = longer if many else runs
    return SteadyVoices(
        unit(np.stack([vectors[run].mean(axis=0) for run in runs])),
        np.array([durations[run].sum() for run in runs]),
        np.array([run.stop - run.start for run in runs], np.float64),
        LONG_JOIN_DISTANCE if many else STEADY_JOIN_DISTANCE,
    )


def find_speakers(
    vectors: Vectors,
    seconds: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
    join_distance: float = JOIN_DISTANCE,
    fewest: int = 1,
    most: int | None = None,
) -> Vectors:
    """The mean voices (C, D) of unit vectors (W, D) in a row, each of which stands for `seconds`
    and for `weights` windows, by default one.

    Between `fewest` and `most` speakers are found, fewer only where there is not enough speech for
    them. Without vectors there is none.
    """
    if not len(vectors):
        return vectors[:0]
    durations = np.asarray(seconds, np.float64)
    weights = np.ones(len(vectors)) if weights is None else np.asarray(weights, np.float64)
    while len(vectors) > BLOCK_WINDOWS:
        vectors, durations, weights = _condensed(vectors, durations, weights, join_distance)
    merges = average_linkage(vectors, weights)
    total = float(durations.sum())
    least = max(min(LEAST_SECONDS, SHORT_SHARE * total), LEAST_SHARE * total)
    near = sum(merge.distance < join_distance for merge in merges)
    labels = cut(merges, len(vectors) - near)
    large = np.flatnonzero(np.bincount(labels, durations) >= least)
    if not len(large):
        large = np.array([int(np.argmax(np.bincount(labels, durations)))])
    means = _means(vectors, weights, labels)[large]
    means = _joined(vectors, weights, means, fewest)
    if len(means) < fewest:
        return _exactly(vectors, weights, durations, merges, fewest)
    if most is not None and len(means) > most:
        return _exactly(vectors, weights, durations, merges, most)
    return means


def _exactly(
    vectors: Vectors,
    weights: npt.NDArray[np.float64],
    durations: npt.NDArray[np.float64],
    merges: list[Merge],
    count: int,
) -> Vectors:
    """The means of `count` speakers: the latest cut that has that many with enough speech."""
    least = min(LEAST_SECONDS, float(durations.sum()) / (2 * count))
    for clusters in range(count, len(vectors) + 1):
        labels = cut(merges, clusters)
        lengths = np.bincount(labels, durations)
        if np.sum(lengths >= least) >= count:
            break
    else:
        labels = cut(merges, count)
        lengths = np.bincount(labels, durations)
    largest = np.sort(np.argsort(-lengths, kind="stable")[:count])
    return _means(vectors, weights, labels)[largest]


def _joined(
    vectors: Vectors, weights: npt.NDArray[np.float64], means: Vectors, fewest: int
) -> Vectors:
    """The means after those that are one voice were joined, the most alike first."""
    while len(means) > max(fewest, 1):
        alike = means @ means.T - 2 * np.eye(len(means), dtype=np.float32)
        one, other = np.unravel_index(int(np.argmax(alike)), alike.shape)
        if alike[one, other] < SAME_VOICE:
            break
        labels = np.argmax(vectors @ means.T, axis=1)
        labels[labels == other] = one
        means = _means(vectors, weights, numbered(labels))
    return means


def _condensed(
    vectors: Vectors,
    durations: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    join_distance: float,
) -> tuple[Vectors, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The clusters of each block of windows: means, seconds and numbers of windows."""
    means, lengths, sizes = [], [], []
    for first in range(0, len(vectors), BLOCK_WINDOWS):
        here = slice(first, first + BLOCK_WINDOWS)
        block = vectors[here]
        merges = average_linkage(block, weights[here])
        near = sum(merge.distance < join_distance for merge in merges)
        labels = cut(merges, min(len(block) - near, BLOCK_CLUSTERS))
        means.append(_means(block, weights[here], labels))
        lengths.append(np.bincount(labels, durations[here]))
        sizes.append(np.bincount(labels, weights[here]))
    return np.concatenate(means), np.concatenate(lengths), np.concatenate(sizes)


def _means(vectors: Vectors, weights: npt.NDArray[np.float64], labels: Labels) -> Vectors:
    """The mean direction (C, D) of each cluster of vectors (W, D)."""
    sums = np.zeros((int(labels.max()) + 1, vectors.shape[1]), np.float32)
    np.add.at(sums, labels, vectors * weights[:, None].astype(np.float32))
    return unit(sums)


def unit(vectors: Vectors) -> Vectors:
    """Rows (..., D) of unit length; zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Vectors = vectors / np.maximum(norms, 1e-12)
    return scaled
