import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DIM, ENCODER, MELS, VOCABULARY, WHOLE_CONTEXT, make_model, tensor

from pianissimo.audio.features import FeatureConfig
from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.asr import AsrConfig, AsrModel, LanguagePrompt, PromptConfig, PromptProjector
from pianissimo.models.checkpoints.model_folder import load_model, read_config, save_model
from pianissimo.models.transducer import TransducerConfig
from pianissimo.text.tokenizer import Tokenizer

LANGUAGES = (
    LanguagePrompt("en-US", 0),
    LanguagePrompt("de-DE", 1),
    LanguagePrompt("de-AT", 3),
    LanguagePrompt("auto", 2),
)
PROMPTS = PromptConfig(count=5, hidden=6, default=2, languages=LANGUAGES)
VARIANTS: dict[str, dict[str, Any]] = {
    "both heads": {},
    "transducer alone": {"ctc": False},
    "ctc alone": {"transducer": None},
    "durations": {"durations": (0, 1, 2)},
    "prompts": {"prompts": PROMPTS, "language": "de", "name": "prompted"},
    "unlimited context": {"encoder": WHOLE_CONTEXT},
    "biases, folded norm": {
        "encoder": dataclasses.replace(ENCODER, attention_bias=True, conv_norm="folded")
    },
}


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    """A saved model folder for a test to spoil."""
    save_model(tmp_path / "model", make_model(), tiny_tokenizer)
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


# -- round trip ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_model_comes_back_exactly(
    variant: str, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    model = make_model(**VARIANTS[variant])
    save_model(tmp_path / "a" / "b", model, tiny_tokenizer)
    loaded, tokenizer = load_model(tmp_path / "a" / "b")
    assert loaded.config == model.config
    assert tokenizer.pieces == tiny_tokenizer.pieces
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(after[name], weight), name
    assert not loaded.training
    assert (
        loaded.parameter_count()
        == model.parameter_count()
        == sum(p.numel() for p in model.parameters())
    )
    samples = tensor(1, 3000)
    with torch.no_grad():
        mel, lengths = loaded.features(samples)
        assert torch.equal(mel, model.features(samples)[0])
        assert torch.equal(loaded.encoder(mel, lengths)[0], model.encoder(mel, lengths)[0])


def test_tuples_come_back_as_tuples(folder: Path) -> None:
    config = read_config(folder / "config.json")
    assert config.encoder.lookaheads == (13, 6, 1, 0)
    assert isinstance(config.encoder.lookaheads, tuple)
    assert hash(config) == hash(make_model().config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_stored_narrow_are_computed_in_float32(
    dtype: torch.dtype, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    model = make_model()
    save_model(tmp_path, model, tiny_tokenizer, dtype)
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {dtype}
    loaded = load_model(tmp_path)[0]
    assert loaded.dtype == torch.float32
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.to(dtype).float()), name


def test_saving_leaves_the_model_as_it_was(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    model = make_model()
    save_model(tmp_path, model, tiny_tokenizer, torch.float16)
    assert model.dtype == torch.float32
    assert model.device == torch.device("cpu")


# -- what a folder must hold -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(color="red"), "unknown keys: color"),
        (lambda c: c["encoder"].update(widht=3), "unknown keys: widht"),
        (lambda c: c.pop("vocab_size"), "lacks: vocab_size"),
        (lambda c: c.pop("encoder"), "lacks: encoder"),
        (lambda c: c.pop("format"), "format"),
        (lambda c: c.update(format=2), "format"),
        (lambda c: c.update(vocab_size="12"), "vocab_size is '12', expected int"),
        (lambda c: c.update(vocab_size=True), "vocab_size is True, expected int"),
        (lambda c: c.update(vocab_size=12.0), "vocab_size is 12.0, expected int"),
        (lambda c: c.update(ctc=1), "ctc is 1, expected bool"),
        (lambda c: c.update(language=5), "language is 5"),
        (lambda c: c.update(features=[]), "features is not an object"),
        (lambda c: c["encoder"].update(lookaheads=13), "expected a list"),
        (lambda c: c["encoder"].update(lookaheads=[13, "6"]), "expected int"),
        (lambda c: c["encoder"].update(conv_norm="batch"), "expected one of"),
        (lambda c: c["encoder"].update(left_context=None), "left_context"),
        (lambda c: c["encoder"].update(n_mels=20), "mel bins"),
        (lambda c: c["transducer"].update(vocab_size=20), "vocabulary"),
        (lambda c: c.update(transducer=None, ctc=False), "CTC head or both"),
        (lambda c: c["encoder"].update(heads=0), "heads"),
        (lambda c: c["encoder"].update(lookaheads=[-1]), "lookahead"),
        (lambda c: c["encoder"].update(layers=-1), "layers"),
        (lambda c: c["encoder"].update(dim=-16), "dim"),
        (lambda c: c["encoder"].update(conv_kernel=0), "kernel"),
        (lambda c: c["encoder"].update(dropout=2.0), "dropout"),
        (lambda c: c["encoder"].update(left_context=0), "left context is 0"),
        (lambda c: c["encoder"].update(layers=513), "513 layers"),
        (lambda c: c["encoder"].update(layers=10**9), "layers is 1000000000"),
        (lambda c: c["features"].update(sample_rate=8000), "8000 Hz"),
        (lambda c: c["features"].update(n_mels=0), "mel bins"),
        (lambda c: c["features"].update(fft_samples=300), "fft_samples 300"),
        (lambda c: c["features"].update(window_samples=1), "window_samples 1"),
        (lambda c: c["features"].update(hop_samples=0), "hop_samples"),
        (lambda c: c["features"].update(log_guard=0), "log_guard"),
        (lambda c: c["features"].update(preemphasis=float("nan")), "preemphasis is nan"),
        (lambda c: c["transducer"].update(predictor_layers=0), "predictor_layers"),
        (lambda c: c["transducer"].update(joint_dim=-1), "joint_dim"),
        (lambda c: c["transducer"].update(durations=[-1]), "durations"),
        (lambda c: c.update(max_symbols=0), "max_symbols"),
        (lambda c: c.update(beam=0), r"config\.json: a beam is 1 to 256"),
        (lambda c: c.update(beam=300), r"config\.json: a beam is 1 to 256"),
        (lambda c: c.update(prompts={"count": 5, "default": 5}), "prompts"),
        (
            lambda c: c.update(
                prompts={"count": 5, "default": 0, "languages": [{"language": "de", "prompt": 9}]}
            ),
            "numbered 0 to 9",
        ),
    ],
)
def test_a_configuration_is_read_strictly(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\ufeff{}"])
def test_a_configuration_that_is_not_an_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="config"):
        load_model(folder)


def test_a_configuration_of_a_megabyte_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(" " * (1 << 20) + "{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="too large"):
        load_model(folder)


def test_whole_numbers_are_taken_for_fractions(folder: Path) -> None:
    edit(folder, lambda c: c["encoder"].update(dropout=0))
    dropout = read_config(folder / "config.json").encoder.dropout
    assert dropout == 0.0
    assert isinstance(dropout, float)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_model(folder)


def test_a_damaged_tokenizer_is_named(folder: Path) -> None:
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 100)
    with pytest.raises(CheckpointError, match=r"model/tokenizer\.model: .* cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_weights_are_plain_floats(folder: Path, dtype: torch.dtype) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["ctc.out.bias"] = weights["ctc.out.bias"].to(dtype)
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"ctc\.out\.bias has torch\."):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_truncated_weights_are_refused(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if keep == 0.5 else int(keep)])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.* fetch it again"):
        load_model(folder)


def test_weights_must_be_those_of_the_configuration(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = "encoder.layers.0.attention.qkv.weight"

    save_file({k: w for k, w in weights.items() if k != name}, path)
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        load_model(folder)

    save_file({**weights, "extra.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"unknown: extra\.weight"):
        load_model(folder)

    save_file({**weights, name: weights[name].T.contiguous()}, path)
    with pytest.raises(CheckpointError, match=rf"{name} has shape \(16, 48\).*\(48, 16\)"):
        load_model(folder)

    edit(folder, lambda c: c["encoder"].update(layers=3))
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more"):
        load_model(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder: Path, number: float) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["ctc.out.bias"][3] = number
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"ctc\.out\.bias holds NaN or infinite"):
        load_model(folder)


# -- configuration ---------------------------------------------------------------------------------


def config(**changes: Any) -> AsrConfig:
    return dataclasses.replace(make_model().config, **changes)


def test_latencies_are_chunks_in_milliseconds_shortest_first() -> None:
    assert config().latencies_ms == {80: 0, 160: 1, 560: 6, 1120: 13}
    assert list(config().latencies_ms) == [80, 160, 560, 1120]
    encoder = dataclasses.replace(ENCODER, left_context=56, lookaheads=(3, 13, 0, 6))
    assert config(encoder=encoder).latencies_ms == {80: 0, 320: 3, 560: 6, 1120: 13}
    assert config().frame_seconds == pytest.approx(0.08)


def test_lookahead_is_looked_up_by_latency() -> None:
    assert config().lookahead(560) == 6
    assert config().lookahead(None) == 13
    with pytest.raises(OptionError, match=r"100 ms .*80, 160, 560, 1120"):
        config().lookahead(100)


def test_a_model_that_sees_everything_has_no_latencies() -> None:
    whole = config(encoder=WHOLE_CONTEXT)
    assert whole.latencies_ms == {}
    assert whole.lookahead(None) is None
    with pytest.raises(OptionError, match="does not stream"):
        whole.lookahead(80)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"transducer": None, "ctc": False}, "transducer, a CTC head or both"),
        ({"transducer": TransducerConfig(VOCABULARY + 1)}, "vocabulary"),
        ({"features": FeatureConfig(n_mels=MELS + 1)}, "mel bins"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        config(**changes)


def test_features_normalized_over_a_recording_rule_out_streaming() -> None:
    assert config().streams
    assert not config(features=FeatureConfig(n_mels=MELS, normalize="per_feature")).streams


def test_a_model_has_the_parts_of_its_configuration() -> None:
    both, prompted = make_model(), make_model(prompts=PROMPTS, transducer=None)
    assert both.predictor is not None
    assert both.joiner is not None
    assert both.ctc is not None
    assert both.prompt is None
    assert prompted.prompt is not None
    assert prompted.predictor is None
    assert prompted.joiner is None


def test_features_are_real_even_in_a_model_without_memory() -> None:
    with torch.device("meta"):
        model = AsrModel(make_model().config)
    assert model.device.type == "meta"
    assert model.features.filterbank.device.type == "cpu"
    assert model.features.whole(torch.zeros(320)).shape == (2, MELS)


@torch.no_grad()
def test_a_prompt_stands_beside_each_frame() -> None:
    prompt = make_model(prompts=PROMPTS).prompt
    assert prompt is not None
    frames = tensor(2, 3, DIM)
    found = prompt(frames)
    assert torch.equal(found, prompt(frames, torch.tensor([2] * len(frames))))
    assert not torch.allclose(found, prompt(frames, torch.tensor([0] * len(frames))))
    beside = torch.cat([frames[1, 2], torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])])
    hidden = (prompt.up.weight @ beside + prompt.up.bias).clamp(min=0)
    expected = prompt.down.weight @ hidden + prompt.down.bias
    torch.testing.assert_close(found[1, 2], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "asked, language, prompt",
    [
        ("de-AT", "de-AT", 3),
        ("DE_at", "de-AT", 3),
        ("de", "de-DE", 1),
        ("en", "en-US", 0),
        ("auto", None, 2),
    ],
)
def test_a_language_is_asked_for_by_its_tag(asked: str, language: str | None, prompt: int) -> None:
    model = make_model(prompts=PROMPTS)
    model.set_language(asked)
    assert model.config.language == language
    assert model.prompt is not None
    frames = tensor(1, 3, DIM)
    assert torch.equal(
        model.prompt(frames), model.prompt(frames, torch.tensor([prompt] * len(frames)))
    )


def test_an_unknown_language_names_the_known_ones() -> None:
    model = make_model(prompts=PROMPTS, name="prompted")
    for language in ("fr", "d", ""):
        with pytest.raises(OptionError, match=r"prompted has no .* has auto, de-AT, de-DE, en-US$"):
            model.set_language(language)
    assert model.config.language is None
    plain = make_model(language="en")
    plain.set_language("en")
    with pytest.raises(OptionError, match="speaks only 'en'"):
        plain.set_language("de")


def test_the_ctc_head_gives_log_probabilities() -> None:
    head = make_model().ctc
    assert head is not None
    with torch.no_grad():
        found = head(tensor(2, 5, DIM))
    assert found.shape == (2, 5, VOCABULARY + 1)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 5))


def test_a_prompt_equals_a_one_hot_vector_beside_each_frame() -> None:
    torch.manual_seed(0)
    projector = PromptProjector(6, PromptConfig(count=5, hidden=7, default=3))
    frames, prompts = torch.randn(4, 3, 6), torch.tensor([0, 4, 3, 1])

    def beside(numbers: torch.Tensor) -> torch.Tensor:
        one_hot = torch.nn.functional.one_hot(numbers, 5).float()
        both = torch.cat([frames, one_hot[:, None].expand(-1, 3, -1)], dim=-1)
        found: torch.Tensor = projector.down(torch.relu(projector.up(both)))
        return found

    assert torch.allclose(projector(frames, prompts), beside(prompts), atol=1e-6)
    assert torch.allclose(projector(frames), beside(torch.full((4,), 3)), atol=1e-6)
