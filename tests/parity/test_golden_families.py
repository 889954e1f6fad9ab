"""Our numbers for wav2vec 2.0 and its kin against those of Transformers, stored."""

from pathlib import Path

import pytest
import torch
from families_checks import CHECKS, FamilyCase, checks_of, read_family_cases

CASES = read_family_cases(Path(__file__).resolve().parent / "golden_families")
PAIRS = [
    pytest.param(case, check, id=f"{case.name}-{check}")
    for case in CASES
    for check in checks_of(case)
]


@pytest.mark.parametrize(("case", "check"), PAIRS)
@torch.inference_mode()
def test_equals(case: FamilyCase, check: str) -> None:
    CHECKS[check](case)


def test_nothing_is_missing() -> None:
    assert len(CASES) == 13
    assert {check for case in CASES for check in checks_of(case)} == CHECKS.keys()
