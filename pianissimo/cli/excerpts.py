"""`--start` and `--duration`: a part of each recording, with times of the whole recording."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from pianissimo.errors import OptionError
from pianissimo.transcript import Segment, StreamEvent, Transcript, Word

if TYPE_CHECKING:
    from pianissimo.audio.io import AudioSource


def seconds_of(option: str, text: str) -> float:
    """ "1:02.5" -> 62.5; OptionError unless it is seconds, MM:SS or HH:MM:SS."""
    if not re.fullmatch(r"(\d+:){0,2}\d+(\.\d*)?", text):
        raise OptionError(f"{option} must be seconds or [HH:]MM:SS, but is {text!r}")
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


@dataclass(frozen=True)
class ExcerptOptions:
    """Which part of each recording is transcribed."""

    start: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Start at TIME: seconds or [HH:]MM:SS [default: 0]."),
    ] = None
    duration: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Transcribe only TIME of audio [default: to the end]."),
    ] = None

    track: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Transcribe sound track N of videos [default: the main one]."
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.duration is not None and not seconds_of("--duration", self.duration):
            raise OptionError("--duration must be above 0")
        seconds_of("--start", self.start or "0")

    @property
    def start_seconds(self) -> float:
        """Seconds before the excerpt."""
        return 0.0 if self.start is None else seconds_of("--start", self.start)

    def source(self, given: "AudioSource") -> "AudioSource":
        """The recording, or the requested part of it; OptionError if it is a part already."""
        if self.start is None and self.duration is None and self.track is None:
            return given
        from pianissimo.audio.io import Excerpt

        if isinstance(given, Excerpt):
            raise OptionError(
                "the manifest selects parts of recordings; leave out --start, --duration, --track"
            )
        seconds = None if self.duration is None else seconds_of("--duration", self.duration)
        return Excerpt(given, self.start_seconds, seconds, self.track)

    def place(self, transcript: Transcript) -> Transcript:
        """A transcript of the excerpt with times of the recording; its duration stays."""
        if not self.start_seconds:
            return transcript
        segments = tuple(
            Segment(
                segment.text,
                *self._later(segment.start, segment.end),
                self._words(segment.words),
                segment.confidence,
            )
            for segment in transcript.segments
        )
        return replace(transcript, segments=segments, words=self._words(transcript.words))

    def place_event(self, event: StreamEvent) -> StreamEvent:
        """An event of the excerpt with times of the recording."""
        if not self.start_seconds:
            return event
        start, end = self._later(event.start, event.end)
        return replace(event, start=start, end=end, words=self._words(event.words))

    def _words(self, words: Iterable[Word]) -> tuple[Word, ...]:
        return tuple(
            Word(word.text, *self._later(word.start, word.end), word.confidence) for word in words
        )

    def _later(self, start: float, end: float) -> tuple[float, float]:
        return round(start + self.start_seconds, 6), round(end + self.start_seconds, 6)


WHOLE = ExcerptOptions()
