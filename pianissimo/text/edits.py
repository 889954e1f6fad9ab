"""Which edits of a transcript by a language model may stand.

The model proposes edits of numbered words and nothing else. An edit stands only if it changes few
words, sounds like them, touches a word that the recognizer was unsure of, and leaves numbers,
negations and units alone. Times and speakers stay with the words, so no text can be invented.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pianissimo.text.english_numbers import DIGITS, TEENS, TENS
from pianissimo.text.words import Word

MOST_WORDS = 4
"""Of the transcript that one edit may replace."""
MOST_NEW_WORDS, LONGEST_TEXT = 6, 100
"""Of the text of an edit."""
UNSURE = 0.7
"""Words with a lower confidence may be edited."""
MOST_DISTANCE = 0.5
"""Between the sounds of the old and the new text, from 0 to 1."""
MOST_SHARE = 0.1
"""Of all words that edits may touch; one word always may."""

_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_NEGATIONS = """
no not never none nothing nobody nowhere neither nor without cannot
nicht nie kein keine keinen ohne ne pas jamais sans nunca sin
""".split()
_UNITS = """
percent dollars euros pounds cents meters kilometers miles feet inches grams kilograms milligrams
liters milliliters seconds minutes hours days weeks months years degrees
""".split()
_COUNTS = "hundred thousand million billion half dozen".split()
_PROTECTED = frozenset([*DIGITS, *TEENS, *TENS, *_COUNTS, *_NEGATIONS, *_UNITS])
"""Words that an edit can neither add nor remove: numbers, negations and units."""
_SOUNDS = [
    (re.compile(pattern), sound)
    for pattern, sound in (
        ("ph", "f"),
        ("gh", ""),
        ("^kn", "n"),
        ("^wr", "r"),
        ("c(?=[eiy])", "s"),
        ("ck|c|q", "k"),
        ("x", "ks"),
        ("z", "s"),
        ("dg", "j"),
        ("w(?=h)|h", ""),
    )
]


@dataclass(frozen=True)
class Edit:
    """`text` in place of the words from `first` to `last`, counted from 0."""

    first: int
    last: int
    text: str


def accepted_edits(
    words: Sequence[Word],
    proposed: Sequence[Edit],
    phrases: Collection[str] = (),
    borders: Collection[int] = (),
) -> tuple[Edit, ...]:
    """The proposed edits that may stand, in order.

    No edit crosses a change of speaker or one of `borders`, the indices of words before which a
    segment begins. Text of the `phrases`, lower-case hotwords, needs no unsure word. If edits touch
    more than `MOST_SHARE` of the words, none stands: the model rewrote the text.
    """
    accepted, end, touched = list[Edit](), 0, 0
    for edit in sorted(proposed, key=lambda edit: edit.first):
        if not end <= edit.first <= edit.last < len(words):
            continue  # outside the text, or over another edit
        old = words[edit.first : edit.last + 1]
        crosses = any(edit.first < border <= edit.last for border in borders)
        if crosses or len({word.speaker for word in old}) > 1:
            continue
        if _only_marks(old, edit.text):
            pass
        elif _may_stand(old, edit.text, phrases):
            touched += len(old)
        else:
            continue
        accepted.append(edit)
        end = edit.last + 1
    return () if touched > max(1, MOST_SHARE * len(words)) else tuple(accepted)


def with_edits(words: Sequence[Word], edits: Sequence[Edit], offset: int = 0) -> tuple[Word, ...]:
    """The words, the first of which has the index `offset`, with the edits that lie in them.

    As many words as before keep their times one by one; others become one word with the times of
    all that it replaces.
    """
    edited, done = list[Word](), 0
    for edit in edits:
        first, end = edit.first - offset, edit.last + 1 - offset
        if first < done or end > len(words):
            continue
        old, texts = words[first:end], edit.text.split()
        edited += words[done:first]
        if len(texts) == len(old):
            edited += [replace(word, text=text) for word, text in zip(old, texts, strict=True)]
        else:
            known = [word.confidence for word in old if word.confidence is not None]
            least = min(known, default=None)
            text = " ".join(texts)
            edited.append(replace(old[0], text=text, end=old[-1].end, confidence=least))
        done = end
    return (*edited, *words[done:])


def _only_marks(old: Sequence[Word], text: str) -> bool:
    """Whether an edit changes only capitals and marks, and not those inside a number."""
    before = " ".join(word.text for word in old)
    same = [_letters(part) for part in before.split()] == [_letters(part) for part in text.split()]
    return same and _protected(before) == _protected(text)


def _may_stand(old: Sequence[Word], text: str, phrases: Collection[str]) -> bool:
    new = text.split()
    if len(old) > MOST_WORDS or not 0 < len(new) <= MOST_NEW_WORDS or len(text) > LONGEST_TEXT:
        return False
    if not text.isprintable():
        return False
    before = " ".join(word.text for word in old)
    if _protected(before) != _protected(text):
        return False
    unsure = any(word.confidence is not None and word.confidence < UNSURE for word in old)
    if not unsure and " ".join(filter(None, map(_letters, new))) not in phrases:
        return False
    return _distance(_sound(before), _sound(text)) <= MOST_DISTANCE


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _protected(text: str) -> Counter[str]:
    found = Counter(_NUMBER.findall(text))
    for word in text.casefold().replace("’", "'").replace("-", " ").split():
        bare = word.strip('.,!?;:"()')
        if bare in _PROTECTED:
            found[bare] += 1
        elif bare.endswith("n't"):
            found["n't"] += 1
    return found


def _sound(text: str) -> str:
    """A key that is alike for text that sounds alike: consonants and first vowels."""
    keys = []
    for word in text.split():
        key = _letters(word)
        for pattern, sound in _SOUNDS:
            key = pattern.sub(sound, key)
        key = re.sub(r"(.)\1+", r"\1", key)
        keys.append(key[:1] + re.sub("[aeiouy]", "", key[1:]))
    return "".join(keys)


def _distance(one: str, other: str) -> float:
    """Insertions, deletions and replacements between two keys, as a share of the longer one."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, row[0] = row[0], i
        for j, against in enumerate(other, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != against))
    return row[-1] / max(len(one), len(other), 1)
