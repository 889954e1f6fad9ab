"""The golden tests over again, with larger models that the references make and run on the spot.

Needs the oracle environment: `make parity` makes it, PIANISSIMO_ORACLE_PYTHON names another one.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from oracle_run import VARIABLE, find_python, run_oracle
from parity_checks import CHECKS, Case, checks_of, read_cases
from test_golden import CASES

PYTHON = find_python()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None, reason=f"no oracle environment: run `make parity`, or set {VARIABLE}"
    ),
]
PAIRS = [
    pytest.param(case.source, case.name, check, id=f"{case.source}-{case.name}-{check}")
    for case in CASES
    for check in checks_of(case)
]


@pytest.fixture(scope="session")
def live_cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Case]]:
    """What the oracle of a source writes today; it runs once."""

    @cache
    def cases(source: str) -> dict[str, Case]:
        assert PYTHON is not None
        folder: Path = tmp_path_factory.mktemp(source)
        run_oracle(PYTHON, source, folder, "full")
        return {case.name: case for case in read_cases(folder, source)}

    return cases


@pytest.mark.parametrize(("source", "name", "check"), PAIRS)
@torch.inference_mode()
def test_equals(
    source: str, name: str, check: str, live_cases: Callable[[str], dict[str, Case]]
) -> None:
    CHECKS[check][1](live_cases(source)[name])
