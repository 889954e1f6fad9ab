"""Model folders of this package: configuration, weights and tokenizer of an `AsrModel`.

A folder holds `config.json` (an `AsrConfig`), `model.safetensors` and the tokenizer
(`tokenizer.model` or `tokenizer.json`). Weights may be stored in half precision or 8 bits; they are
computed in the dtype the caller asks for.
"""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.models.checkpoints.config_json import CONFIG_FILE, from_json, listed
from pianissimo.models.checkpoints.stored import from_store, to_store
from pianissimo.text.tokenizer import Tokenizer

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = {"sentencepiece": "tokenizer.model", "huggingface": "tokenizer.json"}
FORMAT_VERSION = 1
LARGEST_CONFIG_BYTES = 1 << 20


def save_model(
    folder: Path, model: AsrModel, tokenizer: Tokenizer, dtype: torch.dtype | None = None
) -> None:
    """Write the model folder; `dtype` stores weights narrower than they are computed.

    It is a floating type, or torch.int8 for the matrices of linear layers; see `stored`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_store(model, dtype), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = {"format": FORMAT_VERSION, **dataclasses.asdict(model.config)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / TOKENIZER_FILES[tokenizer.kind]).write_bytes(tokenizer.to_bytes())


def load_model(folder: Path) -> tuple[AsrModel, Tokenizer]:
    """Read a model folder written by `save_model`, weights in float32.

    Raises CheckpointError for anything missing, unknown, of the wrong shape or unreadable.
    """
    config = read_config(folder / CONFIG_FILE)
    tokenizer = read_tokenizer(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS_FILE}; copy the whole model folder")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); fetch it again") from error
    return build(config, from_store(weights, str(path)), str(folder)), tokenizer


def build(config: AsrConfig, weights: dict[str, Tensor], source: str) -> AsrModel:
    """A model in evaluation mode from named tensors, each used exactly once.

    Raises CheckpointError naming tensors that are missing, left over or of another shape.
    """
    with torch.device("meta"):
        model = AsrModel(config)
    expected = {name: t.shape for name, t in model.state_dict().items()}
    missing = sorted(expected.keys() - weights.keys())
    unknown = sorted(weights.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{source}: the weights do not belong to its configuration"
            + (f"; missing: {listed(missing)}" if missing else "")
            + (f"; unknown: {listed(unknown)}" if unknown else "")
        )
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(weights[name].shape)}, "
                f"its configuration says {tuple(shape)}"
            )
        if not bool(weights[name].float().sum().isfinite()):  # far cheaper than a look at each
            raise CheckpointError(
                f"{source}: {name} holds NaN or infinite numbers; train or fetch it again"
            )
    model.load_state_dict({name: t.float() for name, t in weights.items()}, assign=True)
    return model.eval()


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder; CheckpointError if there is none, or a damaged one."""
    sentencepiece, huggingface = (folder / name for name in TOKENIZER_FILES.values())
    readers = {
        sentencepiece: Tokenizer.from_sentencepiece,
        huggingface: Tokenizer.from_hf_json,
    }
    for path, read in readers.items():
        if path.is_file():
            try:
                return read(path.read_bytes())
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
    raise CheckpointError(f"{folder} has neither {sentencepiece.name} nor {huggingface.name}")


def read_config(path: Path) -> AsrConfig:
    """`config.json` -> AsrConfig; unknown or missing keys are a CheckpointError."""
    try:
        if path.stat().st_size > LARGEST_CONFIG_BYTES:
            raise CheckpointError(f"{path} is too large to be a configuration")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}: not a model folder") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error})") from error
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is not a pianissimo model of format {FORMAT_VERSION}; update the package "
            "or convert the model again"
        )
    try:
        return from_json(AsrConfig, data, path.name)
    except OptionError as error:
        raise CheckpointError(f"{path}: {error}") from error
