"""Whisper in its three layouts: folders of CTranslate2, of Transformers, and our own.

Our own folder holds `config.json`, `model.safetensors` (float16, float32, or 8-bit matrices with
one scale a row) and the `tokenizer.json`. It may hold a second encoder, distilled for live chunks.
The others are read as they were published.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.checkpoints.config_json import (
    CONFIG_FILE,
    Section,
    from_json,
    listed,
    read_capped,
    read_json,
)
from pianissimo.models.checkpoints.ctranslate2 import Variables, plain_floats, read_variables
from pianissimo.models.checkpoints.huggingface import (
    LARGEST_TOKENIZER_BYTES,
    TOKENIZER_FILE,
    read_safetensors,
    read_weights,
)
from pianissimo.models.checkpoints.model_folder import WEIGHTS_FILE
from pianissimo.models.checkpoints.stored import from_store, to_store
from pianissimo.models.whisper import (
    LiveConfig,
    TextRules,
    Whisper,
    WhisperConfig,
    WhisperEncoder,
)
from pianissimo.text.whisper_tokenizer import WhisperTokenizer

BIN_FILE = "model.bin"
GENERATION_FILE = "generation_config.json"
KIND, FORMAT_VERSION = "whisper", 1
SPECIFICATION, REVISION = "WhisperSpec", 3
MOST_LAYERS = 64
MOST_SUPPRESSED = 4096
GELU = 3
"""How CTranslate2 numbers the activation with the error function."""
TIED = "decoder.embedding.weight"
"""The same matrix as that of the logits, and stored once."""
LIVE_ENCODER = "live_encoder."
"""The prefix of the second encoder's tensors in our own folder."""

Names = Mapping[str, tuple[str | None, ...]]
"""Our tensor -> the foreign ones that make it, one below the other; None stands for zeros."""


@dataclass(frozen=True)
class WhisperParts:
    """All that a folder of Whisper holds."""

    network: Whisper
    tokenizer: WhisperTokenizer
    rules: TextRules
    name: str
    live: LiveConfig | None = None
    """How its encoder was trained to live; None for weights as they were published."""
    int8: bool = False
    """Whether its matrices are stored in 8 bits."""
    live_encoder: WhisperEncoder | None = None
    """The encoder of live chunks, where that is another one than the network's."""


@dataclass(frozen=True)
class _Stored:
    """`config.json` of our own layout."""

    kind: str
    name: str
    network: WhisperConfig
    rules: TextRules
    live: LiveConfig | None = None


def is_whisper(folder: Path) -> bool:
    """Whether a path is a folder with a Whisper in our own layout."""
    path = folder / CONFIG_FILE
    return path.is_file() and read_json(path).get("kind") == KIND


def save_whisper(folder: Path, parts: WhisperParts, dtype: torch.dtype | None = None) -> None:
    """Write a folder in our own layout; `dtype` is a floating type, or torch.int8 for matrices."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = to_store(parts.network, dtype)
    del stored[TIED]
    if parts.live_encoder is not None:
        second = to_store(parts.live_encoder, dtype)
        stored |= {LIVE_ENCODER + name: tensor for name, tensor in second.items()}
    save_file(stored, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config = _Stored(KIND, parts.name, parts.network.config, parts.rules, parts.live)
    data = {"version": FORMAT_VERSION, **dataclasses.asdict(config)}
    (folder / CONFIG_FILE).write_text(json.dumps(data) + "\n", encoding="utf-8")
    (folder / TOKENIZER_FILE).write_bytes(parts.tokenizer.to_bytes())


def load_whisper(folder: Path) -> WhisperParts:
    """Read a folder that `save_whisper` wrote, weights in float32.

    Raises CheckpointError for anything missing, unknown, of the wrong shape or unreadable.
    """
    path = folder / CONFIG_FILE
    data = read_json(path)
    if data.pop("version", None) != FORMAT_VERSION or data.get("kind") != KIND:
        raise CheckpointError(
            f"{path} is no Whisper of version {FORMAT_VERSION}; update the package, or convert the "
            "model again"
        )
    try:
        config = from_json(_Stored, data, path.name)
    except OptionError as error:
        raise CheckpointError(f"{path}: {error}") from error
    tokenizer = _tokenizer(folder)
    source = str(folder / WEIGHTS_FILE)
    stored = read_safetensors(folder / WEIGHTS_FILE)
    weights = from_store(stored, source)
    second = {name: weights.pop(name) for name in list(weights) if name.startswith(LIVE_ENCODER)}
    names: Names = {name: (name,) for name in _shapes(config.network)}
    network = _adopt(config.network, weights, names, source)
    parts = _parts(network, tokenizer, config.rules, config.name, folder, config.live)
    live_encoder = _live_encoder(config, second, source) if second else None
    return dataclasses.replace(parts, int8=has_int8(stored), live_encoder=live_encoder)


def _live_encoder(config: _Stored, weights: dict[str, Tensor], source: str) -> WhisperEncoder:
    """The second encoder of a folder in our own layout."""
    if config.live is None:
        raise CheckpointError(f"{source} has a live encoder, but {CONFIG_FILE} has no live section")
    with torch.device("meta"):
        encoder = WhisperEncoder(config.network)
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    names: Names = {name: (LIVE_ENCODER + name,) for name in shapes}
    encoder.load_state_dict(adopted(shapes, weights, names, source), assign=True)
    return encoder.eval().requires_grad_(False)


# -- CTranslate2 -----------------------------------------------------------------------------------

_CT2_ENCODER_LAYER = {
    "attention_norm": "self_attention/layer_norm",
    "attention.qkv": "self_attention/linear_0",
    "attention.out": "self_attention/linear_1",
    "ff_norm": "ffn/layer_norm",
    "ff.up": "ffn/linear_0",
    "ff.down": "ffn/linear_1",
}
_CT2_DECODER_LAYER = _CT2_ENCODER_LAYER | {
    "cross_norm": "attention/layer_norm",
    "cross.query": "attention/linear_0",
    "cross.key_value": "attention/linear_1",
    "cross.out": "attention/linear_2",
}
_CT2_MODULES = {
    "encoder.conv1": "encoder/conv1",
    "encoder.conv2": "encoder/conv2",
    "encoder.norm": "encoder/layer_norm",
    "decoder.norm": "decoder/layer_norm",
}
_CT2_TENSORS: Names = {
    "encoder.positions": ("encoder/position_encodings/encodings",),
    "decoder.positions": ("decoder/position_encodings/encodings",),
    "decoder.logits.weight": ("decoder/embeddings/weight",),
}
_CT2_PROJECTION = "decoder/projection/weight"


def read_ctranslate2(folder: Path) -> WhisperParts:
    """Read a folder that CTranslate2 converted, whatever its precision, in float32.

    Raises CheckpointError for what is damaged, incomplete, no Whisper, or built in another way
    than the published ones.
    """
    variables = read_variables(folder / BIN_FILE)
    network = ctranslate2_network(variables, folder / BIN_FILE)
    tokenizer = _tokenizer(folder)
    root = Section(read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    rules = TextRules(
        multilingual=tokenizer.has_empty_piece,
        suppressed=root.integers("suppress_ids", (), most=MOST_SUPPRESSED),
        suppressed_first=root.integers("suppress_ids_begin", (), most=MOST_SUPPRESSED),
        alignment_heads=_heads(root, network.config),
    )
    parts = _parts(network, tokenizer, rules, folder.name, folder)
    return dataclasses.replace(parts, int8=has_int8(variables.tensors))


def is_ctranslate2(folder: Path) -> bool:
    """Whether a path is a folder that CTranslate2 converted."""
    return (folder / BIN_FILE).is_file() and any(folder.glob("vocabulary.*"))


def has_int8(tensors: Mapping[str, Tensor]) -> bool:
    """Whether matrices are stored in 8 bits."""
    return any(tensor.dtype == torch.int8 for tensor in tensors.values() if tensor.dim() > 1)


def read_ctranslate2_weights(path: Path) -> Whisper:
    """The network alone from CTranslate2's `model.bin`; errors as those of `read_ctranslate2`."""
    return ctranslate2_network(read_variables(path), path)


def ctranslate2_network(variables: Variables, path: Path) -> Whisper:
    """The network that the variables of `path` describe; errors as those of `read_ctranslate2`."""
    if variables.specification != SPECIFICATION or variables.revision != REVISION:
        raise CheckpointError(
            f"{path} holds {variables.specification[:40]!r} of revision {variables.revision}; of "
            f"the models of CTranslate2 only {SPECIFICATION} of revision {REVISION} is read here"
        )
    weights = plain_floats(variables, str(path))
    config = _ctranslate2_config(weights, str(path))
    names = dict(_CT2_TENSORS)
    modules = dict(_CT2_MODULES)
    for part, layers, table in (
        ("encoder", config.encoder_layers, _CT2_ENCODER_LAYER),
        ("decoder", config.decoder_layers, _CT2_DECODER_LAYER),
    ):
        for i in range(layers):
            prefix = f"{part}/layer_{i}/"
            modules |= {f"{part}.layers.{i}.{ours}": prefix + n for ours, n in table.items()}
    for ours, theirs in modules.items():
        norm = theirs.endswith("layer_norm")
        names[f"{ours}.weight"] = (f"{theirs}/{'gamma' if norm else 'weight'}",)
        names[f"{ours}.bias"] = (f"{theirs}/{'beta' if norm else 'bias'}",)
    tensors = {name: t for name, t in weights.items() if t.dim()}
    if tensors.pop(_CT2_PROJECTION, None) is None:
        raise CheckpointError(f"{path} lacks {_CT2_PROJECTION}; fetch it again")
    return _adopt(config, tensors, names, str(path))


def _ctranslate2_config(weights: Mapping[str, Tensor], source: str) -> WhisperConfig:
    """The sizes of a model, of its own tensors; what we do not compute is refused."""

    def shape(name: str, rank: int) -> torch.Size:
        if name not in weights or weights[name].dim() != rank:
            raise CheckpointError(f"{source} lacks {name}, or has another shape; fetch it again")
        return weights[name].shape

    def number(name: str, default: int | None = None) -> int:
        if name not in weights and default is not None:
            return default
        shape(name, 0)
        return int(weights[name])

    other = number("decoder/activation", GELU) != GELU or not number("decoder/pre_norm", 1)
    if other or number("decoder/scale_embeddings", 0) or number("decoder/alibi", 0):
        raise CheckpointError(f"{source}: this Whisper is built in another way than OpenAI's")
    dim, n_mels, _ = shape("encoder/conv1/weight", 3)
    try:
        return WhisperConfig(
            n_mels=n_mels,
            dim=dim,
            ff_dim=shape("encoder/layer_0/ffn/linear_0/weight", 2)[0],
            encoder_heads=number("encoder/num_heads"),
            decoder_heads=number("decoder/num_heads"),
            encoder_layers=_layers(weights, "encoder", source),
            decoder_layers=_layers(weights, "decoder", source),
            vocab_size=shape("decoder/embeddings/weight", 2)[0],
            audio_positions=shape("encoder/position_encodings/encodings", 2)[0],
            text_positions=shape("decoder/position_encodings/encodings", 2)[0],
        )
    except OptionError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _layers(weights: Mapping[str, Tensor], part: str, source: str) -> int:
    found = {int(m[1]) for name in weights if (m := re.match(rf"{part}/layer_(\d{{1,3}})/", name))}
    if not found or found != set(range(len(found))) or len(found) > MOST_LAYERS:
        raise CheckpointError(f"{source}: the layers of its {part} are not numbered from 0 on")
    return len(found)


# -- Transformers ----------------------------------------------------------------------------------

_HF_ATTENTION = ("q_proj", "k_proj", "v_proj")
_HF_LAYER = {
    "attention_norm": ("self_attn_layer_norm",),
    "attention.qkv": tuple(f"self_attn.{p}" for p in _HF_ATTENTION),
    "attention.out": ("self_attn.out_proj",),
    "ff_norm": ("final_layer_norm",),
    "ff.up": ("fc1",),
    "ff.down": ("fc2",),
}
_HF_DECODER_LAYER = _HF_LAYER | {
    "cross_norm": ("encoder_attn_layer_norm",),
    "cross.query": ("encoder_attn.q_proj",),
    "cross.key_value": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross.out": ("encoder_attn.out_proj",),
}
_HF_MODULES = {
    "encoder.conv1": ("model.encoder.conv1",),
    "encoder.conv2": ("model.encoder.conv2",),
    "encoder.norm": ("model.encoder.layer_norm",),
    "decoder.norm": ("model.decoder.layer_norm",),
}
_HF_TENSORS: Names = {
    "encoder.positions": ("model.encoder.embed_positions.weight",),
    "decoder.positions": ("model.decoder.embed_positions.weight",),
    "decoder.logits.weight": ("model.decoder.embed_tokens.weight",),
}
_HF_PROJECTION = "proj_out.weight"


def read_transformers(folder: Path) -> WhisperParts:
    """Read a folder that Transformers wrote, its weights whole or in shards, in float32.

    Raises CheckpointError for anything damaged, incomplete, or built in another way than the
    published ones.
    """
    root = Section(read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    config = _transformers_config(root)
    tokenizer = _tokenizer(folder)
    generation = Section(read_json(folder / GENERATION_FILE), str(folder / GENERATION_FILE))
    if generation.get("no_timestamps_token_id") != tokenizer.no_timestamps:
        raise CheckpointError(
            f"{folder}: the tokenizer and {GENERATION_FILE} do not agree on the "
            "no_timestamps_token_id; one of them is missing or too old, fetch the model again"
        )
    rules = TextRules(
        multilingual=bool(generation.get("lang_to_id")),
        suppressed=_tokens(generation, "suppress_tokens"),
        suppressed_first=_tokens(generation, "begin_suppress_tokens"),
        alignment_heads=_heads(generation, config),
        median_width=root.integer("median_filter_width", 7, most=101),
    )
    names = dict(_HF_TENSORS)
    modules: dict[str, tuple[str, ...]] = dict(_HF_MODULES)
    for part, layers, table in (
        ("encoder", config.encoder_layers, _HF_LAYER),
        ("decoder", config.decoder_layers, _HF_DECODER_LAYER),
    ):
        for i in range(layers):
            prefix = f"model.{part}.layers.{i}."
            for ours, theirs in table.items():
                modules[f"{part}.layers.{i}.{ours}"] = tuple(prefix + name for name in theirs)
    for ours, theirs in modules.items():
        names[f"{ours}.weight"] = tuple(f"{name}.weight" for name in theirs)
        # Keys have no bias there: it would change no attention.
        names[f"{ours}.bias"] = tuple(
            None if name.endswith("k_proj") else f"{name}.bias" for name in theirs
        )
    weights = {name: t.float() for name, t in read_weights(folder).items()}
    weights.pop(_HF_PROJECTION, None)
    network = _adopt(config, weights, names, str(folder))
    return _parts(network, tokenizer, rules, folder.name, folder)


def _transformers_config(root: Section) -> WhisperConfig:
    root.only("activation_function", ("gelu",), "gelu")
    root.only("scale_embedding", (False,), False)
    root.only("tie_word_embeddings", (True,), True)
    ff_dim = root.integer("encoder_ffn_dim")
    root.only("decoder_ffn_dim", (ff_dim,))
    layers = [root.integer(f"{part}_layers", most=MOST_LAYERS) for part in ("encoder", "decoder")]
    try:
        return WhisperConfig(
            n_mels=root.integer("num_mel_bins", most=1024),
            dim=root.integer("d_model"),
            ff_dim=ff_dim,
            encoder_heads=root.integer("encoder_attention_heads"),
            decoder_heads=root.integer("decoder_attention_heads"),
            encoder_layers=layers[0],
            decoder_layers=layers[1],
            vocab_size=root.integer("vocab_size"),
            audio_positions=root.integer("max_source_positions"),
            text_positions=root.integer("max_target_positions"),
        )
    except OptionError as error:
        raise CheckpointError(f"{root.where}: {error}") from error


def _tokens(section: Section, key: str) -> tuple[int, ...]:
    """A list of token ids, which may be absent or null."""
    return section.integers(key, most=MOST_SUPPRESSED) if section.get(key) else ()


# -- all layouts -----------------------------------------------------------------------------------


def _heads(section: Section, config: WhisperConfig) -> tuple[tuple[int, int], ...]:
    """The alignment heads that a model names, or none."""
    named: Any = section.get("alignment_heads") or []
    try:
        heads = tuple((int(layer), int(head)) for layer, head in named)
    except (TypeError, ValueError):
        heads = ((-1, -1),)
    _check_heads(heads, config, section.where)
    return heads


def _check_heads(heads: tuple[tuple[int, ...], ...], config: WhisperConfig, where: str) -> None:
    for pair in heads:
        inside = len(pair) == 2 and 0 <= pair[0] < config.decoder_layers
        if not inside or not 0 <= pair[1] < config.decoder_heads:
            raise CheckpointError(
                f"{where}: alignment_heads must be pairs of one of {config.decoder_layers} layers "
                f"and one of {config.decoder_heads} heads, not {pair}"
            )


def _tokenizer(folder: Path) -> WhisperTokenizer:
    try:
        return WhisperTokenizer(read_capped(folder / TOKENIZER_FILE, LARGEST_TOKENIZER_BYTES))
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def _parts(
    network: Whisper,
    tokenizer: WhisperTokenizer,
    rules: TextRules,
    name: str,
    folder: Path,
    live: LiveConfig | None = None,
) -> WhisperParts:
    """The parts, once they are known to belong together."""
    size = network.config.vocab_size
    marks = (tokenizer.start, tokenizer.end, tokenizer.no_timestamps, tokenizer.no_speech)
    if max(*marks, *rules.suppressed, *rules.suppressed_first) >= size:
        raise CheckpointError(
            f"{folder}: the tokenizer or the suppressed tokens belong to another model than the "
            f"weights, which know {size} tokens; fetch the whole model again"
        )
    _check_heads(rules.alignment_heads, network.config, str(folder))
    return WhisperParts(network, tokenizer, rules, name, live)


def _shapes(config: WhisperConfig) -> dict[str, torch.Size]:
    """What is stored of a network, by name."""
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in Whisper(config).state_dict().items()}
    del shapes[TIED]
    return shapes


def _adopt(config: WhisperConfig, weights: dict[str, Tensor], names: Names, source: str) -> Whisper:
    """Our network from tensors in float32; errors as those of `adopted`."""
    tensors = adopted(_shapes(config), weights, names, source)
    with torch.device("meta"):
        network = Whisper(config)
    network.load_state_dict({**tensors, TIED: tensors["decoder.logits.weight"]}, assign=True)
    network.decoder.logits.weight = network.decoder.embedding.weight
    return network.eval().requires_grad_(False)


def adopted(
    shapes: Mapping[str, torch.Size], weights: dict[str, Tensor], names: Names, source: str
) -> dict[str, Tensor]:
    """Tensors of these shapes by our names, from foreign ones that are each used exactly once.

    Raises CheckpointError naming tensors that are missing, unknown, of another shape, or not
    finite; nothing is allocated before that.
    """
    expected = {name for ours in shapes for name in names[ours] if name}
    missing, unknown = expected - weights.keys(), weights.keys() - expected
    if missing or unknown:
        raise CheckpointError(
            f"{source}: the weights do not belong to the configuration"
            + (f"; missing: {listed(missing)}" if missing else "")
            + (f"; unknown: {listed(unknown)}" if unknown else "")
        )
    tensors: dict[str, Tensor] = {}
    for ours, shape in shapes.items():
        parts = names[ours]
        wanted = (shape[0] // len(parts), *shape[1:]) if shape else ()
        for name in filter(None, parts):
            if tuple(weights[name].shape) != wanted:
                raise CheckpointError(
                    f"{source}: {name} has shape {tuple(weights[name].shape)}, expected {wanted}"
                )
            if not bool(weights[name].sum().isfinite()):
                raise CheckpointError(f"{source}: {name} holds NaN or infinite numbers")
        pieces = [weights[name] if name else torch.zeros(wanted) for name in parts]
        tensors[ours] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return tensors
