"""Speakers found among vectors that are drawn around known voices."""

import numpy as np
import pytest

from pianissimo.diarization import clustering
from pianissimo.diarization.clustering import (
    Vectors,
    average_linkage,
    cut,
    find_speakers,
    numbered,
    unit,
)


def voices(*sizes: int, spread: float = 0.3, seed: int = 0) -> Vectors:
    """Unit vectors around as many orthogonal voices as there are sizes."""
    rng = np.random.default_rng(seed)
    rows = [
        np.eye(16)[i] + spread * rng.standard_normal((size, 16)) / 4 for i, size in enumerate(sizes)
    ]
    return unit(np.concatenate(rows).astype(np.float32))


def assigned(vectors: Vectors, means: Vectors) -> list[int]:
    return numbered(np.argmax(vectors @ means.T, axis=1)).tolist()


def test_merges_are_those_of_a_search_for_the_closest_pair() -> None:
    vectors = voices(4, 5, 3, spread=2.0, seed=3)
    clusters = [[i] for i in range(len(vectors))]
    distances = 1 - (vectors @ vectors.T).astype(float)
    for merge in average_linkage(vectors, np.ones(len(vectors))):
        pairs = [
            (np.mean(distances[np.ix_(a, b)]), i, j)
            for i, a in enumerate(clusters)
            for j, b in enumerate(clusters)
            if i < j
        ]
        distance, i, j = min(pairs)
        assert merge.distance == pytest.approx(distance, abs=1e-6)
        clusters[i] += clusters.pop(j)
    assert len(clusters) == 1


def test_cut_leaves_as_many_clusters_as_asked() -> None:
    vectors = voices(3, 3)
    merges = average_linkage(vectors, np.ones(6))
    for count in range(1, 7):
        assert len(set(cut(merges, count))) == count
    assert cut(merges, 2).tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("sizes", [(20,), (20, 12), (8, 9, 10), (7, 7, 7, 7)])
def test_the_number_of_speakers_is_found(sizes: tuple[int, ...]) -> None:
    vectors = voices(*sizes)
    means = find_speakers(vectors, np.full(len(vectors), 0.4))
    assert assigned(vectors, means) == [i for i, size in enumerate(sizes) for _ in range(size)]


def test_a_window_like_no_one_is_no_speaker() -> None:
    vectors = np.concatenate([voices(10, 10), np.eye(16, dtype=np.float32)[9:10]])
    assert len(find_speakers(vectors, np.full(21, 0.4))) == 2
    assert len(find_speakers(vectors, np.full(21, 0.4), fewest=2, most=2)) == 2


def test_the_number_of_speakers_can_be_set_or_bounded() -> None:
    vectors, seconds = voices(10, 10, 10), np.full(30, 0.4)
    assert len(find_speakers(vectors, seconds, most=2)) == 2
    assert len(find_speakers(vectors, seconds, fewest=4)) == 4
    assert len(find_speakers(vectors, seconds, fewest=1, most=1)) == 1
    assert len(find_speakers(vectors[:2], seconds[:2], fewest=5, most=5)) == 2
    assert len(find_speakers(vectors[:0], seconds[:0])) == 0
    assert len(find_speakers(vectors[:1], seconds[:1])) == 1


def test_a_long_recording_is_clustered_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = voices(30, 40)[np.random.default_rng(1).permutation(70)]
    whole = find_speakers(vectors, np.full(70, 0.4))
    monkeypatch.setattr(clustering, "BLOCK_WINDOWS", 16)
    parts = find_speakers(vectors, np.full(70, 0.4))
    assert assigned(vectors, parts) == assigned(vectors, whole)
