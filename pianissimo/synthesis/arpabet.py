"""English text to ARPAbet, the phonemes of CMUdict, which FastSpeech2's voices were trained on.

Words are read by hibari-tts, whose phonemes are those of misaki; a table turns these into ARPAbet.
`{HH AH0 L OW1}` in a text gives phonemes directly.
"""

import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from pianissimo.errors import MissingExtraError, TextError

if TYPE_CHECKING:
    pass

VOWELS = {
    "A": "EY",
    "I": "AY",
    "W": "AW",
    "Y": "OY",
    "O": "OW",
    "ɑ": "AA",
    "æ": "AE",
    "ʌ": "AH",
    "ə": "AH",
    "ᵊ": "AH",
    "ɐ": "AH",
    "ɔ": "AO",
    "ɛ": "EH",
    "ɪ": "IH",
    "ᵻ": "IH",
    "i": "IY",
    "ʊ": "UH",
    "u": "UW",
    "ɜ": "ER",
}
"""Phonemes of misaki -> vowels of ARPAbet, to which a stress is added."""
CONSONANTS = {
    **{letter: letter.upper() for letter in "bdfklmnpstvwz"},
    "h": "HH",
    "j": "Y",
    "T": "T",
    "ɾ": "T",
    "ʔ": "T",
    "ð": "DH",
    "ŋ": "NG",
    "ɡ": "G",
    "ɹ": "R",
    "ʃ": "SH",
    "ʒ": "ZH",
    "ʤ": "JH",
    "ʧ": "CH",
    "θ": "TH",
}
PUNCTUATION = {",": ",", ".": ".", "?": "?", "!": "!", ";": ",", ":": ",", "—": ",", "…": "..."}
R_COLORED = ("ɜ", "ə")
"""Vowels that are one phoneme, ER, with an R behind them."""
STRESSES = {"ˈ": "1", "ˌ": "2"}
_GIVEN = re.compile(r"\{([^{}]*)\}")


class EnglishPhonemes:
    """Text to symbols of a vocabulary. Raises MissingExtraError without hibari-tts."""

    def __init__(self, vocabulary: Collection[str]) -> None:
        try:
            from hibari.g2p import G2P
        except ImportError as error:
            raise MissingExtraError(
                "English text needs the hibari-tts package: pip install 'pianissimo[tts]'"
            ) from error
        self._words: G2P = G2P()
        self._vocabulary = vocabulary

    def read(self, text: str) -> list[str]:
        """The symbols of a sentence; TextError for unreadable text and unknown symbols."""
        symbols = list[str]()
        for index, part in enumerate(_GIVEN.split(text)):
            if index % 2:
                symbols += self._given(part)
                continue
            try:
                phonemes = self._words(part) if part.strip() else ""
            except (IndexError, KeyError, ValueError) as error:  # numbers that it cannot read
                raise TextError(f"{part[:40]!r} cannot be pronounced; write it in words") from error
            symbols += to_arpabet(phonemes)
        spaces = " " in self._vocabulary
        return [s for s in symbols if s in self._vocabulary or (s == " " and spaces)]

    def _given(self, text: str) -> list[str]:
        given = text.split()
        for symbol in given:
            if symbol not in self._vocabulary:
                raise TextError(
                    f"{{{text[:40]}}} has the unknown phoneme {symbol[:20]!r}; write ARPAbet with "
                    "stress digits, such as {HH AH0 L OW1}"
                )
        return given


def to_arpabet(phonemes: str) -> Iterator[str]:
    """Phonemes of misaki as symbols: ARPAbet with stress digits, punctuation and spaces."""
    stress, position = "0", 0
    while position < len(phonemes):
        symbol, follower = phonemes[position], phonemes[position + 1 : position + 2]
        position += 1
        if symbol in STRESSES:
            stress = STRESSES[symbol]
        elif symbol in VOWELS:
            vowel = VOWELS[symbol]
            if symbol in R_COLORED and follower == "ɹ":
                vowel = "ER"
                position += 1
            yield vowel + stress
            stress = "0"
        elif symbol in CONSONANTS:
            yield CONSONANTS[symbol]
        elif symbol in PUNCTUATION:
            yield PUNCTUATION[symbol]
        elif symbol == " ":
            yield " "
