"""Linear and LSTM layers packed for the CPU: float32 in oneDNN's blocked layout, or 8-bit weights.

Packed modules compute only: they hold no parameters, have no gradient and cannot be saved. What
they compute for a row never depends on the other rows of a batch, so the neighbors of a stream
cannot change its text. That rules out the usual dynamic quantization, whose one activation scale
for the whole batch lets a loud row wipe out a quiet one.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from pianissimo.errors import OptionError

Precision = Literal["float32", "int8"]
M = TypeVar("M", bound=nn.Module)

ROWS_HINT = 16
"""Rows a packed float32 weight is laid out for: what one or a few streams bring per step."""
REORDER, PRODUCT = "_reorder_linear_weight", "_linear_pointwise"
"""oneDNN's operators in `torch.ops.mkldnn`: they have no public names."""
INT8_PRODUCT = "linear_with_input_q_dq_qweight_dq_output_fp32"
"""The 8-bit product in `torch.ops.quantized`: float rows (R, in) within [-1, 1], the scale and zero
point of their 8 bits, and a packed weight -> float (R, out)."""
ROWS_AT_ONCE = 128
"""More rows than this are slower in the packed layout than in the plain one, unless cut up."""
WEIGHT_LEVELS = 127
SMALLEST_SCALE = 1e-12

log = logging.getLogger(__name__)


class PackedLinear(nn.Module):
    """y = x W^T + b in float32 with the weight in oneDNN's blocked layout: (..., in) -> (..., out).

    A plain linear of a few rows reads its weight in an order that keeps memory waiting; packed it
    took half the time of `nn.Linear` or less from 1 to 14 rows.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        weight = linear.weight.detach().contiguous()
        self._packed = getattr(torch.ops.mkldnn, REORDER)(weight, ROWS_HINT)
        self._product = getattr(torch.ops.mkldnn, PRODUCT)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        post: tuple[str, list[float], str] = ("none", [], "")  # no operation fused behind
        rest = (self._packed, self.bias, *post)
        if len(rows) <= ROWS_AT_ONCE:
            y = self._product(rows, *rest)
        else:
            y = torch.cat([self._product(part, *rest) for part in rows.split(ROWS_AT_ONCE)])
        return y.view(*x.shape[:-1], self.out_features)


class Int8Linear(nn.Module):
    """y = x W^T + b with 8-bit weights, one scale per output, and activations scaled per row.

    The products are summed as integers, exactly; only the rounding of x and W is lost: about 1.3 %
    of y's norm with 8-bit activations, 2 % with the 7 bits that processors without VNNI can sum
    without overflow.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        self._levels = activation_levels()
        self._packed = _pack_int8(linear.weight.detach().float())
        self._product = getattr(torch.ops.quantized, INT8_PRODUCT)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        largest = rows.abs().amax(1, keepdim=True).clamp_min_(SMALLEST_SCALE)
        levels = self._levels
        y: Tensor = self._product(rows / largest, 1.0 / levels, levels + 1, self._packed)
        y = y.mul_(largest) if self.bias is None else torch.addcmul(self.bias, y, largest)
        return y.view(*x.shape[:-1], self.out_features)


class PackedLSTM(nn.Module):
    """What a plain `nn.LSTM` (batch first, one direction) computes, step by step: (B, T, in).

    The two products of a layer are one, by a packed linear layer. oneDNN's own LSTM packs its
    weights again at each call, which for a single step takes several times the arithmetic.
    """

    def __init__(self, lstm: nn.LSTM, make: Callable[[nn.Linear], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make(_gates(lstm, i)) for i in range(lstm.num_layers))

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`state` is hidden and cell, each (layers, B, P); returns (B, T, P) and the next state."""
        hidden, cell = (list(part) for part in state)
        outputs = []
        for y in x.unbind(1):
            for i, gates in enumerate(self.layers):
                update, forget, new, out = gates(torch.cat([y, hidden[i]], dim=1)).chunk(4, dim=1)
                cell[i] = forget.sigmoid() * cell[i] + update.sigmoid() * new.tanh()
                hidden[i] = y = out.sigmoid() * cell[i].tanh()
            outputs.append(y)
        return torch.stack(outputs, 1), (torch.stack(hidden), torch.stack(cell))


def packed(module: M, precision: Precision) -> M:
    """A copy of `module` whose linear layers and LSTMs are packed, for inference on the CPU.

    Everything else is shared with `module`, which stays as it is. "float32" gives `module` itself
    back where it is on another device or of another dtype, and where this PyTorch cannot pack;
    there "int8" raises OptionError.
    """
    if precision == "int8":
        activation_levels()
        return _copied(module, Int8Linear)
    if precision != "float32":
        raise OptionError(f"linear layers are packed as float32 or int8, not as {precision!r}")
    weight = next(module.parameters(), None)  # none where all are packed already
    if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return module
    if not _packs_float32():
        log.info("this PyTorch cannot pack linear layers; they stay as they are")
        return module
    return _copied(module, PackedLinear)


def _copied(module: M, make: Callable[[nn.Linear], nn.Module]) -> M:
    # A deep copy takes from its memo what stands there for an object: parameters and buffers
    # themselves, layers that are packed already, and packed layers for the plain ones.
    kept: Iterable[Tensor] = (*module.parameters(), *module.buffers())
    memo: dict[int, Any] = {id(tensor): tensor for tensor in kept}
    for name, child in module.named_modules():
        if isinstance(child, (PackedLinear, Int8Linear, PackedLSTM)):
            memo[id(child)] = child
        elif type(child) is nn.LSTM:
            memo[id(child)] = PackedLSTM(child, make)
        elif type(child) is nn.Linear:
            # Positions go through their layer once, when a model's constants are computed:
            # exactness is free.
            exact = name.rpartition(".")[2] == "position"
            memo[id(child)] = child if exact else make(child)
    return copy.deepcopy(module, memo)


def _gates(lstm: nn.LSTM, layer: int) -> nn.Linear:
    """A layer's two products as one: what comes in and what it remembers, side by side."""
    weights = [getattr(lstm, f"weight_{part}_l{layer}").detach() for part in ("ih", "hh")]
    gates = nn.Linear(1, 1)
    gates.weight = nn.Parameter(torch.cat(weights, dim=1), requires_grad=False)
    biases = getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}")
    gates.bias = nn.Parameter(biases.detach(), requires_grad=False)
    gates.out_features, gates.in_features = gates.weight.shape
    return gates


@cache
def activation_levels() -> int:
    """How many levels a row's activations get on each side of zero: 127 or, without VNNI, 63.

    Older processors add pairs of products in 16 bits, where full 8-bit activations overflow in
    silence. The levels are found by trying, as are the kernels themselves, which are not part of
    PyTorch's public interface. Raises OptionError if there are none.
    """
    try:
        packed, product = _pack_int8(torch.ones(16, 64)), getattr(torch.ops.quantized, INT8_PRODUCT)
        for levels in (127, 63):
            largest = torch.cat([torch.ones(2, 64), -torch.ones(2, 64)])
            sums = product(largest, 1.0 / levels, levels + 1, packed)
            if torch.allclose(sums.abs(), torch.full((4, 16), 64.0), rtol=1e-5):
                return levels
    except (RuntimeError, AttributeError) as error:
        raise OptionError(
            f"this PyTorch has no 8-bit linear layers for this processor ({error}); "
            "use dtype float32"
        ) from error
    raise OptionError("8-bit sums are wrong on this processor; use dtype float32")


def computes_int8() -> bool:
    """Whether this processor has 8-bit linear layers."""
    try:
        return activation_levels() > 0
    except OptionError:
        return False


def _pack_int8(weight: Tensor) -> Any:
    """(out, in) float weight -> the kernel's packed 8-bit weight."""
    scales = (weight.abs().amax(1) / WEIGHT_LEVELS).clamp_min(SMALLEST_SCALE).double()
    zeros = torch.zeros(len(weight), dtype=torch.long)
    engine = torch.backends.quantized.engine
    with warnings.catch_warnings():
        # Quantized tensors are deprecated as such; here one only carries the weight to the packer.
        warnings.filterwarnings("ignore", message=".*quantized tensor.*")
        quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    try:
        torch.backends.quantized.engine = "fbgemm"
        return torch.ops.quantized.linear_prepack(quantized, None)
    finally:
        torch.backends.quantized.engine = engine


@cache
def _packs_float32() -> bool:
    try:
        linear = nn.Linear(16, 16)
        x = torch.ones(2, 16)
        with torch.no_grad():
            return torch.allclose(PackedLinear(linear)(x), linear(x), atol=1e-5)
    except (RuntimeError, AttributeError):
        return False
