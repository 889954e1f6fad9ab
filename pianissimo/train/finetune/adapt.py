"""Which weights a fine-tuning changes, and regularization toward the original ones.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds a product of two narrow matrices to a linear layer and
is merged into it afterwards, so the saved model is a plain one. L2-SP (Li et al. 2018, arXiv
1802.01483) penalizes the distance from the original weights; EWC (Kirkpatrick et al. 2017, arXiv
1612.00796) weights it by the importance of each weight for the old task. Weights between the old
and the new ones often keep most of both (Wortsman et al. 2022, arXiv 2109.01903).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel

LORA_LINEARS = (
    "attention.qkv",
    "attention.out",
    "ff1.up",
    "ff1.down",
    "ff2.up",
    "ff2.down",
)
"""The linear layers of an encoder layer to which LoRA is added."""


def freeze_encoder(model: AsrModel) -> None:
    """Freeze the encoder; the prediction network and the heads are trained."""
    model.encoder.requires_grad_(False)


class LoraLinear(nn.Module):
    """y = base(x) + up(down(x)) * scale with `base` frozen: (..., in) -> (..., out).

    `up` is zero at first, so the initial output is that of `base`.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), scale
        where = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Linear(base.in_features, rank, bias=False, **where)
        self.up = nn.Linear(rank, base.out_features, bias=False, **where)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x)) * self.scale

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base layer with the product added to its weight."""
        product = self.up.weight.double() @ self.down.weight.double()
        self.base.weight += (self.scale * product).to(self.base.weight.dtype)
        return self.base.requires_grad_(True)


def add_lora(model: AsrModel, rank: int, scale: float = 2.0) -> None:
    """Freeze the encoder except a LoRA of `rank` on its attention and feed-forward layers.

    The prediction network and the heads are small and trained in full. `scale` is the alpha / rank
    of the paper. Raises OptionError for a rank that is too large for a layer.
    """
    most = min(model.config.encoder.dim, model.config.encoder.ff_dim)
    if not 1 <= rank <= most:
        raise OptionError(f"the rank of LoRA must be 1 to {most}, not {rank}")
    freeze_encoder(model)
    for layer in model.encoder.layers:
        for name in LORA_LINEARS:
            part, attribute = name.split(".")
            holder = layer.get_submodule(part)
            base = getattr(holder, attribute)
            assert type(base) is nn.Linear
            setattr(holder, attribute, LoraLinear(base, rank, scale))


def merge_lora(model: AsrModel) -> None:
    """Merge every LoRA into its layer; afterwards all weights can be trained."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, LoraLinear):
                setattr(module, name, child.merged())
    model.requires_grad_(True)


@torch.no_grad()
def blend(model: nn.Module, original: nn.Module, share: float) -> None:
    """Interpolate the weights of a model to `share` of the way from the original."""
    for weight, origin in zip(model.parameters(), original.parameters(), strict=True):
        weight.lerp_(origin.to(weight.device, weight.dtype), 1 - share)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class Anchor:
    """A penalty on the distance from the original weights, as an addition to gradients.

    The penalty is strength / 2 * sum of importance * (weight - origin)^2. Without `importance`
    every weight counts alike, which is L2-SP; the Fisher information makes it EWC.
    """

    strength: float
    origin: dict[str, Tensor]
    importance: dict[str, Tensor] | None = None

    @torch.no_grad()
    def pull(self, model: nn.Module) -> None:
        """Add the penalty's gradient to that of each trained weight."""
        for name, parameter in trained_weights(model).items():
            drift = parameter - self.origin[name]
            if self.importance is not None:
                drift *= self.importance[name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(drift, alpha=self.strength)


def anchor_weights(
    model: nn.Module, strength: float, importance: dict[str, Tensor] | None = None
) -> Anchor:
    """An anchor at the current weights of the model."""
    origin = {name: p.detach().clone() for name, p in trained_weights(model).items()}
    return Anchor(strength, origin, importance)


def fisher_information(
    model: nn.Module, losses: Iterable[Callable[[], Tensor]]
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information, scaled to a mean of one.

    `losses` are functions, each giving the negative log-likelihood of one example: the mean of
    their squared gradients is taken. The scale makes strengths comparable with those of L2-SP.
    """
    weights = trained_weights(model)
    squares = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in weights.items()}
    for loss in losses:
        gradients = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
        for square, gradient in zip(squares.values(), gradients, strict=True):
            if gradient is not None:
                square.addcmul_(gradient.float(), gradient.float())
    total = sum(float(square.sum(dtype=torch.float64)) for square in squares.values())
    if not 0 < total < math.inf:
        raise OptionError("the Fisher information of the EWC examples is 0; use other replay data")
    mean = total / sum(square.numel() for square in squares.values())
    return {name: square / mean for name, square in squares.items()}
