"""Text in the form in which recognition errors are counted."""

import re
import unicodedata

from pianissimo.text.words import is_spaceless

_APOSTROPHES = re.compile("[\u2018\u2019\u201b\u02bc\u2032\uff07`\u00b4]")
# An apostrophe, and whether letters or digits stand on both sides of it.
_LOOSE_APOSTROPHE = re.compile(r"(?<![^\W_])'|'(?![^\W_])")


def normalize_for_scoring(text: str) -> str:
    """Lower case, one space between words, no punctuation but apostrophes inside words.

    Every other mark or symbol becomes a space ("well-known" is two words); curly apostrophes
    become straight ones. Numbers and spellings stay as they are. Applying it twice changes nothing.
    """
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")  # soft hyphens and the like
    text = _APOSTROPHES.sub("'", unicodedata.normalize("NFC", text.lower()))
    text = "".join(" " if unicodedata.category(c)[0] in "PSC" and c != "'" else c for c in text)
    return " ".join(_LOOSE_APOSTROPHE.sub(" ", text).split())


def separate_characters(text: str) -> str:
    """Each character of a script without spaces as a word, with the marks combined with it.

    Word errors of such text are then character errors, and where an author put spaces into it
    counts for nothing.
    """
    parts = []
    for character in text:
        if unicodedata.category(character)[0] == "M":
            parts.append(character)
        elif is_spaceless(character):
            parts.append(f" {character}")
        else:
            spaced = parts and is_spaceless(parts[-1][-1])
            parts.append(f" {character}" if spaced else character)
    return " ".join("".join(parts).split())
