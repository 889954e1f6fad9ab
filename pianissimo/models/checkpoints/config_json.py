"""Configurations from elsewhere: JSON and YAML files, and mappings whose values are checked.

A `Section` reads one mapping of a configuration. Every value has an expected type and range; any
other value is an error that names the key, the value and what is supported.
"""

import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pianissimo.errors import CheckpointError
from pianissimo.models.asr import LARGEST_NUMBER

LARGEST_CONFIG_BYTES = 4 << 20

Parsed: TypeAlias = Any
"""A value of a parsed JSON or YAML file, of any type until it is checked."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring = 3, 120


def parse_yaml(data: bytes, where: str) -> Parsed:
    """The value of a YAML file; CheckpointError, naming `where`, if it cannot be read."""
    import yaml

    try:
        # Pure Python: the C loader overflows its stack on deep nesting. Merge keys are disabled:
        # their expansion is unbounded, and checkpoints do not use them.
        loader = yaml.SafeLoader(data)
        loader.flatten_mapping = lambda node: None  # type: ignore[method-assign]
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{where} is not readable YAML ({reason})") from error


def read_json(path: Path) -> dict[str, Parsed]:
    """A JSON object; CheckpointError if it is missing, damaged, too large or no object."""
    data = read_capped(path, LARGEST_CONFIG_BYTES)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not readable JSON ({error}); download it again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again")
    return value


def read_capped(path: Path, most: int) -> bytes:
    """The bytes of a file; CheckpointError if it is missing, unreadable or larger than `most`."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError as error:
        message = f"{path.parent} has no {path.name}; download the whole model again"
        raise CheckpointError(message) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if len(data) > most:
        raise CheckpointError(f"{path} is larger than {most} bytes, the limit for this file")
    return data


def shown(value: object) -> str:
    """A value in a message, shortened."""
    return _SHORT.repr(value)


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few names in a message, and the number of the others."""
    ordered = sorted(names)
    rest = len(ordered) - most
    return ", ".join(ordered[:most]) + (f" and {rest} more" if rest > 0 else "")


class Section:
    """One mapping of a configuration, read strictly.

    Every method raises CheckpointError naming the key, its value and what is supported. A default
    is for an absent key only; without one the key is required.
    """

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, Mapping):
            raise CheckpointError(f"{where} is {shown(data)}, expected a mapping")
        self.data = data
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.data.get(key) is not None

    def get(self, key: str, default: Parsed = None) -> Parsed:
        return self.data.get(key, default)

    def fail(self, key: str, expected: str) -> CheckpointError:
        """The error for a key whose value is not supported."""
        value = f"is {shown(self.data[key])}" if key in self.data else "is missing"
        return CheckpointError(f"{self.where}: {key} {value}; supported: {expected}")

    def section(self, key: str) -> "Section":
        """A mapping inside this one; an absent one is empty, so its keys are missing."""
        value = self.data.get(key)
        return Section({} if value is None else value, f"{self.where}: {key}")

    def only(self, key: str, supported: Sequence[Parsed], *default: Parsed) -> Parsed:
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

    def _value(self, key: str, default: tuple[Parsed, ...]) -> Parsed:
        return self.data.get(key, default[0]) if default else self.data.get(key)


def is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
