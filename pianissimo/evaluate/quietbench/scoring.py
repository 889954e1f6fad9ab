"""Errors in the unit of the language: words, characters, or both.

English is scored by words (WER), Chinese and Cantonese by characters (CER), text in both scripts by
Han characters and Latin words (MER). Both texts are normalized first; digits become English
cardinals where words are counted.
"""

import re
import unicodedata

from pianissimo.evaluate.wer import ErrorCounts, word_errors
from pianissimo.text.normalize import normalize_for_scoring

METRICS = {"en": "WER", "zh": "CER", "yue": "CER", "ja": "CER"}

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff"
_UNIT = re.compile(rf"[{_HAN}]|[^\s{_HAN}]+")
_NUMBER = re.compile(r"\d+")
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def metric(language: str | None, text: str = "") -> str:
    """WER, CER or MER, by the language or, if it is unknown, by the scripts of the text."""
    primary = (language or "").lower().replace("_", "-").partition("-")[0]
    if primary in METRICS:
        return METRICS[primary]
    return "MER" if re.search(rf"[{_HAN}]", text) else "WER"


def units(text: str, measure: str) -> list[str]:
    """The words or characters of a text in scoring form."""
    normal = normalize_for_scoring(unicodedata.normalize("NFKC", text).casefold())
    if measure == "CER":
        return list("".join(normal.split()))
    if measure == "WER":
        return _NUMBER.sub(lambda match: f" {spell(match.group())} ", normal).split()
    return _UNIT.findall(normal)


def count_errors(reference: str, hypothesis: str, measure: str) -> ErrorCounts:
    """Substitutions, deletions and insertions between two texts."""
    return word_errors(" ".join(units(reference, measure)), " ".join(units(hypothesis, measure)))


def spell(digits: str) -> str:
    """A number below a million in English words; longer numbers and leading zeros by digits."""
    if len(digits) > 6 or (len(digits) > 1 and digits[0] == "0"):
        return " ".join(_ONES[int(digit)] for digit in digits)
    number = int(digits)
    if number < 1000:
        return _below_thousand(number)
    thousands, rest = divmod(number, 1000)
    tail = f" {_below_thousand(rest)}" if rest else ""
    return f"{_below_thousand(thousands)} thousand{tail}"


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    words = [f"{_ONES[hundreds]} hundred"] if hundreds else []
    if rest >= 20:
        tens, ones = divmod(rest, 10)
        words.append(_TENS[tens - 2] + (f" {_ONES[ones]}" if ones else ""))
    elif rest or not hundreds:
        words.append(_ONES[rest])
    return " ".join(words)
