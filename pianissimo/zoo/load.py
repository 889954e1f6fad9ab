"""From a name, a folder or a file to a recognizer."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pianissimo.errors import OptionError
from pianissimo.recognizers.family import DTYPES, Family, LoadOptions, Task
from pianissimo.zoo.catalog import CATALOG
from pianissimo.zoo.families import NATIVE, family_of
from pianissimo.zoo.folder import locate, models_folder

if TYPE_CHECKING:
    import torch

    from pianissimo.audio.gain import GainMode
    from pianissimo.decoding.search import Decoding
    from pianissimo.protocols import Recognizer

INT8 = "int8"
"""Not a dtype of the whole model: its linear layers on the CPU, the rest in float32."""


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    head: Literal["transducer", "ctc"] | None = None,
    language: str | None = None,
    task: Task | None = None,
    gain: "GainMode | None" = None,
    decoding: "Decoding | None" = None,
    families: Sequence[Family] = (),
) -> "Recognizer":
    """A recognizer from a name of the catalog, a folder, a `.nemo` file or an ESPnet2 pack.

    Without `model` it is the built-in Whisper tiny.en. `device` is "auto", "cpu", "cuda" or
    "cuda:N".
    `dtype` is "auto" (float32 unless the model says otherwise), float32, bfloat16, float16, or
    int8 for encoder and predictor of native models on a CPU. `head` chooses the head of a hybrid
    model, `language` the language of a multilingual one ("auto" is its default), `task` what
    Whisper writes. `gain` levels quiet speech: "on", "off" or "auto" (only where needed), by
    default what suits the family. `decoding` configures beam and language model. `families` are
    model families to try before the built-in ones.

    Nothing is downloaded: see `pull`. Raises ModelNotFoundError, CheckpointError,
    MissingExtraError or OptionError.
    """
    target = choose_device(device)
    precision = None if dtype in ("auto", INT8) else choose_dtype(dtype)
    path = locate(model)
    family = family_of(path, families)
    language = _choice(language, path, family)
    options = LoadOptions(precision, dtype == INT8, head, language, task, decoding)
    family.check(path.name, options)
    recognizer = family.read(path, target, options)
    return recognizer if gain is None else recognizer.with_gain(gain)


def _choice(language: str | None, path: Path, family: Family) -> str | None:
    """The language for a family's reader: None if it is the only one of a model of the catalog.

    "auto" is the default of every family but the native one, whose checkpoints may have a prompt of
    that name. Raises OptionError for a language that a model of the catalog does not speak.
    """
    if language is None or (language.lower() == "auto" and family.name != NATIVE):
        return None
    places = (path, path.parent)  # a pulled .nemo archive lies in the folder of its model
    entry = next((e for e in CATALOG if models_folder() / e.short_name in places), None)
    if entry is None or len(entry.languages) > 1:
        return language
    (own,) = entry.languages
    if language.lower().replace("_", "-").split("-")[0] not in (own, "auto"):
        raise OptionError(f"{entry.name} does not support {language!r}; it speaks only {own!r}")
    return None


def choose_device(device: str) -> "torch.device":
    """The torch device of that name; "auto" is CUDA where there is one. OptionError otherwise."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise OptionError(f"unknown device {device!r}; choose auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            f"device {device!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA "
            "devices; use --device cpu, or check the driver with `pianissimo doctor`"
        )
    return chosen


def choose_dtype(dtype: str) -> "torch.dtype":
    """The torch dtype of that name; OptionError if models do not compute in it."""
    import torch

    dtypes = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    if dtype not in dtypes:
        raise OptionError(f"unknown dtype {dtype!r}; choose {', '.join(('auto', *DTYPES, INT8))}")
    return dtypes[dtype]
