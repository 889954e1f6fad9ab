"""Tiny checkpoints in other people's layouts, written by hand: random tensors, the right names."""

import copy
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from pianissimo.audio.features import FeatureConfig, MelFeatures

VOCABULARY = 40
DIM, HEADS, LAYERS, CHANNELS, KERNEL, MELS, WIDTH, PROMPTS = 16, 4, 2, 8, 9, 80, 12, 8
NAMESPACE = "nemo.collections.asr"
SPM_MEMBER = "0123456789abcdef0123456789abcdef_tokenizer.model"


def train_tokenizer() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog", "no news is good"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


SENTENCEPIECE = train_tokenizer()


def nemo_config(kind: str = "rnnt", **encoder: Any) -> dict[str, Any]:
    """`model_config.yaml` of a kind: rnnt, tdt, ctc, hybrid or prompt; streaming, no biases."""
    target = {
        "ctc": "ctc_bpe_models.EncDecCTCModelBPE",
        "hybrid": "hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel",
        "prompt": "rnnt_bpe_models_prompt.EncDecRNNTBPEModelWithPrompt",
    }.get(kind, "rnnt_bpe_models.EncDecRNNTBPEModel")
    ctc_decoder = {
        "_target_": f"{NAMESPACE}.modules.ConvASRDecoder",
        "feat_in": DIM,
        "num_classes": VOCABULARY,
        "vocabulary": ["no", "n", "y"],
    }
    config: dict[str, Any] = {
        "sample_rate": 16000,
        "model_defaults": {"enc_hidden": DIM, "pred_hidden": WIDTH, "joint_hidden": WIDTH},
        "tokenizer": {"dir": "/nowhere", "type": "bpe", "model_path": f"nemo:{SPM_MEMBER}"},
        "preprocessor": {
            "_target_": f"{NAMESPACE}.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16000,
            "normalize": "NA",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": MELS,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": 0,
        },
        "encoder": {
            "_target_": f"{NAMESPACE}.modules.ConformerEncoder",
            "feat_in": MELS,
            "feat_out": -1,
            "n_layers": LAYERS,
            "d_model": DIM,
            "use_bias": False,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": CHANNELS,
            "causal_downsampling": True,
            "ff_expansion_factor": 4,
            "self_attention_model": "rel_pos",
            "n_heads": HEADS,
            "att_context_size": [[70, 13], [70, 6], [70, 1], [70, 0]],
            "att_context_style": "chunked_limited",
            "xscaling": False,
            "untie_biases": True,
            "conv_kernel_size": KERNEL,
            "conv_norm_type": "layer_norm",
            "conv_context_size": "causal",
            **encoder,
        },
        "decoder": ctc_decoder,
        "target": f"{NAMESPACE}.models.{target}",
        "nemo_version": "3.0.0",
    }
    if kind == "ctc":
        return config
    config["decoder"] = {
        "_target_": f"{NAMESPACE}.modules.RNNTDecoder",
        "normalization_mode": None,
        "blank_as_pad": True,
        "prednet": {"pred_hidden": WIDTH, "pred_rnn_layers": 2, "t_max": None, "dropout": 0.2},
        "vocab_size": VOCABULARY,
    }
    config["joint"] = {
        "_target_": f"{NAMESPACE}.modules.RNNTJoint",
        "jointnet": {"joint_hidden": WIDTH, "activation": "relu", "dropout": 0.2},
        "num_classes": VOCABULARY,
    }
    config["decoding"] = {"strategy": "greedy_batch", "greedy": {"max_symbols": 7}}
    if kind == "hybrid":
        config["aux_ctc"] = {"ctc_loss_weight": 0.3, "decoder": ctc_decoder}
    if kind == "tdt":
        config["model_defaults"]["tdt_durations"] = [0, 1, 2, 3, 4]
        config["joint"]["num_extra_outputs"] = 5
        config["decoding"] |= {"model_type": "tdt", "durations": [0, 1, 2, 3, 4]}
    if kind == "prompt":
        config["model_defaults"] |= {
            "initialize_prompt_feature": True,
            "num_prompts": PROMPTS,
            "prompt_dictionary": {"en-US": 0, "auto": 5},
        }
    return config


BATCH_NORM: dict[str, Any] = {
    "conv_norm_type": "batch_norm",
    "conv_context_size": None,
    "causal_downsampling": False,
    "att_context_size": [-1, -1],
    "att_context_style": "regular",
    "use_bias": True,
    "xscaling": True,
}
"""Encoder settings of the offline (Parakeet) family."""


def nemo_state(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """The tensors that go with a configuration, by NeMo's names."""
    encoder = config["encoder"]
    bias, batch_norm = encoder["use_bias"], encoder["conv_norm_type"] == "batch_norm"
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def put(name: str, *shape: int, bias: bool = True) -> None:
        state[f"{name}.weight"] = torch.randn(*shape, generator=generator)
        if bias:
            state[f"{name}.bias"] = torch.randn(shape[0], generator=generator)

    features = MelFeatures(FeatureConfig(n_mels=MELS))
    state["preprocessor.featurizer.window"] = features.window.clone()
    state["preprocessor.featurizer.fb"] = features.filterbank[None].clone()
    put("encoder.pre_encode.conv.0", CHANNELS, 1, 3, 3)
    for depthwise, pointwise in ((2, 3), (5, 6)):
        put(f"encoder.pre_encode.conv.{depthwise}", CHANNELS, 1, 3, 3)
        put(f"encoder.pre_encode.conv.{pointwise}", CHANNELS, CHANNELS, 1, 1)
    put("encoder.pre_encode.out", DIM, CHANNELS * (11 if encoder["causal_downsampling"] else 10))
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}"
        for norm in ("feed_forward1", "self_att", "conv", "feed_forward2", "out"):
            put(f"{layer}.norm_{norm}", DIM)
        for n in (1, 2):
            put(f"{layer}.feed_forward{n}.linear1", 4 * DIM, DIM, bias=bias)
            put(f"{layer}.feed_forward{n}.linear2", DIM, 4 * DIM, bias=bias)
        for projection in ("q", "k", "v", "out"):
            put(f"{layer}.self_attn.linear_{projection}", DIM, DIM, bias=bias)
        put(f"{layer}.self_attn.linear_pos", DIM, DIM, bias=False)
        for which in "uv":
            name = f"{layer}.self_attn.pos_bias_{which}"
            state[name] = torch.randn(HEADS, DIM // HEADS, generator=generator)
        put(f"{layer}.conv.pointwise_conv1", 2 * DIM, DIM, 1, bias=bias)
        put(f"{layer}.conv.depthwise_conv", DIM, 1, KERNEL, bias=bias)
        put(f"{layer}.conv.batch_norm", DIM)
        if batch_norm:
            statistics = f"{layer}.conv.batch_norm"
            state[f"{statistics}.running_mean"] = torch.randn(DIM, generator=generator)
            state[f"{statistics}.running_var"] = torch.rand(DIM, generator=generator) + 0.1
            state[f"{statistics}.num_batches_tracked"] = torch.tensor(1000)
        put(f"{layer}.conv.pointwise_conv2", DIM, DIM, 1, bias=bias)
    if "joint" in config:
        put("decoder.prediction.embed", VOCABULARY + 1, WIDTH, bias=False)
        for n in (0, 1):
            for gate in ("ih", "hh"):
                lstm = "decoder.prediction.dec_rnn.lstm"
                state[f"{lstm}.weight_{gate}_l{n}"] = torch.randn(4 * WIDTH, WIDTH)
                state[f"{lstm}.bias_{gate}_l{n}"] = torch.randn(4 * WIDTH)
        put("joint.enc", WIDTH, DIM)
        put("joint.pred", WIDTH, WIDTH)
        extra = config["joint"].get("num_extra_outputs", 0)
        put("joint.joint_net.2", VOCABULARY + 1 + extra, WIDTH)
    if "joint" not in config or "aux_ctc" in config:
        ctc = "ctc_decoder" if "joint" in config else "decoder"
        put(f"{ctc}.decoder_layers.0", VOCABULARY + 1, DIM, 1)
    if config["model_defaults"].get("initialize_prompt_feature"):
        put("prompt_kernel.0", 2 * DIM, DIM + PROMPTS)
        put("prompt_kernel.2", DIM, 2 * DIM)
    return state


def pack(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def nemo_members(config: dict[str, Any], state: Any) -> dict[str, bytes]:
    return {
        SPM_MEMBER: SENTENCEPIECE,
        "model_config.yaml": yaml.safe_dump(config, sort_keys=False).encode(),
        "model_weights.ckpt": state if isinstance(state, bytes) else pack(state),
    }


def tar_bytes(members: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    """A tar laid out as NeMo does, `extra` members (without data) first."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as tar:
        folder = tarfile.TarInfo(".")
        folder.type = tarfile.DIRTYPE
        for info in (folder, *extra):
            tar.addfile(info)
        for name, data in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_nemo(path: Path, config: dict[str, Any], state: Any, *, packed: bool = False) -> Path:
    data = tar_bytes(nemo_members(config, state))
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    return path


HF_ENCODER = {
    "attention_bias": False,
    "conv_kernel_size": KERNEL,
    "convolution_bias": False,
    "dropout": 0.1,
    "hidden_act": "silu",
    "hidden_size": DIM,
    "intermediate_size": 4 * DIM,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": HEADS,
    "num_mel_bins": MELS,
    "scale_input": False,
    "subsampling_conv_channels": CHANNELS,
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
    "subsampling_factor": 8,
}


def hf_config(architecture: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [architecture],
        "dtype": "float32",
        "vocab_size": VOCABULARY + 1,
        "encoder_config": copy.deepcopy(HF_ENCODER),
    }
    if architecture == "ParakeetForCTC":
        config["pad_token_id"] = VOCABULARY
    else:
        config |= {
            "blank_token_id": VOCABULARY,
            "pad_token_id": 0,
            "decoder_hidden_size": WIDTH,
            "num_decoder_layers": 2,
            "hidden_act": "relu",
            "max_symbols_per_step": 7,
        }
    if architecture == "ParakeetForTDT":
        config["durations"] = [0, 1, 2, 3, 4]
    if architecture.startswith("Parakeet"):
        config["encoder_config"] |= dict.fromkeys(
            ("attention_bias", "convolution_bias", "scale_input"), True
        )
    else:
        config["encoder_config"] |= {"sliding_window": 71, "default_num_lookahead_tokens": 13}
    if architecture == "Nemotron3_5AsrForRNNT":
        config |= {
            "num_prompts": PROMPTS,
            "prompt_intermediate_size": 2 * DIM,
            "default_prompt_id": 5,
        }
    return config


def hf_processor(architecture: str) -> dict[str, Any]:
    streaming = architecture.startswith("Nemotron")
    family = "NemotronAsrStreaming" if streaming else "Parakeet"
    processor: dict[str, Any] = {
        "blank_token": "<blank>",
        "feature_extractor": {
            "feature_extractor_type": f"{family}FeatureExtractor",
            "feature_size": MELS,
            "hop_length": 160,
            "n_fft": 512,
            "preemphasis": 0.97,
            "sampling_rate": 16000,
            "win_length": 400,
        },
    }
    if streaming:
        processor |= {
            "default_num_lookahead_tokens": 13,
            "supported_num_lookahead_tokens": [6, 13, 1, 0],
        }
    if architecture == "Nemotron3_5AsrForRNNT":
        processor["prompt_dictionary"] = {"en-US": 0, "auto": 5}
    return processor


def hf_state(state: dict[str, Tensor], *, nemotron: bool) -> dict[str, Tensor]:
    """NeMo's tensors under the names of Transformers."""
    rules = [
        ("encoder.pre_encode.out", "encoder.subsampling.linear"),
        (".self_attn.linear_out", ".self_attn.o_proj"),
        (".self_attn.linear_pos", ".self_attn.relative_k_proj"),
        (".self_attn.pos_bias_", ".self_attn.bias_"),
        (".conv.batch_norm", ".conv.norm"),
        ("ctc_decoder.decoder_layers.0", "ctc_head"),
        ("decoder.decoder_layers.0", "ctc_head"),
        ("decoder.prediction.embed", "decoder.embedding"),
        ("decoder.prediction.dec_rnn.lstm", "decoder.lstm"),
        ("joint.enc", "encoder_projector"),
        ("joint.pred", "decoder.decoder_projector"),
        ("joint.joint_net.2", "joint.head"),
        ("prompt_kernel.0", "prompt_projector.linear_1"),
        ("prompt_kernel.2", "prompt_projector.linear_2"),
    ]
    rules += [(f".self_attn.linear_{p}.", f".self_attn.{p}_proj.") for p in "qkv"]
    if nemotron:
        rules += [
            ("encoder.pre_encode.conv.0", "encoder.subsampling.conv_in"),
            ("encoder.pre_encode.conv.2", "encoder.subsampling.layers.0.depthwise_conv"),
            ("encoder.pre_encode.conv.3", "encoder.subsampling.layers.0.pointwise_conv"),
            ("encoder.pre_encode.conv.5", "encoder.subsampling.layers.1.depthwise_conv"),
            ("encoder.pre_encode.conv.6", "encoder.subsampling.layers.1.pointwise_conv"),
        ]
    else:
        rules += [("encoder.pre_encode.conv.", "encoder.subsampling.layers.")]
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("preprocessor."):
            continue
        for old, new in rules:
            if old in name:
                name = name.replace(old, new)
                break
        renamed[name] = tensor
    return renamed


def hf_tokenizer(behind: tuple[str, ...] = ("<blank>",)) -> dict[str, Any]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=SENTENCEPIECE)
    special = ["<unk>", *behind]
    ids = [0, *range(VOCABULARY, VOCABULARY + len(behind))]
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, "special": True}
            for i, token in zip(ids, special, strict=True)
        ],
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "vocab": {processor.IdToPiece(i): i for i in range(VOCABULARY)},
            "merges": [],
        },
    }


def write_hf(folder: Path, architecture: str, state: dict[str, Tensor], *, shards: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    documents = {
        "config.json": hf_config(architecture),
        "processor_config.json": hf_processor(architecture),
        "tokenizer.json": hf_tokenizer(),
    }
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = sorted(state)
        placed: dict[str, str] = {}
        for n in range(shards):
            file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
            part = {name: state[name] for name in names[n::shards]}
            save_file(part, folder / file)
            placed |= dict.fromkeys(part, file)
        documents["model.safetensors.index.json"] = {"metadata": {}, "weight_map": placed}
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return folder
