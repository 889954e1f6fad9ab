"""The metadata of an ONNX file, read without a runtime that would load its weights.

The file is a protocol buffer: fields with a number, a wire type and a value. All fields except the
metadata are skipped.
"""

import os
from pathlib import Path
from typing import IO

from pianissimo.errors import CheckpointError

LARGEST_ENTRY_BYTES = 1 << 20
MOST_ENTRIES = 1000
_METADATA, _KEY, _VALUE = 14, 1, 2


def read_onnx_metadata(path: Path) -> dict[str, str]:
    """The metadata properties of a model; CheckpointError if the file is damaged or no ONNX."""
    metadata: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while file.tell() < size:
                number, length = _field(file)
                if file.tell() + length > size:
                    raise ValueError("it is incomplete")
                if number != _METADATA:
                    file.seek(length, os.SEEK_CUR)
                    continue
                if length > LARGEST_ENTRY_BYTES or len(metadata) == MOST_ENTRIES:
                    raise ValueError("its metadata is larger than the limit")
                end, entry = file.tell() + length, dict[int, str]()
                while file.tell() < end:
                    number, length = _field(file)
                    entry[number] = file.read(length).decode()
                metadata[entry.get(_KEY, "")] = entry.get(_VALUE, "")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a complete ONNX file ({error}); download it again"
        ) from error
    return metadata


def _field(file: IO[bytes]) -> tuple[int, int]:
    """Number and size of the next field; the value of a number is already skipped."""
    number, wire = divmod(_varint(file), 8)
    match wire:
        case 0:
            _varint(file)
            return number, 0
        case 1:
            return number, 8
        case 2:
            return number, _varint(file)
        case 5:
            return number, 4
    raise ValueError("it is not a protocol buffer")


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it is incomplete")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("it is not a protocol buffer")
