"""Files and tensors of untrusted checkpoints.

The members of a tar archive, plain or gzip, are read as streams and never unpacked under their own
names. A PyTorch checkpoint is unpickled as plain tensors only, so that no code in it can run. Sizes
are checked before memory is allocated.
"""

import gzip
import pickle
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import torch
from torch import Tensor

from pianissimo.errors import CheckpointError

MOST_MEMBERS = 256
MOST_TENSORS = 100_000
LARGEST_MEMBER_BYTES = 64 << 30
LARGEST_HEADER_BYTES = 1 << 20
LARGEST_PICKLE_BYTES = 64 << 20
LARGEST_EXPANSION = 50
"""The largest expansion by gzip, since weights hardly compress,"""
FREE_EXPANSION_BYTES = 64 << 20
"""for archives above this unpacked size."""

_BLOCK_BYTES = 1 << 20


class Files:
    """The files of a checkpoint by name, packed or in a folder."""

    def __init__(
        self, where: str, sizes: Mapping[str, int], opener: Callable[[str], IO[bytes]]
    ) -> None:
        self.where = where
        self._sizes = sizes
        self._opener = opener

    def open(self, name: str) -> IO[bytes]:
        """A seekable stream of one file; CheckpointError if there is none of that name."""
        if name not in self._sizes:
            raise CheckpointError(f"{self.where} has no {name}; the checkpoint is incomplete")
        return self._opener(name)

    def read(self, name: str, most: int) -> bytes:
        """One file; CheckpointError if it is missing, or larger than `most` bytes."""
        with self.open(name) as stream:
            if self._sizes[name] > most:
                raise CheckpointError(
                    f"{self.where}: {name} has {self._sizes[name]} bytes, more than the limit "
                    f"of {most}"
                )
            return stream.read()


@contextmanager
def open_files(path: Path) -> Iterator[Files]:
    """The files in a tar archive, plain or gzip, or directly in a folder.

    Raises CheckpointError for other files, and for unsafe members: paths outside of the archive,
    links, devices, duplicate names, impossible sizes, too many members.
    """
    try:
        if path.is_dir():
            sizes = {p.name: p.stat().st_size for p in path.iterdir() if p.is_file()}
            yield Files(str(path), sizes, lambda name: (path / name).open("rb"))
            return
        with _open_unpacked(path) as file:
            guarded = _Guarded(file, str(path))
            with tarfile.open(fileobj=guarded, mode="r:") as tar:  # type: ignore[call-overload]
                members = _members(tar, file.seek(0, 2), str(path))
                guarded.reads_headers = False
                sizes = {name: member.size for name, member in members.items()}

                def extract(name: str) -> IO[bytes]:
                    stream: IO[bytes] | None = tar.extractfile(members[name])
                    assert stream is not None
                    return stream

                yield Files(str(path), sizes, extract)
    except (tarfile.TarError, RecursionError) as error:
        message = f"{path} is not a tar archive, or damaged ({error}); download it again"
        raise CheckpointError(message) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error


def read_tensors(stream: IO[bytes], where: str) -> dict[str, Tensor]:
    """A state dict that `torch.save` wrote, in its zip format.

    Raises CheckpointError if it is damaged or contains other objects; no code in it is run.
    """
    _check_zip(stream, where)
    try:
        tensors = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise CheckpointError(
            f"{where} contains other objects than plain tensors"
            + (f" ({name[1]})" if name else "")
            + ", or is damaged; no code was run. Use a checkpoint from a source you trust"
        ) from error
    except Exception as error:  # malformed bytes may cause any error in the reader
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(f"{where} is damaged ({reason}); download it again") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise CheckpointError(
            f"{where} is not a dictionary of tensors; expected the weights of a model"
        )
    return dict(tensors)


def _check_zip(stream: IO[bytes], where: str) -> None:
    """Raises CheckpointError for compressed entries, and for more data than the file has."""
    size = stream.seek(0, 2)
    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError) as error:
        raise CheckpointError(
            f"{where} is incomplete or not a PyTorch checkpoint ({error}); download it again"
        ) from error
    finally:
        stream.seek(0)
    pickles = [entry.file_size for entry in entries if entry.filename.endswith("data.pkl")]
    if (
        len(entries) > MOST_TENSORS
        or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        or sum(entry.file_size for entry in entries) > size
        or max(pickles, default=0) > LARGEST_PICKLE_BYTES
    ):
        raise CheckpointError(f"{where} claims more data than it has; it is not a valid checkpoint")


@contextmanager
def _open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The file itself, or the contents of a gzip file in an anonymous temporary file."""
    with path.open("rb") as packed:
        magic = packed.read(2)
        packed.seek(0)
        if magic != b"\x1f\x8b":
            yield packed
            return
        most = max(FREE_EXPANSION_BYTES, LARGEST_EXPANSION * path.stat().st_size)
        with tempfile.TemporaryFile(prefix="pianissimo-") as unpacked:
            _unpack(packed, unpacked, most, str(path))
            yield unpacked


def _unpack(packed: IO[bytes], unpacked: IO[bytes], most: int, where: str) -> None:
    total = 0
    try:
        with gzip.GzipFile(fileobj=packed) as stream:
            while block := stream.read(_BLOCK_BYTES):
                total += len(block)
                if total > most:
                    raise CheckpointError(
                        f"{where} unpacks to more than {most} bytes, the limit for a checkpoint"
                    )
                unpacked.write(block)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CheckpointError(f"{where} is incomplete or damaged ({error})") from error
    unpacked.seek(0)


class _Guarded:
    """A file that limits the length of tar headers, which tarfile does not."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self.reads_headers = True
        self._file = file
        self._where = where
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if self.reads_headers and not 0 <= size <= LARGEST_HEADER_BYTES:
            raise CheckpointError(f"{self._where} has a tar header of {size} bytes")
        return self._file.read(size)


def _members(tar: tarfile.TarFile, size: int, where: str) -> dict[str, tarfile.TarInfo]:
    """The regular files by name without a leading `./`, each checked before the next is read."""
    members: dict[str, tarfile.TarInfo] = {}
    for count, member in enumerate(tar, start=1):
        name = PurePosixPath(member.name)
        shown = f"{where}: member {member.name[:200]!r}"
        if count > MOST_MEMBERS:
            raise CheckpointError(f"{where} has more than {MOST_MEMBERS} members")
        if name.is_absolute() or ".." in name.parts or "\\" in member.name:
            raise CheckpointError(f"{shown} has a path outside of the archive")
        if not 0 <= member.size <= LARGEST_MEMBER_BYTES:
            raise CheckpointError(f"{shown} claims {member.size} bytes")
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise CheckpointError(f"{shown} is a link, a device or another special file")
        if member.offset_data + member.size > size:
            raise CheckpointError(
                f"{shown} claims {member.size} bytes, but the archive ends before; it is incomplete"
            )
        if str(name) in members:
            raise CheckpointError(f"{shown} appears twice")
        members[str(name)] = member
    return members
