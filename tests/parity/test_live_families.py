"""The golden tests of wav2vec 2.0 and related models, with larger models made on the spot.

Needs the oracle environment: `make parity` makes it, PIANISSIMO_ORACLE_PYTHON names another one.
"""

from pathlib import Path

import pytest
import torch
from families_checks import CHECKS, FamilyCase, checks_of, read_family_cases, run_families_oracle
from oracle_run import VARIABLE, find_python
from test_golden_families import CASES

PYTHON = find_python()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None, reason=f"no oracle environment: run `make parity`, or set {VARIABLE}"
    ),
]
PAIRS = [
    pytest.param(case.name, check, id=f"{case.name}-{check}")
    for case in CASES
    for check in checks_of(case)
]


@pytest.fixture(scope="session")
def live_families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FamilyCase]:
    """What the oracle writes today."""
    assert PYTHON is not None
    folder: Path = tmp_path_factory.mktemp("families")
    run_families_oracle(PYTHON, folder, "full")
    return {case.name: case for case in read_family_cases(folder)}


@pytest.mark.parametrize(("name", "check"), PAIRS)
@torch.inference_mode()
def test_equals(name: str, check: str, live_families: dict[str, FamilyCase]) -> None:
    CHECKS[check](live_families[name])
