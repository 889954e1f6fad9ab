"""NeMo as oracle for streaming Sortformer: a tiny random model and its numbers.

    .venv-parity/bin/python tests/parity/oracle_sortformer.py [OUT]

writes `golden_diarizers/sortformer.nemo` and `sortformer.npz`; for the environment see
`requirements.txt`.

    live/C-R-F-U/T (T', S)   probabilities of `mel(T, F, seed=T)` in steps of C encoder frames with
                             R of look-ahead, a queue of F frames and an update period of U

NeMo's update for rows of unequal length (`async_streaming`) differs from this one: it never
estimates the probabilities of cached frames again, as the other one and Transformers do before the
cache is full for the first time. It is not compared.

Frames of equal score are in no defined order in `torch.topk`: here the earlier one is first, as in
this package. Weights are drawn from a random generator; nothing was taken from a published model.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.collections.asr.models import SortformerEncLabelModel
from omegaconf import OmegaConf
from oracle_common import randomise
from parity_inputs import SAMPLE_RATE, mel
from torch import Tensor

OUT = Path(__file__).resolve().parent / "golden_diarizers"
MELS, SPEAKERS, WIDTH, NARROW, SEED = 16, 3, 16, 12, 7
SIZES = ((12, 1, 12, 12), (6, 7, 18, 14), (3, 1, 18, 14), (10, 4, 0, 10))
LENGTHS = (1, 7, 8, 9, 80, 1203)


def in_order(
    values: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Tensor, Tensor]:
    """`torch.topk` with the earlier of equal values first."""
    assert largest
    ordered, indices = values.sort(dim=dim, descending=True, stable=True)
    return ordered.narrow(dim, 0, k), indices.narrow(dim, 0, k)


def config() -> dict[str, Any]:
    """The sections and keys of the published training configuration, with small sizes."""
    modules = "nemo.collections.asr.modules"
    return {
        "sample_rate": SAMPLE_RATE,
        "pil_weight": 0.5,
        "ats_weight": 0.5,
        "max_num_of_spks": SPEAKERS,
        "streaming_mode": True,
        "model_defaults": {"fc_d_model": WIDTH, "tf_d_model": NARROW},
        "preprocessor": {
            "_target_": f"{modules}.AudioToMelSpectrogramPreprocessor",
            "normalize": "NA",
            "window_size": 0.025,
            "sample_rate": SAMPLE_RATE,
            "window_stride": 0.01,
            "window": "hann",
            "features": MELS,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 1e-5,
        },
        "sortformer_modules": {
            "_target_": f"{modules}.sortformer_modules.SortformerModules",
            "num_spks": SPEAKERS,
            "dropout_rate": 0.5,
            "fc_d_model": WIDTH,
            "tf_d_model": NARROW,
            "spkcache_len": 24,
            "fifo_len": 0,
            "chunk_len": 12,
            "spkcache_update_period": 12,
            "chunk_left_context": 1,
            "chunk_right_context": 1,
            "spkcache_sil_frames_per_spk": 3,
            "scores_add_rnd": 0,
            "pred_score_threshold": 0.25,
            "max_index": 99999,
            "scores_boost_latest": 0.05,
            "sil_threshold": 0.2,
            "strong_boost_rate": 0.75,
            "weak_boost_rate": 1.5,
            "min_pos_scores_rate": 0.5,
            "causal_attn_rate": 0.5,
            "causal_attn_rc": 7,
        },
        "encoder": {
            "_target_": f"{modules}.ConformerEncoder",
            "feat_in": MELS,
            "feat_out": -1,
            "n_layers": 2,
            "d_model": WIDTH,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": 8,
            "causal_downsampling": False,
            "ff_expansion_factor": 2,
            "self_attention_model": "rel_pos",
            "n_heads": 4,
            "att_context_size": [-1, -1],
            "att_context_style": "regular",
            "xscaling": True,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": 9,
            "conv_norm_type": "batch_norm",
            "conv_context_size": None,
            "dropout": 0.1,
            "dropout_pre_encoder": 0.1,
            "dropout_emb": 0.0,
            "dropout_att": 0.1,
        },
        "transformer_encoder": {
            "_target_": f"{modules}.transformer.transformer_encoders.TransformerEncoder",
            "num_layers": 2,
            "hidden_size": NARROW,
            "inner_size": 24,
            "num_attention_heads": 3,
            "attn_score_dropout": 0.5,
            "attn_layer_dropout": 0.5,
            "ffn_dropout": 0.5,
            "hidden_act": "relu",
            "pre_ln": False,
            "pre_ln_final_layer_norm": True,
        },
        "loss": {
            "_target_": "nemo.collections.asr.losses.bce_loss.BCELoss",
            "weight": None,
            "reduction": "mean",
        },
    }


def spread(model: Any) -> None:
    """Rescale the last layer, so that every speaker speaks in some frames and not in others."""
    frames = torch.from_numpy(mel(800, MELS, seed=3)).T[None]
    head = model.sortformer_modules.single_hidden_to_spks
    seen: list[Tensor] = []
    hook = head.register_forward_hook(lambda _, __, out: seen.append(out[0]))
    encoded, lengths = model.frontend_encoder(frames, torch.tensor([800]))
    model.forward_infer(encoded, lengths)
    hook.remove()
    [logits] = seen
    scale = 3.0 / logits.std(0)
    bias = (head.bias - logits.mean(0)) * scale - 0.7
    head.weight.copy_((head.weight * scale[:, None]).bfloat16().float())
    head.bias.copy_(bias.bfloat16().float())


def streamed(model: Any, frames: Tensor, sizes: tuple[int, int, int, int]) -> Tensor:
    modules = model.sortformer_modules
    modules.chunk_len, modules.chunk_right_context, modules.fifo_len = sizes[:3]
    modules.spkcache_update_period = sizes[3]
    return model.forward_streaming(frames.T[None], torch.tensor([len(frames)]))[0]


@torch.no_grad()
def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    torch.topk = in_order
    made = SortformerEncLabelModel(OmegaConf.create(config())).eval()
    randomise(made, SEED)
    spread(made)
    outputs: dict[str, Tensor] = {}
    for sizes in SIZES:
        for length in LENGTHS if sizes is SIZES[0] else LENGTHS[-1:]:
            frames = torch.from_numpy(mel(length, MELS, seed=length))
            key = f"live/{'-'.join(map(str, sizes))}/{length}"
            outputs[key] = streamed(made, frames, sizes)
    made.save_to(str(out / "sortformer.nemo"))
    np.savez_compressed(out / "sortformer.npz", **{k: v.numpy() for k, v in outputs.items()})
    versions = {name: version(name) for name in ("nemo_toolkit", "torch")}
    (out / "sortformer.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    main()
