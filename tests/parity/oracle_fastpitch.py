"""NeMo as oracle for FastPitch and its HiFi-GAN: a tiny random voice and its numbers.

    .venv-parity/bin/python tests/parity/oracle_fastpitch.py [OUT]

writes `golden_fastpitch/`: `fastpitch.nemo` and `hifigan.nemo` as NeMo saves them, and `golden.npz`
with the arrays

    ids (T,)   tokens (T,) as text   durations (T,)   mel (F, M)   wave (N,)
    slow_mel (F, M) at half the pace     vocabulary, all tokens in order

`test_golden_fastpitch.py` compares ours without needing NeMo. Weights are drawn from a random
generator; nothing was trained or taken from a published model.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import nemo
import numpy as np
import torch
from nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers import (
    EnglishPhonemesTokenizer,
)
from nemo.collections.tts.models import FastPitchModel, HifiGanModel
from omegaconf import OmegaConf

OUT = Path(__file__).resolve().parent / "golden_fastpitch"
MELS, WIDTH, RATE, SEED = 8, 16, 22_050, 20261202
DURATION_BIAS, LEVEL = 1.4, 0.4
MODULES = "nemo.collections.tts.modules"
TEXT = {
    "punct": True,
    "stresses": True,
    "chars": True,
    "apostrophe": True,
    "pad_with_space": True,
    "add_blank_at": True,
}


def without_dictionary(model: FastPitchModel, _: Any) -> None:
    """The tokenizer alone: the reader of the dictionary needs packages that are not installed."""
    model.vocab = EnglishPhonemesTokenizer(None, **TEXT)


def preprocessor(**own: Any) -> dict[str, Any]:
    return {
        **own,
        "sample_rate": RATE,
        "n_window_size": 256,
        "n_window_stride": 64,
        "n_fft": 256,
        "lowfreq": 0,
        "highfreq": 8000,
        "mag_power": 1.0,
        "dither": 0.0,
        "normalize": None,
        "preemph": None,
        "log_zero_guard_type": "add",
        "log_zero_guard_value": 1e-05,
        "pad_to": 1,
        "pad_value": 0,
    }


def transformer(kind: str, layers: int) -> dict[str, Any]:
    return {
        "_target_": f"{MODULES}.transformer.{kind}",
        "n_layer": layers,
        "n_head": 2,
        "d_model": WIDTH,
        "d_head": 6,
        "d_inner": 24,
        "kernel_size": 3,
        "dropout": 0.1,
        "dropatt": 0.1,
        "dropemb": 0.0,
    }


def predictor(filters: int, layers: int) -> dict[str, Any]:
    return {
        "_target_": f"{MODULES}.fastpitch.TemporalPredictor",
        "input_size": WIDTH,
        "kernel_size": 3,
        "filter_size": filters,
        "dropout": 0.1,
        "n_layers": layers,
    }


def fastpitch_config() -> Any:
    dataset = {"dataset": {"_target_": "nemo.collections.tts.data.dataset.TTSDataset"}}
    return OmegaConf.create(
        {
            "learn_alignment": True,
            "n_speakers": 1,
            "n_mel_channels": MELS,
            "symbols_embedding_dim": WIDTH,
            "pitch_embedding_kernel_size": 3,
            "max_token_duration": 75,
            "sample_rate": RATE,
            "train_ds": {**dataset, "defer_setup": True},
            "text_tokenizer": {
                "_target_": "nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers."
                "EnglishPhonemesTokenizer",
                **TEXT,
                "g2p": {"_target_": "nemo.collections.tts.g2p.models.en_us_arpabet.EnglishG2p"},
            },
            "preprocessor": preprocessor(
                _target_="nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
                features=MELS,
                window_size=False,
                window_stride=False,
            ),
            "alignment_module": {
                "_target_": f"{MODULES}.aligner.AlignmentEncoder",
                "n_text_channels": WIDTH,
                "n_mel_channels": MELS,
            },
            "input_fft": transformer("FFTransformerEncoder", 2),
            "output_fft": transformer("FFTransformerDecoder", 1),
            "duration_predictor": predictor(12, 2),
            "pitch_predictor": predictor(10, 3),
        }
    )


def hifigan_config() -> Any:
    dataset = {"dataset": {"_target_": "nemo.collections.tts.data.dataset.VocoderDataset"}}
    return OmegaConf.create(
        {
            "train_ds": {**dataset, "defer_setup": True},
            "preprocessor": preprocessor(
                _target_="nemo.collections.asr.parts.preprocessing.features.FilterbankFeatures",
                nfilt=MELS,
                exact_pad=True,
                use_grads=False,
            ),
            "debug": True,
            "generator": {
                "_target_": f"{MODULES}.hifigan_modules.Generator",
                "resblock": 1,
                "upsample_rates": [8, 4, 2],
                "upsample_kernel_sizes": [16, 8, 4],
                "upsample_initial_channel": 16,
                "resblock_kernel_sizes": [3, 7],
                "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 3]],
                "initial_input_size": MELS,
            },
        }
    )


def randomize(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, tensor in sorted(module.named_parameters()):
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))


@torch.no_grad()
def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    torch.manual_seed(SEED)
    FastPitchModel._setup_tokenizer = without_dictionary
    acoustic = FastPitchModel(fastpitch_config()).eval()
    acoustic.aligner = acoustic.fastpitch.aligner = None  # only training needs it
    vocoder = HifiGanModel(hifigan_config()).eval()
    vocoder.mpd = vocoder.msd = None  # only training needs the discriminators
    randomize(acoustic, SEED)
    randomize(vocoder.generator, SEED + 1)
    acoustic.fastpitch.duration_predictor.fc.bias.fill_(DURATION_BIAS)
    symbols = ["HH", "AH0", "L", "OW1", ",", " ", "W", "ER1", "L", "D", "!", " ", "IY0"]
    ids = torch.tensor(acoustic.vocab.encode_from_g2p(symbols))
    given: dict[str, Any] = {"text": ids[None], "durs": None, "pitch": None}
    spectrogram, _, durations, *_ = acoustic.fastpitch(**given)
    slow, *_ = acoustic.fastpitch(**given, pace=0.5)
    last = vocoder.generator.conv_post
    peak = vocoder.convert_spectrogram_to_audio(spec=spectrogram).abs().max()
    for parameter in (last.weight_g, last.bias):
        parameter.mul_(LEVEL / peak)
    wave = vocoder.convert_spectrogram_to_audio(spec=spectrogram)[0]
    durations = torch.floor(durations[0] + 0.5)
    print("frames", durations.sum().item(), "peak", wave.abs().max().item())
    assert durations.sum() > 20 and 0.05 < wave.abs().max() < 0.99, "change a seed"
    acoustic.save_to(str(out / "fastpitch.nemo"))
    vocoder.save_to(str(out / "hifigan.nemo"))
    arrays = {
        "ids": ids,
        "durations": durations,
        "mel": spectrogram[0].T,
        "wave": wave,
        "slow_mel": slow[0].T,
    }
    tokens = np.array([acoustic.vocab.tokens[id] for id in ids])
    vocabulary = np.array(acoustic.vocab.tokens)
    np.savez(
        out / "golden.npz",
        tokens=tokens,
        vocabulary=vocabulary,
        **{name: value.numpy() for name, value in arrays.items()},
    )
    (out / "README.md").write_text(
        "# Golden files of FastPitch\n\nMade by `oracle_fastpitch.py`, never by hand, with NeMo "
        f"{nemo.__version__} and torch {torch.__version__}.\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
