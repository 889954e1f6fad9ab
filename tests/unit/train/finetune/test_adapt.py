"""LoRA, frozen parts, L2-SP and EWC, each against the formula written out."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny import DIM, ENCODER, MELS, make_model, tensor
from torch import Tensor

from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.train.data import TrainingBatch, collate
from pianissimo.train.finetune.adapt import (
    LORA_LINEARS,
    LoraLinear,
    add_lora,
    anchor_weights,
    fisher_information,
    freeze_encoder,
    merge_lora,
    trained_weights,
)
from pianissimo.train.loop import objective


def batch() -> TrainingBatch:
    mels = [tensor(n, MELS, seed=n) for n in (90, 64)]
    return collate(mels, [torch.tensor(t) for t in ([1, 2, 3], [4, 4])])


def encoded(model: AsrModel) -> Tensor:
    mel, lengths = tensor(2, 80, MELS), torch.tensor([80, 57])
    with torch.inference_mode():
        return model.encoder(mel, lengths, 1)[0]


def shaken(model: AsrModel) -> AsrModel:
    """The trained weights moved a little, each by another amount."""
    with torch.no_grad():
        for i, parameter in enumerate(trained_weights(model).values()):
            parameter.add_(tensor(*parameter.shape, seed=i), alpha=0.1)
    return model


def test_a_frozen_encoder_gets_no_gradient_and_all_else_does() -> None:
    model = make_model().train()
    freeze_encoder(model)
    objective(model, batch(), 1, 0.3, True)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder."), name


def test_lora_changes_nothing_at_first() -> None:
    model = make_model()
    before = encoded(model)
    add_lora(model, 3)
    assert torch.equal(encoded(model), before)


def test_lora_trains_its_factors_and_the_heads_only() -> None:
    model = make_model().train()
    add_lora(model, 3)
    shaken(model)
    objective(model, batch(), 1, 0.3, True)["loss"].backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == trained_weights(model).keys()
    inside = {name for name in trained if name.startswith("encoder.")}
    assert len(inside) == 2 * len(LORA_LINEARS) * ENCODER.layers
    assert all(name.endswith((".up.weight", ".down.weight")) for name in inside)


def test_merged_weights_are_base_plus_scaled_product() -> None:
    model = make_model()
    original = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    add_lora(model, 3, scale=0.5)
    shaken(model)
    factors = {n: p.detach().numpy().copy() for n, p in trained_weights(model).items()}
    unmerged = encoded(model)
    merge_lora(model)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    torch.testing.assert_close(encoded(model), unmerged, rtol=1e-5, atol=1e-5)
    merged = {n: p.detach().numpy() for n, p in model.named_parameters()}
    assert merged.keys() == original.keys()
    moved = 0
    for name, weight in merged.items():
        stem = name.removesuffix(".weight")
        if f"{stem}.up.weight" in factors:
            up, down = factors[f"{stem}.up.weight"], factors[f"{stem}.down.weight"]
            product = np.einsum("or,ri->oi", up.astype(np.float64), down.astype(np.float64))
            np.testing.assert_allclose(weight, original[name] + 0.5 * product, atol=1e-6)
            moved += 1
        else:
            np.testing.assert_array_equal(weight, factors.get(name, original[name]))
    assert moved == len(LORA_LINEARS) * ENCODER.layers
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_with_lora_streams_as_it_transcribes_recordings() -> None:
    model = make_model()
    add_lora(model, 2)
    shaken(model)
    mel = tensor(1, 96, MELS)
    with torch.inference_mode():
        whole = model.encoder(mel, torch.tensor([96]), 1)[0]
        plan, state = model.encoder.plan(1), model.encoder.start()
        parts = [model.encoder.step(part, state, plan) for part in mel.split(24, dim=1)]
        parts.append(model.encoder.step(mel[:, :0], state, plan, final=True))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [0, DIM + 1])
def test_a_rank_must_fit(rank: int) -> None:
    with pytest.raises(OptionError, match="rank"):
        add_lora(make_model(), rank)


def test_l2sp_adds_the_gradient_of_its_penalty() -> None:
    model = make_model()
    origin = {n: p.detach().clone() for n, p in model.named_parameters()}
    anchor = anchor_weights(model, 0.7)
    shaken(model)
    model.ctc.out.bias.grad = torch.full_like(model.ctc.out.bias, 2.0)  # type: ignore[union-attr]
    anchor.pull(model)
    found = {n: p.grad for n, p in model.named_parameters()}
    penalty = sum(0.35 * ((p - origin[n]) ** 2).sum() for n, p in model.named_parameters())
    names, weights = zip(*model.named_parameters(), strict=True)
    assert isinstance(penalty, Tensor)
    expected = dict(zip(names, torch.autograd.grad(penalty, weights), strict=True))
    expected["ctc.out.bias"] = expected["ctc.out.bias"] + 2.0
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_an_anchor_leaves_frozen_weights_alone() -> None:
    model = make_model()
    freeze_encoder(model)
    anchor = anchor_weights(model, 1.0)
    assert not any(name.startswith("encoder.") for name in anchor.origin)
    anchor.pull(model)
    assert all(p.grad is None for p in model.encoder.parameters())


def test_fisher_information_is_the_mean_square_gradient() -> None:
    """Of a logistic regression, whose gradients are known: (p - y) x."""
    model = torch.nn.Linear(3, 1).double()
    inputs, labels = tensor(5, 3).double(), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0]).double()

    def loss(i: int) -> Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(model(inputs[i])[0], labels[i])

    found = fisher_information(model, [lambda i=i: loss(i) for i in range(5)])  # type: ignore[misc]
    weight, bias = (p.detach().numpy() for p in model.parameters())
    probability = 1 / (1 + np.exp(-(inputs.numpy() @ weight[0] + bias)))
    slope = probability - labels.numpy()
    squares = np.mean((slope[:, None] * inputs.numpy()) ** 2, axis=0)
    square = np.mean(slope**2)
    mean = (squares.sum() + square) / 4
    np.testing.assert_allclose(found["weight"][0].numpy(), squares / mean, rtol=1e-5)
    np.testing.assert_allclose(found["bias"][0].numpy(), square / mean, rtol=1e-5)


def test_ewc_weights_the_penalty_by_importance() -> None:
    model = torch.nn.Linear(2, 1)
    importance = {"weight": torch.tensor([[4.0, 0.0]]), "bias": torch.tensor([1.0])}
    anchor = anchor_weights(model, 0.5, importance)
    with torch.no_grad():
        model.weight += torch.tensor([[1.0, 1.0]])
        model.bias += 3.0
    anchor.pull(model)
    torch.testing.assert_close(model.weight.grad, torch.tensor([[2.0, 0.0]]))
    torch.testing.assert_close(model.bias.grad, torch.tensor([1.5]))


def test_examples_without_a_gradient_are_refused() -> None:
    model = torch.nn.Linear(2, 1)
    with pytest.raises(OptionError, match="EWC"):
        fisher_information(model, [lambda: (model.weight * 0).sum()])


def test_anchors_are_frozen_values() -> None:
    anchor = anchor_weights(torch.nn.Linear(2, 1), 1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        anchor.strength = 2.0  # type: ignore[misc]
