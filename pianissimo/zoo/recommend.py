"""Which known model suits a request: rules over the facts of the catalog. No torch here.

What is known of a model's speed before it runs is arithmetic: its operations per second of speech
over those of a processor's core. Accuracy is no part of the table, since no two figures that their
authors publish are of the same test; of several models that will do, the largest is chosen.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pianissimo.errors import ModelNotFoundError
from pianissimo.zoo.catalog import CATALOG, CatalogEntry, Quiet

CORE_GFLOPS_WHOLE, CORE_GFLOPS_LIVE = 50.0, 12.0
"""About half of what a Xeon core of 2.5 GHz does in float32 with many frames at a time, and what it
does with the seven frames of a live step (measured)."""
INT8_GAIN = 2.0
"""How much faster 8 bits are there at least (measured: 2.6 to 10 times for linear layers alone)."""

SIMILAR_SIZES = 1.1
"""Of models whose sizes differ by less, that of the fewest languages is chosen."""

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
    """What a model is wanted for.

    `max_rtf` bounds the seconds of work per second of speech: by default 1 if live, else nothing.
    """

    language: str = "en"
    live: bool = False
    quiet: bool = False
    device: Literal["cpu", "cuda"] = "cpu"
    max_rtf: float | None = None
    cores: int | None = None
    """Of the processor; by default those that this process may use."""


@dataclass(frozen=True)
class Recommendation:
    """A model, why it was chosen, and by name why each of the others was not.

    `why` names the one that comes next; `how` is what to run, and what that takes.
    """

    entry: CatalogEntry
    why: str
    how: str
    passed_over: Mapping[str, str]


def recommend(wish: Wish, entries: Sequence[CatalogEntry] = CATALOG) -> Recommendation:
    """The model that suits best; ModelNotFoundError, with the reason, if none does."""
    knowing = [entry for entry in entries if _knows(entry, wish.language)]
    if not knowing:
        known = sorted({language for entry in entries for language in entry.languages})
        raise ModelNotFoundError(
            f"no model knows the language {wish.language!r}; there are {', '.join(known)}"
        )
    knowing.sort(key=lambda entry: _preference(entry, wish), reverse=True)
    able = [entry for entry in knowing if not _too_slow(entry, wish)]
    if not able:
        quickest = min(knowing, key=lambda entry: real_time_factor(entry, wish) or 0.0)
        raise ModelNotFoundError(
            f"no model for {wish.language} is so quick here: {quickest.short_name} "
            f"{_slowness(quickest, wish)}"
        )
    best = able[0]
    passed_over = {
        entry.short_name: _lost(entry, best, wish) if entry in able else _slowness(entry, wish)
        for entry in knowing
        if entry is not best
    }
    why = _why(best, wish)
    if passed_over:
        name, reason = next(iter(passed_over.items()))
        why += f"; rather than {name}, which {reason}"
    others = {e.short_name: f"does not know {wish.language}" for e in entries if e not in knowing}
    return Recommendation(best, why, _how(best, wish), MappingProxyType(passed_over | others))


def real_time_factor(entry: CatalogEntry, wish: Wish) -> float | None:
    """Seconds of work per second of speech on that processor, by arithmetic; None on a GPU."""
    if wish.device != "cpu":
        return None
    facts = entry.facts
    cores = wish.cores or len(os.sched_getaffinity(0))
    rate = CORE_GFLOPS_LIVE if wish.live and entry.streams else CORE_GFLOPS_WHOLE
    return facts.gflop / (rate * cores * (INT8_GAIN if facts.int8 else 1.0))


def _knows(entry: CatalogEntry, language: str) -> bool:
    code = language.lower()
    return code in entry.languages or code.split("-")[0] in entry.languages


def _too_slow(entry: CatalogEntry, wish: Wish) -> bool:
    factor = real_time_factor(entry, wish)
    most = wish.max_rtf if wish.max_rtf is not None else 1.0 if wish.live else None
    return most is not None and factor is not None and factor > most


def _slowness(entry: CatalogEntry, wish: Wish) -> str:
    return f"has an RTF of about {real_time_factor(entry, wish):.2g} (arithmetic)"


def _preference(entry: CatalogEntry, wish: Wish) -> tuple[bool, bool, int, int, int, float]:
    facts = entry.facts
    return (
        not facts.narrow,
        wish.live and entry.streams,
        _QUIET_RANK[facts.quiet] if wish.quiet else 0,
        int(math.log(entry.parameters_millions, SIMILAR_SIZES)),
        -len(entry.languages),
        entry.parameters_millions,
    )


def _lost(entry: CatalogEntry, best: CatalogEntry, wish: Wish) -> str:
    """The first of the preferences in which an able model came after the best one."""
    reasons = (
        "knows only some words",
        "is live only from pause to pause",
        "is less sure of quiet speech",
        "is smaller",
        "is of that size for more languages",
        "is smaller",
    )
    pairs = zip(_preference(entry, wish), _preference(best, wish), reasons, strict=True)
    return next((reason for mine, its, reason in pairs if mine < its), "is listed later")


def _why(entry: CatalogEntry, wish: Wish) -> str:
    facts = entry.facts
    parts = [f"knows {wish.language}"]
    if facts.narrow:
        parts[0] += ", but only some words"
    if wish.live:
        parts.append("is live by itself" if entry.streams else "is live from pause to pause")
    if wish.quiet:
        parts.append(f"{_QUIET_WORDS[facts.quiet]} ({facts.quiet_source})")
    if wish.device == "cpu":
        parts.append(_slowness(entry, wish))
    else:
        parts.append(f"has an unknown speed on {wish.device}")
    return ", ".join(parts)


def _how(entry: CatalogEntry, wish: Wish) -> str:
    """The commands, and what has to be accepted: size, extra, license."""
    model = "" if entry.repository is None else f" --model {entry.short_name}"
    use = f"pianissimo listen{model}" if wish.live else f"pianissimo transcribe{model} FILE"
    takes = ["part of the package" if entry.repository is None else f"{entry.megabytes:.0f} MB"]
    if entry.extra:
        takes.append(f"needs pip install 'pianissimo[{entry.extra}]'")
    takes.append(entry.license + (" (unverified)" if "license" in entry.unverified else ""))
    pull = "" if entry.repository is None else f"pianissimo pull {entry.short_name} && "
    return f"{pull}{use}  # {', '.join(takes)}"
