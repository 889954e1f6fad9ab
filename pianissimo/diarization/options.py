"""What a caller asks of diarization, and the protocol that its sources implement."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pianissimo.errors import OptionError
from pianissimo.text.turns import Turn

if TYPE_CHECKING:
    from pianissimo.audio.io import AudioSource, Samples

MOST_SPEAKERS = 20
"""More people in one recording are not told apart."""

RECENT_TURNS = 128
"""Turns of a live stream that are enough for the words of one utterance."""

By = Literal["voices", "channels"]


@dataclass(frozen=True)
class Diarization:
    """How speakers are found: by their voices, or one per channel.

    `speakers` is the number of speakers, or its bounds as (fewest, most); None leaves it open.
    `voices` maps names to recordings of 2 to 10 s, or arrays (n,) of mono float32 at 16 kHz, so
    that speakers who match get these names. Both are for `by="voices"` only.

    `model` is a folder or file of a diarization network (Nemotron 3 Diarization, Sortformer 4spk),
    which finds the speakers and their number itself, also where they talk at once. Live, its
    speakers are at most `latency_ms` late, by default about 1000. Raises OptionError for values
    that make no sense.
    """

    by: By = "voices"
    speakers: int | tuple[int, int] | None = None
    voices: "Mapping[str, AudioSource | Samples]" = field(default_factory=dict)
    model: str | Path | None = None
    latency_ms: int | None = None

    def __post_init__(self) -> None:
        if self.by not in ("voices", "channels"):
            raise OptionError(f"speakers are found by voices or channels, not by {self.by!r}")
        if self.by == "channels" and (self.speakers is not None or self.voices):
            raise OptionError(
                "with channels each channel is one speaker; remove the number of speakers and the "
                "known voices, or find speakers by voices"
            )
        if self.model is not None and (
            self.by == "channels" or self.speakers is not None or self.voices
        ):
            raise OptionError(
                "a diarization model finds speakers and their number itself; remove channels, the "
                "number of speakers and the known voices, or the model"
            )
        if self.latency_ms is not None and self.model is None:
            raise OptionError("the latency of speakers is that of a diarization model; name one")
        fewest, most = self.bounds
        if not 1 <= fewest <= most <= MOST_SPEAKERS:
            raise OptionError(
                f"the number of speakers must be from 1 to {MOST_SPEAKERS}, or bounds in ascending "
                f"order, not {self.speakers!r}"
            )

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most speakers."""
        match self.speakers:
            case None:
                return 1, MOST_SPEAKERS
            case bool():
                raise OptionError("the number of speakers is a number, not true or false")
            case int(number):
                return number, number
            case (int(fewest), int(most)):
                return fewest, most
        raise OptionError(f"speakers must be a number or (fewest, most), not {self.speakers!r}")

    @classmethod
    def of(cls, asked: "bool | Diarization | None") -> "Diarization | None":
        """What `transcribe(diarize=...)` takes: True is by voices, False and None are off."""
        if isinstance(asked, Diarization):
            return asked
        if asked is None or isinstance(asked, bool):
            return cls() if asked else None
        raise OptionError(f"diarize is true, false or a Diarization, not {asked!r}")


def parse_speakers(text: str) -> int | tuple[int, int]:
    """ "3" -> 3, "2-4" -> (2, 4); OptionError for anything else."""
    match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", text.strip())
    if match is None:
        raise OptionError(f"the number of speakers is N or MIN-MAX, such as 3 or 2-4, not {text!r}")
    fewest, most = match.groups()
    return int(fewest) if most is None else (int(fewest), int(most))


class TurnSource(Protocol):
    """Finds the turns of one recording or stream while its audio passes."""

    def push(self, samples: "Samples") -> None:
        """Take the next samples of float32 at 16 kHz: (n,), of channels (n, channels)."""
        ...

    def finish(self) -> tuple[Turn, ...]:
        """The turns of everything that was pushed, in order of their start."""
        ...


class LiveTurnSource(TurnSource, Protocol):
    """A source whose turns are known while the audio passes."""

    @property
    def seconds(self) -> float:
        """The time before which every turn is known."""
        ...

    @property
    def recent(self) -> list[Turn]:
        """The last turns, enough for the words of one utterance; what is there never changes."""
        ...
