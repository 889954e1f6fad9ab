"""Pruning: weights that are small, whole units of the feed-forwards, or whole attention heads.

Papers: Han et al. 2015 (magnitude pruning and retraining, arXiv 1506.02626), Li et al. 2017 (whole
filters by their norm, arXiv 1608.08710), Michel et al. 2019 (heads by their effect on the loss,
arXiv 1905.10650).

Unstructured pruning makes weights zero without changing shapes; its benefit depends on the storage
and the runtime. Structured pruning removes units or heads, which makes every runtime faster. Either
may be followed by training with `train_model`. A model with fewer units or heads, once saved, can
be fine-tuned like any other with `pianissimo finetune`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.models.fastconformer import EncoderConfig, FeedForward


def prunable(model: AsrModel) -> Iterator[tuple[str, Tensor]]:
    """The matrices of the encoder's layers, which have nearly all weights."""
    for name, module in model.encoder.named_modules():
        if name.startswith("layers.") and type(module) is nn.Linear:
            yield f"encoder.{name}.weight", module.weight


def sparsity(model: AsrModel) -> float:
    """The share of zeros in the prunable weights."""
    weights = [weight for _, weight in prunable(model)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


@torch.no_grad()
def prune_weights(model: AsrModel, share: float) -> None:
    """Make the smallest `share` of the prunable weights zero, in place, and keep them so.

    Weights are compared over all matrices, each divided by the root mean square of its own: layers
    differ in scale. Gradients of pruned weights are zero from now on, so an optimizer with fresh
    state keeps them at zero. Raises OptionError for a share outside [0, 1).
    """
    _refuse(share)
    weights = dict(prunable(model))
    worth = {name: w.abs() / w.square().mean().sqrt() for name, w in weights.items()}
    every = torch.cat([w.flatten() for w in worth.values()])
    count = round(share * len(every))
    if count == 0:
        return
    threshold = every.kthvalue(count).values
    for name, weight in weights.items():
        _keep_out(weight, worth[name] > threshold)


def _keep_out(weight: Tensor, kept: Tensor) -> None:
    """Set the pruned weights to zero, and their gradients in every step."""
    weight.mul_(kept)
    if weight.requires_grad:
        weight.register_hook(lambda gradient: gradient * kept.to(gradient.device))


@torch.no_grad()
def prune_units(model: AsrModel, share: float) -> AsrModel:
    """A model without the least important `share` of the hidden units of each feed-forward.

    The importance of a unit is the norm of the weights into it times that of the weights out of it.
    All feed-forwards keep the same number, since the configuration has one width for them. The
    given model is not changed. Raises OptionError for a share outside [0, 1).
    """
    _refuse(share)
    config = model.config
    width = max(1, round(config.encoder.ff_dim * (1 - share)))
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, FeedForward):
            worth = module.up.weight.norm(dim=1) * module.down.weight.norm(dim=0)
            kept = worth.topk(width).indices.sort().values
            weights[f"{name}.up.weight"] = module.up.weight[kept]
            weights[f"{name}.down.weight"] = module.down.weight[:, kept]
            if module.up.bias is not None:
                weights[f"{name}.up.bias"] = module.up.bias[kept]
    return _built(model, dataclasses.replace(config.encoder, ff_dim=width), weights)


@torch.no_grad()
def prune_heads(model: AsrModel, share: float, worth: Tensor | None = None) -> AsrModel:
    """A model without the least important `share` of heads of each layer; at least one is kept.

    `worth` is the importance of each head, (layers, H), for example by `head_importance`; by
    default that of `head_norms`. All layers keep the same number. The given model is not changed.
    Raises OptionError for a share outside [0, 1).
    """
    _refuse(share)
    config = model.config.encoder
    H, K = config.heads, config.head_dim
    count = max(1, round(H * (1 - share)))
    worth = head_norms(model) if worth is None else worth
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    for i, layer in enumerate(model.encoder.layers):
        kept = worth[i].topk(count).indices.sort().values.cpu()
        rows = (kept[:, None] * K + torch.arange(K)).flatten()  # of one of query, key and value
        triple = torch.cat([part * H * K + rows for part in range(3)])
        attention, name = layer.attention, f"encoder.layers.{i}.attention"
        weights[f"{name}.qkv.weight"] = attention.qkv.weight[triple]
        weights[f"{name}.out.weight"] = attention.out.weight[:, rows]
        weights[f"{name}.position.weight"] = attention.position.weight[rows]
        weights[f"{name}.bias_u"] = attention.bias_u[kept]
        weights[f"{name}.bias_v"] = attention.bias_v[kept]
        if attention.qkv.bias is not None:
            weights[f"{name}.qkv.bias"] = attention.qkv.bias[triple]
    return _built(model, dataclasses.replace(config, heads=count, head_width=K), weights)


def head_norms(model: AsrModel) -> Tensor:
    """A bound of each head's output: norm of its values times that of its outputs, (layers, H)."""
    H, K = model.config.encoder.heads, model.config.encoder.head_dim
    rows = []
    for layer in model.encoder.layers:
        values = layer.attention.qkv.weight[2 * H * K :].reshape(H, -1).norm(dim=1)
        outputs = layer.attention.out.weight.T.reshape(H, -1).norm(dim=1)
        rows.append((values * outputs).detach())
    return torch.stack(rows)


def head_importance(model: AsrModel, losses: Iterable[Callable[[], Tensor]]) -> Tensor:
    """The first-order change of the loss without each head: (layers, H).

    `losses` are functions, each giving the loss of one example; the mean of |output . gradient|
    over them, each layer brought to a norm of one (Michel et al. 2019, sections 3.1 and 4.1).
    """
    H, K = model.config.encoder.heads, model.config.encoder.head_dim
    held: dict[int, Tensor] = {}

    def hold(i: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            held[i] = inputs[0]

        return hook

    layers = [layer.attention.out for layer in model.encoder.layers]
    hooks = [out.register_forward_pre_hook(hold(i)) for i, out in enumerate(layers)]
    total = torch.zeros(len(layers), H)
    try:
        for loss in losses:
            value = loss()
            heads = [held[i] for i in range(len(layers))]
            for i, gradient in enumerate(torch.autograd.grad(value, heads)):
                product = (heads[i] * gradient).detach().view(-1, H, K).sum((0, 2))
                total[i] += product.abs().float().cpu()
    finally:
        for handle in hooks:
            handle.remove()
    return total / total.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _refuse(share: float) -> None:
    if not 0 <= share < 1:
        raise OptionError(f"the pruned share must be at least 0 and below 1, not {share}")


def _built(model: AsrModel, encoder: EncoderConfig, weights: dict[str, Tensor]) -> AsrModel:
    """The same model with another encoder shape and these weights."""
    with torch.device("meta"):
        smaller = AsrModel(dataclasses.replace(model.config, encoder=encoder))
    smaller.load_state_dict(weights, assign=True)
    return smaller.train(model.training)
