"""Models that are made in a moment, random but with numbers of ordinary size throughout."""

import dataclasses
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pianissimo.audio.features import FeatureConfig
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.models.fastconformer import EncoderConfig, FastConformerEncoder
from pianissimo.models.transducer import TransducerConfig

MELS, DIM, VOCABULARY = 16, 16, 12
ENCODER = EncoderConfig(
    n_mels=MELS, dim=DIM, layers=2, heads=2, ff_dim=32, conv_kernel=9, subsampling_channels=4
)
WHOLE_CONTEXT = dataclasses.replace(
    ENCODER, left_context=None, lookaheads=(), causal_conv=False, causal_subsampling=False
)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Every parameter anew, biases and norms too, so that activations stay near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * drawn)
            elif parameter.dim() > 1 and "bias" not in name:
                parameter.copy_(drawn * math.sqrt(1.5 / parameter[0].numel()))
            else:
                parameter.copy_(0.3 * drawn)


def make_encoder(config: EncoderConfig = ENCODER, seed: int = 0) -> FastConformerEncoder:
    encoder = FastConformerEncoder(config).eval()
    randomise(encoder, seed)
    return encoder


def make_model(
    *,
    vocab_size: int = VOCABULARY,
    durations: tuple[int, ...] = (),
    max_symbols: int = 4,
    seed: int = 0,
    **changes: Any,
) -> AsrModel:
    """A random model with both heads; `changes` go to its AsrConfig."""
    config = AsrConfig(
        **{
            "vocab_size": vocab_size,
            "features": FeatureConfig(n_mels=MELS),
            "encoder": ENCODER,
            "transducer": TransducerConfig(
                vocab_size,
                predictor_dim=8,
                predictor_layers=2,
                joint_dim=8,
                durations=durations,
            ),
            "ctc": True,
            "max_symbols": max_symbols,
            **changes,
        }
    )
    model = AsrModel(config).eval()
    randomise(model, seed)
    if model.predictor is not None:
        with torch.no_grad():
            model.predictor.embedding.weight[vocab_size] = 0.0
    return model


def make_talker(
    blank_bias: float,
    *,
    vocab_size: int = VOCABULARY,
    durations: tuple[int, ...] = (),
    seed: int = 0,
    hears: Tensor | None = None,
    **changes: Any,
) -> AsrModel:
    """A model that says something new for each frame, several labels in some and none in others.

    Plain random weights say one label for ever. Here the predictor remembers which labels came
    last, the newest best; the joiner adds what may follow them to what the frame sounds like, and
    never repeats a label at once. `hears` (S, D) are typical encoder frames, by default normal.
    """
    V, J = vocab_size, vocab_size + DIM
    config = TransducerConfig(
        V, predictor_dim=V, predictor_layers=1, joint_dim=J, durations=durations
    )
    model = make_model(vocab_size=V, transducer=config, seed=seed, **changes)
    predictor, joiner = model.predictor, model.joiner
    assert predictor is not None
    assert joiner is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        lstm = predictor.lstm
        for parameter in (*lstm.parameters(), *joiner.parameters()):
            parameter.zero_()
        predictor.embedding.weight.copy_(3 * torch.eye(V + 1, V))
        weight, bias = lstm.get_parameter("weight_ih_l0"), lstm.get_parameter("bias_ih_l0")
        weight[2 * V : 3 * V] = torch.eye(V)
        bias[:V] = bias[3 * V :] = 4.0  # input and output gates are open
        joiner.predictor.weight[:V] = torch.eye(V)
        sound = torch.randn(DIM, DIM, generator=generator) / math.sqrt(DIM)
        if hears is not None:
            sound /= hears.std(dim=0)
            joiner.encoder.bias[V:] = -sound @ hears.mean(dim=0)
        joiner.encoder.weight[V:] = sound
        joiner.out.weight.copy_(torch.randn(joiner.out.weight.shape, generator=generator))
        joiner.out.weight[:V, :V] -= 6.0 * torch.eye(V)
        joiner.out.weight[V, :V] += 3.0
        joiner.out.bias[V] = blank_bias
    return model


def tensor(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise(samples: int, seed: int = 0) -> NDArray[np.float32]:
    """White noise at a usual level, growing louder and softer."""
    drawn = np.random.default_rng(seed).standard_normal(samples)
    swell = 0.15 + 0.14 * np.sin(np.arange(samples) / 4000)
    return (drawn * swell).astype(np.float32)


def cut(total: int, sizes: list[int], seed: int = 0) -> Iterator[slice]:
    """Consecutive slices of `total` whose lengths are drawn from `sizes`."""
    rng, start = random.Random(seed), 0
    while start < total:
        end = min(total, start + rng.choice(sizes))
        yield slice(start, end)
        start = end
