import itertools

import pytest
import torch
from torch import Tensor

from pianissimo.decoding.alignment import align

BLANK = 0


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token != BLANK]


def likeliest(log_probs: Tensor, tokens: list[int]) -> tuple[int, ...]:
    """Of all paths that give the tokens."""
    frames, size = log_probs.shape
    paths = [p for p in itertools.product(range(size), repeat=frames) if collapsed(p) == tokens]
    return max(paths, key=lambda p: sum(float(log_probs[t, i]) for t, i in enumerate(p)))


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 1], [2, 1, 1], [2, 2, 2], [1, 2, 1, 2, 1, 2]])
@pytest.mark.parametrize("seed", range(3))
def test_the_path_is_the_likeliest_of_all(seed: int, tokens: list[int]) -> None:
    drawn = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    log_probs = (3 * drawn).log_softmax(-1)
    runs = align(log_probs, tokens, BLANK)
    assert runs is not None
    assert [run.symbol for run in runs] == tokens
    path = [BLANK] * 6
    for run in runs:
        path[run.start : run.end] = [run.symbol] * (run.end - run.start)
        best = float(log_probs[run.start : run.end, run.symbol].max().exp())
        assert run.confidence == pytest.approx(best)
    assert tuple(path) == likeliest(log_probs, tokens)


def test_texts_without_a_path() -> None:
    log_probs = torch.zeros(3, 3).log_softmax(-1)
    assert align(log_probs, [1, 2, 1, 2], BLANK) is None
    assert align(log_probs, [1, 1, 2], BLANK) is None  # a blank must part the first two
    assert align(log_probs[:0], [1], BLANK) is None
    log_probs[:, 1] = -torch.inf
    assert align(log_probs, [1], BLANK) is None
    assert align(log_probs, [], BLANK) == []


def test_long_texts() -> None:
    tokens = [1 + i % 2 for i in range(300)]
    log_probs = torch.full((900, 3), -9.0)
    log_probs[torch.arange(300) * 3 + 1, tokens] = 0.0
    log_probs[:, BLANK] = -1.0
    runs = align(log_probs, tokens, BLANK)
    assert runs is not None
    assert [(run.start, run.end) for run in runs] == [(3 * i + 1, 3 * i + 2) for i in range(300)]
