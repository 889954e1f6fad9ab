"""Saving and resuming a training run: weights, averages, optimiser, position in the data.

A checkpoint is a folder `checkpoint` in the run's folder, replaced as a whole, so that a run killed
while it saves finds the one before.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FOLDER = "checkpoint"


@dataclass
class Progress:
    """Where a run stands: optimiser steps done; the stage, epoch and batch that come next."""

    step: int = 0
    stage: int = 0
    epoch: int = 0
    batch: int = 0


def save_training(
    run: Path,
    model: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write the whole state of training into `run`, atomically."""
    new, old = run / f"{FOLDER}.new", run / f"{FOLDER}.old"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, new / "model.safetensors")
    save_file({n: t.contiguous() for n, t in average.items()}, new / "average.safetensors")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    rng = {"cpu": torch.get_rng_state(), "cuda": cuda}
    torch.save({"optimizer": optimizer.state_dict(), "rng": rng}, new / "optimizer.pt")
    (new / "progress.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
    if (run / FOLDER).exists():
        shutil.rmtree(old, ignore_errors=True)
        (run / FOLDER).rename(old)
    new.rename(run / FOLDER)
    shutil.rmtree(old, ignore_errors=True)


def load_training(
    run: Path, model: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Restore the newest checkpoint of `run` into the given objects; None if there is none."""
    folders = [run / FOLDER, run / f"{FOLDER}.old"]
    folder = next((f for f in folders if (f / "progress.json").is_file()), None)
    if folder is None:
        return None
    model.load_state_dict(load_file(folder / "model.safetensors"))
    for name, tensor in load_file(folder / "average.safetensors").items():
        average[name].copy_(tensor)
    saved = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["rng"]["cpu"])
    if saved["rng"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["rng"]["cuda"])
    progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    return Progress(**progress)
