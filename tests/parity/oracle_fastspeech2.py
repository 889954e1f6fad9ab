"""Transformers as oracle for FastSpeech2Conformer and HiFi-GAN: tiny random models, their numbers.

    .venv-parity/bin/python tests/parity/oracle_fastspeech2.py [OUT]

writes `golden_fastspeech2/` with the installed Transformers. For each variant there is a folder as
Transformers saves it and VARIANT.npz with the arrays

    ids (T,)   durations (T,)   mel (F, M)   wave (N,)
    slow_mel (F, M)     with `speaking_speed` 2, which is half our speed

`test_golden_fastspeech2.py` compares ours without needing Transformers. Weights are drawn from a
random generator; nothing was trained or taken from a published model.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    FastSpeech2ConformerConfig,
    FastSpeech2ConformerHifiGanConfig,
    FastSpeech2ConformerWithHifiGan,
    FastSpeech2ConformerWithHifiGanConfig,
)

OUT = Path(__file__).resolve().parent / "golden_fastspeech2"
SYMBOLS = "<blank> <unk> HH AH0 L OW1 W ER1 D EH1 S T IY0 N M AE1 K , . ? ! ... <sos/eos>".split()
MELS, SEED, PHONEMES = 8, 20261201, 13
DURATION_BIAS, LEVEL = 1.2, 4.0


def model(normalize_before: bool, seed: int) -> FastSpeech2ConformerWithHifiGan:
    """All parameters and statistics random, durations above 0, and samples that are not tiny."""
    acoustic = FastSpeech2ConformerConfig(
        hidden_size=16,
        vocab_size=len(SYMBOLS),
        num_mel_bins=MELS,
        encoder_layers=2,
        decoder_layers=1,
        encoder_linear_units=24,
        decoder_linear_units=20,
        decoder_kernel_size=9,
        speech_decoder_postnet_layers=3,
        speech_decoder_postnet_units=12,
        duration_predictor_channels=12,
        pitch_predictor_layers=3,
        pitch_predictor_channels=10,
        energy_predictor_channels=8,
        encoder_normalize_before=normalize_before,
        decoder_normalize_before=normalize_before,
    )
    vocoder = FastSpeech2ConformerHifiGanConfig(
        model_in_dim=MELS,
        upsample_initial_channel=16,
        upsample_rates=[8, 4, 2],
        upsample_kernel_sizes=[16, 8, 4],
        resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1, 3, 5], [1, 2]],
        normalize_before=normalize_before,
    )
    torch.manual_seed(seed)
    made = FastSpeech2ConformerWithHifiGan(
        FastSpeech2ConformerWithHifiGanConfig(
            model_config=acoustic.to_dict(), vocoder_config=vocoder.to_dict()
        )
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(made.state_dict().items()):
        if name.endswith(("running_var", "scale")):
            tensor.add_(0.5 * torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    made.model.duration_predictor.linear.bias.fill_(DURATION_BIAS)
    made.vocoder.conv_post.weight.mul_(LEVEL)
    return made


@torch.no_grad()
def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    shutil.rmtree(out, ignore_errors=True)
    for number, (name, normalize_before) in enumerate((("post_norm", False), ("pre_norm", True))):
        made = model(normalize_before, SEED + number)
        ids = torch.randint(
            2, len(SYMBOLS), (PHONEMES,), generator=torch.Generator().manual_seed(number)
        )
        plain = made(ids[None], return_dict=True)
        made.model.config.speaking_speed = 2.0
        slow = made.model(ids[None], return_dict=True)
        made.model.config.speaking_speed = 1.0
        wave = plain.waveform.flatten()
        assert plain.duration_outputs.sum() > 20 and 0.05 < wave.abs().max() < 0.99, "change a seed"
        folder = out / name
        made.save_pretrained(folder)
        vocabulary = {symbol: id for id, symbol in enumerate(SYMBOLS)}
        (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        arrays = {
            "ids": ids,
            "durations": plain.duration_outputs[0],
            "mel": plain.spectrogram[0],
            "wave": wave,
            "slow_mel": slow.spectrogram[0],
        }
        for path in folder.iterdir():
            path.chmod(0o644)
        np.savez(out / f"{name}.npz", **{key: value.numpy() for key, value in arrays.items()})
    (out / "README.md").write_text(
        "# Golden files of FastSpeech2Conformer\n\nMade by `oracle_fastspeech2.py`, never by hand, "
        f"with Transformers {transformers.__version__} and torch {torch.__version__}.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
