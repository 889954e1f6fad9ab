"""Saving and resuming a training run: weights, averages, optimizer, position in the data.

A checkpoint is a folder `checkpoint` in the run's folder. It is replaced as a whole, so that a run
killed while saving resumes from the previous one. Weights that are not trained are not stored.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from pianissimo.errors import CheckpointError
from pianissimo.train.early_stop import EarlyStop
from pianissimo.train.finetune.adapt import trained_weights

FOLDER = "checkpoint"
MODEL, AVERAGE, BEST = "model.safetensors", "average.safetensors", "best.safetensors"
OPTIMIZER, PROGRESS, SCORES = "optimizer.pt", "progress.json", "scores.json"


@dataclass
class TrainingProgress:
    """The position of a run: optimizer steps done, and the next stage, epoch and batch."""

    step: int = 0
    stage: int = 0
    epoch: int = 0
    batch: int = 0


def save_training(
    run: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: TrainingProgress,
    *,
    scaler: GradScaler | None = None,
    early_stop: EarlyStop | None = None,
) -> None:
    """Write the whole state of training into `run`, atomically."""
    new, old = run / f"{FOLDER}.new", run / f"{FOLDER}.old"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file({n: p.contiguous() for n, p in trained_weights(model).items()}, new / MODEL)
    save_file({n: t.contiguous() for n, t in average.items()}, new / AVERAGE)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    rng = {"cpu": torch.get_rng_state(), "cuda": cuda}
    state = {"optimizer": optimizer.state_dict(), "rng": rng}
    if scaler is not None:
        state["scaler"] = scaler.state_dict()
    torch.save(state, new / OPTIMIZER)
    if early_stop is not None:
        save_file(early_stop.weights, new / BEST)
        (new / SCORES).write_text(json.dumps(early_stop.state()), encoding="utf-8")
    (new / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
    if (run / FOLDER).exists():
        shutil.rmtree(old, ignore_errors=True)
        (run / FOLDER).rename(old)
    new.rename(run / FOLDER)
    shutil.rmtree(old, ignore_errors=True)


def load_training(
    run: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    scaler: GradScaler | None = None,
    early_stop: EarlyStop | None = None,
) -> TrainingProgress | None:
    """Restore the newest checkpoint of `run` into the given objects; None if there is none.

    Raises CheckpointError if it was made with other weights being trained.
    """
    folders = [run / FOLDER, run / f"{FOLDER}.old"]
    folder = next((f for f in folders if (f / PROGRESS).is_file()), None)
    if folder is None:
        return None
    weights = load_file(folder / MODEL)
    if weights.keys() != trained_weights(model).keys():
        raise CheckpointError(
            f"{folder} has {len(weights)} trained tensors, this run trains "
            f"{len(trained_weights(model))}; resume with the same options or use another folder"
        )
    model.load_state_dict(weights, strict=False)
    for name, tensor in load_file(folder / AVERAGE).items():
        average[name].copy_(tensor)
    saved = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
    optimizer.load_state_dict(saved["optimizer"])
    if scaler is not None and "scaler" in saved:
        scaler.load_state_dict(saved["scaler"])
    if early_stop is not None and (folder / SCORES).is_file():
        state = json.loads((folder / SCORES).read_text(encoding="utf-8"))
        early_stop.restore(state, load_file(folder / BEST))
    torch.set_rng_state(saved["rng"]["cpu"])
    if saved["rng"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["rng"]["cuda"])
    progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    return TrainingProgress(**progress)
