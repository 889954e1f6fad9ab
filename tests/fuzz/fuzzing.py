"""Length of the fuzz tests: FUZZ=20 makes 20 times as many examples, new ones each time.

FUZZ_MINUTES bounds the time of all of them: a test that has used its share skips its last examples.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("FUZZ", "1"))
TEST_SECONDS = float(os.environ.get("FUZZ_MINUTES", "inf")) * 60 / 10
"""Of one test; there are about 30, and most of them are short."""


def fuzzing(examples: int) -> Callable[[Any], Any]:
    """Settings for this many examples; the same each time unless a longer run is requested."""

    def decorate(test: Any) -> Any:
        test.hypothesis.inner_test = bounded(test.hypothesis.inner_test)
        return settings(
            max_examples=examples * TIMES,
            deadline=None,
            derandomize=TIMES == 1,
            database=None,
            suppress_health_check=list(HealthCheck),
        )(test)

    return decorate


def bounded(test: Callable[..., None]) -> Callable[..., None]:
    """The test, which does nothing once its time is used."""
    began = time.monotonic()

    @functools.wraps(test)
    def run(*values: Any, **named: Any) -> None:
        if time.monotonic() - began < TEST_SECONDS:
            test(*values, **named)

    return run
