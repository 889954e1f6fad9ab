"""Reading folders of the wav2vec 2.0 family as Transformers writes them.

`config.json` has the family and the shape, `preprocessor_config.json` whether the waveform is
normalized, `vocab.json` and `tokenizer_config.json` the symbols of the outputs. Weights are read
from safetensors, whole or in shards, or from `pytorch_model.bin` as plain tensors. Every tensor is
used once or known to be needed for training only; other tensors are an error.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.asr import MOST_LAYERS
from pianissimo.models.checkpoints.archive import read_tensors
from pianissimo.models.checkpoints.config_json import (
    CONFIG_FILE,
    Parsed,
    Section,
    listed,
    read_json,
    shown,
)
from pianissimo.models.checkpoints.huggingface import (
    FEATURES_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    read_safetensors,
    read_weights,
)
from pianissimo.models.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from pianissimo.models.wav2vec2_bert import STACKED, Wav2Vec2Bert, Wav2Vec2BertConfig
from pianissimo.text.characters import Alphabet

Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)
Names: TypeAlias = Mapping[str, tuple[str, ...]]
"""Tensor of this package -> the foreign tensors that it is made of."""

PICKLE_FILE = "pytorch_model.bin"
VOCABULARY_FILE = "vocab.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
ADDED_TOKENS_FILE = "added_tokens.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
PROCESSOR_FILE = "processor_config.json"

FAMILIES = {
    "wav2vec2": ("Wav2Vec2ForCTC", "wav2vec2"),
    "hubert": ("HubertForCTC", "hubert"),
    "data2vec-audio": ("Data2VecAudioForCTC", "data2vec_audio"),
    "wavlm": ("WavLMForCTC", "wavlm"),
}
"""`model_type` -> the supported architecture, and the prefix of its weights."""

BERT = "wav2vec2-bert"
EXTRACTORS = ("Wav2Vec2FeatureExtractor",)
BERT_EXTRACTORS = ("SeamlessM4TFeatureExtractor",)
TOKENIZERS = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
DEFAULT_LANGUAGE = "eng"
"""The default language of an MMS model, as in Transformers."""

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]+)*")
_WEIGHT_NORM = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
"""The weight norm's tensors in older checkpoints and now."""


def read_wav2vec2(
    folder: Path, language: str | None = None
) -> tuple[Wav2Vec2 | Wav2Vec2Bert, Alphabet]:
    """Read a folder of one of the `FAMILIES` or of Wav2Vec2-BERT, weights as float32.

    `language` selects the adapter of a multilingual model (MMS), such as "fra"; others have none.
    Raises CheckpointError for a damaged, incomplete or unsupported model, OptionError for a missing
    language.
    """
    source = str(folder)
    root = Section(read_json(folder / CONFIG_FILE), source)
    if root.get("model_type") == BERT:
        return _read_bert(folder, root, language)
    config = replace(config_from_transformers(root, folder), name=folder.name)
    prefix = FAMILIES[root.data["model_type"]][1]
    vocabulary, own = _vocabulary(folder, config, language)
    weights = _tensors(folder)
    if config.adapter_dim:
        config = replace(config, language=language or own)
        if language is not None:
            adapter = _adapter(folder, language, own, _adapter_names(prefix, config))
            weights |= adapter
            if adapter:  # each language has a head of its own size
                config = replace(config, outputs=adapter["lm_head.weight"].shape[:1].numel())
    alphabet = read_alphabet(folder, vocabulary, config.outputs)
    names = _names(config)
    return build(Wav2Vec2, config, _renamed(weights, prefix, names, source), names), alphabet


def config_from_transformers(root: Section, folder: Path) -> Wav2Vec2Config:
    """The configuration of `config.json` and `preprocessor_config.json`.

    An absent key has the default of Transformers, which is that of the base model. Raises
    CheckpointError naming the key, its value and what is supported.
    """
    family = root.only("model_type", tuple(FAMILIES))
    _check_architecture(root, FAMILIES[family][0])
    data2vec = family == "data2vec-audio"
    root.only("hidden_act", ("gelu",), "gelu")
    root.only("feat_extract_activation", ("gelu",), "gelu")
    root.only("add_adapter", (False,), False)
    root.only("conv_pos_batch_norm", (False,), False)
    norm_first = not data2vec and root.flag("do_stable_layer_norm", False)
    adapter = 0
    if family == "wav2vec2" and "adapter_attn_dim" in root:
        adapter = root.integer("adapter_attn_dim", most=1 << 14)
    kernel = "conv_pos_kernel_size" if data2vec else "num_conv_pos_embeddings"
    try:
        return Wav2Vec2Config(
            outputs=root.integer("vocab_size", 32, least=2),
            dim=root.integer("hidden_size", 768, most=1 << 14),
            layers=root.integer("num_hidden_layers", 12, most=MOST_LAYERS),
            heads=root.integer("num_attention_heads", 12, most=1 << 10),
            ff_dim=root.integer("intermediate_size", 3072),
            norm_eps=root.number("layer_norm_eps", 1e-5),
            norm_first=norm_first,
            conv_dims=_sizes(root, "conv_dim", (512,) * 7),
            conv_kernels=_sizes(root, "conv_kernel", (10, 3, 3, 3, 3, 2, 2), most=1024),
            conv_strides=_sizes(root, "conv_stride", (5, 2, 2, 2, 2, 2, 2), most=1024),
            conv_bias=root.flag("conv_bias", False),
            conv_norm="layer"
            if data2vec
            else root.only("feat_extract_norm", ("group", "layer"), "group"),
            norm_projection=family != "hubert" or root.flag("feat_proj_layer_norm", True),
            position_kernel=root.integer(kernel, 19 if data2vec else 128, most=1024),
            position_groups=root.integer("num_conv_pos_embedding_groups", 16, most=1 << 10),
            position_layers=root.integer("num_conv_pos_embeddings", 5, most=64)
            if data2vec
            else None,
            relative_buckets=root.integer("num_buckets", 320, least=4) if family == "wavlm" else 0,
            relative_distance=root.integer("max_bucket_distance", 800, least=2),
            adapter_dim=adapter,
            normalize=_normalizes(folder),
        )
    except OptionError as error:
        raise CheckpointError(f"{root.where}: {error}") from error


def _check_architecture(root: Section, supported: str) -> None:
    names = root.get("architectures")
    if not isinstance(names, list) or names != [supported]:
        if isinstance(names, list) and any(str(name).endswith("ForPreTraining") for name in names):
            raise CheckpointError(
                f"{root.where} is a pre-trained model without a head for text; "
                "choose a model fine-tuned for speech recognition"
            )
        raise root.fail("architectures", supported)


def _sizes(root: Section, key: str, default: Iterable[int], most: int = 1 << 14) -> tuple[int, ...]:
    sizes = root.integers(key, tuple(default))
    if not sizes or not all(1 <= size <= most for size in sizes):
        raise root.fail(key, f"a list of a few integers from 1 to {most}")
    return sizes


def _extractor(folder: Path) -> Section:
    """The settings of the feature extractor, in its own file or in that of the processor."""
    if not (folder / FEATURES_FILE).is_file() and (folder / PROCESSOR_FILE).is_file():
        processor = Section(read_json(folder / PROCESSOR_FILE), f"{folder}: {PROCESSOR_FILE}")
        return processor.section("feature_extractor")
    return Section(read_json(folder / FEATURES_FILE), f"{folder}: {FEATURES_FILE}")


def _normalizes(folder: Path) -> bool:
    """Whether waveforms are normalized to zero mean and unit variance."""
    extractor = _extractor(folder)
    extractor.only("feature_extractor_type", EXTRACTORS, *EXTRACTORS)
    extractor.only("feature_size", (1,), 1)
    extractor.only("sampling_rate", (SAMPLE_RATE,), SAMPLE_RATE)
    return extractor.flag("do_normalize", True)


# -- vocabulary ------------------------------------------------------------------------------------


def _vocabulary(
    folder: Path, config: Wav2Vec2Config, language: str | None
) -> tuple[dict[str, int], str]:
    """Symbol -> id of the language, and the language of the weights in the model's own file.

    A vocabulary per language is nested.
    """
    data = read_json(folder / VOCABULARY_FILE)
    nested = bool(data) and all(isinstance(value, dict) for value in data.values())
    if language is not None and not (nested and config.adapter_dim):
        raise OptionError(f"{folder.name} has no choice of languages; remove language={language!r}")
    if not nested:
        if config.adapter_dim:
            raise CheckpointError(
                f"{folder / VOCABULARY_FILE} has no languages, but the model has adapters"
            )
        return data, ""
    tokenizer = _optional(folder / TOKENIZER_CONFIG_FILE)
    own = tokenizer.get("target_lang") or DEFAULT_LANGUAGE
    chosen = language or own
    if chosen not in data:
        raise OptionError(
            f"{folder.name} has no language {shown(chosen)}; it has {listed(data, most=2000)}"
        )
    return data[chosen], str(own)


def read_alphabet(folder: Path, vocabulary: Mapping[str, Parsed], outputs: int) -> Alphabet:
    """The symbols of a model's outputs.

    The blank is the tokenizer's padding token, as in Transformers. Raises CheckpointError when an
    output has no symbol, two symbols share one, or the blank is missing.
    """
    where = f"{folder}: {VOCABULARY_FILE}"
    tokenizer = Section(_optional(folder / TOKENIZER_CONFIG_FILE), f"{folder}: tokenizer")
    tokenizer.only("tokenizer_class", (*TOKENIZERS, None), None)
    names = _optional(folder / SPECIAL_TOKENS_FILE)
    special = {
        key: _content(tokenizer.get(key) or names.get(key) or usual)
        for key, usual in SPECIAL_TOKENS.items()
    }
    by_id: dict[int, str] = {}
    for symbol, id in [*vocabulary.items(), *_added(folder, tokenizer)]:
        if not isinstance(id, int) or isinstance(id, bool) or id < 0:
            raise CheckpointError(f"{where}: {shown(symbol)} has the id {shown(id)}")
        # Tokens that the tokenizer adds never replace those of the vocabulary.
        if symbol in vocabulary and by_id.setdefault(id, symbol) != symbol:
            raise CheckpointError(f"{where}: {shown(by_id[id])} and {shown(symbol)} share id {id}")
        by_id.setdefault(id, symbol)
    missing = [str(id) for id in range(outputs) if id not in by_id]
    beyond = [symbol for symbol, id in vocabulary.items() if id >= outputs]
    beyond = [symbol for symbol in beyond if symbol not in special.values()]
    if missing or beyond:
        raise CheckpointError(
            f"{where} and the model's {outputs} outputs do not belong together"
            + (f"; outputs without a symbol: {listed(missing)}" if missing else "")
            + (f"; symbols without an output: {listed(beyond)}" if beyond else "")
        )
    symbols = [by_id[id] for id in range(outputs)]
    if special["pad_token"] not in symbols:
        raise CheckpointError(f"{where} has no {special['pad_token']}, the blank")
    blank = symbols.index(special["pad_token"])
    delimiter = _content(tokenizer.get("word_delimiter_token") or "|")
    silent = set(special.values()) - {delimiter}
    return Alphabet(
        tuple(" " if s == delimiter else "" if s in silent else s for s in symbols),
        blank,
        lower_case=tokenizer.flag("do_lower_case", False),
    )


def _added(folder: Path, tokenizer: Section) -> list[tuple[str, Parsed]]:
    """Tokens of the tokenizer outside the vocabulary: (symbol, id)."""
    added = list(_optional(folder / ADDED_TOKENS_FILE).items())
    decoder = tokenizer.section("added_tokens_decoder").data
    for id, token in decoder.items():
        if str(id).isdecimal():
            added.append((_content(token), int(id)))
    return added


def _content(token: object) -> str:
    """The text of a token, given as text or as an object with properties."""
    text = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(text, str):
        raise CheckpointError(f"a token of the tokenizer is {shown(token)}, expected text")
    return text


def _optional(path: Path) -> dict[str, Parsed]:
    return read_json(path) if path.is_file() else {}


# -- weights ---------------------------------------------------------------------------------------


def _tensors(folder: Path) -> dict[str, Tensor]:
    if any((folder / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE)):
        return read_weights(folder)
    return _pickled(folder / PICKLE_FILE)


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as stream:
            return read_tensors(stream, str(path))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has neither {WEIGHTS_FILE} nor {path.name}; download the model again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error


def _adapter(folder: Path, language: str, own: str, expected: set[str]) -> dict[str, Tensor]:
    """The tensors of one language, which replace those of the model's own file."""
    if not _LANGUAGE.fullmatch(language):
        raise OptionError(f"{shown(language)} is not a language code")
    path = folder / f"adapter.{language}.safetensors"
    if path.is_file():
        tensors = read_safetensors(path)
    elif path.with_suffix(".bin").is_file():
        tensors = _pickled(path.with_suffix(".bin"))
    elif language == own:
        return {}
    else:
        here = {own, *(p.name.split(".")[1] for p in folder.glob("adapter.*.*"))}
        raise OptionError(
            f"{folder} has no {path.name}; copy it there, or choose one of the languages "
            f"{listed(here, most=2000)}"
        )
    if tensors.keys() != expected:
        raise CheckpointError(
            f"{path} is not an adapter of this model; missing or unknown: "
            f"{listed(tensors.keys() ^ expected)}"
        )
    return tensors


def _adapter_names(prefix: str, config: Wav2Vec2Config) -> set[str]:
    """The tensors of one language's adapter: those of all layers, and the head."""
    ours = (n for n in _names(config) if ".adapter." in n)
    inner = {f"{prefix}.{_foreign(name, config)[0]}" for name in ours}
    return inner | {"lm_head.weight", "lm_head.bias"}


def _renamed(
    weights: Mapping[str, Tensor], prefix: str, names: Names, source: str
) -> dict[str, Tensor]:
    """Foreign tensors under our names, joined and folded as our modules hold them."""
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        short = name.removeprefix(f"{prefix}.")
        if short == "masked_spec_embed":
            continue  # stands for masked frames while training
        head, _, leaf = short.rpartition(".")
        plain[f"{head}.{_WEIGHT_NORM[leaf]}" if leaf in _WEIGHT_NORM else short] = tensor
    expected = {theirs for parts in names.values() for theirs in parts}
    missing, unknown = expected - plain.keys(), plain.keys() - expected
    if missing or unknown:
        raise CheckpointError(
            f"{source}: the weights do not belong to the configuration"
            + (f"; missing: {listed(missing)}" if missing else "")
            + (f"; unknown: {listed(unknown)}" if unknown else "")
        )
    for name in expected:
        tensor = plain[name]
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            raise CheckpointError(f"{source}: {name} holds {tensor.dtype}, expected plain floats")
    try:
        return {ours: _joined(ours, [plain[p] for p in parts]) for ours, parts in names.items()}
    except RuntimeError as error:  # parts of sizes that do not fit together
        raise CheckpointError(f"{source}: weights of impossible shapes ({error})") from error


def _names(config: Wav2Vec2Config) -> Names:
    with torch.device("meta"):
        ours = Wav2Vec2(config).state_dict()
    return {name: _foreign(name, config) for name in ours}


_MODULES = {
    "norm_projection": "feature_projection.layer_norm",
    "projection": "feature_projection.projection",
    "relative": "encoder.layers.0.attention.rel_attn_embed",
    "norm": "encoder.layer_norm",
    "head": "lm_head",
}
_LAYER = {
    "out": "attention.out_proj",
    "gate.linear": "attention.gru_rel_pos_linear",
    "norm_attention": "layer_norm",
    "up": "feed_forward.intermediate_dense",
    "down": "feed_forward.output_dense",
    "norm_ff": "final_layer_norm",
    "adapter.norm": "adapter_layer.norm",
    "adapter.down": "adapter_layer.linear_1",
    "adapter.up": "adapter_layer.linear_2",
}


def _foreign(name: str, config: Wav2Vec2Config) -> tuple[str, ...]:
    module, _, leaf = name.rpartition(".")
    if match := re.fullmatch(r"stem\.(conv|norm)s\.(\d+)", module):
        kind = "conv" if match[1] == "conv" else "layer_norm"
        return (f"feature_extractor.conv_layers.{match[2]}.{kind}.{leaf}",)
    if match := re.fullmatch(r"positions\.convs\.(\d+)", module):
        where = "encoder.pos_conv_embed"
        if config.position_layers is not None:
            return (f"{where}.layers.{match[1]}.conv.{leaf}",)
        if leaf == "bias":
            return (f"{where}.conv.bias",)
        return tuple(f"{where}.conv.{part}" for part in _WEIGHT_NORM.values())
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", module):
        where, inner = f"encoder.layers.{match[1]}", match[2]
        if inner == "qkv":
            return tuple(f"{where}.attention.{part}_proj.{leaf}" for part in "qkv")
        if inner == "gate":
            return (f"{where}.attention.gru_rel_pos_const",)
        return (f"{where}.{_LAYER[inner]}.{leaf}",)
    return (f"{_MODULES[module]}.{leaf}",)


def _joined(name: str, parts: list[Tensor]) -> Tensor:
    """One tensor of this package: query, key and value together, the weight norm folded."""
    parts = [part.float() for part in parts]
    if name.endswith("gate.scale"):
        return parts[0].flatten()
    if name.endswith(("conv.up.weight", "conv.down.weight")):
        return parts[0].squeeze(-1)  # a convolution of width 1
    if len(parts) == 2:
        gain, direction = parts
        return direction * (gain / direction.norm(dim=(0, 1), keepdim=True))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def build(
    kind: Callable[[Config], Network], config: Config, weights: Mapping[str, Tensor], names: Names
) -> Network:
    """The network in evaluation mode; CheckpointError names a tensor of the wrong shape."""
    with torch.device("meta"):
        model = kind(config)
    for name, expected in model.state_dict().items():
        if weights[name].shape != expected.shape:
            raise CheckpointError(
                f"{', '.join(names[name])} has shape {tuple(weights[name].shape)}, expected "
                f"{tuple(expected.shape)} from the configuration"
            )
    model.load_state_dict(dict(weights), assign=True)
    return model.eval()


# -- Wav2Vec2-BERT ---------------------------------------------------------------------------------


def _read_bert(folder: Path, root: Section, language: str | None) -> tuple[Wav2Vec2Bert, Alphabet]:
    config = replace(bert_config_from_transformers(root, folder), name=folder.name)
    if language is not None:
        raise OptionError(f"{folder.name} has no choice of languages; remove language={language!r}")
    alphabet = read_alphabet(folder, read_json(folder / VOCABULARY_FILE), config.outputs)
    with torch.device("meta"):
        ours = Wav2Vec2Bert(config).state_dict()
    names = {name: _foreign_bert(name) for name in ours}
    weights = _renamed(_tensors(folder), "wav2vec2_bert", names, str(folder))
    return build(Wav2Vec2Bert, config, weights, names), alphabet


def bert_config_from_transformers(root: Section, folder: Path) -> Wav2Vec2BertConfig:
    """As `config_from_transformers`, for Wav2Vec2-BERT."""
    _check_architecture(root, "Wav2Vec2BertForCTC")
    root.only("hidden_act", ("swish", "silu"), "swish")
    root.only("position_embeddings_type", ("relative_key",), "relative_key")
    root.only("use_intermediate_ffn_before_adapter", (False,), False)
    dim = root.integer("hidden_size", 1024, most=1 << 14)
    adapters = 0
    if root.flag("add_adapter", False):
        adapters = root.integer("num_adapter_layers", 1, most=8)
        root.only("adapter_kernel_size", (3,), 3)
        root.only("adapter_stride", (2,), 2)
        root.only("adapter_act", ("relu",), "relu")
    extractor = _extractor(folder)
    extractor.only("feature_extractor_type", BERT_EXTRACTORS, *BERT_EXTRACTORS)
    extractor.only("sampling_rate", (SAMPLE_RATE,), SAMPLE_RATE)
    extractor.only("stride", (STACKED,), STACKED)
    mels = extractor.integer("num_mel_bins", 80, most=512)
    root.only("feature_projection_input_dim", (STACKED * mels,), STACKED * mels)
    wide = root.integer("output_hidden_size", most=1 << 14) if "output_hidden_size" in root else dim
    try:
        return Wav2Vec2BertConfig(
            outputs=root.integer("vocab_size", least=2),
            mels=mels,
            dim=dim,
            layers=root.integer("num_hidden_layers", 24, most=MOST_LAYERS),
            heads=root.integer("num_attention_heads", 16, most=1 << 10),
            ff_dim=root.integer("intermediate_size", 4096),
            norm_eps=root.number("layer_norm_eps", 1e-5),
            conv_kernel=root.integer("conv_depthwise_kernel_size", 31, most=1023),
            left=root.integer("left_max_position_embeddings", 64, least=0, most=4096),
            right=root.integer("right_max_position_embeddings", 8, least=0, most=4096),
            adapter_layers=adapters,
            adapter_dim=wide,
        )
    except OptionError as error:
        raise CheckpointError(f"{root.where}: {error}") from error


_BERT_MODULES = {
    "norm_projection": "feature_projection.layer_norm",
    "projection": "feature_projection.projection",
    "narrow": "adapter.proj",
    "norm_narrow": "adapter.proj_layer_norm",
    "head": "lm_head",
}
_BERT_LAYER = {
    "norm_ff1": "ffn1_layer_norm",
    "ff1.up": "ffn1.intermediate_dense",
    "ff1.down": "ffn1.output_dense",
    "norm_attention": "self_attn_layer_norm",
    "attention.out": "self_attn.linear_out",
    "attention.positions": "self_attn.distance_embedding",
    "conv.norm_in": "conv_module.layer_norm",
    "conv.up": "conv_module.pointwise_conv1",
    "conv.depthwise": "conv_module.depthwise_conv",
    "conv.norm": "conv_module.depthwise_layer_norm",
    "conv.down": "conv_module.pointwise_conv2",
    "norm_ff2": "ffn2_layer_norm",
    "ff2.up": "ffn2.intermediate_dense",
    "ff2.down": "ffn2.output_dense",
    "norm_out": "final_layer_norm",
}
_BERT_ADAPTER = {
    "norm_residual": "residual_layer_norm",
    "conv_residual": "residual_conv",
    "norm_attention": "self_attn_layer_norm",
    "conv_attention": "self_attn_conv",
    "attention.out": "self_attn.linear_out",
    "norm_ff": "ffn_layer_norm",
    "up": "ffn.intermediate_dense",
    "down": "ffn.output_dense",
}


def _foreign_bert(name: str) -> tuple[str, ...]:
    module, _, leaf = name.rpartition(".")
    match = re.fullmatch(r"(layers|adapter)\.(\d+)\.(.+)", module)
    if not match:
        return (f"{_BERT_MODULES[module]}.{leaf}",)
    encoder = match[1] == "layers"
    where = f"encoder.layers.{match[2]}" if encoder else f"adapter.layers.{match[2]}"
    if match[3] == "attention.qkv":
        return tuple(f"{where}.self_attn.linear_{part}.{leaf}" for part in "qkv")
    return (f"{where}.{(_BERT_LAYER if encoder else _BERT_ADAPTER)[match[3]]}.{leaf}",)
