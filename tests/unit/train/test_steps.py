"""What one step of training is made of: groups of batches, precision, checkpoints, when to stop."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import MELS, make_model, tensor
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from pianissimo.errors import CheckpointError
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train import loop
from pianissimo.train.config import TrainConfig
from pianissimo.train.data import TrainingBatch, TrainingSet, collate
from pianissimo.train.early_stop import EarlyStop
from pianissimo.train.finetune.adapt import add_lora, freeze_encoder, trained_weights
from pianissimo.train.loop import (
    Execution,
    Gradients,
    MovingAverage,
    Stage,
    make_optimizer,
    objective,
    train,
    train_model,
)
from pianissimo.train.parallel import ALONE
from pianissimo.train.precision import Mixed, recomputed_layers

CONFIG = TrainConfig(
    steps=12, peak_lr=5e-3, warmup_steps=4, ema_decay=0.9, save_every=100, report_every=1, workers=0
)


def batches(count: int = 3) -> list[TrainingBatch]:
    """Batches of other sizes, one of them without any token."""
    rows = [[(90, [1, 2, 3]), (64, [4, 4])], [(40, [])], [(33, [5]), (70, [6, 7]), (50, [1])]]
    return [
        collate(
            [tensor(n, MELS, seed=10 * i + n) for n, _ in row],
            [torch.tensor(t, dtype=torch.long) for _, t in row],
        )
        for i, row in enumerate(rows[:count])
    ]


def gradients_of(model: AsrModel) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def changed(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


# -- several batches a step ------------------------------------------------------------------------


def test_gradients_of_a_group_are_those_of_its_batches_joined() -> None:
    model, group = make_model().train(), batches()
    gradients = Gradients(model, CONFIG, ALONE, Mixed("float32", "cpu"))
    parts = gradients.fill(group, 1, 0)
    found = gradients_of(model)
    model.zero_grad()
    mels, targets = [], []
    for batch in group:
        for row in range(len(batch.features)):
            mels.append(batch.features[row, : int(batch.feature_lengths[row])])
            targets.append(batch.targets[row, : int(batch.target_lengths[row])])
    joined = objective(model, collate(mels, targets), 1, CONFIG.ctc_weight, True)
    # The batch without a token counts as one, alone as in a group.
    tokens = sum(len(t) for t in targets)
    (joined["loss"] * (tokens / (tokens + 1))).backward()
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    for name, value in parts.items():
        expected = joined[name] * (tokens / (tokens + 1))
        torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_group_of_one_is_the_batch_to_the_last_bit() -> None:
    model, batch = make_model().train(), batches(1)[0]
    Gradients(model, CONFIG, ALONE, Mixed("float32", "cpu")).fill([batch], 1, 0)
    found = gradients_of(model)
    model.zero_grad()
    objective(model, batch, 1, CONFIG.ctc_weight, True)["loss"].backward()
    assert changed(found, gradients_of(model)) == []


def test_groups_are_resumed_at_their_position(
    tmp_path: Path, tones: TrainingSet, tone_model: AsrConfig, tiny_tokenizer: Tokenizer
) -> None:
    config = dataclasses.replace(CONFIG, accumulate=3)
    stages = [Stage(7, tones, 4.0)]
    whole, _ = train(config, tone_model, tiny_tokenizer, stages, tmp_path / "whole")
    for i in range(7):
        parts, done = train(
            config, tone_model, tiny_tokenizer, stages, tmp_path / "parts", minutes=0
        )
        assert done is (i == 6)
    assert changed(weights(whole), weights(parts)) == []
    epochs = math.ceil(len(list(loop.epoch_batches(tones.durations(), 4.0, 1, 0))) / 3)
    assert epochs > 1


# -- precision and memory --------------------------------------------------------------------------


def test_a_step_that_overflows_is_skipped_and_the_scale_halved(
    tmp_path: Path,
    tones: TrainingSet,
    tone_model: AsrConfig,
    tiny_tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[float, dict[str, Tensor]]] = []
    original = loop.objective

    def sometimes_huge(model: AsrModel, *arguments: Any) -> dict[str, Tensor]:
        parts = original(model, *arguments)
        scale = made[0].scaler.get_scale()  # type: ignore[union-attr]
        seen.append((scale, weights(model)))
        if len(seen) == 2:
            parts["loss"] = parts["loss"] * 1e38
        return parts

    made: list[Mixed] = []

    class Watched(Mixed):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.scaler = GradScaler("cpu", init_scale=256.0)
            made.append(self)

    monkeypatch.setattr(loop, "objective", sometimes_huge)
    monkeypatch.setattr(loop, "Mixed", Watched)
    config = dataclasses.replace(CONFIG, precision="float16")
    model, done = train(config, tone_model, tiny_tokenizer, [Stage(4, tones)], tmp_path)
    assert done
    scales = [scale for scale, _ in seen]
    assert scales == [256.0, 256.0, 128.0, 128.0]
    assert len(changed(seen[0][1], seen[1][1])) > 10
    assert changed(seen[1][1], seen[2][1]) == []
    assert len(changed(seen[2][1], seen[3][1])) > 10
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    saved = torch.load(tmp_path / "checkpoint" / "optimizer.pt", weights_only=True)
    assert saved["scaler"]["scale"] == 128.0


@pytest.mark.parametrize("precision, least", [("float16", 1e-6), ("bfloat16", 1e-5)])
def test_half_precision_gives_nearly_the_same_gradients(precision: Any, least: float) -> None:
    """Nearly, yet not the same: the products really are narrower."""
    model, batch = make_model().train(), batches(1)
    Gradients(model, CONFIG, ALONE, Mixed("float32", "cpu")).fill(batch, 1, 0)
    exact = gradients_of(model)
    optimizer = make_optimizer(model, CONFIG)
    optimizer.zero_grad()
    mixed = Mixed(precision, "cpu")
    if precision == "float16":
        mixed.scaler = GradScaler("cpu", init_scale=64.0)
    Gradients(model, CONFIG, ALONE, mixed).fill(batch, 1, 0)
    mixed.unscale(optimizer)
    found = gradients_of(model)
    error = torch.stack([(found[n] - exact[n]).norm() for n in exact]).norm()
    size = torch.stack([gradient.norm() for gradient in exact.values()]).norm()
    assert least * size < error < 0.1 * size


def test_layers_computed_twice_give_the_same_gradients() -> None:
    model, batch = make_model().train(), batches(1)[0]
    objective(model, batch, 1, 0.3, True)["loss"].backward()
    expected = gradients_of(model)
    model.zero_grad()
    calls: list[int] = []
    layer = next(iter(model.encoder.layers))
    handle = layer.ff1.register_forward_hook(lambda *_: calls.append(1))
    with recomputed_layers(model.encoder):
        objective(model, batch, 1, 0.3, True)["loss"].backward()
    assert len(calls) == 2  # forward, and once more on the way back
    handle.remove()
    assert changed(expected, gradients_of(model)) == []
    assert all("forward" not in vars(layer) for layer in model.encoder.layers)


# -- checkpoints -----------------------------------------------------------------------------------


def test_a_checkpoint_without_the_newer_parts_is_resumed(
    tmp_path: Path, tones: TrainingSet, tone_model: AsrConfig, tiny_tokenizer: Tokenizer
) -> None:
    """As it was written before there were scalers, early stops and frozen weights."""
    stages = [Stage(6, tones, 4.0)]
    whole, _ = train(CONFIG, tone_model, tiny_tokenizer, stages, tmp_path / "whole")
    config = dataclasses.replace(CONFIG, steps=12)
    train(config, tone_model, tiny_tokenizer, [Stage(3, tones, 4.0)], tmp_path / "new")
    made = tmp_path / "new" / "checkpoint"
    old = tmp_path / "old" / "checkpoint"
    old.mkdir(parents=True)
    state = torch.load(made / "optimizer.pt", weights_only=True)
    torch.save({"optimizer": state["optimizer"], "rng": state["rng"]}, old / "optimizer.pt")
    for name in ("model.safetensors", "average.safetensors"):
        tensors = load_file(made / name)
        assert tensors.keys() == AsrModel(tone_model).state_dict().keys()
        save_file(tensors, old / name)
    progress = {"step": 3, "stage": 0, "epoch": 0, "batch": 3}
    assert json.loads((made / "progress.json").read_text()) == progress
    (old / "progress.json").write_text(json.dumps(progress))
    resumed, _ = train(config, tone_model, tiny_tokenizer, stages, tmp_path / "old")
    assert changed(weights(whole), weights(resumed)) == []


def test_only_trained_weights_are_averaged_optimized_and_saved(
    tmp_path: Path, tones: TrainingSet, tone_model: AsrConfig, tiny_tokenizer: Tokenizer
) -> None:
    model = AsrModel(tone_model)
    add_lora(model, 2)
    before, trained = weights(model), trained_weights(model).keys()
    assert MovingAverage(model, 0.9).weights.keys() == trained
    train_model(CONFIG, model, tiny_tokenizer, [Stage(3, tones)], tmp_path)
    assert set(changed(before, weights(model))) == trained
    for name in ("model.safetensors", "average.safetensors"):
        assert load_file(tmp_path / "checkpoint" / name).keys() == trained


def test_a_checkpoint_of_other_trained_weights_is_refused(
    tmp_path: Path, tones: TrainingSet, tone_model: AsrConfig, tiny_tokenizer: Tokenizer
) -> None:
    train(CONFIG, tone_model, tiny_tokenizer, [Stage(1, tones)], tmp_path)
    model = AsrModel(tone_model)
    freeze_encoder(model)
    with pytest.raises(CheckpointError, match="same options"):
        train_model(CONFIG, model, tiny_tokenizer, [Stage(2, tones)], tmp_path)


# -- when to stop ----------------------------------------------------------------------------------


def note(stop: EarlyStop, step: int, *scores: float) -> None:
    named = {str(i): score for i, score in enumerate(scores)}
    stop.note(step, named, {"w": torch.tensor(float(step))})


def test_training_stops_without_improvement_in_any_mode() -> None:
    stop = EarlyStop(2)
    note(stop, 0, 0.5, 0.5)
    note(stop, 1, 0.4, 0.7)  # one mode is better, the mean is not
    assert (stop.stale, stop.best_step, stop.over) == (0, 0, False)
    note(stop, 2, 0.4, 0.6)
    assert (stop.stale, stop.best_step, stop.over) == (1, 0, False)
    note(stop, 3, 0.45, 0.45)
    assert (stop.stale, stop.best_step, stop.over) == (0, 3, False)
    note(stop, 4, 0.5, 0.5)
    note(stop, 5, 0.5, 0.5)
    assert stop.over
    assert float(stop.weights["w"]) == 3.0
    assert stop.first == {"0": 0.5, "1": 0.5}
    again = EarlyStop(2)
    again.restore(json.loads(json.dumps(stop.state())), stop.weights)
    assert again == stop


class Script:
    """A validation that says what it is told, whatever the model; and what it was shown."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.seen = list(scores), list[dict[str, Tensor]]()

    def __call__(self, model: AsrModel) -> dict[str, float]:
        self.seen.append(weights(model))
        return {"wer": self.scores[len(self.seen) - 1]}


STOPPING = dataclasses.replace(CONFIG, steps=50, validate_every=2, save_every=2, patience=2)


def test_the_best_weights_are_kept_and_training_stops(
    tmp_path: Path, tones: TrainingSet, tone_model: AsrConfig, tiny_tokenizer: Tokenizer
) -> None:
    script = Script(0.9, 0.8, 0.5, 0.6, 0.7, 0.4)
    torch.manual_seed(0)
    model = AsrModel(tone_model)
    done, stop = train_model(
        STOPPING, model, tiny_tokenizer, [Stage(50, tones, 4.0)], tmp_path, validate=script
    )
    assert done
    assert stop is not None
    assert (stop.best_step, stop.first, stop.best) == (4, {"wer": 0.9}, {"wer": 0.5})
    assert len(script.seen) == 5
    assert changed(weights(model), script.seen[2]) == []
    assert len(changed(script.seen[2], script.seen[4])) > 10
    assert [row["wer"] for row in rows(tmp_path) if "wer" in row] == [0.9, 0.8, 0.5, 0.6, 0.7]


def test_an_interrupted_run_stops_at_the_same_validation_with_the_same_weights(
    tmp_path: Path, tones: TrainingSet, tone_model: AsrConfig, tiny_tokenizer: Tokenizer
) -> None:
    stages = [Stage(50, tones, 4.0)]
    scores = (0.9, 0.8, 0.5, 0.6, 0.7)

    def run(folder: Path, script: Script, minutes: float) -> tuple[AsrModel, bool]:
        torch.manual_seed(0)
        model = AsrModel(tone_model)
        execution = Execution(minutes=minutes)
        done, _ = train_model(
            STOPPING, model, tiny_tokenizer, stages, folder, validate=script, execution=execution
        )
        return model, done

    whole, _ = run(tmp_path / "whole", Script(*scores), math.inf)
    script, done = Script(*scores), False
    for _ in range(20):
        if not done:
            parts, done = run(tmp_path / "parts", script, 0)
    assert len(script.seen) == 5
    assert changed(weights(whole), weights(parts)) == []


def test_log_lines_after_the_checkpoint_are_replaced(
    tmp_path: Path, tones: TrainingSet, tone_model: AsrConfig, tiny_tokenizer: Tokenizer
) -> None:
    config = dataclasses.replace(CONFIG, save_every=3)
    arguments = (config, tone_model, tiny_tokenizer, [Stage(3, tones, 4.0)], tmp_path)
    train(*arguments)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "loss": 99.0}\n{"step": 5, "lo')
    train(config, tone_model, tiny_tokenizer, [Stage(6, tones, 4.0)], tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] != 99.0 for row in rows(tmp_path))
