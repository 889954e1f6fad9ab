"""The network of wav2vec 2.0 and its kin; its numbers are compared in `tests/parity`."""

import dataclasses
import itertools
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import noise, randomise
from torch import Tensor

from pianissimo.errors import CheckpointError, OptionError
from pianissimo.models.checkpoints.wav2vec2 import read_wav2vec2
from pianissimo.models.wav2vec2 import (
    Wav2Vec2,
    Wav2Vec2Config,
    normalize_waveform,
    relative_buckets,
)

GOLDEN = Path(__file__).parents[2] / "parity" / "golden_families"
TINY = Wav2Vec2Config(
    outputs=12,
    dim=16,
    layers=2,
    heads=2,
    ff_dim=24,
    conv_dims=(8,) * 7,
    position_kernel=16,
    position_groups=2,
)
LAYERED = {"conv_norm": "layer", "conv_bias": True, "norm_first": True}
KINDS: dict[str, dict[str, Any]] = {
    "base": {},
    "large": LAYERED,
    "adapters": {**LAYERED, "adapter_dim": 4},
    "stack": {"conv_norm": "layer", "position_layers": 3, "position_kernel": 5},
    "relative": {"relative_buckets": 32, "relative_distance": 40},
}


def make(seed: int = 0, **changes: Any) -> Wav2Vec2:
    model = Wav2Vec2(dataclasses.replace(TINY, **changes)).eval()
    randomise(model, seed)
    return model


def clip(samples: int, seed: int = 0) -> Tensor:
    return normalize_waveform(torch.from_numpy(noise(samples, seed)))


# -- the network -----------------------------------------------------------------------------------


def test_frames_are_counted_as_the_convolutions_make_them() -> None:
    assert (TINY.hop_samples, TINY.least_samples) == (320, 400)
    model = make()
    for samples in (400, 719, 720, 1_039, 1_040, 5_000, 16_000):
        with torch.inference_mode():
            logits, counts = model(clip(samples)[None], [samples])
        assert counts == [logits.shape[1]] == [TINY.frames(samples)]
    assert [TINY.frames(n) for n in (0, 399, 400, 719, 720, 16_000)] == [0, 0, 1, 1, 2, 49]


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_clip_gets_in_a_batch_what_it_gets_alone(kind: str) -> None:
    model = make(**KINDS[kind])
    rows = [clip(n, seed) for seed, n in enumerate((400, 9_000, 3_333, 12_345))]
    for padding in (0.0, 50.0):  # whatever stands behind a clip
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
        logits, counts = model(batch, [len(row) for row in rows])
        for row, count, found in zip(rows, counts, logits, strict=True):
            alone, _ = model(row[None], [len(row)])
            assert found[:count].allclose(alone[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_switch_matters(kind: str) -> None:
    """Each kind listens to every one of its weights."""
    model, samples = make(**KINDS[kind]), clip(4_000)
    before, _ = model(samples[None], [4_000])
    for name, parameter in model.named_parameters():
        kept = parameter.clone()
        drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        parameter.add_(0.5 * drawn)
        after, _ = model(samples[None], [4_000])
        parameter.copy_(kept)
        assert not after.equal(before), name


def test_far_distances_share_buckets_and_directions_do_not() -> None:
    config = dataclasses.replace(TINY, relative_buckets=32, relative_distance=40)
    found = relative_buckets(torch.arange(-50, 51), config).tolist()
    behind, ahead = found[:50][::-1], found[51:]
    assert found[50] == 0
    assert behind[:7] == list(range(1, 8)) and ahead[:7] == list(range(17, 24))
    assert behind == sorted(behind) and max(behind) == 15
    assert ahead == [b + 16 for b in behind]


def test_a_waveform_is_brought_to_unit_level_but_silence_is_not() -> None:
    samples = torch.from_numpy(noise(5_000)) * 0.02 + 0.3
    found = normalize_waveform(samples)
    assert abs(float(found.mean())) < 1e-4
    assert float(found.std()) == pytest.approx(1.0, abs=0.01)
    assert normalize_waveform(torch.zeros(100)).equal(torch.zeros(100))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_strides": (2, 2)}, "equal lengths"),
        ({"heads": 3}, "width of 16"),
        ({"position_groups": 5}, "5 groups"),
        ({"relative_buckets": 30}, "multiple of 4"),
        ({"adapter_dim": 4}, "needs norm_first"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        dataclasses.replace(TINY, **changes)


# -- folders ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "wav2vec2", tmp_path / "wav2vec2"))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in data.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def logits(model: Wav2Vec2) -> Tensor:
    with torch.inference_mode():
        return model(clip(3_000)[None], [3_000])[0]


def test_absent_keys_have_the_defaults_of_transformers(folder: Path) -> None:
    before = logits(read_wav2vec2(folder)[0])
    absent = dict.fromkeys(
        ("hidden_act", "layer_norm_eps", "conv_bias", "do_stable_layer_norm", "conv_kernel")
    )
    edit(folder / "config.json", **absent)
    assert logits(read_wav2vec2(folder)[0]).equal(before)


def test_half_precision_weights_are_computed_in_full(folder: Path) -> None:
    before = logits(read_wav2vec2(folder)[0])
    path = folder / "model.safetensors"
    halves = {name: t.to(torch.bfloat16) for name, t in load_file(path).items()}
    save_file(halves, path, metadata={"format": "pt"})
    model, _ = read_wav2vec2(folder)
    assert model.dtype == torch.float32
    assert logits(model).allclose(before, atol=0.05)


def test_tokens_that_the_tokenizer_adds_complete_the_vocabulary(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    last = max(vocabulary, key=vocabulary.__getitem__)
    id = vocabulary.pop(last)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"outputs without a symbol: {id}"):
        read_wav2vec2(folder)
    (folder / "added_tokens.json").write_text(json.dumps({last: id}), encoding="utf-8")
    assert read_wav2vec2(folder)[1].symbols[id] == last


def test_symbols_beyond_the_outputs_do_not_fit(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"Ö": 99}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="symbols without an output: Ö"):
        read_wav2vec2(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"architectures": ["Wav2Vec2ForPreTraining"]}, "pre-trained model without"),
        ("config.json", {"architectures": ["Wav2Vec2ForXVector"]}, "supported: Wav2Vec2ForCTC"),
        ("config.json", {"hidden_act": "swish"}, "hidden_act is 'swish'"),
        ("config.json", {"add_adapter": True}, "add_adapter is True"),
        ("config.json", {"hidden_size": 24}, "shape"),
        ("config.json", {"hidden_size": 10}, "10 does not divide"),
        ("config.json", {"num_hidden_layers": 3}, "missing: encoder.layers.2"),
        ("config.json", {"num_hidden_layers": 10**9}, "from 1 to 512"),
        ("config.json", {"conv_dim": [8, 8]}, "equal lengths"),
        ("config.json", {"conv_stride": [0] * 7}, "conv_stride"),
        ("config.json", {"vocab_size": 31}, "symbols without an output"),
        ("processor_config.json", {"feature_extractor": {"sampling_rate": 8000}}, "sampling_rate"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"},
            "tokenizer_class",
        ),
        ("tokenizer_config.json", {"pad_token": "[PAD]"}, r"no \[PAD\]"),
        ("tokenizer_config.json", {"pad_token": 7}, "token of the tokenizer is 7"),
        ("vocab.json", {"E": "5"}, "'E' has the id '5'"),
        ("vocab.json", {"E": 6}, "share id 6"),
    ],
)
def test_unusable_folders_are_refused(
    folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    edit(folder / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_wav2vec2(folder)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"architectures": ["Wav2Vec2BertModel"]}, "supported: Wav2Vec2BertForCTC"),
        ("config.json", {"position_embeddings_type": "rotary"}, "position_embeddings_type"),
        ("config.json", {"use_intermediate_ffn_before_adapter": True}, "intermediate_ffn"),
        ("config.json", {"adapter_stride": 3}, "adapter_stride is 3"),
        ("config.json", {"conv_depthwise_kernel_size": 30}, "must be odd"),
        ("config.json", {"num_attention_heads": 3}, "do not divide"),
        ("config.json", {"num_adapter_layers": 3}, "missing: adapter.layers.2"),
        ("config.json", {"intermediate_size": 20}, "ffn1.intermediate_dense"),
        ("config.json", {"feature_projection_input_dim": 80}, "feature_projection_input_dim"),
        ("processor_config.json", {"feature_extractor": {"stride": 1}}, "stride is 1"),
        (
            "processor_config.json",
            {"feature_extractor": {"feature_extractor_type": "WhisperFeatureExtractor"}},
            "feature_extractor_type",
        ),
    ],
)
def test_unusable_folders_of_wav2vec2_bert_are_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(GOLDEN / "bert_adapter", tmp_path / "bert"))
    edit(folder / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_wav2vec2(folder)


def test_wav2vec2_bert_takes_no_language() -> None:
    with pytest.raises(OptionError, match="has no choice of languages"):
        read_wav2vec2(GOLDEN / "bert", "eng")


def test_missing_and_damaged_files_are_named(folder: Path) -> None:
    for name in ("vocab.json", "processor_config.json", "model.safetensors"):
        path = folder / name
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(CheckpointError, match=r"download the (whole )?model again"):
            read_wav2vec2(folder)
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match=name):
            read_wav2vec2(folder)
        path.write_bytes(data)
    read_wav2vec2(folder)


def test_weights_of_training_only_are_left_out_and_others_are_not(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    assert "wav2vec2.masked_spec_embed" in weights
    for name, message in (("quantizer.codevectors", "unknown: quantizer"),):
        save_file({**weights, name: torch.zeros(2)}, path)
        with pytest.raises(CheckpointError, match=message):
            read_wav2vec2(folder)
    save_file({n: t for n, t in weights.items() if n != "lm_head.bias"}, path)
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.bias"):
        read_wav2vec2(folder)
    save_file({**weights, "lm_head.bias": torch.zeros(32, dtype=torch.int32)}, path)
    with pytest.raises(CheckpointError, match="plain floats"):
        read_wav2vec2(folder)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of a checkpoint ran",))


def test_code_in_a_pickle_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(GOLDEN / "wav2vec2_legacy", tmp_path / "legacy"))
    assert read_wav2vec2(folder)[1].lower_case
    torch.save({"lm_head.bias": _Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="plain tensors"):
        read_wav2vec2(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(CheckpointError):
        read_wav2vec2(folder)
    assert "ran" not in capsys.readouterr().out


# -- languages -------------------------------------------------------------------------------------


@pytest.fixture
def mms(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "mms", tmp_path / "mms"))


def test_a_language_brings_its_adapter_and_its_letters(mms: Path) -> None:
    own, english = read_wav2vec2(mms)
    asked, same = read_wav2vec2(mms, "eng")
    french, letters = read_wav2vec2(mms, "fra")
    assert (own.config.language, french.config.language) == ("eng", "fra")
    assert english == same and "é" in letters.symbols and "é" not in english.symbols
    assert logits(own).equal(logits(asked))
    assert logits(french).shape[-1] == len(letters.symbols) != len(english.symbols)
    changed = {
        name
        for (name, a), b in zip(own.state_dict().items(), french.state_dict().values(), strict=True)
        if a.shape != b.shape or not a.equal(b)
    }
    assert {name.split(".")[0] for name in changed} == {"layers", "head"}
    assert all(".adapter." in name or name.startswith("head.") for name in changed)


def test_languages_that_are_not_there_are_refused_with_those_that_are(mms: Path) -> None:
    with pytest.raises(OptionError, match="it has eng, fra"):
        read_wav2vec2(mms, "deu")
    vocabulary = json.loads((mms / "vocab.json").read_text(encoding="utf-8"))
    (mms / "vocab.json").write_text(json.dumps(vocabulary | {"spa": vocabulary["eng"]}))
    with pytest.raises(OptionError, match=r"no adapter\.spa\.safetensors.*eng, fra"):
        read_wav2vec2(mms, "spa")
    (mms / "vocab.json").write_text(json.dumps(vocabulary | {"../x": vocabulary["eng"]}))
    with pytest.raises(OptionError, match="not a language code"):
        read_wav2vec2(mms, "../x")
    with pytest.raises(OptionError, match="has no choice of languages"):
        read_wav2vec2(GOLDEN / "robust", "eng")


@pytest.mark.parametrize("drop", ["lm_head.bias", "wav2vec2.encoder.layers.1.adapter_layer"])
def test_an_adapter_must_be_whole(mms: Path, drop: str) -> None:
    path = mms / "adapter.fra.safetensors"
    kept = {n: t for n, t in load_file(path).items() if not n.startswith(drop)}
    save_file(kept, path)
    with pytest.raises(CheckpointError, match=f"not an adapter of this model.*{drop}"):
        read_wav2vec2(mms, "fra")
    save_file({**load_file(path), "wav2vec2.encoder.layer_norm.bias": torch.zeros(16)}, path)
    with pytest.raises(CheckpointError, match="not an adapter of this model"):
        read_wav2vec2(mms, "fra")


def test_all_layouts_are_read() -> None:
    names = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir())
    models = {name: read_wav2vec2(GOLDEN / name)[0] for name in names}
    assert len(models) == 13
    for a, b in itertools.combinations(names, 2):
        assert not logits(models[a]).equal(logits(models[b])), (a, b)
