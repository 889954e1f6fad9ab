"""Checkpoints of NeMo and Transformers become our models, tensor by tensor."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_checkpoints import (
    BATCH_NORM,
    DIM,
    VOCABULARY,
    hf_config,
    hf_processor,
    hf_state,
    hf_tokenizer,
    nemo_config,
    nemo_members,
    nemo_state,
    write_hf,
    write_nemo,
)
from torch import Tensor
from torch.nn import functional as F

from pianissimo.errors import CheckpointError
from pianissimo.models.asr import AsrModel, LanguagePrompt, PromptConfig
from pianissimo.models.checkpoints.format import recognize_format
from pianissimo.models.checkpoints.huggingface import config_from_huggingface, read_huggingface
from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.models.checkpoints.nemo import config_from_nemo, read_nemo, to_nemo_names

KINDS = ("rnnt", "tdt", "ctc", "hybrid", "prompt")
STATISTICS = ("running_mean", "running_var", "weight", "bias")


def same(a: AsrModel, b: AsrModel) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# -- NeMo ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_a_nemo_file_is_ours_and_back(kind: str, tmp_path: Path) -> None:
    config = nemo_config(kind, use_bias=kind == "tdt")
    state = nemo_state(config)
    model, tokenizer = read_nemo(write_nemo(tmp_path / "a.nemo", config, state))
    assert tokenizer.vocab_size == model.config.vocab_size == VOCABULARY
    assert not model.training
    back = to_nemo_names(model)
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


def test_tensors_are_converted_to_the_right_modules(tmp_path: Path) -> None:
    config = nemo_config("hybrid", use_bias=True)
    state = nemo_state(config)
    model, _ = read_nemo(write_nemo(tmp_path / "a.nemo", config, state))
    ours = model.state_dict()
    layer = "encoder.layers.1."
    pairs = {
        "encoder.subsampling.conv.0.weight": "encoder.pre_encode.conv.0.weight",
        "encoder.subsampling.conv.1.bias": "encoder.pre_encode.conv.2.bias",
        "encoder.subsampling.pointwise.0.weight": "encoder.pre_encode.conv.3.weight",
        "encoder.subsampling.conv.2.weight": "encoder.pre_encode.conv.5.weight",
        "encoder.subsampling.pointwise.1.weight": "encoder.pre_encode.conv.6.weight",
        "encoder.subsampling.out.weight": "encoder.pre_encode.out.weight",
        layer + "norm_ff1.weight": layer + "norm_feed_forward1.weight",
        layer + "norm_attention.bias": layer + "norm_self_att.bias",
        layer + "ff1.up.bias": layer + "feed_forward1.linear1.bias",
        layer + "ff2.down.weight": layer + "feed_forward2.linear2.weight",
        layer + "attention.out.weight": layer + "self_attn.linear_out.weight",
        layer + "attention.position.weight": layer + "self_attn.linear_pos.weight",
        layer + "attention.bias_u": layer + "self_attn.pos_bias_u",
        layer + "attention.bias_v": layer + "self_attn.pos_bias_v",
        layer + "conv.depthwise.weight": layer + "conv.depthwise_conv.weight",
        layer + "conv.norm.weight": layer + "conv.batch_norm.weight",
        "predictor.embedding.weight": "decoder.prediction.embed.weight",
        "predictor.lstm.weight_hh_l1": "decoder.prediction.dec_rnn.lstm.weight_hh_l1",
        "joiner.encoder.weight": "joint.enc.weight",
        "joiner.predictor.weight": "joint.pred.weight",
        "joiner.out.bias": "joint.joint_net.2.bias",
        "ctc.out.bias": "ctc_decoder.decoder_layers.0.bias",
    }
    for name, theirs in pairs.items():
        assert torch.equal(ours[name], state[theirs]), name
    attention = layer + "self_attn.linear_"
    for leaf in ("weight", "bias"):
        joined = torch.cat([state[f"{attention}{p}.{leaf}"] for p in "qkv"])
        assert torch.equal(ours[f"{layer}attention.qkv.{leaf}"], joined)
    assert torch.equal(
        ours[layer + "conv.up.weight"], state[layer + "conv.pointwise_conv1.weight"][:, :, 0]
    )
    assert torch.equal(
        ours["ctc.out.weight"], state["ctc_decoder.decoder_layers.0.weight"][:, :, 0]
    )


@pytest.mark.parametrize("bias", [True, False])
def test_a_batch_norm_is_folded_into_the_convolution(bias: bool, tmp_path: Path) -> None:
    config = nemo_config("tdt", **BATCH_NORM | {"use_bias": bias})
    state = nemo_state(config)
    model, _ = read_nemo(write_nemo(tmp_path / "a.nemo", config, state))
    assert model.config.encoder.conv_norm == "folded"
    x = torch.randn(3, DIM, 30)
    for i, layer in enumerate(model.encoder.layers):
        conv, norm = (f"encoder.layers.{i}.conv.{n}" for n in ("depthwise_conv", "batch_norm"))
        y = F.conv1d(x, state[f"{conv}.weight"], state.get(f"{conv}.bias"), groups=DIM)
        mean, variance, gain, shift = (state[f"{norm}.{s}"] for s in STATISTICS)
        y = F.batch_norm(y, mean, variance, gain, shift, eps=1e-5)
        torch.testing.assert_close(
            layer.get_submodule("conv.depthwise")(x), y, rtol=1e-5, atol=1e-4
        )


def test_plain_gzip_and_unpacked_are_the_same(tmp_path: Path) -> None:
    config = nemo_config()
    state = nemo_state(config)
    plain, _ = read_nemo(write_nemo(tmp_path / "a.nemo", config, state))
    packed, _ = read_nemo(write_nemo(tmp_path / "b.nemo", config, state, packed=True))
    folder = tmp_path / "c"
    folder.mkdir()
    for name, data in nemo_members(config, state).items():
        (folder / name).write_bytes(data)
    unpacked, _ = read_nemo(folder)
    assert same(plain, packed) and same(plain, unpacked)
    assert [m.config.name for m in (plain, packed, unpacked)] == ["a", "b", "c"]


def test_a_nemo_configuration_is_converted() -> None:
    config = config_from_nemo(nemo_config("prompt"), VOCABULARY, "x", "tiny")
    assert config.name == "tiny"
    assert config.max_symbols == 7
    assert config.features.normalize == "none"
    assert config.encoder.left_context == 70
    assert config.encoder.lookaheads == (13, 6, 1, 0)
    assert config.encoder.streams
    languages = (LanguagePrompt("en-US", 0), LanguagePrompt("auto", 5))
    assert config.prompts == PromptConfig(8, hidden=2 * DIM, default=5, languages=languages)
    tdt = config_from_nemo(nemo_config("tdt"), VOCABULARY, "x").transducer
    assert tdt is not None and tdt.durations == (0, 1, 2, 3, 4)
    ctc = config_from_nemo(nemo_config("ctc", **BATCH_NORM), VOCABULARY, "x")
    assert ctc.ctc and ctc.transducer is None
    assert ctc.encoder.left_context is None and not ctc.encoder.streams
    assert ctc.encoder.scale_input and ctc.encoder.attention_bias and ctc.encoder.conv_bias


def test_absent_keys_have_the_defaults_of_nemo() -> None:
    data = nemo_config()
    data["encoder"] = {"feat_in": 64, "d_model": DIM, "n_layers": 1, "subsampling": "dw_striding"}
    data["preprocessor"] = {}
    del data["decoding"]
    config = config_from_nemo(data, VOCABULARY, "x")
    assert config.features.n_mels == 64
    assert config.features.window_samples == 320
    assert config.features.fft_samples == 512
    assert config.features.normalize == "per_feature"
    assert config.features.preemphasis == 0.97
    assert config.features.log_guard == 2.0**-24
    assert config.max_symbols == 10
    encoder = config.encoder
    assert (encoder.conv_kernel, encoder.conv_norm, encoder.heads) == (31, "folded", 4)
    assert (encoder.subsampling_factor, encoder.subsampling_channels) == (4, DIM)
    assert encoder.attention_bias and encoder.conv_bias and encoder.scale_input
    assert not encoder.causal_conv and not encoder.causal_subsampling
    assert encoder.left_context is None and encoder.lookaheads == ()


@pytest.mark.parametrize("value", ["NA", None])
def test_no_normalization_has_two_spellings(value: str | None) -> None:
    data = nemo_config()
    data["preprocessor"]["normalize"] = value
    assert config_from_nemo(data, VOCABULARY, "x").features.normalize == "none"


@pytest.mark.parametrize(
    ("greedy", "expected"),
    [
        ({"max_symbols": 3, "max_symbols_per_step": 9}, 3),
        ({"max_symbols": None, "max_symbols_per_step": 9}, 9),
        ({"max_symbols": None}, 10),
    ],
)
def test_max_symbols_has_two_spellings(greedy: dict[str, Any], expected: int) -> None:
    data = nemo_config()
    data["decoding"]["greedy"] = greedy
    assert config_from_nemo(data, VOCABULARY, "x").max_symbols == expected


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("preprocessor", "window", "hamming"),
        ("preprocessor", "frame_splicing", 3),
        ("preprocessor", "normalize", "all_features"),
        ("preprocessor", "log", False),
        ("preprocessor", "log_zero_guard_type", "clamp"),
        ("preprocessor", "log_zero_guard_value", "tiny"),
        ("preprocessor", "mag_power", 1.0),
        ("preprocessor", "mel_norm", None),
        ("preprocessor", "lowfreq", 20),
        ("preprocessor", "highfreq", 7600),
        ("preprocessor", "sample_rate", 8000),
        ("preprocessor", "n_fft", 256),
        ("preprocessor", "exact_pad", True),
        ("preprocessor", "_target_", "nemo.AudioToMFCCPreprocessor"),
        ("encoder", "_target_", "evil.Encoder"),
        ("encoder", "subsampling", "vggnet"),
        ("encoder", "self_attention_model", "rel_pos_local_attn"),
        ("encoder", "untie_biases", False),
        ("encoder", "att_context_style", "regular"),
        ("encoder", "att_context_style", "chunked_limited_with_rc"),
        ("encoder", "att_context_size", [[70, 13], [56, 6]]),
        ("encoder", "att_context_size", [[-1, 13]]),
        ("encoder", "att_context_size", [70]),
        ("encoder", "att_context_size", "all"),
        ("encoder", "conv_context_size", [6, 2]),
        ("encoder", "conv_context_style", "dcc"),
        ("encoder", "conv_norm_type", "group_norm"),
        ("encoder", "conv_kernel_size", 8),
        ("encoder", "reduction", "pooling"),
        ("encoder", "feat_out", 99),
        ("encoder", "n_layers", 10**9),
        ("encoder", "d_model", "wide"),
        ("encoder", "use_bias", "yes"),
        ("decoder", "_target_", "nemo.StatelessTransducerDecoder"),
        ("decoder", "normalization_mode", "layer"),
        ("decoder", "blank_as_pad", False),
        ("decoder", "vocab_size", 41),
        ("joint", "_target_", "nemo.HATJoint"),
        ("joint", "num_classes", 39),
        ("joint", "num_extra_outputs", 2),
    ],
)
def test_unsupported_values_are_named(section: str, key: str, value: Any) -> None:
    data = nemo_config()
    data[section][key] = value
    with pytest.raises(CheckpointError, match=rf"{section}: {key} is .*supported: "):
        config_from_nemo(data, VOCABULARY, "x")


def test_a_left_context_that_chunks_do_not_divide_is_refused() -> None:
    data = nemo_config(att_context_size=[[70, 3]])
    with pytest.raises(CheckpointError, match="left context 70 is not a multiple"):
        config_from_nemo(data, VOCABULARY, "x")


@pytest.mark.parametrize("key", ["preprocessor", "encoder", "decoder"])
def test_a_configuration_without_its_parts_is_refused(key: str) -> None:
    data = nemo_config()
    del data[key]
    with pytest.raises(CheckpointError, match=f"has no {key}"):
        config_from_nemo(data, VOCABULARY, "x")


def test_stored_features_must_be_those_of_the_configuration(tmp_path: Path) -> None:
    config = nemo_config()
    state = nemo_state(config)
    state["preprocessor.featurizer.fb"][0, 3, 10] += 1e-3
    with pytest.raises(CheckpointError, match=r"featurizer\.fb"):
        read_nemo(write_nemo(tmp_path / "a.nemo", config, state))


# -- Hugging Face ----------------------------------------------------------------------------------


def hf_twin(architecture: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The NeMo configuration and tensors of the same model as `hf_config(architecture)`."""
    kind = {"ParakeetForCTC": "ctc", "ParakeetForTDT": "tdt", "Nemotron3_5AsrForRNNT": "prompt"}
    offline = architecture.startswith("Parakeet")
    config = nemo_config(kind.get(architecture, "rnnt"), **BATCH_NORM if offline else {})
    config["preprocessor"]["normalize"] = "per_feature" if offline else "NA"
    if architecture == "ParakeetForCTC":
        config.pop("decoding", None)
    return config, nemo_state(config)


ARCHITECTURES = (
    "NemotronAsrStreamingForRNNT",
    "Nemotron3_5AsrForRNNT",
    "ParakeetForCTC",
    "ParakeetForRNNT",
    "ParakeetForTDT",
)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_layouts_give_the_same_model(architecture: str, shards: int, tmp_path: Path) -> None:
    config, state = hf_twin(architecture)
    renamed = hf_state(state, nemotron=architecture.startswith("Nemotron"))
    folder = write_hf(tmp_path / "model", architecture, renamed, shards=shards)
    theirs, tokenizer = read_huggingface(folder)
    ours, _ = read_nemo(write_nemo(tmp_path / "model.nemo", config, state))
    assert theirs.config == ours.config
    assert same(theirs, ours)
    assert tokenizer.vocab_size == VOCABULARY


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    _, state = hf_twin("ParakeetForCTC")
    halves = {n: t.bfloat16() if t.is_floating_point() else t for n, t in state.items()}
    folder = write_hf(tmp_path / "m", "ParakeetForCTC", hf_state(halves, nemotron=False))
    model, _ = read_huggingface(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("behind", [("<pad>",), ("<blank>", "<pad>"), ()])
def test_special_tokens_behind_the_pieces_are_no_pieces(
    behind: tuple[str, ...], tmp_path: Path
) -> None:
    _, state = hf_twin("ParakeetForCTC")
    folder = write_hf(tmp_path / "m", "ParakeetForCTC", hf_state(state, nemotron=False))
    (folder / "tokenizer.json").write_text(json.dumps(hf_tokenizer(behind)), encoding="utf-8")
    model, tokenizer = read_huggingface(folder)
    assert tokenizer.vocab_size == VOCABULARY
    save_model(tmp_path / "ours", model, tokenizer)
    again, tokenizer = load_model(tmp_path / "ours")
    assert same(model, again)
    assert tokenizer.vocab_size == VOCABULARY


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    _, state = hf_twin("ParakeetForCTC")
    folder = write_hf(tmp_path / "m", "ParakeetForCTC", hf_state(state, nemotron=False))
    document = hf_tokenizer(("word", "<blank>"))
    document["added_tokens"][1]["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"has 41 pieces, .* has 40"):
        read_huggingface(folder)


def test_older_parakeet_folders_have_a_file_for_features(tmp_path: Path) -> None:
    _, state = hf_twin("ParakeetForCTC")
    folder = write_hf(tmp_path / "m", "ParakeetForCTC", hf_state(state, nemotron=False))
    processor = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(processor["feature_extractor"]))
    (folder / "processor_config.json").unlink()
    assert read_huggingface(folder)[0].config.features.normalize == "per_feature"
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="no processor_config"):
        read_huggingface(folder)


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("", "architectures", ["WhisperForConditionalGeneration"]),
        ("", "hidden_act", "tanh"),
        ("", "blank_token_id", 0),
        ("", "vocab_size", None),
        ("encoder_config", "hidden_act", "gelu"),
        ("encoder_config", "subsampling_conv_stride", 4),
        ("encoder_config", "num_key_value_heads", 2),
        ("encoder_config", "sliding_window", 0),
        ("encoder_config", "attention_bias", None),
        ("processor", "supported_num_lookahead_tokens", None),
        ("processor", "supported_num_lookahead_tokens", [6, 1]),
        ("feature_extractor", "feature_extractor_type", "ParakeetFeatureExtractor"),
        ("feature_extractor", "mel_filters_dtype", "bfloat16"),
        ("feature_extractor", "sampling_rate", 8000),
        ("feature_extractor", "n_fft", 401),
    ],
)
def test_unsupported_values_of_transformers_are_named(where: str, key: str, value: Any) -> None:
    architecture = "NemotronAsrStreamingForRNNT"
    config, processor = hf_config(architecture), hf_processor(architecture)
    places = {
        "": config,
        "encoder_config": config["encoder_config"],
        "processor": processor,
        "feature_extractor": processor["feature_extractor"],
    }
    places[where][key] = value
    with pytest.raises(CheckpointError, match=r"supported: "):
        config_from_huggingface(config, processor, "x")
    if value is None:
        del places[where][key]
        with pytest.raises(CheckpointError, match=f"{key} is missing; supported: "):
            config_from_huggingface(config, processor, "x")


# -- formats and full size -------------------------------------------------------------------------


def test_formats_are_recognized_by_content(tmp_path: Path) -> None:
    config, state = hf_twin("NemotronAsrStreamingForRNNT")
    archive = write_nemo(tmp_path / "a.nemo", config, state)
    packed = write_nemo(tmp_path / "b.tar.gz", config, state, packed=True)
    folder = write_hf(
        tmp_path / "hf", "NemotronAsrStreamingForRNNT", hf_state(state, nemotron=True)
    )
    save_model(tmp_path / "ours", *read_nemo(archive))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    (unpacked / "model_config.yaml").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("hello")
    assert recognize_format(archive) == "nemo"
    assert recognize_format(packed) == "nemo"
    assert recognize_format(unpacked) == "nemo"
    assert recognize_format(folder) == "huggingface"
    assert recognize_format(tmp_path / "ours") == "pianissimo"
    for name in ("empty", "text", "absent"):
        assert recognize_format(tmp_path / name) is None
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        recognize_format(tmp_path / "empty")


FULL_SIZE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_hidden_layers": 24,
    "num_mel_bins": 128,
    "subsampling_conv_channels": 256,
}


def full_size(architecture: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config, processor = hf_config(architecture), hf_processor(architecture)
    config |= {"vocab_size": 1025, "blank_token_id": 1024, "decoder_hidden_size": 640}
    config["encoder_config"] |= FULL_SIZE
    processor["feature_extractor"]["feature_size"] = 128
    return config, processor


def test_the_english_model_has_its_published_size() -> None:
    config = config_from_huggingface(*full_size("NemotronAsrStreamingForRNNT"), "x")
    with torch.device("meta"):
        model = AsrModel(config)
    assert model.parameter_count() == 618_084_865
    assert len(to_nemo_names(model)) == 653

    data = nemo_config(
        feat_in=128, n_layers=24, d_model=1024, n_heads=8, subsampling_conv_channels=256
    )
    data["preprocessor"]["features"] = 128
    data["decoder"] |= {"prednet": {"pred_hidden": 640, "pred_rnn_layers": 2}, "vocab_size": 1024}
    data["joint"] |= {
        "jointnet": {"joint_hidden": 640, "activation": "relu"},
        "num_classes": 1024,
    }
    assert config_from_nemo(data, 1024, "x") == config


def test_the_languages_of_a_multilingual_folder_are_those_of_its_prompts() -> None:
    kind = "Nemotron3_5AsrForRNNT"
    known = {"de": 3, "de-DE": 3, "auto": 5, "xx": 8, "yy": -1, "zz": True, "ww": "1"}
    processor = hf_processor(kind) | {"prompt_dictionary": known}
    config = config_from_huggingface(hf_config(kind), processor, "x")
    assert config.prompts is not None
    assert [(k.language, k.prompt) for k in config.prompts.languages] == [
        ("de", 3),
        ("de-DE", 3),
        ("auto", 5),
    ]
    processor["prompt_dictionary"] = ["de"]
    with pytest.raises(CheckpointError, match="prompt_dictionary"):
        config_from_huggingface(hf_config(kind), processor, "x")


def test_the_multilingual_model_has_its_published_size() -> None:
    config, processor = full_size("Nemotron3_5AsrForRNNT")
    config |= {
        "vocab_size": 13088,
        "blank_token_id": 13087,
        "num_prompts": 128,
        "prompt_intermediate_size": 2048,
        "default_prompt_id": 101,
    }
    config["encoder_config"]["sliding_window"] = 57
    processor |= {
        "default_num_lookahead_tokens": 3,
        "supported_num_lookahead_tokens": [3, 0, 6, 13],
    }
    ours = config_from_huggingface(config, processor, "x")
    assert (ours.encoder.left_context, ours.encoder.lookaheads) == (56, (3, 0, 6, 13))
    with torch.device("meta"):
        model = AsrModel(ours)
    assert model.parameter_count() == 637_997_088
