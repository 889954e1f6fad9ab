"""Opening folders with the Transformers package: no network, no code from checkpoints, no gaps."""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from pianissimo.errors import CheckpointError, MissingExtraError
from pianissimo.recognizers.family import Untyped

_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    AttributeError,
    SafetensorError,
)
"""What Transformers raises for files that are missing, damaged or of another model."""
_INSTALL = "this model needs the transformers package: pip install 'pianissimo[families]'"


def open_transformers() -> Untyped:
    """The module, told not to write to stderr; MissingExtraError if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError(_INSTALL) from error
    return transformers


def cache_name(network: torch.nn.Module) -> str:
    """The decoder's cache, as argument and result of `forward`: Transformers 5.24 renamed it."""
    accepted = inspect.signature(network.forward).parameters
    return "cache" if "cache" in accepted else "past_key_values"


@contextmanager
def quiet(transformers: Untyped) -> Iterator[None]:
    """Without its messages and progress bars, which are restored afterwards."""
    level, bars = (
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def load_part(kind: Untyped, folder: Path, **options: Untyped) -> Untyped:
    """A configuration, tokenizer or feature extractor; CheckpointError if it cannot be read."""
    try:
        return kind.from_pretrained(folder, local_files_only=True, **options)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{folder}: {_first_line(error)}; fetch the whole model again"
        ) from error


def load_network(kind: Untyped, folder: Path, dtype: torch.dtype, attention: str) -> Untyped:
    """The model in evaluation mode.

    Raises CheckpointError if it cannot be read, or if a weight is missing, of another shape or not
    a finite number: Transformers would continue with random ones. Raises MissingExtraError if the
    kind of attention needs a package that is not installed.
    """
    try:
        model, facts = load_part(
            kind,
            folder,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except ImportError as error:
        raise MissingExtraError(
            f"attention {attention!r} cannot be used here: {_first_line(error)} Choose 'sdpa'"
        ) from error
    faults = {
        "missing": facts["missing_keys"],
        "of another shape": [entry[0] for entry in facts["mismatched_keys"]],
    }
    found = [
        f"{len(names)} {what}, such as {min(names)}" for what, names in faults.items() if names
    ]
    if found:
        raise CheckpointError(
            f"{folder}: the weights do not belong to the configuration: {'; '.join(found)}"
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not math.isfinite(float(tensor.float().sum())):
            raise CheckpointError(f"{folder}: {name} is not finite; fetch the model again")
    return model.eval()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
