"""Convert the voice encoder of Resemblyzer to the speaker encoder of this package.

    pip download --no-deps resemblyzer==0.1.4
    unzip Resemblyzer-0.1.4-py3-none-any.whl
    python recipes/speaker_encoder.py resemblyzer/pretrained.pt pianissimo/assets/speaker-encoder

The weights are stored in half precision; nothing is trained. The optimizer's state and the scale of
the training loss are left out.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from pianissimo.models.speaker_encoder import (
    FORMAT,
    SpeakerEncoder,
    SpeakerEncoderConfig,
    load_speaker_encoder,
)


def main(source: Path, folder: Path) -> None:
    stored = torch.load(source, map_location="cpu", weights_only=True)["model_state"]
    weights = {name: t.half() for name, t in stored.items() if not name.startswith("similarity_")}
    assert weights.keys() == SpeakerEncoder().state_dict().keys()
    folder.mkdir(parents=True, exist_ok=True)
    config = {"format": FORMAT, **asdict(SpeakerEncoderConfig())}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights, folder / "model.safetensors")
    count = sum(parameter.numel() for parameter in load_speaker_encoder(folder).parameters())
    print(f"{count} parameters in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
