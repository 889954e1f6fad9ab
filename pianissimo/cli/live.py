"""A recording through a live stream, its words shown as they arrive."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from pianissimo.cli.inputs import Input
from pianissimo.cli.output import emit, say
from pianissimo.transcript import Segment, StreamEvent, Transcript

if TYPE_CHECKING:
    from pianissimo.audio.io import Samples
    from pianissimo.decoding.hotwords import Phrase
    from pianissimo.protocols import Recognizer, Stream

BLOCK_SECONDS = 0.08
"""Audio that is pushed at once: one frame of the encoder, as a microphone would deliver it."""
LINES_SHOWN = 4


class Show(Protocol):
    """Shows one event; `at` is the audio heard until then, in seconds."""

    def __call__(self, event: StreamEvent, at: float) -> None: ...


@dataclass(frozen=True)
class LiveOptions:
    """How to stream and what to show.

    `latency_ms` None is the recognizer's own choice; with `realtime` a block is pushed when its
    last sample would have been spoken. `partials` is the model for words before a pause, where the
    recognizer itself gives none.
    """

    latency_ms: int | None = None
    partials: "Recognizer | None" = None
    word_timestamps: bool = True
    realtime: bool = False
    as_json: bool = False
    quiet: bool = False
    boost: "Sequence[Phrase]" = ()


def open_stream(
    recognizer: "Recognizer", options: LiveOptions, sample_rate: int | None = None
) -> "Stream":
    """A live stream with these options; OptionError if the recognizer does not have them."""
    given: dict[str, Any] = {"latency_ms": options.latency_ms, "partials": options.partials}
    if options.boost:
        given["boost"] = options.boost
    if sample_rate is not None:
        given["sample_rate"] = sample_rate
    return recognizer.stream(**{name: value for name, value in given.items() if value is not None})


def transcribe_live(
    recognizer: "Recognizer", input: Input, options: LiveOptions, heard: "Heard"
) -> None:
    """Feed a recording block by block to a stream; show every event, and keep it in `heard`.

    On an interrupt, what was said so far is shown as final before KeyboardInterrupt goes on.
    """
    from pianissimo.audio.io import SAMPLE_RATE, stream_audio

    blocks: Iterable[Samples] = stream_audio(input.name, block_seconds=BLOCK_SECONDS)
    if options.realtime:
        blocks = _paced(blocks, SAMPLE_RATE)
    stream = open_stream(recognizer, options)
    with shown(input.name, options) as show:
        hear(stream, blocks, SAMPLE_RATE, show, heard)


@dataclass
class Heard:
    """The utterances of a stream so far, and the audio they came from."""

    finals: list[StreamEvent] = field(default_factory=list)
    seconds: float = 0.0


def hear(
    stream: "Stream", blocks: Iterable["Samples"], sample_rate: int, show: Show, heard: Heard
) -> None:
    """Push blocks until they end; show every event and collect the finals that say something.

    On an interrupt the stream is finished and shown before KeyboardInterrupt goes on.
    """
    samples = 0

    def take(events: list[StreamEvent]) -> None:
        heard.finals += [event for event in events if event.type == "final" and event.text]
        for event in events:
            show(event, heard.seconds)

    try:
        for block in blocks:
            samples += len(block)
            heard.seconds = samples / sample_rate
            take(stream.push(block))
    except KeyboardInterrupt:
        # The interrupt may have hit the middle of a step: what can still be had, or nothing.
        with suppress(Exception):
            take(stream.finish())
        raise
    take(stream.finish())


def _paced(blocks: Iterable["Samples"], sample_rate: int) -> Iterator["Samples"]:
    """Each block when its last sample would have been spoken."""
    began, samples = time.monotonic(), 0
    for block in blocks:
        samples += len(block)
        time.sleep(max(0.0, began + samples / sample_rate - time.monotonic()))
        yield block


def transcript_of(heard: Heard, recognizer: "Recognizer", *, with_words: bool) -> Transcript:
    """The transcript that the utterances of a stream make together."""
    from pianissimo.text.words import joined, segments_from_words

    segments: list[Segment] = []
    for timed, group in groupby(heard.finals, lambda event: bool(event.words)):
        if timed:
            segments += segments_from_words(word for event in group for word in event.words)
        else:
            segments += (Segment(event.text, event.start, event.end) for event in group)
    if not with_words:
        segments = [replace(segment, words=()) for segment in segments]
    return Transcript(
        text=joined(event.text for event in heard.finals),
        segments=tuple(segments),
        words=tuple(word for segment in segments for word in segment.words),
        language=recognizer.language,
        duration=heard.seconds,
        model=recognizer.name,
    )


@contextmanager
def shown(name: str, options: LiveOptions) -> Iterator[Show]:
    """How events are shown: as JSON lines, on a terminal's last lines, or line by line."""
    if options.as_json:
        yield lambda event, at: emit(_json_line(name, event, at))
    elif options.quiet:
        yield lambda event, at: None
    elif sys.stderr.isatty():
        with _live_line() as show:
            yield show
    else:
        yield _plain_line


def _json_line(name: str, event: StreamEvent, at: float) -> str:
    record = {"file": name, "at": round(at, 3), **asdict(event)}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _plain_line(event: StreamEvent, at: float) -> None:
    if event.type == "partial":
        say(f"[{at:6.2f} s] {event.text}")


@contextmanager
def _live_line() -> Iterator[Show]:
    """The newest words at the bottom of a terminal, partial text dim, final text bold."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    said: list[str] = []
    # It is wiped where the text is about to follow on the same screen, and stays otherwise.
    live = Live(
        console=console,
        transient=sys.stdout.isatty(),
        redirect_stdout=False,
        redirect_stderr=False,
    )

    def show(event: StreamEvent, at: float) -> None:
        if event.type == "final":
            said.append(event.text)
        final = " ".join(said)
        partial = event.text if event.type == "partial" else ""
        text = Text.assemble((final, "bold"), " " if final and partial else "", (partial, "dim"))
        # What does not fit on a screen would be cut at the end, where the news are.
        most = LINES_SHOWN * console.width
        live.update(text[-most:] if len(text) > most else text, refresh=True)

    with live:
        try:
            yield show
        except KeyboardInterrupt:
            live.transient = False
            raise
