"""`pianissimo listen`: a microphone, or raw samples on standard input, to words as they come."""

import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pianissimo.cli.live import BLOCK_SECONDS, Heard, LiveOptions, hear, open_stream, shown
from pianissimo.cli.options import (
    DeviceOption,
    DtypeOption,
    GainOption,
    HeadOption,
    JsonOption,
    LanguageOption,
    ModelOption,
    PartialsOption,
    QuietOption,
)
from pianissimo.cli.output import emit, say
from pianissimo.errors import AudioDecodeError, AudioNotFoundError, MissingExtraError

if TYPE_CHECKING:
    from io import BufferedReader

    from pianissimo.audio.io import Samples

STANDARD_INPUT = "-"
MICROPHONE_RATE = 16_000
CONTAINERS = (b"RIFF", b"fLaC", b"OggS", b"ID3")
"""How files begin that are taken for raw samples by mistake."""
BLOCKS_WAITING = 500
"""Blocks that a microphone may be ahead of the recognizer before sound is lost: 40 seconds."""


def listen(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="MICROPHONE|-",
            help="Name or number of a microphone [default: the system's], or - for raw 16-bit "
            "little-endian mono samples on standard input.",
        ),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    head: HeadOption = None,
    language: LanguageOption = None,
    partials: PartialsOption = None,
    gain: GainOption = None,
    latency: Annotated[
        int | None,
        typer.Option(envvar="PIANISSIMO_LATENCY", metavar="MS", help="80, 160, 560 or 1120."),
    ] = None,
    sample_rate: Annotated[
        int,
        typer.Option(
            envvar="PIANISSIMO_SAMPLE_RATE",
            metavar="HZ",
            min=1000,
            max=384_000,
            help="Rate of the samples.",
        ),
    ] = MICROPHONE_RATE,
    list_microphones: Annotated[
        bool, typer.Option("--list", help="List the microphones and exit.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show words while someone speaks; Ctrl-C ends it and prints the text to stdout.

    Each utterance is printed as soon as its speaker pauses. --json writes one line per event.
    """
    if list_microphones:
        for number, name in _microphones():
            emit(f"{number}: {name}\n")
        return
    from pianissimo.zoo.load import load

    if source == STANDARD_INPUT and (sys.stdin is None or sys.stdin.isatty()):
        state = "closed" if sys.stdin is None else "a terminal"
        raise AudioNotFoundError(
            f"standard input is {state}: pipe raw samples into it, for example from arecord"
        )
    recognizer = load(model, device=device, dtype=dtype, head=head, language=language, gain=gain)
    drafts = None if partials is None else load(partials, device=device, gain=gain)
    options = LiveOptions(latency, drafts, as_json=as_json, quiet=quiet)
    stream = open_stream(recognizer, options, sample_rate)
    heard = Heard()
    try:
        with _blocks(source, sample_rate) as blocks, shown(source or "microphone", options) as show:
            if not (quiet or as_json):
                say("listening; Ctrl-C ends it")
            hear(stream, blocks, sample_rate, show, heard)
    except KeyboardInterrupt:
        if source == STANDARD_INPUT:
            raise
        # For a microphone it is the way to stop.
    finally:
        if not as_json:
            emit("".join(f"{event.text}\n" for event in heard.finals))


@contextmanager
def _blocks(source: str | None, sample_rate: int) -> Iterator[Iterator["Samples"]]:
    if source == STANDARD_INPUT:
        yield _standard_input(sample_rate)
    else:
        with _microphone(source, sample_rate) as blocks:
            yield blocks


def _standard_input(sample_rate: int) -> Iterator["Samples"]:
    """Raw samples as they come; half a sample at the end is dropped.

    Raises AudioDecodeError for a file with a header, which would be heard as noise at any rate.
    """
    import numpy as np

    size = 2 * round(BLOCK_SECONDS * sample_rate)
    rest = b""
    first = True
    # `read1` returns what a pipe has now, where `read` would wait for a full block.
    stdin = cast("BufferedReader", sys.stdin.buffer)
    while data := stdin.read1(size):
        data = rest + data
        if first and data.startswith(CONTAINERS):
            raise AudioDecodeError(
                "standard input is an audio file, where raw samples are expected: "
                "`pianissimo transcribe --stream -` reads files, ffmpeg's `-f s16le` writes samples"
            )
        first = False
        even = len(data) // 2 * 2
        rest = data[even:]
        yield np.frombuffer(data[:even], "<i2").astype(np.float32) / np.float32(32768)


@contextmanager
def _microphone(source: str | None, sample_rate: int) -> Iterator[Iterator["Samples"]]:
    sounddevice = _sounddevice()
    waiting: queue.Queue[Samples] = queue.Queue(BLOCKS_WAITING)

    def take(samples: Any, frames: int, time: Any, status: Any) -> None:
        if status:
            say(f"the microphone says: {status}")
        try:
            waiting.put_nowait(samples[:, 0].copy())
        except queue.Full:
            say("the recognizer is too slow for this machine: sound was lost; try --dtype int8")

    try:
        stream = sounddevice.InputStream(
            device=int(source) if source and source.isdigit() else source,
            samplerate=sample_rate,
            blocksize=round(BLOCK_SECONDS * sample_rate),
            channels=1,
            dtype="float32",
            callback=take,
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioNotFoundError(
            f"{'the default microphone' if source is None else repr(source)} cannot be opened "
            f"({error}); `pianissimo listen --list` shows what there is"
        ) from error

    def blocks() -> Iterator["Samples"]:
        while True:
            yield waiting.get()

    with stream:
        yield blocks()


def _microphones() -> list[tuple[int, str]]:
    """Number and name of every device that records; AudioNotFoundError if there is none."""
    devices = _sounddevice().query_devices()
    found = [(i, d["name"]) for i, d in enumerate(devices) if d["max_input_channels"] > 0]
    if not found:
        raise AudioNotFoundError(
            "there is no microphone here; plug one in, or pipe samples into `pianissimo listen -`"
        )
    return found


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError(
            "a microphone needs the sounddevice package: pip install 'pianissimo[mic]'"
        ) from error
    except OSError as error:  # the package is there, its library is not
        raise MissingExtraError(
            f"{error}: install PortAudio (on Debian: apt install libportaudio2)"
        ) from error
    return sounddevice
