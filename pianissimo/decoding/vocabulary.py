"""The text of a model's symbols: where words begin, and how a text is spelled in symbols."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from pianissimo.text import WORD_START
from pianissimo.text.characters import Alphabet
from pianissimo.text.tokenizer import Tokenizer

SPELLINGS = 3
"""The number of segmentations of a text into pieces, the tokenizer's own included."""

# Thai and Lao, Burmese, Khmer, kana, Chinese: written without spaces between words.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF))
_IDEOGRAPHS = ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a model by id; the blank is absent or "".

    `pieces` are texts in which `▁` is a space; "" never enters text. `space` is the symbol between
    words of a model of letters, None where the first piece of a word marks its beginning.
    """

    pieces: tuple[str, ...]
    space: int | None = None
    tokenizer: Tokenizer | None = None

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer) -> "Vocabulary":
        silent = tokenizer.special_ids
        pieces = ("" if i in silent else piece for i, piece in enumerate(tokenizer.pieces))
        return cls(tuple(pieces), tokenizer=tokenizer)

    @classmethod
    def of_alphabet(cls, alphabet: Alphabet) -> "Vocabulary":
        lower = alphabet.lower_case
        pieces = tuple(
            WORD_START if s.isspace() else (s.lower() if lower else s) for s in alphabet.symbols
        )
        return cls(pieces, pieces.index(WORD_START) if WORD_START in pieces else None)

    @cached_property
    def breaks(self) -> tuple[bool, ...]:
        """Whether the word before a symbol ends there."""
        return tuple(piece.startswith(WORD_START) for piece in self.pieces)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The text that each symbol adds to its word."""
        return tuple(piece.removeprefix(WORD_START) for piece in self.pieces)

    @cached_property
    def joins(self) -> tuple[bool, ...]:
        """Whether a symbol continues the word before it and so changes that word."""
        return tuple(bool(p) and p[0].isalnum() and not _is_unspaced(p[0]) for p in self.pieces)

    def spellings(self, text: str) -> set[tuple[int, ...]]:
        """All ways to write a text, in its own and other letter cases; empty if there is none.

        Spellings of a model with a space symbol do not begin with it.
        """
        plain = " ".join(text.split())
        cases = {plain, plain.lower(), plain.upper(), plain.title(), plain[:1].upper() + plain[1:]}
        spellings: set[tuple[int, ...]] = set()
        for case in cases - {""}:
            if self.tokenizer is None:
                spellings.update(self._letters(case))
            else:
                spellings.update(self._segmentations(self.tokenizer, case))
        return spellings

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: i for i, piece in reversed(list(enumerate(self.pieces))) if piece}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)

    def _letters(self, text: str) -> Iterator[tuple[int, ...]]:
        ids = [self._ids.get(WORD_START if c == " " else c) for c in text]
        if None not in ids:
            yield tuple(i for i in ids if i is not None)

    def _segmentations(self, tokenizer: Tokenizer, text: str) -> Iterator[tuple[int, ...]]:
        own = tuple(tokenizer.encode(text))
        if own and not self.breaks[own[0]] and not _is_unspaced(text[0]):
            # Byte-level pieces add no space by themselves.
            own = tuple(tokenizer.encode(" " + text))
        if not own or any(not self.pieces[i] for i in own):
            return
        yield own
        yield from self._shortest(WORD_START + text.replace(" ", WORD_START), SPELLINGS - 1)
        if _is_unspaced(text[0]):
            # In these scripts no piece marks the beginning of a word.
            yield from self._shortest(text.replace(" ", WORD_START), 1)

    def _shortest(self, text: str, count: int) -> Sequence[tuple[int, ...]]:
        """The segmentations with the fewest pieces."""
        best: list[list[tuple[int, ...]]] = [[()], *([] for _ in text)]
        for end in range(1, len(text) + 1):
            ways = (
                (*before, i)
                for start in range(max(0, end - self._longest), end)
                if (i := self._ids.get(text[start:end])) is not None
                for before in best[start]
            )
            best[end] = heapq.nsmallest(count, ways, key=lambda way: (len(way), way))
        return best[-1]


def _is_unspaced(character: str) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in (*_UNSPACED, *_IDEOGRAPHS))
