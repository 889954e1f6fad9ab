"""The model families, and which of them reads a checkpoint.

A family is one module of `pianissimo.recognizers` with a `FAMILY` record. Its row here is all that
the rest of the package knows of it. Modules are imported when a checkpoint needs them.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pianissimo.errors import CheckpointError

if TYPE_CHECKING:
    from pianissimo.recognizers.family import Family

NATIVE = "fastconformer"
OTHERS = ("wav2vec2", "whisper", "moonshine", "glm_asr", "espnet", "faster_whisper", "sherpa")
"""Modules of `pianissimo.recognizers`, in the order in which their layouts are tested."""


def family(module: str) -> "Family":
    """The record of one module."""
    found: Family = import_module(f"pianissimo.recognizers.{module}").FAMILY
    return found


def families() -> "Iterator[Family]":
    """All records, the native family first."""
    return map(family, (NATIVE, *OTHERS))


def family_of(path: Path, more: "Sequence[Family]" = ()) -> "Family":
    """The family that reads the checkpoint at `path`; those in `more` are asked first.

    A path that no family recognizes goes to the native one, whose reader names the known formats.
    Raises CheckpointError for a Transformers folder of a model that no family reads.
    """
    from pianissimo.models.checkpoints.format import recognize_format

    format = recognize_format(path)
    if format == "huggingface":
        return _of_transformers(path, more)
    for candidate in more:
        if candidate.layout is not None and candidate.layout(path):
            return candidate
    if format is None:
        for candidate in map(family, OTHERS):
            if candidate.layout is not None and candidate.layout(path):
                return candidate
    return family(NATIVE)


def _of_transformers(path: Path, more: "Sequence[Family]") -> "Family":
    from pianissimo.models.checkpoints.config_json import listed, read_json
    from pianissimo.models.checkpoints.huggingface import FAMILIES as NATIVE_ARCHITECTURES

    config = read_json(path / "config.json")
    kind, architectures = config.get("model_type"), config.get("architectures") or ()
    if not isinstance(kind, str):
        return family(NATIVE)
    candidates = [*more, *map(family, OTHERS)]
    for candidate in candidates:
        if kind in candidate.model_types:
            return candidate
    if any(name in NATIVE_ARCHITECTURES for name in architectures if isinstance(name, str)):
        return family(NATIVE)
    known = [kind for candidate in candidates for kind in candidate.model_types]
    raise CheckpointError(
        f"{path} holds a model of the kind {kind[:80]!r}, which nothing here reads; known are "
        f"{listed(known, most=99)} and {listed(NATIVE_ARCHITECTURES, most=99)}"
    )
