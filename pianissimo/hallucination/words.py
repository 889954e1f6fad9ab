"""Which words of a result the audio supports, token by token."""

import math
from itertools import pairwise

from pianissimo.decoding.token import Hypothesis
from pianissimo.hallucination.evidence import Evidence
from pianissimo.hallucination.verdict import Verdict, judge
from pianissimo.text.tokenizer import WORD_START, Tokenizer

# Of whispers the detector misses 1 word in 20; about half of those are as sure as this.
SURE_WORD_LOG_PROBABILITY = math.log(0.9)
"""A word with this mean per token stands even where the detector found no speech."""


def weigh(
    result: Hypothesis,
    tokenizer: Tokenizer,
    frame_seconds: float,
    evidence: Evidence,
    language: str | None,
) -> Verdict:
    """The verdict on a result. Its frames and the evidence count from the same moment."""
    count, supported = len(result.tokens), 0
    for word, sure in _words(result, tokenizer):
        for i in word:
            start = result.frames[i] * frame_seconds
            supported += sure or evidence.supports(start, start + frame_seconds)
    return judge(
        tokenizer.decode(result.tokens),
        evidence,
        language=language,
        mean_log_probability=result.score / count if count else None,
        tokens=result.tokens,
        supported_share=supported / count if count else 1.0,
    )


def supported_words(
    result: Hypothesis, tokenizer: Tokenizer, frame_seconds: float, evidence: Evidence
) -> Hypothesis:
    """The words with speech near them in the audio, and those that are sure without.

    A text without word boundaries is one word.
    """
    kept: list[int] = []
    for word, sure in _words(result, tokenizer):
        start, end = result.frames[word[0]], result.frames[word[-1]] + 1
        if sure or evidence.supports(start * frame_seconds, end * frame_seconds):
            kept += word
    return result.take(kept)


def _words(result: Hypothesis, tokenizer: Tokenizer) -> list[tuple[range, bool]]:
    """The places of each word's tokens, and whether the model is sure of the word."""
    tokens = result.tokens
    starts = [i for i, id in enumerate(tokens) if i and tokenizer.pieces[id].startswith(WORD_START)]
    edges = [0, *starts, len(tokens)] if tokens else []
    words = [range(*pair) for pair in pairwise(edges)]
    means = [sum(result.log_probs[i] for i in word) / len(word) for word in words]
    return [
        (word, mean >= SURE_WORD_LOG_PROBABILITY) for word, mean in zip(words, means, strict=True)
    ]
