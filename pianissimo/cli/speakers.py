"""`--diarize`, `--channels` and what belongs to them: who speaks when."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pianissimo.errors import OptionError

if TYPE_CHECKING:
    from pianissimo.diarization.options import Diarization


@dataclass(frozen=True)
class SpeakerOptions:
    """How speakers are told apart, if they are."""

    diarize: Annotated[
        bool, typer.Option("--diarize", help="Tell speakers apart by their voices.")
    ] = False
    speakers: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN-MAX",
            help="Number of speakers, if known; implies --diarize [default: found from the audio].",
        ),
    ] = None
    known_speaker: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Name speakers by a recording of 2 to 10 s; repeatable, implies --diarize.",
        ),
    ] = None
    channels: Annotated[
        bool,
        typer.Option("--channels", help="Take each channel as one speaker (call recordings)."),
    ] = False

    @property
    def diarization(self) -> "Diarization | None":
        """What is requested, None without speakers; OptionError for what does not fit together."""
        if not (self.diarize or self.channels or self.speakers is not None or self.known_speaker):
            return None
        from pianissimo.diarization.options import Diarization, parse_speakers

        if self.channels and (self.diarize or self.speakers is not None or self.known_speaker):
            raise OptionError(
                "--channels takes each channel as one speaker; remove --diarize, --speakers and "
                "--known-speaker, or --channels"
            )
        voices = {}
        for item in self.known_speaker or ():
            name, equals, path = item.partition("=")
            if not (name.strip() and equals and path):
                raise OptionError(f"--known-speaker is NAME=FILE, not {item!r}")
            voices[name.strip()] = path
        speakers = None if self.speakers is None else parse_speakers(self.speakers)
        return Diarization("channels" if self.channels else "voices", speakers, voices)
