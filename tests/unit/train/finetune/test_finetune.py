"""Fine-tuning from options to model folder, over every format that is read."""

import dataclasses
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_checkpoints import (
    BATCH_NORM,
    hf_state,
    nemo_config,
    nemo_state,
    write_hf,
    write_nemo,
)
from safetensors.torch import load_file
from tones import sentences, write_clips

from pianissimo.audio.io import load_audio
from pianissimo.errors import ManifestError, OptionError
from pianissimo.evaluate.run import evaluate, read_references
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.models.checkpoints.nemo import read_nemo
from pianissimo.recognizers.fastconformer import read_model
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.data import read_manifest
from pianissimo.train.finetune import run as module
from pianissimo.train.finetune.material import augmenter, quiet_twins, training_set
from pianissimo.train.finetune.plan import FinetuneOptions, FinetunePlan, choose_rate, make_plan
from pianissimo.train.finetune.report import FinetuneReport
from pianissimo.train.finetune.run import find_learning_rate, finetune, fits_half
from pianissimo.zoo.load import load

QUICK = {"steps": 4, "validate_every": 4, "batch_seconds": 6.0, "workers": 0, "lr": 1e-3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder, "train", list(sentences(12, 1)), 1)
    write_clips(folder, "val", list(sentences(4, 2)), 2)
    write_clips(folder, "general", list(sentences(6, 3)), 3, pitch=0.9)
    write_clips(folder, "general_val", list(sentences(3, 4)), 4, pitch=0.9)
    return folder


@pytest.fixture
def original(tmp_path: Path, tone_model: AsrConfig, tiny_tokenizer: Tokenizer) -> Path:
    torch.manual_seed(5)
    save_model(tmp_path / "original", AsrModel(tone_model), tiny_tokenizer)
    return tmp_path / "original"


@pytest.fixture
def options(data: Path, original: Path, tmp_path: Path) -> Callable[..., FinetuneOptions]:
    def make(**changes: object) -> FinetuneOptions:
        given = {"manifest": data / "train.jsonl", "val": data / "val.jsonl"}
        given |= {"out": tmp_path / "new", "model": str(original), **QUICK}
        return FinetuneOptions(**{**given, **changes})  # type: ignore[arg-type]

    return make


Options = Callable[..., FinetuneOptions]


def moved(before: Path, after: Path) -> set[str]:
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def scored(monkeypatch: pytest.MonkeyPatch, *scores: float) -> None:
    """Validations that say this, whatever the model."""
    left = iter(scores)
    monkeypatch.setattr(module, "errors_on", lambda *_: lambda model: {"wer all 80 ms": next(left)})


def ever_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last weights are always the best."""
    scored(monkeypatch, *np.linspace(1.0, 0.0, 100).tolist())


# -- what comes out --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, inside",
    [({}, True), ({"method": "heads"}, False), ({"method": "lora", "rank": 2}, True)],
)
def test_each_method_trains_its_weights(
    options: Options, original: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, inside: bool
) -> None:
    ever_better(monkeypatch)
    asked = options(**changes)
    report = finetune(asked)
    assert report is not None
    assert report.best_step == 4
    names = moved(original, asked.out)
    encoder = {name for name in names if name.startswith("encoder.")}
    assert bool(encoder) is inside
    assert {"joiner.out.weight", "ctc.out.weight", "predictor.embedding.weight"} <= names
    if asked.method == "lora":
        assert {name.rsplit(".", 2)[1] for name in encoder} == {"qkv", "out", "up", "down"}
        assert not any("conv" in name or "position" in name for name in encoder)


def test_the_folder_has_a_model_and_the_report(
    options: Options, data: Path, tmp_path: Path
) -> None:
    asked, said = options(), list[str]()
    report = finetune(asked, say=said.append)
    assert report is not None
    names = {path.name for path in asked.out.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.model", "finetune"}
    left = {path.name for path in (asked.out / "finetune").iterdir()}
    assert left >= {"log.jsonl", "options.json", "report.json", "train.jsonl", "val.jsonl"}
    assert not left & {"checkpoint", "cache", "model"}
    assert json.loads((asked.out / "finetune" / "report.json").read_text())["method"] == "full"
    recognizer = load(asked.out, gain="off")
    assert recognizer.name == "new"
    recognizer.detector = None  # to which tones are no speech
    references = read_references(data / "val.jsonl")
    found = evaluate(recognizer, references, latencies_ms=recognizer.latencies_ms)
    rates = {f"wer all {one.latency_ms} ms": one.total.errors.rate for one in found}
    assert report.after == pytest.approx(rates)
    assert set(report.before) == set(rates)
    assert "12 usable lines" in said[0]
    with pytest.raises(OptionError, match="already has a model"):
        finetune(asked)


def test_a_model_that_was_no_better_is_not_saved(
    options: Options, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, 0.2, 0.5, 0.2)
    report = finetune(options())
    assert report is not None
    assert report.best_step == 0
    assert "its weights were kept" in report.render()
    assert moved(original, options().out) == set()


def test_half_precision_weights_stay_half(
    options: Options, original: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model, _ = load_model(original)
    assert not fits_half(model)
    save_model(tmp_path / "half", model, tiny_tokenizer, torch.float16)
    finetune(options(model=str(tmp_path / "half")))
    saved = load_file(tmp_path / "new" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}


FOREIGN = ["rnnt", "tdt", "ctc", "hybrid", "prompt"]


@pytest.mark.parametrize("kind", FOREIGN)
def test_nemo_archives_are_fine_tuned(
    kind: str, options: Options, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ever_better(monkeypatch)
    config = nemo_config(kind)
    path = write_nemo(tmp_path / "theirs.nemo", config, nemo_state(config))
    asked = options(model=str(path), manifest=fox(data), val=fox(data, "val"), steps=2)
    assert finetune(asked) is not None
    before, _ = read_nemo(path)
    after, _ = read_model(asked.out)
    old, new = (dict(m.named_parameters()) for m in (before, after))
    still = [name for name in old if torch.equal(old[name], new[name])]
    assert still == []


@pytest.mark.parametrize("architecture", ["NemotronAsrStreamingForRNNT", "ParakeetForTDT"])
def test_folders_of_transformers_are_fine_tuned(
    architecture: str, options: Options, data: Path, tmp_path: Path
) -> None:
    nemotron = architecture.startswith("Nemotron")
    config = nemo_config("rnnt") if nemotron else nemo_config("tdt", **BATCH_NORM)
    folder = write_hf(
        tmp_path / "theirs", architecture, hf_state(nemo_state(config), nemotron=nemotron)
    )
    complete_tokenizer(folder / "tokenizer.json")
    asked = options(model=str(folder), manifest=fox(data), val=fox(data, "val"), steps=2)
    report = finetune(asked)
    assert report is not None
    modes = {key.removeprefix("wer all ") for key in report.before}
    assert modes == ({"80 ms", "160 ms", "560 ms", "1120 ms"} if nemotron else {"whole"})
    load(asked.out).transcribe(data / "val" / "0.wav")


def complete_tokenizer(path: Path) -> None:
    """With the settings of each token that the `tokenizers` package demands for encoding."""
    root = json.loads(path.read_text())
    for token in root["added_tokens"]:
        token |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    path.write_text(json.dumps(root))


def fox(data: Path, name: str = "train") -> Path:
    """The tones with transcripts that the vocabulary of the foreign checkpoints can write."""
    path = data / f"fox-{name}.jsonl"
    rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "text": "no news"}) + "\n" for row in rows))
    return path


# -- what may go wrong -----------------------------------------------------------------------------


def test_faulty_data_is_an_error_and_leaves_no_files(
    options: Options, data: Path, tmp_path: Path
) -> None:
    bad = data / "bad.jsonl"
    good = (data / "train.jsonl").read_text().splitlines()
    bad.write_text("\n".join([*good[:6], "{broken", *good[6:]]))
    said: list[str] = []
    with pytest.raises(ManifestError, match=r"1 lines cannot be used.*--skip-faulty"):
        finetune(options(manifest=bad), say=said.append)
    assert "line 7: " in said[0]
    assert not (tmp_path / "new").exists()
    assert finetune(options(manifest=bad, skip_faulty=True)) is not None
    used = (tmp_path / "new" / "finetune" / "train.jsonl").read_text().splitlines()
    assert len(used) == 12


def test_a_set_without_a_usable_line_is_refused(options: Options, data: Path) -> None:
    bad = data / "nothing.jsonl"
    bad.write_text("{broken")
    with pytest.raises(ManifestError, match="no usable line"):
        finetune(options(val=bad, skip_faulty=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 4},
        {"l2sp": 0.1, "ewc": 0.1},
        {"ewc": 0.1},
        {"l2sp": -1.0},
        {"replay_share": 1.0},
        {"blend": 0.0},
        {"blend": 1.5},
        {"quiet_speech": True, "augment": False},
    ],
)
def test_invalid_options_are_refused(options: Options, changes: dict) -> None:
    with pytest.raises(OptionError):
        options(**changes)


def test_regularization_needs_whole_weights(options: Options) -> None:
    with pytest.raises(OptionError, match="whole weights"):
        finetune(options(method="lora", rank=2, l2sp=0.1))


def test_a_run_is_not_continued_with_other_options(options: Options) -> None:
    assert finetune(options(), minutes=1e-9) is None
    with pytest.raises(OptionError, match=r"other options \(seed\)"):
        finetune(options(seed=2))
    assert finetune(options()) is not None


# -- against forgetting ----------------------------------------------------------------------------


@pytest.mark.parametrize("pull", [{"l2sp": 0.01}, {"ewc": 0.01}])
def test_replay_pull_and_regression_work_together(
    options: Options, data: Path, pull: dict[str, float]
) -> None:
    general = {"replay": data / "general.jsonl", "regression": data / "general_val.jsonl"}
    asked = options(**general, **pull)
    report = finetune(asked)
    assert report is not None
    assert set(report.old_before) == set(report.old_after) == set(report.before)
    assert len((asked.out / "finetune" / "replay.jsonl").read_text().splitlines()) == 6
    lines = report.render().splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["new", "before"],
        ["new", "after"],
        ["general", "before"],
        ["general", "after"],
    ]


def test_the_general_set_counts_for_the_best_weights(
    options: Options, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that are best on the new data lose too much elsewhere."""
    training = (0.5, 0.1, 0.3, 0.5, 0.45, 0.1)
    discounted, halfway, saved = (0.45, 0.1), (0.5, 0.1), (0.45, 0.1)
    scored(monkeypatch, *training, *discounted, *halfway, *saved)
    report = finetune(options(regression=data / "general_val.jsonl", validate_every=2))
    assert report is not None
    assert report.best_step == 4
    assert (report.blend, report.blank_discount) == (1.0, 0.0)
    assert (report.before, report.old_before) == ({"wer all 80 ms": 0.5}, {"wer all 80 ms": 0.1})
    log = (options().out / "finetune" / "log.jsonl").read_text()
    assert log.count('"general wer all 80 ms"') == 3


def test_a_blend_lies_between_the_old_weights_and_the_new(
    options: Options, original: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def trained(**changes: object) -> dict[str, torch.Tensor]:
        ever_better(monkeypatch)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        finetune(options(method="lora", rank=2, **changes))
        return load_file(tmp_path / "new" / "model.safetensors")

    old, new, mixed = (
        load_file(original / "model.safetensors"),
        trained(blend=1.0),
        trained(blend=0.25),
    )
    for name in old:
        torch.testing.assert_close(mixed[name], 0.75 * old[name] + 0.25 * new[name])
    assert any(not torch.equal(mixed[name], old[name]) for name in old)


def test_l2sp_is_the_default_without_other_regularization(options: Options) -> None:
    def pull(**changes: object) -> float:
        return make_plan(options(**changes), 6_000_000, 60.0).l2sp

    assert 0 < pull() == pull(method="heads")
    assert pull(l2sp=0.5) == 0.5
    assert pull(l2sp=0.0) == 0
    assert pull(method="lora", rank=2) == 0
    assert pull(replay=Path("older.jsonl")) == 0
    assert pull(ewc=0.1, replay=Path("older.jsonl")) == 0
    assert pull(l2sp=0.2, replay=Path("older.jsonl")) == 0.2


def test_strong_regularization_keeps_the_original_weights(
    options: Options, original: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def drift(**changes: object) -> float:
        ever_better(monkeypatch)
        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        finetune(options(steps=16, validate_every=16, lr=5e-3, **changes))
        old = load_file(original / "model.safetensors")
        new = load_file(tmp_path / "new" / "model.safetensors")
        moved = [new[n] - old[n] for n in old if n.startswith("encoder.")]
        return float(sum(change.norm() ** 2 for change in moved))

    assert drift(l2sp=100.0) < 0.3 * drift()


# -- defaults and reports --------------------------------------------------------------------------


def test_the_plan_depends_on_model_and_data(options: Options) -> None:
    asked = options(steps=None, batch_seconds=None, lr=None, validate_every=None)

    def plan(minutes: float, parameters: int = 6_000_000) -> FinetunePlan:
        return make_plan(asked, parameters, 60 * minutes)

    little, more, much = (plan(minutes) for minutes in (2, 20, 600))
    assert [p.batch_seconds for p in (little, more, much)] == [20.0, 60.0, 120.0]
    assert [p.config.steps for p in (little, more, much)] == [400, 400, 6000]
    assert all(p.config.validate_every <= p.config.steps / 10 for p in (little, more, much))
    assert little.method == "full"
    assert plan(20, 600_000_000).method == "lora"


def test_larger_models_have_lower_learning_rates() -> None:
    sizes = (10_000, 6_000_000, 120_000_000, 600_000_000)
    rates = [choose_rate("full", size) for size in sizes]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] <= 1e-3
    assert rates[-1] >= 2e-5
    assert choose_rate("lora", 600_000_000) > rates[-1]


def test_a_report_names_subsets_and_modes() -> None:
    before = {"wer calls 80 ms": 0.5, "wer calls 160 ms": 0.4, "wer notes 80 ms": 0.25}
    before["wer notes 160 ms"] = 0.125
    before |= {"wer my calls, quiet 80 ms": 0.75, "wer my calls, quiet 160 ms": 0.5}
    after = {name: rate / 2 for name, rate in before.items()}
    lines = FinetuneReport("full", 10, before, after).render().splitlines()
    assert [line.split() for line in lines] == [
        ["word", "errors", "in", "percent", "80", "ms", "160", "ms"],
        ["new", "calls", "before", "50.0", "40.0"],
        ["new", "calls", "after", "25.0", "20.0"],
        ["new", "notes", "before", "25.0", "12.5"],
        ["new", "notes", "after", "12.5", "6.2"],
        ["new", "my", "calls,", "quiet", "before", "75.0", "50.0"],
        ["new", "my", "calls,", "quiet", "after", "37.5", "25.0"],
    ]


def test_quiet_speech_is_that_of_the_benchmark(
    options: Options, data: Path, tmp_path: Path
) -> None:
    utterances = read_manifest(data / "train.jsonl")

    def levels_db(**changes: bool) -> list[float]:
        clips = training_set(utterances, tmp_path / "cache", augmenter(options(**changes)))
        heard = [clips.example(i, random.Random(i))[0] for i in range(len(utterances))]
        return [10 * math.log10(float(np.mean(samples**2))) for samples in heard]

    lost = np.subtract(levels_db(augment=False), levels_db(quiet_speech=True))
    assert lost.max() > 20 and lost.mean() > 15
    assert abs(np.subtract(levels_db(augment=False), levels_db()).mean()) < 10
    asked = options(quiet_speech=True)
    finetune(asked)
    run = asked.out / "finetune"
    assert json.loads((run / "options.json").read_text())["quiet_speech"]
    # What is validated is what was given, and a twin of each that is quiet, with rates of its own.
    val = read_manifest(run / "val.jsonl")
    given, twins = val[: len(val) // 2], val[len(val) // 2 :]
    assert [u.path for u in given] == [u.path for u in read_manifest(asked.val)]
    assert [(u.text, u.duration) for u in twins] == [(u.text, u.duration) for u in given]
    for one, twin in zip(given, twins, strict=True):
        loud, soft = load_audio(one.path), load_audio(twin.path)
        assert len(soft) == len(loud) and 0 < np.mean(soft**2) < 0.2 * np.mean(loud**2)
    report = json.loads((run / "report.json").read_text())
    quiet = {name for name in report["before"] if "quiet " in name}
    assert len(quiet) == len(report["before"]) / 2
    written = [u.path.read_bytes() for u in twins]
    numbered = [dataclasses.replace(u, extra={"subset": 7}) for u in given[:1]]
    assert quiet_twins(numbered, run / "quiet", 5)[0].extra["subset"] == "7, quiet"
    assert twins[0].path.read_bytes() != written[0]  # of another seed, not what was there
    again = quiet_twins(given, run / "quiet", asked.seed)
    assert [u.path.read_bytes() for u in again] == written


def test_a_search_for_a_rate_writes_its_curve_and_no_model(options: Options) -> None:
    asked = options(batch_seconds=3.0, augment=False)
    curve = find_learning_rate(asked)
    lines = (asked.out / "finetune" / "find-lr.csv").read_text().splitlines()
    assert len(lines) == 1 + len(curve.rates)
    assert not (asked.out / "config.json").exists()


def test_losses_and_errors_are_drawn(options: Options) -> None:
    asked = options()
    finetune(asked)
    picture = (asked.out / "finetune" / "losses.svg").read_text()
    for name in ("transducer", "ctc", "wer all 80 ms"):
        assert f">{name}</text>" in picture
