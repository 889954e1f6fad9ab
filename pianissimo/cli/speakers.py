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
            help="Name a speaker from a recording of 2 to 10 s; repeatable, implies --diarize.",
        ),
    ] = None
    channels: Annotated[
        bool,
        typer.Option("--channels", help="Treat each channel as one speaker (call recordings)."),
    ] = False
    diarize_model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Folder or .nemo file of Nemotron 3 Diarization or Sortformer, which also hear "
            "people who talk at once; implies --diarize [default: compare voices].",
        ),
    ] = None
    diarize_latency: Annotated[
        int | None,
        typer.Option(
            metavar="MS", help="With --diarize-model and --stream: latency of the speakers."
        ),
    ] = None

    @property
    def diarization(self) -> "Diarization | None":
        """What is requested, None without speakers; OptionError for what does not fit together."""
        asked = (self.diarize, self.channels, self.known_speaker, self.diarize_model)
        if not any(asked) and self.speakers is None and self.diarize_latency is None:
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
        return Diarization(
            "channels" if self.channels else "voices",
            speakers,
            voices,
            self.diarize_model,
            self.diarize_latency,
        )
