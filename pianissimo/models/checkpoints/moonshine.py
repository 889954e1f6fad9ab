"""Folders of Moonshine Streaming as Transformers writes them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.asr import MOST_LAYERS
from pianissimo.models.checkpoints.config_json import (
    CONFIG_FILE,
    Section,
    is_integer,
    read_capped,
    read_json,
)
from pianissimo.models.checkpoints.huggingface import (
    FEATURES_FILE,
    LARGEST_TOKENIZER_BYTES,
    PROCESSOR_FILE,
    TOKENIZER_FILE,
    read_weights,
)
from pianissimo.models.checkpoints.whisper import Names, adopted
from pianissimo.models.moonshine import Moonshine, MoonshineConfig
from pianissimo.text.moonshine_tokenizer import MoonshineTokenizer
from pianissimo.text.tokenizer import Tokenizer

ARCHITECTURE = "MoonshineStreamingForConditionalGeneration"
SAMPLE_RATE = 16_000
LARGEST_WINDOW = 4096
LEAST_POSITIONS = 1500
"""30 s: the pieces of recordings and the segments of streams must fit."""
_EMBEDDING, _PROJECTION = "model.decoder.embed_tokens.weight", "proj_out.weight"

_TENSORS: Names = {
    "encoder.stem.log_scale": ("model.encoder.embedder.comp.log_k",),
    "encoder.norm.gamma": ("model.encoder.final_norm.gamma",),
    "encoder.positions": ("model.decoder.pos_emb.weight",),
}
_MODULES = {
    "encoder.stem.linear": ("model.encoder.embedder.linear",),
    "encoder.stem.conv1": ("model.encoder.embedder.conv1",),
    "encoder.stem.conv2": ("model.encoder.embedder.conv2",),
    "encoder.adapter": ("model.decoder.proj",),
    "decoder.embedding": ("model.decoder.embed_tokens",),
    "decoder.norm": ("model.decoder.norm",),
    "decoder.logits": ("proj_out",),
}
_ENCODER_LAYER = {
    "attention_norm": ("input_layernorm",),
    "query": ("self_attn.q_proj",),
    "key_value": ("self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "ff_norm": ("post_attention_layernorm",),
    "up": ("mlp.fc1",),
    "down": ("mlp.fc2",),
}
_DECODER_LAYER = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "cross_norm": ("post_attention_layernorm",),
    "cross.query": ("encoder_attn.q_proj",),
    "cross.key_value": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross.out": ("encoder_attn.o_proj",),
    "ff_norm": ("final_layernorm",),
    "up": ("mlp.fc1",),
    "down": ("mlp.fc2",),
}


@dataclass(frozen=True)
class MoonshineParts:
    """All that a folder of Moonshine holds."""

    network: Moonshine
    tokenizer: MoonshineTokenizer
    name: str


def read_moonshine(folder: Path) -> MoonshineParts:
    """Read a folder that Transformers wrote, its weights whole or in shards, in float32.

    Raises CheckpointError for anything damaged, incomplete, or built in another way than the
    published ones.
    """
    root = Section(read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    config = moonshine_config(root)
    _check_features(folder)
    tokenizer = _tokenizer(folder, root, config.vocab_size)
    network = _network(config, read_weights(folder), str(folder))
    return MoonshineParts(network, tokenizer, folder.name)


def moonshine_config(root: Section) -> MoonshineConfig:
    """The sizes in a parsed `config.json`; CheckpointError naming what is not supported."""
    root.only("architectures", ([ARCHITECTURE],))
    encoder = root.section("encoder_config")
    heads = root.integer("num_attention_heads", most=1 << 10)
    encoder_heads = encoder.integer("num_attention_heads", most=1 << 10)
    root.only("num_key_value_heads", (heads,), heads)
    encoder.only("num_key_value_heads", (encoder_heads,), encoder_heads)
    root.only("hidden_act", ("silu",), "silu")
    encoder.only("hidden_act", ("gelu",), "gelu")
    encoder.only("sample_rate", (SAMPLE_RATE,), SAMPLE_RATE)
    dim = root.integer("hidden_size", most=1 << 14)
    encoder_dim = encoder.integer("hidden_size", most=1 << 14)
    root.only("head_dim", (dim // heads, None), None)
    encoder.only("head_dim", (encoder_dim // encoder_heads, None), None)
    frame_ms = encoder.number("frame_ms", 5.0)
    rope = root.section("rope_parameters")
    rope.only("rope_type", ("default",), "default")
    share = rope.number("partial_rotary_factor", 0.8)
    rotary = int(dim // heads * share)
    layers = encoder.integer("num_hidden_layers", most=MOST_LAYERS)
    try:
        return MoonshineConfig(
            vocab_size=root.integer("vocab_size", least=2, most=1 << 20),
            dim=dim,
            ff_dim=root.integer("intermediate_size", most=1 << 16),
            decoder_layers=root.integer("num_hidden_layers", most=MOST_LAYERS),
            decoder_heads=heads,
            encoder_dim=encoder_dim,
            encoder_ff_dim=encoder.integer("intermediate_size", most=1 << 16),
            encoder_heads=encoder_heads,
            windows=_windows(encoder, layers),
            frame_samples=round(SAMPLE_RATE * frame_ms / 1000),
            positions=root.integer("max_position_embeddings", least=LEAST_POSITIONS, most=1 << 16),
            rotary=rotary + rotary % 2,
            rotary_base=rope.number("rope_theta", 10000.0),
            attention_bias=root.flag("attention_bias", False),
            encoder_attention_bias=encoder.flag("attention_bias", False),
        )
    except OptionError as error:
        raise CheckpointError(f"{root.where}: {error}") from error


def _windows(encoder: Section, layers: int) -> tuple[tuple[int, int], ...]:
    given = encoder.get("sliding_windows")
    if (
        not isinstance(given, list)
        or len(given) != layers
        or not all(isinstance(pair, list) and len(pair) == 2 for pair in given)
        or not all(is_integer(side) and 0 <= side <= LARGEST_WINDOW for p in given for side in p)
    ):
        raise encoder.fail("sliding_windows", f"a pair of frames for each of the {layers} layers")
    return tuple((left, right) for left, right in given)


def _check_features(folder: Path) -> None:
    """The waveform must go into the model as it is: at 16 kHz, and not normalized."""
    name = FEATURES_FILE if (folder / FEATURES_FILE).is_file() else PROCESSOR_FILE
    data = read_json(folder / name)
    features = Section(data.get("feature_extractor", data), str(folder / name))
    features.only("sampling_rate", (SAMPLE_RATE,))
    features.only("do_normalize", (False,))


def _tokenizer(folder: Path, root: Section, vocab_size: int) -> MoonshineTokenizer:
    path = folder / TOKENIZER_FILE
    tokenizer = Tokenizer.from_hf_json(read_capped(path, LARGEST_TOKENIZER_BYTES))
    if tokenizer.vocab_size > vocab_size:
        raise CheckpointError(
            f"{path} has {tokenizer.vocab_size} pieces, {CONFIG_FILE} has {vocab_size}; they "
            "belong to different models"
        )
    most = tokenizer.vocab_size - 1
    start = root.integer("bos_token_id", least=0, most=most)
    root.only("decoder_start_token_id", (start, None), None)
    end = root.integer("eos_token_id", least=0, most=most)
    return MoonshineTokenizer(tokenizer, start, end)


def _network(config: MoonshineConfig, weights: dict[str, Tensor], source: str) -> Moonshine:
    """The network from foreign tensors, each used exactly once."""
    with torch.device("meta"):
        network = Moonshine(config)
    if _PROJECTION not in weights and _EMBEDDING in weights:  # one matrix, there and back
        weights[_PROJECTION] = weights[_EMBEDDING]
    names: dict[str, tuple[str | None, ...]] = dict(_TENSORS)
    modules: dict[str, tuple[str, ...]] = dict(_MODULES)
    for part, count, table in (
        ("encoder", len(config.windows), _ENCODER_LAYER),
        ("decoder", config.decoder_layers, _DECODER_LAYER),
    ):
        for i in range(count):
            modules |= {
                f"{part}.layers.{i}.{ours}": tuple(f"model.{part}.layers.{i}.{n}" for n in theirs)
                for ours, theirs in table.items()
            }
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for name in expected:
        module, _, kind = name.rpartition(".")
        if name not in names:
            names[name] = tuple(f"{each}.{kind}" for each in modules[module])
    tensors = adopted(expected, weights, names, source)
    network.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False)
