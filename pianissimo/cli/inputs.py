"""From command-line arguments to a list of recordings, each with its output path."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pianissimo.errors import AudioNotFoundError, OptionError

AUDIO_SUFFIXES = frozenset(
    ".3gp .aac .aif .aifc .aiff .amr .au .avi .caf .flac .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp3 "
    ".mp4 .mpeg .mpg .oga .ogg .opus .snd .ts .w64 .wav .webm .wma .wmv .wv".split()
)
"""What is taken from a directory. A file named on the command line may be called anything."""
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
) -> tuple[list[Input], list[InputFault]]:
    """All recordings in the order given, directories in the order of their names.

    Below `output` the files of a directory keep their place. Two recordings whose outputs would
    have one name ("a.wav", "a.mp3") keep their suffixes; OptionError if that does not help, or if
    standard input is named twice.
    """
    found: list[tuple[str, Path]] = []
    faults: list[InputFault] = []
    for source in sources:
        if source == STANDARD_INPUT:
            if (source, Path("stdin")) in found:
                raise OptionError("standard input can be read once: pass - only once")
            found.append((source, Path("stdin")))
        elif os.path.isdir(source):
            before = len(faults)
            inside = list(_audio_files(Path(source), recursive, faults))
            if not inside and len(faults) == before:
                reason = AudioNotFoundError(
                    f"{source} has no audio files in it"
                    + ("" if recursive else "; --recursive looks in its folders too")
                )
                faults.append(InputFault(source, reason))
            found += [(str(path), path.relative_to(source)) for path in inside]
        else:
            found.append((source, Path(Path(source).name)))
    return _with_outputs(found, output), faults


def _audio_files(folder: Path, recursive: bool, faults: list[InputFault]) -> Iterator[Path]:
    """Files that look like audio, hidden ones left out; folders that cannot be listed are faults.

    Pipes and devices are left out too: opening one may take for ever.
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
            if recursive and not path.is_symlink():  # a link may lead back up
                yield from _audio_files(path, recursive, faults)
        elif path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():
            yield path


def _with_outputs(found: list[tuple[str, Path]], folder: Path | None) -> list[Input]:
    stems = Counter(place.parent / place.stem for _, place in found)
    inputs = []
    taken: dict[Path, str] = {}
    for name, place in found:
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
