"""From a name, a folder or a file to a recogniser; and fetching what has a name."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pianissimo import catalog
from pianissimo.errors import CheckpointError, ModelNotFoundError, OptionError

if TYPE_CHECKING:
    import torch

    from pianissimo.models.asr import AsrModel
    from pianissimo.native import NativeRecognizer
    from pianissimo.text.tokenizer import Tokenizer

MODELS_FOLDER = "PIANISSIMO_MODELS"
"""Environment variable that names the folder in which `pull` keeps models."""
DTYPES = ("float32", "bfloat16", "float16")


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "float32",
    head: Literal["transducer", "ctc"] | None = None,
) -> "NativeRecognizer":
    """A recogniser from a name of the catalogue, a folder or a `.nemo` file.

    Without `model` it is the embedded English one. `device` is "auto", "cpu", "cuda" or "cuda:N";
    `dtype` float32, bfloat16 or float16; `head` chooses the decoder of a hybrid model. Nothing is
    downloaded: see `pull`. Raises ModelNotFoundError, CheckpointError or OptionError.
    """
    from pianissimo.native import NativeRecognizer

    target, precision = choose_device(device), choose_dtype(dtype)
    network, tokenizer = read_model(locate(model))
    if tokenizer.vocab_size != network.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} pieces, the model "
            f"{network.config.vocab_size}: they belong to different models"
        )
    network.to(device=target, dtype=precision)
    network.features.float()  # spectra need more than half precision
    return NativeRecognizer(network, tokenizer, head=head)


def locate(model: str | os.PathLike[str] | None) -> Path:
    """The file or folder of a model: an existing path as it is, a name where `pull` put it.

    Raises ModelNotFoundError that says how to get it.
    """
    if model is None:
        return catalog.ASSETS / catalog.EMBEDDED
    path = Path(model).expanduser()
    if path.exists():
        return path
    if path.suffix == ".nemo" or path.is_absolute():
        raise ModelNotFoundError(f"there is no file or folder {path}")
    entry = catalog.find(os.fspath(model))
    folder = models_folder() / entry.short_name if entry.repository else catalog.ASSETS / entry.name
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{entry.name} is not on this machine; run `pianissimo pull {entry.short_name}`, "
            f"or copy its files to {folder}"
        )
    archives = sorted(folder.glob("*.nemo"))
    return archives[0] if archives and not (folder / "config.json").exists() else folder


def models_folder() -> Path:
    """Where pulled models live: $PIANISSIMO_MODELS, or the user's data folder."""
    if os.environ.get(MODELS_FOLDER):
        return Path(os.environ[MODELS_FOLDER]).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "pianissimo" / "models"


def read_model(path: Path) -> "tuple[AsrModel, Tokenizer]":
    """Read a checkpoint of any known format, told apart by its content."""
    from pianissimo.models.asr import load_model
    from pianissimo.models.convert import recognise_format
    from pianissimo.models.huggingface import read_huggingface
    from pianissimo.models.nemo import read_nemo

    readers = {"pianissimo": load_model, "nemo": read_nemo, "huggingface": read_huggingface}
    kind = recognise_format(path)
    if kind is None:
        raise CheckpointError(
            f"{path} is no model that we know: expected a .nemo file, a folder with config.json "
            "and model.safetensors, or a name from `pianissimo models list`"
        )
    return readers[kind](path)


def pull(name: str) -> Path:
    """Fetch a model of the catalogue into the models folder, resuming if it was interrupted.

    Honours HF_ENDPOINT (a mirror) and HF_TOKEN. Raises ModelNotFoundError for an unknown name or
    when it cannot be fetched, with what to put where by hand.
    """
    entry = catalog.find(name)
    if entry.repository is None:
        return catalog.ASSETS / entry.name
    folder = models_folder() / entry.short_name
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        snapshot_download(entry.repository, allow_patterns=list(entry.files), local_dir=folder)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFoundError(
            f"{entry.repository} cannot be fetched ({reason}); with a network elsewhere, copy its "
            f"{' and '.join(entry.files)} to {folder}"
        ) from error
    return folder


def choose_device(device: str) -> "torch.device":
    """The torch device of that name; "auto" is CUDA where there is one. OptionError otherwise."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
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
    """The torch dtype of that name; OptionError if it is not one we compute in."""
    import torch

    if dtype not in DTYPES:
        raise OptionError(f"unknown dtype {dtype!r}; choose {', '.join(DTYPES)}")
    chosen: torch.dtype = getattr(torch, dtype)
    return chosen
