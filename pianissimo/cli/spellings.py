"""Option spellings of other tools and of earlier versions, translated before parsing."""

import re
from collections.abc import Sequence

import typer

from pianissimo.cli.command import MOVED, moved
from pianissimo.errors import OptionError

ALIASES = {"--boost": "--hotword", "--boost-file": "--hotword-file"}


def normalize_spellings(arguments: Sequence[str]) -> list[str]:
    """Arguments with current spellings; OptionError for an option that moved to Python.

    `--output_format` becomes `--output-format`, `--word_timestamps True` a flag and `--boost`
    `--hotword`.
    """
    accepted: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            return [*accepted, argument, *rest]
        name, equals, value = argument.partition("=")
        if re.fullmatch(r"--[a-z]+(_[a-z]+)+", name):
            name = name.replace("_", "-")
            if name == "--word-timestamps":
                value = value if equals else next(rest, "")
                name = "--word-timestamps" if _truth(value) else "--no-word-timestamps"
                equals = value = ""
        if name.startswith("--") and name[2:] in MOVED:
            raise OptionError(moved(name[2:]))
        accepted.append(ALIASES.get(name, name) + equals + value)
    return accepted


def _truth(value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise typer.BadParameter(f"--word_timestamps must be True or False, not {value!r}")
    return value.lower() == "true"
