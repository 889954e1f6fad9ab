"""Less memory and time per step: half precision with loss scaling, and layers computed twice."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.utils.checkpoint import checkpoint

from pianissimo.models.fastconformer import FastConformerEncoder

Precision = Literal["auto", "float32", "bfloat16", "float16"]


class Mixed:
    """Mixed precision (Micikevicius et al. 2018): weights in float32, products narrower.

    "auto" is bfloat16 on a GPU that has it, else float32. float16 has few exponents, so the loss
    is scaled up before the backward pass and gradients down after it; a step whose gradients
    overflow is skipped and the scale halved.
    """

    def __init__(self, precision: Precision, device: str) -> None:
        self.device = device.split(":")[0]
        if precision == "auto":
            fits = self.device == "cuda" and torch.cuda.is_bf16_supported()
            precision = "bfloat16" if fits else "float32"
        self.dtype: torch.dtype = getattr(torch, precision)
        self.scaler = GradScaler(self.device) if precision == "float16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the forward pass."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients to their true size, before they are looked at."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)

    def update(self) -> None:
        """Adapt the scale to how the step went; once after every backward pass."""
        if self.scaler is not None:
            self.scaler.update()


@contextmanager
def recomputed_layers(encoder: FastConformerEncoder) -> Iterator[None]:
    """Inside, each layer keeps only its input and computes the rest anew in the backward pass."""
    layers = list(encoder.layers)
    for layer in layers:
        # On the instance: whatever else the layer offers stays reachable.
        layer.forward = partial(  # type: ignore[method-assign]
            checkpoint, layer.forward, use_reentrant=False
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
