"""Shallow fusion: scores of a language model and of hotwords, added to acoustic ones in a beam.

Both depend on the tokens of a hypothesis alone and are computed step by step: a state, the score
that each next token adds after it, and the score of the end. A language model scores tokens or
words; one of words scores a word once it has ended.
"""

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.lm.arpa import BEGIN, END, LN_10, UNKNOWN, read_arpa
from pianissimo.decoding.lm.ngram import NgramModel
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.errors import OptionError

TOKEN_WEIGHT = 0.3
WORD_WEIGHT, WORD_BONUS = 0.5, 1.5
"""Defaults; those for words are usual for CTC with a language model."""
UNKNOWN_WORD = -10 * LN_10
"""Added to the logarithm of a word that the language model does not know."""
FIRST_CODE = 100
"""A language model of tokens may write the token of number i as the character of code i + 100."""
HOTWORDS_GATE = 1.0
"""Bonuses would turn blanks into labels without a larger weight of the acoustics."""
MARKS = '.,!?;:\u2026\u3002\uff0c\uff01\uff1f"()[]'


class LanguageModel(Protocol):
    """Weighted scores of tokens after a state; for `gate` see `decoding/beam.py`."""

    gate: float

    def start(self) -> Hashable: ...

    def step(self, state: Hashable, token: int) -> tuple[float, Hashable]:
        """The score that a token adds, and the next state."""
        ...

    def end(self, state: Hashable) -> float:
        """The score of the end of the text."""
        ...

    def scores(self, states: Sequence[Hashable], device: torch.device) -> Tensor:
        """The score of each token: (R, V)."""
        ...


class TokenLm:
    """A language model over the model's own tokens; a state is that of the n-gram model."""

    def __init__(self, model: NgramModel, ids: Sequence[int | None], weight: float) -> None:
        self._model, self._ids, self._weight, self.gate = model, ids, weight, weight
        self._tables = model.tables()
        unknown = len(model.words)
        self._index = torch.tensor([unknown if i is None else i for i in ids])

    def start(self) -> int:
        return self._model.start()

    def step(self, state: Hashable, token: int) -> tuple[float, int]:
        assert isinstance(state, int)
        score, state = self._model.score(state, self._ids[token])
        return self._weight * score, state

    def end(self, state: Hashable) -> float:
        assert isinstance(state, int)
        return self._weight * self._model.end(state)

    def scores(self, states: Sequence[Hashable], device: torch.device) -> Tensor:
        if self._tables.back.device != device:
            self._tables = self._model.tables(device)
            self._index = self._index.to(device)
        index = torch.tensor(states, device=device)
        known = self._tables.scores(index)
        unknown = [self._model.score(s, None)[0] for s in states]  # type: ignore[arg-type]
        column = torch.tensor(unknown, dtype=known.dtype, device=device)[:, None]
        return self._weight * torch.cat([known, column], dim=1)[:, self._index]


@dataclass(frozen=True)
class WordState:
    """The n-gram state before the unfinished word, that word, its score, and the state after it."""

    model: int
    word: str = ""
    score: float = 0.0
    after: int = 0


class WordLm:
    """A language model over words, for a model of pieces or letters."""

    gate = 0.0

    def __init__(
        self, model: NgramModel, vocabulary: Vocabulary, weight: float, bonus: float
    ) -> None:
        self._model, self._vocabulary = model, vocabulary
        self._weight, self._bonus = weight, bonus
        self._breaks = torch.tensor(vocabulary.breaks)

    def start(self) -> WordState:
        return WordState(self._model.start())

    def step(self, state: Hashable, token: int) -> tuple[float, WordState]:
        assert isinstance(state, WordState)
        added, text = 0.0, self._vocabulary.texts[token]
        if self._vocabulary.breaks[token] and state.word:
            added, state = state.score, WordState(state.after)
        if not text:
            return added, state
        word = state.word + text
        score, after = self._scored(state.model, word)
        return added, WordState(state.model, word, score, after)

    def end(self, state: Hashable) -> float:
        assert isinstance(state, WordState)
        last = state.after if state.word else state.model
        return state.score + self._weight * self._model.end(last)

    def scores(self, states: Sequence[Hashable], device: torch.device) -> Tensor:
        ended = [state.score for state in states if isinstance(state, WordState)]
        return torch.tensor(ended, device=device)[:, None] * self._breaks.to(device)

    def _scored(self, state: int, word: str) -> tuple[float, int]:
        ids = self._model.ids
        plain = word.strip(MARKS)
        if not plain:
            return 0.0, state
        forms = (word, plain, plain.lower(), plain.upper())
        known = next((form for form in forms if form in ids), None)
        score, after = self._model.score(state, None if known is None else ids[known])
        if known is None:
            score += UNKNOWN_WORD
        return self._weight * score + self._bonus, after


def read_lm(
    path: str | os.PathLike[str],
    vocabulary: Vocabulary,
    weight: float | None = None,
    bonus: float | None = None,
) -> TokenLm | WordLm:
    """The language model of an ARPA file: over tokens if all its words are tokens, else over words.

    Raises OptionError or CheckpointError for a file that cannot be used.
    """
    model = NgramModel(read_arpa(path))
    words = set(model.words) - {BEGIN, END, UNKNOWN}
    size = len(vocabulary.pieces)
    if words <= set(vocabulary.pieces):
        ids: list[int | None] = [model.ids.get(p) if p else None for p in vocabulary.pieces]
    elif all(len(word) == 1 and 0 <= ord(word) - FIRST_CODE < size for word in words):
        ids = [model.ids.get(chr(i + FIRST_CODE)) for i in range(size)]
    else:
        return WordLm(
            model,
            vocabulary,
            WORD_WEIGHT if weight is None else weight,
            WORD_BONUS if bonus is None else bonus,
        )
    if bonus is not None:
        raise OptionError(f"{path} is a language model of tokens, without words; remove word_bonus")
    return TokenLm(model, ids, TOKEN_WEIGHT if weight is None else weight)


@dataclass(frozen=True)
class FusionState:
    """The position of a hypothesis in the language model and in the hotwords."""

    lm: Hashable
    node: int


@dataclass(frozen=True)
class Fusion:
    """The language model and the hotwords of one stream."""

    lm: LanguageModel | None = None
    trie: PhraseTrie | None = None

    @property
    def active(self) -> bool:
        return self.lm is not None or self.trie is not None

    @property
    def gate(self) -> float:
        """The extra weight of the acoustics' choice between blank and label in a transducer."""
        return (self.lm.gate if self.lm else 0.0) + (HOTWORDS_GATE if self.trie else 0.0)

    def start(self) -> FusionState:
        return FusionState(
            self.lm.start() if self.lm else None, self.trie.start if self.trie else 0
        )

    def step(self, state: FusionState, token: int) -> tuple[float, FusionState]:
        """The score that a token adds, and the next state."""
        total, lm, node = 0.0, state.lm, state.node
        if self.lm is not None:
            total, lm = self.lm.step(lm, token)
        if self.trie is not None:
            added, node = self.trie.step(node, token)
            total += added
        return total, FusionState(lm, node)

    def end(self, state: FusionState) -> float:
        """The score of the end of the text."""
        total = 0.0 if self.lm is None else self.lm.end(state.lm)
        return total if self.trie is None else total + self.trie.end(state.node)
