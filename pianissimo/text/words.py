"""Words with times from tokens, and segments from words."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Literal

from pianissimo.errors import OptionError
from pianissimo.text import WORD_START

if TYPE_CHECKING:
    from pianissimo.text.tokenizer import Tokenizer

MAX_WORD_TOKENS = 64
"""Longest word in tokens; bounds scripts without spaces, and a model in a loop."""

# The full stop of Devanagari and of its relatives, Arabic, Urdu, Armenian, Khmer and Ethiopic.
_FULL_STOPS = "\u0964\u0965\u06d4\u0589\u17d4\u1362"
_CLOSING_MARKS = frozenset(
    ".,!?;:\u2026)]}\u00bb\u201d\u3002\uff0c\uff01\uff1f\u3001\uff1a\uff1b\u300d\u300f"
    "\u060c\u061b\u061f" + _FULL_STOPS
)
_SENTENCE_MARKS = (*".!?\u2026\u3002\uff01\uff1f\u061f", *_FULL_STOPS)
_QUOTES_AND_BRACKETS = "\"'()[]{}\u00ab\u00bb\u2018\u2019\u201c\u201d"
_TITLES = frozenset("mr mrs ms dr prof sr jr st gen col capt lt sgt rev hon mt".split())
_ABBREVIATIONS = frozenset("etc vs approx inc ltd co e.g i.e a.m p.m u.s u.k u.n ph.d".split())

_SPACELESS = (("\u0e01", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"))
"""Thai and Lao, Burmese, Khmer; Chinese and Japanese are recognized by their width."""
_KOREAN = (("\u1100", "\u11ff"), ("\u3131", "\u318e"), ("\uac00", "\ud7a3"))


@dataclass(frozen=True)
class Word:
    """One recognized word with its punctuation: "Hello,"."""

    text: str
    start: float
    end: float
    confidence: float | None = None
    """Between 0 and 1; None where the model gives none."""
    speaker: str | None = None
    """Who says it: "0", "1" and so on, or a name; None without diarization."""
    speaker_confidence: float | None = None
    """Between 0 and 1; None where it is not known."""


@dataclass(frozen=True)
class Segment:
    """A sentence, or a stretch of speech between two pauses."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    confidence: float | None = None
    """Between 0 and 1; None where the model gives none."""
    speaker: str | None = None
    """Who says it, as in `Word`; None without diarization."""


@dataclass(frozen=True)
class WordOptions:
    """How tokens become words."""

    frame_seconds: float = 0.08
    """Length of an encoder frame."""
    extend_frames: int = 2
    """A word's end may move this far toward the start of the next word."""
    aggregate: Literal["min", "mean", "prod"] = "min"
    """How the confidences of a word's tokens are combined."""

    def __post_init__(self) -> None:
        if not 0 < self.frame_seconds < float("inf"):
            raise OptionError(f"frame_seconds must be above 0, not {self.frame_seconds}")
        if self.extend_frames < 0:
            raise OptionError(f"extend_frames must not be negative, not {self.extend_frames}")
        if self.aggregate not in ("min", "mean", "prod"):
            raise OptionError(f"aggregate must be min, mean or prod, not {self.aggregate!r}")


@dataclass
class _OpenWord:
    """A word in the making; frames count from the start of the stream."""

    start: int  # the frame of its first token, of those that are not punctuation if there are any
    ids: list[int] = field(default_factory=list)
    text: str = ""
    last: int = 0
    has_start: bool = False  # a token that is not punctuation was seen
    scores: list[float] = field(default_factory=list)  # of tokens that are not punctuation
    mark_scores: list[float] = field(default_factory=list)
    has_letters: bool = False
    final: str = ""  # the last character; "" where it is made of bytes


class WordAssembler:
    """Tokens of a live stream to words with times; pushing in parts changes nothing.

    A word starts at the frame of its first token that is not punctuation. It ends one frame after
    its last token, and up to `extend_frames` later if no other word starts there. Words follow each
    other without overlap and last one frame at least. Tokens that are only punctuation belong to
    the word before them; marks such as `.` join it without a space. In scripts without
    spaces each token that has letters is a word.
    """

    def __init__(self, tokenizer: "Tokenizer", options: WordOptions | None = None) -> None:
        self._tokenizer = tokenizer
        self._options = options or WordOptions()
        self._open: _OpenWord | None = None  # more of its tokens may come
        self._held: _OpenWord | None = None  # waits for punctuation and for the next word's start
        self._earliest = 0  # the first frame at which the next word may start
        self._frame = 0

    def push(
        self,
        ids: Sequence[int],
        frames: Sequence[int],
        confidences: Sequence[float | None] | None = None,
    ) -> tuple[Word, ...]:
        """Add tokens with the encoder frame and the confidence (0 to 1) of each.

        Returns the words that are now complete. Raises OptionError when the sequences differ in
        length, frames decrease, a confidence is out of range, or an id is not in the vocabulary.
        """
        scores = [None] * len(ids) if confidences is None else confidences
        if not len(ids) == len(frames) == len(scores):
            raise OptionError(
                "tokens, frames and confidences must have equal lengths, not "
                f"{len(ids)}, {len(frames)} and {len(scores)}"
            )
        decode, byte_values = self._tokenizer.decode, self._tokenizer.byte_values
        words: list[Word] = []
        for id, frame, score in zip(ids, frames, scores, strict=True):
            if frame < self._frame:
                raise OptionError(f"frame {frame} comes after frame {self._frame}; sort the tokens")
            if score is not None and not -1e-6 <= score <= 1 + 1e-6:
                raise OptionError(f"a confidence must be between 0 and 1, not {score}")
            self._frame = frame
            if id in self._tokenizer.special_ids:
                continue
            text, is_byte = decode([id], continued=True), id in byte_values
            if self._open is not None:
                full = len(self._open.ids) >= MAX_WORD_TOKENS and not is_byte
                spaced = self._tokenizer.pieces[id].startswith(WORD_START)
                if full or spaced or _divides(self._open, text, is_byte):
                    self._close_open()
            if self._open is None:
                self._open = _OpenWord(frame)
            word = self._open
            word.ids.append(id)
            word.last, word.final = frame, "" if is_byte else text[-1:] or word.final
            # A single byte of a character counts as a letter, which most characters are.
            if is_byte or _has_letters(text):
                if not word.has_start:
                    word.start, word.has_start = frame, True
                word.scores += [] if score is None else [score]
            else:
                word.mark_scores += [] if score is None else [score]
            if not word.has_letters:
                word.has_letters = _has_letters(decode(word.ids) if is_byte else text)
            if word.has_letters and self._held is not None:
                words.append(self._word(self._held, max(word.start, self._earliest)))
                self._held = None
        return tuple(words)

    def finish(self, duration: float | None = None) -> tuple[Word, ...]:
        """Return the remaining words, ending by `duration` seconds, and reset the assembler."""
        self._close_open()
        words = () if self._held is None else (self._word(self._held, None),)
        self._held, self._earliest, self._frame = None, 0, 0
        return tuple(clamped(word, duration) for word in words)

    def _close_open(self) -> None:
        """Move the open word to the held one, or append it there when it is only punctuation."""
        word, self._open = self._open, None
        if word is None:
            return
        word.text = self._tokenizer.decode(word.ids).strip()
        if not word.text:
            return
        if self._held is None:
            self._held = word
            word.start = max(word.start, self._earliest)
            self._earliest = word.start + 1
        else:
            space = "" if set(word.text) <= _CLOSING_MARKS else " "
            self._held.text += space + word.text
            self._held.last = word.last

    def _word(self, word: _OpenWord, next_start: int | None) -> Word:
        """The finished word; `next_start` is the frame at which the next one starts."""
        seconds = self._options.frame_seconds
        end = max(word.last, word.start) + 1 + self._options.extend_frames
        if next_start is not None:
            end = min(end, next_start)
        confidence = None
        if scores := word.scores or word.mark_scores:
            if self._options.aggregate == "min":
                confidence = min(scores)
            elif self._options.aggregate == "mean":
                confidence = sum(scores) / len(scores)
            else:
                confidence = prod(scores)
            confidence = min(max(confidence, 0.0), 1.0)
        return Word(word.text, round(word.start * seconds, 6), round(end * seconds, 6), confidence)


def words_from_tokens(
    tokenizer: "Tokenizer",
    ids: Sequence[int],
    frames: Sequence[int],
    confidences: Sequence[float | None] | None = None,
    *,
    options: WordOptions | None = None,
    duration: float | None = None,
) -> tuple[Word, ...]:
    """The words of a whole recording; see `WordAssembler`.

    `duration` in seconds bounds every time. Raises OptionError as `WordAssembler.push` does.
    """
    assembler = WordAssembler(tokenizer, options)
    words = assembler.push(ids, frames, confidences) + assembler.finish()
    return tuple(clamped(word, duration) for word in words)


def ends_sentence(word: str, following: str | None = None) -> bool:
    """Whether a sentence ends after `word`, which `following` comes after.

    Titles and initials ("Dr.", "J.") never end a sentence; other abbreviations and an ellipsis end
    one unless `following` begins in lower case.
    """
    bare = word.strip(_QUOTES_AND_BRACKETS)
    if not bare.endswith(_SENTENCE_MARKS):
        return False
    if following is None or not bare.endswith((".", "\u2026")):
        return True
    stem = bare.removesuffix(".").lower()
    if stem in _TITLES or (len(stem) == 1 and stem.isalpha() and stem != "i"):
        return False
    if stem in _ABBREVIATIONS or bare.endswith(("..", "\u2026")):
        return not following.strip(_QUOTES_AND_BRACKETS)[:1].islower()
    return True


def segments_from_words(
    words: Iterable[Word], *, max_seconds: float = 30.0, pause_seconds: float = 1.0
) -> tuple[Segment, ...]:
    """Group words into segments: at sentence ends, pauses and new speakers, before `max_seconds`.

    A segment's confidence is the mean over its words that have one.
    """
    groups: list[list[Word]] = []
    for word in words:
        if (
            not groups
            or ends_sentence(groups[-1][-1].text, word.text)
            or word.start - groups[-1][-1].end > pause_seconds
            or word.end - groups[-1][0].start > max_seconds
            or (word.speaker is not None and changes_speaker(groups[-1], word))
        ):
            groups.append([])
        groups[-1].append(word)
    return tuple(map(segment_of, groups))


def changes_speaker(words: Sequence[Word], following: Word) -> bool:
    """Whether `following` has another speaker than `words`; None is no other speaker."""
    if following.speaker is None:
        return False
    speaker = next((word.speaker for word in words if word.speaker is not None), None)
    return speaker not in (None, following.speaker)


def segment_of(words: Sequence[Word]) -> Segment:
    """One segment of all the words, of which there is one at least."""
    known = [word.confidence for word in words if word.confidence is not None]
    confidence = sum(known) / len(known) if known else None
    speaker = next((word.speaker for word in words if word.speaker is not None), None)
    text = joined(word.text for word in words)
    return Segment(text, words[0].start, words[-1].end, tuple(words), confidence, speaker)


def joined(texts: Iterable[str]) -> str:
    """Texts in one line, with spaces between them where their script writes spaces."""
    whole = ""
    for text in texts:
        spaced = whole and text and not (is_spaceless(whole[-1]) or is_spaceless(text[0]))
        whole += " " + text if spaced else text
    return whole


def is_spaceless(character: str) -> bool:
    """Whether a character or mark belongs to a script without spaces between words."""
    if any(first <= character <= last for first, last in _SPACELESS):
        return True
    korean = any(first <= character <= last for first, last in _KOREAN)
    return unicodedata.east_asian_width(character) in "WF" and not korean


def clamped(word: Word, duration: float | None) -> Word:
    """The word with times of at most `duration` seconds; None is no limit."""
    if duration is None or word.end <= duration:
        return word
    return replace(word, start=min(word.start, duration), end=duration)


def _divides(word: _OpenWord, text: str, is_byte: bool) -> bool:
    """Whether a token without a space before it begins a word, in a script without spaces."""
    first = text[:1]
    if is_byte or not word.final or not first or unicodedata.category(first)[0] not in "LN":
        return False
    if not word.has_letters:  # an opening quotation mark belongs to what it quotes
        return False
    return is_spaceless(first) or is_spaceless(word.final)


def _has_letters(text: str) -> bool:
    """Whether the text has a letter, digit or combining mark."""
    return any(unicodedata.category(character)[0] in "LMN" for character in text)
