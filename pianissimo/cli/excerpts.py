"""`--start` and `--duration`: a part of each recording, with times of the whole recording."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from pianissimo.errors import OptionError
from pianissimo.text.turns import later
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
            replace(segment, **self._times(segment), words=self._words(segment.words))
            for segment in transcript.segments
        )
        turns = transcript.turns
        if turns is not None:
            turns = later(turns, self.start_seconds)
        words = self._words(transcript.words)
        return replace(transcript, segments=segments, words=words, turns=turns)

    def place_event(self, event: StreamEvent) -> StreamEvent:
        """An event of the excerpt with times of the recording."""
        if not self.start_seconds:
            return event
        return replace(event, **self._times(event), words=self._words(event.words))

    def _words(self, words: Iterable[Word]) -> tuple[Word, ...]:
        return tuple(replace(word, **self._times(word)) for word in words)

    def _times(self, part: Word | Segment | StreamEvent) -> "_Times":
        start, end = part.start + self.start_seconds, part.end + self.start_seconds
        return {"start": round(start, 6), "end": round(end, 6)}


class _Times(TypedDict):
    start: float
    end: float


WHOLE = ExcerptOptions()
