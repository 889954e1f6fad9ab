"""Back-off n-gram models as arrays, scored one word at a time or all words for a batch of states.

A state stands for the longest suffix of the history that is a context of the model. Its arcs are
the words seen after it; any other word is scored in a shorter context, with the back-off weight.
States and arcs are numbered alike: arcs are sorted by (state, word), and the arc of number i leads
to state i + 1 unless its n-gram is of the highest order (after the layout of Bataev et al. 2025,
arXiv 2505.22857).

Shape legend: R states of a batch, V words, A arcs, N states. Logarithms are natural.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pianissimo.decoding.lm.arpa import BEGIN, END, LN_10, UNKNOWN, Arpa

NO_UNKNOWN = -100 * LN_10
"""The logarithm for a word outside a model without <unk>, as in KenLM."""
ROOT = 0

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class NgramModel:
    """An n-gram model as an automaton; its scores are those of the ARPA definition."""

    def __init__(self, arpa: Arpa) -> None:
        self.words, self.order = arpa.words, arpa.order
        self.ids = {word: i for i, word in enumerate(arpa.words)}
        self.keys, self.log_probs, self.targets, self.back, self.backoffs = _automaton(arpa)
        states = np.arange(len(self.back) + 1, dtype=np.int64)
        self.first: Ints = np.searchsorted(self.keys, states * len(self.words))
        """Where the arcs of each state begin: (N + 1,)."""

    def start(self) -> int:
        """The state at the beginning of a sentence."""
        begin = self.ids.get(BEGIN)
        return ROOT if begin is None else self.score(ROOT, begin)[1]

    def score(self, state: int, word: int | None) -> tuple[float, int]:
        """Log-probability of a word after a state, and the next state; None is an unknown word."""
        if word is None:
            word = self.ids.get(UNKNOWN)
            if word is None:
                return NO_UNKNOWN, ROOT
        total, size = 0.0, len(self.words)
        while True:
            key = state * size + word
            arc = int(np.searchsorted(self.keys, key))
            if arc < len(self.keys) and self.keys[arc] == key:
                return total + float(self.log_probs[arc]), int(self.targets[arc])
            if state == ROOT:
                return NO_UNKNOWN, ROOT
            total += float(self.backoffs[state])
            state = int(self.back[state])

    def end(self, state: int) -> float:
        """Log-probability that the sentence ends after a state; 0 if the model knows no ends."""
        end = self.ids.get(END)
        return 0.0 if end is None else self.score(state, end)[0]

    def tables(self, device: torch.device | str = "cpu") -> "NgramTables":
        """The model on a device, for scoring in batches."""
        arrays = (self.log_probs, self.targets, self.back, self.backoffs, self.first)
        words = torch.from_numpy(self.keys % len(self.words)).to(device)
        return NgramTables(
            self.order, len(self.words), words, *(torch.from_numpy(a).to(device) for a in arrays)
        )


@dataclass(frozen=True)
class NgramTables:
    """The arcs and states of a model as tensors.

    words, log_probs, targets: (A,) of each arc; back, backoffs: (N,); first: (N + 1,).
    """

    order: int
    size: int
    words: Tensor
    log_probs: Tensor
    targets: Tensor
    back: Tensor
    backoffs: Tensor
    first: Tensor

    def scores(self, states: Tensor) -> Tensor:
        """(R,) states -> (R, V) log-probabilities of every word after each."""
        chain, weights = [states], [torch.zeros_like(states, dtype=torch.float32)]
        for _ in range(self.order - 1):
            weights.append(weights[-1] + self.backoffs[chain[-1]])
            chain.append(self.back[chain[-1]])
        # Every word has an arc at the root; longer contexts overwrite the scores of shorter ones.
        unigrams = torch.full((self.size,), NO_UNKNOWN, device=states.device)
        unigrams[self.words[: self.first[1]]] = self.log_probs[: self.first[1]]
        scores = unigrams + weights[-1][:, None]
        for context, weight in zip(reversed(chain), reversed(weights), strict=True):
            starts, ends = self.first[context], self.first[context + 1]
            counts = torch.where(context == ROOT, 0, ends - starts)
            rows = torch.repeat_interleave(counts)
            within = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
            arcs = starts[rows] + within
            scores[rows, self.words[arcs]] = self.log_probs[arcs] + weight[rows]
        return scores


def _automaton(arpa: Arpa) -> tuple[Ints, Floats, Ints, Ints, Floats]:
    """Keys (state * V + word), log-probabilities and targets of arcs; back-off target and weight
    of states."""
    size, highest = len(arpa.words), arpa.order
    keys, log_probs = np.zeros(0, np.int64), np.zeros(0, np.float32)
    back, backoffs = np.zeros(1, np.int64), np.zeros(1, np.float32)
    targets = np.zeros(0, np.int64)
    missing = _missing_contexts(arpa)
    for order in range(1, highest + 1):
        added = missing[order - 1]
        ngrams = np.concatenate([arpa.ngrams[order - 1], added]).astype(np.int64)
        contexts = np.zeros(len(ngrams), np.int64)
        for column in range(order - 1):
            contexts = np.searchsorted(keys, contexts * size + ngrams[:, column]) + 1
        suffixes, inherited = _shorter(
            keys, log_probs, back, backoffs, contexts, ngrams[:, -1], size
        )
        # An n-gram that the file lacks gets its probability by backing off.
        given = np.concatenate([arpa.log_probs[order - 1], inherited[len(ngrams) - len(added) :]])
        weights = np.concatenate([arpa.backoffs[order - 1], np.zeros(len(added), np.float32)])
        new = contexts * size + ngrams[:, -1]
        sorting = np.argsort(new)
        own = np.arange(len(new), dtype=np.int64) + len(keys) + 1
        keys = np.concatenate([keys, new[sorting]])
        log_probs = np.concatenate([log_probs, given[sorting]])
        targets = np.concatenate([targets, own if order < highest else suffixes[sorting]])
        if order < highest:
            back = np.concatenate([back, suffixes[sorting]])
            backoffs = np.concatenate([backoffs, weights[sorting]])
    return keys, log_probs, targets, back, backoffs


def _shorter(
    keys: Ints,
    log_probs: Floats,
    back: Ints,
    backoffs: Floats,
    contexts: Ints,
    words: Ints,
    size: int,
) -> tuple[Ints, Floats]:
    """Each (context, word) in the longest shorter context that has it: the state it leads to, and
    its log-probability with the weights of backing off so far."""
    states = np.zeros(len(words), np.int64)
    inherited = np.zeros(len(words), np.float32)
    if not len(keys):
        return states, inherited
    left, at = np.arange(len(words)), contexts
    while len(left):
        inherited[left] += backoffs[at]
        at = back[at]
        wanted = at * size + words[left]
        arcs = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        hit = keys[arcs] == wanted
        states[left[hit]] = arcs[hit] + 1
        inherited[left[hit]] += log_probs[arcs[hit]]
        left, at = left[~hit], at[~hit]
    return states, inherited


def _missing_contexts(arpa: Arpa) -> list[npt.NDArray[np.int32]]:
    """By order, the contexts of longer n-grams that a pruned model does not list."""
    missing = [np.zeros((0, k), np.int32) for k in range(1, arpa.order + 1)]
    for k in range(arpa.order - 1, 0, -1):
        longer = np.concatenate([arpa.ngrams[k], missing[k]])
        contexts = np.unique(longer[:, :-1], axis=0)
        missing[k - 1] = contexts[~np.isin(_whole(contexts), _whole(arpa.ngrams[k - 1]))]
    return missing


def _whole(rows: npt.NDArray[np.int32]) -> npt.NDArray[np.void]:
    """Each row of a matrix as one comparable value."""
    rows = np.ascontiguousarray(rows)
    return rows.view([("", rows.dtype)] * rows.shape[1])[:, 0]
