"""The source of turns for what a caller asks."""

from pianissimo.diarization.channels import ChannelTurns
from pianissimo.diarization.options import Diarization, TurnSource
from pianissimo.diarization.voices import VoiceTurns


def turn_source(options: Diarization) -> TurnSource:
    """A source for one recording; raises what reading the known voices raises."""
    return ChannelTurns() if options.by == "channels" else VoiceTurns(options)
