"""Folders of FastSpeech2Conformer and its HiFi-GAN vocoder, as Transformers writes them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pianissimo.errors import CheckpointError
from pianissimo.models.checkpoints.archive import read_tensors
from pianissimo.models.checkpoints.config_json import Section, is_integer, read_json
from pianissimo.models.checkpoints.format import check_tensors
from pianissimo.models.checkpoints.huggingface import read_weights
from pianissimo.models.fastpitch import FastPitch
from pianissimo.models.fastspeech2 import (
    FastSpeech2,
    FastSpeech2Config,
    HifiGan,
    HifiGanConfig,
    PredictorConfig,
)

ACOUSTIC = "fastspeech2_conformer"
VOCODER = "fastspeech2_conformer_hifigan"
BOTH = "fastspeech2_conformer_with_hifigan"
MODEL_TYPES = (ACOUSTIC, BOTH)
PICKLE_FILE = "pytorch_model.bin"
VOCABULARY_FILE = "vocab.json"
MOST_STEPS = 16
"""Upsamplings, block kernels and dilations of a vocoder."""
LARGEST_HOP = 4096

Module = TypeVar("Module", bound=nn.Module)


SAMPLE_RATE = 22_050
"""Of the published voices; their configurations do not state it."""
END = "<sos/eos>"


@dataclass(frozen=True)
class FastSpeech2Parts:
    """A voice read from its files: its networks, and the ids of its symbols.

    `around` are the symbols before and behind the others in each run, "" for none.
    """

    acoustic: FastSpeech2 | FastPitch
    vocoder: HifiGan
    vocabulary: dict[str, int]
    sample_rate: int = SAMPLE_RATE
    around: tuple[str, str] = ("", END)


def read_fastspeech2(folder: Path) -> FastSpeech2Parts:
    """Read a folder that holds both networks, or the acoustic model beside its vocoder.

    Raises CheckpointError for a damaged, incomplete or unsupported model.
    """
    config = read_json(folder / "config.json")
    where = str(folder / "config.json")
    if config.get("model_type") == BOTH:
        parts = Section(config, where)
        acoustic_shape = acoustic_config(parts.section("model_config"))
        vocoder_shape = vocoder_config(parts.section("vocoder_config"))
        weights = _weights(folder)
        with torch.device("meta"):
            acoustic, vocoder = FastSpeech2(acoustic_shape), HifiGan(vocoder_shape)
        acoustic = filled(acoustic, weights, "model.", folder)
        vocoder = filled(vocoder, weights, "vocoder.", folder)
        unknown = [name for name in weights if not name.startswith(("model.", "vocoder."))]
        if unknown:
            raise CheckpointError(f"{folder} has unknown tensors, such as {unknown[0][:200]}")
    else:
        acoustic_shape = acoustic_config(Section(config, where))
        beside = _vocoder_folder(folder)
        vocoder_shape = vocoder_config(
            Section(read_json(beside / "config.json"), str(beside / "config.json"))
        )
        with torch.device("meta"):
            acoustic, vocoder = FastSpeech2(acoustic_shape), HifiGan(vocoder_shape)
        acoustic = filled(acoustic, _weights(folder), "", folder)
        vocoder = filled(vocoder, _weights(beside), "", beside)
    if acoustic_shape.mels != vocoder_shape.mels:
        raise CheckpointError(
            f"{folder}: the model has {acoustic_shape.mels} mel bins, but its vocoder "
            f"{vocoder_shape.mels}; use the vocoder that belongs to it"
        )
    vocabulary = _vocabulary(folder, acoustic_shape.vocabulary)
    return FastSpeech2Parts(acoustic, vocoder, vocabulary)


def _vocoder_folder(folder: Path) -> Path:
    """The folder of the vocoder: inside of that of the model, or beside it."""
    places = (folder / "vocoder", folder.with_name(f"{folder.name}_hifigan"))
    for place in places:
        if (place / "config.json").is_file():
            if read_json(place / "config.json").get("model_type") != VOCODER:
                raise CheckpointError(f"{place} is not a folder of the kind {VOCODER}")
            return place
    raise CheckpointError(
        f"{folder} has no vocoder; copy espnet/fastspeech2_conformer_hifigan to {places[1]}"
    )


def acoustic_config(root: Section) -> FastSpeech2Config:
    """The shape of the acoustic model; CheckpointError for what is not supported here."""
    for flag in ("use_macaron_style_in_conformer", "use_cnn_in_conformer", "convolution_bias"):
        root.only(flag, (True,), True)
    for side in ("encoder", "decoder"):
        root.only(f"{side}_concat_after", (False,), False)
    root.only("reduction_factor", (1,), 1)
    for several in ("num_speakers", "num_languages"):
        root.only(several, (None, 1), None)
    root.only("speaker_embed_dim", (None,), None)
    width = root.integer("hidden_size", 384, most=8192)

    def pair(name: str, default: int, most: int) -> tuple[int, int]:
        """A number of the encoder and of the decoder."""
        return (
            root.integer(f"encoder_{name}", default, most=most),
            root.integer(f"decoder_{name}", default, most=most),
        )

    def kernel(name: str, default: int) -> int:
        value = root.integer(name, default, most=999)
        if value % 2 == 0:
            raise root.fail(name, "an odd integer")
        return value

    def predictor(name: str, layers: int, channels: int, size: int) -> PredictorConfig:
        return PredictorConfig(
            root.integer(f"{name}_layers", layers, most=99),
            root.integer(f"{name}_channels", channels, most=8192),
            kernel(f"{name}_kernel_size", size),
        )

    heads = pair("num_attention_heads", 2, 512)
    if any(width % count for count in heads) or width % 2:
        raise root.fail("hidden_size", "an even multiple of the numbers of heads")
    return FastSpeech2Config(
        vocabulary=root.integer("vocab_size", 78, most=100_000),
        mels=root.integer("num_mel_bins", 80, most=1024),
        width=width,
        heads=heads,
        layers=pair("layers", 4, 99),
        inner=pair("linear_units", 1536, 65_536),
        kernels=(kernel("encoder_kernel_size", 7), kernel("decoder_kernel_size", 31)),
        normalize_before=(
            root.flag("encoder_normalize_before", False),
            root.flag("decoder_normalize_before", False),
        ),
        final_norm=(
            root.flag("encoder_final_norm", False),
            root.flag("decoder_final_norm", False),
        ),
        position_kernel=kernel("positionwise_conv_kernel_size", 3),
        duration=predictor("duration_predictor", 2, 256, 3),
        pitch=predictor("pitch_predictor", 5, 256, 5),
        energy=predictor("energy_predictor", 2, 256, 3),
        pitch_kernel=kernel("pitch_embed_kernel_size", 1),
        energy_kernel=kernel("energy_embed_kernel_size", 1),
        postnet=PredictorConfig(
            root.integer("speech_decoder_postnet_layers", 5, most=99),
            root.integer("speech_decoder_postnet_units", 256, most=8192),
            kernel("speech_decoder_postnet_kernel", 5),
        ),
    )


def vocoder_config(root: Section) -> HifiGanConfig:
    """The shape of the vocoder; CheckpointError for what cannot be one."""
    rates = root.integers("upsample_rates", (8, 8, 2, 2), most=MOST_STEPS)
    kernels = root.integers("upsample_kernel_sizes", (16, 16, 4, 4), most=MOST_STEPS)
    channels = root.integer("upsample_initial_channel", 512, most=8192)
    if not rates or 0 in rates or math.prod(rates) > LARGEST_HOP:
        raise root.fail("upsample_rates", f"factors whose product is at most {LARGEST_HOP}")
    if len(kernels) != len(rates) or any(
        size < rate or (size - rate) % 2 for size, rate in zip(kernels, rates, strict=True)
    ):
        raise root.fail("upsample_kernel_sizes", "a size for each rate, larger by an even number")
    if channels >> len(rates) == 0:
        raise root.fail("upsample_initial_channel", "a number that can be halved for each rate")
    sizes = root.integers("resblock_kernel_sizes", (3, 7, 11), most=MOST_STEPS)
    if not sizes or any(size % 2 == 0 for size in sizes):
        raise root.fail("resblock_kernel_sizes", "odd integers")
    dilations = root.get("resblock_dilation_sizes") or [[1, 3, 5]] * 3
    if (
        not isinstance(dilations, list)
        or len(dilations) != len(sizes)
        or not all(
            isinstance(each, list)
            and 0 < len(each) <= MOST_STEPS
            and all(is_integer(d) and 0 < d < 100 for d in each)
            for each in dilations
        )
    ):
        raise root.fail("resblock_dilation_sizes", "a list of integers for each kernel")
    return HifiGanConfig(
        mels=root.integer("model_in_dim", 80, most=1024),
        channels=channels,
        rates=rates,
        kernels=kernels,
        block_kernels=sizes,
        dilations=tuple(map(tuple, dilations)),
        slope=root.number("leaky_relu_slope", 0.1),
        normalize_before=root.flag("normalize_before", True),
    )


def _weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder, from safetensors or, as published, a pickle of plain tensors."""
    path = folder / PICKLE_FILE
    if not path.is_file() or (folder / "model.safetensors").is_file():
        return read_weights(folder)
    try:
        with path.open("rb") as stream:
            return read_tensors(stream, str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error


def filled(module: Module, weights: dict[str, Tensor], prefix: str, folder: Path) -> Module:
    """The module, built without memory, with its tensors; CheckpointError if they do not fit."""
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
    for name in expected:
        if name.endswith("num_batches_tracked"):
            own[name] = torch.tensor(0)
    check_tensors(own, expected, str(folder))
    for name, tensor in own.items():
        if tensor.layout != torch.strided or not (tensor.is_floating_point() or tensor.dim() == 0):
            raise CheckpointError(f"{folder}: {name} holds {tensor.dtype}, expected plain floats")
    floats = {name: t.float() if t.is_floating_point() else t for name, t in own.items()}
    module.load_state_dict(floats, assign=True)
    return module.eval().requires_grad_(False)


def fold_weight_norm(weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors, with each pair of `weight_g` and `weight_v` folded into its weight."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(".weight_v"):
            scale = weights.get(f"{name.removesuffix('_v')}_g")
            if scale is None or scale.shape != (len(tensor), *[1] * (tensor.dim() - 1)):
                raise CheckpointError(f"{where}: {name[:200]} has no weight_g of its shape")
            values = tensor.float()
            norm = values.flatten(1).norm(dim=1).view(scale.shape)
            found[name.removesuffix("_v")] = scale.float() * values / norm
        elif not name.endswith(".weight_g"):
            found[name] = tensor
    return found


def _vocabulary(folder: Path, size: int) -> dict[str, int]:
    """Symbol -> id; CheckpointError unless there are the symbols of a voice."""
    vocabulary = read_json(folder / VOCABULARY_FILE)
    ids = list(vocabulary.values())
    if not all(is_integer(id) and 0 <= id < size for id in ids) or len(set(ids)) < len(ids):
        raise CheckpointError(f"{folder / VOCABULARY_FILE} has ids outside of 0..{size - 1}")
    if END not in vocabulary:
        raise CheckpointError(f"{folder / VOCABULARY_FILE} has no symbol {END}")
    return vocabulary
