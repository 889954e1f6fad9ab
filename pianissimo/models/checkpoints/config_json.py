"""Configurations: JSON and YAML files, and mappings whose values are checked.

A `Section` reads one mapping of a configuration from elsewhere, `from_json` a dataclass of this
package. Every value has an expected type and range; any other value is an error that names the key,
the value and what is supported.
"""

import dataclasses
import json
import reprlib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pianissimo.errors import CheckpointError

CONFIG_FILE = "config.json"
LARGEST_CONFIG_BYTES = 4 << 20
LARGEST_NUMBER = 1 << 20
"""Most that any size in a configuration may be; the vocabulary is the largest of them."""

Parsed: TypeAlias = Any
"""A value of a parsed JSON or YAML file, of any type until it is checked."""
T = TypeVar("T")

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


def from_json(kind: type[T], data: Parsed, where: str) -> T:
    """A frozen dataclass from a JSON object, strictly: no unknown key, no missing one."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} is not an object")
    unknown = sorted(data.keys() - fields.keys())
    if unknown:
        raise CheckpointError(f"{where} has unknown keys: {listed(unknown)}")
    missing = [
        name for name, f in fields.items() if name not in data and f.default is dataclasses.MISSING
    ]
    if missing:
        raise CheckpointError(f"{where} lacks: {listed(missing)}")
    values = {name: _value(hints[name], v, f"{where}: {name}") for name, v in data.items()}
    return kind(**values)


def _value(hint: Any, value: Parsed, where: str) -> Parsed:
    options = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _value(next(o for o in options if o is not type(None)), value, where)
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if typing.get_origin(hint) is typing.Literal:
        if value not in options:
            raise CheckpointError(f"{where} is {value!r}, expected one of {list(options)}")
        return value
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise CheckpointError(f"{where} is {value!r}, expected a list")
        return tuple(_value(options[0], item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise CheckpointError(f"{where} is {value!r}, expected {hint.__name__}")
    if isinstance(value, int | float) and not abs(value) <= LARGEST_NUMBER:
        raise CheckpointError(f"{where} is {value!r}, expected at most {LARGEST_NUMBER}")
    return value
