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
    steady_voices,
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


@pytest.mark.parametrize(("hop_seconds", "inside"), [(0.4, 5), (0.8, 4)])
def test_steady_voices_have_no_windows_at_changes(hop_seconds: float, inside: int) -> None:
    """Windows over a change have some of both people, in shares that follow each other."""
    one, other = np.eye(16, dtype=np.float32)[:2]
    blends = [0.75, 0.5, 0.25] if hop_seconds == 0.4 else [0.5]
    change = [share * one + (1 - share) * other for share in blends]
    back = [share * other + (1 - share) * one for share in blends]
    turns = [[one] * inside, change, [other] * inside, back, [one] * inside]
    vectors = unit(np.concatenate([np.stack(turn) for turn in turns]))
    counts = [len(vectors), inside]  # a second stretch begins a voice of its own
    vectors = np.concatenate([vectors, np.stack([other] * inside)])
    seconds = np.full(len(vectors), hop_seconds)
    found = steady_voices(vectors, seconds, counts, hop_seconds)
    cosines = found.vectors @ np.stack([one, other]).T
    assert cosines.argmax(axis=1).tolist() == [0, 1, 0, 1]
    assert cosines.max(axis=1) == pytest.approx(1.0, abs=0.02)
    assert found.seconds == pytest.approx(found.windows * hop_seconds)
    assert found.windows.sum() < len(vectors) - 2


def test_steady_voices_of_short_speech_are_its_windows() -> None:
    vectors = voices(1, 1, 1)
    found = steady_voices(vectors, np.full(3, 0.4), [1, 1, 1], 0.4)
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-6)
    assert found.seconds.tolist() == [0.4] * 3 and found.windows.tolist() == [1.0] * 3


def test_many_long_voices_need_no_short_ones() -> None:
    few = steady_voices(voices(48), np.full(48, 0.4), [3, 1] * 12, 0.4)
    many = steady_voices(voices(192), np.full(192, 0.4), [3, 1] * 48, 0.4)
    assert few.windows.tolist() == [3.0, 1.0] * 12
    assert many.windows.tolist() == [3.0] * 48
    assert many.join_distance < few.join_distance


def test_a_long_recording_is_clustered_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = voices(30, 40)[np.random.default_rng(1).permutation(70)]
    whole = find_speakers(vectors, np.full(70, 0.4))
    monkeypatch.setattr(clustering, "BLOCK_WINDOWS", 16)
    parts = find_speakers(vectors, np.full(70, 0.4))
    assert assigned(vectors, parts) == assigned(vectors, whole)
