"""Transformers as oracle for Nemotron 3 Diarization: a tiny random model and its numbers.

    .venv-parity/bin/python tests/parity/oracle_nemotron_diarization.py [OUT]

writes `golden_diarizers/nemotron` and `nemotron.npz`, with the installed Transformers:

    samples (N,)   features (T, F)     of the processor, without its padding
    offline/T (T, S)                   probabilities of `mel(T, F, seed=T)`, a whole recording
    live/C-R/T (T, S)                  the same, in steps of C frames with R of look-ahead
    scores/I (n, S)   chosen/I (K,)    what a full cache keeps of random probabilities, and
    sizes (I, 3)                       its speakers, frames K and silent frames per speaker

Frames of equal score are in no defined order in `torch.topk`: here the earlier one is first, as in
this package. Weights are drawn from a random generator; nothing was taken from a published model.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from parity_inputs import mel, waveform
from torch import Tensor
from transformers import (
    Nemotron3DiarizationConfig,
    Nemotron3DiarizationForAudioFrameClassification,
    Nemotron3DiarizationProcessor,
    NemotronAsrStreamingFeatureExtractor,
)
from transformers.models.nemotron3_diarization.configuration_nemotron3_diarization import (
    Nemotron3DiarizationStreamingConfig,
)
from transformers.models.nemotron3_diarization.modeling_nemotron3_diarization import (
    Nemotron3DiarizationSpeakerCache,
)

OUT = Path(__file__).resolve().parent / "golden_diarizers"
MELS, SPEAKERS, FACTOR, SEED = 16, 3, 8, 20261201
LENGTHS = (1, 7, 8, 9, 80, 779, 2400)
LIVE_FRAMES, MODES = 1003, ((9, 4), (6, 2), (3, 1))
SAMPLES = 16_123


def in_order(values: Tensor, k: int, dim: int = -1, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """`torch.topk` with the earlier of equal values first."""
    ordered, indices = values.sort(dim=dim, descending=True, stable=True)
    return ordered.narrow(dim, 0, k), indices.narrow(dim, 0, k)


def model() -> Nemotron3DiarizationForAudioFrameClassification:
    """Random weights of which none is zero, and a cache that fills within seconds."""
    config = Nemotron3DiarizationConfig(
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_mel_bins": MELS,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        head_config={"hidden_size": 12, "num_speakers": SPEAKERS, "audio_hidden_size": 32},
        streaming_config={
            "num_speakers": SPEAKERS,
            "fifo_length": 6,
            "speaker_cache_update_period": 5,
            "speaker_cache_length": 18,
        },
        chunk_length=10,
        chunk_right_context=3,
        fifo_length=12,
        speaker_cache_update_period=8,
    )
    torch.manual_seed(SEED)
    made = Nemotron3DiarizationForAudioFrameClassification(config).eval()
    for parameter in made.parameters():
        parameter.copy_((parameter + 0.2 * torch.randn(parameter.shape)).bfloat16().float())
    return made


def live(
    made: Nemotron3DiarizationForAudioFrameClassification, frames: Tensor, chunk: int, ahead: int
) -> Tensor:
    """Step by step; look-ahead ends with the recording."""
    total, start, cache, parts = -(-len(frames) // FACTOR), 0, None, []
    while start < total:
        end = min(start + chunk, total)
        more = min(ahead, total - end)
        step = frames[None, start * FACTOR : (end + more) * FACTOR]
        found = made(step, speaker_cache=cache, num_lookahead_frames=more)
        cache, start = found.speaker_cache, end
        parts.append(found.logits[0].sigmoid())
    return torch.cat(parts)


def caches(outputs: dict[str, Tensor]) -> None:
    """What is kept of random probabilities, silence and overlap among them."""
    generator, sizes = torch.Generator().manual_seed(SEED), []
    for i in range(24):
        speakers, silent = 2 + i % 7, (1, 3)[i % 2]
        frames = (1 + silent) * speakers + int(torch.randint(0, 30, (1,), generator=generator))
        count = frames + int(torch.randint(1, 40, (1,), generator=generator))
        scores = torch.rand(count, speakers, generator=generator) ** (1, 3, 20)[i % 3]
        cache = Nemotron3DiarizationSpeakerCache(
            Nemotron3DiarizationStreamingConfig(
                num_speakers=speakers,
                speaker_cache_length=frames,
                speaker_cache_silence_frames_per_speaker=silent,
            )
        )
        numbers = torch.arange(count).float()[None, :, None]
        kept, _ = cache._compress(numbers, scores[None], torch.tensor([float(count)]))
        outputs[f"scores/{i}"], outputs[f"chosen/{i}"] = scores, kept[0, :, 0].long()
        sizes.append([speakers, frames, silent])
    outputs["sizes"] = torch.tensor(sizes)


@torch.no_grad()
def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    torch.topk = in_order
    folder = out / "nemotron"
    shutil.rmtree(folder, ignore_errors=True)
    made = model()
    processor = Nemotron3DiarizationProcessor(
        NemotronAsrStreamingFeatureExtractor(feature_size=MELS)
    )
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    samples = waveform(SAMPLES, seed=SEED)
    inputs = processor(samples, sampling_rate=16_000, return_tensors="pt")
    count = int(inputs["attention_mask"].sum())
    outputs = {"samples": torch.from_numpy(samples)}
    outputs["features"] = inputs["input_features"][0, :count]
    for length in LENGTHS:
        frames = torch.from_numpy(mel(length, MELS, seed=length))
        outputs[f"offline/{length}"] = made(frames[None]).logits[0].sigmoid()
    frames = torch.from_numpy(mel(LIVE_FRAMES, MELS, seed=LIVE_FRAMES))
    for chunk, ahead in MODES:
        outputs[f"live/{chunk}-{ahead}/{LIVE_FRAMES}"] = live(made, frames, chunk, ahead)
    caches(outputs)
    np.savez_compressed(out / "nemotron.npz", **{k: v.numpy() for k, v in outputs.items()})
    (out / "nemotron.json").write_text(
        json.dumps({"transformers": transformers.__version__, "torch": torch.__version__}) + "\n"
    )


if __name__ == "__main__":
    main()
