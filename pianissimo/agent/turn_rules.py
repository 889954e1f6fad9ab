"""How long a silence ends a turn: always the same, or by the text that was said."""

from dataclasses import dataclass
from typing import Protocol

from pianissimo.audio.level import Samples

SERVER_VAD_SECONDS = 0.5
COMPLETE = 0.5
"""From this confidence on a turn counts as complete."""
END_MARKS = (".", "!", "?", "…")
OPEN_WORDS = frozenset(
    "a an the and or but so because if when while although though unless until since that which "
    "who whose whom where than as of to in on at by for from with without into onto over under "
    "about between through during before after above below near my your his her its our their "
    "this these those some any every each no i we they he she is are was were be been am will "
    "would can could should shall may might must do does did have has had not very really "
    "like just also then well um uh uhm hmm er erm ah mm".split()
)
"""Words that rarely end a sentence: articles, conjunctions, prepositions, fillers and the like."""


@dataclass(frozen=True)
class EndJudgment:
    """How likely a turn is complete, from 0 to 1, and the silence in seconds that ends it."""

    confidence: float
    wait_seconds: float

    @property
    def complete(self) -> bool:
        return self.confidence >= COMPLETE


class EndJudge(Protocol):
    """Judges the end of a turn when the speaker pauses."""

    @property
    def least_seconds(self) -> float:
        """The shortest silence that it asks for."""
        ...

    def judge(self, turn: Samples, text: str, ended: bool = False) -> EndJudgment:
        """`turn` (n,) is the end of the turn at 16 kHz, with the silence so far; `text` all of it.

        With `ended` the recognizer wrote its token for the end of a turn last. Called in a worker
        thread.
        """
        ...


@dataclass(frozen=True)
class SilenceRule:
    """The same silence ends every turn."""

    silence_seconds: float = SERVER_VAD_SECONDS

    @property
    def least_seconds(self) -> float:
        return self.silence_seconds

    def judge(self, turn: Samples, text: str, ended: bool = False) -> EndJudgment:
        return EndJudgment(1.0, self.silence_seconds)


@dataclass(frozen=True)
class TextRules:
    """The silence depends on the last word and its punctuation; times in seconds.

    Models without punctuation get `plain_seconds` after most words, and `marked_seconds` after a
    token for the end of a turn. `most_seconds` bounds all. The defaults were chosen with
    `bench/turns.py`, `marked_seconds` as that of Smart Turn.
    """

    ended_seconds: float = 0.5
    plain_seconds: float = 0.6
    marked_seconds: float = 0.4
    open_seconds: float = 1.0
    most_seconds: float = 4.0

    @property
    def least_seconds(self) -> float:
        return min(self.marked_seconds, self.ended_seconds, self.most_seconds)

    def judge(self, turn: Samples, text: str, ended: bool = False) -> EndJudgment:
        words = text.split()
        if words and ended:
            return EndJudgment(0.95, min(self.marked_seconds, self.most_seconds))
        if not words:  # a noise, or a word that was not recognized
            return EndJudgment(0.0, min(self.open_seconds, self.most_seconds))
        last = words[-1].strip("\"')]”’").lower()
        if is_open(text):
            return EndJudgment(0.2, min(self.open_seconds, self.most_seconds))
        if last.endswith(END_MARKS):
            return EndJudgment(0.9, min(self.ended_seconds, self.most_seconds))
        return EndJudgment(0.6, min(self.plain_seconds, self.most_seconds))


def is_open(text: str) -> bool:
    """Whether a text ends in a word or mark after which a speaker usually continues."""
    last = text.split()[-1].lower() if text.split() else ""
    return last.endswith((",", ";", ":", "-", "—", "...")) or last.rstrip(".") in OPEN_WORDS


NO_RULES = SilenceRule()
