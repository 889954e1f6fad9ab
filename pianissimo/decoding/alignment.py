"""Frames of the tokens of a known text, by the likeliest path of a CTC head that spells it.

Graves et al. 2006 (ICML), section 4.1, with maxima in place of sums.

Shape legend: S encoder frames, U tokens, V vocabulary with blank, P = 2 U + 1 places: a blank, then
each token and a blank after it.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from pianissimo.text.characters import Run

STAY, NEXT, SKIP = 0, 1, 2
"""How a place is reached: from itself, from the place before, or by skipping a blank."""


def align(log_probs: Tensor, tokens: Sequence[int], blank: int) -> list[Run] | None:
    """The frames of each token in the likeliest path through (S, V) log-probabilities.

    A run's confidence is the highest probability that its token has in one of its frames. None if
    the text has no path: it is too long, or a token is impossible throughout.
    """
    if not tokens:
        return []
    scores = log_probs.double().cpu().numpy()
    places = np.full(2 * len(tokens) + 1, blank)
    places[1::2] = tokens
    # A blank between two tokens may be skipped unless they are equal.
    skips = np.zeros(len(places), bool)
    skips[3::2] = places[3::2] != places[1:-2:2]
    best = np.full(len(places), -np.inf)
    best[0] = 0.0
    moves = np.zeros((len(scores), len(places)), np.int8)
    for frame, frame_scores in enumerate(scores):
        reached = np.full((3, len(places)), -np.inf)
        reached[STAY] = best
        reached[NEXT, 1:] = best[:-1]
        reached[SKIP, 2:] = np.where(skips[2:], best[:-2], -np.inf)
        moves[frame] = reached.argmax(0)
        best = reached.max(0) + frame_scores[places]
    place = len(places) - 1 if best[-1] >= best[-2] else len(places) - 2
    if best[place] == -np.inf:
        return None
    path = np.empty(len(scores), np.int64)
    for frame in range(len(scores) - 1, -1, -1):
        path[frame] = place
        place -= int(moves[frame, place])
    runs = []
    for i, token in enumerate(tokens):
        frames = np.flatnonzero(path == 2 * i + 1)
        start, end = int(frames[0]), int(frames[-1]) + 1
        confidence = float(np.exp(scores[start:end, token].max()))
        runs.append(Run(token, start, end, min(confidence, 1.0)))
    return runs
