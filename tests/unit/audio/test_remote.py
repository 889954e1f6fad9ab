"""Recordings behind URLs, on the file system in memory that fsspec has."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from pianissimo.audio.io import Excerpt, describe, load_audio
from pianissimo.audio.remote import RemoteFile, file_system, files_below, is_url
from pianissimo.errors import AudioNotFoundError, MissingExtraError, OptionError

RATE = 16_000
SAMPLES = (np.sin(np.arange(2 * RATE) / 20) / 2).astype(np.float32)


@pytest.fixture
def store() -> Iterator[str]:
    """A folder in memory with two recordings and a text, one of them in a subdirectory."""
    files, folder = fsspec.filesystem("memory"), "memory://archive"
    packed = io.BytesIO()
    soundfile.write(packed, SAMPLES, RATE, format="FLAC")
    for name in ("a.flac", "may/b.flac"):
        files.pipe(f"/archive/{name}", packed.getvalue())
    files.pipe("/archive/notes.txt", b"none")
    yield folder
    files.rm("/archive", recursive=True)


def test_a_remote_recording_is_read_as_a_local_one(store: str, tmp_path: Path) -> None:
    local = tmp_path / "a.flac"
    soundfile.write(local, SAMPLES, RATE)
    remote = pickle.loads(pickle.dumps(RemoteFile(f"{store}/a.flac")))
    assert describe(remote) == describe(local)
    np.testing.assert_array_equal(load_audio(remote), load_audio(local))
    part = load_audio(Excerpt(remote, 0.5, 0.25))
    np.testing.assert_array_equal(part, load_audio(Excerpt(local, 0.5, 0.25)))


def test_a_directory_lists_its_files_by_name(store: str) -> None:
    found = files_below(store, recursive=True)
    assert found is not None
    assert [below for _, below in found] == ["a.flac", "may/b.flac", "notes.txt"]
    assert all(RemoteFile(url).open().read(1) for url, _ in found)
    flat = files_below(store, recursive=False)
    assert flat is not None and [below for _, below in flat] == ["a.flac", "notes.txt"]
    assert files_below(f"{store}/a.flac", recursive=False) is None


def test_what_cannot_be_opened_says_why(store: str) -> None:
    with pytest.raises(AudioNotFoundError, match=r"memory://archive/x\.wav cannot be opened"):
        load_audio(RemoteFile(f"{store}/x.wav"))
    with pytest.raises(OptionError, match="nonsense"):
        file_system("nonsense://archive")


def test_a_store_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def missing(url: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(MissingExtraError, match=r"pianissimo\[archive\].*s3fs"):
        file_system("s3://bucket/a.wav")


def test_a_string_is_no_url(store: str) -> None:
    """A server gets names from others."""
    with pytest.raises(AudioNotFoundError, match="URLs are not fetched"):
        load_audio(f"{store}/a.flac")


@pytest.mark.parametrize("name", ["a.wav", "/a/b.wav", "C:/a.wav", "a:b.wav", "", "://a"])
def test_paths_are_no_urls(name: str) -> None:
    assert not is_url(name)
    assert is_url(f"s3://bucket/{name}") and is_url("simplecache::s3://bucket/a.wav")
