"""From a name or a folder to a voice."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pianissimo.errors import CheckpointError, ModelNotFoundError
from pianissimo.zoo.folder import models_folder

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

    FOLDER/SPEAKER is one speaker of a folder of sherpa-onnx, by name or number. `device` is "auto",
    "cpu", "cuda" or "cuda:N"; the default voices and those of sherpa-onnx always run on the CPU.
    Nothing is downloaded. Raises MissingExtraError, ModelNotFoundError or CheckpointError.
    """
    from pianissimo.synthesis.hibari import HibariSynthesizer, hibari_voices
    from pianissimo.synthesis.sherpa import SherpaSynthesizer, is_sherpa_voice

    name = DEFAULT_VOICE if voice is None else os.fspath(voice)
    if name == DEFAULT_VOICE or name in {known.name for known in hibari_voices()}:
        return HibariSynthesizer(name)
    folder = Path(name).expanduser()
    if not folder.is_dir() and (models_folder() / name).is_dir():
        folder = models_folder() / name
    if folder.is_dir() or folder.is_file():
        return _read(folder, device)
    if folder.parent.is_dir() and is_sherpa_voice(folder.parent):
        return SherpaSynthesizer(folder.parent, folder.name)
    raise ModelNotFoundError(
        f"unknown voice {name[:80]!r}; choose {', '.join(known.name for known in list_voices())}"
    )


def _read(folder: Path, device: str) -> "Synthesizer":
    """The voice in a folder or file, by its files or the family that its configuration names."""
    from pianissimo.models.checkpoints.config_json import read_json, shown
    from pianissimo.models.checkpoints.espnet import is_espnet
    from pianissimo.models.checkpoints.fastpitch import is_nemo_voice
    from pianissimo.models.checkpoints.fastspeech2 import MODEL_TYPES
    from pianissimo.synthesis.fastspeech2 import FastSpeech2Synthesizer
    from pianissimo.synthesis.sherpa import SherpaSynthesizer, is_sherpa_voice
    from pianissimo.zoo.load import choose_device

    if is_sherpa_voice(folder):
        return SherpaSynthesizer(folder)
    if is_nemo_voice(folder) or is_espnet(folder):
        return FastSpeech2Synthesizer(folder, choose_device(device))
    if folder.is_file():
        raise CheckpointError(
            f"{folder} is not a packed voice of ESPnet, a .nemo archive or a directory of a voice"
        )
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder} holds a model of the kind {shown(kind)}, which is no voice; known are "
            f"{', '.join(MODEL_TYPES)}"
        )
    return FastSpeech2Synthesizer(folder, choose_device(device))


def list_voices() -> list[VoiceInfo]:
    """The voices on this machine, the default first; none without the extra `tts`."""
    from pianissimo.synthesis.hibari import hibari_voices

    return [VoiceInfo(v.name, v.language) for v in hibari_voices() if v.installed]
