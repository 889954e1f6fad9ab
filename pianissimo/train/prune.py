"""Pruning: weights that are small, or whole units of the feed-forwards, and keeping them out.

Papers: Han et al. 2015 (magnitude pruning and retraining, arXiv 1506.02626), Li et al. 2017 (whole
filters by their norm, arXiv 1608.08710).

Unstructured pruning makes weights zero and changes no shape: what it saves depends on who stores or
multiplies the matrices. Structured pruning takes units out, so every runtime gains. Either may be
followed by training: `train_model` as it is, on the model that was pruned; and a model without some
units, once saved, is one like any other for `pianissimo finetune`.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.models.fastconformer import FeedForward


def prunable(model: AsrModel) -> Iterator[tuple[str, Tensor]]:
    """The matrices of the encoder's layers: nearly all weights, and those that can spare some."""
    for name, module in model.encoder.named_modules():
        if name.startswith("layers.") and type(module) is nn.Linear:
            yield f"encoder.{name}.weight", module.weight


def sparsity(model: AsrModel) -> float:
    """The share of zeros in what is prunable."""
    weights = [weight for _, weight in prunable(model)]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros / sum(weight.numel() for weight in weights)


@torch.no_grad()
def prune_weights(model: AsrModel, share: float) -> None:
    """Make the smallest `share` of the prunable weights zero, in place, and keep them so.

    Weights are compared over all matrices, each divided by the root mean square of its own: layers
    differ in scale, not in worth. Gradients of what is pruned are zero from now on, so no optimiser
    that starts at zero moves it. Raises OptionError for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise OptionError(f"a share of {share} cannot be pruned; choose one from 0 to below 1")
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
    """Zero what is not kept, now and in every gradient."""
    weight.mul_(kept)
    if weight.requires_grad:
        weight.register_hook(lambda gradient: gradient * kept.to(gradient.device))


@torch.no_grad()
def prune_units(model: AsrModel, share: float) -> AsrModel:
    """A model without the least `share` of the hidden units of each feed-forward.

    A unit's worth is the norm of the weights into it times that of the weights out of it. All
    feed-forwards keep equally many, as the configuration has one width for them. The model given is
    left as it is. Raises OptionError for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise OptionError(f"a share of {share} cannot be pruned; choose one from 0 to below 1")
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
    encoder = dataclasses.replace(config.encoder, ff_dim=width)
    with torch.device("meta"):
        smaller = AsrModel(dataclasses.replace(config, encoder=encoder))
    smaller.load_state_dict(weights, assign=True)
    return smaller.train(model.training)
