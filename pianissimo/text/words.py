"""From tokens to words with times, and from words to segments."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from pianissimo.errors import OptionError
from pianissimo.text.tokenizer import WORD_START, Tokenizer
from pianissimo.transcript import Segment, Word

MAX_WORD_TOKENS = 64
"""A word is cut here, so that a script without spaces, or a model in a loop, stays bounded."""

_CLOSING_MARKS = frozenset(".,!?;:\u2026)]}\u00bb\u201d\u3002\uff0c\uff01\uff1f\u3001")
_SENTENCE_MARKS = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f")
_QUOTES_AND_BRACKETS = "\"'()[]{}\u00ab\u00bb\u2018\u2019\u201c\u201d"
_TITLES = frozenset("mr mrs ms dr prof sr jr st gen col capt lt sgt rev hon mt".split())
_ABBREVIATIONS = frozenset("etc vs approx inc ltd co e.g i.e a.m p.m u.s u.k u.n ph.d".split())

_SPACELESS = (("\u0e01", "\u0eff"), ("\u1000", "\u109f"), ("\u1780", "\u17ff"))
"""Thai and Lao, Burmese, Khmer; Chinese and Japanese are told by their width."""
_KOREAN = (("\u1100", "\u11ff"), ("\u3131", "\u318e"), ("\uac00", "\ud7a3"))


@dataclass(frozen=True)
class WordOptions:
    """How tokens become words."""

    frame_seconds: float = 0.08
    """Length of an encoder frame."""
    extend_frames: int = 2
    """A word's end may move this far toward the start of the next word."""
    aggregate: Literal["min", "mean", "prod"] = "min"
    """How the confidence of a word follows from those of its tokens."""

    def __post_init__(self) -> None:
        if not 0 < self.frame_seconds < float("inf"):
            raise OptionError(f"frame_seconds must be above 0, not {self.frame_seconds}")
        if self.extend_frames < 0:
            raise OptionError(f"extend_frames must not be negative, not {self.extend_frames}")
        if self.aggregate not in ("min", "mean", "prod"):
            raise OptionError(f"aggregate must be min, mean or prod, not {self.aggregate!r}")


@dataclass
class _Draft:
    """A word in the making; frames count from the start of the stream."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    first: int = 0
    start: int | None = None  # the first token that is not punctuation
    last: int = 0
    scores: list[float] = field(default_factory=list)  # of tokens that are not punctuation
    mark_scores: list[float] = field(default_factory=list)
    has_letters: bool = False


class WordAssembler:
    """Tokens of a live stream to words with times; pushing in parts changes nothing.

    A word starts at the frame of its first token that is not punctuation. It ends one frame after
    its last token, and up to `extend_frames` later if no other word starts there. Words follow each
    other without overlap and last one frame at least. Tokens that are only punctuation belong to
    the word before them; `.` and its like join it without a space.
    """

    def __init__(self, tokenizer: Tokenizer, options: WordOptions | None = None) -> None:
        self._tokenizer = tokenizer
        self._options = options or WordOptions()
        self._reset()

    def _reset(self) -> None:
        self._open: _Draft | None = None  # more of its tokens may come
        self._held: _Draft | None = None  # waits for punctuation and for the next word's start
        self._earliest = 0  # the first frame at which the next word may start
        self._frame = 0

    def push(
        self,
        ids: Sequence[int],
        frames: Sequence[int],
        confidences: Sequence[float | None] | None = None,
    ) -> tuple[Word, ...]:
        """Take tokens with the encoder frame and the confidence (0 to 1) of each.

        Returns the words that are now complete. Raises OptionError when the sequences differ in
        length, frames go back, a confidence is out of range, or an id is not in the vocabulary.
        """
        scores = [None] * len(ids) if confidences is None else confidences
        if not len(ids) == len(frames) == len(scores):
            raise OptionError(
                f"tokens, frames and confidences must be as many: "
                f"{len(ids)}, {len(frames)} and {len(scores)} were given"
            )
        words: list[Word] = []
        for id, frame, score in zip(ids, frames, scores, strict=True):
            if frame < self._frame:
                raise OptionError(f"frame {frame} comes after frame {self._frame}; sort the tokens")
            if score is not None and not -1e-6 <= score <= 1 + 1e-6:
                raise OptionError(f"a confidence must lie between 0 and 1, not {score}")
            self._frame = frame
            if id not in self._tokenizer.special_ids:
                word = self._take(id, frame, score)
                words += [] if word is None else [word]
        return tuple(words)

    def finish(self, duration: float | None = None) -> tuple[Word, ...]:
        """Return the words left, ending by `duration` seconds, and be ready for a new stream."""
        self._close_open()
        words = () if self._held is None else (self._word(self._held, None),)
        self._reset()
        return tuple(clamped(word, duration) for word in words)

    def _take(self, id: int, frame: int, score: float | None) -> Word | None:
        """Take one token; return the word before, once this token shows that it is complete."""
        decode = self._tokenizer.decode
        byte = self._tokenizer.byte_value(id)
        text = decode([id], continued=True)
        if self._open is not None:
            full = len(self._open.ids) >= MAX_WORD_TOKENS and byte is None
            if full or self._tokenizer.pieces[id].startswith(WORD_START):
                self._close_open()
        if self._open is None:
            self._open = _Draft(first=frame)
        draft = self._open
        draft.ids.append(id)
        draft.last = frame
        # One byte of a character tells nothing about it: most often it is a letter.
        if byte is not None or _has_letters(text):
            if draft.start is None:
                draft.start = frame
            draft.scores += [] if score is None else [score]
        else:
            draft.mark_scores += [] if score is None else [score]
        if not draft.has_letters:
            draft.has_letters = _has_letters(text if byte is None else decode(draft.ids))
        if not draft.has_letters or self._held is None:
            return None
        word = self._word(self._held, self._start(draft))
        self._held = None
        return word

    def _close_open(self) -> None:
        """Move the open word to the held one, or append it there when it is only punctuation."""
        draft, self._open = self._open, None
        if draft is None:
            return
        draft.text = self._tokenizer.decode(draft.ids).strip()
        if not draft.text:
            return
        if self._held is None:
            self._held = draft
            draft.start = self._start(draft)
            self._earliest = draft.start + 1
        else:
            space = "" if set(draft.text) <= _CLOSING_MARKS else " "
            self._held.text += space + draft.text
            self._held.last = draft.last

    def _start(self, draft: _Draft) -> int:
        return max(draft.first if draft.start is None else draft.start, self._earliest)

    def _word(self, draft: _Draft, next_start: int | None) -> Word:
        seconds = self._options.frame_seconds
        start = self._start(draft) if draft.start is None else draft.start
        end = max(draft.last, start) + 1 + self._options.extend_frames
        if next_start is not None:
            end = min(end, next_start)
        scores = draft.scores or draft.mark_scores
        return Word(
            draft.text,
            round(start * seconds, 6),
            round(end * seconds, 6),
            self._confidence(scores) if scores else None,
        )

    def _confidence(self, scores: list[float]) -> float:
        if self._options.aggregate == "min":
            value = min(scores)
        elif self._options.aggregate == "mean":
            value = sum(scores) / len(scores)
        else:
            value = prod(scores)
        return min(max(value, 0.0), 1.0)


def words_from_tokens(
    tokenizer: Tokenizer,
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

    Titles and initials ("Dr.", "J.") never end one; other abbreviations and an ellipsis do unless
    `following` begins in lower case.
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
    """Group words into segments: at sentence ends, at pauses, and before `max_seconds`.

    A segment's confidence is the mean over its words that have one.
    """
    segments: list[Segment] = []
    current: list[Word] = []
    for word in words:
        if current and (
            ends_sentence(current[-1].text, word.text)
            or word.start - current[-1].end > pause_seconds
            or word.end - current[0].start > max_seconds
        ):
            segments.append(_segment(current))
            current = []
        current.append(word)
    if current:
        segments.append(_segment(current))
    return tuple(segments)


def _segment(words: list[Word]) -> Segment:
    known = [word.confidence for word in words if word.confidence is not None]
    return Segment(
        joined(word.text for word in words),
        words[0].start,
        words[-1].end,
        tuple(words),
        sum(known) / len(known) if known else None,
    )


def joined(texts: Iterable[str]) -> str:
    """Texts one after the other, with a space between scripts that write one."""
    whole = ""
    for text in texts:
        spaced = whole and text and not (is_spaceless(whole[-1]) or is_spaceless(text[0]))
        whole += " " + text if spaced else text
    return whole


def is_spaceless(character: str) -> bool:
    """Whether it belongs to a script without spaces between words, or is a mark of one."""
    if any(first <= character <= last for first, last in _SPACELESS):
        return True
    korean = any(first <= character <= last for first, last in _KOREAN)
    return unicodedata.east_asian_width(character) in "WF" and not korean


def clamped(word: Word, duration: float | None) -> Word:
    """The word with times no later than `duration` seconds, if that is known."""
    if duration is None or word.end <= duration:
        return word
    return Word(word.text, min(word.start, duration), duration, word.confidence)


def _has_letters(text: str) -> bool:
    """Whether there is a letter, digit or combining mark: anything but punctuation and space."""
    return any(unicodedata.category(character)[0] in "LMN" for character in text)
