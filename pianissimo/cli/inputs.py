"""From command-line arguments to a list of recordings, each with its output path."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pianissimo.audio.remote import RemoteFile, files_below, is_url
from pianissimo.errors import AudioError, AudioNotFoundError, ManifestError, OptionError

if TYPE_CHECKING:
    from pianissimo.audio.io import AudioSource

AUDIO_SUFFIXES = frozenset(
    ".3gp .aac .aif .aifc .aiff .amr .au .avi .caf .flac .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp3 "
    ".mp4 .mpeg .mpg .oga .ogg .opus .snd .ts .w64 .wav .webm .wma .wmv .wv".split()
)
"""Files in a directory that are inputs without a look inside; of others the decoder decides."""
MANIFEST_SUFFIX = ".jsonl"
NAMES_SHOWN = 5
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Input:
    """One recording, or a part of one that a manifest selects.

    `name` is as given or listed, `output` the output path without a suffix, and `place` the path
    below the named folder, or as the manifest lists it.
    """

    name: str
    output: Path
    place: Path
    source: "AudioSource"

    @property
    def label(self) -> str:
        """The name in messages."""
        return "standard input" if self.name == STANDARD_INPUT else self.name


@dataclass(frozen=True)
class InputFault:
    """An argument without recordings or a line of a manifest, and what is wrong with it."""

    name: str
    error: AudioNotFoundError | ManifestError


def collect(
    sources: Sequence[str], *, recursive: bool = False, output: Path | None = None
) -> tuple[list[Input], list[InputFault], list[Path | str]]:
    """All recordings in the given order, directories sorted by name; also what is skipped.

    Files in a directory that no decoder reads, pipes and devices are skipped. A file *.jsonl is a
    manifest: its lines are recordings, or parts of them. A URL is a file or a directory of an
    object store. Raises ManifestError if a manifest cannot be read.

    Below `output` the files of a directory keep their place. Two recordings whose outputs would
    have one name ("a.wav", "a.mp3") keep their suffixes; OptionError if that does not help, or if
    standard input is named twice.
    """
    listed: list[tuple[str, Path, AudioSource]] = []
    faults: list[InputFault] = []
    skipped: list[Path | str] = []
    for source in sources:
        if source == STANDARD_INPUT:
            if any(name == STANDARD_INPUT for name, _, _ in listed):
                raise OptionError("standard input can be read once: pass - only once")
            listed.append((source, Path("stdin"), source))
        elif is_url(source):
            listed += _remote_files(source, recursive, faults, skipped)
        elif os.path.isdir(source):
            before = len(faults)
            inside = list(_audio_files(Path(source), recursive, faults, skipped))
            if not inside and len(faults) == before:
                reason = AudioNotFoundError(
                    f"{source} has no audio files in it"
                    + ("" if recursive else "; --recursive searches subdirectories")
                )
                faults.append(InputFault(source, reason))
            listed += [(str(path), path.relative_to(source), str(path)) for path in inside]
        elif source.endswith(MANIFEST_SUFFIX):
            listed += _manifest_lines(Path(source), faults)
        else:
            listed.append((source, Path(Path(source).name), source))
    return _with_outputs(listed, output), faults, skipped


def _audio_files(
    folder: Path, recursive: bool, faults: list[InputFault], skipped: list[Path | str]
) -> Iterator[Path]:
    """The recordings of a folder without hidden files; a folder that cannot be listed is a fault.

    Pipes and devices are skipped: opening one may block forever.
    """
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        reason = AudioNotFoundError(f"{folder} cannot be listed: {error.strerror}")
        faults.append(InputFault(str(folder), reason))
        return
    for path in paths:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if recursive and not path.is_symlink():  # a link may point to a parent
                yield from _audio_files(path, recursive, faults, skipped)
        elif path.is_file() and (path.suffix.lower() in AUDIO_SUFFIXES or _decodes(path)):
            yield path
        else:
            skipped.append(path)


def _remote_files(
    url: str, recursive: bool, faults: list[InputFault], skipped: list[Path | str]
) -> Iterator[tuple[str, Path, "AudioSource"]]:
    """A remote file, or the recordings of a remote directory by their suffix."""
    try:
        if url.endswith(MANIFEST_SUFFIX):
            raise ManifestError(f"{url}: a manifest is a local file; its lines may be URLs")
        found = files_below(url, recursive=recursive)
    except (AudioNotFoundError, ManifestError) as error:
        faults.append(InputFault(url, error))
        return
    if found is None:
        yield url, Path(Path(url).name), RemoteFile(url)
        return
    shown = [(name, Path(below)) for name, below in found if not below.startswith(".")]
    inside = [(name, path) for name, path in shown if path.suffix.lower() in AUDIO_SUFFIXES]
    if not inside:
        reason = AudioNotFoundError(f"{url} has no audio files in it, as their suffixes say")
        faults.append(InputFault(url, reason))
    recordings = {name for name, _ in inside}
    skipped += [name for name, _ in shown if name not in recordings]
    for name, path in inside:
        yield name, path, RemoteFile(name)


def _manifest_lines(
    manifest: Path, faults: list[InputFault]
) -> Iterator[tuple[str, Path, "AudioSource"]]:
    """The recordings of a manifest: name, place and source; a faulty line is a fault."""
    from pianissimo.audio.manifest import manifest_rows

    for number, row in manifest_rows(manifest):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            yield _manifest_line(row, manifest.parent)
        except ValueError as error:
            faults.append(InputFault(f"{manifest}, line {number}", ManifestError(str(error))))


def _manifest_line(row: Mapping[str, object], folder: Path) -> tuple[str, Path, "AudioSource"]:
    """A line as name, place and source; a part has its milliseconds in the name: "a@12500+3000"."""
    from pianissimo.audio.io import Excerpt
    from pianissimo.audio.manifest import recording_part, seconds_in

    listed = row.get("audio_filepath")
    if not isinstance(listed, str) or not listed:
        raise ValueError("'audio_filepath' is missing or not a string")
    offset, duration = seconds_in(row, "offset") or 0.0, seconds_in(row, "duration")
    if duration == 0:
        raise ValueError("'duration' must be above 0 s")
    remote = RemoteFile(listed) if is_url(listed) else None
    source = recording_part(remote or folder / listed, offset, duration)
    name = listed if remote else str(folder / listed)
    below = Path(listed.rpartition("://")[2])
    place = Path(*(part for part in below.parts if part not in ("..", os.sep)))
    if not isinstance(source, Excerpt):
        return name, place, remote or name
    part = f"@{round(1000 * source.start)}"
    if source.duration is not None:
        part += f"+{round(1000 * source.duration)}"
    return f"{name}{part}", place.with_name(f"{place.stem}{part}{place.suffix}"), source


def _decodes(path: Path) -> bool:
    """Whether a decoder finds audio in a file."""
    from pianissimo.audio.io import stream_audio

    try:
        return next(iter(stream_audio(path, block_seconds=0.1)), None) is not None
    except AudioError:
        return False


def read_once(name: str) -> bool:
    """Whether reading an input consumes it: standard input, pipes and devices."""
    return name == STANDARD_INPUT or (
        os.path.exists(name) and not (os.path.isfile(name) or os.path.isdir(name))
    )


def about_skipped(paths: Sequence[Path | str]) -> str:
    """One line that names files of directories that are no inputs."""
    shown = ", ".join(map(str, paths[:NAMES_SHOWN]))
    more = f" and {len(paths) - NAMES_SHOWN} more" if len(paths) > NAMES_SHOWN else ""
    return f"skipped {len(paths)} files without audio: {shown}{more}"


def _with_outputs(
    listed: list[tuple[str, Path, "AudioSource"]], folder: Path | None
) -> list[Input]:
    stems = Counter(place.parent / place.stem for _, place, _ in listed)
    inputs = []
    taken: dict[Path, str] = {}
    for name, place, source in listed:
        stem = place.parent / place.stem
        target = place if stems[stem] > 1 else stem
        if folder is not None and target in taken:
            if taken[target] == name:
                raise OptionError(f"{name} is named twice, and has one place in --output {folder}")
            raise OptionError(
                f"{taken[target]} and {name} would be written to the same place "
                f"{folder / target}.*; run them with different --output folders"
            )
        taken[target] = name
        inputs.append(Input(name, (folder or Path()) / target, place, source))
    return inputs
