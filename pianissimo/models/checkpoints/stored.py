"""Weights as stored: in their own dtype, in half precision, or with linear layers in 8 bits.

An 8-bit matrix has signed integers and one scale per output, as in `packed`: a model stored in
8 bits and one quantized when it is loaded are the same model. Its other weights are in half
precision. Reading always returns float32.
"""

import torch
from torch import Tensor, nn

from pianissimo.errors import CheckpointError
from pianissimo.models.packed import SMALLEST_SCALE, WEIGHT_LEVELS

SCALE = "_scale"
"""The suffix of the name of an 8-bit matrix for its scales (out,)."""


def to_store(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a model by name, floating ones in `dtype`: a float type, or torch.int8."""
    weights = {name: t.detach() for name, t in model.state_dict().items()}
    stored: dict[str, Tensor] = {}
    if dtype == torch.int8:
        for path, module in model.named_modules():
            if type(module) is nn.Linear:
                name = f"{path}.weight"
                weight = weights.pop(name).float()
                scales = (weight.abs().amax(1) / WEIGHT_LEVELS).clamp_min(SMALLEST_SCALE)
                stored[name] = (weight / scales[:, None]).round().to(torch.int8)
                stored[name + SCALE] = scales
        dtype = torch.float16
    for name, t in weights.items():
        narrow = t.to(dtype) if dtype is not None and t.is_floating_point() else t
        stored[name] = narrow.contiguous()
    return stored


def from_store(stored: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The weights that `to_store` stored, in float32.

    Raises CheckpointError for other dtypes, and for 8 bits without scales.
    """
    weights = dict(stored)
    for name, matrix in stored.items():
        if matrix.is_floating_point():
            continue
        if matrix.dtype != torch.int8:
            raise CheckpointError(f"{source}: {name} has {matrix.dtype}, expected plain floats")
        scales = weights.pop(name + SCALE, None)
        if matrix.dim() != 2 or scales is None or scales.shape != matrix.shape[:1]:
            raise CheckpointError(f"{source}: {name} has 8 bits, but no scale for each output")
        if not (scales.is_floating_point() and bool(scales.isfinite().all())):
            raise CheckpointError(f"{source}: the scales of {name} must be finite numbers")
        weights[name] = matrix.float() * scales.float()[:, None]
    return {name: t.float() for name, t in weights.items()}
