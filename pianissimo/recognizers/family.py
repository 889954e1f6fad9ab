"""What a model family declares about itself, beside its adapter."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pianissimo.errors import OptionError

if TYPE_CHECKING:
    import torch

    from pianissimo.audio.gain import GainMode
    from pianissimo.decoding.search import Decoding
    from pianissimo.protocols import Recognizer

Untyped: TypeAlias = Any
"""An object of a package that has no type hints: Transformers, faster-whisper, sherpa-onnx."""
Task = Literal["transcribe", "translate"]
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadOptions:
    """The options of `load` that a family may support; None leaves the choice to the family."""

    dtype: "torch.dtype | None" = None
    int8: bool = False
    head: Literal["transducer", "ctc"] | None = None
    language: str | None = None
    task: Task | None = None
    decoding: "Decoding | None" = None


@dataclass(frozen=True)
class Family:
    """One model family: the checkpoints it reads, the options it supports, and its reader.

    `read` gets the path of a checkpoint, a device and options that `check` accepted; it raises
    MissingExtraError, CheckpointError or OptionError.
    """

    name: str
    read: "Callable[[Path, torch.device, LoadOptions], Recognizer]"
    gain: "GainMode"
    """The gain mode that suits its models."""
    model_types: tuple[str, ...] = ()
    """Values of `model_type` in the config.json of a Transformers folder."""
    layout: Callable[[Path], bool] | None = None
    """Whether a path has the family's own layout, where Transformers did not write it."""
    extra: str | None = None
    """The extra of this package that it needs."""
    dtypes: tuple[Dtype, ...] = DTYPES
    int8: bool = False
    heads: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ("transcribe",)
    decoding: bool = False
    """Whether beam and language model are configurable."""
    languages: bool = True
    """Whether some of its models let the caller choose the language."""

    def check(self, name: str, options: LoadOptions) -> None:
        """Raises OptionError for an option that this family does not support."""
        if options.int8 and not self.int8:
            raise OptionError(f"{name} has no int8 form here; use float32 or bfloat16")
        if options.dtype is not None:
            dtype = str(options.dtype).removeprefix("torch.")
            if dtype not in self.dtypes:
                known = (*self.dtypes, *(("int8",) if self.int8 else ()))
                raise OptionError(f"{name} is computed in {' or '.join(known)}, not in {dtype}")
        if options.head is not None and options.head not in self.heads:
            only = f", only {' and '.join(self.heads)}" if self.heads else ""
            raise OptionError(f"{name} has no {options.head} head{only}")
        if options.task is not None and options.task not in self.tasks:
            if len(self.tasks) == 1:
                raise OptionError(f"{name} only transcribes; remove task {options.task!r}")
            known_tasks = " or ".join(self.tasks)
            raise OptionError(f"{name}: unknown task {options.task!r}; choose {known_tasks}")
        if options.decoding is not None and not self.decoding:
            raise OptionError(
                f"{name} has a search of its own; remove beam and language model, which native "
                "models, the wav2vec 2.0 family and ESPnet2 support"
            )
        if options.language is not None and not self.languages:
            raise OptionError(f"{name} has no choice of languages; remove language")
