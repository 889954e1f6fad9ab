"""Assigns callers to the arms of an experiment by a hash, so that assignments are stable.

Weighted rendezvous hashing (Schindelhauer and Schomaker 2005): when a weight changes, only the
necessary share of callers changes its arm, and none between two arms with unchanged weights.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from pianissimo.errors import OptionError

By = Literal["session", "key", "user"]
HASH_BITS = 52
"""A float holds these plus one half exactly; no hash becomes 0 or 1."""
MOST_WEIGHT = 1e9


@dataclass(frozen=True)
class Caller:
    """A caller: the session of a socket or one request, the API key, and the named user."""

    session: str
    key: str | None = None
    user: str | None = None


@dataclass(frozen=True)
class Experiment:
    """Models and their weights; `by` is the identity that an assignment is stable for.

    A caller without a key or user is identified by its session.
    """

    weights: Mapping[str, float]
    by: By = "session"

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise OptionError(f"a split is by {', '.join(get_args(By))}, not by {self.by!r}")
        numbers = self.weights.values()
        if not all(0 <= w <= MOST_WEIGHT for w in numbers) or not sum(numbers) > 0:
            raise OptionError(
                f"the weights of a split must be numbers from 0 to {MOST_WEIGHT:g}, at least one "
                "above 0"
            )

    def arm(self, alias: str, caller: Caller) -> str:
        """The model of this caller in the experiment named `alias`."""
        who = getattr(caller, self.by) or caller.session

        def score(model: str) -> float:
            text = "\0".join((alias, model, who)).encode("utf-8", "surrogatepass")
            drawn = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> (64 - HASH_BITS)
            return self.weights[model] / -math.log((drawn + 0.5) / 2**HASH_BITS)

        return max(sorted(self.weights), key=score)
