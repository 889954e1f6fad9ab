"""The source of turns for what a caller asks."""

from pianissimo.diarization.channels import ChannelTurns
from pianissimo.diarization.options import Diarization, LiveTurnSource, TurnSource
from pianissimo.diarization.voices import VoiceTurns


def turn_source(options: Diarization) -> TurnSource:
    """A source for one recording; raises what reading the model or the known voices raises."""
    if options.by == "channels":
        return ChannelTurns()
    if options.model is None:
        return VoiceTurns(options)
    from pianissimo.diarization.neural import ModelTurns, load_network

    network = load_network(str(options.model))
    return ModelTurns(network, network.offline)


def live_source(options: Diarization, *, keep: bool = True) -> LiveTurnSource:
    """A source for one live stream; without `keep` its memory is bounded, and so is `finish`.

    Raises OptionError for channels and for a latency that the model lacks, and what reading the
    model or the known voices raises.
    """
    if options.model is None or options.by == "channels":
        from pianissimo.diarization.live import LiveTurns

        return LiveTurns(options, keep=keep)
    from pianissimo.diarization.neural import ModelTurns, load_network
    from pianissimo.models.speaker_cache import sizes_for

    network = load_network(str(options.model))
    return ModelTurns(network, sizes_for(network, options.latency_ms), keep=keep)
