"""Repetition in text and tokens: find it, stop decoding in it, trim it."""

import re
import unicodedata
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

LOOP_KEPT = 2
"""Rounds that are left of a loop."""
_LOOP_UNIT, _LOOP_REPEATS = 8, 5

_STUCK_TOKENS, _STUCK_DISTINCT = 40, 4

_COMPRESSION, _COMPRESSIBLE_CHARACTERS = 2.4, 80

Token = TypeVar("Token", bound=Hashable)


@dataclass(frozen=True)
class Loop:
    """`unit` tokens from `start` on, said `repeats` times in a row."""

    start: int
    unit: int
    repeats: int


def find_loop(tokens: Sequence[Hashable], repeats: int = _LOOP_REPEATS) -> Loop | None:
    """The first place where one to eight tokens are said `repeats` times in a row, or None."""
    n = len(tokens)
    for unit in range(1, _LOOP_UNIT + 1):
        same = 0  # tokens in a row that equal the one a unit before
        for i in range(unit, n):
            same = same + 1 if tokens[i] == tokens[i - unit] else 0
            if same == unit * (repeats - 1):
                start = i + 1 - unit * repeats
                while i + 1 < n and tokens[i + 1] == tokens[i + 1 - unit]:
                    i += 1
                return Loop(start, unit, (i + 1 - start) // unit)
    return None


def is_stuck(tokens: Sequence[Hashable]) -> bool:
    """Whether decoding should stop: the end is a loop, or the last 40 tokens are of 4 kinds."""
    recent = list(tokens[-_STUCK_TOKENS:])
    if len(recent) == _STUCK_TOKENS and len(set(recent)) <= _STUCK_DISTINCT:
        return True
    for unit in range(1, _LOOP_UNIT + 1):
        last = recent[-unit * _LOOP_REPEATS :]
        if len(last) == unit * _LOOP_REPEATS and last == last[:unit] * _LOOP_REPEATS:
            return True
    return False


def trim_loop(tokens: Sequence[Token]) -> list[Token]:
    """The tokens with every loop cut down to its first two rounds."""
    kept = list(tokens)
    while (loop := find_loop(kept)) is not None:
        del kept[loop.start + LOOP_KEPT * loop.unit : loop.start + loop.repeats * loop.unit]
    return kept


def is_monotonous(text: str, tokens: Sequence[Hashable] = ()) -> bool:
    """Whether `tokens` loop, or long text compresses as only repeated text does.

    Text in a script without spaces must have a loop of characters.
    """
    if find_loop(tokens) is not None:
        return True
    spoken = " ".join(text.split())
    if han_share(spoken) > 0.3:
        return find_loop(letters(spoken)) is not None
    data = spoken.encode()
    if len(data) < _COMPRESSIBLE_CHARACTERS:
        return False
    return len(data) / len(zlib.compress(data)) > _COMPRESSION


def letters(text: str) -> str:
    """Letters and digits alone, in lower case."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if unicodedata.category(c)[0] in "LN")


_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff]")


def han_share(text: str) -> float:
    """The share of Han characters and kana among the letters and digits, between 0 and 1."""
    spoken = letters(text)
    return len(_HAN.findall(spoken)) / len(spoken) if spoken else 0.0
