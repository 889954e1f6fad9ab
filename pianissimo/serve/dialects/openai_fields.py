"""Fields that the REST and the realtime interface of OpenAI share."""

import math
from collections.abc import Sequence

from pianissimo.text.words import Word


def usage(seconds: float) -> dict[str, object]:
    """The audio that was transcribed, in whole seconds."""
    return {"type": "duration", "seconds": math.ceil(seconds)}


def logprobs(words: Sequence[Word]) -> list[dict[str, object]]:
    """One entry per word: the logarithm of its confidence."""
    entries = []
    for number, word in enumerate(words):
        text = f" {word.text}" if number else word.text
        confidence = 1.0 if word.confidence is None else word.confidence
        entries.append({"token": text, "logprob": logarithm(confidence), "bytes": [*text.encode()]})
    return entries


def logarithm(confidence: float) -> float:
    """A confidence as a finite log-probability."""
    return math.log(max(confidence, 1e-9))
