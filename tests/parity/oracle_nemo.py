"""NeMo as oracle: tiny random models, the `.nemo` files it writes and the numbers it computes.

Runs in the oracle environment (`requirements.txt`), never in ours:

    python oracle_nemo.py OUT [--plan golden|full] [--only VARIANT ...]

writes for each variant OUT/VARIANT.nemo, OUT/VARIANT.npz and OUT/VARIANT.json. All arrays are
batch first, time second. Keys (T mel frames, R lookahead, or "full" without limit, N samples):

    features/N            (frames, F)   of `waveform(N, seed=N)`, with NeMo's extra last frame
    features/batch        (B, T, F)     and features/batch_counts (B)
    subsampling/T         (T', D)       of `mel(T, F, seed=T)`
    subsampling/batch     (B, T', D)    of `mel_batch`, and subsampling/batch_counts (B)
    encoder/R/T           (T', D)       and encoder/R/batch, encoder/R/batch_counts
    prompted/T            (T', D)       the same through prompt 3, first lookahead
    stream/R/T            (T', D)       cache-aware streaming, the outputs of all chunks joined
    predictor/tokens      (B, U)        and predictor/out (B, U + 1, P), starting with the blank
    predictor/hidden      (L, B, P)     and predictor/cell: the state after the last token
    joiner/encoded        (T', D)       and joiner/logits (T', U + 1, V): with predictor/out[0]
    greedy/R/C/...        tokens, frames, score (and durations) of clip C of `clip_waveforms`
    greedy_max/...        clip 0, first lookahead, greedy_max/bias as the joiner's last bias
    confidence/METHOD     (U)           per token of clip 0, first lookahead
    ctc/R/C/...           log_probs (T', V), tokens, frames, score; ctc_confidence/METHOD
"""

import gzip
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import md5
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nemo.collections.asr import models
from nemo.collections.asr.models.rnnt_bpe_models_prompt import EncDecRNNTBPEModelWithPrompt
from nemo.utils import logging
from omegaconf import OmegaConf
from oracle_common import (
    WARM_UP,
    Outputs,
    RetryError,
    add_toggle,
    calibrate,
    check_margin,
    check_variety,
    clip_waveforms,
    first_good,
    mel_batch,
    parse_arguments,
    randomise,
    seeds_of,
    spread,
    spread_joiner,
    train_tokenizer,
    write_outputs,
)
from parity_inputs import SAMPLE_RATE, VOCABULARY, Floats, Plan, mel, waveform
from torch import Tensor

BLANK = VOCABULARY
PROMPT = 3

METHODS: dict[str, dict[str, Any]] = {
    "max_prob_1": {"name": "max_prob", "alpha": 1.0},
    "max_prob_0.5": {"name": "max_prob", "alpha": 0.5},
    **{
        f"{entropy}_{norm}_{alpha}": {
            "name": "entropy",
            "entropy_type": entropy,
            "entropy_norm": norm,
            "alpha": alpha,
        }
        for entropy in ("gibbs", "tsallis", "renyi")
        for norm in ("lin", "exp")
        for alpha in (0.33, 1.0)
    },
}


@dataclass(frozen=True)
class Variant:
    """One checkpoint family: how it differs from the Nemotron streaming layout."""

    name: str
    target: str = "EncDecRNNTBPEModel"
    mels: int = 128
    normalize: str = "NA"
    bias: bool = False
    scaling: bool = False
    norm: str = "layer_norm"
    causal: bool = True
    contexts: tuple[tuple[int, int], ...] = ((70, 13), (70, 6), (70, 1), (70, 0))
    predictor_layers: int = 2
    durations: tuple[int, ...] = ()
    prompts: int = 0
    subsampling: str = "dw_striding"
    factor: int = 8
    kernel: int = 9
    light: bool = False

    @property
    def streaming(self) -> bool:
        return self.contexts[0][0] >= 0

    @property
    def transducer(self) -> bool:
        return "CTCModelBPE" not in self.target

    @property
    def ctc(self) -> bool:
        return "CTC" in self.target


VARIANTS = (
    Variant("streaming"),
    Variant("streaming56", contexts=((56, 3), (56, 0), (56, 6), (56, 13)), light=True),
    Variant(
        "batchnorm",
        light=True,
        bias=True,
        norm="batch_norm",
        contexts=((70, 6), (70, 1), (70, 0)),
    ),
    Variant(
        "hybrid",
        light=True,
        target="EncDecHybridRNNTCTCBPEModel",
        mels=80,
        bias=True,
        scaling=True,
        predictor_layers=1,
    ),
    Variant(
        "prompt",
        light=True,
        target="EncDecRNNTBPEModelWithPrompt",
        contexts=((56, 3), (56, 0), (56, 6), (56, 13)),
        prompts=8,
    ),
    Variant(
        "ctc",
        light=True,
        target="EncDecCTCModelBPE",
        mels=80,
        normalize="per_feature",
        bias=True,
        scaling=True,
        norm="batch_norm",
        causal=False,
        contexts=((-1, -1),),
    ),
    Variant(
        "tdt",
        light=True,
        normalize="per_feature",
        norm="batch_norm",
        causal=False,
        contexts=((-1, -1),),
        durations=(0, 1, 2, 3, 4),
    ),
    Variant(
        "conformer",
        light=True,
        target="EncDecCTCModelBPE",
        mels=80,
        normalize="per_feature",
        bias=True,
        scaling=True,
        norm="batch_norm",
        causal=False,
        contexts=((-1, -1),),
        subsampling="striding",
        factor=4,
        kernel=31,
    ),
)


# --------------------------------------------------------------------------------------- building


def config(variant: Variant, plan: Plan) -> dict[str, Any]:
    """The model configuration, with the sections and keys of published checkpoints."""
    modules = "nemo.collections.asr.modules"
    out: dict[str, Any] = {
        "sample_rate": SAMPLE_RATE,
        "model_defaults": {
            "enc_hidden": plan.width,
            "pred_hidden": plan.predictor,
            "joint_hidden": plan.joiner,
        },
        "tokenizer": {"dir": "tokenizer", "type": "bpe"},
        "preprocessor": {
            "_target_": f"{modules}.AudioToMelSpectrogramPreprocessor",
            "sample_rate": SAMPLE_RATE,
            "normalize": variant.normalize,
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": variant.mels,
            "n_fft": 512,
            "log": True,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": 0,
            "pad_value": 0.0,
        },
        "encoder": {
            "_target_": f"{modules}.ConformerEncoder",
            "feat_in": variant.mels,
            "feat_out": -1,
            "n_layers": plan.layers,
            "d_model": plan.width,
            "use_bias": variant.bias,
            "subsampling": variant.subsampling,
            "subsampling_factor": variant.factor,
            "subsampling_conv_channels": plan.channels,
            "causal_downsampling": variant.causal,
            "ff_expansion_factor": plan.expansion,
            "self_attention_model": "rel_pos",
            "n_heads": plan.heads,
            "att_context_size": [list(pair) for pair in variant.contexts],
            "att_context_style": "chunked_limited" if variant.streaming else "regular",
            "xscaling": variant.scaling,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": variant.kernel,
            "conv_norm_type": variant.norm,
            "conv_context_size": "causal" if variant.causal else None,
            "dropout": 0.1,
            "dropout_pre_encoder": 0.1,
            "dropout_emb": 0.0,
            "dropout_att": 0.1,
            "stochastic_depth_drop_prob": 0.0,
            "stochastic_depth_mode": "linear",
            "stochastic_depth_start_layer": 1,
        },
    }
    ctc_decoder = {
        "_target_": f"{modules}.ConvASRDecoder",
        "feat_in": plan.width,
        "num_classes": -1,
        "vocabulary": [],
    }
    if not variant.transducer:
        out["decoder"] = ctc_decoder
        out["decoding"] = {"strategy": "greedy_batch"}
        return out
    out["decoder"] = {
        "_target_": f"{modules}.RNNTDecoder",
        "normalization_mode": None,
        "random_state_sampling": False,
        "blank_as_pad": True,
        "prednet": {
            "pred_hidden": plan.predictor,
            "pred_rnn_layers": variant.predictor_layers,
            "t_max": None,
            "dropout": 0.2,
        },
    }
    out["joint"] = {
        "_target_": f"{modules}.RNNTJoint",
        "log_softmax": None,
        "preserve_memory": False,
        "fuse_loss_wer": True,
        "fused_batch_size": 4,
        "jointnet": {"joint_hidden": plan.joiner, "activation": "relu", "dropout": 0.2},
    }
    out["decoding"] = {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}}
    out["loss"] = {
        "loss_name": "default",
        "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0},
    }
    if variant.ctc:
        out["aux_ctc"] = {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": ctc_decoder,
            "decoding": {"strategy": "greedy_batch"},
        }
    if variant.durations:
        durations = list(variant.durations)
        out["model_defaults"] |= {"tdt_durations": durations, "num_tdt_durations": len(durations)}
        out["joint"]["num_extra_outputs"] = len(durations)
        out["decoding"] |= {"model_type": "tdt", "durations": durations}
        out["loss"] = {
            "loss_name": "tdt",
            "tdt_kwargs": {
                "fastemit_lambda": 0.0,
                "clamp": -1.0,
                "durations": durations,
                "sigma": 0.05,
                "omega": 0.1,
            },
        }
    if variant.prompts:
        out["model_defaults"] |= {
            "initialize_prompt_feature": True,
            "num_prompts": variant.prompts,
            "prompt_dictionary": {"en-US": 0, "de-DE": 3, "auto": 5},
        }
    return out


def build(variant: Variant, plan: Plan, seed: int) -> Any:
    """The model in evaluation mode, random, its heads fitted to clip 0."""
    model = create(variant, plan)
    randomise(model, seed)
    set_lookahead(model, variant, variant.contexts[0])
    encoded, counts = encode(model, variant, *features(model, clip_waveforms()[:1]))
    frames = encoded[0].T[WARM_UP : int(counts[0])]
    if variant.transducer:
        add_toggle(model.decoder.prediction.dec_rnn.lstm)
        joint = model.joint
        random = torch.Generator().manual_seed(seed)
        history = torch.randint(BLANK, (1, 40), generator=random)
        predicted = model.decoder.predict(history, state=None, add_sos=True)[0][0]
        spread_joiner(frames, joint.enc, predicted, joint.pred, joint.joint_net[2])
        joint.joint_net[2].bias[BLANK + 1 :][:1] -= 1.0  # a duration of 0 is rare in practice

        def count() -> int:
            return len(decode(model, variant, encoded, counts)[0].y_sequence)

        calibrate(count, joint.joint_net[2].bias, BLANK)
    if variant.ctc:
        layer = ctc_head(model).decoder_layers[0]
        spread(layer, frames, 2.0)

        def count_ctc() -> int:
            labels = ctc_head(model)(encoder_output=encoded)[0].argmax(-1)
            return int((labels.unique_consecutive() != BLANK).sum())

        calibrate(count_ctc, layer.bias, BLANK)
    return model


def create(variant: Variant, plan: Plan) -> Any:
    kind = getattr(models, variant.target, EncDecRNNTBPEModelWithPrompt)
    return kind(OmegaConf.create(config(variant, plan))).eval()


def ctc_head(model: Any) -> Any:
    return model.ctc_decoder if hasattr(model, "ctc_decoder") else model.decoder


# -------------------------------------------------------------------------------------- computing


def features(model: Any, rows: list[Floats]) -> tuple[Tensor, Tensor]:
    """(B, F, T) and (B) of waveforms, zero-padded to the longest."""
    lengths = torch.tensor([len(row) for row in rows])
    batch = torch.zeros(len(rows), int(lengths.max()))
    for index, row in enumerate(rows):
        batch[index, : len(row)] = torch.from_numpy(row)
    signal, counts = model.preprocessor(input_signal=batch, length=lengths)
    return signal, counts


def set_lookahead(model: Any, variant: Variant, context: tuple[int, int]) -> str:
    """Choose an attention context; returns the name it has in the keys."""
    if not variant.streaming:
        return "full"
    model.encoder.set_default_att_context_size(list(context))
    return str(context[1])


def encode(model: Any, variant: Variant, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(B, F, T) -> (B, D, T'), through the prompt if the model has one."""
    encoded, counts = model.encoder(audio_signal=signal, length=lengths)
    if variant.prompts:
        one_hot = torch.zeros(len(encoded), encoded.shape[2], variant.prompts)
        one_hot[:, :, PROMPT] = 1
        joined = torch.cat([encoded.transpose(1, 2), one_hot], dim=-1)
        encoded = model.prompt_kernel(joined).transpose(1, 2)
    return encoded, counts


def stream(model: Any, frames: Tensor) -> Iterator[Tensor]:
    """Cache-aware streaming of one utterance (F, T): the outputs (D, t) of each chunk."""
    settings = model.encoder.streaming_cfg
    caches = model.encoder.get_initial_cache_state(batch_size=1)
    total, start = frames.shape[1], 0
    while start < total:
        later = int(start > 0)
        end = min(start + settings.chunk_size[later], total)
        past = settings.pre_encode_cache_size[later]
        before = frames[:, max(0, start - past) : start]
        before = torch.nn.functional.pad(before, (past - before.shape[1], 0))
        chunk = torch.cat([before, frames[:, start:end]], dim=1)
        out, count, *caches = model.encoder.cache_aware_stream_step(
            processed_signal=chunk[None],
            processed_signal_length=torch.tensor([chunk.shape[1]]),
            cache_last_channel=caches[0],
            cache_last_time=caches[1],
            cache_last_channel_len=caches[2],
            keep_all_outputs=end == total,
            drop_extra_pre_encoded=settings.drop_extra_pre_encoded if later else 0,
        )
        yield out[0, :, : int(count[0])]
        start = end


def decode(
    model: Any,
    variant: Variant,
    encoded: Tensor,
    counts: Tensor,
    max_symbols: int = 10,
    **options: Any,
) -> list[Any]:
    """Greedy transducer search, with entries of NeMo's decoding section as options."""
    section = {"strategy": "greedy_batch", "greedy": {"max_symbols": max_symbols}} | options
    if variant.durations:
        section |= {"model_type": "tdt", "durations": list(variant.durations)}
        section |= {"tdt_include_token_duration": True}
    chosen = {"decoder_type": "rnnt"} if variant.ctc else {}
    model.change_decoding_strategy(OmegaConf.create(section), verbose=False, **chosen)
    hypotheses: list[Any] = model.decoding.rnnt_decoder_predictions_tensor(
        encoder_output=encoded, encoded_lengths=counts, return_hypotheses=True
    )
    return hypotheses


def decode_ctc(model: Any, variant: Variant, log_probs: Tensor, **options: Any) -> Any:
    """Greedy CTC search of one utterance (1, T', V)."""
    section = {"strategy": "greedy_batch", "compute_timestamps": True} | options
    chosen = {"decoder_type": "ctc"} if variant.transducer else {}
    model.change_decoding_strategy(OmegaConf.create(section), verbose=False, **chosen)
    decoding = model.ctc_decoding if variant.transducer else model.decoding
    counts = torch.tensor([log_probs.shape[1]])
    return decoding.ctc_decoder_predictions_tensor(log_probs, counts, return_hypotheses=True)[0]


# ------------------------------------------------------------------------------------ the outputs


def feature_outputs(model: Any, plan: Plan) -> Outputs:
    out: Outputs = {}
    for samples in plan.feature_samples:
        frames, count = features(model, [waveform(samples, seed=samples)])
        assert int(count[0]) == samples // 160
        out[f"features/{samples}"] = frames[0].T
    if plan.feature_batch:
        rows = [waveform(samples, seed=samples) for samples in plan.feature_batch]
        batch, counts = features(model, rows)
        out |= {"features/batch": batch.transpose(1, 2), "features/batch_counts": counts}
    return out


def encoder_outputs(model: Any, variant: Variant, plan: Plan) -> Outputs:
    out: Outputs = {}
    encoder = model.encoder
    for count in plan.subsampling_frames:
        frames = torch.from_numpy(mel(count, variant.mels, seed=count))
        result = encoder.pre_encode(x=frames[None], lengths=torch.tensor([count]))
        out[f"subsampling/{count}"] = result[0][0]
    batch, lengths = mel_batch(plan.encoder_batch, variant.mels, padding=7.0)
    rows, counts = encoder.pre_encode(x=batch, lengths=lengths)
    out |= {"subsampling/batch": rows, "subsampling/batch_counts": counts}
    for context in variant.contexts[:1] if variant.prompts else variant.contexts:
        name = set_lookahead(model, variant, context)
        for count in plan.encoder_frames:
            frames = torch.from_numpy(mel(count, variant.mels, seed=count)).T[None]
            length = torch.tensor([count])
            out[f"encoder/{name}/{count}"] = encoder(audio_signal=frames, length=length)[0][0].T
            if variant.prompts:
                out[f"prompted/{count}"] = encode(model, variant, frames, length)[0][0].T
        encoded, counts = encoder(audio_signal=batch.transpose(1, 2), length=lengths)
        out[f"encoder/{name}/batch"] = encoded.transpose(1, 2)
        out[f"encoder/{name}/batch_counts"] = counts
        for count in plan.stream_frames if variant.streaming else ():
            frames = torch.from_numpy(mel(count, variant.mels, seed=count)).T
            out[f"stream/{name}/{count}"] = torch.cat(list(stream(model, frames)), dim=1).T
    return out


def predictor_outputs(model: Any, plan: Plan) -> Outputs:
    tokens = torch.tensor([[3, 17, 3, 39, 0, 5], [21, 8, 8, 1, 30, 12]])
    predicted, (hidden, cell) = model.decoder.predict(tokens, state=None, add_sos=True)
    encoded = torch.from_numpy(mel(4, plan.width, seed=4))
    automatic, model.joint.log_softmax = model.joint.log_softmax, False
    logits = model.joint.joint(encoded[None], predicted[:1])[0]
    model.joint.log_softmax = automatic
    return {
        "predictor/tokens": tokens,
        "predictor/out": predicted,
        "predictor/hidden": hidden,
        "predictor/cell": cell,
        "joiner/encoded": encoded,
        "joiner/logits": logits,
    }


def hypothesis_arrays(hypothesis: Any) -> Outputs:
    out = {
        "tokens": np.asarray(hypothesis.y_sequence, dtype=np.int64),
        "frames": np.asarray(hypothesis.timestamp, dtype=np.int64),
        "score": np.asarray(float(hypothesis.score), dtype=np.float32),
    }
    if hypothesis.token_duration is not None:
        out["durations"] = np.asarray(hypothesis.token_duration, dtype=np.int64)
    return out


def words_of(hypothesis: Any) -> list[list[Any]]:
    """[text, first frame, end frame] of each word."""
    return [
        [word["word"], int(word["start_offset"]), int(word["end_offset"])]
        for word in hypothesis.timestamp["word"]
    ]


def check_steps(hypothesis: Any, what: str) -> None:
    """No close race on the path of a search that kept its alignment."""
    logits = torch.stack([step[0] for frame in hypothesis.alignments for step in frame])
    check_margin(logits[:, : BLANK + 1], what)
    if logits.shape[1] > BLANK + 1:
        check_margin(logits[:, BLANK + 1 :], what)


def greedy_outputs(model: Any, variant: Variant) -> tuple[Outputs, dict[str, Any]]:
    """Tokens of the three clips for each lookahead; NeMo must agree with itself in each way."""
    out: Outputs = {}
    notes: dict[str, Any] = {}
    for context in variant.contexts:
        name = set_lookahead(model, variant, context)
        batch = encode(model, variant, *features(model, clip_waveforms()))
        together = decode(model, variant, *batch)
        for clip, samples in enumerate(clip_waveforms()):
            signal = encode(model, variant, *features(model, [samples]))
            alone = decode(model, variant, *signal, preserve_alignments=True)[0]
            check_steps(alone, f"clip {clip} at lookahead {name}")
            arrays = hypothesis_arrays(alone)
            tokens, frames = arrays["tokens"].tolist(), arrays["frames"].tolist()
            check_variety(tokens, frames, f"clip {clip} at lookahead {name}")
            same = hypothesis_arrays(decode(model, variant, *signal, strategy="greedy")[0])
            batched = hypothesis_arrays(together[clip])
            batched.pop("durations", None)  # NeMo overwrites them while other rows search on
            for part, value in [*same.items(), *batched.items()]:
                np.testing.assert_allclose(value, arrays[part], atol=1e-3, err_msg=part)
            key = f"greedy/{name}/{clip}"
            out |= {f"{key}/{part}": value for part, value in arrays.items()}
            timed = decode(model, variant, *signal, compute_timestamps=True)[0]
            notes[key] = {
                "text": model.tokenizer.ids_to_text(tokens),
                "pieces": model.tokenizer.ids_to_tokens(tokens),
                "words": words_of(timed),
            }
    return out, notes


def crowded_outputs(model: Any, variant: Variant, max_symbols: int = 4) -> Outputs:
    """Clip 0 with a blank so unlikely that many frames end by `max_symbols`."""
    set_lookahead(model, variant, variant.contexts[0])
    signal = encode(model, variant, *features(model, clip_waveforms()[:1]))
    bias = model.joint.joint_net[2].bias
    saved = bias.clone()
    for lower in (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0):
        bias[BLANK] = saved[BLANK] - lower
        alone = decode(model, variant, *signal, max_symbols=max_symbols, preserve_alignments=True)[
            0
        ]
        symbols = np.bincount(np.asarray(alone.timestamp), minlength=int(signal[1][0]))
        if (symbols == max_symbols).mean() > 0.3:
            break
    else:
        raise RetryError("max_symbols not reached")
    check_steps(alone, "the search that reaches max_symbols")
    out = {f"greedy_max/{key}": value for key, value in hypothesis_arrays(alone).items()}
    out |= {"greedy_max/bias": bias.clone(), "greedy_max/max_symbols": np.asarray(max_symbols)}
    bias.copy_(saved)
    return out


def confidence_section(method: dict[str, Any]) -> dict[str, Any]:
    return {"preserve_token_confidence": True, "exclude_blank": True, "method_cfg": method}


def confidence_outputs(model: Any, variant: Variant) -> Outputs:
    set_lookahead(model, variant, variant.contexts[0])
    signal = encode(model, variant, *features(model, clip_waveforms()[:1]))
    out: Outputs = {}
    for name, method in METHODS.items():
        section = confidence_section(method)
        hypothesis = decode(model, variant, *signal, confidence_cfg=section)[0]
        out[f"confidence/{name}"] = np.asarray(hypothesis.token_confidence, dtype=np.float32)
    return out


def collapse(labels: list[int]) -> tuple[list[int], list[int]]:
    """The tokens of a CTC path and the first frame of each.

    Not NeMo's own offsets: there a token begins where the one before began.
    """
    before = [BLANK, *labels]
    starts = [t for t, label in enumerate(labels) if label not in (BLANK, before[t])]
    return [int(labels[t]) for t in starts], starts


def ctc_outputs(model: Any, variant: Variant) -> tuple[Outputs, dict[str, Any]]:
    out: Outputs = {}
    notes: dict[str, Any] = {}
    for context in variant.contexts:
        name = set_lookahead(model, variant, context)
        for clip, samples in enumerate(clip_waveforms()):
            encoded, counts = encode(model, variant, *features(model, [samples]))
            log_probs = ctc_head(model)(encoder_output=encoded)[:, : int(counts[0])]
            check_margin(log_probs[0], f"CTC of clip {clip} at lookahead {name}")
            found = decode_ctc(model, variant, log_probs)
            tokens, frames = collapse(list(found.y_sequence))
            check_variety(tokens, frames, f"CTC of clip {clip} at lookahead {name}")
            key = f"ctc/{name}/{clip}"
            out[f"{key}/log_probs"] = log_probs[0]
            out[f"{key}/tokens"] = np.asarray(tokens)
            out[f"{key}/frames"] = np.asarray(frames)
            out[f"{key}/score"] = np.asarray(float(found.score), dtype=np.float32)
            notes[key] = {"text": model.tokenizer.ids_to_text(tokens)}
    set_lookahead(model, variant, variant.contexts[0])
    encoded, counts = encode(model, variant, *features(model, clip_waveforms()[:1]))
    log_probs = ctc_head(model)(encoder_output=encoded)[:, : int(counts[0])]
    for name, method in METHODS.items():
        section = confidence_section(method)
        found = decode_ctc(model, variant, log_probs, confidence_cfg=section)
        out[f"ctc_confidence/{name}"] = np.asarray(found.token_confidence, dtype=np.float32)
    return out, notes


def attempt(variant: Variant, plan: Plan, seed: int) -> tuple[Any, Outputs, dict[str, Any]]:
    """The model, all its outputs, and what does not fit into arrays."""
    model = build(variant, plan, seed)
    out: Outputs = {}
    notes: dict[str, Any] = {}
    if variant.transducer:
        greedy, notes = greedy_outputs(model, variant)
        out |= greedy | confidence_outputs(model, variant) | predictor_outputs(model, plan)
        if not variant.durations:
            out |= crowded_outputs(model, variant)
    if variant.ctc:
        ctc, more = ctc_outputs(model, variant)
        out, notes = out | ctc, notes | more
    return model, out | feature_outputs(model, plan) | encoder_outputs(model, variant, plan), notes


# ---------------------------------------------------------------------------------------- writing


def save(model: Any, path: Path, compress: bool) -> None:
    """Write with NeMo, then repack the same members without dates, owners or chance.

    NeMo puts random digits before the names of the tokenizer's files; here they depend on the
    content, so that the same seed gives the same archive. Both sort the members by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "model.nemo"
        model.save_to(str(written))
        with tarfile.open(written) as source:
            members = [(m, source.extractfile(m).read() if m.isfile() else b"") for m in source]
    names = {}
    for member, content in members:
        if found := re.search("[0-9a-f]{32}(?=_)", member.name):
            names[found[0]] = md5(content).hexdigest()

    def renamed(text: str) -> str:
        for old, new in names.items():
            text = text.replace(old, new)
        return text

    for member, _ in members:
        member.name = renamed(member.name)
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as target:
        for member, content in sorted(members, key=lambda pair: pair[0].name):
            if member.name.endswith(".yaml"):
                content = renamed(content.decode()).encode()
            member.size, member.mtime = len(content), 0
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            target.addfile(member, BytesIO(content))
    data = packed.getvalue()
    path.write_bytes(gzip.compress(data, mtime=0) if compress else data)


def run(variant: Variant, plan: Plan, out: Path) -> None:
    if variant.light:
        plan = plan.lighter(batch=variant.normalize != "NA")
    seeds = seeds_of(variant.name, VARIANTS.index(variant), plan)
    seed, (model, arrays, notes) = first_good(seeds, partial(attempt, variant, plan))
    clean = create(variant, plan)  # decoding has changed the configuration of the other
    clean.load_state_dict(model.state_dict())
    save(clean, out / f"{variant.name}.nemo", compress=variant.name != "ctc")
    facts = {
        "seed": seed,
        "lookaheads": [pair[1] for pair in variant.contexts] if variant.streaming else ["full"],
        "left_context": variant.contexts[0][0],
        "mels": variant.mels,
        "feature_batch": plan.feature_batch,
        "encoder_batch": plan.encoder_batch,
        "prompt": PROMPT if variant.prompts else None,
        "notes": notes,
    }
    write_outputs(out, variant.name, arrays, facts)


def main() -> None:
    out, plan, only = parse_arguments(
        "Write NeMo's reference outputs.", [variant.name for variant in VARIANTS]
    )
    logging.setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        train_tokenizer(Path("tokenizer"))
        for variant in VARIANTS:
            if variant.name in only:
                run(variant, plan, out)
        os.chdir(out)


if __name__ == "__main__":
    main()
