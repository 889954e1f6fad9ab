"""`pianissimo speak`: text to the speakers or to an audio file."""

import queue
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from pianissimo.cli.command import command
from pianissimo.cli.listen import sounddevice_package
from pianissimo.cli.options import DeviceOption, QuietOption
from pianissimo.cli.output import READER_GONE, emit, say
from pianissimo.cli.progress import ProgressBar
from pianissimo.errors import AudioError, AudioNotFoundError, OptionError

if TYPE_CHECKING:
    from pianissimo.audio.io import Samples
    from pianissimo.protocols import Synthesizer

STANDARD_STREAM = "-"
LARGEST_TEXT_BYTES = 1 << 20
SENTENCES_AHEAD = 4
"""Blocks that are synthesized while earlier ones play."""
SUFFIXES = {"ogg": "opus", "m4a": "aac"}
"""Suffixes of file names that are not the names of formats."""

SpokenFormat = Literal["wav", "mp3", "opus", "aac", "flac", "pcm"]


@dataclass(frozen=True)
class VoiceOptions:
    """The voice, and how it speaks."""

    voice: Annotated[
        str | None,
        typer.Option(
            "--voice", metavar="VOICE", help="Name of a voice or its directory [default: heart]."
        ),
    ] = None
    speed: Annotated[
        float, typer.Option(metavar="FACTOR", help="Speed from 0.25 to 4; above 1 is faster.")
    ] = 1.0
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="The same number gives the same audio.")
    ] = None
    device: DeviceOption = "auto"
    list_voices: Annotated[
        bool,
        typer.Option("--list", allow_from_autoenv=False, help="List the voices and exit."),
    ] = False


@dataclass(frozen=True)
class SpokenOutput:
    """Where the audio goes."""

    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Speak the text of FILE (UTF-8)."),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write audio to FILE, or - for stdout, instead of playing it.",
        ),
    ] = None
    format: Annotated[
        SpokenFormat | None,
        typer.Option("--format", "-f", help="Audio format [default: by FILE's suffix, wav]."),
    ] = None
    quiet: QuietOption = False


@command
def speak(
    voice: VoiceOptions,
    output: SpokenOutput,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT|-", help="Text to speak, or - for stdin.")
    ] = None,
) -> None:
    """Speak a text, or write it to an audio file.

    Audio is played or written sentence by sentence, while the rest is synthesized.
    """
    if voice.list_voices:
        _list_voices()
        return
    given = _text(text, output.file)
    format = _format(output)
    from pianissimo.zoo.voices import load_voice

    synthesizer = load_voice(voice.voice, device=voice.device)
    sentences = synthesizer.sentences(given)
    blocks = _spoken(synthesizer, sentences, voice, output.quiet)
    started = time.monotonic()
    with closing(blocks):
        if output.output is None:
            seconds = _play(blocks, synthesizer.sample_rate)
        else:
            seconds = _write(blocks, synthesizer.sample_rate, output.output, format)
    if output.output is not None and not output.quiet:
        took = time.monotonic() - started
        say(f"{output.output}: {seconds:.1f} s of speech in {took:.1f} s, voice {synthesizer.name}")


def _list_voices() -> None:
    from pianissimo.zoo.voices import list_voices

    voices = list_voices()
    emit("".join(f"{each.name}\t{each.language or ''}\n" for each in voices))
    if not voices:
        say("no voices are installed; pip install 'pianissimo[tts]' adds one")


def _text(text: str | None, file: Path | None) -> str:
    """The text to speak; OptionError unless there is exactly one readable source."""
    if text is not None and file is not None:
        raise OptionError("give a text or --file, not both")
    if text is not None and text != STANDARD_STREAM:
        return text
    try:
        if file is not None:
            with file.open("rb") as opened:
                data = opened.read(LARGEST_TEXT_BYTES + 1)
        elif sys.stdin is None or sys.stdin.isatty():
            raise OptionError(
                'there is nothing to speak: give a text, as in pianissimo speak "Hello.", '
                "a --file, or pipe text into standard input"
            )
        else:
            data = sys.stdin.buffer.read(LARGEST_TEXT_BYTES + 1)
    except OSError as error:
        raise OptionError(f"{file or 'standard input'} cannot be read: {error.strerror}") from error
    name = str(file or "standard input")
    if len(data) > LARGEST_TEXT_BYTES:
        raise OptionError(f"{name} has more than {LARGEST_TEXT_BYTES} bytes; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{name} is not UTF-8 text ({error.reason}); convert it") from error


def _format(output: SpokenOutput) -> SpokenFormat:
    """The format of the file; OptionError for an unknown suffix, or a terminal as the file."""
    path = output.output
    if path is None:
        if output.format is not None:
            raise OptionError("--format needs --output FILE; without it the audio is played")
        return "wav"
    if str(path) == STANDARD_STREAM and sys.stdout.isatty():
        raise OptionError("audio is not written to a terminal; use --output FILE or a pipe")
    if output.format is not None:
        return output.format
    suffix = path.suffix.removeprefix(".").lower()
    named = SUFFIXES.get(suffix, suffix or "wav")
    known: tuple[SpokenFormat, ...] = ("wav", "mp3", "opus", "aac", "flac", "pcm")
    for each in known:
        if each == named:
            return each
    raise OptionError(f"{path}: unknown format {suffix!r}; choose {', '.join(known)} with --format")


def _spoken(
    synthesizer: "Synthesizer", sentences: list[str], voice: VoiceOptions, quiet: bool
) -> Generator["Samples"]:
    """The audio of the sentences, with a progress bar if there are several."""
    shown = len(sentences) > 1 and not quiet and sys.stderr.isatty()
    with ProgressBar("speaking", len(sentences), shown=shown) as bar:
        for sentence in sentences:
            yield from synthesizer.stream(sentence, speed=voice.speed, seed=voice.seed)
            bar.advance()


def _write(
    blocks: Iterator["Samples"], sample_rate: int, path: Path, format: SpokenFormat
) -> float:
    """Write the audio, and return its seconds. A file that could not be completed is removed."""
    if str(path) == STANDARD_STREAM:
        try:
            return _encode(blocks, sample_rate, sys.stdout.buffer, format)
        except BrokenPipeError:
            raise typer.Exit(READER_GONE) from None
    try:
        with path.open("wb") as file:
            return _encode(blocks, sample_rate, file, format)
    except OSError as error:
        raise AudioError(f"{path} cannot be written: {error.strerror}") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _encode(
    blocks: Iterator["Samples"], sample_rate: int, file: BinaryIO, format: SpokenFormat
) -> float:
    from pianissimo.audio.encode import AudioEncoder

    def write(data: bytes) -> None:
        file.write(data)
        file.flush()

    encoder = AudioEncoder(file if file.seekable() else write, format, sample_rate)
    count = 0
    for block in blocks:
        encoder.write(block)
        count += len(block)
    encoder.close()
    return count / sample_rate


def _play(blocks: Iterator["Samples"], sample_rate: int) -> float:
    """Play the audio as it is synthesized, and return its seconds."""
    package = sounddevice_package()
    count = 0
    try:
        speakers = package.OutputStream(samplerate=sample_rate, channels=1, dtype="float32")
        with speakers, closing(_ahead(blocks)) as ahead:
            for block in ahead:
                speakers.write(block)
                count += len(block)
    except package.PortAudioError as error:
        raise AudioNotFoundError(
            f"the speakers cannot be opened ({error}); use --output FILE to write a file"
        ) from error
    return count / sample_rate


def _ahead(blocks: Iterator["Samples"]) -> Generator["Samples"]:
    """The same blocks, synthesized by a thread while earlier ones are used."""
    waiting: queue.Queue[Samples | BaseException | None] = queue.Queue(SENTENCES_AHEAD)
    stopped = threading.Event()

    def run() -> None:
        last: BaseException | None = None
        try:
            for block in blocks:
                waiting.put(block)
                if stopped.is_set():
                    return
        except BaseException as error:  # raised again by the reader
            last = error
        waiting.put(last)

    thread = threading.Thread(target=run, name="pianissimo-speak")
    thread.start()
    try:
        while (found := waiting.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        stopped.set()
        while thread.is_alive():  # it may wait for a place
            try:
                waiting.get(timeout=0.01)
            except queue.Empty:
                continue
        thread.join()
