"""The best assignment against brute force."""

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pianissimo.diarization.assignment import assignment


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_the_assignment_is_the_best_of_all(rows: int, columns: int, seed: int) -> None:
    costs = np.random.default_rng(seed).integers(-9, 9, (rows, columns)).astype(float)
    pairs = assignment(costs)
    assert len({row for row, _ in pairs}) == len({c for _, c in pairs}) == min(rows, columns)
    wide = costs if rows <= columns else costs.T
    best = min(
        sum(wide[i, c] for i, c in enumerate(p))
        for p in permutations(range(len(wide.T)), len(wide))
    )
    assert sum(costs[pair] for pair in pairs) == best
