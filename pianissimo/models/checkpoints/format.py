"""What the readers of other people's checkpoints share: formats, names, strict settings.

`nemo.py` and `huggingface.py` turn a foreign configuration into an `AsrConfig` and a table of
module names; `adopt` moves the tensors over, each used exactly once. What differs in the tensors:
query, key and value are one matrix with us, pointwise convolutions are linear layers, and a batch
norm is folded into the depthwise convolution before it.
"""

import gzip
import json
import reprlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pianissimo.errors import CheckpointError
from pianissimo.models.asr import (
    CONFIG_FILE,
    LARGEST_NUMBER,
    AsrConfig,
    AsrModel,
    LanguagePrompt,
    build,
)

NEMO_CONFIG_FILE = "model_config.yaml"
LARGEST_CONFIG_BYTES = 4 << 20
MOST_LANGUAGES = 1024
BATCH_NORM_EPS = 1e-5
BATCH_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")

Format = Literal["pianissimo", "nemo", "huggingface"]
ModuleTable = Mapping[str, tuple[str, ...]]
"""Our module (or tensor) -> the foreign modules whose tensors, one below the other, make it."""

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
"""The part of an encoder layer that both foreign formats name alike."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring = 3, 120

_POINTWISE = (".conv.up.weight", ".conv.down.weight", "ctc.out.weight")


def recognize_format(path: Path) -> Format | None:
    """Which of the formats we read a file or folder has; None if none of them.

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


def parse_yaml(data: bytes, where: str) -> Any:
    """What a foreign YAML file holds; CheckpointError, naming `where`, if it cannot be read."""
    import yaml

    try:
        # Pure Python: the C loader overflows its stack on deep nesting. Without merge keys, whose
        # expansion grows without bounds, and which nobody who writes checkpoints uses.
        loader = yaml.SafeLoader(data)
        loader.flatten_mapping = lambda node: None  # type: ignore[method-assign]
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{where} is not readable YAML ({reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; CheckpointError if it is missing, damaged, too large or something else."""
    data = read_capped(path, LARGEST_CONFIG_BYTES)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; fetch it again")
    return value


def read_capped(path: Path, most: int) -> bytes:
    """The bytes of a file; CheckpointError if it is missing, unreadable or larger than `most`."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError as error:
        message = f"{path.parent} has no {path.name}; fetch the whole model again"
        raise CheckpointError(message) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if len(data) > most:
        raise CheckpointError(f"{path} is larger than {most} bytes, which no real one is")
    return data


def shown(value: Any) -> str:
    """A value for a message: short, however large it is or pretends to be."""
    return _SHORT.repr(value)


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few names for a message, and how many more there are."""
    ordered = sorted(names)
    rest = len(ordered) - most
    return ", ".join(ordered[:most]) + (f" and {rest} more" if rest > 0 else "")


class Section:
    """One mapping of a foreign configuration, read strictly.

    Every method raises CheckpointError naming the key, what was found and what is supported. A
    default stands for an absent key only; without one the key is demanded.
    """

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise CheckpointError(f"{where} is {shown(data)}, expected a mapping")
        self.data = data
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        return self.data.get(key, default)

    def fail(self, key: str, expected: str) -> CheckpointError:
        """The error to raise about a key whose value we cannot use."""
        found = f"is {shown(self.data[key])}" if key in self.data else "is missing"
        return CheckpointError(f"{self.where}: {key} {found}; supported: {expected}")

    def section(self, key: str) -> "Section":
        """A mapping inside this one; an absent one is empty, so that its keys are missing."""
        value = self.data.get(key)
        return Section({} if value is None else value, f"{self.where}: {key}")

    def only(self, key: str, supported: Sequence[Any], *default: Any) -> Any:
        """The value, which must be one of these."""
        value = self._value(key, default)
        if value not in supported:
            raise self.fail(key, " or ".join(map(repr, supported)))
        return value

    def integer(self, key: str, *default: int, least: int = 1, most: int = LARGEST_NUMBER) -> int:
        value = self._value(key, default)
        if not is_integer(value) or not least <= value <= most:
            raise self.fail(key, f"an integer from {least} to {most}")
        return int(value)

    def number(self, key: str, *default: float) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
            raise self.fail(key, "a number")
        return float(value)

    def flag(self, key: str, *default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def integers(self, key: str, *default: Sequence[int], most: int = 64) -> tuple[int, ...]:
        """A list of at most `most` integers from 0 on."""
        value = self._value(key, default)
        if (
            not isinstance(value, list | tuple)
            or len(value) > most
            or not all(is_integer(item) and 0 <= item <= LARGEST_NUMBER for item in value)
        ):
            raise self.fail(key, "a list of a few integers from 0 on")
        return tuple(value)

    def _value(self, key: str, default: tuple[Any, ...]) -> Any:
        return self.data.get(key, default[0]) if default else self.data.get(key)


def language_prompts(known: Section, count: int) -> tuple[LanguagePrompt, ...]:
    """A dictionary of languages to prompts, without what is none of the model's `count`."""
    return tuple(
        LanguagePrompt(language, prompt)
        for language, prompt in list(known.data.items())[:MOST_LANGUAGES]
        if isinstance(language, str) and is_integer(prompt) and 0 <= prompt < count
    )


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def module_table(config: AsrConfig, modules: Mapping[str, str], layer: ModuleTable) -> ModuleTable:
    """The names of a whole model: `modules` outside the encoder layers, `layer` inside each."""
    table: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in modules.items()}
    for i in range(config.encoder.layers):
        prefix = f"encoder.layers.{i}."
        for ours, theirs in {**LAYER_MODULES, **layer}.items():
            table[prefix + ours] = tuple(prefix + name for name in theirs)
    return table


def adopt(
    config: AsrConfig, weights: dict[str, Tensor], table: ModuleTable, source: str
) -> AsrModel:
    """Our model from foreign tensors, each used exactly once. Empties `weights` on the way.

    Raises CheckpointError naming tensors that are missing, unknown, or not of the shape that the
    configuration says; nothing is allocated before that.
    """
    with torch.device("meta"):
        ours = {name: t.shape for name, t in AsrModel(config).state_dict().items()}
    folded = config.encoder.conv_norm == "folded"
    expected = _foreign_shapes(config, ours, table)
    _check(weights, expected, source)
    if folded:
        for i in range(config.encoder.layers):
            depthwise = table[f"encoder.layers.{i}.conv.depthwise"][0]
            norm = table[f"encoder.layers.{i}.conv.norm"][0]
            _fold_batch_norm(weights, depthwise, norm)
    adopted = {}
    for name, shape in ours.items():
        parts = [weights.pop(part).detach() for part in _foreign_names(name, table)]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        adopted[name] = tensor.reshape(shape).contiguous()
    assert not weights, sorted(weights)
    return build(config, adopted, source)


def release(model: AsrModel, table: ModuleTable) -> dict[str, Tensor]:
    """The inverse of `adopt` for a model without a folded batch norm: foreign names and shapes."""
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
    config: AsrConfig, ours: Mapping[str, torch.Size], table: ModuleTable
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in ours.items():
        parts = _foreign_names(name, table)
        rows, *rest = shape
        tail = (1,) if name.endswith(_POINTWISE) else ()
        shapes |= dict.fromkeys(parts, (rows // len(parts), *rest, *tail))
    if config.encoder.conv_norm == "folded":
        for i in range(config.encoder.layers):
            norm = table[f"encoder.layers.{i}.conv.norm"][0]
            shapes |= {f"{norm}.{part}": (config.encoder.dim,) for part in BATCH_NORM_PARTS}
            shapes[f"{norm}.num_batches_tracked"] = ()
            if not config.encoder.conv_bias:
                del shapes[table[f"encoder.layers.{i}.conv.depthwise"][0] + ".bias"]
    return shapes


def _check(
    weights: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str
) -> None:
    missing, unknown = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    if missing or unknown:
        raise CheckpointError(
            f"{source}: the weights do not belong to the configuration"
            + (f"; missing: {listed(missing)}" if missing else "")
            + (f"; unknown: {listed(unknown)}" if unknown else "")
        )
    storages = {}
    for name, shape in expected.items():
        tensor = weights[name]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, expected {shape} from the "
                "configuration and the tokenizer"
            )
        if tensor.layout != torch.strided or tensor.is_floating_point() != bool(shape):
            raise CheckpointError(f"{source}: {name} holds {tensor.dtype}, expected plain floats")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(t.numel() * t.element_size() for t in weights.values()) > sum(storages.values()):
        raise CheckpointError(f"{source}: tensors overlap: they claim more than is stored")


def _fold_batch_norm(weights: dict[str, Tensor], depthwise: str, norm: str) -> None:
    """Replace a depthwise convolution and the batch norm after it by one convolution with bias."""
    gain, shift, mean, variance = (weights.pop(f"{norm}.{p}").double() for p in BATCH_NORM_PARTS)
    del weights[f"{norm}.num_batches_tracked"]
    scale = gain / (variance + BATCH_NORM_EPS).sqrt()
    kernel = weights[f"{depthwise}.weight"].double()
    bias = weights.get(f"{depthwise}.bias", torch.zeros(())).double()
    weights[f"{depthwise}.weight"] = (kernel * scale[:, None, None]).float()
    weights[f"{depthwise}.bias"] = ((bias - mean) * scale + shift).float()
