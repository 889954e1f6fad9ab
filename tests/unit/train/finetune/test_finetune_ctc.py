"""Fine-tuning wav2vec 2.0 and its kin: tiny random models, as Transformers saves them."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tones import sentences, write_clips

import pianissimo
from pianissimo.errors import ManifestError, MissingExtraError, OptionError
from pianissimo.models.checkpoints.wav2vec2 import read_wav2vec2
from pianissimo.text.characters import Alphabet
from pianissimo.train.data import read_manifest
from pianissimo.train.finetune import ctc as module
from pianissimo.train.finetune.letters import UNKNOWN, Letters, RunBatches
from pianissimo.train.finetune.material import AUGMENT, training_set
from pianissimo.train.finetune.plan import FinetuneOptions
from pianissimo.train.finetune.run import check_data, find_learning_rate, finetune

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

GOLDEN = Path(__file__).parents[3] / "parity" / "golden_families"
QUICK = {"steps": 6, "validate_every": 2, "batch_seconds": 6.0, "workers": 0, "lr": 2e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder, "train", list(sentences(12, 1)), 1)
    write_clips(folder, "val", list(sentences(3, 2)), 2)
    write_clips(folder, "general", list(sentences(4, 3)), 3, pitch=0.9)
    return folder


@pytest.fixture
def options(data: Path, tmp_path: Path) -> Callable[..., FinetuneOptions]:
    def make(family: str = "wav2vec2", **changes: object) -> FinetuneOptions:
        given = {"manifest": data / "train.jsonl", "val": data / "val.jsonl"}
        given |= {"out": tmp_path / "new", "model": str(GOLDEN / family), **QUICK}
        return FinetuneOptions(**{**given, **changes})  # type: ignore[arg-type]

    return make


Options = Callable[..., FinetuneOptions]


def ever_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last weights are always the best: tiny models write nonsense for long."""
    rates = iter(np.linspace(1.0, 0.0, 100).tolist())
    monkeypatch.setattr(module, "errors_in", lambda *_: {"wer all whole": next(rates)})


def losses(out: Path) -> list[dict[str, float]]:
    lines = (out / "finetune" / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def moved(original: Path, new: Path) -> set[str]:
    old, now = (load_file(folder / "model.safetensors") for folder in (original, new))
    assert old.keys() == now.keys()
    return {name for name in old if not torch.equal(old[name], now[name])}


# -- what comes out --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # theirs, of WavLM
@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "data2vec", "wavlm", "mms", "bert"])
def test_every_family_is_fine_tuned_into_its_own_layout(
    family: str, options: Options, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ever_better(monkeypatch)
    asked = options(family, steps=2)
    report = finetune(asked)
    assert report is not None and report.best_step == 2
    names = {path.name for path in asked.out.iterdir()} - {"finetune"}
    given = {path.name for path in (GOLDEN / family).iterdir()}
    assert names == {name for name in given if not name.startswith("adapter.")}
    for name in names - {"model.safetensors"}:
        assert (asked.out / name).read_bytes() == (GOLDEN / family / name).read_bytes()
    trained = moved(GOLDEN / family, asked.out)
    assert any(name.startswith("lm_head") for name in trained)
    assert not any("feature_extractor." in name for name in trained)
    recognizer = pianissimo.load(asked.out, device="cpu")
    assert recognizer.name == "new"
    recognizer.transcribe(data / "val" / "0.wav")


@pytest.fixture
def beginner(tmp_path: Path) -> Path:
    """A model of a few thousand weights at their usual start, in the layout of a base model."""
    import transformers

    folder = tmp_path / "beginner"
    shutil.copytree(GOLDEN / "robust", folder, ignore=shutil.ignore_patterns("*safetensors*"))
    config = transformers.Wav2Vec2Config.from_pretrained(GOLDEN / "robust")
    config.hidden_dropout = config.attention_dropout = config.activation_dropout = 0.0
    config.layerdrop = config.final_dropout = 0.0
    config.conv_dim, config.hidden_size, config.intermediate_size = [32] * 7, 32, 64
    torch.manual_seed(1)
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


def test_the_loss_falls_and_the_folder_is_what_was_measured(
    options: Options, data: Path, beginner: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = module.errors_in
    ever_better(monkeypatch)
    asked = options(model=str(beginner), steps=30, validate_every=15, lr=0.01, augment=False)
    report = finetune(asked)
    assert report is not None and report.best_step == 30
    rows = losses(asked.out)
    assert len(rows) == 30
    assert np.mean([row["loss"] for row in rows[-5:]]) < 0.2 * rows[0]["loss"]
    left = {path.name for path in (asked.out / "finetune").iterdir()}
    assert left >= {"log.jsonl", "options.json", "report.json", "train.jsonl", "val.jsonl"}
    assert not any(name.startswith(("checkpoint", "cache", "trial")) for name in left)
    assert set(measure(asked.out, module.references(data / "val.jsonl"), "cpu")) == set(
        report.after
    )
    with pytest.raises(OptionError, match="already has a model"):
        finetune(asked)


@pytest.mark.slow
def test_word_errors_fall(options: Options, data: Path, beginner: Path) -> None:
    asked = options(
        model=str(beginner),
        steps=200,
        validate_every=50,
        lr=0.01,
        augment=False,
        batch_seconds=20.0,
    )
    report = finetune(asked)
    assert report is not None
    assert report.after["wer all whole"] < 0.9 * report.before["wer all whole"]
    assert report.after == module.errors_in(asked.out, module.references(data / "val.jsonl"), "cpu")


def test_a_model_that_was_no_better_is_not_saved(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "errors_in", lambda *_: {"wer all whole": 0.3})
    report = finetune(options())
    assert report is not None and report.best_step == 0
    assert moved(GOLDEN / "wav2vec2", options().out) == set()


def test_only_the_head_is_trained_with_the_method_heads(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    ever_better(monkeypatch)
    finetune(options(method="heads", steps=2))
    assert moved(GOLDEN / "wav2vec2", options().out) == {"lm_head.weight", "lm_head.bias"}


def test_replay_and_regression_are_reported(
    options: Options, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ever_better(monkeypatch)
    general = data / "general.jsonl"
    report = finetune(options(replay=general, regression=general, l2sp=0.01))
    assert report is not None
    assert report.old_before and report.old_after
    names = [line.split()[:2] for line in report.render().splitlines()[1:5]]
    assert names[2:] == [["general", "before"], ["general", "after"]]


def test_a_blend_lies_between_the_old_weights_and_the_new(
    options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def trained(**changes: object) -> dict[str, torch.Tensor]:
        ever_better(monkeypatch)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        finetune(options(steps=2, **changes))
        return load_file(tmp_path / "new" / "model.safetensors")

    old = load_file(GOLDEN / "wav2vec2" / "model.safetensors")
    new, mixed = trained(), trained(blend=0.25)
    for name in old:
        torch.testing.assert_close(mixed[name], 0.75 * old[name] + 0.25 * new[name])
    assert not torch.equal(mixed["lm_head.weight"], old["lm_head.weight"])


def test_strong_regularization_keeps_the_original_weights(
    options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def drift(**changes: object) -> float:
        ever_better(monkeypatch)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        finetune(options(steps=12, validate_every=12, lr=1e-2, augment=False, **changes))
        folders = (GOLDEN / "wav2vec2", tmp_path / "new")
        old, new = (load_file(folder / "model.safetensors") for folder in folders)
        return float(sum((new[n] - old[n]).norm() ** 2 for n in old))

    assert drift(l2sp=1000.0) < 0.3 * drift()


# -- going on --------------------------------------------------------------------------------------


def test_a_resumed_run_equals_an_uninterrupted_one(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, masks and augmentation included: the same losses and the same weights."""
    ever_better(monkeypatch)
    assert finetune(options(out=tmp_path / "whole")) is not None
    ever_better(monkeypatch)
    parts = options(out=tmp_path / "parts")
    assert finetune(parts, minutes=1e-9) is None
    assert not (tmp_path / "parts" / "config.json").exists()
    with pytest.raises(OptionError, match=r"other options \(seed\)"):
        finetune(options(out=tmp_path / "parts", seed=2))
    # A checkpoint that was being written when the power went.
    (tmp_path / "parts" / "finetune" / "checkpoint-5").mkdir()
    assert finetune(parts) is not None
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert moved(tmp_path / "whole", tmp_path / "parts") == set()


# -- data ------------------------------------------------------------------------------------------


def test_letters_are_those_of_the_model() -> None:
    letters = Letters(Alphabet(("", "|", " ", "A", "B", ""), 0))
    assert letters.encode("A B") == [3, 2, 4]
    assert letters.encode("a|C") == [UNKNOWN, 1, UNKNOWN]
    assert letters.decode([3, 0, 2, 4]) == "A B"
    assert Letters(Alphabet(("", "A"), 0)).encode("A A") == [1, 1]


def test_batches_are_padded_masked_and_the_same_every_time(data: Path, tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    _, alphabet = read_wav2vec2(GOLDEN / "wav2vec2")
    utterances = read_manifest(data / "train.jsonl")
    capitals = [dataclasses.replace(u, text=u.text.upper()) for u in utterances]
    clips = training_set(capitals, tmp_path, AUGMENT)
    letters = Letters(alphabet)

    def make() -> RunBatches:
        return RunBatches(clips, letters, Wav2Vec2FeatureExtractor(), 9, 6.0, seed=1)

    first, again = make(), make()
    assert len(first) == 9
    batch = first[4]
    for name, tensor in again[4].items():
        assert torch.equal(tensor, batch[name])
    samples, mask, labels = (batch[k] for k in ("input_values", "attention_mask", "labels"))
    assert samples.shape == mask.shape and len(labels) == len(samples)
    assert bool((samples[mask == 0] == 0).all())
    lengths = mask.sum(1)
    for row, length in zip(samples, lengths, strict=True):
        assert float(row[:length].std()) == pytest.approx(1.0, abs=0.01)
    texts = [clips.clips[i].text.upper() for i in first.items[4]]
    assert [letters.decode(int(i) for i in row if i >= 0) for row in labels] == texts


def test_characters_that_the_alphabet_lacks_are_named(
    options: Options, data: Path, tmp_path: Path
) -> None:
    """Small letters are learned as the capitals that the model has; digits are faults."""
    rows = (data / "train.jsonl").read_text().splitlines()
    bad = data / "bad.jsonl"
    bad.write_text("\n".join([rows[0], json.dumps({**json.loads(rows[1]), "text": "no 1 é"})]))
    report, sound = check_data(options(manifest=bad))
    assert not sound
    assert "line 2: '1' (U+0031), 'é' (U+00E9)" in report
    assert "becomes 'YES" in report or "becomes 'NO" in report or "'END" in report
    with pytest.raises(ManifestError, match="1 lines cannot be used"):
        finetune(options(manifest=bad))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "lora", "rank": 2}, "has no LoRA"),
        ({"ewc": 0.1, "replay": Path("x")}, "has no EWC"),
    ],
)
def test_unsupported_options_are_refused_before_anything_is_written(
    options: Options, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        finetune(options(**changes))
    assert not (tmp_path / "new").exists()


def test_several_processes_are_refused(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="without torchrun"):
        finetune(options())
    assert not (tmp_path / "new").exists()


def test_rates_are_not_searched_for(options: Options) -> None:
    with pytest.raises(OptionError, match="--lr"):
        find_learning_rate(options())


@pytest.mark.parametrize("package", ["transformers", "accelerate"])
def test_a_missing_package_is_named(
    options: Options, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pianissimo\[families"):
        finetune(options())
