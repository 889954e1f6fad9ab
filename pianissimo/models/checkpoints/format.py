"""Formats of checkpoints, and models from tensors under other names.

`nemo.py` and `huggingface.py` turn a foreign configuration into an `AsrConfig` and a table of
module names; `convert` makes a model of the tensors, each used exactly once. In this package query,
key and value are one matrix, pointwise convolutions are linear layers, and a batch norm is folded
into the depthwise convolution before it.
"""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pianissimo.errors import CheckpointError
from pianissimo.models.asr import AsrConfig, AsrModel, LanguagePrompt
from pianissimo.models.checkpoints.config_json import (
    CONFIG_FILE,
    Section,
    is_integer,
    listed,
    read_json,
)
from pianissimo.models.checkpoints.model_folder import build
from pianissimo.models.fastconformer import EncoderConfig

NEMO_CONFIG_FILE = "model_config.yaml"
MOST_LANGUAGES = 1024
BATCH_NORM_EPS = 1e-5
BATCH_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")

Format = Literal["pianissimo", "nemo", "huggingface"]
ModuleTable = Mapping[str, tuple[str, ...]]
"""Module (or tensor) of this package -> the foreign modules whose tensors are concatenated."""

LAYER_MODULES: ModuleTable = {
    "norm_ff1": ("norm_feed_forward1",),
    "ff1.up": ("feed_forward1.linear1",),
    "ff1.down": ("feed_forward1.linear2",),
    "norm_attention": ("norm_self_att",),
    "norm_conv": ("norm_conv",),
    "conv.up": ("conv.pointwise_conv1",),
    "conv.depthwise": ("conv.depthwise_conv",),
    "conv.down": ("conv.pointwise_conv2",),
    "norm_ff2": ("norm_feed_forward2",),
    "ff2.up": ("feed_forward2.linear1",),
    "ff2.down": ("feed_forward2.linear2",),
    "norm_out": ("norm_out",),
}
"""The modules of an encoder layer that both foreign formats name alike."""

_POINTWISE = (".conv.up.weight", ".conv.down.weight", "ctc.out.weight")


def recognize_format(path: Path) -> Format | None:
    """The format of a file or folder, None if it is unknown.

    Raises CheckpointError when a folder's `config.json` is damaged.
    """
    if path.is_dir():
        if (path / CONFIG_FILE).is_file():
            keys = read_json(path / CONFIG_FILE).keys()
            if "format" in keys:
                return "pianissimo"
            if "architectures" in keys:
                return "huggingface"
        return "nemo" if (path / NEMO_CONFIG_FILE).is_file() else None
    if not path.is_file():
        return None
    return "nemo" if path.suffix == ".nemo" or _is_tar(path) else None


def _is_tar(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if head.startswith(b"\x1f\x8b"):
            with gzip.open(path) as packed:
                head = packed.read(512)
    except (OSError, EOFError, zlib.error):
        return False
    return head[257:262] == b"ustar"


def language_prompts(known: Section, count: int) -> tuple[LanguagePrompt, ...]:
    """The prompts of a dictionary by language, without those outside of `count`."""
    return tuple(
        LanguagePrompt(language, prompt)
        for language, prompt in list(known.data.items())[:MOST_LANGUAGES]
        if isinstance(language, str) and is_integer(prompt) and 0 <= prompt < count
    )


def module_table(layers: int, modules: Mapping[str, str], layer: ModuleTable) -> ModuleTable:
    """The names of a whole model: `modules` outside the encoder layers, `layer` inside each."""
    table: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in modules.items()}
    for i in range(layers):
        prefix = f"encoder.layers.{i}."
        for ours, theirs in {**LAYER_MODULES, **layer}.items():
            table[prefix + ours] = tuple(prefix + name for name in theirs)
    return table


def convert(
    config: AsrConfig, weights: dict[str, Tensor], table: ModuleTable, source: str
) -> AsrModel:
    """The model with foreign tensors, each used exactly once. Empties `weights`.

    Raises CheckpointError naming tensors that are missing, unknown, or of another shape than the
    configuration has; nothing is allocated before that.
    """
    with torch.device("meta"):
        ours = {name: t.shape for name, t in AsrModel(config).state_dict().items()}
    return build(config, converted_tensors(ours, weights, table, source, config.encoder), source)


def converted_tensors(
    ours: Mapping[str, torch.Size],
    weights: dict[str, Tensor],
    table: ModuleTable,
    source: str,
    encoder: EncoderConfig | None = None,
) -> dict[str, Tensor]:
    """Foreign tensors under the names and in the shapes of this package. Empties `weights`.

    The batch norms of `encoder`, a FastConformer of that name, are folded. Raises what `convert`
    raises.
    """
    folded = 0 if encoder is None or encoder.conv_norm != "folded" else encoder.layers
    expected = _foreign_shapes(ours, table, encoder)
    check_tensors(weights, expected, source)
    _check_storage(weights, expected, source)
    for i in range(folded):
        depthwise = table[f"encoder.layers.{i}.conv.depthwise"][0]
        norm = table[f"encoder.layers.{i}.conv.norm"][0]
        _fold_batch_norm(weights, depthwise, norm)
    converted = {}
    for name, shape in ours.items():
        parts = [weights.pop(part).detach() for part in _foreign_names(name, table)]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        converted[name] = tensor.reshape(shape).contiguous()
    assert not weights, sorted(weights)
    return converted


def foreign_weights(model: AsrModel, table: ModuleTable) -> dict[str, Tensor]:
    """The inverse of `convert` for a model without folded batch norm: foreign names and shapes."""
    assert model.config.encoder.conv_norm != "folded"
    tensors = {}
    for name, tensor in model.state_dict().items():
        parts = _foreign_names(name, table)
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            tensors[part] = piece.unsqueeze(-1) if name.endswith(_POINTWISE) else piece
    return tensors


def _foreign_names(name: str, table: ModuleTable) -> tuple[str, ...]:
    if name in table:
        return table[name]
    module, _, leaf = name.rpartition(".")
    return tuple(f"{theirs}.{leaf}" for theirs in table[module])


def _foreign_shapes(
    ours: Mapping[str, torch.Size], table: ModuleTable, encoder: EncoderConfig | None
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in ours.items():
        parts = _foreign_names(name, table)
        rows, *rest = shape
        tail = (1,) if name.endswith(_POINTWISE) else ()
        shapes |= dict.fromkeys(parts, (rows // len(parts), *rest, *tail))
    if encoder is not None and encoder.conv_norm == "folded":
        for i in range(encoder.layers):
            norm = table[f"encoder.layers.{i}.conv.norm"][0]
            shapes |= {f"{norm}.{part}": (encoder.dim,) for part in BATCH_NORM_PARTS}
            shapes[f"{norm}.num_batches_tracked"] = ()
            if not encoder.conv_bias:
                del shapes[table[f"encoder.layers.{i}.conv.depthwise"][0] + ".bias"]
    return shapes


def check_tensors(
    weights: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]], source: str
) -> None:
    """Raises CheckpointError unless tensors have exactly these names and shapes."""
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or unknown:
        raise CheckpointError(
            f"{source}: the weights do not belong to the configuration"
            + (f"; missing: {listed(missing)}" if missing else "")
            + (f"; unknown: {listed(unknown)}" if unknown else "")
        )
    for name, shape in expected.items():
        if tuple(weights[name].shape) != tuple(shape):
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(weights[name].shape)}, expected "
                f"{tuple(shape)} from the configuration and the vocabulary"
            )


def _check_storage(
    weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Raises CheckpointError for tensors that are no plain floats, or that overlap in memory."""
    storages = {}
    for name, shape in expected.items():
        tensor = weights[name]
        if tensor.layout != torch.strided or tensor.is_floating_point() != bool(shape):
            raise CheckpointError(f"{source}: {name} has {tensor.dtype}, expected plain floats")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(t.numel() * t.element_size() for t in weights.values()) > sum(storages.values()):
        raise CheckpointError(f"{source}: tensors overlap; they claim more data than is stored")


def _fold_batch_norm(weights: dict[str, Tensor], depthwise: str, norm: str) -> None:
    """Replace a depthwise convolution and the batch norm after it by one convolution with bias."""
    gain, shift, mean, variance = (weights.pop(f"{norm}.{p}").double() for p in BATCH_NORM_PARTS)
    del weights[f"{norm}.num_batches_tracked"]
    scale = gain / (variance + BATCH_NORM_EPS).sqrt()
    kernel = weights[f"{depthwise}.weight"].double()
    bias = weights.get(f"{depthwise}.bias", torch.zeros(())).double()
    weights[f"{depthwise}.weight"] = (kernel * scale[:, None, None]).float()
    weights[f"{depthwise}.bias"] = ((bias - mean) * scale + shift).float()
