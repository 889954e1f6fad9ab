"""How long the fuzzers look: FUZZ=50 makes fifty times as many examples, and new ones each time."""

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("FUZZ", "1"))


def fuzzing(examples: int) -> settings:
    """Settings for so many examples; the same ones each time, unless a longer run is asked for."""
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
