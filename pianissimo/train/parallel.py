"""Training on several processes started by `torchrun`: ranks, sums, and agreement."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

PATIENCE = timedelta(hours=6)
"""How long processes wait for the first one, which alone validates and decodes recordings."""


@dataclass(frozen=True)
class World:
    """The processes that train together: the `rank` of this one among `size`.

    Each process trains on every `size`-th batch. Only the first writes files and messages.
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
        """The flag of the first process."""
        return self.sums(float(flag and self.first))[0] > 0

    def wait(self) -> None:
        """Wait for all processes."""
        self.sums(0.0)  # a sum of no values would not wait

    def share(self, batches: int) -> range:
        """The positions of this process's batches; every process has the same number."""
        return range(self.rank, batches // self.size * self.size, self.size)


ALONE = World()


@contextmanager
def joined_world(device: str) -> Iterator[World]:
    """The processes started by `torchrun`, ALONE without it; the group is closed at the end."""
    if "WORLD_SIZE" not in os.environ or not dist.is_available():
        yield ALONE
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    # Sums of numbers on the CPU use gloo, gradients on GPUs use NCCL.
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
