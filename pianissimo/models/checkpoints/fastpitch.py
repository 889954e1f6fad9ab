"""NeMo's FastPitch: a `.nemo` archive, with that of its HiFi-GAN in the same directory.

Archives are untrusted and read as those of recognizers, see `nemo`. The vocabulary is in no file;
its order follows from the options of the tokenizer, as in NeMo's `EnglishPhonemesTokenizer`.
"""

import re
import string
from pathlib import Path

import torch
from torch import Tensor

from pianissimo.errors import CheckpointError
from pianissimo.models.checkpoints.archive import Files, open_files, read_tensors
from pianissimo.models.checkpoints.config_json import (
    LARGEST_CONFIG_BYTES,
    Section,
    listed,
    parse_yaml,
)
from pianissimo.models.checkpoints.fastspeech2 import (
    FastSpeech2Parts,
    filled,
    fold_weight_norm,
    vocoder_config,
)
from pianissimo.models.checkpoints.format import NEMO_CONFIG_FILE
from pianissimo.models.checkpoints.nemo import WEIGHTS_FILE, check_class, class_name
from pianissimo.models.fastpitch import FastPitch, FastPitchConfig
from pianissimo.models.fastspeech2 import HifiGan, HifiGanConfig, PredictorConfig

SUFFIX = ".nemo"
ACOUSTIC, VOCODER = "FastPitchModel", "HifiGanModel"
TOKENIZER = "EnglishPhonemesTokenizer"
MOST_FILES = 16
"""Archives in a directory that are looked into."""
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
PUNCTUATION = tuple(',.!?-:;/"()[]{}')
UNUSED = (
    "preprocessor.",
    "aligner.",
    "fastpitch.aligner.",
    "fastpitch.pitch_mean",
    "fastpitch.pitch_std",
    "fastpitch.encoder.pos_emb.",
    "fastpitch.decoder.pos_emb.",
)
"""Prefixes of tensors that only training needs, or that are computed here."""
SHARED_FRAMES = ("sample_rate", "n_window_size", "n_window_stride", "n_fft", "lowfreq", "highfreq")
"""Options in which the mel frames of both networks must agree."""
NAMES = (
    (r"(encoder|decoder)\.layers\.(\d+)\.dec_attn\.qkv_net\.", r"\1.layers.\2.attention.qkv."),
    (r"(encoder|decoder)\.layers\.(\d+)\.dec_attn\.o_net\.", r"\1.layers.\2.attention.out."),
    (r"(encoder|decoder)\.layers\.(\d+)\.dec_attn\.layer_norm\.", r"\1.layers.\2.attention_norm."),
    (
        r"(encoder|decoder)\.layers\.(\d+)\.pos_ff\.CoreNet\.0\.",
        r"\1.layers.\2.feed_forward.conv1.",
    ),
    (
        r"(encoder|decoder)\.layers\.(\d+)\.pos_ff\.CoreNet\.2\.",
        r"\1.layers.\2.feed_forward.conv2.",
    ),
    (r"(encoder|decoder)\.layers\.(\d+)\.pos_ff\.layer_norm\.", r"\1.layers.\2.feed_forward_norm."),
    (r"encoder\.word_emb\.", r"encoder.embed."),
    (r"(\w+_predictor)\.layers\.(\d+)\.conv\.", r"\1.conv_layers.\2.conv."),
    (r"(\w+_predictor)\.layers\.(\d+)\.norm\.", r"\1.conv_layers.\2.layer_norm."),
    (r"(\w+_predictor)\.fc\.", r"\1.linear."),
    (r"pitch_emb\.", r"pitch_embed.conv."),
    (r"proj\.", r"out."),
)
"""Tensors of NeMo -> ours, by their beginnings."""


def is_nemo_voice(path: Path) -> bool:
    """Whether a path is a `.nemo` file, or a directory that holds one and no `config.json`."""
    if path.is_file():
        return path.suffix == SUFFIX
    return not (path / "config.json").exists() and any(path.glob(f"*{SUFFIX}"))


def read_fastpitch(path: Path) -> FastSpeech2Parts:
    """Read a FastPitch archive, or the directory of it, and the HiFi-GAN archive beside it.

    Raises CheckpointError for a damaged, unsafe, incomplete or unsupported voice.
    """
    folder = path if path.is_dir() else path.parent
    archives = {name: _class_of(name) for name in sorted(folder.glob(f"*{SUFFIX}"))[:MOST_FILES]}
    models = [path] if path.is_file() else [n for n, kind in archives.items() if kind == ACOUSTIC]
    if len(models) != 1:
        raise CheckpointError(
            f"{path} has {len(models)} archives of the class {ACOUSTIC}, expected 1; name its file"
        )
    vocoders = [name for name, kind in archives.items() if kind == VOCODER]
    if len(vocoders) != 1:
        raise CheckpointError(
            f"{folder} has {len(vocoders)} archives of the class {VOCODER}, expected 1; put the "
            "vocoder of this voice, such as tts_en_hifigan.nemo, beside it"
        )
    with open_files(models[0]) as files:
        root = _configuration(files, models[0])
        if _class(root) != ACOUSTIC:
            raise root.fail("target", ACOUSTIC)
        vocabulary = _vocabulary(root.section("text_tokenizer"))
        shape = fastpitch_config(root, len(vocabulary))
        weights = _weights(files)
    with open_files(vocoders[0]) as files:
        vocoder_root = _configuration(files, vocoders[0])
        vocoder_shape = _vocoder_shape(vocoder_root, shape.mels)
        vocoder_weights = _weights(files)
    _check_frames(root.section("preprocessor"), vocoder_root.section("preprocessor"), vocoder_shape)
    with torch.device("meta"):
        acoustic, vocoder = FastPitch(shape), HifiGan(vocoder_shape)
    own = _acoustic_tensors(weights, str(models[0]))
    vocoder_own = _vocoder_tensors(vocoder_weights, vocoder_shape, vocoders[0])
    padded = root.section("text_tokenizer").flag("pad_with_space", False)
    return FastSpeech2Parts(
        filled(acoustic, own, "", models[0]),
        filled(vocoder, vocoder_own, "", vocoders[0]),
        vocabulary,
        sample_rate=root.section("preprocessor").integer("sample_rate", least=8_000, most=48_000),
        around=(" ", " ") if padded else ("", ""),
    )


def _class_of(path: Path) -> str:
    """The class that an archive names, "" if it cannot be read."""
    try:
        with open_files(path) as files:
            return _class(_configuration(files, path))
    except CheckpointError:
        return ""


def _class(root: Section) -> str:
    return class_name(root.get("target"))


def _configuration(files: Files, path: Path) -> Section:
    where = f"{path}: {NEMO_CONFIG_FILE}"
    data = parse_yaml(files.read(NEMO_CONFIG_FILE, LARGEST_CONFIG_BYTES), where)
    if not isinstance(data, dict):
        raise CheckpointError(f"{where} is not a mapping, so it is no NeMo configuration")
    return Section(data, where)


def _weights(files: Files) -> dict[str, Tensor]:
    with files.open(WEIGHTS_FILE) as stream:
        return read_tensors(stream, f"{files.where}: {WEIGHTS_FILE}")


def fastpitch_config(root: Section, vocabulary: int) -> FastPitchConfig:
    """The shape of the acoustic model; CheckpointError for what is not supported here."""
    root.only("learn_alignment", (True,), False)
    root.only("n_speakers", (0, 1), 0)
    root.only("energy_predictor", (None,), None)
    root.only("speaker_encoder", (None,), None)
    sides = (root.section("input_fft"), root.section("output_fft"))
    for side, known in zip(sides, ("FFTransformerEncoder", "FFTransformerDecoder"), strict=True):
        check_class(side, known)
        side.only("pre_lnorm", (False,), False)
        side.only("condition_types", ([],), [])
    width = root.integer("symbols_embedding_dim", most=8192)
    for side in sides:
        side.only("d_model", (width,))
    sides[0].only("d_embed", (None, width), None)

    def pair(name: str, most: int) -> tuple[int, int]:
        return sides[0].integer(name, most=most), sides[1].integer(name, most=most)

    def kernel(section: Section, name: str) -> int:
        value = section.integer(name, most=999)
        if value % 2 == 0:
            raise section.fail(name, "an odd integer")
        return value

    def predictor(name: str) -> PredictorConfig:
        section = root.section(name)
        check_class(section, "TemporalPredictor")
        section.only("condition_types", ([],), [])
        return PredictorConfig(
            section.integer("n_layers", 2, most=99),
            section.integer("filter_size", most=8192),
            kernel(section, "kernel_size"),
        )

    return FastPitchConfig(
        vocabulary=vocabulary,
        mels=root.integer("n_mel_channels", most=1024),
        width=width,
        layers=pair("n_layer", 99),
        heads=pair("n_head", 512),
        head_widths=pair("d_head", 8192),
        inner=pair("d_inner", 65_536),
        kernels=(kernel(sides[0], "kernel_size"), kernel(sides[1], "kernel_size")),
        duration=predictor("duration_predictor"),
        pitch=predictor("pitch_predictor"),
        pitch_kernel=kernel(root, "pitch_embedding_kernel_size"),
        frames=(
            root.integer("min_token_duration", 0, least=0, most=500),
            root.integer("max_token_duration", 75, most=500),
        ),
    )


def _vocabulary(options: Section) -> dict[str, int]:
    """Symbol -> id; CheckpointError unless the voice reads ARPAbet with stresses."""
    if class_name(options.get("_target_")) != TOKENIZER:
        raise options.fail("_target_", TOKENIZER)
    options.only("stresses", (True,), False)
    options.only("space", (" ",), " ")
    tokens = [" "]
    silence = options.get("silence")
    tokens += [silence] if isinstance(silence, str) else []
    tokens += CONSONANTS + [f"{vowel}{stress}" for vowel in VOWELS for stress in "012"]
    mixed = options.section("g2p").get("phoneme_probability") is not None
    if options.flag("chars", False) or mixed:
        tokens += string.ascii_lowercase
    tokens += ["'"] if options.flag("apostrophe", True) else []
    if options.flag("punct", True):
        marks = options.get("non_default_punct_list")
        if marks is not None and not isinstance(marks, list):
            raise options.fail("non_default_punct_list", "a list of marks")
        tokens += PUNCTUATION if marks is None else [str(mark) for mark in marks]
    blank = options.get("add_blank_at")
    ends = ["<pad>", "<oov>"] if blank is None else ["<pad>", "<blank>", "<oov>"]
    if blank == "last":
        ends = ["<pad>", "<oov>", "<blank>"]
    return {token: number for number, token in enumerate([*tokens, *ends])}


def _vocoder_shape(root: Section, mels: int) -> HifiGanConfig:
    given = root.section("generator")
    check_class(given, "Generator")
    given.only("resblock", (1, "1"))
    given.only("initial_input_size", (mels,), 80)
    return vocoder_config(
        Section(
            {
                "model_in_dim": mels,
                "upsample_initial_channel": given.get("upsample_initial_channel"),
                "upsample_rates": given.get("upsample_rates"),
                "upsample_kernel_sizes": given.get("upsample_kernel_sizes"),
                "resblock_kernel_sizes": given.get("resblock_kernel_sizes"),
                "resblock_dilation_sizes": given.get("resblock_dilation_sizes"),
                "normalize_before": False,
            },
            given.where,
        )
    )


def _check_frames(acoustic: Section, vocoder: Section, shape: HifiGanConfig) -> None:
    """Raises CheckpointError unless the vocoder expects the mel frames of the acoustic model."""
    for key in SHARED_FRAMES:
        if key in acoustic:
            vocoder.only(key, (acoustic.get(key),), acoustic.get(key))
    vocoder.only("n_window_stride", (shape.hop,), shape.hop)


def _acoustic_tensors(weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of the acoustic model with our names."""
    found, unknown = dict[str, Tensor](), []
    for name, tensor in weights.items():
        if name.startswith(UNUSED):
            continue
        if not name.startswith("fastpitch."):
            unknown.append(name)
            continue
        ours = name.removeprefix("fastpitch.")
        for theirs, new in NAMES:
            ours, count = re.subn(f"^{theirs}", new, ours)
            if count:
                break
        found[ours] = tensor
    if unknown:
        raise CheckpointError(f"{where} has unknown tensors, such as {listed(unknown, 1)[:200]}")
    return found


def _vocoder_tensors(
    weights: dict[str, Tensor], shape: HifiGanConfig, path: Path
) -> dict[str, Tensor]:
    """The tensors of the generator with our names; those of its training are left out."""
    own = {
        name.removeprefix("generator."): tensor
        for name, tensor in weights.items()
        if name.startswith("generator.")
    }
    found = {"mean": torch.zeros(shape.mels), "scale": torch.ones(shape.mels)}
    for name, tensor in fold_weight_norm(own, str(path)).items():
        if match := re.fullmatch(r"resblocks\.(\d+)\.(\d+)\.(.+)", name):
            index = int(match[1]) * len(shape.block_kernels) + int(match[2])
            name = f"resblocks.{index}.{match[3]}"
        found[re.sub(r"^ups\.", "upsampler.", name)] = tensor
    return found
