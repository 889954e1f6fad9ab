"""API keys with names and limits."""

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from pianissimo.errors import OptionError

ANYONE, WYOMING = "anyone", "wyoming"
"""Account names of clients without keys."""


@dataclass(frozen=True)
class Limits:
    """Limits of one key; None: the server's own limits apply."""

    streams: int | None = None
    audio_seconds_per_minute: float | None = None
    upload_mb: float | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            kinds = int if each.name == "streams" else (int, float)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 1e12:
                raise OptionError(f"{each.name} of a key must be a number above 0, not {value!r}")

    def divided(self, servers: int) -> "Limits":
        """The share of each of several servers; a limit of streams is at least 1."""
        if servers == 1:
            return self
        streams, audio = self.streams, self.audio_seconds_per_minute
        return Limits(
            None if streams is None else -(-streams // servers),
            None if audio is None else audio / servers,
            self.upload_mb,
        )


@dataclass(frozen=True)
class ApiKey:
    """A key and its name, which metrics show in place of the key."""

    name: str
    key: str = field(repr=False)
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if not self.name.isprintable() or not self.name.strip():
            raise OptionError(f"{self.name!r} is not a valid name of an API key")
        if not self.key.strip():
            raise OptionError("an API key must not be empty")
        if self.name in (ANYONE, WYOMING):
            raise OptionError(
                f"{self.name!r} is reserved for clients without keys; choose another name"
            )


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys in a TOML file: a table for each, `key` and its limits; raises OptionError."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OptionError(f"the keys in {path} cannot be read: {error}") from error
    return tuple(_key(path, name, given) for name, given in document.items())


def _key(path: Path, name: str, given: object) -> ApiKey:
    known = ["key", *(each.name for each in fields(Limits))]
    if not isinstance(given, dict) or not isinstance(given.get("key"), str):
        raise OptionError(f'{path}: write [{name}] and below it key = "..."')
    if unknown := given.keys() - set(known):
        raise OptionError(
            f"{path}: unknown key {sorted(unknown)[0]!r} in {name}; valid keys: {', '.join(known)}"
        )
    limits = {field: value for field, value in given.items() if field != "key"}
    return ApiKey(name, given["key"], Limits(**limits))
