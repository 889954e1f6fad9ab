"""NeMo as oracle: tiny random models, the `.nemo` files it writes and the numbers it computes.

Runs in the oracle environment (`requirements.txt`), never in ours:

    python oracle_nemo.py OUT [--plan golden|full] [--only VARIANT ...]

writes for each variant OUT/VARIANT.nemo, OUT/VARIANT.npz and OUT/VARIANT.json. All tensors are
batch first, time second. Keys of the arrays (T mel frames, R lookahead, N samples):

    features/N           (frames, F)     of `waveform(N, seed=N)`, with NeMo's extra last frame
    features/batch       (B, T, F)       and features/batch_counts (B)
    subsampling/T        (T', D)         of `mel(T, F, seed=T)`
    subsampling/batch    (B, T', D)      and .../batch_counts; rows are `mel(T, F, seed=T)`
    encoder/R/T          (T', D)         R is "full" where attention has no limit
    encoder/R/batch      (B, T', D)      and .../batch_counts
    stream/R/T           (T', D)         cache-aware streaming, chunk outputs joined
    predictor/tokens (B, U), predictor/out (B, U + 1, P), predictor/hidden, predictor/cell (L, B, P)
    joiner/logits        (T', U + 1, V)  of encoder/R/9 and row 0 of predictor/out
    greedy/R/C/...       tokens, frames (and durations), score, of clip C: `waveform(n, seed=C)`
    greedy_max/...       the same with clip 0, first lookahead, and greedy_max/bias as last bias
    confidence/METHOD    (U) per token, of the same clip and lookahead
    ctc/R/C/...          log_probs, tokens, frames, score; ctc_confidence/METHOD
"""

import argparse
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from nemo.collections.asr import models
from nemo.utils import logging
from omegaconf import OmegaConf
from oracle_weights import (
    RetryError,
    calibrate,
    check_margin,
    check_variety,
    randomise,
    spread,
    spread_joiner,
)
from parity_inputs import (
    CLIP_SAMPLES,
    CORPUS,
    PLANS,
    SAMPLE_RATE,
    SEED,
    VOCABULARY,
    Plan,
    mel,
    waveform,
)
from torch import Tensor

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
    """One checkpoint family: what differs from the Nemotron streaming layout."""

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
    Variant("streaming56", contexts=((56, 3), (56, 0), (56, 6), (56, 13))),
    Variant("batchnorm", norm="batch_norm", bias=True, contexts=((70, 6), (70, 1), (70, 0))),
    Variant(
        "hybrid",
        target="EncDecHybridRNNTCTCBPEModel",
        mels=80,
        bias=True,
        scaling=True,
        predictor_layers=1,
    ),
    Variant(
        "prompt",
        target="EncDecRNNTBPEModelWithPrompt",
        contexts=((56, 3), (56, 0), (56, 6), (56, 13)),
        prompts=8,
    ),
    Variant(
        "ctc",
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
        normalize="per_feature",
        norm="batch_norm",
        causal=False,
        contexts=((-1, -1),),
        durations=(0, 1, 2, 3, 4),
    ),
)

Outputs = dict[str, np.ndarray]


# --------------------------------------------------------------------------------------- building


def train_tokenizer(folder: Path) -> None:
    """A SentencePiece BPE model laid out as NeMo wants it: no bos, eos or pad, id 0 is <unk>."""
    folder.mkdir()
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(CORPUS) + "\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        unk_id=0,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    pieces = (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    plain = [piece.split("\t")[0].removeprefix("▁") for piece in pieces]
    (folder / "vocab.txt").write_text("\n".join(plain) + "\n", encoding="utf-8")


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
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": plan.channels,
            "causal_downsampling": variant.causal,
            "ff_expansion_factor": 4,
            "self_attention_model": "rel_pos",
            "n_heads": plan.heads,
            "att_context_size": [list(pair) for pair in variant.contexts],
            "att_context_style": "chunked_limited" if variant.streaming else "regular",
            "xscaling": variant.scaling,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": 9,
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
    """The model in evaluation mode, random, with output biases that yield a plausible rate."""
    model = getattr(models, variant.target, None) or _prompt_class()
    model = model(OmegaConf.create(config(variant, plan))).eval()
    randomise(model, seed)
    if variant.transducer:
        calibrate(variant, lambda: token_count(model, variant), model.joint.joint_net[2].bias)
    if variant.ctc:
        bias = _ctc_head(model).decoder_layers[0].bias
        calibrate(variant, lambda: ctc_count(model, variant), bias)
    return model


def _prompt_class() -> Any:
    from nemo.collections.asr.models.rnnt_bpe_models_prompt import EncDecRNNTBPEModelWithPrompt

    return EncDecRNNTBPEModelWithPrompt


def _ctc_head(model: Any) -> Any:
    return model.ctc_decoder if hasattr(model, "ctc_decoder") else model.decoder


# -------------------------------------------------------------------------------------- computing


def features(model: Any, rows: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(B, F, T) and (B) of waveforms, zero-padded to the longest."""
    lengths = torch.tensor([len(row) for row in rows])
    batch = torch.zeros(len(rows), int(lengths.max()))
    for index, row in enumerate(rows):
        batch[index, : len(row)] = torch.from_numpy(row)
    return model.preprocessor(input_signal=batch, length=lengths)


def mel_batch(frames: tuple[int, ...], bins: int) -> tuple[Tensor, Tensor]:
    """(B, F, T) and (B): rows of random mel frames, the padding set to 7 so that leaks show."""
    batch = torch.full((len(frames), bins, max(frames)), 7.0)
    for row, count in enumerate(frames):
        batch[row, :, :count] = torch.from_numpy(mel(count, bins, seed=count)).T
    return batch, torch.tensor(frames)


def set_lookahead(model: Any, variant: Variant, context: tuple[int, int]) -> str:
    """Choose an attention context; returns the name it has in the keys."""
    if not variant.streaming:
        return "full"
    model.encoder.set_default_att_context_size(list(context))
    return str(context[1])


def encode(model: Any, variant: Variant, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(B, F, T) -> (B, D, T'), after the prompt if the model has one (always prompt 3)."""
    encoded, counts = model.encoder(audio_signal=signal, length=lengths)
    return prompt(model, variant, encoded), counts


def prompt(model: Any, variant: Variant, encoded: Tensor) -> Tensor:
    if not variant.prompts:
        return encoded
    one_hot = torch.zeros(len(encoded), encoded.shape[2], variant.prompts)
    one_hot[:, :, 3] = 1
    joined = torch.cat([encoded.transpose(1, 2), one_hot], dim=-1)
    return model.prompt_kernel(joined).transpose(1, 2)


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


def decode(model: Any, variant: Variant, encoded: Tensor, counts: Tensor, **options: Any) -> Any:
    """Greedy transducer search with the options of NeMo's decoding section."""
    section = OmegaConf.create(config(variant, PLANS["golden"])["decoding"])
    section.compute_timestamps = options.pop("timestamps", False)
    section.greedy.max_symbols = options.pop("max_symbols", 10)
    if variant.durations:
        section.tdt_include_token_duration = True
    for key, value in options.items():
        section[key] = value
    logging.setLevel(logging.ERROR)
    if variant.target.startswith("EncDecHybrid"):
        model.change_decoding_strategy(section, decoder_type="rnnt", verbose=False)
    else:
        model.change_decoding_strategy(section, verbose=False)
    return model.decoding.rnnt_decoder_predictions_tensor(
        encoder_output=encoded, encoded_lengths=counts, return_hypotheses=True
    )


def decode_ctc(model: Any, variant: Variant, log_probs: Tensor, counts: Tensor, **options: Any) -> Any:
    section = OmegaConf.create({"strategy": "greedy_batch", "compute_timestamps": True, **options})
    if variant.transducer:
        model.change_decoding_strategy(section, decoder_type="ctc", verbose=False)
        decoding = model.ctc_decoding
    else:
        model.change_decoding_strategy(section, verbose=False)
        decoding = model.decoding
    return decoding.ctc_decoder_predictions_tensor(log_probs, counts, return_hypotheses=True)


def clips(model: Any) -> list[tuple[Tensor, Tensor]]:
    return [features(model, [waveform(n, seed=c)]) for c, n in enumerate(CLIP_SAMPLES)]


def token_count(model: Any, variant: Variant) -> int:
    set_lookahead(model, variant, variant.contexts[0])
    encoded, counts = encode(model, variant, *clips(model)[0])
    return len(decode(model, variant, encoded, counts)[0].y_sequence)


def ctc_count(model: Any, variant: Variant) -> int:
    set_lookahead(model, variant, variant.contexts[0])
    encoded, _ = encode(model, variant, *clips(model)[0])
    labels = _ctc_head(model)(encoder_output=encoded)[0].argmax(-1)
    return len([a for a in labels.unique_consecutive().tolist() if a != VOCABULARY])


def steps_of(timestamp: Any) -> Any:
    return timestamp["timestep"] if isinstance(timestamp, dict) else timestamp


def hypothesis_arrays(hypothesis: Any) -> Outputs:
    out = {
        "tokens": np.asarray(hypothesis.y_sequence, dtype=np.int64),
        "frames": np.asarray(steps_of(hypothesis.timestamp), dtype=np.int64),
        "score": np.asarray(float(hypothesis.score), dtype=np.float32),
    }
    if hypothesis.token_duration is not None and len(hypothesis.token_duration):
        out["durations"] = np.asarray(hypothesis.token_duration, dtype=np.int64)
    return out


def margin(hypothesis: Any, labels: int) -> float:
    """How far the best label leads the second, at its closest, over a hypothesis."""
    rows = [step[0] for frame in hypothesis.alignments for step in frame]
    groups = [torch.stack(rows)[:, :labels], torch.stack(rows)[:, labels:]]
    tops = [group.topk(2).values for group in groups if group.shape[1] > 1]
    return min(float((top[:, 0] - top[:, 1]).min()) for top in tops)


# ------------------------------------------------------------------------------------ the outputs


def feature_outputs(model: Any, plan: Plan) -> Outputs:
    out = {}
    for samples in plan.feature_samples:
        frames, count = features(model, [waveform(samples, seed=samples)])
        assert int(count[0]) == samples // 160
        out[f"features/{samples}"] = frames[0].T
    rows = [waveform(samples, seed=samples) for samples in plan.feature_batch]
    batch, counts = features(model, rows)
    return out | {"features/batch": batch.transpose(1, 2), "features/batch_counts": counts}


def encoder_outputs(model: Any, variant: Variant, plan: Plan) -> Outputs:
    out: dict[str, Any] = {}
    subsample = model.encoder.pre_encode
    for count in plan.subsampling_frames:
        frames = torch.from_numpy(mel(count, variant.mels, seed=count))
        out[f"subsampling/{count}"] = subsample(x=frames[None], lengths=torch.tensor([count]))[0][0]
    batch, lengths = mel_batch(plan.encoder_batch, variant.mels)
    rows, counts = subsample(x=batch.transpose(1, 2), lengths=lengths)
    out |= {"subsampling/batch": rows, "subsampling/batch_counts": counts}
    for context in variant.contexts:
        name = set_lookahead(model, variant, context)
        for count in plan.encoder_frames:
            encoded, counts = model.encoder(
                audio_signal=torch.from_numpy(mel(count, variant.mels, seed=count)).T[None],
                length=torch.tensor([count]),
            )
            out[f"encoder/{name}/{count}"] = encoded[0].T
        encoded, counts = model.encoder(audio_signal=batch, length=lengths)
        out |= {f"encoder/{name}/batch": encoded.transpose(1, 2)}
        out |= {f"encoder/{name}/batch_counts": counts}
        for count in plan.stream_frames if variant.streaming else ():
            frames = torch.from_numpy(mel(count, variant.mels, seed=count)).T
            out[f"stream/{name}/{count}"] = torch.cat(list(stream(model, frames)), dim=1).T
    return out


def predictor_outputs(model: Any, variant: Variant, first: str, encoded: Tensor) -> Outputs:
    tokens = torch.from_numpy(np.array([[3, 17, 3, 39, 0, 5], [21, 8, 8, 1, 30, 12]]))
    out, (hidden, cell) = model.decoder.predict(tokens, state=None, add_sos=True)
    result = {
        "predictor/tokens": tokens,
        "predictor/out": out,
        "predictor/hidden": hidden,
        "predictor/cell": cell,
    }
    joiner = model.joint
    automatic, joiner.log_softmax = joiner.log_softmax, False
    result["joiner/logits"] = joiner.joint(encoded[None], out[:1])[0]
    joiner.log_softmax = automatic
    return result


def greedy_outputs(model: Any, variant: Variant) -> tuple[Outputs, dict[str, Any]]:
    """Tokens of the three clips for each lookahead: one by one, batched, sequentially."""
    out: Outputs = {}
    notes: dict[str, Any] = {}
    rows = [waveform(n, seed=c) for c, n in enumerate(CLIP_SAMPLES)]
    for context in variant.contexts:
        name = set_lookahead(model, variant, context)
        together = decode(model, variant, *encode(model, variant, *features(model, rows)))
        for clip, signal in enumerate(clips(model)):
            encoded, counts = encode(model, variant, *signal)
            alone = decode(model, variant, encoded, counts, preserve_alignments=True)[0]
            if margin(alone, VOCABULARY + 1) < SAFE_MARGIN:
                raise RetryError(f"{variant.name}: the race is too close at lookahead {name}")
            arrays = hypothesis_arrays(alone)
            single = decode(model, variant, encoded, counts, strategy="greedy")[0]
            for other in (together[clip], single):
                for key, value in hypothesis_arrays(other).items():
                    np.testing.assert_allclose(value, arrays[key], atol=1e-3, err_msg=key)
            out |= {f"greedy/{name}/{clip}/{key}": value for key, value in arrays.items()}
            timed = decode(model, variant, encoded, counts, timestamps=True)[0]
            notes[f"greedy/{name}/{clip}"] = {
                "text": alone.text,
                "pieces": model.tokenizer.ids_to_tokens(arrays["tokens"].tolist()),
                "words": [
                    [word["word"], int(word["start_offset"]), int(word["end_offset"])]
                    for word in timed.timestamp["word"]
                ],
            }
    return out, notes


def crowded_outputs(model: Any, variant: Variant) -> Outputs:
    """Clip 0 with a blank so unlikely that many frames end by `max_symbols`."""
    context = variant.contexts[0]
    set_lookahead(model, variant, context)
    encoded, counts = encode(model, variant, *clips(model)[0])
    bias = model.joint.joint_net[2].bias
    saved = bias.clone()
    for lower in (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0):
        bias.copy_(saved)
        bias[VOCABULARY] -= lower
        alone = decode(model, variant, encoded, counts, preserve_alignments=True, max_symbols=4)[0]
        frames = np.asarray(steps_of(alone.timestamp))
        full = np.bincount(frames, minlength=int(counts[0])) == 4
        if full.mean() > 0.3 and margin(alone, VOCABULARY + 1) > SAFE_MARGIN / 4:
            break
    else:
        raise RetryError(f"{variant.name}: max_symbols not reached")
    out = {f"greedy_max/{key}": value for key, value in hypothesis_arrays(alone).items()}
    out |= {"greedy_max/bias": bias.numpy().copy(), "greedy_max/max_symbols": np.asarray(4)}
    bias.copy_(saved)
    return out


def confidence_outputs(model: Any, variant: Variant) -> Outputs:
    set_lookahead(model, variant, variant.contexts[0])
    encoded, counts = encode(model, variant, *clips(model)[0])
    out = {}
    for name, method in METHODS.items():
        section = {"preserve_token_confidence": True, "exclude_blank": True, "method_cfg": method}
        hypothesis = decode(model, variant, encoded, counts, confidence_cfg=section)[0]
        out[f"confidence/{name}"] = np.asarray(hypothesis.token_confidence, dtype=np.float32)
    return out


def ctc_outputs(model: Any, variant: Variant) -> tuple[Outputs, dict[str, Any]]:
    out: Outputs = {}
    notes: dict[str, Any] = {}
    for context in variant.contexts:
        name = set_lookahead(model, variant, context)
        for clip, signal in enumerate(clips(model)):
            encoded, counts = encode(model, variant, *signal)
            log_probs = _ctc_head(model)(encoder_output=encoded)
            top = log_probs[0].topk(2).values
            if float((top[:, 0] - top[:, 1]).min()) < SAFE_MARGIN:
                raise RetryError(f"{variant.name}: CTC labels are too close at lookahead {name}")
            hypothesis = decode_ctc(model, variant, log_probs, counts)[0]
            out[f"ctc/{name}/{clip}/log_probs"] = log_probs[0]
            out[f"ctc/{name}/{clip}/tokens"] = np.asarray(hypothesis.y_sequence)
            out[f"ctc/{name}/{clip}/score"] = np.asarray(float(hypothesis.score), np.float32)
            chars = hypothesis.timestamp["char"]
            out[f"ctc/{name}/{clip}/frames"] = np.asarray([c["start_offset"] for c in chars])
            notes[f"ctc/{name}/{clip}"] = {
                "text": hypothesis.text,
                "words": [
                    [word["word"], int(word["start_offset"]), int(word["end_offset"])]
                    for word in hypothesis.timestamp["word"]
                ],
            }
    set_lookahead(model, variant, variant.contexts[0])
    encoded, counts = encode(model, variant, *clips(model)[0])
    log_probs = _ctc_head(model)(encoder_output=encoded)
    for name, method in METHODS.items():
        section = {"preserve_token_confidence": True, "exclude_blank": True, "method_cfg": method}
        hypothesis = decode_ctc(model, variant, log_probs, counts, confidence_cfg=section)[0]
        out[f"ctc_confidence/{name}"] = np.asarray(hypothesis.token_confidence, np.float32)
    return out, notes


def outputs(model: Any, variant: Variant, plan: Plan) -> tuple[Outputs, dict[str, Any]]:
    out = feature_outputs(model, plan) | encoder_outputs(model, variant, plan)
    notes: dict[str, Any] = {}
    if variant.transducer:
        first = "full" if not variant.streaming else str(variant.contexts[0][1])
        out |= predictor_outputs(model, variant, first, out[f"encoder/{first}/9"])
        greedy, notes = greedy_outputs(model, variant)
        out |= greedy | confidence_outputs(model, variant)
        if not variant.durations:
            out |= crowded_outputs(model, variant)
    if variant.ctc:
        ctc, more = ctc_outputs(model, variant)
        out, notes = out | ctc, notes | more
    return {key: np.asarray(value) for key, value in out.items()}, notes


# ---------------------------------------------------------------------------------------- writing


def save(model: Any, path: Path, compress: bool) -> None:
    """Write with NeMo, then repack the same members without dates, owners or chance."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "model.nemo"
        model.save_to(str(written))
        with (
            tarfile.open(written) as source,
            open(path, "wb") as raw,
            tarfile.open(fileobj=raw, mode="w:gz" if compress else "w", format=tarfile.GNU_FORMAT)
            as target,
        ):
            for member in source:
                member.mtime = 0
                member.uid = member.gid = 0
                member.uname = member.gname = ""
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
    if compress:
        data = bytearray(path.read_bytes())
        data[4:8] = bytes(4)
        path.write_bytes(data)


def run(variant: Variant, plan: Plan, out: Path) -> None:
    for attempt in range(40):
        seed = SEED + 1000 * VARIANTS.index(variant) + attempt
        try:
            model = build(variant, plan, seed)
            arrays, notes = outputs(model, variant, plan)
            break
        except RetryError as reason:
            print(f"seed {seed}: {reason}")
    else:
        raise SystemExit(f"{variant.name}: no usable seed")
    save(model, out / f"{variant.name}.nemo", compress=variant.name != "streaming")
    np.savez_compressed(out / f"{variant.name}.npz", **arrays)
    facts = {
        "seed": seed,
        "plan": plan.name,
        "lookaheads": [pair[1] if variant.streaming else "full" for pair in variant.contexts],
        "left_context": variant.contexts[0][0],
        "mels": variant.mels,
        "transducer": variant.transducer,
        "ctc": variant.ctc,
        "prompt": 3 if variant.prompts else None,
        "notes": notes,
    }
    text = json.dumps(facts, ensure_ascii=False, indent=1) + "\n"
    (out / f"{variant.name}.json").write_text(text, encoding="utf-8")
    print(f"{variant.name}: seed {seed}, {len(arrays)} arrays")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--plan", choices=PLANS, default="full")
    parser.add_argument("--only", nargs="*", default=[variant.name for variant in VARIANTS])
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    logging.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        train_tokenizer(Path("tokenizer"))
        for variant in VARIANTS:
            if variant.name in arguments.only:
                run(variant, PLANS[arguments.plan], out)


if __name__ == "__main__":
    main()
