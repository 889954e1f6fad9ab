"""Hotwords: phrases that a search favors, as a trie over tokens with failure links.

A token that begins or continues a phrase gets a bonus in nats, each token after the first one twice
as much: the longer the matched part, the likelier the phrase (Andrusenko et al. 2025, arXiv
2508.07014). A phrase counts once it is complete and its last word has ended. The bonus of an
abandoned phrase is subtracted again (Aho and Corasick 1975), so that a beam compares hypotheses by
their final texts. A greedy search cannot revise a token and uses the bonuses alone.

Bonuses cannot cause a loop: each is bounded, each token gets at most one, and in greedy search the
acoustics alone decide where a label is emitted. In a beam a bonus competes with the blank, and has
a tighter limit.
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

FIRST_BONUS, NEXT_BONUS = 1.0, 2.0
"""Nats for the first token of a phrase of weight 1, and for each after it."""
LARGEST_BEAM_BONUS = 2.0
"""The most nats per token in a beam; more of them would add words that were not said."""
LARGEST_WEIGHT = 5.0
MOST_PHRASES = 10_000
LONGEST_PHRASE = 200
MOST_CHARACTERS = 300_000
MOST_KEPT = 1 << 23
"""Numbers in the rows that a trie keeps for reuse: 32 MB."""
ROOT, NOTHING = 0, -1


@dataclass(frozen=True)
class Phrase:
    """A hotword of one or several words, with a weight above 0 and up to 5."""

    text: str
    weight: float = 1.0


Boost: TypeAlias = Sequence[str | Phrase]
"""The requested hotwords; a plain string has the weight 1."""


class PhraseTrie:
    """The automaton over all spellings of some phrases; streams may share it.

    A node stands for the parts of phrases that the last tokens match. `held` (by node) is the bonus
    that is subtracted if no phrase is completed.
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
        self.bonuses, self._ends = [0.0], [False]
        prefix = () if vocabulary.space is None else (vocabulary.space,)
        for tokens, weight in spellings:
            node = ROOT
            for depth, token in enumerate((*prefix, *tokens), start=-len(prefix)):
                bonus = 0.0 if depth < 0 else weight * (NEXT_BONUS if depth else FIRST_BONUS)
                node = self._child(node, token, bonus)
            self._ends[node] = True
        # A recording begins where a word may begin.
        self.start = self._children[ROOT].get(vocabulary.space or 0, ROOT) if prefix else ROOT
        self._fails, self.held = [ROOT] * len(self.bonuses), [0.0] * len(self.bonuses)
        self._link()
        self._joined = torch.tensor(self.joins)
        self._rows: dict[tuple[int, bool, torch.device], Tensor] = {}

    def _child(self, node: int, token: int, bonus: float) -> int:
        child = self._children[node].get(token)
        if child is None:
            child = self._children[node][token] = len(self.bonuses)
            self._children.append({})
            self.bonuses.append(bonus)
            self._ends.append(False)
        self.bonuses[child] = max(self.bonuses[child], bonus)
        return child

    def _link(self) -> None:
        waiting = deque([ROOT])
        while waiting:
            node = waiting.popleft()
            for token, child in self._children[node].items():
                complete = self._ends[node] and not self.joins[token]
                bonus = min(self.bonuses[child], LARGEST_BEAM_BONUS)
                self.held[child] = bonus + (0.0 if complete else self.held[node])
                if node != ROOT:
                    fail = self._fails[node]
                    while fail != ROOT and token not in self._children[fail]:
                        fail = self._fails[fail]
                    self._fails[child] = self._children[fail].get(token, ROOT)
                waiting.append(child)

    def step(self, node: int, token: int) -> tuple[float, int]:
        """The score that a token adds to a hypothesis, and the next node."""
        at, kept = node, 0.0
        while True:
            complete = self._ends[at] and not self.joins[token]
            kept = self.held[at] if complete else 0.0
            child = self._children[at].get(token)
            if child is None and complete:
                # The next phrase may begin right after this one, but shares no token with it.
                child = self._children[ROOT].get(token, ROOT)
            if child is not None or at == ROOT:
                break
            at = self._fails[at]
        to = ROOT if child is None else child
        return kept + self.held[to] - self.held[node], to

    def walk(self, tokens: Iterable[int], node: int = ROOT) -> int:
        """The node behind further tokens."""
        for token in tokens:
            _, node = self.step(node, token)
        return node

    def end(self, node: int) -> float:
        """The score of the end of the text: minus the bonus of an incomplete phrase."""
        at = node
        while at != ROOT and not self._ends[at]:
            at = self._fails[at]
        return self.held[at] - self.held[node]

    def scores(self, node: int, device: torch.device) -> Tensor:
        """The score that each next token adds to a hypothesis: (V,)."""
        return self._row(node, True, device)

    def token_bonuses(self, node: int, device: torch.device) -> Tensor:
        """The bonus of each next token, at least 0: (V,)."""
        return self._row(node, False, device)

    def _row(self, node: int, refunds: bool, device: torch.device) -> Tensor:
        key = (node, refunds, device)
        row = self._rows.get(key)
        if row is None:
            if (len(self._rows) + 1) * self.size > MOST_KEPT:
                self._rows.clear()
            row = self._rows[key] = self._compute_row(node, refunds).to(device)
        return row

    def _compute_row(self, node: int, refunds: bool) -> Tensor:
        chain, tokens = node, set(self._children[ROOT])
        while chain != ROOT:
            tokens |= self._children[chain].keys()
            chain = self._fails[chain]
        row = torch.zeros(self.size)
        if refunds:
            row = torch.where(self._joined, -self.held[node], self.end(node))
        index = sorted(tokens)
        steps = [self.step(node, token) for token in index]
        values = [score if refunds else self.bonuses[to] for score, to in steps]
        row[torch.tensor(index, dtype=torch.long)] = torch.tensor(values)
        return row


def make_trie(boost: Boost | None, vocabulary: Vocabulary) -> PhraseTrie | None:
    """The trie of the requested hotwords; None if there are none.

    Each phrase matches in several letter cases and in several segmentations into pieces. Raises
    OptionError for an empty phrase, one that the model cannot write, a weight out of range, or too
    many phrases.
    """
    if not boost:
        return None
    if isinstance(boost, str):
        raise OptionError("boost must be a list of phrases, not a string: boost=['Ada Lovelace']")
    if len(boost) > MOST_PHRASES:
        raise OptionError(f"boost has {len(boost):,} phrases; at most {MOST_PHRASES:,} are allowed")
    spellings: dict[tuple[int, ...], float] = {}
    phrases = [Phrase(item) if isinstance(item, str) else item for item in boost]
    if sum(len(phrase.text) for phrase in phrases) > MOST_CHARACTERS:
        raise OptionError(f"the phrases of boost may have {MOST_CHARACTERS:,} characters in total")
    for phrase in phrases:
        if not phrase.text.strip() or len(phrase.text) > LONGEST_PHRASE:
            raise OptionError(f"a phrase of boost must have 1 to {LONGEST_PHRASE} characters")
        if not math.isfinite(phrase.weight) or not 0 < phrase.weight <= LARGEST_WEIGHT:
            raise OptionError(
                f"the weight of {phrase.text!r} must be above 0 and at most {LARGEST_WEIGHT:g}, "
                f"not {phrase.weight}"
            )
        ways = vocabulary.spellings(phrase.text)
        if not ways:
            raise OptionError(f"this model cannot write {phrase.text!r}; remove it from boost")
        for way in sorted(ways):
            spellings[way] = max(phrase.weight, spellings.get(way, 0.0))
    return PhraseTrie(spellings.items(), vocabulary, phrases)


@dataclass
class StreamHotwords:
    """The hotwords of B streams, and the position of each stream in its trie.

    `places` (B, 2), on the host, are each stream's node and, for CTC, the last symbol by the
    acoustics alone: a frame that repeats it repeats the label that was chosen for it.
    """

    tries: list[PhraseTrie | None]
    places: Tensor

    @classmethod
    def of(cls, tries: Sequence[PhraseTrie | None]) -> "StreamHotwords":
        """At the beginning of each stream."""
        places = [[ROOT if trie is None else trie.start, NOTHING] for trie in tries]
        return cls(list(tries), torch.tensor(places))

    def rows(self, index: Tensor) -> "StreamHotwords":
        """The part of some streams, copied: index (R,)."""
        return StreamHotwords([self.tries[i] for i in index.tolist()], self.places[index.cpu()])

    def write(self, index: Tensor, rows: "StreamHotwords | None") -> None:
        """Put back what `rows` returned, in place; None stands for streams without hotwords."""
        rows = rows or StreamHotwords.of([None] * len(index))
        for row, stream in enumerate(index.tolist()):
            self.tries[stream] = rows.tries[row]
        self.places[index.cpu()] = rows.places

    def node(self, row: int) -> int:
        return int(self.places[row, 0])

    def token_bonuses(self, device: torch.device, size: int) -> Tensor:
        """The bonus of each next token of each stream: (B, V)."""
        none = torch.zeros(size, device=device)
        return torch.stack(
            [
                none if trie is None else trie.token_bonuses(self.node(row), device)
                for row, trie in enumerate(self.tries)
            ]
        )

    def advance(self, row: int, token: int) -> None:
        """Move a stream on by the token that it emitted."""
        if (trie := self.tries[row]) is not None:
            _, self.places[row, 0] = trie.step(self.node(row), token)

    def check(self) -> None:
        """Raises ValueError if a place that was read from elsewhere is not in its trie."""
        for row, trie in enumerate(self.tries):
            if trie is not None and not 0 <= self.node(row) < len(trie.bonuses):
                raise ValueError("its position is not in the trie of its hotwords")


def start_hotwords(tries: Sequence[PhraseTrie | None] | None) -> StreamHotwords | None:
    """The hotwords of streams at their beginning; None if no stream has any."""
    return StreamHotwords.of(tries) if tries is not None and any(tries) else None
