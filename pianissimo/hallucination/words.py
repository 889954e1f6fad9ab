"""One recording on its way to a recognizer: brought to level, watched for evidence of speech.

The detector hears samples at the right level even where the recognizer does not want them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from pianissimo.audio.front_end import FrontEnd, FrontEndState
from pianissimo.audio.level import Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.decoding.token import Hypothesis
from pianissimo.hallucination.evidence import Evidence, Witness, WitnessState
from pianissimo.hallucination.verdict import Verdict, judge
from pianissimo.text.tokenizer import WORD_START, Tokenizer

# Of whispers the detector misses 1 word in 20; about half of those are as sure as this.
SURE_WORD_LOG_PROBABILITY = math.log(0.9)
"""A word of such a mean per token stands where no speech was heard."""


class Hearing:
    """Of one recording; make another for the next. Without front end or detector it does nothing.

    The recognizer takes its samples from `leveled`; `evidence` is complete when they have ended.
    """

    def __init__(
        self, front_end: FrontEnd | None = None, detector: VoiceDetector | None = None
    ) -> None:
        self._front_end = front_end
        self._witness = None if detector is None else Witness(detector)
        self._heard: WitnessState | None = None
        levels = front_end is not None and front_end.mode != "off"
        self._ear = None if levels else FrontEnd("on")
        self._ear_state: FrontEndState | None = None

    def leveled(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """Mono blocks at 16 kHz in, the same samples at the right level out."""
        gain = None if self._front_end is None else self._front_end.start(live=False)
        if self._witness is not None:
            self._heard = self._witness.start()
            self._ear_state = None if self._ear is None else self._ear.start(live=False)
        for block in blocks:
            loud = block
            if self._front_end is not None and gain is not None:
                loud = self._front_end.push(block, gain).samples
            self._watch(block, loud)
            if len(loud):
                yield loud
        rest = np.zeros(0, np.float32)
        if self._front_end is not None and gain is not None:
            rest = self._front_end.finish(gain).samples
        self._watch(rest[:0], rest, final=True)
        if len(rest):
            yield rest

    def whole(self, samples: Samples) -> Samples:
        """As `leveled`, for a recording (n,) at once."""
        return np.concatenate([samples[:0], *self.leveled([samples])])

    def _watch(self, raw: Samples, loud: Samples, *, final: bool = False) -> None:
        if self._witness is None or self._heard is None:
            return
        if self._ear is not None and self._ear_state is not None:
            loud = self._ear.push(raw, self._ear_state).samples
            if final:
                loud = np.concatenate([loud, self._ear.finish(self._ear_state).samples])
        self._witness.push(raw, loud, self._heard)

    @property
    def evidence(self) -> Evidence | None:
        """What speaks for speech in the whole recording; None without a detector."""
        if self._witness is None or self._heard is None:
            return None
        return self._witness.finish(self._heard)


def weigh(
    found: Hypothesis,
    tokenizer: Tokenizer,
    frame_seconds: float,
    evidence: Evidence,
    language: str | None,
) -> Verdict:
    """The verdict on what a recognizer wrote; times are those of the evidence."""
    count, heard = len(found.tokens), 0
    for word in _words(found, tokenizer):
        sure = _mean_log_probability(found, word) >= SURE_WORD_LOG_PROBABILITY
        heard += sum(sure or _is_heard(found, [i], frame_seconds, evidence) for i in word)
    return judge(
        tokenizer.decode(found.tokens),
        evidence,
        language=language,
        mean_log_probability=found.score / count if count else None,
        tokens=found.tokens,
        heard_share=heard / count if count else 1.0,
    )


def heard_words(
    found: Hypothesis, tokenizer: Tokenizer, frame_seconds: float, evidence: Evidence
) -> Hypothesis:
    """The words that were written where there was speech, and those that are sure without.

    A text without marks of where words begin is one word.
    """
    kept: list[int] = []
    for word in _words(found, tokenizer):
        sure = _mean_log_probability(found, word) >= SURE_WORD_LOG_PROBABILITY
        if sure or _is_heard(found, word, frame_seconds, evidence):
            kept += word
    return found.take(kept)


def _words(found: Hypothesis, tokenizer: Tokenizer) -> list[range]:
    """The places of each word's tokens."""
    pieces = tokenizer.pieces
    starts = [i for i, id in enumerate(found.tokens) if i and pieces[id].startswith(WORD_START)]
    edges = [0, *starts, len(found.tokens)] if found.tokens else []
    return [range(*pair) for pair in pairwise(edges)]


def _mean_log_probability(found: Hypothesis, places: range) -> float:
    return sum(found.log_probs[i] for i in places) / len(places)


def _is_heard(
    found: Hypothesis, places: Sequence[int], frame_seconds: float, evidence: Evidence
) -> bool:
    first, last = found.frames[places[0]], found.frames[places[-1]]
    return evidence.heard(first * frame_seconds, (last + 1) * frame_seconds)
