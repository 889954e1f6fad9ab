"""Training on several processes that `torchrun` started: who they are and what they agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=6)
"""How long processes wait for the first one: it alone validates, and decodes the recordings."""


@dataclass(frozen=True)
class World:
    """The processes that train together: this one's `rank` among `size`, and what they share.

    Each process takes every `size`-th batch, so no two train on the same one. Only the first
    writes files and speaks.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sums(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def agree(self, flag: bool) -> bool:
        """What the first process says."""
        return self.sums(float(flag and self.first))[0] > 0

    def wait(self) -> None:
        """Until every process is here."""
        self.sums(0.0)  # no process would wait for a sum of nothing

    def share(self, batches: int) -> range:
        """The positions of this process's batches: as many as every other process has."""
        return range(self.rank, batches // self.size * self.size, self.size)


ALONE = World()


@contextmanager
def joined_world(device: str) -> Iterator[World]:
    """The world that `torchrun` set up, left at the end; ALONE without it."""
    if "WORLD_SIZE" not in os.environ or not dist.is_available():
        yield ALONE
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    # Small agreements go over gloo also where gradients go over NCCL: they live on the CPU.
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_device(device: str) -> str:
    """The device of this process: with `torchrun`, "cuda" is the GPU of its local rank."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device
