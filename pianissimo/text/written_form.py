"""The written form of spoken numbers: "twenty five dollars" to "$25", with the times of its words.

words ──(punctuation, pauses, speakers)──> runs
run ──(English: rules; Chinese and Japanese: grammars of wetext)──> replacements ──> words

English is read by the rules of `english_numbers` and of this module. They were compared with the
English grammar of wetext, which reads "seven forty five" as 07:15, takes the words before an
address into it, and needs a minute for a text of 100,000 characters. The Chinese and Japanese
grammars are those of the package wetext, in the extra `itn`. Words without a replacement stay.
"""

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from pianissimo.errors import MissingExtraError, OptionError
from pianissimo.text.english_numbers import DIGITS, TEENS, TENS, written_numbers
from pianissimo.text.words import Segment, Word, joined

if TYPE_CHECKING:
    from wetext import Normalizer

LANGUAGES = ("en", "zh", "ja")
"""Languages with a grammar."""
PAUSE_SECONDS = 0.6
"""A longer pause between two words always separates two numbers."""
MOST_WORDS = 24
"""Of a window: the time of the grammar grows faster than its text."""
WORDS_BEFORE, WORDS_AFTER = 1, 5
"""What a window holds around a number: a sign before it, its unit behind it."""

_MARKS = ".,!?;:\u2026\u3002\uff0c\uff01\uff1f\u3001\"'()[]\u201c\u201d\u2018\u2019"
_KATAKANA = re.compile("[\u30a1-\u30fc]{2}")  # one word, though each character is written apart
_CJK_NUMBERS = frozenset("零〇一二三四五六七八九十百千万億亿兆两兩点")

_MINUTES = {
    f"{ten} {digit}".rstrip(): tens * 10 + ones
    for tens, ten in enumerate(TENS[:4], start=2)
    for ones, digit in enumerate(["", *DIGITS[1:]])
}
_MINUTES |= {teen: number for number, teen in enumerate(TEENS, start=10)}
_MINUTES |= {f"oh {digit}": number for number, digit in enumerate(DIGITS[1:], start=1)}
_PAST = _MINUTES | {"five": 5, "a quarter": 15, "quarter": 15, "half": 30}
_HOURS = {hour: number for number, hour in enumerate((DIGITS + TEENS)[1:13], start=1)}


def _one_of(names: Iterable[str]) -> str:
    return "|".join(sorted(names, key=len, reverse=True))


_HOUR = rf"(?P<hour>{_one_of(_HOURS)})"
_MINUTE = rf"(?P<minute>{_one_of(_MINUTES)})"
_TIMES = (
    re.compile(rf"(?<!\S){_HOUR}(?: {_MINUTE})? (?P<half>[ap])[. ]?m(?!\S)"),
    re.compile(rf"(?<!\S){_HOUR} o[' ]?clock(?: (?P<half>[ap])[. ]?m)?(?!\S)"),
    re.compile(rf"(?<!\S)(?P<past>{_one_of(_PAST)})(?: minutes)? past {_HOUR}(?!\S)"),
    re.compile(rf"(?<!\S)(?P<to>a quarter|quarter)(?: minutes)? to {_HOUR}(?!\S)"),
    re.compile(rf"(?<!\S)(?P<to>{_one_of(_PAST)}) minutes to {_HOUR}(?!\S)"),
    re.compile(
        rf"(?:(?<=\bat )|(?<=\buntil )|(?<=\baround )|(?<=\bby )){_HOUR} {_MINUTE}"
        r"(?= (?:on|in|and|or|today|tomorrow|tonight|every)\b|$)"
    ),
)
"""English times of day as they are spoken; two numbers are one only behind "at" and the like."""

_TOP_DOMAINS = "com|org|net|edu|gov|info|io|dev|ai|eu|uk|us|de|fr|es|it|nl|ch|at|ca|au|jp|cn|in"
_DOMAIN = (
    r"(?P<domain>(?:w w w dot )?[a-z]+(?: (?:dot|dash|hyphen) [a-z]+){0,6} "
    rf"dot (?:{_TOP_DOMAINS}))(?!\S)"
)
_ADDRESS = re.compile(
    r"(?<!\S)(?:(?P<mailbox>(?:(?!a |i )[a-z] ){0,9}[a-z]+"
    rf"(?: (?:dot|underscore|dash|hyphen) [a-z]+){{0,6}}) at )?{_DOMAIN}"
)
"""An English e-mail or web address as it is spoken."""
_NO_MAILBOX = frozenset(
    "me us him her it them this that look shop live available online is".split()
)
"""Words before "at example dot com" that name no mailbox."""
_SIGNS = {"dot": ".", "at": "@", "underscore": "_", "dash": "-", "hyphen": "-"}


@dataclass(frozen=True)
class _Replacement:
    """`text` in place of the words from `first` to before `end`."""

    first: int
    end: int
    text: str


def check_language(language: str | None) -> str:
    """The key of `LANGUAGES` for a tag such as "en-US".

    Raises OptionError for a language without a grammar or an unknown one (None), and
    MissingExtraError for Chinese and Japanese without the package wetext.
    """
    known = ", ".join(LANGUAGES)
    if language is None:
        raise OptionError(
            f"the written form needs the language of the text, which is unknown; choose one of "
            f"{known} as the language"
        )
    key = re.split(r"[-_]", language.lower())[0]
    if key not in LANGUAGES:
        raise OptionError(f"there is no written form for {language!r}; it is there for {known}")
    if key != "en":
        _grammar(key)
    return key


def written_words(words: Sequence[Word], language: str | None) -> tuple[Word, ...]:
    """The words with numbers, dates, money, times, measures and addresses as they are written.

    A written form replaces all of its words as one: from the start of the first to the end of the
    last, with their lowest confidence. It never spans a pause of more than `PAUSE_SECONDS`, a
    change of speaker or punctuation. Raises as `check_language` does.
    """
    key, written = check_language(language), list[Word]()
    for run in _runs(words):
        done = 0
        for found in _replacements([word.text for word in run], key):
            written += [*run[done : found.first], _merged(run[found.first : found.end], found.text)]
            done = found.end
        written += run[done:]
    return tuple(written)


def written_text(text: str, language: str | None) -> str:
    """A text in written form, as `written_words`; unchanged if there is nothing to replace."""
    parts = [
        Word(part, 0.0, 0.0) for part in re.findall(r"[\u3040-\u9fff]|[^\s\u3040-\u9fff]+", text)
    ]
    written = written_words(parts, language)
    return text if written == tuple(parts) else joined(word.text for word in written)


def written_segment(segment: Segment, language: str | None) -> Segment:
    """The segment with its text and words in written form."""
    if not segment.words:
        return replace(segment, text=written_text(segment.text, language))
    words = written_words(segment.words, language)
    if words == segment.words:
        return segment
    return replace(segment, text=joined(word.text for word in words), words=words)


@cache
def _grammar(language: str) -> "Normalizer":
    try:
        from wetext import Normalizer
    except ImportError as error:
        raise MissingExtraError(
            "the written form needs the wetext package: pip install 'pianissimo[itn]'"
        ) from error
    return Normalizer(lang=language, operator="itn")


_GRAMMAR_LOCK = threading.Lock()  # its transducers are shared and not thread-safe


def _runs(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """The words cut where no number continues."""
    first = 0
    for index, (word, following) in enumerate(pairwise(words), start=1):
        if (
            following.start - word.end > PAUSE_SECONDS
            or word.speaker != following.speaker
            or (word.text[-1:] in _MARKS and not word.text.lower().endswith(".m."))
        ):
            yield words[first:index]
            first = index
    yield words[first:]


def _replacements(texts: Sequence[str], language: str) -> list[_Replacement]:
    """What to replace in a run, in order and without overlap."""
    bare = [text.strip(_MARKS).lower().replace("-", " ") for text in texts]
    found = list(_english(bare) if language == "en" else _by_grammar(bare, language))
    return [replace(one, text=_dressed(one.text, texts[one.first : one.end])) for one in found]


def _english(bare: Sequence[str]) -> Iterator[_Replacement]:
    """English addresses and times of day, and numbers where neither is."""
    found = {one.first: one for one in [*_times(bare), *_addresses(bare)]}
    tokens, owners = list[str](), list[int]()
    for index, text in enumerate(bare):
        parts = text.split() or ["-"]
        tokens += parts
        owners += [index] * len(parts)
    taken = {index for one in found.values() for index in range(one.first, one.end)}
    for first, end, text in written_numbers(
        ["-" if owner in taken else token for token, owner in zip(tokens, owners, strict=True)]
    ):
        cuts_word = (first > 0 and owners[first - 1] == owners[first]) or (
            end < len(owners) and owners[end] == owners[end - 1]
        )
        if not cuts_word:
            found[owners[first]] = _Replacement(owners[first], owners[end - 1] + 1, text)
    done = 0
    for first in sorted(found):
        if first >= done:  # an address may hold a time
            yield found[first]
            done = found[first].end


def _line(bare: Sequence[str]) -> tuple[str, dict[int, int], dict[int, int]]:
    """The words as one line, and the index of the word that starts and that ends at a character."""
    starts, ends, place = dict[int, int](), dict[int, int](), 0
    for index, text in enumerate(bare):
        if text:
            starts[place] = ends[place + len(text)] = index
            place += len(text) + 1
    return " ".join(text for text in bare if text), starts, ends


def _addresses(bare: Sequence[str]) -> Iterator[_Replacement]:
    """English e-mail and web addresses."""
    line, starts, ends = _line(bare)
    for match in _ADDRESS.finditer(line):
        part = "domain" if match["mailbox"] in _NO_MAILBOX else 0
        first, last = starts.get(match.start(part)), ends.get(match.end(part))
        if first is not None and last is not None:
            text = "".join(_SIGNS.get(word, word) for word in match[part].split())
            yield _Replacement(first, last + 1, text)


def _times(bare: Sequence[str]) -> Iterator[_Replacement]:
    """English times of day, of which the first pattern that fits a place counts."""
    line, starts, ends = _line(bare)
    taken = set[int]()
    for pattern in _TIMES:
        for match in pattern.finditer(line):
            first, last = starts.get(match.start()), ends.get(match.end())
            if first is None or last is None or not taken.isdisjoint(range(first, last + 1)):
                continue
            part = match.groupdict()
            hour = _HOURS[match["hour"]]
            minute = _MINUTES.get(part.get("minute") or "", 0) + _PAST.get(
                part.get("past") or "", 0
            )
            if part.get("to"):
                hour, minute = (hour - 2) % 12 + 1, 60 - _PAST[match["to"]]
            half = f" {part['half']}.m." if part.get("half") else ""
            taken.update(range(first, last + 1))
            yield _Replacement(first, last + 1, f"{hour}:{minute:02d}{half}")


def _by_grammar(bare: Sequence[str], language: str) -> Iterator[_Replacement]:
    """Chinese and Japanese numbers, by the grammar, in windows around them."""
    plain = [text if re.fullmatch(r"[^\W\d_]+", text) else "-" for text in bare]
    for first, end in _windows(plain):
        window = "".join(plain[first:end])
        with _GRAMMAR_LOCK:
            written = _grammar(language).normalize(window)
        owners = [index for index in range(first, end) for _ in plain[index]]
        matcher = SequenceMatcher(None, window, written, autojunk=False)
        for kind, begin, stop, start, finish in matcher.get_opcodes():
            text = written[start:finish]
            if kind == "equal" or begin == stop or (language == "zh" and ":" in text):
                continue  # the Chinese grammar writes seconds and p.m. into a time of day
            cuts_word = (begin > 0 and owners[begin - 1] == owners[begin]) or (
                stop < len(owners)
                and (
                    owners[stop] == owners[stop - 1]
                    or _KATAKANA.fullmatch(window, stop - 1, stop + 1)
                )
            )
            if not cuts_word:
                yield _Replacement(owners[begin], owners[stop - 1] + 1, text)


def _windows(plain: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges of at most `MOST_WORDS` words that hold every number with its unit.

    Words between two numbers that are far apart belong to no window.
    """
    first = end = 0
    for index, text in enumerate(plain):
        if _CJK_NUMBERS.isdisjoint(text):
            continue
        if first < end and (index - WORDS_BEFORE > end or index >= first + MOST_WORDS):
            yield first, end
            first = end
        if first >= end:
            first = max(end, index - WORDS_BEFORE)
        end = min(index + 1 + WORDS_AFTER, first + MOST_WORDS, len(plain))
    if first < end:
        yield first, end


def _dressed(text: str, spoken: Sequence[str]) -> str:
    """A written form with the capitals and the outer marks of the words that it replaces."""
    for word in spoken:
        bare = word.strip(_MARKS)
        if bare.isalpha() and not bare.islower():
            text = re.sub(rf"\b{bare.lower()}\b", bare, text)
    before = spoken[0][: len(spoken[0]) - len(spoken[0].lstrip(_MARKS))]
    behind = spoken[-1][len(spoken[-1].rstrip(_MARKS)) :]
    return before + text + (behind.removeprefix(".") if text.endswith(".") else behind)


def _merged(words: Sequence[Word], text: str) -> Word:
    known = [word.confidence for word in words if word.confidence is not None]
    speakers = [w.speaker_confidence for w in words if w.speaker_confidence is not None]
    return Word(
        text,
        words[0].start,
        words[-1].end,
        min(known, default=None),
        words[0].speaker,
        min(speakers, default=None),
    )
