"""Reading Hugging Face folders: Nemotron streaming and Parakeet models as Transformers writes them.

The configuration is incomplete: the architecture implies causal convolutions with layer norm and
plain features (Nemotron), or symmetric ones with batch norm and normalized features (Parakeet).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pianissimo.audio.features import FeatureConfig
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.asr import MOST_LAYERS, AsrConfig, AsrModel, PromptConfig
from pianissimo.models.checkpoints.config_json import (
    CONFIG_FILE,
    Parsed,
    Section,
    listed,
    read_capped,
    read_json,
    shown,
)
from pianissimo.models.checkpoints.format import (
    ModuleTable,
    convert,
    language_prompts,
    module_table,
)
from pianissimo.models.fastconformer import EncoderConfig
from pianissimo.models.transducer import TransducerConfig
from pianissimo.text.tokenizer import BLANK, Tokenizer

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PROCESSOR_FILE = "processor_config.json"
FEATURES_FILE = "preprocessor_config.json"
TOKENIZER_FILE = "tokenizer.json"
LARGEST_TOKENIZER_BYTES = 64 << 20
_SHARD_NAME = re.compile(r"[\w.-]+\.safetensors")

MODULES = {
    "encoder.subsampling.out": "encoder.subsampling.linear",
    "predictor.embedding": "decoder.embedding",
    "predictor.lstm": "decoder.lstm",
    "joiner.encoder": "encoder_projector",
    "joiner.predictor": "decoder.decoder_projector",
    "joiner.out": "joint.head",
    "ctc.out": "ctc_head",
    "prompt.up": "prompt_projector.linear_1",
    "prompt.down": "prompt_projector.linear_2",
}
LAYER: ModuleTable = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "attention.position": ("self_attn.relative_k_proj",),
    "attention.bias_u": ("self_attn.bias_u",),
    "attention.bias_v": ("self_attn.bias_v",),
    "conv.norm": ("conv.norm",),
}


@dataclass(frozen=True)
class Architecture:
    """The properties that an architecture's name implies."""

    head: Literal["rnnt", "tdt", "ctc"]
    streaming: bool = False
    prompts: bool = False

    @property
    def extractor(self) -> str:
        return f"{'NemotronAsrStreaming' if self.streaming else 'Parakeet'}FeatureExtractor"


FAMILIES = {
    "NemotronAsrStreamingForRNNT": Architecture("rnnt", streaming=True),
    "Nemotron3_5AsrForRNNT": Architecture("rnnt", streaming=True, prompts=True),
    "ParakeetForCTC": Architecture("ctc"),
    "ParakeetForRNNT": Architecture("rnnt"),
    "ParakeetForTDT": Architecture("tdt"),
}


def read_huggingface(folder: Path) -> tuple[AsrModel, Tokenizer]:
    """Read a folder of Transformers, with weights whole or in shards, as float32.

    Raises CheckpointError for a damaged, incomplete or unsupported model.
    """
    data = read_json(folder / CONFIG_FILE)
    config = config_from_huggingface(data, _read_processor(folder), str(folder), folder.name)
    tokenizer = _read_tokenizer(folder, config.vocab_size)
    table = huggingface_names(config)
    return convert(config, read_weights(folder), table, str(folder)), tokenizer


def huggingface_names(config: AsrConfig) -> ModuleTable:
    """The names of all modules in Transformers; Parakeet numbers convolutions as NeMo does."""
    ours, theirs = "encoder.subsampling", "encoder.subsampling"
    nemotron = config.encoder.causal_subsampling
    modules = {f"{ours}.conv.0": f"{theirs}.conv_in" if nemotron else f"{theirs}.layers.0"}
    for i in range(1, config.encoder.subsampling_stages):
        depthwise, pointwise = f"layers.{3 * i - 1}", f"layers.{3 * i}"
        if nemotron:
            depthwise, pointwise = (f"layers.{i - 1}.{n}_conv" for n in ("depthwise", "pointwise"))
        modules[f"{ours}.conv.{i}"] = f"{theirs}.{depthwise}"
        modules[f"{ours}.pointwise.{i - 1}"] = f"{theirs}.{pointwise}"
    return module_table(config.encoder.layers, MODULES | modules, LAYER)


# -- configuration ---------------------------------------------------------------------------------


def config_from_huggingface(
    data: Mapping[str, Parsed], processor: Mapping[str, Parsed], source: str, name: str = "unnamed"
) -> AsrConfig:
    """The configuration of a parsed `config.json` and `processor_config.json`.

    Every key is required, because the defaults of Transformers are not those of its models. Raises
    CheckpointError naming the key, its value and what is supported. Dropout is ignored.
    """
    root = Section(data, source)
    family = _family(root)
    outputs = root.integer("vocab_size", least=2)
    blank = "pad_token_id" if family.head == "ctc" else "blank_token_id"
    root.only(blank, (outputs - 1,))
    transducer = None
    if family.head != "ctc":
        root.only("hidden_act", ("relu",))
        width = root.integer("decoder_hidden_size", most=1 << 14)
        transducer = TransducerConfig(
            vocab_size=outputs - 1,
            predictor_dim=width,
            predictor_layers=root.integer("num_decoder_layers", most=16),
            joint_dim=width,
            durations=root.integers("durations") if family.head == "tdt" else (),
        )
    processing = Section(processor, f"{source}: {PROCESSOR_FILE}")
    prompts = None
    if family.prompts:
        count = root.integer("num_prompts", most=1 << 14)
        prompts = PromptConfig(
            count=count,
            hidden=root.integer("prompt_intermediate_size", most=1 << 16),
            default=root.integer("default_prompt_id", least=0, most=count - 1),
            languages=language_prompts(processing.section("prompt_dictionary"), count),
        )
    try:
        return AsrConfig(
            vocab_size=outputs - 1,
            features=_features(processing.section("feature_extractor"), family),
            encoder=_encoder(root.section("encoder_config"), processing, family),
            transducer=transducer,
            ctc=family.head == "ctc",
            prompts=prompts,
            max_symbols=10 if transducer is None else root.integer("max_symbols_per_step"),
            name=name,
        )
    except OptionError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _family(root: Section) -> Architecture:
    architectures = root.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise root.fail("architectures", "one architecture")
    if not isinstance(architectures[0], str) or architectures[0] not in FAMILIES:
        raise root.fail("architectures", ", ".join(FAMILIES))
    return FAMILIES[architectures[0]]


def _features(extractor: Section, family: Architecture) -> FeatureConfig:
    extractor.only("feature_extractor_type", (family.extractor,))
    extractor.only("mel_filters_dtype", ("float32",), "float32")
    rate = extractor.only("sampling_rate", (SAMPLE_RATE,))
    window = extractor.integer("win_length", least=2, most=1 << 16)
    fft = extractor.integer("n_fft", most=1 << 16)
    if fft < window or (fft - window) % 2:
        raise extractor.fail("n_fft", f"an even number of samples from the window, {window}, on")
    return FeatureConfig(
        n_mels=extractor.integer("feature_size", most=1024),
        sample_rate=rate,
        fft_samples=fft,
        window_samples=window,
        hop_samples=extractor.integer("hop_length", most=1 << 16),
        preemphasis=extractor.number("preemphasis"),
        normalize="none" if family.streaming else "per_feature",
    )


def _encoder(encoder: Section, processor: Section, family: Architecture) -> EncoderConfig:
    heads = encoder.integer("num_attention_heads", most=1 << 10)
    encoder.only("num_key_value_heads", (heads,), heads)
    encoder.only("hidden_act", ("silu",))
    encoder.only("subsampling_conv_kernel_size", (3,))
    encoder.only("subsampling_conv_stride", (2,))
    kernel = encoder.integer("conv_kernel_size", most=1023)
    if kernel % 2 == 0:
        raise encoder.fail("conv_kernel_size", "an odd number")
    left: int | None = None
    lookaheads: tuple[int, ...] = ()
    if family.streaming:
        left = encoder.integer("sliding_window", most=1 << 16) - 1
        lookaheads = _lookaheads(processor)
    return EncoderConfig(
        n_mels=encoder.integer("num_mel_bins", most=1024),
        dim=encoder.integer("hidden_size", most=1 << 14),
        layers=encoder.integer("num_hidden_layers", most=MOST_LAYERS),
        heads=heads,
        ff_dim=encoder.integer("intermediate_size"),
        conv_kernel=kernel,
        conv_norm="layer" if family.streaming else "folded",
        causal_conv=family.streaming,
        subsampling_factor=encoder.integer("subsampling_factor", most=64),
        subsampling_channels=encoder.integer("subsampling_conv_channels", most=1 << 14),
        causal_subsampling=family.streaming,
        attention_bias=encoder.flag("attention_bias"),
        conv_bias=encoder.flag("convolution_bias"),
        scale_input=encoder.flag("scale_input"),
        left_context=left,
        lookaheads=lookaheads,
    )


def _lookaheads(processor: Section) -> tuple[int, ...]:
    """The lookaheads of the model, the default one first."""
    supported = processor.integers("supported_num_lookahead_tokens")
    if not supported:
        raise processor.fail("supported_num_lookahead_tokens", "at least one lookahead")
    default = processor.only("default_num_lookahead_tokens", supported)
    return tuple(dict.fromkeys((default, *supported)))


# -- files -----------------------------------------------------------------------------------------


def _read_processor(folder: Path) -> dict[str, Parsed]:
    """The processor's settings; older Parakeet folders have a separate file for the features."""
    if (folder / PROCESSOR_FILE).is_file() or not (folder / FEATURES_FILE).is_file():
        processor = read_json(folder / PROCESSOR_FILE)
    else:
        processor = {}
    if "feature_extractor" not in processor and (folder / FEATURES_FILE).is_file():
        processor["feature_extractor"] = read_json(folder / FEATURES_FILE)
    return processor


def _read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer, which must have `vocab_size` pieces before its special tokens."""
    data = read_capped(folder / TOKENIZER_FILE, LARGEST_TOKENIZER_BYTES)
    tokenizer = Tokenizer.from_hf_json(data)
    extra = set(range(vocab_size, tokenizer.vocab_size))
    if extra and extra <= tokenizer.special_ids:
        tokenizer = Tokenizer.from_hf_json(_without_ids(data, extra))
    if tokenizer.vocab_size != vocab_size:
        raise CheckpointError(
            f"{folder}: {TOKENIZER_FILE} has {tokenizer.vocab_size} pieces, {CONFIG_FILE} has "
            f"{vocab_size}; they belong to different models"
        )
    return tokenizer


def _without_ids(data: bytes, ids: set[int]) -> bytes:
    """A tokenizer.json without the padding or blank token after the pieces."""
    root = json.loads(data)
    vocabulary = root["model"]["vocab"]
    if isinstance(vocabulary, dict):
        root["model"]["vocab"] = {p: i for p, i in vocabulary.items() if i not in ids}
    added = root.get("added_tokens") or []
    root["added_tokens"] = [t for t in added if t["id"] not in ids and t["content"] != BLANK]
    return json.dumps(root, ensure_ascii=False).encode()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, or of all its shards; CheckpointError otherwise."""
    if (folder / WEIGHTS_FILE).is_file():
        return read_safetensors(folder / WEIGHTS_FILE)
    if not (folder / INDEX_FILE).is_file():
        raise CheckpointError(
            f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}; download the whole model again "
            "(weights in pickle files are not read)"
        )
    shards = _read_index(folder / INDEX_FILE)
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the {len(shards)} files with its weights: "
            f"{listed(missing)}; download the whole model again"
        )
    weights: dict[str, Tensor] = {}
    for shard, names in shards.items():
        tensors = read_safetensors(folder / shard)
        if tensors.keys() != names:
            raise CheckpointError(
                f"{folder / shard} does not have the tensors of {INDEX_FILE}; missing or unknown: "
                f"{listed(tensors.keys() ^ names)}"
            )
        weights |= tensors
    return weights


def _read_index(path: Path) -> dict[str, set[str]]:
    """Shard -> the names of its tensors."""
    placed = read_json(path).get("weight_map")
    if not isinstance(placed, dict):
        raise CheckpointError(f"{path} has no weight_map; download it again")
    shards: dict[str, set[str]] = {}
    for name, shard in placed.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{path} maps {name[:200]} to {shown(shard)}, which is not the name of a shard"
            )
        shards.setdefault(shard, set()).add(name)
    return dict(sorted(shards.items()))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file; CheckpointError if it is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download it again") from error
