"""Recordings in object stores, by URL: what fsspec opens, such as s3:// and gs://."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from pianissimo.errors import AudioNotFoundError, MissingExtraError, OptionError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")


def is_url(name: str) -> bool:
    """Whether a name is a URL: s3://bucket/a.mp3."""
    return _URL.match(name) is not None


@dataclass(frozen=True)
class RemoteFile:
    """A recording behind a URL, opened when it is read; parts of it are fetched on demand.

    A string is never taken for a URL: a program whose names come from others would fetch for them.
    """

    url: str

    def open(self) -> BinaryIO:
        """The file. Raises AudioNotFoundError, and what `file_system` raises."""
        files, path = file_system(self.url)
        try:
            return cast("BinaryIO", files.open(path, "rb"))
        except Exception as error:  # each store has errors of its own
            raise AudioNotFoundError(f"{self.url} cannot be opened: {error!r}") from error


def file_system(url: str) -> tuple["AbstractFileSystem", str]:
    """The file system of a URL or path, and the path in it.

    Raises OptionError for an unknown protocol, MissingExtraError without its package.
    """
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(
            f"{url}: {error}; pip install 'pianissimo[archive]' and the package of the store, "
            "for s3:// s3fs"
        ) from error
    except ValueError as error:
        raise OptionError(f"{url} cannot be used: {error}") from error
    return files, str(path)


def files_below(url: str, *, recursive: bool) -> list[tuple[str, str]] | None:
    """The files of a remote directory: URL and path below `url`, by name; None if it is a file.

    Raises AudioNotFoundError if the store does not answer, and what `file_system` raises.
    """
    files, path = file_system(url)
    try:
        if not files.isdir(path):
            return None
        found = sorted(files.find(path, maxdepth=None if recursive else 1))
    except Exception as error:  # each store has errors of its own
        raise AudioNotFoundError(f"{url} cannot be listed: {error!r}") from error
    root = path.rstrip("/") + "/"
    return [(files.unstrip_protocol(name), name.removeprefix(root)) for name in found]
