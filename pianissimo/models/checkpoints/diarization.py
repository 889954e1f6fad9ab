"""Reading diarization networks: Nemotron 3 Diarization of Transformers, Sortformer of NeMo.

Both are untrusted files, see `huggingface.py` and `nemo.py`. How streams are cut is not in the
weights: Sortformer has the sizes of its model card whatever the file says, Nemotron those of its
folder and one more of 10 s, which a CPU can compute live.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.features import FeatureConfig
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.asr import MOST_LAYERS
from pianissimo.models.checkpoints.archive import open_files, read_tensors
from pianissimo.models.checkpoints.config_json import (
    CONFIG_FILE,
    LARGEST_CONFIG_BYTES,
    Parsed,
    Section,
    is_integer,
    parse_yaml,
    read_json,
)
from pianissimo.models.checkpoints.format import (
    NEMO_CONFIG_FILE,
    ModuleTable,
    converted_tensors,
    module_table,
    recognize_format,
)
from pianissimo.models.checkpoints.huggingface import PROCESSOR_FILE, read_weights
from pianissimo.models.checkpoints.nemo import LAYER as ENCODER_LAYER
from pianissimo.models.checkpoints.nemo import (
    WEIGHTS_FILE,
    check_class,
    check_features,
    class_name,
    encoder_from_nemo,
    features_from_nemo,
    subsampling_names,
)
from pianissimo.models.nemotron_diarization import NemotronDiarization, NemotronDiarizationConfig
from pianissimo.models.sortformer import Sortformer, SortformerConfig
from pianissimo.models.speaker_cache import (
    LARGEST_CACHE,
    MOST_SPEAKERS,
    CacheConfig,
    StepSizes,
)

NEMOTRON, SORTFORMER = "Nemotron3DiarizationForAudioFrameClassification", "SortformerEncLabelModel"
TEN_SECONDS = StepSizes(chunk=124, lookahead=1, queue=124, moved=124)
SORTFORMER_OFFLINE = StepSizes(chunk=340, lookahead=40, queue=40, moved=300)
SORTFORMER_LIVE = (
    TEN_SECONDS,
    StepSizes(chunk=6, lookahead=7, queue=188, moved=144),
    StepSizes(chunk=3, lookahead=1, queue=188, moved=144),
)
UNUSED = ("sortformer_modules.hidden_to_spks.weight", "sortformer_modules.hidden_to_spks.bias")
"""Stored by NeMo, and not part of inference."""
_MOST_MODES = 16

Network = TypeVar("Network", NemotronDiarization, Sortformer)

NEMOTRON_MODULES = {
    "project": "model.audio_tower.embedder.projection",
    "norm_in": "model.audio_tower.input_layer_norm",
    "norm_out": "model.audio_tower.layer_norm",
    "narrow": "model.proj",
    "widen": "model.upsampler.conv",
    "hidden": "classifier.dense",
    "out": "classifier.out_proj",
    "silence": "silence_embeds",
}
NEMOTRON_LAYER: ModuleTable = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "norm_attention": ("layer_norm1",),
    "norm_ff": ("layer_norm2",),
    "up": ("mlp.fc1",),
    "down": ("mlp.fc2",),
}
SORTFORMER_MODULES = {
    "encoder.subsampling.out": "encoder.pre_encode.out",
    "project": "sortformer_modules.encoder_proj",
    "hidden": "sortformer_modules.first_hidden_to_hidden",
    "out": "sortformer_modules.single_hidden_to_spks",
}
SORTFORMER_LAYER: ModuleTable = {
    "qkv": (
        "first_sub_layer.query_net",
        "first_sub_layer.key_net",
        "first_sub_layer.value_net",
    ),
    "out": ("first_sub_layer.out_projection",),
    "norm_attention": ("layer_norm_1",),
    "up": ("second_sub_layer.dense_in",),
    "down": ("second_sub_layer.dense_out",),
    "norm_ff": ("layer_norm_2",),
}


def read_diarization(path: Path) -> NemotronDiarization | Sortformer:
    """The network of a folder of Transformers, a `.nemo` file or its folder, in float32.

    Raises CheckpointError for a damaged, unsafe, incomplete or unsupported checkpoint.
    """
    kind = recognize_format(path)
    if kind == "huggingface":
        return read_nemotron(path)
    if kind == "nemo":
        return read_sortformer(path)
    raise CheckpointError(
        f"{path} is not a diarization model; expected a folder of Nemotron 3 Diarization as "
        "Transformers writes it, or a .nemo file of Sortformer 4spk v2 or v2.1"
        + ("" if path.exists() else " (it does not exist)")
    )


# -- Nemotron 3 Diarization ------------------------------------------------------------------------


def read_nemotron(folder: Path) -> NemotronDiarization:
    """A folder of Transformers; raises CheckpointError as `read_diarization`."""
    data = read_json(folder / CONFIG_FILE)
    config = nemotron_config(data, read_json(folder / PROCESSOR_FILE), str(folder))
    with torch.device("meta"):
        model = NemotronDiarization(config)
    return _filled(model, read_weights(folder), nemotron_names(config), str(folder))


def nemotron_names(config: NemotronDiarizationConfig) -> ModuleTable:
    """The names of all modules in Transformers."""
    table: dict[str, tuple[str, ...]] = {ours: (name,) for ours, name in NEMOTRON_MODULES.items()}
    for i in range(config.layers):
        for ours, names in NEMOTRON_LAYER.items():
            theirs = tuple(f"model.audio_tower.layers.{i}.{name}" for name in names)
            table[f"layers.{i}.{ours}"] = theirs
    return table


def nemotron_config(
    data: Mapping[str, Parsed], processor: Mapping[str, Parsed], source: str
) -> NemotronDiarizationConfig:
    """The configuration of a parsed `config.json` and `processor_config.json`.

    Raises CheckpointError naming the key, its value and what is supported.
    """
    root = Section(data, source)
    root.only("architectures", ([NEMOTRON],))
    audio, head, stream = (
        root.section(name) for name in ("audio_config", "head_config", "streaming_config")
    )
    dim = audio.integer("hidden_size", most=1 << 14)
    heads = audio.integer("num_attention_heads", most=dim)
    audio.only("num_key_value_heads", (heads, None), None)
    audio.only("hidden_act", ("gelu",))
    factor = audio.integer("subsampling_factor", most=64)
    rope = audio.section("rope_parameters")
    rope.only("rope_type", ("default",))
    head.only("audio_hidden_size", (dim,))
    speakers = head.integer("num_speakers", most=MOST_SPEAKERS)
    stream.only("num_speakers", (speakers,))
    for section in (head, stream):
        section.only("subsampling_factor", (factor,))
    processing = Section(processor, f"{source}: {PROCESSOR_FILE}")
    try:
        offline = StepSizes(
            chunk=root.integer("chunk_length", most=LARGEST_CACHE),
            lookahead=root.integer("chunk_right_context", least=0, most=LARGEST_CACHE),
            queue=root.integer("fifo_length", most=LARGEST_CACHE),
            moved=root.integer("speaker_cache_update_period", most=LARGEST_CACHE),
            lookback=root.integer("chunk_left_context", 0, least=0, most=LARGEST_CACHE),
        )
        return NemotronDiarizationConfig(
            features=_nemotron_features(processing.section("feature_extractor"), audio),
            cache=_nemotron_cache(stream, speakers),
            offline=offline,
            live=_nemotron_live(processing, stream),
            dim=dim,
            layers=audio.integer("num_hidden_layers", most=MOST_LAYERS),
            heads=heads,
            ff_dim=audio.integer("intermediate_size", most=1 << 16),
            rotary_base=rope.number("rope_theta"),
            rotary_share=rope.number("partial_rotary_factor", 1.0),
            head_dim=head.integer("hidden_size", most=1 << 14),
            subsampling=factor,
        )
    except OptionError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _nemotron_cache(stream: Section, speakers: int) -> CacheConfig:
    return CacheConfig(
        speakers=speakers,
        frames=stream.integer("speaker_cache_length", most=LARGEST_CACHE),
        silent_frames=stream.integer(
            "speaker_cache_silence_frames_per_speaker", least=0, most=1 << 10
        ),
        score_floor=stream.number("prediction_score_threshold"),
        latest_boost=stream.number("latest_frames_score_boost"),
        strong_share=stream.number("strong_boost_rate"),
        weak_share=stream.number("weak_boost_rate"),
        clear_share=stream.number("min_positive_scores_rate"),
    )


def _nemotron_live(processing: Section, stream: Section) -> tuple[StepSizes, ...]:
    """The modes of the processor, and that of 10 s."""
    modes = processing.section("streaming_modes")
    queue = stream.integer("fifo_length", most=LARGEST_CACHE)
    moved = stream.integer("speaker_cache_update_period", most=LARGEST_CACHE)
    sizes = [TEN_SECONDS]
    for name, pair in list(modes.data.items())[:_MOST_MODES]:
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_integer, pair)):
            raise modes.fail(name, "a chunk and a look-ahead, in frames")
        sizes.append(StepSizes(chunk=pair[0], lookahead=pair[1], queue=queue, moved=moved))
    return tuple(sorted(sizes, key=lambda each: -each.latency_frames))


def _nemotron_features(extractor: Section, audio: Section) -> FeatureConfig:
    extractor.only("feature_extractor_type", ("NemotronAsrStreamingFeatureExtractor",))
    extractor.only("mel_filters_dtype", ("float32",), "float32")
    mels = audio.integer("num_mel_bins", most=1024)
    extractor.only("feature_size", (mels,))
    window = extractor.integer("win_length", least=2, most=1 << 16)
    return FeatureConfig(
        n_mels=mels,
        sample_rate=extractor.only("sampling_rate", (SAMPLE_RATE,)),
        fft_samples=extractor.integer("n_fft", least=window, most=1 << 16),
        window_samples=window,
        hop_samples=extractor.integer("hop_length", most=1 << 16),
        preemphasis=extractor.number("preemphasis"),
    )


# -- Sortformer ------------------------------------------------------------------------------------


def read_sortformer(path: Path) -> Sortformer:
    """A `.nemo` file or its folder; raises CheckpointError as `read_diarization`."""
    with open_files(path) as files:
        where = f"{path}: {NEMO_CONFIG_FILE}"
        data = parse_yaml(files.read(NEMO_CONFIG_FILE, LARGEST_CONFIG_BYTES), where)
        root = Section(data, str(path))
        config = sortformer_config(root)
        with files.open(WEIGHTS_FILE) as stream:
            weights = read_tensors(stream, f"{path}: {WEIGHTS_FILE}")
    check_features(weights, config.features, str(path))
    for name in UNUSED:
        weights.pop(name, None)
    with torch.device("meta"):
        model = Sortformer(config)
    return _filled(model, weights, sortformer_names(config), str(path))


def sortformer_names(config: SortformerConfig) -> ModuleTable:
    """The names of all modules in NeMo."""
    modules = SORTFORMER_MODULES | subsampling_names(config.encoder)
    table = dict(module_table(config.encoder.layers, modules, ENCODER_LAYER))
    for i in range(config.layers):
        for ours, names in SORTFORMER_LAYER.items():
            table[f"layers.{i}.{ours}"] = tuple(
                f"transformer_encoder.layers.{i}.{name}" for name in names
            )
    return table


def sortformer_config(root: Section) -> SortformerConfig:
    """The configuration of a `model_config.yaml`.

    Raises CheckpointError naming the key, its value and what is supported; so for the first
    Sortformer, which hears whole recordings only.
    """
    target = class_name(root.get("target"))
    if target != SORTFORMER:
        raise CheckpointError(
            f"{root.where} is a {target or 'model of unknown class'}; speakers are found by "
            f"Sortformer ({SORTFORMER})"
        )
    root.only("streaming_mode", (True,), False)
    modules, layers = root.section("sortformer_modules"), root.section("transformer_encoder")
    check_class(modules, "SortformerModules")
    check_class(layers, "TransformerEncoder")
    root.section("preprocessor").only("normalize", ("NA", None))
    layers.only("pre_ln", (False,), False)
    layers.only("mask_future", (False,), False)
    layers.only("hidden_act", ("relu",), "relu")
    dim = layers.integer("hidden_size", most=1 << 14)
    modules.only("tf_d_model", (dim,))
    try:
        encoder = encoder_from_nemo(root.section("encoder"))
        if encoder.dim == dim:
            raise root.section("encoder").fail("d_model", "another width than that of the layers")
        modules.only("fc_d_model", (encoder.dim,))
        factor = encoder.subsampling_factor
        modules.only("subsampling_factor", (factor,), 8)
        lookback = modules.integer("chunk_left_context", 1, least=0, most=LARGEST_CACHE)
        return SortformerConfig(
            features=features_from_nemo(root.section("preprocessor")),
            encoder=replace(encoder, dropout=0.0),
            cache=_sortformer_cache(modules),
            offline=replace(SORTFORMER_OFFLINE, lookback=lookback),
            live=tuple(replace(sizes, lookback=lookback) for sizes in SORTFORMER_LIVE),
            dim=dim,
            layers=layers.integer("num_layers", most=MOST_LAYERS),
            heads=layers.integer("num_attention_heads", 1, most=dim),
            ff_dim=layers.integer("inner_size", most=1 << 16),
        )
    except OptionError as error:
        raise CheckpointError(f"{root.where}: {error}") from error


def _sortformer_cache(modules: Section) -> CacheConfig:
    """The cache, with the defaults of NeMo."""
    return CacheConfig(
        speakers=modules.integer("num_spks", 4, most=MOST_SPEAKERS),
        frames=modules.integer("spkcache_len", 188, most=LARGEST_CACHE),
        silent_frames=modules.integer("spkcache_sil_frames_per_spk", 3, least=0, most=1 << 10),
        score_floor=modules.number("pred_score_threshold", 0.25),
        latest_boost=modules.number("scores_boost_latest", 0.05),
        strong_share=modules.number("strong_boost_rate", 0.75),
        weak_share=modules.number("weak_boost_rate", 1.5),
        clear_share=modules.number("min_pos_scores_rate", 0.5),
        silence_below=modules.number("sil_threshold", 0.2),
    )


def _filled(model: Network, weights: dict[str, Tensor], table: ModuleTable, source: str) -> Network:
    """A meta model with foreign tensors, in evaluation mode. Empties `weights`."""
    encoder = model.config.encoder if isinstance(model, Sortformer) else None
    ours = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tensors = converted_tensors(ours, weights, table, source, encoder)
    for name, tensor in tensors.items():
        if not bool(tensor.float().sum().isfinite()):
            raise CheckpointError(
                f"{source}: {name} holds NaN or infinite numbers; download it again"
            )
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    nn.Module.load_state_dict(model, floats, assign=True)
    return model.requires_grad_(False).eval()
