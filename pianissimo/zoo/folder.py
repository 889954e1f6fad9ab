"""Where models are kept on this machine, and the path that a name stands for."""

import os
from pathlib import Path

from pianissimo.errors import ModelNotFoundError
from pianissimo.zoo import catalog

MODELS_FOLDER = "PIANISSIMO_MODELS"
"""Environment variable that names the folder in which `pull` keeps models."""


def models_folder() -> Path:
    """$PIANISSIMO_MODELS, or a folder in the user's data folder."""
    if os.environ.get(MODELS_FOLDER):
        return Path(os.environ[MODELS_FOLDER]).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "pianissimo" / "models"


def locate(model: str | os.PathLike[str] | None) -> Path:
    """The file or folder of a model: an existing path as it is, a name where `pull` put it.

    Raises ModelNotFoundError that says how to get it.
    """
    if model is None:
        return catalog.ASSETS / catalog.DEFAULT
    if not os.fspath(model):
        raise ModelNotFoundError("the name of the model is empty; omit it to use the default")
    path = Path(model)
    try:
        path = path.expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # too long for a path, or of an unknown user
        raise ModelNotFoundError(f"there is no file or folder {str(path)[:200]!r}") from error
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
