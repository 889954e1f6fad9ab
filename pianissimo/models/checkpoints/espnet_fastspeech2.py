"""ESPnet2's joint packs of FastSpeech2 with Conformer blocks and HiFi-GAN.

They are the source of Transformers' folders; the names of tensors and options follow its conversion
(transformers, `fastspeech2_conformer/convert_*`). Packs with an acoustic model alone are refused:
the statistics of their mel frames must be those of their vocoder. `config.yaml` holds only what a
recipe changed; absent options have ESPnet's defaults, which differ from those of Transformers.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from pianissimo.errors import CheckpointError
from pianissimo.models.checkpoints.config_json import Parsed, Section, listed
from pianissimo.models.checkpoints.espnet import (
    FINAL_TOKEN,
    open_pack,
    pack_members,
    pack_weights,
    yaml_section,
)
from pianissimo.models.checkpoints.fastspeech2 import (
    FastSpeech2Parts,
    acoustic_config,
    filled,
    fold_weight_norm,
    vocoder_config,
)
from pianissimo.models.fastspeech2 import FastSpeech2, HifiGan

JOINT = "joint_text2wav"
ALONE = ("fastspeech", "fastspeech2", "tacotron2", "transformer", "prodiff")
"""Acoustic models of ESPnet, in packs of their own."""
ACOUSTIC_PREFIX, VOCODER_PREFIX = "tts.generator.text2mel.", "tts.generator.vocoder."
UNUSED = ("tts.discriminator.", "feats_extract.", "pitch_extract.", "energy_extract.", "normalize.")
"""Prefixes of tensors that only training needs."""
UNUSED_STATISTICS = ("pitch_normalize.", "energy_normalize.")
RATES = (22_050,)
ENGLISH = ("g2p_en", "g2p_en_no_space")
"""How a pack reads text: as ARPAbet, which is what is read here."""
OPTIONS: dict[str, tuple[str, Parsed]] = {
    "adim": ("hidden_size", 384),
    "conformer_enc_kernel_size": ("encoder_kernel_size", 7),
    "conformer_dec_kernel_size": ("decoder_kernel_size", 31),
    "elayers": ("encoder_layers", 6),
    "dlayers": ("decoder_layers", 6),
    "eunits": ("encoder_linear_units", 1536),
    "dunits": ("decoder_linear_units", 1536),
    "encoder_normalize_before": ("encoder_normalize_before", True),
    "decoder_normalize_before": ("decoder_normalize_before", True),
    "encoder_concat_after": ("encoder_concat_after", False),
    "decoder_concat_after": ("decoder_concat_after", False),
    "positionwise_conv_kernel_size": ("positionwise_conv_kernel_size", 1),
    "use_macaron_style_in_conformer": ("use_macaron_style_in_conformer", True),
    "use_cnn_in_conformer": ("use_cnn_in_conformer", True),
    "reduction_factor": ("reduction_factor", 1),
    "postnet_layers": ("speech_decoder_postnet_layers", 5),
    "postnet_chans": ("speech_decoder_postnet_units", 512),
    "postnet_filts": ("speech_decoder_postnet_kernel", 5),
    "pitch_embed_kernel_size": ("pitch_embed_kernel_size", 9),
    "energy_embed_kernel_size": ("energy_embed_kernel_size", 9),
    "odim": ("num_mel_bins", 80),
    **{
        f"{name}_predictor_{key}": (f"{name}_predictor_{wanted}", default)
        for name in ("duration", "pitch", "energy")
        for key, wanted, default in (
            ("layers", "layers", 2),
            ("chans", "channels", 384),
            ("kernel_size", "kernel_size", 3),
        )
    },
}
"""Options of ESPnet -> those of Transformers, and their defaults in ESPnet."""
FIXED: dict[str, tuple[Parsed, ...]] = {
    "encoder_type": ("conformer",),
    "decoder_type": ("conformer",),
    "positionwise_layer_type": ("conv1d",),
    "use_batch_norm": (True,),
    "use_gst": (False,),
    "conformer_rel_pos_type": ("latest",),
    "conformer_pos_enc_layer_type": ("rel_pos",),
    "conformer_self_attn_layer_type": ("rel_selfattn",),
    "conformer_activation_type": ("swish",),
    "zero_triu": (False,),
    "spks": (-1, None, 1),
    "langs": (-1, None, 1),
    "spk_embed_dim": (None,),
}
"""What is supported; the first value is the default where ESPnet's is supported."""
NO_DEFAULTS = ("encoder_type", "decoder_type", "conformer_rel_pos_type")
"""Options whose defaults in ESPnet are not supported here."""
LAYER_NAMES = (
    ("encoders.", "conformer_layers."),
    ("norm_ff_macaron.", "ff_macaron_layer_norm."),
    ("norm_mha.", "self_attn_layer_norm."),
    ("norm_conv.", "conv_layer_norm."),
    ("norm_ff.", "ff_layer_norm."),
    ("norm_final.", "final_layer_norm."),
    (".w_1.", ".conv1."),
    (".w_2.", ".conv2."),
    ("embed.0.weight", "embed.weight"),
)


def read_espnet_fastspeech2(path: Path) -> FastSpeech2Parts:
    """Read a joint pack or its folder; CheckpointError if it is damaged or not supported."""
    with open_pack(path) as files:
        members = pack_members(files, path, "train_config", "model_file")
        root = yaml_section(files, members["train_config"])
        weights = pack_weights(files, members["model_file"])
    where = f"{path}: {members['model_file']}"
    if root.get("tts") in ALONE:
        raise CheckpointError(
            f"{path} is an acoustic model without a vocoder, and its mel frames fit no other one; "
            "use a joint pack, such as kan-bayashi/"
            "ljspeech_joint_finetune_conformer_fastspeech2_hifigan"
        )
    root.only("tts", (JOINT,))
    root.only("g2p", ENGLISH)
    vocabulary = _vocabulary(root)
    conf = root.section("tts_conf")
    conf.only("text2mel_type", ("fastspeech2",))
    conf.only("vocoder_type", ("hifigan_generator",))
    conf.only("sampling_rate", RATES, RATES[0])
    acoustic_shape = acoustic_config(_acoustic_section(conf, len(vocabulary)))
    vocoder_shape = vocoder_config(_vocoder_section(conf))
    if acoustic_shape.mels != vocoder_shape.mels:
        raise CheckpointError(f"{where}: the networks have different numbers of mel bins")
    with torch.device("meta"):
        acoustic, vocoder = FastSpeech2(acoustic_shape), HifiGan(vocoder_shape)
    own = _split(weights, where)
    # The vocoder of a joint pack takes mel frames as they come.
    statistics = {name: getattr(vocoder, name) for name in ("mean", "scale")}
    plain = {name: torch.zeros(tensor.shape) for name, tensor in statistics.items()}
    folded = fold_weight_norm(own[1], where)
    vocoder_own = {_vocoder_name(name): tensor for name, tensor in folded.items()}
    return FastSpeech2Parts(
        filled(acoustic, {_acoustic_name(k): v for k, v in own[0].items()}, "", path),
        filled(vocoder, plain | vocoder_own, "", path),
        vocabulary,
    )


def _vocabulary(root: Section) -> dict[str, int]:
    """Symbol -> id, by its place in the list of the configuration."""
    tokens = root.get("token_list")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(f"{root.where}: token_list must be a list of symbols")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens) or FINAL_TOKEN not in vocabulary:
        raise CheckpointError(
            f"{root.where}: token_list must have each symbol once, and {FINAL_TOKEN}"
        )
    return vocabulary


def _acoustic_section(conf: Section, vocabulary: int) -> Section:
    """The options of the acoustic model as Transformers names them."""
    given = conf.section("text2mel_params")
    for key, supported in FIXED.items():
        given.only(key, supported, *(() if key in NO_DEFAULTS else supported[:1]))
    named: dict[str, Parsed] = {"vocab_size": vocabulary}
    for key, (name, default) in OPTIONS.items():
        value = given.get(key, default)
        named[name] = default if value is None else value
    heads = given.get("aheads", 4)
    named |= {f"{side}_num_attention_heads": heads for side in ("encoder", "decoder")}
    for side in ("encoder", "decoder"):
        named[f"{side}_final_norm"] = named[f"{side}_normalize_before"]
    return Section(named, given.where)


def _vocoder_section(conf: Section) -> Section:
    """The options of the vocoder as Transformers names them."""
    given = conf.section("vocoder_params")
    given.only("kernel_size", (7,), 7)
    given.only("out_channels", (1,), 1)
    given.only("global_channels", (-1, None), -1)
    for flag in ("use_additional_convs", "bias", "use_weight_norm"):
        given.only(flag, (True,), True)
    given.only("nonlinear_activation", ("LeakyReLU",), "LeakyReLU")
    slope = given.section("nonlinear_activation_params").get("negative_slope", 0.1)
    return Section(
        {
            "model_in_dim": given.get("in_channels", 80),
            "upsample_initial_channel": given.get("channels", 512),
            "upsample_rates": given.get("upsample_scales", [8, 8, 2, 2]),
            "upsample_kernel_sizes": given.get("upsample_kernel_sizes", [16, 16, 4, 4]),
            "resblock_kernel_sizes": given.get("resblock_kernel_sizes", [3, 7, 11]),
            "resblock_dilation_sizes": given.get("resblock_dilations", [[1, 3, 5]] * 3),
            "leaky_relu_slope": slope,
            "normalize_before": False,
        },
        given.where,
    )


def _split(weights: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the acoustic model and of the vocoder, without their prefixes."""
    acoustic, vocoder, unknown = dict[str, Tensor](), dict[str, Tensor](), []
    for name, tensor in weights.items():
        if name.startswith(ACOUSTIC_PREFIX):
            acoustic[name.removeprefix(ACOUSTIC_PREFIX)] = tensor
        elif name.startswith(VOCODER_PREFIX):
            vocoder[name.removeprefix(VOCODER_PREFIX)] = tensor
        elif not name.startswith((*UNUSED, *UNUSED_STATISTICS)):
            unknown.append(name)
    if unknown:
        raise CheckpointError(f"{where} has unknown tensors, such as {listed(unknown, 1)[:200]}")
    return acoustic, vocoder


def _acoustic_name(name: str) -> str:
    """A tensor's name in ESPnet -> its name in Transformers."""
    if match := re.fullmatch(r"postnet\.postnet\.(\d+)\.([01])\.(.+)", name):
        part = "conv" if match[2] == "0" else "batch_norm"
        return f"speech_decoder_postnet.layers.{match[1]}.{part}.{match[3]}"
    if match := re.fullmatch(r"(\w+_predictor)\.conv\.(\d+)\.([02])\.(.+)", name):
        part = "conv" if match[3] == "0" else "layer_norm"
        return f"{match[1]}.conv_layers.{match[2]}.{part}.{match[4]}"
    if match := re.fullmatch(r"(pitch_embed|energy_embed)\.0\.(.+)", name):
        return f"{match[1]}.conv.{match[2]}"
    if name.startswith("feat_out."):
        return f"speech_decoder_postnet.{name}"
    for old, new in LAYER_NAMES:
        name = name.replace(old, new)
    return name


def _vocoder_name(name: str) -> str:
    if match := re.fullmatch(r"upsamples\.(\d+)\.1\.(.+)", name):
        return f"upsampler.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"blocks\.(\d+)\.(convs[12])\.(\d+)\.1\.(.+)", name):
        return f"resblocks.{match[1]}.{match[2]}.{match[3]}.{match[4]}"
    return name.replace("input_conv.", "conv_pre.").replace("output_conv.1.", "conv_post.")
