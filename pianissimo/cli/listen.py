"""`pianissimo listen`: a microphone, or raw samples on standard input, to text as it is spoken."""

import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pianissimo.cli.command import command
from pianissimo.cli.live import BLOCK_SECONDS, Display, Utterances, open_stream, push_all, shown
from pianissimo.cli.options import (
    JsonOption,
    LatencyOption,
    ModelOptions,
    PartialsOption,
    QuietOption,
    SecondPassOption,
)
from pianissimo.cli.output import emit, say
from pianissimo.errors import AudioDecodeError, AudioNotFoundError, MissingExtraError

if TYPE_CHECKING:
    from io import BufferedReader

    from pianissimo.audio.io import Samples

STANDARD_INPUT = "-"
MICROPHONE_RATE = 16_000
CONTAINERS = (b"RIFF", b"fLaC", b"OggS", b"ID3")
"""First bytes of audio files, which are not raw samples."""
BLOCKS_WAITING = 500
"""Blocks that may wait for the recognizer before audio is lost: 40 seconds."""


@dataclass(frozen=True)
class MicrophoneOptions:
    """The stream, its audio and its output."""

    latency: LatencyOption = None
    partials: PartialsOption = None
    second_pass: SecondPassOption = None
    sample_rate: Annotated[
        int, typer.Option(metavar="HZ", min=1000, max=384_000, help="Sample rate of the input.")
    ] = MICROPHONE_RATE
    list_microphones: Annotated[
        bool,
        typer.Option("--list", allow_from_autoenv=False, help="List the microphones and exit."),
    ] = False
    json: JsonOption = False
    quiet: QuietOption = False


@command
def listen(
    model: ModelOptions,
    options: MicrophoneOptions,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="MICROPHONE|-",
            help="Name or number of a microphone [default: system default], or - for raw 16-bit "
            "little-endian mono samples on stdin.",
        ),
    ] = None,
) -> None:
    """Transcribe a microphone live. Press Ctrl-C to stop and print the text to stdout.

    A result is final when the speaker pauses. --json prints one line per event.
    """
    if options.list_microphones:
        for number, name in _microphones():
            emit(f"{number}: {name}\n")
        return
    if source == STANDARD_INPUT and (sys.stdin is None or sys.stdin.isatty()):
        state = "closed" if sys.stdin is None else "a terminal"
        raise AudioNotFoundError(
            f"standard input is {state}: pipe raw samples into it, for example from arecord"
        )
    recognizer = model.load()
    partials = None
    if options.partials is not None:
        partials = ModelOptions(options.partials, model.device, gain=model.gain).load()
    stream = open_stream(
        recognizer,
        latency_ms=options.latency,
        partials=partials,
        sample_rate=options.sample_rate,
        second_pass=options.second_pass,
    )
    said = Utterances()
    display = Display(options.json, options.quiet)
    rate = options.sample_rate
    try:
        with _blocks(source, rate) as blocks, shown(source or "microphone", display) as show:
            if not (options.quiet or options.json):
                say("listening; press Ctrl-C to stop")
            push_all(stream, blocks, rate, show, said)
    except KeyboardInterrupt:
        if source == STANDARD_INPUT:
            raise
        # With a microphone, Ctrl-C is how to stop.
    finally:
        if not options.json:
            emit("".join(f"{event.text}\n" for event in said.finals))


@contextmanager
def _blocks(source: str | None, sample_rate: int) -> Iterator[Iterator["Samples"]]:
    if source == STANDARD_INPUT:
        yield _standard_input(sample_rate)
    else:
        with microphone_blocks(source, sample_rate) as blocks:
            yield blocks


def _standard_input(sample_rate: int) -> Iterator["Samples"]:
    """Raw samples as they arrive; half a sample at the end is dropped.

    Raises AudioDecodeError for an audio file, whose bytes would be noise.
    """
    import numpy as np

    size = 2 * round(BLOCK_SECONDS * sample_rate)
    rest = b""
    first = True
    # `read1` returns what the pipe holds; `read` would wait for a full block.
    stdin = cast("BufferedReader", sys.stdin.buffer)
    while data := stdin.read1(size):
        data = rest + data
        if first and data.startswith(CONTAINERS):
            raise AudioDecodeError(
                "standard input is an audio file, but raw samples are expected: "
                "`pianissimo transcribe --stream -` reads files, ffmpeg's `-f s16le` writes samples"
            )
        first = False
        even = len(data) // 2 * 2
        rest = data[even:]
        yield np.frombuffer(data[:even], "<i2").astype(np.float32) / np.float32(32768)


@contextmanager
def microphone_blocks(source: str | None, sample_rate: int) -> Iterator[Iterator["Samples"]]:
    """Endless blocks of a microphone, the default one for None; AudioNotFoundError without it."""
    sounddevice = sounddevice_package()
    waiting: queue.Queue[Samples] = queue.Queue(BLOCKS_WAITING)

    def callback(samples: Any, frames: int, time: Any, status: Any) -> None:
        if status:
            say(f"microphone: {status}")
        try:
            waiting.put_nowait(samples[:, 0].copy())
        except queue.Full:
            say("audio was lost: this machine is too slow for the model; try --dtype int8")

    try:
        stream = sounddevice.InputStream(
            device=int(source) if source and source.isdigit() else source,
            samplerate=sample_rate,
            blocksize=round(BLOCK_SECONDS * sample_rate),
            channels=1,
            dtype="float32",
            callback=callback,
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioNotFoundError(
            f"{'the default microphone' if source is None else repr(source)} cannot be opened "
            f"({error}); `pianissimo listen --list` lists the microphones"
        ) from error

    def blocks() -> Iterator["Samples"]:
        while True:
            yield waiting.get()

    with stream:
        yield blocks()


def _microphones() -> list[tuple[int, str]]:
    """Number and name of every input device; AudioNotFoundError if there is none."""
    devices = sounddevice_package().query_devices()
    microphones = [(i, d["name"]) for i, d in enumerate(devices) if d["max_input_channels"] > 0]
    if not microphones:
        raise AudioNotFoundError(
            "no microphone was found; plug one in, or pipe samples into `pianissimo listen -`"
        )
    return microphones


def sounddevice_package() -> Any:
    """The package sounddevice; MissingExtraError if it or its library is not installed."""
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError(
            "microphones and speakers need the sounddevice package: pip install 'pianissimo[mic]'"
        ) from error
    except OSError as error:  # the package is installed, its library is not
        raise MissingExtraError(
            f"{error}: install PortAudio (on Debian: apt install libportaudio2)"
        ) from error
    return sounddevice
