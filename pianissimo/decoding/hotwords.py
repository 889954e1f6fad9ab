"""Phrases that a stream should rather hear: a trie over tokens with failure links.

A token that begins or continues a phrase is lifted by some nats, the ones after the first twice as
much: the further a phrase has come, the likelier it is meant (Andrusenko et al. 2025, arXiv
2508.07014). A phrase counts once it is complete and its last word has ended; the lift of one that
was begun and given up is paid back (Aho and Corasick 1975), so that a beam compares hypotheses by
what they say. A greedy search cannot take a token back and only gets the lifts.

Lifts cannot make a loop: each is bounded, each token takes at most one, and in greedy search the
acoustics alone decide where a label is emitted at all. In a beam a lift does compete with the
blank, and is bounded more tightly.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.errors import OptionError

FIRST_LIFT, NEXT_LIFT = 1.0, 2.0
"""Nats for the first token of a phrase of weight 1, and for each after it."""
MOST_IN_BEAM = 2.0
"""Nats for a token in a beam at most: there more of them would write what nobody said."""
LARGEST_WEIGHT = 5.0
MOST_PHRASES = 10_000
LONGEST_PHRASE = 200
MOST_CHARACTERS = 300_000
ROWS_KEPT = 1024
ROOT, NOTHING = 0, -1


@dataclass(frozen=True)
class Phrase:
    """A word or several, and how much it is lifted, above 0 and up to 5."""

    text: str
    weight: float = 1.0


Boost: TypeAlias = Sequence[str | Phrase]
"""Phrases that a caller asks for, plain ones with the weight 1."""


class PhraseTrie:
    """The automaton over all spellings of some phrases; the same one may serve many streams.

    A node says how much of which phrases the last tokens are. `held` (by node) is the lift that is
    to be paid back if it comes to nothing.
    """

    def __init__(
        self,
        spellings: Iterable[tuple[tuple[int, ...], float]],
        vocabulary: Vocabulary,
        phrases: Sequence[Phrase] = (),
    ) -> None:
        """`spellings` are tokens with their phrase's weight; see `make_trie`."""
        self.phrases = tuple(phrases)
        self.joins, self.size = vocabulary.joins, len(vocabulary.pieces)
        self._children: list[dict[int, int]] = [{}]
        self.lifts, self._ends = [0.0], [False]
        prefix = () if vocabulary.space is None else (vocabulary.space,)
        for tokens, weight in spellings:
            node = ROOT
            for depth, token in enumerate((*prefix, *tokens), start=-len(prefix)):
                lift = 0.0 if depth < 0 else weight * (NEXT_LIFT if depth else FIRST_LIFT)
                node = self._child(node, token, lift)
            self._ends[node] = True
        # A recording begins where a word may begin.
        self.start = self._children[ROOT].get(vocabulary.space or 0, ROOT) if prefix else ROOT
        self._fails, self.held = [ROOT] * len(self.lifts), [0.0] * len(self.lifts)
        self._link()
        self._joined = torch.tensor(self.joins)
        self._rows: dict[tuple[int, bool, torch.device], Tensor] = {}

    def _child(self, node: int, token: int, lift: float) -> int:
        child = self._children[node].get(token)
        if child is None:
            child = self._children[node][token] = len(self.lifts)
            self._children.append({})
            self.lifts.append(lift)
            self._ends.append(False)
        self.lifts[child] = max(self.lifts[child], lift)
        return child

    def _link(self) -> None:
        waiting = deque([ROOT])
        while waiting:
            node = waiting.popleft()
            for token, child in self._children[node].items():
                complete = self._ends[node] and not self.joins[token]
                lift = min(self.lifts[child], MOST_IN_BEAM)
                self.held[child] = lift + (0.0 if complete else self.held[node])
                if node != ROOT:
                    fail = self._fails[node]
                    while fail != ROOT and token not in self._children[fail]:
                        fail = self._fails[fail]
                    self._fails[child] = self._children[fail].get(token, ROOT)
                waiting.append(child)

    def step(self, node: int, token: int) -> tuple[float, int]:
        """What a token adds to the score of a hypothesis, and the node then."""
        at, kept = node, 0.0
        while True:
            complete = self._ends[at] and not self.joins[token]
            kept = self.held[at] if complete else 0.0
            child = self._children[at].get(token)
            if child is None and complete:
                # What follows a phrase may begin the next one, but shares no token with it.
                child = self._children[ROOT].get(token, ROOT)
            if child is not None or at == ROOT:
                break
            at = self._fails[at]
        to = ROOT if child is None else child
        return kept + self.held[to] - self.held[node], to

    def end(self, node: int) -> float:
        """What is added where the text ends: a phrase that is not complete is paid back."""
        at = node
        while at != ROOT and not self._ends[at]:
            at = self._fails[at]
        return self.held[at] - self.held[node]

    def scores(self, node: int, device: torch.device) -> Tensor:
        """What each next token adds to the score of a hypothesis: (V,)."""
        return self._row(node, True, device)

    def lifted(self, node: int, device: torch.device) -> Tensor:
        """What each next token is lifted by, never below 0: (V,)."""
        return self._row(node, False, device)

    def _row(self, node: int, refunds: bool, device: torch.device) -> Tensor:
        key = (node, refunds, device)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= ROWS_KEPT:
                self._rows.clear()
            row = self._rows[key] = self._computed(node, refunds).to(device)
        return row

    def _computed(self, node: int, refunds: bool) -> Tensor:
        chain, tokens = node, set(self._children[ROOT])
        while chain != ROOT:
            tokens |= self._children[chain].keys()
            chain = self._fails[chain]
        row = torch.zeros(self.size)
        if refunds:
            row = torch.where(self._joined, -self.held[node], self.end(node))
        index = sorted(tokens)
        steps = [self.step(node, token) for token in index]
        values = [score if refunds else self.lifts[to] for score, to in steps]
        row[torch.tensor(index, dtype=torch.long)] = torch.tensor(values)
        return row


def make_trie(boost: Boost | None, vocabulary: Vocabulary) -> PhraseTrie | None:
    """The trie of the phrases that a caller asks for; None if there are none.

    Each is found in several cases and in several ways to put it together from pieces. Raises
    OptionError for an empty phrase, one that the model cannot write, a weight out of range, or too
    many.
    """
    if not boost:
        return None
    if isinstance(boost, str):
        raise OptionError("boost is a list of phrases: boost=['Ada Lovelace']")
    if len(boost) > MOST_PHRASES:
        raise OptionError(f"{len(boost):,} phrases are too many to boost; {MOST_PHRASES:,} may be")
    spellings: dict[tuple[int, ...], float] = {}
    phrases = [Phrase(item) if isinstance(item, str) else item for item in boost]
    if sum(len(phrase.text) for phrase in phrases) > MOST_CHARACTERS:
        raise OptionError(f"the phrases to boost have more than {MOST_CHARACTERS:,} characters")
    for phrase in phrases:
        if not phrase.text.strip() or len(phrase.text) > LONGEST_PHRASE:
            raise OptionError(f"a phrase to boost has 1 to {LONGEST_PHRASE} characters")
        if not math.isfinite(phrase.weight) or not 0 < phrase.weight <= LARGEST_WEIGHT:
            raise OptionError(
                f"the weight of {phrase.text!r} must be above 0 and at most {LARGEST_WEIGHT:g}, "
                f"not {phrase.weight}"
            )
        ways = vocabulary.spellings(phrase.text)
        if not ways:
            raise OptionError(f"this model cannot write {phrase.text!r}: leave it out")
        for way in sorted(ways):
            spellings[way] = max(phrase.weight, spellings.get(way, 0.0))
    return PhraseTrie(spellings.items(), vocabulary, phrases)


@dataclass
class Boosts:
    """Which phrases each of B streams boosts, and where it is among them.

    `places` (B, 2), on the host, are each stream's node and, for CTC, the last symbol as the
    acoustics alone had it: a frame that repeats it repeats the label that was chosen for it.
    """

    tries: list[PhraseTrie | None]
    places: Tensor

    @classmethod
    def of(cls, tries: Sequence[PhraseTrie | None]) -> "Boosts":
        """At the beginning of each stream."""
        places = [[ROOT if trie is None else trie.start, NOTHING] for trie in tries]
        return cls(list(tries), torch.tensor(places))

    def rows(self, index: Tensor) -> "Boosts":
        """The part of some streams, copied: index (R,)."""
        return Boosts([self.tries[i] for i in index.tolist()], self.places[index.cpu()])

    def write(self, index: Tensor, rows: "Boosts | None") -> None:
        """Put back what `rows` returned, in place; None are streams without phrases."""
        rows = rows or Boosts.of([None] * len(index))
        for row, stream in enumerate(index.tolist()):
            self.tries[stream] = rows.tries[row]
        self.places[index.cpu()] = rows.places

    def node(self, row: int) -> int:
        return int(self.places[row, 0])

    def lifted(self, device: torch.device, size: int) -> Tensor:
        """What each next token of each stream is lifted by: (B, V)."""
        none = torch.zeros(size, device=device)
        return torch.stack(
            [
                none if trie is None else trie.lifted(self.node(row), device)
                for row, trie in enumerate(self.tries)
            ]
        )

    def advance(self, row: int, token: int) -> None:
        """A stream emitted a token."""
        if (trie := self.tries[row]) is not None:
            _, self.places[row, 0] = trie.step(self.node(row), token)

    def check(self) -> None:
        """Raises ValueError if a place that was read from somewhere is none of its trie's."""
        for row, trie in enumerate(self.tries):
            if trie is not None and not 0 <= self.node(row) < len(trie.lifts):
                raise ValueError("it is at no place among its phrases")


def boosts_of(tries: Sequence[PhraseTrie | None] | None) -> Boosts | None:
    """The boosts of streams at their beginning; None if none of them has phrases."""
    return Boosts.of(tries) if tries is not None and any(tries) else None
