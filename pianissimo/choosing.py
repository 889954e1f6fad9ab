"""Which of the models that have a name suits a wish: rules over a table of facts. No torch here.

What is known of a model's speed before it runs is arithmetic: its operations per second of speech
over those of a processor's core. Accuracy is no part of the table, since no two figures that their
authors publish are of the same test; of several models that will do, the largest is chosen.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pianissimo.catalog import CATALOG, EMBEDDED, CatalogEntry
from pianissimo.errors import ModelNotFoundError

Source = Literal["measured", "published", "arithmetic", "unknown"]
Quiet = Literal["trained", "invariant", "gain"]

CORE_GFLOPS_WHOLE, CORE_GFLOPS_LIVE = 50.0, 12.0
"""About half of what a Xeon core of 2.5 GHz does in float32 with many frames at a time, and what it
does with the seven frames of a live step (measured)."""
INT8_GAIN = 2.0
"""How much faster 8 bits are there at least (measured: 2.6 to 10 times for linear layers alone)."""


@dataclass(frozen=True)
class Facts:
    """`gflop` per second of speech, by arithmetic: twice the weights times the frames that they
    see. `int8` is True where the published file has 8 bits. `quiet` is how a model meets quiet
    speech: trained on it, blind to the level, or by the gain before it.
    """

    gflop: float
    quiet: Quiet = "gain"
    quiet_source: Source = "measured"
    int8: bool = False
    narrow: bool = False
    """Only some words: no choice as long as there is another one."""


FACTS: Mapping[str, Facts] = MappingProxyType(
    {
        EMBEDDED: Facts(0.16, narrow=True),
        "nemotron-speech-streaming-en-0.6b": Facts(15.5),
        "parakeet-ctc-0.6b": Facts(15.0),
        "parakeet-tdt-0.6b-v2": Facts(15.0),
        "wav2vec2-base-960h": Facts(14.0, "invariant"),
        "whisper-tiny": Facts(1.2),
        "whisper-base": Facts(2.7),
        "whisper-small": Facts(11.0),
        "whisper-large-v3": Facts(77.0),
        "whisper-large-v3-turbo": Facts(70.0),
        "GLM-ASR-Nano-2512": Facts(130.0, "trained", "published"),
        "sherpa-onnx-paraformer-zh-2023-09-14": Facts(7.3, int8=True),
        "sherpa-onnx-streaming-paraformer-bilingual-zh-en": Facts(13.0, int8=True),
        "sherpa-onnx-sense-voice-zh-en-ja-ko-yue-2024-07-17": Facts(7.8, int8=True),
    }
)
"""By short name. Whisper and GLM-ASR compute 30 s for the 28 s that they get at most."""

_QUIET_RANK: Mapping[Quiet, int] = MappingProxyType({"trained": 2, "invariant": 1, "gain": 0})
_QUIET_WORDS: Mapping[Quiet, str] = MappingProxyType(
    {
        "trained": "was trained on quiet speech",
        "invariant": "is blind to the level",
        "gain": "hears quiet speech through the gain before it",
    }
)


@dataclass(frozen=True)
class Wish:
    """What a model is wanted for. `max_rtf` bounds the seconds of work per second of speech."""

    language: str = "en"
    live: bool = False
    quiet: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    max_rtf: float | None = None
    cores: int | None = None
    """Of the processor; by default those that this process may use."""


@dataclass(frozen=True)
class Choice:
    """A model, why it was chosen, and by name why each of the others was not."""

    entry: CatalogEntry
    why: str
    passed_over: Mapping[str, str]


def recommend(wish: Wish, entries: Sequence[CatalogEntry] = CATALOG) -> Choice:
    """The model that suits best; ModelNotFoundError, with the reasons, if none does."""
    refused: dict[str, str] = {}
    able: list[CatalogEntry] = []
    for entry in entries:
        reason = _refusal(entry, wish)
        if reason is None:
            able.append(entry)
        else:
            refused[entry.short_name] = reason
    if not able:
        known = sorted({language for entry in entries for language in entry.languages})
        near = {n: r for n, r in refused.items() if not r.startswith("does not know")}
        raise ModelNotFoundError(
            f"no model fits: {_listed(near)}"
            if near
            else f"no model knows the language {wish.language!r}; there are {', '.join(known)}"
        )
    able.sort(key=lambda entry: _preference(entry, wish), reverse=True)
    best = able[0]
    for entry in able[1:]:
        refused[entry.short_name] = _lost(entry, best, wish)
    return Choice(best, _why(best, wish), MappingProxyType(refused))


def real_time_factor(entry: CatalogEntry, wish: Wish) -> float | None:
    """Seconds of work per second of speech on that processor, by arithmetic; None on a GPU."""
    if wish.device != "cpu":
        return None
    facts = FACTS[entry.short_name]
    cores = wish.cores or len(os.sched_getaffinity(0))
    rate = CORE_GFLOPS_LIVE if wish.live and entry.streams else CORE_GFLOPS_WHOLE
    return facts.gflop / (rate * cores * (INT8_GAIN if facts.int8 else 1.0))


def passed_over(choice: Choice) -> str:
    """Why the others were not chosen, as one line; those of other languages are left out."""
    near = {n: r for n, r in choice.passed_over.items() if not r.startswith("does not know")}
    return f"not chosen: {_listed(near)}" if near else "no other model here knows the language"


def _refusal(entry: CatalogEntry, wish: Wish) -> str | None:
    language = wish.language.lower()
    if language not in entry.languages and language.split("-")[0] not in entry.languages:
        return f"does not know {wish.language}"
    factor = real_time_factor(entry, wish)
    if wish.max_rtf is not None and factor is not None and factor > wish.max_rtf:
        return f"RTF about {factor:.2g} (arithmetic)"
    return None


def _preference(entry: CatalogEntry, wish: Wish) -> tuple[bool, bool, int, float]:
    facts = FACTS[entry.short_name]
    return (
        not facts.narrow,
        wish.live and entry.streams,
        _QUIET_RANK[facts.quiet] if wish.quiet else 0,
        entry.parameters_millions,
    )


def _lost(entry: CatalogEntry, best: CatalogEntry, wish: Wish) -> str:
    """The first of the preferences in which an able model came after the best one."""
    reasons = (
        "knows only some words",
        "live only from pause to pause",
        "less sure of quiet speech",
        "smaller",
    )
    pairs = zip(_preference(entry, wish), _preference(best, wish), reasons, strict=True)
    return next((reason for mine, its, reason in pairs if mine < its), "listed later")


def _why(entry: CatalogEntry, wish: Wish) -> str:
    facts, factor = FACTS[entry.short_name], real_time_factor(entry, wish)
    parts = [f"knows {wish.language}"]
    if wish.live:
        parts.append(
            "is live by itself" if entry.streams else "is live from pause to pause (see --partials)"
        )
    if wish.quiet:
        parts.append(f"{_QUIET_WORDS[facts.quiet]} ({facts.quiet_source})")
    if factor is None:
        parts.append(f"its speed on {wish.device} is unknown")
    else:
        parts.append(f"its RTF on this processor is about {factor:.2g} (arithmetic)")
    if facts.narrow:
        parts.append("it knows only some words")
    return f"it {', '.join(parts)}"


def _listed(reasons: Mapping[str, str]) -> str:
    """Names by reason: "smaller: a, b; too slow: c"."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{reason}: {', '.join(given)}" for reason, given in names.items())
