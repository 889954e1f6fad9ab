"""Text before it is spoken: what is refused, and what is cleaned."""

import re
import unicodedata

from pianissimo.errors import MarkupError, NothingToSayError, ScriptError, TextTooLongError

MOST_CHARACTERS = 50_000
"""Of one text: about an hour of speech."""
LONGEST_NUMBER = 15
"""Digits in a row that are read as one number; longer runs are read digit by digit."""
_SSML = re.compile(r"\s*(<\?xml\b[^>]*>\s*)?<speak\b", re.I)
_READ_ALOUD = frozenset("&@%#+=<>$€£¥°×÷")
"""Symbols that are read as words, so that they are enough for a text."""
_LONG_NUMBER = re.compile(rf"\d(?:[\d,]*\d)?(?<=[\d,]{{{LONGEST_NUMBER + 1}}})")
_SHARED_LETTERS = frozenset("ªµº")
"""Letters whose Unicode names do not begin with their script."""
_DROPPED = ("Cc", "Cf", "Cs", "Co", "Cn")
"""Unicode categories: control and format characters, surrogates, private use, unassigned."""


def prepare(text: str, script: str | None = "LATIN", most_characters: int = MOST_CHARACTERS) -> str:
    """The text without control characters and with long numbers spelled out.

    `script` is the first word of the Unicode names of the letters that the voice reads; None if it
    reads all. Single Greek letters are symbols and pass. Raises NothingToSayError, ScriptError,
    MarkupError or TextTooLongError.
    """
    if len(text) > most_characters:
        raise TextTooLongError(
            f"the text has {len(text)} characters, more than {most_characters}; split it"
        )
    if _SSML.match(text):
        raise MarkupError("the text is SSML, which is not supported; send plain text")
    cleaned = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in _DROPPED)
    if script is not None:
        _check_script(cleaned, script)
    if not pronounceable(cleaned):
        shown = f"{text.strip()[:20]!r} has nothing to pronounce" if text.strip() else "it is empty"
        raise NothingToSayError(f"the text cannot be spoken: {shown}; send words or numbers")
    return _LONG_NUMBER.sub(lambda found: " ".join(re.findall(r"\d", found[0])), cleaned)


def pronounceable(text: str) -> bool:
    """Whether there is anything to say: a letter, a digit, or a symbol that is read as a word."""
    return any(c.isalnum() or c in _READ_ALOUD for c in text)


def _check_script(text: str, script: str) -> None:
    for word in re.findall(r"[^\W\d_]+", text):
        for letter in filter(str.isalpha, word):
            own = unicodedata.name(letter, "?").split()[0]
            # Compatibility forms, such as full width, stand for plain letters.
            plain = unicodedata.normalize("NFKC", letter)[0]
            if script in (own, unicodedata.name(plain, "?").split()[0]):
                continue
            if letter in _SHARED_LETTERS or (own == "GREEK" and len(word) == 1):
                continue
            raise ScriptError(
                f"the voice reads {script.capitalize()} letters, but the text has {word[:20]!r}; "
                "choose a voice of that language, or remove it"
            )
