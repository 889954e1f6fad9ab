"""Hotwords of a request: lists of phrases, or the terms in a prompt of OpenAI's interface."""

import re

from pianissimo.decoding.hotwords import LARGEST_WEIGHT, LONGEST_PHRASE, Phrase
from pianissimo.serve.errors import Refusal

MOST_TERMS, MOST_TERM_WORDS = 50, 5
"""A prompt with more or longer terms is prose."""


def terms(prompt: str) -> tuple[Phrase, ...]:
    """The terms of a prompt that lists them, separated by commas or lines; none of prose.

    Prompts are written for models that continue text. The words of prose are no hotwords.
    """
    parts = [part.strip(" \t\r.;:\"'") for part in re.split(r"[,\n]", prompt)]
    found = list(dict.fromkeys(part for part in parts if part))
    prose = any(len(t.split()) > MOST_TERM_WORDS or len(t) > LONGEST_PHRASE for t in found)
    return () if prose or len(found) > MOST_TERMS else tuple(map(Phrase, found))


def read_boost(given: object) -> tuple[Phrase, ...]:
    """`["Ada Lovelace", {"text": "Babbage", "weight": 2}]`; raises Refusal for other values."""
    if not given:
        return ()
    if not isinstance(given, list):
        raise _wrong("boost must be a list")
    return tuple(map(_read_phrase, given))


def _read_phrase(given: object) -> Phrase:
    if isinstance(given, str):
        return Phrase(given)
    if not isinstance(given, dict) or not isinstance(given.get("text"), str):
        raise _wrong("each phrase of boost must be text, or an object with text and weight")
    weight = given.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise _wrong("the weight of a phrase must be a number")
    if not 0 < weight <= LARGEST_WEIGHT:
        raise _wrong(f"the weight of a phrase must be above 0 and at most {LARGEST_WEIGHT:g}")
    return Phrase(given["text"], weight)


def _wrong(what: str) -> Refusal:
    return Refusal(400, what, "invalid_value", "boost")
