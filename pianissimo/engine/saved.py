"""A live stream as bytes, to continue it elsewhere: the safetensors format, no pickle.

The file's metadata holds one JSON document; arrays inside it are tensors of the file, referred to
by name. Unknown versions, other models and damaged files raise StateError.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pianissimo.errors import StateError
from pianissimo.streaming.input import SavedInput

VERSION = 1
LARGEST_HEADER_BYTES = 1 << 24
_KEY = "pianissimo.stream"
_ARRAY = "$array"


class SavedStream(TypedDict):
    """The document of a saved stream."""

    model: str
    """The fingerprint of its model."""
    lookahead: int
    frames: int
    """Encoder frames since its state began."""
    live: Mapping[str, Any]
    """Of a `LiveStream`, or of `LiveSegments`."""
    boost: list[tuple[str, float]]
    """Hotwords and their weights."""
    language: str | None
    prompt: int | None
    """The language prompt; None for the model's default."""
    second_pass: bool
    input: SavedInput


class SavedSlot(NamedTuple):
    """The arena row of a saved stream: its tensors by name, and its encoder frames."""

    tensors: dict[str, Tensor]
    frames: int


def stream_from_bytes(data: bytes) -> tuple[SavedStream, SavedSlot]:
    """A saved stream, whose fields have their types; the filters and the live part are checked when
    they are restored. Raises StateError for anything else."""
    document, tensors = from_bytes(data)
    try:
        input = document["input"]
        stream: SavedStream = {
            "model": str(document["model"]),
            "lookahead": int(document["lookahead"]),
            "frames": int(document["frames"]),
            "live": document["live"],
            # Version 0.1 had no hotwords at first.
            "boost": [(str(text), float(weight)) for text, weight in document.get("boost", [])],
            "language": None if (language := document.get("language")) is None else str(language),
            "prompt": None if (prompt := document.get("prompt")) is None else int(prompt),
            "second_pass": bool(document.get("second_pass", False)),
            "input": {
                "sample_rate": int(input["sample_rate"]),
                "resampler": input["resampler"],
                "level": input["level"],
                "downmix": input.get("downmix"),
            },
        }
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(f"the saved stream is damaged ({error})") from error
    return stream, SavedSlot(tensors, stream["frames"])


def to_bytes(document: Mapping[str, object], tensors: Mapping[str, Tensor]) -> bytes:
    """A document of numbers, strings, lists, dictionaries and arrays, and tensors beside it."""
    arrays: dict[str, Tensor] = {}
    plain = {name: _plain(value, arrays) for name, value in document.items()}
    text = json.dumps({"version": VERSION, **plain})
    named = {f"tensor.{name}": tensor for name, tensor in tensors.items()}
    return save({**arrays, **named}, metadata={_KEY: text})


def from_bytes(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of `to_bytes`; raises StateError for anything else."""
    try:
        (size,) = struct.unpack_from("<Q", data)
        if size > min(LARGEST_HEADER_BYTES, len(data)):
            raise ValueError("its header is cut off")
        document = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_KEY])
        loaded = load(data)
    except (SafetensorError, struct.error, ValueError, KeyError, TypeError) as error:
        raise StateError(f"this is not a saved stream ({error})") from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise StateError(
            f"this stream was saved in another version of the format (expected {VERSION}); "
            "use the same version of pianissimo on both sides"
        )
    arrays = {name: tensor for name, tensor in loaded.items() if name.startswith("array.")}
    tensors = {n.removeprefix("tensor."): t for n, t in loaded.items() if n.startswith("tensor.")}
    return {name: _restored(value, arrays) for name, value in document.items()}, tensors


# Not nested in their callers: a nested recursive function refers to itself, and that cycle would
# keep the arrays until garbage is collected.


def _plain(value: object, arrays: dict[str, Tensor]) -> object:
    """A value for JSON in which arrays are replaced by names; they are added to `arrays`."""
    if isinstance(value, np.ndarray):
        name = f"array.{len(arrays)}"
        arrays[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {_ARRAY: name}
    if isinstance(value, dict):
        return {key: _plain(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _restored(value: object, arrays: Mapping[str, Tensor]) -> object:
    """The value that `_plain` replaced; raises StateError for an array that is not there."""
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            if value[_ARRAY] not in arrays:
                raise StateError(f"the saved stream lacks {value[_ARRAY]}")
            return arrays[value[_ARRAY]].numpy()
        return {key: _restored(item, arrays) for key, item in value.items()}
    return [_restored(item, arrays) for item in value] if isinstance(value, list) else value
