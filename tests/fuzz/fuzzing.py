"""Length of the fuzz tests: FUZZ=20 makes 20 times as many examples, new ones each time.

FUZZ_MINUTES bounds the time of all of them together. Each test has an equal share of it, and ends
with the example that runs when its share is used.
"""

import functools
import os
import time
import unittest
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("FUZZ", "1"))
SECONDS = float(os.environ.get("FUZZ_MINUTES", "inf")) * 60


class Share:
    """The time of one test; `tests` is how many there are, set when they are collected."""

    tests = 1

    def __init__(self) -> None:
        self._end = time.monotonic() + SECONDS / self.tests

    @property
    def used(self) -> bool:
        return time.monotonic() >= self._end


def fuzzing(examples: int) -> Callable[[Any], Any]:
    """Settings for this many examples; the same each time unless a longer run is requested."""

    def decorate(test: Any) -> Any:
        test.hypothesis.inner_test = bounded(test.hypothesis.inner_test, Share())
        given = settings(
            max_examples=examples * TIMES,
            deadline=None,
            derandomize=TIMES == 1,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(test)

        @functools.wraps(given)
        def run(*values: Any, **named: Any) -> None:
            try:
                given(*values, **named)
            except TimeUsed:
                pass

        return run

    return decorate


class TimeUsed(unittest.SkipTest):
    """Hypothesis passes a skipped test on at once, and generates no further example."""


def bounded(test: Callable[..., None], share: Share) -> Callable[..., None]:
    """The test, which ends Hypothesis once its share of the time is used."""

    @functools.wraps(test)
    def run(*values: Any, **named: Any) -> None:
        if share.used:
            raise TimeUsed
        test(*values, **named)

    return run
