"""When Whisper's words were said, and which tokens make a word.

The times come from the attention of the heads that follow the speech, aligned by dynamic time
warping as in the reference implementation. Shape legend: U tokens, S encoder frames of 20 ms.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from pianissimo.models.whisper import FRAME_SECONDS
from pianissimo.transcript import Word

SPACELESS = frozenset("zh ja th lo my yue".split())
"""Languages written without spaces: each character is timed as a word."""
OPENING, CLOSING = "\"'“¡¿([{-", "\"'.。,，!！?？:：”)]}、"
"""Marks that belong to the word after them, and to the one before."""

BACK_FRAMES, BACK_TOKENS = 50, 3
"""A text begins again where this many tokens in a row look a second behind the furthest frame."""

Decode = Callable[[Sequence[int]], str]


def timed_words(
    decode: Decode,
    ids: Sequence[int],
    log_probs: Sequence[float],
    starts: Sequence[float],
    language: str | None,
) -> tuple[Word, ...]:
    """Tokens to words; `starts` (s) has one more entry than there are tokens, the end.

    A word is as sure as the least likely of its tokens.
    """
    words = []
    for first, last, text in grouped(decode, ids, language in SPACELESS):
        confidence = min(math.exp(value) for value in log_probs[first:last])
        words.append(Word(text, round(starts[first], 6), round(starts[last], 6), confidence))
    return tuple(words)


def grouped(decode: Decode, ids: Sequence[int], spaceless: bool) -> list[tuple[int, int, str]]:
    """(first token, the one behind the last, text) of each word, marks joined to words."""
    parts: list[tuple[int, int, str]] = []
    start = 0
    for i in range(len(ids)):
        text = decode(ids[start : i + 1])
        if "\ufffd" not in text or i - start >= 3:  # a character may take several tokens
            if text:
                parts.append((start, i + 1, text))
            start = i + 1
    words: list[tuple[int, int, str]] = []
    opened = False
    for first, last, text in parts:
        bare = text.strip()
        begins = text.startswith(" ") or (spaceless and not opened) or not words
        if (bare and bare in CLOSING) and words and not text.startswith(" "):
            begins = False
        elif bare and bare in OPENING:
            begins = True
        if begins and not (opened and words):
            words.append((first, last, text))
        elif words:
            words[-1] = (words[-1][0], last, words[-1][2] + text)
        opened = bool(bare) and bare in OPENING
    return [(first, last, text.strip()) for first, last, text in words if text.strip()]


def token_starts(weights: Tensor, filter_width: int, first: int = 0) -> list[float]:
    """(heads, U, S) attention of each input over the frames -> when what it writes begins, in s.

    Of the attention only what falls into these frames counts. It is normalized over all U inputs,
    smoothed over the frames and averaged over the heads. The path that climbs through it from
    corner to corner, from input `first` to the one before the last, which is the end token, tells
    which frames belong to whom.
    """
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-10)
    deviation, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    weights = (weights - mean) / deviation.clamp(min=1e-10)
    side = filter_width // 2
    if weights.shape[-1] > side > 0:
        padded = F.pad(weights, (side, side), mode="reflect")
        weights = padded.unfold(-1, filter_width, 1).sort(-1).values[..., side]
    costs = -weights.mean(0)[first:-1].double().cpu().numpy()
    return [frame * FRAME_SECONDS for frame in climb(costs)]


def climb(costs: npt.NDArray[np.float64]) -> list[int]:
    """Dynamic time warping of rows over columns: (U, S) -> the first column of each row.

    The path goes from the first corner to the last one, each step one row on, one column on, or
    both, so that what it passes costs least.
    """
    U, S = costs.shape
    best = np.full((U + 1, S + 1), np.inf)
    best[0, 0] = 0.0
    steps = np.zeros((U + 1, S + 1), np.int8)
    for total in range(2, U + S + 1):  # one anti-diagonal after the other
        rows = np.arange(max(1, total - S), min(U, total - 1) + 1)
        columns = total - rows
        both, row = best[rows - 1, columns - 1], best[rows - 1, columns]
        column = best[rows, columns - 1]
        step = np.full(len(rows), 2)  # where two cost the same, the next column
        step[(row < both) & (row < column)] = 1
        step[(both < row) & (both < column)] = 0
        cheapest = np.choose(step, [both, row, column])
        best[rows, columns] = costs[rows - 1, columns - 1] + cheapest
        steps[rows, columns] = step
    first = [0] * U
    i, j = U, S
    while i > 0 and j > 0:
        first[i - 1] = j - 1
        taken = int(steps[i, j])
        i, j = i - (taken != 2), j - (taken != 1)
    return first


def begins_again(weights: Tensor) -> bool:
    """Whether a text goes back to what it has written already: (heads, U, S) attention of its U
    tokens over the frames of the recording. What follows the speech never goes back for long."""
    if weights.shape[1] < BACK_TOKENS or not weights.shape[2]:
        return False
    looked = weights.mean(0).argmax(-1)
    behind = looked < looked.cummax(0).values - BACK_FRAMES
    return bool(behind.unfold(0, BACK_TOKENS, 1).all(-1).any())
