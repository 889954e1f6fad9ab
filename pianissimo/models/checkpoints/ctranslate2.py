"""CTranslate2's `model.bin`: variables by name, read without CTranslate2.

All numbers are little-endian. A string is a uint16 length and that many bytes, the last one NUL.

    uint32 version of the format (4 to 6)
    string name of the specification, uint32 its revision
    uint32 number of variables, each: string name, uint8 rank, uint32 each dimension, uint8 type,
        uint32 bytes, the bytes
    uint32 number of aliases, each: string name, string name of a variable

Matrices in 8 bits come with `_scale` variables, what to multiply by before rounding: one a row.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from pianissimo.errors import CheckpointError

VERSIONS = (4, 5, 6)
MOST_VARIABLES = 10_000
MOST_DIMENSIONS = 4
LONGEST_NAME = 256
BFLOAT16 = 5
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16, BFLOAT16: np.int16}
SCALE = "_scale"


@dataclass(frozen=True)
class Variables:
    """What one file holds: the specification's name and revision, and its tensors as stored."""

    specification: str
    revision: int
    tensors: dict[str, Tensor]


def read_variables(path: Path) -> Variables:
    """Read a `model.bin`; aliases are tensors under a further name.

    Every size is held against what is left of the file before anything is allocated. Raises
    CheckpointError for what is no such file, cut short, or impossible.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path).variables()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}; fetch the model again") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error


def plain_floats(variables: Variables, source: str) -> dict[str, Tensor]:
    """All matrices and vectors in float32, 8-bit ones multiplied out; scalars stay as they are.

    Raises CheckpointError for integers without a scale, and for numbers that are not finite.
    """
    tensors = variables.tensors
    floats: dict[str, Tensor] = {}
    done: dict[int, Tensor] = {}
    for name, stored in tensors.items():
        if name.endswith(SCALE):
            continue
        if id(stored) in done:  # an alias, whose scale need not have one
            floats[name] = done[id(stored)]
            continue
        tensor = stored
        if not stored.is_floating_point() and stored.dim():
            scale = tensors.get(name + SCALE)
            if (
                scale is None
                or scale.numel() not in (1, len(stored))
                or not bool((scale > 0).all())
            ):
                raise CheckpointError(
                    f"{source}: {name} holds integers without a scale for each row; convert the "
                    "model again as float16 or int8"
                )
            shape = (-1, *[1] * (stored.dim() - 1))
            tensor = stored.float() / scale.float().reshape(shape)
        elif stored.dim():
            tensor = stored.float()
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{source}: {name} holds numbers that are not finite")
        floats[name] = done[id(stored)] = tensor
    return floats


class _Reader:
    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path = file, path
        self.left = file.seek(0, 2)
        file.seek(0)

    def variables(self) -> Variables:
        version = self._number("<I")
        if version not in VERSIONS:
            raise self._error(f"its format has version {version}, expected {VERSIONS}")
        name, revision = self._text(), self._number("<I")
        tensors: dict[str, Tensor] = {}
        for _ in range(self._count("variables")):
            variable = self._text()
            if variable in tensors:
                raise self._error(f"{variable!r} is there twice")
            tensors[variable] = self._tensor(variable)
        for _ in range(self._count("aliases")):
            alias, target = self._text(), self._text()
            if target not in tensors or alias in tensors:
                raise self._error(f"the alias {alias!r} stands for {target!r}, which cannot be")
            tensors[alias] = tensors[target]
        if self.left:
            raise self._error(f"{self.left} bytes follow behind its end")
        return Variables(name, revision, tensors)

    def _tensor(self, name: str) -> Tensor:
        rank = self._number("<B")
        if rank > MOST_DIMENSIONS:
            raise self._error(f"{name!r} has {rank} dimensions")
        shape = [self._number("<I") for _ in range(rank)]
        kind, size = self._number("<B"), self._number("<I")
        if kind not in TYPES:
            raise self._error(f"{name!r} has the unknown type {kind}")
        wanted = math.prod(shape) * np.dtype(TYPES[kind]).itemsize
        if size != wanted:
            raise self._error(f"{name!r} of shape {shape} has {size} bytes, expected {wanted}")
        data = np.frombuffer(bytearray(self._bytes(size)), TYPES[kind]).reshape(shape)
        tensor = torch.from_numpy(data)
        return tensor.view(torch.bfloat16) if kind == BFLOAT16 else tensor

    def _count(self, what: str) -> int:
        count = self._number("<I")
        if count > MOST_VARIABLES:
            raise self._error(f"it claims {count} {what}, which no real one has")
        return count

    def _text(self) -> str:
        length = self._number("<H")
        if not 1 <= length <= LONGEST_NAME:
            raise self._error(f"it has a name of {length} bytes")
        try:
            return self._bytes(length).rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise self._error("it has a name that is no text") from error

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._bytes(struct.calcsize(form)))[0])

    def _bytes(self, size: int) -> bytes:
        data = self.file.read(size) if size <= self.left else b""
        if len(data) != size:
            raise self._error("it is cut short")
        self.left -= size
        return data

    def _error(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is no CTranslate2 model, or a damaged one: {reason}; fetch it again"
        )
