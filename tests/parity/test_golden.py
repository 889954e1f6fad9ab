"""Our numbers against those that NeMo and Transformers computed: the files in `golden/`."""

from pathlib import Path

import pytest
import torch
from parity_checks import CHECKS, Case, checks_of, read_cases

GOLDEN = Path(__file__).resolve().parent / "golden"
CASES = [case for source in ("nemo", "hf") for case in read_cases(GOLDEN / source, source)]
PAIRS = [
    pytest.param(case, check, id=f"{case.source}-{case.name}-{check.replace(' ', '-')}")
    for case in CASES
    for check in checks_of(case)
]


@pytest.mark.parametrize(("case", "check"), PAIRS)
@torch.inference_mode()
def test_equals(case: Case, check: str) -> None:
    CHECKS[check][1](case)


def test_nothing_is_missing() -> None:
    assert len(CASES) == 14
    assert {check for case in CASES for check in checks_of(case)} == CHECKS.keys()
