"""Letters of a CTC path to text and to words with times.

Models that spell have one symbol per letter, one between words, and some that never enter text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pianissimo.errors import OptionError
from pianissimo.text.words import MAX_WORD_TOKENS, Word


@dataclass(frozen=True)
class Run:
    """One symbol of the path: the frames from `start` on and before `end` in which it stands."""

    symbol: int
    start: int
    end: int
    confidence: float
    """Between 0 and 1, where the symbol appears."""


@dataclass(frozen=True)
class Alphabet:
    """The symbols by id: letters, a space between words, "" for what never enters text.

    `lower_case` writes capitals small, for models trained on capitals only.
    """

    symbols: tuple[str, ...]
    blank: int
    lower_case: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.blank < len(self.symbols):
            raise OptionError(f"the blank {self.blank} is not among {len(self.symbols)} symbols")

    def words(
        self, runs: Iterable[Run], frame_seconds: float, duration: float | None = None
    ) -> tuple[Word, ...]:
        """The words of a path, each from its first letter's first frame to its last one's last.

        Confidence is that of the least certain letter. A word without end is cut after
        `MAX_WORD_TOKENS` letters; `duration` in seconds bounds every time.
        """
        words: list[Word] = []
        letters: list[Run] = []
        for run in runs:
            symbol = self.symbols[run.symbol]
            if symbol and not symbol.isspace():
                letters.append(run)
            if letters and (symbol.isspace() or len(letters) >= MAX_WORD_TOKENS):
                words.append(self._word(letters, frame_seconds, duration))
                letters = []
        if letters:
            words.append(self._word(letters, frame_seconds, duration))
        return tuple(words)

    def _word(self, letters: list[Run], frame_seconds: float, duration: float | None) -> Word:
        text = "".join(self.symbols[run.symbol] for run in letters)
        end = letters[-1].end * frame_seconds
        start = letters[0].start * frame_seconds
        if duration is not None:
            start, end = min(start, duration), min(end, duration)
        return Word(
            text.lower() if self.lower_case else text,
            round(start, 6),
            round(end, 6),
            min(run.confidence for run in letters),
        )
