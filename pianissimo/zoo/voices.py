"""From a name or a folder to a voice."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pianissimo.errors import ModelNotFoundError

if TYPE_CHECKING:
    from pianissimo.protocols import Synthesizer

DEFAULT_VOICE = "heart"


@dataclass(frozen=True)
class VoiceInfo:
    """A voice that can be loaded by its name."""

    name: str
    language: str | None


def load_voice(
    voice: str | os.PathLike[str] | None = None, *, device: str = "auto"
) -> "Synthesizer":
    """A voice by its name or its folder; without `voice` the default one, American English.

    `device` is "auto", "cpu", "cuda" or "cuda:N"; the default voices always run on the CPU. Nothing
    is downloaded. Raises MissingExtraError, ModelNotFoundError or CheckpointError.
    """
    from pianissimo.synthesis.hibari import HibariSynthesizer, hibari_voices

    name = DEFAULT_VOICE if voice is None else os.fspath(voice)
    if name == DEFAULT_VOICE or name in {known.name for known in hibari_voices()}:
        return HibariSynthesizer(name)
    raise ModelNotFoundError(
        f"unknown voice {name[:80]!r}; choose {', '.join(known.name for known in list_voices())}"
    )


def list_voices() -> list[VoiceInfo]:
    """The voices on this machine, the default first; none without the extra `tts`."""
    from pianissimo.synthesis.hibari import hibari_voices

    return [VoiceInfo(v.name, v.language) for v in hibari_voices() if v.installed]
