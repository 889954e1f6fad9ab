"""The search for a learning rate."""

import csv
from pathlib import Path

import pytest
import torch

from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.config import TrainConfig
from pianissimo.train.data import TrainingSet
from pianissimo.train.finetune.find_lr import HIGHEST, LOWEST, RateCurve, find_rate, smoothed
from pianissimo.train.loop import (
    Stage,
)


def test_smoothing_is_the_weighted_mean_of_what_was_seen() -> None:
    losses = [4.0, 2.0, 7.0, 1.0]
    for i, mean in enumerate(smoothed(losses), 1):
        weights = [0.9 ** (i - 1 - k) for k in range(i)]
        expected = sum(w * x for w, x in zip(weights, losses, strict=False)) / sum(weights)
        assert mean == pytest.approx(expected)


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_lowest_loss(tmp_path: Path) -> None:
    curve = RateCurve((1e-4, 1e-3, 1e-2, 1e-1), (3.0, 2.0, 1.0, 9.0), (3.0, 2.5, 1.5, 4.0))
    assert curve.suggestion == pytest.approx(1e-3)
    curve.write(tmp_path / "new" / "curve.csv")
    with (tmp_path / "new" / "curve.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["lr", "loss", "smoothed"]
    assert [float(x) for x in rows[3]] == [1e-2, 1.0, 1.5]


def test_a_rate_is_found_between_learning_nothing_and_diverging(
    tones: TrainingSet, tone_model: AsrConfig, tiny_tokenizer: Tokenizer
) -> None:
    torch.manual_seed(0)
    config = TrainConfig(steps=1, workers=0, clip_norm=100.0)
    stage = Stage(1, tones, 10.0)
    curve = find_rate(config, AsrModel(tone_model), tiny_tokenizer, stage, steps=60)
    assert curve.rates[0] == pytest.approx(LOWEST)
    assert all(a < b for a, b in zip(curve.rates, curve.rates[1:], strict=False))
    assert len(curve.rates) == 60 or curve.rates[-1] < HIGHEST
    assert min(curve.smoothed) < 0.8 * curve.smoothed[0]
    assert 1e-4 < curve.suggestion < 1e-1
