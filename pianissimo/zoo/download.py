"""Fetching models that have a name, and the lock file that says what was fetched.

The first pull of a model writes `pianissimo.lock.json` beside its files: the revision, and the
SHA-256 of each file. Later pulls fetch that revision, and whatever has another hash is refused.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn

from pianissimo.errors import CheckpointError, ModelNotFoundError
from pianissimo.zoo import catalog
from pianissimo.zoo.catalog import CatalogEntry
from pianissimo.zoo.folder import locate, models_folder

LOCK_FILE = "pianissimo.lock.json"
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Lock:
    """What was pulled: `sha256` are hexadecimal digests by file name."""

    repository: str
    revision: str
    sha256: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Lock | None":
        """The lock of a model folder, None if it has none; raises CheckpointError."""
        path = folder / LOCK_FILE
        if not path.is_file():
            return None
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            lock = cls(str(given["repository"]), str(given["revision"]), dict(given["sha256"]))
            sound = all(DIGEST.fullmatch(each) for each in lock.sha256.values())
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise CheckpointError(f"{path} is damaged; remove it and pull the model again")
        return lock

    def write(self, folder: Path) -> None:
        draft = folder / f".{LOCK_FILE}.{secrets.token_hex(4)}"
        draft.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        os.replace(draft, folder / LOCK_FILE)


def pull(name: str, *, revision: str | None = None, offline: bool = False) -> Path:
    """Fetch a model of the catalog into the models folder, but for files that are here already.

    `revision` is a branch, tag or commit; by default the one that was pulled before, then the
    catalog's. With `offline` nothing is fetched: the model must be here as it was pulled. Honors
    HF_ENDPOINT (a mirror) and HF_TOKEN. Raises ModelNotFoundError for an unknown name or when it
    cannot be fetched, with what to put where by hand, and CheckpointError for a file that is not
    what it should be: such a file is removed, so that the next pull fetches it again.
    """
    entry = catalog.find(name)
    if entry.repository is None:
        return catalog.ASSETS / entry.name
    folder = models_folder() / entry.short_name
    if offline:
        locate(name)
        verify(name)
        return folder
    lock = Lock.read(folder)
    wanted = revision or (lock.revision if lock is not None else entry.revision)
    commit, published = _fetch(entry, folder, wanted)
    found = _digests(entry, folder)
    if not found:
        raise ModelNotFoundError(f"{entry.repository} has no {' or '.join(entry.files)}")
    pinned = lock.sha256 if lock is not None and lock.revision == commit else {}
    for expected in (dict(entry.sha256), published, pinned):
        for file, digest in expected.items():
            if file in found and found[file] != digest:
                (folder / file).unlink()
                _refuse(folder / file, digest, found[file], "it was removed; pull again")
    if missing := pinned.keys() - found.keys():
        raise CheckpointError(f"{folder} lacks {', '.join(sorted(missing))}; pull again")
    Lock(entry.repository, commit, found).write(folder)
    return folder


def verify(model: str | os.PathLike[str] | None) -> Lock | None:
    """Whether a model, as `load` takes it, is as it was pulled; its lock, None if it has none.

    Raises CheckpointError for a file that changed or is missing, ModelNotFoundError for no model.
    """
    path = locate(model)
    folder = path if path.is_dir() else path.parent
    lock = Lock.read(folder)
    for name, digest in (lock.sha256 if lock is not None else {}).items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; pull the model again")
        if (found := _digest(file)) != digest:
            _refuse(file, digest, found, "remove it and pull the model again")
    return lock


def stay_offline() -> None:
    """From now on no library looks for models on a network; call it before they are imported."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"


def _refuse(file: Path, expected: str, found: str, advice: str) -> NoReturn:
    raise CheckpointError(
        f"{file} has the SHA-256 {found[:12]}…, not {expected[:12]}…: it is damaged, or was "
        f"replaced; {advice}"
    )


def _fetch(entry: CatalogEntry, folder: Path, revision: str | None) -> tuple[str, dict[str, str]]:
    """Bring the files here; the commit they are from, and the hashes that the hub tells."""
    from huggingface_hub import HfApi, snapshot_download

    assert entry.repository is not None
    mirror = os.environ.get("HF_ENDPOINT")
    try:
        about = HfApi(mirror).model_info(entry.repository, revision=revision, files_metadata=True)
        assert about.sha is not None
        snapshot_download(
            entry.repository,
            revision=about.sha,
            allow_patterns=list(entry.files),
            local_dir=folder,
            endpoint=mirror,
        )
    except Exception as error:  # of which kind depends on the HTTP library that is used below
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFoundError(
            f"{entry.repository} cannot be fetched ({reason}); with a network elsewhere, copy its "
            f"{' and '.join(entry.files)} to {folder}"
        ) from error
    large = [file for file in about.siblings or () if file.lfs is not None]
    return about.sha, {file.rfilename: file.lfs.sha256 for file in large if file.lfs is not None}


def _digests(entry: CatalogEntry, folder: Path) -> dict[str, str]:
    """The hashes of the model's own files, by their names in the folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {
        name: _digest(folder / name)
        for name in names
        if not name.startswith(".")
        and name != LOCK_FILE
        and any(fnmatch(name, pattern) for pattern in entry.files)
    }


def _digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
