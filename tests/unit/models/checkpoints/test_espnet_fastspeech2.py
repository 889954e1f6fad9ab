"""Joint packs of ESPnet's FastSpeech2 and HiFi-GAN, made of the stored numbers of Transformers."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import pianissimo
from pianissimo.errors import CheckpointError
from pianissimo.models.checkpoints.espnet_fastspeech2 import LAYER_NAMES, OPTIONS
from pianissimo.models.checkpoints.espnet_fastspeech2 import read_espnet_fastspeech2 as read
from pianissimo.models.checkpoints.fastspeech2 import read_fastspeech2

GOLDEN = Path(__file__).parents[3] / "parity" / "golden_fastspeech2"
MEL, WAVE = 5e-5, 1e-5


def espnet_name(name: str) -> str:
    """A tensor's name in Transformers -> its name in ESPnet; the reader goes the other way."""
    part, _, name = name.partition(".")
    if part == "vocoder":
        name = re.sub(r"^conv_pre\.", "input_conv.", name)
        name = re.sub(r"^upsampler\.(\d+)\.", r"upsamples.\1.1.", name)
        name = re.sub(r"^resblocks\.(\d+)\.(convs\d)\.(\d+)\.", r"blocks.\1.\2.\3.1.", name)
        name = re.sub(r"^conv_post\.", "output_conv.1.", name)
        return f"tts.generator.vocoder.{name}"
    for new, old in (
        ("speech_decoder_postnet.feat_out", "feat_out"),
        ("speech_decoder_postnet.layers", "postnet.postnet"),
        ("conformer_layers", "encoders"),
        ("ff_macaron_layer_norm", "norm_ff_macaron"),
        ("self_attn_layer_norm", "norm_mha"),
        ("conv_layer_norm", "norm_conv"),
        ("final_layer_norm", "norm_final"),
        ("ff_layer_norm", "norm_ff"),
        ("encoder.embed.weight", "encoder.embed.0.weight"),
    ):
        name = name.replace(new, old)
    name = re.sub(r"(feed_forward(?:_macaron)?)\.conv(\d)", r"\1.w_\2", name)
    if name.startswith("postnet"):
        name = name.replace(".conv.", ".0.").replace(".batch_norm.", ".1.")
    if "predictor.conv_layers" in name:
        name = name.replace("conv_layers", "conv")
        name = re.sub(r"conv\.(\d+)\.conv", r"conv.\1.0", name).replace(".layer_norm", ".2")
    name = re.sub(r"^(pitch|energy)_embed\.conv", r"\1_embed.0", name)
    return f"tts.generator.text2mel.{name}"


def with_weight_norm(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the vocoder as a direction and a length that is not that of it."""
    found = {}
    for name, tensor in weights.items():
        if not (name.startswith("tts.generator.vocoder") and name.endswith(".weight")):
            found[name] = tensor
            continue
        norm = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.dim() - 1))
        found[f"{name}_g"], found[f"{name}_v"] = norm, 3.0 * tensor
    return found


def config_of(folder: Path) -> dict[str, Any]:
    both = json.loads((folder / "config.json").read_text())
    acoustic, vocoder = both["model_config"], both["vocoder_config"]
    vocabulary = json.loads((folder / "vocab.json").read_text())
    tokens = [f"<unused {number}>" for number in range(acoustic["vocab_size"])]
    for token, number in vocabulary.items():
        tokens[number] = token
    named = {key: acoustic[name] for key, (name, _) in OPTIONS.items() if name in acoustic}
    return {
        "tts": "joint_text2wav",
        "g2p": "g2p_en_no_space",
        "token_list": tokens,
        "tts_conf": {
            "text2mel_type": "fastspeech2",
            "text2mel_params": {
                **named,
                "aheads": acoustic["encoder_num_attention_heads"],
                "encoder_type": "conformer",
                "decoder_type": "conformer",
                "conformer_rel_pos_type": "latest",
            },
            "vocoder_type": "hifigan_generator",
            "vocoder_params": {
                "in_channels": vocoder["model_in_dim"],
                "channels": vocoder["upsample_initial_channel"],
                "upsample_scales": vocoder["upsample_rates"],
                "upsample_kernel_sizes": vocoder["upsample_kernel_sizes"],
                "resblock_kernel_sizes": vocoder["resblock_kernel_sizes"],
                "resblock_dilations": vocoder["resblock_dilation_sizes"],
                "nonlinear_activation_params": {"negative_slope": vocoder["leaky_relu_slope"]},
            },
            "sampling_rate": 22_050,
        },
    }


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    statistics = ("vocoder.mean", "vocoder.scale")
    stored = load_file(folder / "model.safetensors")
    named = {espnet_name(k): v for k, v in stored.items() if k not in statistics}
    training = {"tts.discriminator.msd.0.weight": torch.zeros(2), "normalize.mean": torch.zeros(2)}
    return with_weight_norm(named) | training


def save(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save(weights, folder / "train.total_count.ave_5best.pth")
    return folder


def test_a_joint_pack_equals_the_numbers_of_transformers(tmp_path: Path) -> None:
    source = GOLDEN / "post_norm"
    folder = save(tmp_path / "exp", config_of(source), weights_of(source))
    with np.load(GOLDEN / "post_norm.npz") as file:
        golden = {name: torch.from_numpy(file[name]) for name in file.files}
    parts, same = read(folder), read_fastspeech2(source)
    assert parts.vocabulary == same.vocabulary
    ours, theirs = parts.acoustic.state_dict(), same.acoustic.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    mel, durations = parts.acoustic(golden["ids"])
    assert torch.equal(durations, golden["durations"])
    assert (mel - golden["mel"]).abs().max() <= MEL
    assert (parts.vocoder(mel) - golden["wave"]).abs().max() <= WAVE


def test_norms_before_the_blocks_bring_one_behind_the_layers(tmp_path: Path) -> None:
    source = GOLDEN / "pre_norm"
    weights, width = weights_of(source), 0
    for side in ("encoder", "decoder"):
        name = f"tts.generator.text2mel.{side}.after_norm"
        width = len(weights[f"tts.generator.text2mel.{side}.encoders.0.norm_mha.weight"])
        weights[f"{name}.weight"] = torch.linspace(0.5, 2.0, width)
        weights[f"{name}.bias"] = torch.linspace(-1.0, 1.0, width)
    parts = read(save(tmp_path / "exp", config_of(source), weights))
    plain = read_fastspeech2(source).acoustic.encoder(torch.ones(1, 5, width))
    expected = torch.nn.functional.layer_norm(
        plain, (width,), torch.linspace(0.5, 2.0, width), torch.linspace(-1.0, 1.0, width)
    )
    assert torch.allclose(parts.acoustic.encoder(torch.ones(1, 5, width)), expected, atol=1e-5)


def test_a_zip_speaks(tmp_path: Path) -> None:
    pytest.importorskip("hibari", reason="needs the extra tts")
    source = GOLDEN / "post_norm"
    folder = save(tmp_path / "exp", config_of(source), weights_of(source))
    meta = {
        "files": {"model_file": "exp/train.pth"},
        "yaml_files": {"train_config": "exp/config.yaml"},
    }
    pack = tmp_path / "ljspeech.zip"
    with zipfile.ZipFile(pack, "w") as archive:
        archive.writestr("meta.yaml", yaml.safe_dump(meta))
        archive.write(folder / "config.yaml", "exp/config.yaml")
        archive.write(folder / "train.total_count.ave_5best.pth", "exp/train.pth")
    voice = pianissimo.load_voice(pack, device="cpu")
    assert (voice.name, voice.sample_rate) == ("ljspeech", 22_050)
    same = pianissimo.load_voice(source, device="cpu")
    assert np.allclose(voice.speak("Hello, world."), same.speak("Hello, world."), atol=1e-4)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("tts",), "fastspeech2", "without a vocoder.*use a joint pack"),
        (("tts",), "vits", "joint_text2wav"),
        (("g2p",), "pyopenjtalk", "g2p"),
        (("token_list",), ["a", "a", "<sos/eos>"], "each symbol once"),
        (("token_list",), "a", "a list of symbols"),
        (("tts_conf", "sampling_rate"), 24_000, "sampling_rate"),
        (("tts_conf", "vocoder_type"), "melgan_generator", "vocoder_type"),
        (("tts_conf", "text2mel_params", "encoder_type"), "transformer", "encoder_type"),
        (("tts_conf", "text2mel_params", "conformer_rel_pos_type"), None, "conformer_rel_pos_type"),
        (("tts_conf", "text2mel_params", "spk_embed_dim"), 512, "spk_embed_dim"),
        (("tts_conf", "text2mel_params", "adim"), 10**9, "hidden_size"),
        (("tts_conf", "vocoder_params", "kernel_size"), 5, "kernel_size"),
        (("tts_conf", "vocoder_params", "upsample_scales"), [0], "upsample_rates"),
    ],
)
def test_unsupported_packs_are_named(
    tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    config = config_of(GOLDEN / "post_norm")
    place: dict[str, Any] = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(CheckpointError, match=message):
        read(save(tmp_path / "exp", config, weights_of(GOLDEN / "post_norm")))


def test_every_tensor_is_needed_and_used(tmp_path: Path) -> None:
    config, weights = config_of(GOLDEN / "post_norm"), weights_of(GOLDEN / "post_norm")
    with pytest.raises(CheckpointError, match=r"unknown tensors, such as tts\.other"):
        read(save(tmp_path / "exp", config, weights | {"tts.other": torch.zeros(1)}))
    scale = weights.pop("tts.generator.vocoder.input_conv.weight_g")
    with pytest.raises(CheckpointError, match="no weight_g of its shape"):
        read(save(tmp_path / "exp", config, weights))
    weights["tts.generator.vocoder.input_conv.weight_g"] = scale
    del weights["tts.generator.text2mel.feat_out.bias"]
    with pytest.raises(CheckpointError, match=r"missing: speech_decoder_postnet\.feat_out\.bias"):
        read(save(tmp_path / "exp", config, weights))


def test_other_files_are_no_voice(tmp_path: Path) -> None:
    path = tmp_path / "voice.zip"
    path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="not a packed voice"):
        pianissimo.load_voice(path)


def test_each_layer_name_is_replaced_once() -> None:
    for old, new in LAYER_NAMES:
        assert not any(other in new for other, _ in LAYER_NAMES if other != old), new
