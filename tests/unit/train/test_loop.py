import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from tiny import DIM, ENCODER, MELS, make_model, tensor
from torch import Tensor

from pianissimo.audio.features import FeatureConfig
from pianissimo.evaluate.wer import word_errors
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.models.transducer import TransducerConfig
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train import checkpoint, loop
from pianissimo.train.augment import Augmenter, SpecAugment
from pianissimo.train.checkpoint import TrainingProgress, load_training, save_training
from pianissimo.train.config import TrainConfig, learning_rate
from pianissimo.train.data import (
    AudioCache,
    TrainingBatch,
    TrainingClip,
    TrainingSet,
    Utterance,
    collate,
)
from pianissimo.train.loop import (
    MovingAverage,
    Stage,
    draw_lookahead,
    make_optimizer,
    objective,
)

RATE = 16_000
WORDS = {"yes": 500.0, "no": 1500.0, "end": 4000.0}
CONFIG = TrainConfig(
    steps=12,
    peak_lr=5e-3,
    warmup_steps=4,
    ema_decay=0.9,
    save_every=1000,
    report_every=5,
    workers=0,
)


def spoken(text: str) -> NDArray[np.float32]:
    """Each word a tone of its own, 0.4 s long, between as much of near silence."""
    time = np.arange(round(0.4 * RATE)) / RATE
    quiet = np.random.default_rng(0).standard_normal(len(time)) * 1e-3
    parts = [quiet]
    for word in text.split():
        parts += [0.3 * np.sin(2 * np.pi * WORDS[word] * time), quiet]
    return np.concatenate(parts).astype(np.float32)


TEXTS = ["yes", "no", "end", "yes no", "no end", "end yes no", "no yes", "end no"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    folder = tmp_path_factory.mktemp("tones")
    utterances, clips = [], []
    for i, text in enumerate(TEXTS):
        path, samples = folder / f"{i}.wav", spoken(text)
        soundfile.write(path, samples, RATE, subtype="PCM_16")
        utterances.append(Utterance(path, len(samples) / RATE, text))
        clips.append(TrainingClip(i, 0.0, len(samples) / RATE, text))
    return TrainingSet(AudioCache(utterances, folder / "cache"), clips)


@pytest.fixture
def tokenizer(tiny_tokenizer: Tokenizer) -> Tokenizer:
    return tiny_tokenizer


def model_config(tokenizer: Tokenizer, dropout: float = 0.0) -> AsrConfig:
    V = tokenizer.vocab_size
    return AsrConfig(
        vocab_size=V,
        features=FeatureConfig(n_mels=MELS),
        encoder=dataclasses.replace(ENCODER, conv_kernel=5, dropout=dropout),
        transducer=TransducerConfig(V, 12, 1, 16, dropout=dropout),
        ctc=True,
        max_symbols=3,
    )


def train(
    run: Path,
    tokenizer: Tokenizer,
    stages: list[Stage],
    config: TrainConfig = CONFIG,
    **options: Any,
) -> tuple[AsrModel, bool]:
    dropout = options.pop("dropout", 0.0)
    return loop.train(config, model_config(tokenizer, dropout), tokenizer, stages, run, **options)


def weights(model: AsrModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert different == []


def losses(run: Path) -> list[dict[str, float]]:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# -- resuming --------------------------------------------------------------------------------------

MASKS = SpecAugment(frequency_width=4, time_share=0.2)


@pytest.mark.parametrize("dropout, masks", [(0.0, None), (0.0, MASKS), (0.2, None)])
def test_an_interrupted_run_ends_in_the_same_weights(
    dropout: float,
    masks: SpecAugment | None,
    tmp_path: Path,
    data: TrainingSet,
    tokenizer: Tokenizer,
) -> None:
    """Stopped after each single step, in the middle and at the ends of epochs and stages."""
    varied = dataclasses.replace(data, augment=Augmenter())
    stages = [Stage(5, data, 4.0), Stage(12, varied, 6.0, spec_augment=masks)]
    whole, done = train(tmp_path / "whole", tokenizer, stages, dropout=dropout)
    assert done
    for i in range(12):
        parts, done = train(tmp_path / "parts", tokenizer, stages, minutes=0, dropout=dropout)
        assert done is (i == 11)
    assert_equal(weights(parts), weights(whole))


def test_a_finished_run_is_not_trained_further(
    tmp_path: Path, data: TrainingSet, tokenizer: Tokenizer
) -> None:
    stages = [Stage(3, data)]
    first, done = train(tmp_path, tokenizer, stages)
    again, done_again = train(tmp_path, tokenizer, stages)
    assert done and done_again
    assert_equal(weights(again), weights(first))


def test_a_run_continued_to_more_steps_equals_one_long_run(
    tmp_path: Path, data: TrainingSet, tokenizer: Tokenizer
) -> None:
    whole, _ = train(tmp_path / "whole", tokenizer, [Stage(9, data, 4.0)])
    train(tmp_path / "parts", tokenizer, [Stage(4, data, 4.0)])
    parts, _ = train(tmp_path / "parts", tokenizer, [Stage(9, data, 4.0)])
    assert_equal(weights(parts), weights(whole))


def test_the_seed_decides_the_weights(
    tmp_path: Path, data: TrainingSet, tokenizer: Tokenizer
) -> None:
    stages = [Stage(2, data)]
    first, again = (weights(train(tmp_path / n, tokenizer, stages)[0]) for n in "ab")
    assert_equal(first, again)
    config = dataclasses.replace(CONFIG, seed=2)
    other = weights(train(tmp_path / "c", tokenizer, stages, config)[0])
    assert not torch.equal(first["ctc.out.weight"], other["ctc.out.weight"])


def test_validation_sees_the_average_and_leaves_training_alone(
    tmp_path: Path, data: TrainingSet, tokenizer: Tokenizer
) -> None:
    seen: list[tuple[dict[str, Tensor], bool]] = []

    def validate(model: AsrModel) -> dict[str, float]:
        seen.append((weights(model), model.training))
        return {"score": float(len(seen))}

    config = dataclasses.replace(CONFIG, validate_every=3)
    stages = [Stage(6, data)]
    watched, _ = train(tmp_path / "a", tokenizer, stages, config, validate=validate, dropout=0.1)
    alone, _ = train(tmp_path / "b", tokenizer, stages, config, dropout=0.1)
    assert_equal(weights(watched), weights(alone))
    assert [training for _, training in seen] == [False, False]
    assert_equal(seen[-1][0], weights(watched))
    scores = [line for line in losses(tmp_path / "a") if "score" in line]
    assert scores == [{"step": 3, "score": 1.0}, {"step": 6, "score": 2.0}]


def test_initial_weights_can_be_chosen(
    tmp_path: Path, data: TrainingSet, tokenizer: Tokenizer
) -> None:
    def initialize(model: AsrModel) -> None:
        with torch.no_grad():
            model.joiner.out.bias.fill_(7.0)  # type: ignore[union-attr]

    config = dataclasses.replace(CONFIG, peak_lr=1e-6)
    model, _ = train(tmp_path, tokenizer, [Stage(1, data)], config, initialize=initialize)
    assert model.joiner is not None
    torch.testing.assert_close(model.joiner.out.bias, torch.full((41,), 7.0), rtol=0, atol=1e-3)


# -- checkpoints -----------------------------------------------------------------------------------


def checkpointed(run: Path, step: int, value: float) -> None:
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(value)
    average = {n: p.detach() + 1 for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    save_training(run, model, average, optimizer, TrainingProgress(step, 1, 2, 3))


def restored(run: Path) -> tuple[int, float] | None:
    """Step and mean averaged weight of what is found in `run`."""
    model = torch.nn.Linear(2, 2)
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    progress = load_training(run, model, average, torch.optim.AdamW(model.parameters()))
    if progress is None:
        return None
    assert (progress.stage, progress.epoch, progress.batch) == (1, 2, 3)
    return progress.step, round(float(average["weight"].mean()) - 1, 3)


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    assert restored(tmp_path) is None
    checkpointed(tmp_path, 10, 0.5)
    checkpointed(tmp_path, 20, 0.25)
    drawn = torch.rand(3)
    found = restored(tmp_path)
    assert found == (20, 0.25)
    assert torch.equal(torch.rand(3), drawn)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("killed_between_renames", [False, True])
def test_a_run_killed_while_saving_resumes_from_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_between_renames: bool
) -> None:
    checkpointed(tmp_path, 10, 0.5)
    if killed_between_renames:
        (tmp_path / "checkpoint").rename(tmp_path / "checkpoint.old")
        assert restored(tmp_path) == (10, 0.5)

    def power_cut(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", power_cut)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        checkpointed(tmp_path, 20, 0.25)
    monkeypatch.undo()
    assert restored(tmp_path) == (10, 0.5)
    checkpointed(tmp_path, 30, 0.125)
    assert restored(tmp_path) == (30, 0.125)


# -- the parts of a step ---------------------------------------------------------------------------


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    config = TrainConfig(steps=1100, peak_lr=2.0, warmup_steps=100, final_lr_share=0.1)
    assert learning_rate(config, 0) == pytest.approx(0.02)
    assert learning_rate(config, 49) == pytest.approx(1.0)
    assert learning_rate(config, 99) == pytest.approx(2.0)
    assert learning_rate(config, 100) == pytest.approx(2.0)
    assert learning_rate(config, 350) == pytest.approx(0.2 + 1.8 * (0.5 + math.sqrt(0.5) / 2))
    assert learning_rate(config, 600) == pytest.approx(0.2 + 1.8 / 2)
    assert learning_rate(config, 1100) == pytest.approx(0.2)
    assert learning_rate(config, 5000) == pytest.approx(0.2)
    rates = [learning_rate(config, step) for step in range(1101)]
    assert all(a < b for a, b in itertools.pairwise(rates[:100]))
    assert all(a > b for a, b in itertools.pairwise(rates[100:]))
    assert learning_rate(dataclasses.replace(config, warmup_steps=0), 0) == pytest.approx(2.0)


def test_the_learning_rate_can_stay_at_its_peak() -> None:
    config = TrainConfig(steps=900, peak_lr=2.0, warmup_steps=100, final_lr_share=0.0)
    flat = dataclasses.replace(config, flat_until=500)
    assert [learning_rate(flat, step) for step in range(100)] == [
        learning_rate(config, step) for step in range(100)
    ]
    assert {learning_rate(flat, step) for step in range(100, 501)} == {2.0}
    assert learning_rate(flat, 700) == pytest.approx(1.0)
    assert learning_rate(flat, 900) == pytest.approx(0.0)


def test_the_moving_average_equals_its_formula() -> None:
    model = make_model()
    average = MovingAverage(model, decay=0.8)
    name, parameter = next(iter(model.named_parameters()))
    expected = parameter.detach().double().clone()
    for step in range(60):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(tensor(*p.shape, seed=step))
        average.update(model, step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach().double()
    torch.testing.assert_close(average.weights[name].double(), expected, rtol=0, atol=1e-4)


def test_swapping_twice_restores_both() -> None:
    model = make_model()
    average = MovingAverage(model, decay=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    now, then = weights(model), {n: t.clone() for n, t in average.weights.items()}
    average.swap(model)
    assert_equal(weights(model), then)
    average.swap(model)
    assert_equal(weights(model), now)
    assert_equal(average.weights, then)
    average.swap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sum(p.sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert_equal(average.weights, now)


def test_lookaheads_are_determined_by_seed_and_step() -> None:
    modes = (13, 6, 1, 0)
    drawn = [draw_lookahead(modes, 1, step) for step in range(400)]
    assert drawn == [draw_lookahead(modes, 1, step) for step in range(400)]
    assert drawn != [draw_lookahead(modes, 2, step) for step in range(400)]
    for mode in modes:
        assert 60 < drawn.count(mode) < 140
    assert draw_lookahead((), 1, 0) is None


def test_a_stage_can_draw_lookaheads_of_its_own(
    tmp_path: Path, data: TrainingSet, tokenizer: Tokenizer
) -> None:
    shortest, longest = min(ENCODER.lookaheads), max(ENCODER.lookaheads)
    found = [
        weights(train(tmp_path / str(i), tokenizer, [Stage(4, data, lookaheads=lookaheads)])[0])
        for i, lookaheads in enumerate([None, ENCODER.lookaheads, (shortest,), (longest,)])
    ]
    assert_equal(found[0], found[1])
    different = [
        not torch.equal(a, b) for a, b in zip(found[2].values(), found[3].values(), strict=True)
    ]
    assert any(different)


def test_vectors_do_not_decay() -> None:
    model = make_model()
    config = dataclasses.replace(CONFIG, weight_decay=0.3)
    decayed, others = make_optimizer(model, config).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    kept = [names[id(p)] for p in others["params"]]
    assert all(n.endswith("bias") or "norm" in n or "bias_" in n for n in kept)
    assert all(p.dim() > 1 for p in decayed["params"])


# -- the objective ---------------------------------------------------------------------------------


def some_batch(seed: int = 0) -> TrainingBatch:
    mels = [tensor(n, MELS, seed=seed + n) for n in (90, 64, 33)]
    return collate(mels, [torch.tensor(t) for t in ([1, 2, 3], [4, 4], [5])])


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    model, batch = make_model(), some_batch()
    parts = objective(model, batch, 6, 0.3, transducer=True)
    expected = 0.7 * parts["transducer"] + 0.3 * parts["ctc"]
    torch.testing.assert_close(parts["loss"], expected)
    alone = objective(model, batch, 6, 0.3, transducer=False)
    assert set(alone) == {"loss", "ctc"}
    torch.testing.assert_close(alone["loss"], parts["ctc"])
    without = make_model(ctc=False)
    parts = objective(without, batch, 6, 0.3, transducer=True)
    assert set(parts) == {"loss", "transducer"}
    assert torch.equal(parts["loss"], parts["transducer"])


def test_the_loss_is_counted_per_token_whatever_the_batch() -> None:
    model, batch = make_model(), some_batch()
    together = objective(model, batch, 1, 0.3, transducer=True)
    sums, tokens = dict.fromkeys(together, 0.0), 0
    for row in range(3):
        T, U = int(batch.feature_lengths[row]), int(batch.target_lengths[row])
        one = collate([batch.features[row, :T]], [batch.targets[row, :U]])
        for name, value in objective(model, one, 1, 0.3, transducer=True).items():
            sums[name] += value.item() * U
        tokens += U
    for name, value in together.items():
        assert value.item() == pytest.approx(sums[name] / tokens, rel=1e-4)


def test_a_batch_without_any_token_has_a_loss() -> None:
    batch = collate([tensor(40, MELS)], [torch.tensor([], dtype=torch.long)])
    parts = objective(make_model(), batch, 0, 0.3, transducer=True)
    assert all(bool(value.isfinite()) for value in parts.values())


def test_the_lookahead_matters() -> None:
    model, batch = make_model(), some_batch()
    values = {objective(model, batch, r, 0.3, transducer=True)["loss"].item() for r in (0, 1, 6)}
    assert len(values) == 3


def test_every_weight_of_the_model_gets_a_gradient() -> None:
    model = make_model().train()
    objective(model, some_batch(), 1, 0.3, transducer=True)["loss"].backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert model.encoder.config.dim == DIM


# -- learning --------------------------------------------------------------------------------------


def test_a_broken_batch_is_skipped(
    tmp_path: Path, data: TrainingSet, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = loop.objective

    def sometimes_broken(*arguments: Any) -> dict[str, Tensor]:
        parts = original(*arguments)
        calls.append(1)
        return {**parts, "loss": parts["loss"] * (math.nan if len(calls) == 2 else 1.0)}

    monkeypatch.setattr(loop, "objective", sometimes_broken)
    model, done = train(tmp_path, tokenizer, [Stage(4, data)])
    assert done
    assert len(calls) == 4
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_the_transducer_joins_at_its_step(
    tmp_path: Path, data: TrainingSet, tokenizer: Tokenizer
) -> None:
    config = dataclasses.replace(CONFIG, transducer_from=2, report_every=1)
    train(tmp_path, tokenizer, [Stage(4, data)], config)
    assert ["transducer" in line for line in losses(tmp_path)] == [False, False, True, True]


def test_tones_are_learned_without_an_error_in_every_latency_mode(
    tmp_path: Path, data: TrainingSet, tokenizer: Tokenizer
) -> None:
    steps = 400
    config = dataclasses.replace(
        CONFIG, steps=steps, peak_lr=1e-2, warmup_steps=20, report_every=20, ema_decay=0.95
    )
    model, done = train(tmp_path, tokenizer, [Stage(steps, data, batch_seconds=20.0)], config)
    assert done
    reported = [line["loss"] for line in losses(tmp_path)]
    assert reported[-1] < 0.1 * reported[0]
    recognizer = NativeRecognizer(model, tokenizer)
    for latency in recognizer.latencies_ms:
        for text in TEXTS:
            found = recognizer.transcribe(spoken(text), sample_rate=RATE, latency_ms=latency)
            assert word_errors(text, found.text).errors == 0, (latency, text, found.text)
