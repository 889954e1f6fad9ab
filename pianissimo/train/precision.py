"""Mixed precision with loss scaling, and recomputation of layers to save memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.utils.checkpoint import checkpoint

from pianissimo.models.fastconformer import FastConformerEncoder

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Mixed:
    """Mixed precision (Micikevicius et al. 2018): weights in float32, products in half precision.

    "auto" is bfloat16 on a GPU that supports it, else float32. float16 has a small range, so the
    loss is scaled up before the backward pass and gradients down after it. A step with an overflow
    is skipped and the scale halved.
    """

    def __init__(self, precision: Precision, device: str) -> None:
        self.device = device.split(":")[0]
        if precision == "auto":
            fits = self.device == "cuda" and torch.cuda.is_bf16_supported()
            precision = "bfloat16" if fits else "float32"
        self.dtype: torch.dtype = getattr(torch, precision)
        self.scaler = GradScaler(self.device) if precision == "float16" else None

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the forward pass."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo the scale of the gradients, before they are clipped."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)

    def update(self) -> None:
        """Adapt the scale after a step."""
        if self.scaler is not None:
            self.scaler.update()


@contextmanager
def recomputed_layers(encoder: FastConformerEncoder) -> Iterator[None]:
    """A context in which layers store only their input and recompute the rest when needed."""
    layers = list(encoder.layers)
    for layer in layers:
        # On the instance, so that the other attributes of the layer stay accessible.
        layer.forward = partial(  # type: ignore[method-assign]
            checkpoint, layer.forward, use_reentrant=False
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
