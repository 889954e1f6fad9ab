"""A recording or microphone through a live stream, with partial results shown as they arrive."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from pianissimo.cli.excerpts import WHOLE, ExcerptOptions
from pianissimo.cli.inputs import Input
from pianissimo.cli.output import emit, say
from pianissimo.transcript import Segment, StreamEvent, Transcript

if TYPE_CHECKING:
    from pianissimo.audio.io import Samples
    from pianissimo.audio.notes import Note
    from pianissimo.decoding.hotwords import Phrase
    from pianissimo.diarization.options import LiveTurnSource
    from pianissimo.protocols import Recognizer, Stream

BLOCK_SECONDS = 0.08
"""Audio per push: one encoder frame, as a microphone would deliver it."""
LINES_SHOWN = 4


class Show(Protocol):
    """Shows one event; `at` is the audio consumed until then, in seconds."""

    def __call__(self, event: StreamEvent, at: float) -> None: ...


@dataclass(frozen=True)
class Display:
    """How events are shown: as JSON lines, not at all, or for people."""

    json: bool = False
    quiet: bool = False


@dataclass
class Utterances:
    """The final results of a stream so far, and the seconds of audio they came from."""

    finals: list[StreamEvent] = field(default_factory=list)
    seconds: float = 0.0


def open_stream(
    recognizer: "Recognizer",
    *,
    latency_ms: int | None = None,
    partials: "Recognizer | None" = None,
    hotwords: "Sequence[Phrase]" = (),
    sample_rate: int = 16_000,
    second_pass: bool | None = None,
) -> "Stream":
    """A live stream; OptionError if the recognizer does not have what is requested."""
    return recognizer.stream(
        latency_ms=latency_ms,
        partials=partials,
        boost=hotwords or None,
        sample_rate=sample_rate,
        second_pass=second_pass,
    )


def transcribe_live(
    stream: "Stream",
    input: Input,
    said: Utterances,
    display: Display,
    excerpt: ExcerptOptions = WHOLE,
    turns: "LiveTurnSource | None" = None,
    *,
    realtime: bool = False,
    itn: str | None = None,
) -> "set[Note]":
    """Push a recording block by block; show every event and collect final results in `said`.

    `turns` gets the audio too, and final events have the speakers known by then. With `realtime` a
    block is pushed when its last sample would have been spoken. `itn` is the language in whose
    written form finals are. Returns what is worth telling about the recording.
    """
    from pianissimo.audio.io import SAMPLE_RATE, stream_audio

    notes: set[Note] = set()
    blocks: Iterable[Samples] = stream_audio(
        excerpt.source(input.source), block_seconds=BLOCK_SECONDS, notes=notes
    )
    if realtime:
        blocks = _paced(blocks, SAMPLE_RATE)
    with shown(input.name, display) as show:
        push_all(stream, blocks, SAMPLE_RATE, show, said, excerpt, turns, itn=itn)
    return notes


def push_all(
    stream: "Stream",
    blocks: Iterable["Samples"],
    sample_rate: int,
    show: Show,
    said: Utterances,
    excerpt: ExcerptOptions = WHOLE,
    turns: "LiveTurnSource | None" = None,
    *,
    itn: str | None = None,
) -> None:
    """Push blocks until they end; show every event and collect the finals that have text.

    On an interrupt the stream is finished and shown before KeyboardInterrupt is raised again.
    """
    samples = 0

    def accept(events: list[StreamEvent]) -> None:
        if turns is not None:
            events = [event.with_turns(turns.recent) for event in events]
        if itn is not None:
            events = [event.in_written_form(itn) for event in events]
        events = [excerpt.place_event(event) for event in events]
        said.finals += [event for event in events if event.type == "final" and event.text]
        for event in events:
            show(event, said.seconds)

    try:
        for block in blocks:
            samples += len(block)
            said.seconds = samples / sample_rate
            if turns is not None:
                turns.push(block)
            accept(stream.push(block))
    except KeyboardInterrupt:
        # The interrupt may have stopped a step halfway; finish then fails, or gives the rest.
        with suppress(Exception):
            accept(stream.finish())
        raise
    accept(stream.finish())


def _paced(blocks: Iterable["Samples"], sample_rate: int) -> Iterator["Samples"]:
    """Each block when its last sample would have been spoken."""
    began, samples = time.monotonic(), 0
    for block in blocks:
        samples += len(block)
        time.sleep(max(0.0, began + samples / sample_rate - time.monotonic()))
        yield block


def transcript_of(said: Utterances, recognizer: "Recognizer", word_timestamps: bool) -> Transcript:
    """The utterances of a stream as one transcript."""
    from pianissimo.text.words import joined, segments_from_words

    segments: list[Segment] = []
    for timed, group in groupby(said.finals, lambda event: bool(event.words)):
        if timed:
            segments += segments_from_words(word for event in group for word in event.words)
        else:
            segments += (Segment(event.text, event.start, event.end) for event in group)
    if not word_timestamps:
        segments = [replace(segment, words=()) for segment in segments]
    spoken = [event.text if event.lexical is None else event.lexical for event in said.finals]
    written = any(event.lexical is not None for event in said.finals)
    return Transcript(
        text=joined(event.text for event in said.finals),
        segments=tuple(segments),
        words=tuple(word for segment in segments for word in segment.words),
        language=recognizer.language,
        duration=said.seconds,
        model=recognizer.name,
        lexical=joined(spoken) if written else None,
    )


@contextmanager
def shown(name: str, display: Display) -> Iterator[Show]:
    """How to show events: as JSON lines, on a terminal's last lines, or line by line."""
    if display.json:
        yield lambda event, at: emit(_json_line(name, event, at))
    elif display.quiet:
        yield lambda event, at: None
    elif sys.stderr.isatty():
        with _live_line() as show:
            yield show
    else:
        yield _plain_line


def _json_line(name: str, event: StreamEvent, at: float) -> str:
    record = {"file": name, "at": round(at, 3), **asdict(event)}
    if event.lexical is None:
        del record["lexical"]
    return json.dumps(record, ensure_ascii=False) + "\n"


def _plain_line(event: StreamEvent, at: float) -> None:
    if event.type == "partial":
        say(f"[{at:6.2f} s] {event.text}")


@contextmanager
def _live_line() -> Iterator[Show]:
    """The latest words on the last lines of a terminal: final text bold, partial text dim."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    finals: list[str] = []
    # Cleared at the end if the text follows on the same screen; kept otherwise.
    live = Live(
        console=console,
        transient=sys.stdout.isatty(),
        redirect_stdout=False,
        redirect_stderr=False,
    )

    def show(event: StreamEvent, at: float) -> None:
        if event.type == "final":
            finals.append(event.text)
        final = " ".join(finals)
        partial = event.text if event.type == "partial" else ""
        text = Text.assemble((final, "bold"), " " if final and partial else "", (partial, "dim"))
        # Text beyond the screen would be cut at its end, where the latest words are.
        most = LINES_SHOWN * console.width
        live.update(text[-most:] if len(text) > most else text, refresh=True)

    with live:
        try:
            yield show
        except KeyboardInterrupt:
            live.transient = False
            raise
