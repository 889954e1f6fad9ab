"""Confidence of a distribution over symbols, as a number in [0, 1].

`probability` is the probability of the best symbol. The others are those of Laptev
and Ginsburg 2022 (arXiv 2212.08703) as NeMo computes them: 1 for certainty and 0 for the uniform
distribution over all V + 1 symbols, from the maximum or from an entropy of order `alpha`.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from pianissimo.errors import OptionError

Norm = Literal["lin", "exp"]
Measure = Literal["probability", "max_prob", "gibbs", "tsallis", "renyi"]


@dataclass(frozen=True)
class Confidence:
    """A confidence measure; `norm` maps an entropy to [0, 1] linearly or by its exponential."""

    measure: Measure = "probability"
    norm: Norm = "exp"
    alpha: float = 0.33

    def __post_init__(self) -> None:
        measures, norms = get_args(Measure), get_args(Norm)
        if self.measure not in measures or self.norm not in norms:
            raise OptionError(
                f"unknown confidence {self.measure!r} with norm {self.norm!r}; choose one of "
                f"{', '.join(measures)} with {' or '.join(norms)}"
            )
        if not 0 < self.alpha < math.inf:
            raise OptionError(f"confidence alpha must be positive, not {self.alpha}")

    def __call__(self, log_probs: Tensor) -> Tensor:
        """(..., V + 1) normalized log-probabilities -> (...)."""
        symbols = log_probs.shape[-1]
        if self.measure == "probability":
            return log_probs.amax(-1).exp()
        if self.measure == "max_prob":
            scale = symbols**self.alpha
            return ((log_probs.amax(-1) * self.alpha).exp() * scale - 1) / (scale - 1)
        if self.alpha == 1.0 or self.measure == "gibbs":
            return self._gibbs(log_probs, symbols)
        power_sum = (log_probs * self.alpha).exp().sum(-1)
        if self.measure == "tsallis":
            return self._tsallis(power_sum, symbols)
        return self._renyi(power_sum, symbols)

    def of(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        """As a call, for labels (...) that need not be the best ones: their own probability."""
        if self.measure == "probability":
            return log_probs.gather(-1, labels[..., None])[..., 0].exp()
        return self(log_probs)

    def _gibbs(self, log_probs: Tensor, symbols: int) -> Tensor:
        alpha = self.alpha
        negative_entropy = alpha * ((log_probs * alpha).exp() * log_probs).sum(-1)
        largest = alpha * symbols ** (1 - alpha) * math.log(symbols)
        return self._normalize(negative_entropy, largest)

    def _tsallis(self, power_sum: Tensor, symbols: int) -> Tensor:
        alpha = self.alpha
        largest = (symbols ** (1 - alpha) - 1) / (1 - alpha)
        return self._normalize((1 - power_sum) / (1 - alpha), largest)

    def _renyi(self, power_sum: Tensor, symbols: int) -> Tensor:
        return self._normalize(power_sum.log() / (self.alpha - 1), math.log(symbols))

    def _normalize(self, negative_entropy: Tensor, largest: float) -> Tensor:
        if self.norm == "lin":
            return 1 + negative_entropy / largest
        floor = math.exp(-largest)
        return (negative_entropy.exp() - floor) / (1 - floor)
