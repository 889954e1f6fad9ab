"""Reading NeMo checkpoints: a `.nemo` archive, plain or gzip, or its folder.

Archives are untrusted: members are read as streams and never unpacked to files, weights are
unpickled as plain tensors only, and classes named in the configuration are never imported. Absent
keys have the defaults of NeMo, see `config_from_nemo`.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from pianissimo.audio.features import FeatureConfig, MelFeatures
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.asr import MOST_LAYERS, AsrConfig, AsrModel, PromptConfig
from pianissimo.models.checkpoints.archive import Files, open_files, read_tensors
from pianissimo.models.checkpoints.config_json import (
    LARGEST_CONFIG_BYTES,
    Parsed,
    Section,
    is_integer,
    parse_yaml,
    shown,
)
from pianissimo.models.checkpoints.format import (
    NEMO_CONFIG_FILE,
    ModuleTable,
    convert,
    foreign_weights,
    language_prompts,
    module_table,
)
from pianissimo.models.fastconformer import EncoderConfig
from pianissimo.models.transducer import TransducerConfig
from pianissimo.text.tokenizer import Tokenizer

WEIGHTS_FILE = "model_weights.ckpt"
LARGEST_TOKENIZER_BYTES = 64 << 20
MAX_SYMBOLS = 10
"""The limit of tokens per encoder frame for checkpoints without one."""
FEATURE_TOLERANCE = 1e-5

FILTERBANK, WINDOW = "preprocessor.featurizer.fb", "preprocessor.featurizer.window"
MODULES = {
    "encoder.subsampling.out": "encoder.pre_encode.out",
    "predictor.embedding": "decoder.prediction.embed",
    "predictor.lstm": "decoder.prediction.dec_rnn.lstm",
    "joiner.encoder": "joint.enc",
    "joiner.predictor": "joint.pred",
    "joiner.out": "joint.joint_net.2",
    "prompt.up": "prompt_kernel.0",
    "prompt.down": "prompt_kernel.2",
}
LAYER: ModuleTable = {
    "attention.qkv": ("self_attn.linear_q", "self_attn.linear_k", "self_attn.linear_v"),
    "attention.out": ("self_attn.linear_out",),
    "attention.position": ("self_attn.linear_pos",),
    "attention.bias_u": ("self_attn.pos_bias_u",),
    "attention.bias_v": ("self_attn.pos_bias_v",),
    "conv.norm": ("conv.batch_norm",),
}


def read_nemo(path: Path) -> tuple[AsrModel, Tokenizer]:
    """Read a `.nemo` file or its folder; weights in float32.

    Raises CheckpointError for a damaged, unsafe, incomplete or unsupported checkpoint.
    """
    with open_files(path) as files:
        yaml_bytes = files.read(NEMO_CONFIG_FILE, LARGEST_CONFIG_BYTES)
        where = f"{path}: {NEMO_CONFIG_FILE}"
        data = parse_yaml(yaml_bytes, where)
        if not isinstance(data, dict):
            raise CheckpointError(f"{where} is not a mapping, so it is no NeMo configuration")
        source = f"{path} ({class_name(data.get('target')) or 'unknown class'})"
        tokenizer = _read_tokenizer(Section(data, source), files)
        config = config_from_nemo(data, tokenizer.vocab_size, source, path.stem)
        with files.open(WEIGHTS_FILE) as stream:
            weights = read_tensors(stream, f"{source}: {WEIGHTS_FILE}")
    check_features(weights, config.features, source)
    return convert(config, weights, nemo_names(config), source), tokenizer


def to_nemo_names(model: AsrModel) -> dict[str, Tensor]:
    """The tensors of a model without folded batch norm under NeMo's names, in NeMo's shapes."""
    features = {FILTERBANK: model.features.filterbank[None], WINDOW: model.features.window}
    return features | foreign_weights(model, nemo_names(model.config))


def nemo_names(config: AsrConfig) -> ModuleTable:
    """The names of all modules in NeMo."""
    ctc = "decoder" if config.transducer is None else "ctc_decoder"
    head = {"ctc.out": f"{ctc}.decoder_layers.0"}
    modules = MODULES | subsampling_names(config.encoder) | head
    return module_table(config.encoder.layers, modules, LAYER)


def subsampling_names(encoder: EncoderConfig) -> dict[str, str]:
    """The names of the subsampling's convolutions in NeMo."""
    names = {"encoder.subsampling.conv.0": "encoder.pre_encode.conv.0"}
    for i in range(1, encoder.subsampling_stages):
        at, theirs = f"encoder.subsampling.conv.{i}", "encoder.pre_encode.conv"
        if encoder.depthwise_subsampling:
            names[at] = f"{theirs}.{3 * i - 1}"
            names[f"encoder.subsampling.pointwise.{i - 1}"] = f"{theirs}.{3 * i}"
        else:
            names[at] = f"{theirs}.{2 * i}"
    return names


# -- configuration ---------------------------------------------------------------------------------


def config_from_nemo(
    data: Mapping[str, Parsed], vocab_size: int, source: str, name: str = "unnamed"
) -> AsrConfig:
    """The configuration of a parsed `model_config.yaml` with a tokenizer of `vocab_size` pieces.

    Raises CheckpointError naming the key, its value and what is supported. Unlimited symbols per
    frame become `MAX_SYMBOLS`; dropout is ignored.
    """
    root = Section(data, source)
    for key in ("preprocessor", "encoder", "decoder"):
        if key not in root:
            raise CheckpointError(f"{source} has no {key}; this model class is not supported")
    transducer = None
    if "joint" in root:
        transducer = _transducer(root, vocab_size)
    ctc = transducer is None or "aux_ctc" in root
    if ctc:
        decoder = (root.section("aux_ctc") if transducer else root).section("decoder")
        check_class(decoder, "ConvASRDecoder")
        decoder.only("add_blank", (True,), True)
        _check_vocabulary(decoder, "num_classes", vocab_size)
    try:
        encoder = encoder_from_nemo(root.section("encoder"))
        return AsrConfig(
            vocab_size=vocab_size,
            features=features_from_nemo(root.section("preprocessor")),
            encoder=encoder,
            transducer=transducer,
            ctc=ctc,
            prompts=_prompts(root, encoder.dim),
            max_symbols=_max_symbols(root.section("decoding").section("greedy")),
            name=name,
        )
    except OptionError as error:
        raise CheckpointError(f"{source}: {error}") from error


def features_from_nemo(preprocessor: Section) -> FeatureConfig:
    """The features of a `preprocessor`; CheckpointError for unsupported ones."""
    check_class(preprocessor, "AudioToMelSpectrogramPreprocessor")
    preprocessor.only("window", ("hann",), "hann")
    preprocessor.only("frame_splicing", (1,), 1)
    preprocessor.only("log", (True,), True)
    preprocessor.only("log_zero_guard_type", ("add",), "add")
    preprocessor.only("mag_power", (2.0,), 2.0)
    preprocessor.only("mel_norm", ("slaney",), "slaney")
    preprocessor.only("lowfreq", (0,), 0)
    preprocessor.only("exact_pad", (False,), False)
    rate = preprocessor.only("sample_rate", (SAMPLE_RATE,), SAMPLE_RATE)
    preprocessor.only("highfreq", (None, rate / 2), None)
    normalize = preprocessor.only("normalize", ("NA", None, "per_feature"), "per_feature")
    window = _samples(preprocessor, "window_size", 0.02, rate)
    fft = 1 << (window - 1).bit_length()
    if "n_fft" in preprocessor:
        fft = preprocessor.integer("n_fft", most=1 << 16)
    if fft < window or (fft - window) % 2:
        raise preprocessor.fail("n_fft", f"an even number of samples from the window, {window}, on")
    guard = preprocessor.number("log_zero_guard_value", 2.0**-24)
    if guard <= 0:
        raise preprocessor.fail("log_zero_guard_value", "a positive number")
    emphasized = preprocessor.get("preemph", 0.97) is not None
    return FeatureConfig(
        n_mels=preprocessor.integer("features", 64, most=1024),
        sample_rate=rate,
        fft_samples=fft,
        window_samples=window,
        hop_samples=_samples(preprocessor, "window_stride", 0.01, rate),
        preemphasis=preprocessor.number("preemph", 0.97) if emphasized else 0.0,
        log_guard=guard,
        normalize="per_feature" if normalize == "per_feature" else "none",
    )


def _samples(preprocessor: Section, key: str, default: float, rate: int) -> int:
    """A duration given in seconds as `key`, or in samples as `n_` + `key`."""
    if f"n_{key}" in preprocessor and not preprocessor.get(key):
        return preprocessor.integer(f"n_{key}", most=1 << 16)
    samples = int(preprocessor.number(key, default) * rate)  # NeMo truncates as well
    if not 1 < samples <= 1 << 16:
        raise preprocessor.fail(key, "a few milliseconds, in seconds")
    return samples


def encoder_from_nemo(encoder: Section) -> EncoderConfig:
    """The FastConformer of an `encoder`; CheckpointError for an unsupported one."""
    check_class(encoder, "ConformerEncoder")
    dim = encoder.integer("d_model", most=1 << 14)
    encoder.only("feat_out", (-1, 0, dim), -1)
    depthwise = encoder.only("subsampling", ("dw_striding", "striding"), "striding") != "striding"
    if not depthwise:
        encoder.only("causal_downsampling", (False,), False)
    encoder.only("reduction", (None,), None)
    encoder.only("self_attention_model", ("rel_pos",), "rel_pos")
    encoder.only("untie_biases", (True,), True)
    encoder.only("conv_context_style", ("regular",), "regular")
    encoder.only("att_chunk_context_size", (None,), None)
    norm = encoder.only("conv_norm_type", ("layer_norm", "batch_norm"), "batch_norm")
    kernel = encoder.integer("conv_kernel_size", 31, most=1023)
    if kernel % 2 == 0:
        raise encoder.fail("conv_kernel_size", "an odd number")
    causal, symmetric = ("causal", [kernel - 1, 0]), (None, [kernel // 2, kernel // 2])
    conv_context = encoder.only("conv_context_size", causal + symmetric, None)
    channels = encoder.integer("subsampling_conv_channels", -1, least=-1, most=1 << 14)
    left, lookaheads = _contexts(encoder)
    bias = encoder.flag("use_bias", True)
    return EncoderConfig(
        n_mels=encoder.integer("feat_in", most=1024),
        dim=dim,
        layers=encoder.integer("n_layers", most=MOST_LAYERS),
        heads=encoder.integer("n_heads", 4, most=dim),
        ff_dim=dim * encoder.integer("ff_expansion_factor", 4, most=64),
        conv_kernel=kernel,
        conv_norm="layer" if norm == "layer_norm" else "folded",
        causal_conv=conv_context in causal,
        subsampling_factor=encoder.integer("subsampling_factor", 4, most=64),
        subsampling_channels=channels if channels > 0 else dim,
        causal_subsampling=encoder.flag("causal_downsampling", False),
        attention_bias=bias,
        conv_bias=bias,
        scale_input=encoder.flag("xscaling", True),
        left_context=left,
        lookaheads=lookaheads,
        depthwise_subsampling=depthwise,
    )


def _contexts(encoder: Section) -> tuple[int | None, tuple[int, ...]]:
    """Left context and lookaheads; (None, ()) for attention over the whole utterance."""
    key, style = "att_context_size", encoder.get("att_context_style", "regular")
    pairs = encoder.get(key) or [[-1, -1]]
    expected = "[-1, -1], or pairs [left, lookahead] with one left context"
    if isinstance(pairs, list) and pairs and is_integer(pairs[0]):
        pairs = [pairs]
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(map(is_integer, pair)) for pair in pairs
    ):
        raise encoder.fail(key, expected)
    if all(pair == [-1, -1] for pair in pairs):
        encoder.only("att_context_style", ("regular",), "regular")
        return None, ()
    if style != "chunked_limited":
        raise encoder.fail(
            "att_context_style",
            f"'chunked_limited' with the limited contexts {shown(pairs)}, "
            "'regular' with [-1, -1] only",
        )
    lefts = {left for left, _ in pairs}
    if len(lefts) != 1 or not all(0 <= n < 1 << 16 for pair in pairs for n in pair):
        raise encoder.fail(key, expected)
    return lefts.pop(), tuple(dict.fromkeys(right for _, right in pairs))


def _transducer(root: Section, vocab_size: int) -> TransducerConfig:
    decoder, joint = root.section("decoder"), root.section("joint")
    check_class(decoder, "RNNTDecoder")
    check_class(joint, "RNNTJoint")
    _check_vocabulary(decoder, "vocab_size", vocab_size)
    _check_vocabulary(joint, "num_classes", vocab_size)
    decoder.only("normalization_mode", (None,), None)
    decoder.only("blank_as_pad", (True,), True)
    prednet, jointnet = decoder.section("prednet"), joint.section("jointnet")
    width = prednet.integer("pred_hidden", most=1 << 14)
    prednet.only("rnn_hidden_size", (-1, 0, width), -1)
    jointnet.only("activation", ("relu",))
    return TransducerConfig(
        vocab_size=vocab_size,
        predictor_dim=width,
        predictor_layers=prednet.integer("pred_rnn_layers", most=16),
        joint_dim=jointnet.integer("joint_hidden", most=1 << 14),
        durations=_durations(root),
    )


def _durations(root: Section) -> tuple[int, ...]:
    """The durations of a token-and-duration transducer, which has an output for each."""
    outputs = root.section("joint").integer("num_extra_outputs", 0, least=0, most=64)
    if not outputs:
        return ()
    decoding = root.section("decoding")
    decoding.only("model_type", ("tdt", None), None)
    candidates = (
        decoding.integers("durations", ()),
        root.section("model_defaults").integers("tdt_durations", ()),
        root.section("loss").section("tdt_kwargs").integers("durations", ()),
    )
    durations = next(filter(None, candidates), ())
    if len(durations) != outputs:
        raise root.section("joint").fail(
            "num_extra_outputs", f"as many as there are durations, {len(durations)}"
        )
    return durations


def _prompts(root: Section, dim: int) -> PromptConfig | None:
    defaults = root.section("model_defaults")
    if not defaults.flag("initialize_prompt_feature", False):
        return None
    holder = root if "num_prompts" in root else defaults
    count = holder.integer("num_prompts", 128, most=1 << 14)
    known = defaults.section("prompt_dictionary")
    default = known.integer("auto", 0, least=0, most=count - 1)
    languages = language_prompts(known, count)
    return PromptConfig(count=count, hidden=2 * dim, default=default, languages=languages)


def _max_symbols(greedy: Section) -> int:
    for key in ("max_symbols", "max_symbols_per_step"):
        if greedy.get(key):
            return greedy.integer(key)
    return MAX_SYMBOLS


def _check_vocabulary(section: Section, key: str, vocab_size: int) -> None:
    if section.get(key, -1) not in (-1, vocab_size):
        raise section.fail(key, f"{vocab_size}, the pieces of the tokenizer")


def check_class(section: Section, known: str) -> None:
    """Raises CheckpointError if the section names another class; the class is not imported."""
    if "_target_" in section and class_name(section.get("_target_")) != known:
        raise section.fail("_target_", known)


def class_name(target: object) -> str:
    """The last part of a class path, "" for anything else."""
    return target.rpartition(".")[2][:80] if isinstance(target, str) else ""


# -- files -----------------------------------------------------------------------------------------


def _read_tokenizer(root: Section, files: Files) -> Tokenizer:
    if "tokenizer" not in root:
        raise CheckpointError(
            f"{root.where} has no tokenizer; only models with a SentencePiece tokenizer are known"
        )
    section = root.section("tokenizer")
    section.only("type", ("bpe",))
    reference = section.get("model_path")
    name = reference.removeprefix("nemo:") if isinstance(reference, str) else ""
    if not name or PurePosixPath(name).name != name:
        raise section.fail("model_path", "'nemo:' and the name of a member of the archive")
    return Tokenizer.from_sentencepiece(files.read(name, LARGEST_TOKENIZER_BYTES))


def check_features(weights: dict[str, Tensor], config: FeatureConfig, source: str) -> None:
    """Remove filterbank and window from the tensors after comparing them with the computed ones."""
    ours = MelFeatures(config)
    for name, expected in ((FILTERBANK, ours.filterbank[None]), (WINDOW, ours.window)):
        stored = weights.pop(name, expected)
        if stored.shape != expected.shape or not torch.allclose(
            stored.float(), expected, rtol=0.0, atol=FEATURE_TOLERANCE
        ):
            raise CheckpointError(
                f"{source}: {name} of shape {tuple(stored.shape)} differs from that of the "
                f"configuration; expected {tuple(expected.shape)}, equal within {FEATURE_TOLERANCE}"
            )
