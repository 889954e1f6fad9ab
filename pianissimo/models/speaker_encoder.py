"""The speaker encoder: a stretch of speech to a unit vector that is alike for the same voice.

Generalized end-to-end training (Wan et al. 2018, https://arxiv.org/abs/1710.10467), in the form of
Resemblyzer: three LSTM layers over mel power, the last hidden state through a linear layer and a
ReLU, then unit length. All values are 0 or more, so the cosine of two vectors lies in [0, 1], and
different voices still have 0.5 to 0.7.

Shape legend: B batch, N samples, T mel frames, F mel bins, D width of the embedding.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pianissimo.audio.whisper_features import HOP, WINDOW, mel_filters
from pianissimo.errors import CheckpointError
from pianissimo.models.checkpoints.config_json import read_json

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "speaker-encoder"
"""The weights that come with the package."""
FORMAT = "speaker-encoder"
LEVEL = 10 ** (-30 / 20)
"""RMS to which speech is scaled: the features are linear, so the level matters."""
_SILENT_POWER = 1e-12


@dataclass(frozen=True)
class SpeakerEncoderConfig:
    """Sizes of the network."""

    n_mels: int = 40
    hidden: int = 256
    layers: int = 3
    dim: int = 256


class SpeakerEncoder(nn.Module):
    """Waveforms to embeddings; holds weights only."""

    filters: Tensor

    def __init__(self, config: SpeakerEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or SpeakerEncoderConfig()
        self.lstm = nn.LSTM(
            self.config.n_mels, self.config.hidden, self.config.layers, batch_first=True
        )
        self.linear = nn.Linear(self.config.hidden, self.config.dim)
        self.register_buffer("filters", mel_filters(self.config.n_mels), persistent=False)

    def features(self, samples: Tensor) -> Tensor:
        """(B, N) float32 samples at 16 kHz -> (B, N // 160 + 1, F) mel power at `LEVEL`.

        Frames of 25 ms every 10 ms, centered, with zeros outside.
        """
        window = torch.hann_window(WINDOW, device=samples.device)
        spectrum = torch.stft(
            samples, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True
        )
        power = (self.filters @ torch.view_as_real(spectrum).pow(2).sum(-1)).transpose(1, 2)
        level = samples.pow(2).mean(1).clamp(min=_SILENT_POWER)
        return power * (LEVEL**2 / level)[:, None, None]

    def forward(self, mel: Tensor) -> Tensor:
        """(B, T, F) mel power -> (B, D) vectors of unit length."""
        _, (hidden, _) = self.lstm(mel)
        vectors = self.linear(hidden[-1]).relu()
        return nn.functional.normalize(vectors, dim=1)


def load_speaker_encoder(folder: Path = ASSETS) -> SpeakerEncoder:
    """The network of a folder with config.json and model.safetensors, in float32, for inference.

    Raises CheckpointError if the folder holds anything else.
    """
    data = read_json(folder / "config.json")
    names = asdict(SpeakerEncoderConfig()).keys()
    sizes = {name: data.get(name) for name in names}
    if data.get("format") != FORMAT or any(
        not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 4096
        for size in sizes.values()
    ):
        raise CheckpointError(
            f"{folder / 'config.json'} is not the configuration of a speaker encoder: expected "
            f"format {FORMAT!r} and the sizes {', '.join(names)}"
        )
    model = SpeakerEncoder(SpeakerEncoderConfig(**sizes))  # type: ignore[arg-type]
    try:
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / 'model.safetensors'} does not hold this speaker encoder: {error}"
        ) from error
    return model.requires_grad_(False).eval()
