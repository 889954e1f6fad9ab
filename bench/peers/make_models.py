"""The 0.6B model of the benchmarks, once, in every format that an engine reads.

    python bench/peers/make_models.py [--models runs/bench-models] [--ms 80 160 560 1120]

Runs in the peers' environment (`make bench-peers`). The model has the shape of Nemotron Speech
Streaming EN 0.6B and random weights, the same on every machine up to rounding; `teach_to_emit`
fits its search so that a few tokens a second come out. What is there already stays:

    speech.wav            the example clips over and over, 16 kHz
    model.nemo            NeMo's archive, which we read too
    hf/                   the folder that Transformers reads
    sherpa-MS/            sherpa-onnx at this latency, as its own scripts export it: encoder,
                          decoder and joiner as .onnx (float32) and .int8.onnx, tokens.txt
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

CLIPS = sorted((Path(__file__).parents[2] / "examples" / "audio").glob("*.flac"))
SAMPLE_RATE = 16000
MODES = {1120: 13, 560: 6, 160: 1, 80: 0}
"""Latency in milliseconds -> lookahead in encoder frames; the first is the model's default."""
LEFT_CONTEXT = 70
VOCABULARY = 1024
MEL_BINS = 128
WIDTH, LAYERS, HEADS, FF_EXPANSION, KERNEL = 1024, 24, 8, 4, 9
HIDDEN, PREDICTOR_LAYERS = 640, 2

TOKENS_PER_SECOND = (4.0, 5.0)
FRAME_SECONDS = 0.08
WARM_UP = 12
"""First encoder frames of an utterance, whose short history makes them unlike all others."""
SLOW_DIRECTIONS = 2
"""Directions in which a random encoder mostly drifts; what is left follows the syllables."""


def speech(seconds: float) -> np.ndarray:
    """The example clips over and over: float32 samples at 16 kHz."""
    clips = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in CLIPS])
    count = round(seconds * SAMPLE_RATE)
    return np.tile(clips, -(-count // len(clips)))[:count]


# ---------------------------------------------------------------------------------------- the model


def train_tokenizer(folder: Path) -> None:
    """A BPE model of 1,024 meaningless pieces, laid out as NeMo wants it."""
    import sentencepiece

    folder.mkdir()
    words = [chr(97 + i % 26) + chr(97 + i // 26 % 26) + chr(97 + i // 676) for i in range(1400)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 2),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        unk_id=0,
        num_threads=1,
        minloglevel=2,
    )
    pieces = (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    plain = [piece.split("\t")[0].removeprefix("▁") for piece in pieces]
    (folder / "vocab.txt").write_text("\n".join(plain) + "\n", encoding="utf-8")


def nemo_config() -> dict[str, Any]:
    """The sections and keys of the published checkpoint's configuration."""
    modules = "nemo.collections.asr.modules"
    return {
        "sample_rate": SAMPLE_RATE,
        "model_defaults": {
            "enc_hidden": WIDTH,
            "pred_hidden": HIDDEN,
            "joint_hidden": HIDDEN,
        },
        "tokenizer": {"dir": "tokenizer", "type": "bpe"},
        "preprocessor": {
            "_target_": f"{modules}.AudioToMelSpectrogramPreprocessor",
            "sample_rate": SAMPLE_RATE,
            "normalize": "NA",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": MEL_BINS,
            "n_fft": 512,
            "log": True,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": 0,
            "pad_value": 0.0,
        },
        "encoder": {
            "_target_": f"{modules}.ConformerEncoder",
            "feat_in": MEL_BINS,
            "feat_out": -1,
            "n_layers": LAYERS,
            "d_model": WIDTH,
            "use_bias": False,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": 256,
            "causal_downsampling": True,
            "ff_expansion_factor": FF_EXPANSION,
            "self_attention_model": "rel_pos",
            "n_heads": HEADS,
            "att_context_size": [[LEFT_CONTEXT, lookahead] for lookahead in MODES.values()],
            "att_context_style": "chunked_limited",
            "xscaling": False,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": KERNEL,
            "conv_norm_type": "layer_norm",
            "conv_context_size": "causal",
            "dropout": 0.1,
            "dropout_pre_encoder": 0.1,
            "dropout_emb": 0.0,
            "dropout_att": 0.1,
        },
        "decoder": {
            "_target_": f"{modules}.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {
                "pred_hidden": HIDDEN,
                "pred_rnn_layers": PREDICTOR_LAYERS,
                "t_max": None,
                "dropout": 0.2,
            },
        },
        "joint": {
            "_target_": f"{modules}.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": True,
            "fused_batch_size": 4,
            "jointnet": {"joint_hidden": HIDDEN, "activation": "relu", "dropout": 0.2},
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}},
        "loss": {
            "loss_name": "default",
            "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0, "clamp": -1.0},
        },
    }


def build() -> Any:
    """The model in evaluation mode; reads the folder `tokenizer` in the current one."""
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from omegaconf import OmegaConf

    torch.manual_seed(0)
    model = EncDecRNNTBPEModel(OmegaConf.create(nemo_config())).eval()
    samples = torch.from_numpy(speech(22.5))[None]
    mel, count = model.preprocessor(input_signal=samples, length=torch.tensor([samples.shape[1]]))
    center(model.encoder.pre_encode, mel, count)
    encoded = []
    for lookahead in MODES.values():
        model.encoder.set_default_att_context_size([LEFT_CONTEXT, lookahead])
        encoded.append(model.encoder(audio_signal=mel, length=count)[0])
    teach_to_emit(model, encoded)
    return model


def center(subsampling: Any, mel: Tensor, count: Tensor) -> None:
    """Rescale the subsampling's output to mean 0 and deviation 1 over mel frames (1, F, T).

    As it comes, it is nearly the same for any sound; then the encoder says little about the audio,
    and each engine's own rounding is loud beside it.
    """
    frames = subsampling(x=mel.transpose(1, 2), lengths=count)[0][0, WARM_UP:]
    middle = frames.mean(0)
    scale = (frames - middle).square().mean().rsqrt()
    subsampling.out.bias.copy_((subsampling.out.bias - middle) * scale)
    subsampling.out.weight *= scale


def teach_to_emit(model: Any, encoded: list[Tensor]) -> None:
    """Fit predictor and joint so that a label is due whenever a signal of the frames turns.

    A random transducer says nothing, or repeats itself until `max_symbols`. So labels come in two
    classes, of which the predictor remembers the last; the first two hidden units of the joint
    compare it with the signal's sign and favor the blank while they agree, the next two favor
    labels of the signal's class. All else stays random and picks the label within its class.
    """
    frames = torch.cat([rows[0].T[WARM_UP:] for rows in encoded])
    remember_class(model.decoder.prediction)
    joint, blank = model.joint, VOCABULARY
    direction, middle = lively_direction([rows[0].T[WARM_UP:] for rows in encoded])
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0])
    spread(joint.enc, frames)
    joint.enc.weight[:4] = signs[:, None] * direction
    joint.enc.bias[:4] = -signs * middle
    joint.pred.weight[:4], joint.pred.bias[:4] = 0.0, 0.0
    joint.pred.weight[:2, 0] = signs[:2] / MEMORY
    head = joint.joint_net[-1]
    head.weight.copy_(0.02 * torch.randn(head.weight.shape))
    head.bias.zero_()
    head.weight[:, :4] = 0.0
    head.weight[:blank, 2] = 10 * label_classes()[:blank]
    head.weight[:blank, 3] = -10 * label_classes()[:blank]
    head.weight[blank] = 0.0
    head.weight[blank, :2] = 10.0
    head.bias[0] = -1000.0  # <unk>, which Transformers also takes for padding
    calibrate(model, encoded, head.bias)


def label_classes() -> Tensor:
    """+1 for even labels, -1 for odd ones, 0 for the blank: (V + 1)."""
    classes = 1.0 - 2.0 * (torch.arange(VOCABULARY + 1) % 2)
    classes[VOCABULARY] = 0.0
    return classes


def lively_direction(runs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The direction (D) in which frames (S, D) move most from one to the next, and its middle.

    Slow movement, over five frames or more, is taken out first. Scaled to a median size of 1.
    """
    slow = [local_mean(frames, reach=2) for frames in runs]
    fast = torch.cat(runs) - torch.cat(slow)
    drift = torch.cat(slow)
    drift = torch.linalg.svd(drift - drift.mean(0), full_matrices=False)[2][:SLOW_DIRECTIONS]
    direction = torch.linalg.svd(fast - (fast @ drift.T) @ drift, full_matrices=False)[2][0]
    direction *= direction[direction.abs().argmax()].sign()
    signal = torch.cat(runs) @ direction
    middle = signal.median()
    scale = (signal - middle).abs().median()
    return direction / scale, middle / scale


def local_mean(frames: Tensor, reach: int) -> Tensor:
    """Each frame (S, D) with `reach` neighbors on either side, averaged."""
    padded = nn.functional.pad(frames.T[None], (reach, reach), mode="replicate")
    return nn.functional.avg_pool1d(padded, 2 * reach + 1, 1)[0].T


def spread(layer: nn.Linear, inputs: Tensor) -> None:
    """Rescale a layer to outputs of mean 0 and deviation 1 over its inputs (S, D)."""
    layer.weight /= (inputs @ layer.weight.T).std(0)[:, None]
    layer.bias.copy_(-(inputs @ layer.weight.T).mean(0))


MEMORY = 0.75
"""About what the predictor's first unit says after a label, with the sign of its class."""


def remember_class(prediction: Any) -> None:
    """Let the first unit of each LSTM layer hold the class of the last label, and that alone."""
    prediction["embed"].weight[:, 0] = label_classes()
    lstm = prediction["dec_rnn"].lstm
    for layer, gain in ((0, 3.0), (1, 4.0)):
        inner, outer = (getattr(lstm, f"weight_{kind}_l{layer}") for kind in ("hh", "ih"))
        for gate, level in enumerate((5.0, -5.0, 0.0, 5.0)):  # input, forget, cell, output
            row = gate * HIDDEN
            inner[row], outer[row] = 0.0, 0.0
            getattr(lstm, f"bias_ih_l{layer}")[row] = level
            getattr(lstm, f"bias_hh_l{layer}")[row] = 0.0
        outer[2 * HIDDEN, 0] = gain


def calibrate(model: Any, encoded: list[Tensor], bias: Tensor) -> None:
    """Move the blank's bias until as many tokens a second come out as in speech."""
    seconds = sum(rows.shape[2] for rows in encoded) * FRAME_SECONDS
    low, high = -12.0, 4.0
    for _ in range(12):
        bias[VOCABULARY] = (low + high) / 2
        rate = sum(count_tokens(model, rows) for rows in encoded) / seconds
        print(f"blank {float(bias[VOCABULARY]):.2f}: {rate:.2f} tokens a second", file=sys.stderr)
        if TOKENS_PER_SECOND[0] <= rate <= TOKENS_PER_SECOND[1]:
            return
        middle = float(bias[VOCABULARY])
        low, high = (middle, high) if rate > TOKENS_PER_SECOND[1] else (low, middle)
    raise SystemExit("no bias of the blank gives a natural number of tokens")


def count_tokens(model: Any, encoded: Tensor) -> int:
    found = model.decoding.rnnt_decoder_predictions_tensor(
        encoder_output=encoded,
        encoded_lengths=torch.tensor([encoded.shape[2]]),
        return_hypotheses=True,
    )
    return len(found[0].y_sequence)


# ------------------------------------------------------------------------------------ Transformers

RENAMES = (
    (r"^encoder\.pre_encode\.conv\.0\.", "encoder.subsampling.conv_in."),
    (r"^encoder\.pre_encode\.conv\.2\.", "encoder.subsampling.layers.0.depthwise_conv."),
    (r"^encoder\.pre_encode\.conv\.3\.", "encoder.subsampling.layers.0.pointwise_conv."),
    (r"^encoder\.pre_encode\.conv\.5\.", "encoder.subsampling.layers.1.depthwise_conv."),
    (r"^encoder\.pre_encode\.conv\.6\.", "encoder.subsampling.layers.1.pointwise_conv."),
    (r"^encoder\.pre_encode\.out\.", "encoder.subsampling.linear."),
    (r"self_attn\.linear_([qkv])\.", r"self_attn.\1_proj."),
    (r"self_attn\.linear_out\.", "self_attn.o_proj."),
    (r"self_attn\.linear_pos\.", "self_attn.relative_k_proj."),
    (r"self_attn\.pos_bias_", "self_attn.bias_"),
    (r"conv\.batch_norm\.", "conv.norm."),
    (r"^decoder\.prediction\.embed\.", "decoder.embedding."),
    (r"^decoder\.prediction\.dec_rnn\.lstm\.", "decoder.lstm."),
    (r"^joint\.pred\.", "decoder.decoder_projector."),
    (r"^joint\.enc\.", "encoder_projector."),
    (r"^joint\.joint_net\.\d+\.", "joint.head."),
)
"""NeMo's names of tensors -> those of Transformers."""


def write_hf(model: Any, folder: Path) -> None:
    """The folder that Transformers writes for the same weights."""
    import transformers
    from transformers.convert_slow_tokenizer import ParakeetConverter

    encoder = transformers.NemotronAsrStreamingEncoderConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FF_EXPANSION * WIDTH,
        num_mel_bins=MEL_BINS,
        attention_bias=False,
        convolution_bias=False,
        scale_input=False,
        sliding_window=LEFT_CONTEXT + 1,
        default_num_lookahead_tokens=next(iter(MODES.values())),
    )
    config = transformers.NemotronAsrStreamingConfig(
        vocab_size=VOCABULARY + 1,
        encoder_config=encoder,
        decoder_hidden_size=HIDDEN,
        num_decoder_layers=PREDICTOR_LAYERS,
        blank_token_id=VOCABULARY,
        pad_token_id=0,
    )
    with torch.device("meta"):
        theirs = transformers.NemotronAsrStreamingForRNNT(config)
    weights = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith("preprocessor."):
            for pattern, replacement in RENAMES:
                name = re.sub(pattern, replacement, name)
            weights[name] = tensor.contiguous()
    theirs.load_state_dict(weights, strict=True, assign=True)
    theirs.generation_config.decoder_start_token_id = VOCABULARY
    theirs.save_pretrained(folder)

    special = transformers.AddedToken
    tokenizer = transformers.ParakeetTokenizer(
        tokenizer_object=ParakeetConverter("tokenizer/tokenizer.model").converted(),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([special("<blank>", normalized=False, special=True)])
    unknown = special("<unk>", normalized=False, special=True)
    tokenizer.add_special_tokens({"pad_token": unknown, "unk_token": unknown})
    transformers.NemotronAsrStreamingProcessor(
        transformers.NemotronAsrStreamingFeatureExtractor(feature_size=MEL_BINS),
        tokenizer,
        supported_num_lookahead_tokens=list(MODES.values()),
    ).save_pretrained(folder)


# ------------------------------------------------------------------------------------- sherpa-onnx

QUANTIZED = {"encoder": "QUInt8", "decoder": "QInt8", "joiner": "QInt8"}
"""As sherpa-onnx's scripts for Parakeet 0.6B; that for Nemotron makes all three unsigned."""


def write_sherpa(model: Any, ms: int, folder: Path) -> None:
    """Export at one latency, in float32 and int8, as sherpa-onnx's scripts for NeMo do it.

    Like them: NeMo's own export with caches, every chunk led by nine cached mel frames (the first
    too, so the frames' grid is not quite NeMo's), and dynamic quantization of all it applies to.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    encoder, decoder = model.encoder, model.decoder
    encoder.set_default_att_context_size([LEFT_CONTEXT, MODES[ms]])
    model.set_export_config({"cache_support": True})
    streaming = encoder.streaming_cfg
    shift = streaming.chunk_size[1]
    facts = {
        "vocab_size": VOCABULARY,
        "window_size": shift + streaming.pre_encode_cache_size[1],
        "chunk_size_ms": ms,
        "chunk_shift": shift,
        "normalize_type": "",
        "cache_last_channel_dim1": LAYERS,
        "cache_last_channel_dim2": streaming.last_channel_cache_size,
        "cache_last_channel_dim3": WIDTH,
        "cache_last_time_dim1": LAYERS,
        "cache_last_time_dim2": WIDTH,
        "cache_last_time_dim3": encoder.conv_context_size[0],
        "pred_rnn_layers": decoder.pred_rnn_layers,
        "pred_hidden": decoder.pred_hidden,
        "subsampling_factor": 8,
        "feat_dim": MEL_BINS,
        "model_type": "EncDecHybridRNNTCTCBPEModel",
        "version": "1",
    }
    parts = {"encoder": encoder, "decoder": decoder, "joiner": model.joint}
    with working_folder() as scratch:
        for name, part in parts.items():
            part.export(f"{name}.onnx")
            gather(scratch / f"{name}.onnx", folder / f"{name}.onnx", facts)
    for name, kind in QUANTIZED.items():
        quantize_dynamic(
            folder / f"{name}.onnx", folder / f"{name}.int8.onnx", weight_type=QuantType[kind]
        )
    lines = [f"{piece} {i}" for i, piece in enumerate([*model.joint.vocabulary, "<blk>"])]
    (folder / "tokens.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def gather(source: Path, target: Path, facts: dict[str, Any]) -> None:
    """Copy an ONNX model with what sherpa-onnx must know, its weights in one file beside it."""
    import onnx

    model = onnx.load(str(source))
    onnx.helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    onnx.save(
        model,
        str(target),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{target.stem}.data",
    )


# ------------------------------------------------------------------------------------------ making


@contextmanager
def working_folder() -> Iterator[Path]:
    """A temporary current folder: NeMo and its export leave files where they run."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """A place to write to that becomes `path` only if all goes well."""
    draft = path.with_name(f"unfinished-{path.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.unlink(missing_ok=True)
    if not path.suffix:
        draft.mkdir(parents=True)
    yield draft
    draft.rename(path)


def restore(path: Path) -> Any:
    from nemo.collections.asr.models import EncDecRNNTBPEModel

    return EncDecRNNTBPEModel.restore_from(str(path), map_location="cpu").eval()


def make(models: Path, latencies_ms: list[int]) -> None:
    """Write what is missing in the folder."""
    models.mkdir(parents=True, exist_ok=True)
    archive, hf, wav = models / "model.nemo", models / "hf", models / "speech.wav"
    if not wav.exists():
        with made_whole(wav) as draft:
            soundfile.write(draft, speech(60), SAMPLE_RATE, subtype="PCM_16")
    with working_folder():
        train_tokenizer(Path("tokenizer"))
        model = None
        if not archive.exists():
            # Another model than before: what was made from the old one goes.
            for stale in (hf, *models.glob("sherpa-*")):
                shutil.rmtree(stale, ignore_errors=True)
            model = build()
            with made_whole(archive) as draft:
                model.save_to(str(draft))
        if not hf.exists():
            model = model or restore(archive)
            with made_whole(hf) as draft:
                write_hf(model, draft)
        for ms in latencies_ms:
            if not (models / f"sherpa-{ms}").exists():
                model = model or restore(archive)
                with made_whole(models / f"sherpa-{ms}") as draft:
                    write_sherpa(model, ms, draft)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parents[2] / "runs" / "bench-models"
    parser.add_argument("--models", type=Path, default=default, help="folder to write to")
    parser.add_argument(
        "--ms", type=int, nargs="*", choices=MODES, default=list(MODES), help="of sherpa-onnx"
    )
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    make(options.models.resolve(), options.ms)


if __name__ == "__main__":
    main()
