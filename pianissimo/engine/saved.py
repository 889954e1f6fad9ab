"""A live stream as bytes, to be taken up again elsewhere: the safetensors format, no pickle.

The file's metadata holds one JSON document; arrays inside it are tensors of the file, referred to
by name. Unknown versions, other models and damaged files are a StateError.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pianissimo.errors import StateError

VERSION = 1
LARGEST_HEADER_BYTES = 1 << 24
_KEY = "pianissimo.stream"
_ARRAY = "$array"


def to_bytes(document: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """A document of numbers, strings, lists, dictionaries and arrays, and tensors beside it."""
    arrays: dict[str, Tensor] = {}
    text = json.dumps({"version": VERSION, **_plain(document, arrays)})
    named = {f"tensor.{name}": tensor for name, tensor in tensors.items()}
    return save({**arrays, **named}, metadata={_KEY: text})


def from_bytes(data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `to_bytes` was given; raises StateError for anything else."""
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
    return _restored(document, arrays), tensors


# Functions of their own: nested ones know themselves, and would keep the arrays until garbage is
# collected.


def _plain(value: Any, arrays: dict[str, Tensor]) -> Any:
    """A value for JSON; its arrays are added to the others, and only named in it."""
    if isinstance(value, np.ndarray):
        name = f"array.{len(arrays)}"
        arrays[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {_ARRAY: name}
    if isinstance(value, dict):
        return {key: _plain(item, arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _restored(value: Any, arrays: Mapping[str, Tensor]) -> Any:
    """What `_plain` was given; raises StateError for an array that is not there."""
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            if value[_ARRAY] not in arrays:
                raise StateError(f"the saved stream lacks {value[_ARRAY]}")
            return arrays[value[_ARRAY]].numpy()
        return {key: _restored(item, arrays) for key, item in value.items()}
    return [_restored(item, arrays) for item in value] if isinstance(value, list) else value
