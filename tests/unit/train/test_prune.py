"""What is pruned stays out, what is kept stays as it was, and nobody else is touched."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ENCODER, make_model, noise
from tones import sentences, write_clips

from pianissimo.engine.engine import Engine
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.models.fastconformer import FeedForward
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.config import TrainConfig
from pianissimo.train.data import read_manifest
from pianissimo.train.finetune.material import training_set
from pianissimo.train.loop import (
    Stage,
    train_model,
)
from pianissimo.train.prune import (
    head_importance,
    prunable,
    prune_heads,
    prune_units,
    prune_weights,
    sparsity,
)
from pianissimo.zoo.load import load


def encoded(model: AsrModel) -> torch.Tensor:
    mel = model.features.whole(torch.from_numpy(noise(30_000)))[None]
    with torch.inference_mode():
        return model.encoder.step(mel, model.encoder.start(), model.encoder.plan(1), final=True)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_smallest_weights_are_pruned(share: float) -> None:
    model, before = make_model(), make_model()
    prune_weights(model, share)
    assert sparsity(model) == pytest.approx(share, abs=1e-3)
    # The same by sorting, in NumPy.
    worth = {
        name: np.abs(w := weight.detach().numpy()) / np.sqrt((w**2).mean())
        for name, weight in prunable(before)
    }
    every = np.sort(np.concatenate([w.ravel() for w in worth.values()]))
    limit = every[round(share * len(every))]
    old = dict(before.named_parameters())
    pruned = {name for name, _ in prunable(model)}
    assert all("layers" in name for name in pruned)
    for name, weight in model.named_parameters():
        kept = worth[name] >= limit if name in pruned else np.ones(weight.shape, bool)
        np.testing.assert_array_equal(weight.detach(), old[name].detach().numpy() * kept)


def test_training_changes_only_unpruned_weights(
    tone_model: AsrConfig, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_clips(tmp_path, "train", list(sentences(6, 1)), 1)
    utterances = read_manifest(tmp_path / "train.jsonl")
    torch.manual_seed(0)
    model = AsrModel(tone_model)
    prune_weights(model, 0.5)
    zeros = {name: weight == 0 for name, weight in prunable(model)}
    before = {name: weight.detach().clone() for name, weight in prunable(model)}
    config = TrainConfig(4, peak_lr=1e-3, warmup_steps=0, workers=0, weight_decay=0.1)
    stage = Stage(4, training_set(utterances, tmp_path / "cache"), 6.0)
    done, _ = train_model(config, model, tiny_tokenizer, [stage], tmp_path / "run")
    assert done
    for name, weight in prunable(model):
        assert bool((weight[zeros[name]] == 0).all()), name
        assert not torch.equal(weight, before[name]), name


def test_a_model_with_fewer_units_is_the_whole_one_with_those_muted(tmp_path: Path) -> None:
    model = make_model()
    was = encoded(model)
    smaller = prune_units(model, 0.25)
    width = model.config.encoder.ff_dim
    assert smaller.config.encoder.ff_dim == width * 3 // 4
    assert smaller.parameter_count() < model.parameter_count()
    assert torch.equal(encoded(model), was)
    muted = make_model()
    with torch.no_grad():
        for module in muted.modules():
            if isinstance(module, FeedForward):
                up, down = module.up.weight.numpy(), module.down.weight.numpy()
                worth = np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
                module.down.weight[:, torch.from_numpy(np.argsort(worth)[: width // 4].copy())] = 0
    torch.testing.assert_close(encoded(smaller), encoded(muted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_an_invalid_share_is_refused(share: float) -> None:
    for prune in (prune_weights, prune_units, prune_heads):
        with pytest.raises(OptionError, match="pruned share"):
            prune(make_model(), share)


# -- attention heads -------------------------------------------------------------------------------

FOUR_HEADS = dataclasses.replace(ENCODER, heads=4)


def mute_heads(model: AsrModel, lost: list[list[int]]) -> None:
    """Nothing of these heads of each layer reaches its output."""
    K = model.config.encoder.head_dim
    with torch.no_grad():
        for layer, heads in zip(model.encoder.layers, lost, strict=True):
            for head in heads:
                layer.attention.out.weight[:, head * K : (head + 1) * K] = 0


def least_by_norm(model: AsrModel, count: int) -> list[list[int]]:
    """The least heads of each layer, in NumPy."""
    H, K, D = 4, model.config.encoder.head_dim, model.config.encoder.dim
    lost = []
    for layer in model.encoder.layers:
        qkv = layer.attention.qkv.weight.detach().numpy().reshape(3, H, K, D)
        out = layer.attention.out.weight.detach().numpy().reshape(D, H, K)
        worth = [np.linalg.norm(qkv[2, h]) * np.linalg.norm(out[:, h]) for h in range(H)]
        lost.append(np.argsort(worth)[:count].tolist())
    return lost


@pytest.mark.parametrize("bias", [False, True])
def test_a_model_with_fewer_heads_is_the_whole_one_with_those_muted(bias: bool) -> None:
    config = dataclasses.replace(FOUR_HEADS, attention_bias=bias)
    model, muted = make_model(encoder=config), make_model(encoder=config)
    was = encoded(model)
    smaller = prune_heads(model, 0.5)
    assert (smaller.config.encoder.heads, smaller.config.encoder.head_dim) == (2, 4)
    assert smaller.parameter_count() < model.parameter_count()
    assert torch.equal(encoded(model), was)
    mute_heads(muted, least_by_norm(muted, 2))
    assert not torch.allclose(encoded(muted), was, atol=1e-3)
    torch.testing.assert_close(encoded(smaller), encoded(muted), atol=1e-5, rtol=1e-5)


def test_one_head_stays_and_a_given_worth_decides() -> None:
    model, muted = make_model(encoder=FOUR_HEADS), make_model(encoder=FOUR_HEADS)
    worth = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 3.0, 1.0, 2.0]])
    smaller = prune_heads(model, 0.99, worth)
    assert smaller.config.encoder.heads == 1
    mute_heads(muted, [[0, 2, 3], [1, 2, 3]])
    torch.testing.assert_close(encoded(smaller), encoded(muted), atol=1e-5, rtol=1e-5)


def test_the_importance_of_a_head_is_the_change_of_the_loss_without_it() -> None:
    """Against the loss with each head scaled down a little."""
    model = make_model(encoder=FOUR_HEADS).requires_grad_()
    K = model.config.encoder.head_dim
    mel = model.features.whole(torch.from_numpy(noise(30_000)))[None]

    def loss() -> torch.Tensor:
        frames, _ = model.encoder(mel, torch.tensor([mel.shape[1]]), 1)
        return frames.square().mean()

    found = head_importance(model, [loss, loss])
    model.requires_grad_(False)
    base, eps = float(loss()), 1e-3
    expected = torch.zeros(2, 4)
    for i, layer in enumerate(model.encoder.layers):
        for head in range(4):
            part = layer.attention.out.weight.data[:, head * K : (head + 1) * K]
            kept = part.clone()
            part.mul_(1 - eps)
            expected[i, head] = abs(float(loss()) - base)
            part.copy_(kept)
    expected /= expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.1)


# -- pruned models are models ----------------------------------------------------------------------


def fewer_weights(model: AsrModel) -> AsrModel:
    prune_weights(model, 0.5)
    return model


PRUNED: dict[str, Callable[[AsrModel], AsrModel]] = {
    "weights": fewer_weights,
    "units": lambda model: prune_units(model, 0.4),
    "heads": lambda model: prune_heads(model, 0.5),
    "all": lambda model: fewer_weights(prune_units(prune_heads(model, 0.7), 0.4)),
}
ROUNDING = {torch.float32: 1e-6, torch.float16: 0.002, torch.int8: 0.03}
"""What storing in each precision may change of the frames, relative to their norm."""


@pytest.fixture(params=PRUNED)
def pruned(request: pytest.FixtureRequest, talker: AsrModel) -> AsrModel:
    smaller = PRUNED[request.param](copy.deepcopy(talker))
    assert smaller.config.encoder.head_dim == talker.config.encoder.head_dim
    return smaller


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_pruned_models_are_saved_and_read_in_any_precision(
    pruned: AsrModel, tiny_tokenizer: Tokenizer, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_model(tmp_path, pruned, tiny_tokenizer, dtype)
    read, _ = load_model(tmp_path)
    assert read.config == pruned.config
    assert sparsity(read) >= sparsity(pruned)
    difference = (encoded(read) - encoded(pruned)).norm() / encoded(pruned).norm()
    assert difference <= ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_pruned_models_stream_as_they_transcribe_recordings(
    pruned: AsrModel, tiny_tokenizer: Tokenizer, tmp_path: Path, dtype: str
) -> None:
    """From a folder in 8 bits."""
    save_model(tmp_path, pruned, tiny_tokenizer, torch.int8)
    recognizer = load(tmp_path, device="cpu", dtype=dtype, gain="off")
    assert isinstance(recognizer, NativeRecognizer)
    recognizer.detector = None
    samples = noise(40_000)
    latency = recognizer.latencies_ms[-1]
    whole = recognizer.transcribe(samples, sample_rate=16_000, latency_ms=latency).text
    assert len(whole.split()) > 3
    with Engine(recognizer, max_streams=2) as engine:
        session = engine.open(latency_ms=latency)
        session.push(samples)
        session.finish()
        live = " ".join(event.text for event in session if event.type == "final")
    assert live.split() == whole.split()
