"""From command-line arguments to a list of recordings, each with its output path."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pianissimo.errors import AudioError, AudioNotFoundError, OptionError

AUDIO_SUFFIXES = frozenset(
    ".3gp .aac .aif .aifc .aiff .amr .au .avi .caf .flac .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp3 "
    ".mp4 .mpeg .mpg .oga .ogg .opus .snd .ts .w64 .wav .webm .wma .wmv .wv".split()
)
"""Files in a directory that are inputs without a look inside; of others the decoder decides."""
NAMES_SHOWN = 5
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Input:
    """One recording: its name as given or listed, and its output path without a suffix."""

    name: str
    output: Path

    @property
    def label(self) -> str:
        """The name in messages."""
        return "standard input" if self.name == STANDARD_INPUT else self.name


@dataclass(frozen=True)
class InputFault:
    """An argument without recordings, and the reason."""

    name: str
    error: AudioNotFoundError


def collect(
    sources: Sequence[str], *, recursive: bool = False, output: Path | None = None
) -> tuple[list[Input], list[InputFault], list[Path]]:
    """All recordings in the given order, directories sorted by name; also what is skipped.

    Files in a directory that no decoder reads, pipes and devices are skipped.

    Below `output` the files of a directory keep their place. Two recordings whose outputs would
    have one name ("a.wav", "a.mp3") keep their suffixes; OptionError if that does not help, or if
    standard input is named twice.
    """
    listed: list[tuple[str, Path]] = []
    faults: list[InputFault] = []
    skipped: list[Path] = []
    for source in sources:
        if source == STANDARD_INPUT:
            if (source, Path("stdin")) in listed:
                raise OptionError("standard input can be read once: pass - only once")
            listed.append((source, Path("stdin")))
        elif os.path.isdir(source):
            before = len(faults)
            inside = list(_audio_files(Path(source), recursive, faults, skipped))
            if not inside and len(faults) == before:
                reason = AudioNotFoundError(
                    f"{source} has no audio files in it"
                    + ("" if recursive else "; --recursive searches subdirectories")
                )
                faults.append(InputFault(source, reason))
            listed += [(str(path), path.relative_to(source)) for path in inside]
        else:
            listed.append((source, Path(Path(source).name)))
    return _with_outputs(listed, output), faults, skipped


def _audio_files(
    folder: Path, recursive: bool, faults: list[InputFault], skipped: list[Path]
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


def about_skipped(paths: Sequence[Path]) -> str:
    """One line that names files of directories that are no inputs."""
    shown = ", ".join(map(str, paths[:NAMES_SHOWN]))
    more = f" and {len(paths) - NAMES_SHOWN} more" if len(paths) > NAMES_SHOWN else ""
    return f"skipped {len(paths)} files without audio: {shown}{more}"


def _with_outputs(listed: list[tuple[str, Path]], folder: Path | None) -> list[Input]:
    stems = Counter(place.parent / place.stem for _, place in listed)
    inputs = []
    taken: dict[Path, str] = {}
    for name, place in listed:
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
        inputs.append(Input(name, (folder or Path()) / target))
    return inputs
