import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import tensor

from pianissimo.decoding.confidence import Confidence
from pianissimo.errors import OptionError

SYMBOLS = 9
MEASURES = ("max_prob", "gibbs", "tsallis", "renyi")
CASES = list(itertools.product(MEASURES, ("lin", "exp"), (0.33, 0.5, 1.0, 2.0)))


def formula(measure: str, norm: str, alpha: float, p: NDArray[np.float64]) -> float:
    """Laptev and Ginsburg 2022, sections 3.2 and 3.3, from the probabilities themselves."""
    n = len(p)
    if measure == "max_prob":
        return float((p.max() ** alpha * n**alpha - 1) / (n**alpha - 1))
    if alpha == 1 or measure == "gibbs":
        entropy = -np.sum(p**alpha * np.log(p**alpha))
        uniform = -n * (n**-alpha) * math.log(n**-alpha)
    elif measure == "tsallis":
        entropy = (1 - np.sum(p**alpha)) / (alpha - 1)
        uniform = (1 - n ** (1 - alpha)) / (alpha - 1)
    else:
        entropy = np.log(np.sum(p**alpha)) / (1 - alpha)
        uniform = math.log(n)
    if norm == "lin":
        return float(1 - entropy / uniform)
    return float((math.exp(-entropy) - math.exp(-uniform)) / (1 - math.exp(-uniform)))


@pytest.mark.parametrize("measure, norm, alpha", CASES)
def test_measures_follow_their_formulas(measure: str, norm: str, alpha: float) -> None:
    log_probs = (3 * tensor(7, SYMBOLS)).log_softmax(-1)
    found = Confidence(measure, norm, alpha)(log_probs)  # type: ignore[arg-type]
    assert found.shape == (7,)
    p = log_probs.double().exp().numpy()
    expected = [formula(measure, norm, alpha, row) for row in p]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=2e-5)
    assert len({round(v, 4) for v in expected}) > 5


@pytest.mark.parametrize("measure, norm, alpha", CASES)
def test_certainty_is_one_and_ignorance_is_zero(measure: str, norm: str, alpha: float) -> None:
    confidence = Confidence(measure, norm, alpha)  # type: ignore[arg-type]
    certain = torch.tensor([500.0] + [0.0] * (SYMBOLS - 1)).log_softmax(-1)
    ignorant = torch.zeros(SYMBOLS).log_softmax(-1)
    assert float(confidence(certain)) == pytest.approx(1, abs=1e-6)
    assert float(confidence(ignorant)) == pytest.approx(0, abs=1e-6)


# Gibbs' entropy of an order above 1 is largest somewhere between uniform and certain.
@pytest.mark.parametrize("measure, norm, alpha", [c for c in CASES if c[2] <= 1])
def test_surer_distributions_score_higher(measure: str, norm: str, alpha: float) -> None:
    logits = tensor(SYMBOLS).abs().sort(descending=True).values
    ladder = torch.stack([logits * scale for scale in (0.2, 0.5, 1, 2, 4)]).log_softmax(-1)
    found = Confidence(measure, norm, alpha)(ladder)  # type: ignore[arg-type]
    assert bool((found.diff() > 0).all())


def test_the_default_is_the_probability_of_the_best_symbol() -> None:
    log_probs = tensor(4, SYMBOLS).log_softmax(-1)
    torch.testing.assert_close(Confidence()(log_probs), log_probs.exp().amax(-1))


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_invalid_orders_are_refused(alpha: float) -> None:
    with pytest.raises(OptionError, match="alpha"):
        Confidence("tsallis", alpha=alpha)


def test_unknown_measures_and_norms_are_refused() -> None:
    with pytest.raises(OptionError, match="entropy"):
        Confidence("entropy")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="log"):
        Confidence("gibbs", norm="log")  # type: ignore[arg-type]
