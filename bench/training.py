"""Speed and memory of training: all weights, heads alone, and with LoRA.

    python bench/training.py [--model MODEL] [--device cuda] [--steps 8]

Each row is a separate process. The first steps warm up, the others are timed, on noise with random
letters as transcripts, in batches of one length at the shapes of fine-tuning. Data is prepared
before, so the time is that of a step: forward, backward, optimizer, averaged weights. It prints the
rows of a table and takes under a minute on two cores for the embedded model.
"""

import argparse
import platform
import resource
import subprocess
import sys
import time

import torch

from pianissimo.train.data import TrainingBatch, collate
from pianissimo.train.finetune.adapt import trained_weights
from pianissimo.train.finetune.plan import Method
from pianissimo.train.finetune.run import adapt, read_original
from pianissimo.train.loop import (
    Gradients,
    MovingAverage,
    TrainConfig,
    draw_lookahead,
    make_optimizer,
)
from pianissimo.train.parallel import ALONE
from pianissimo.train.precision import Mixed

ROWS: dict[str, tuple[Method, int | None]] = {
    "full": ("full", None),
    "frozen encoder": ("heads", None),
    "LoRA, rank 16": ("lora", 16),
}
WARM_UP = 2
CLIP_SECONDS, LETTERS_PER_SECOND = 5.0, 10


def make_batch(model_name: str | None, seconds: float) -> tuple[TrainingBatch, float]:
    """A batch of clips of noise, and their total seconds."""
    model, tokenizer = read_original(model_name)
    generator = torch.Generator().manual_seed(0)
    clips = max(1, round(seconds / CLIP_SECONDS))
    samples = torch.randn(clips, round(CLIP_SECONDS * 16_000), generator=generator) * 0.05
    mels = [model.features.whole(row) for row in samples]
    count = round(CLIP_SECONDS * LETTERS_PER_SECOND / 2)  # a token is about two letters
    known = [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids]
    drawn = torch.randint(len(known), (clips, count), generator=generator)
    return collate(mels, [torch.tensor(known)[row] for row in drawn]), clips * CLIP_SECONDS


def measure(name: str, options: argparse.Namespace) -> None:
    """One row."""
    method, rank = ROWS[name]
    batch, seconds = make_batch(options.model, options.batch_seconds)
    model, _ = read_original(options.model)
    adapt(model, method, rank)
    device = torch.device(options.device)
    model.to(device).train()
    config = TrainConfig(options.steps, peak_lr=1e-5, precision=options.precision)
    mixed = Mixed(config.precision, options.device)
    optimizer, average = make_optimizer(model, config), MovingAverage(model, config.ema_decay)
    gradients = Gradients(model, config, ALONE, mixed)
    moved = batch.to(device)
    began = 0.0
    for step in range(WARM_UP + options.steps):
        if step == WARM_UP:
            wait(device)
            began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        lookahead = draw_lookahead(model.config.encoder.lookaheads, 0, step)
        gradients.fill([moved], lookahead, step)
        mixed.unscale(optimizer)
        torch.nn.utils.clip_grad_norm_(trained_weights(model).values(), config.clip_norm)
        mixed.step(optimizer)
        mixed.update()
        average.update(model, step)
    wait(device)
    rate = options.steps * seconds / (time.perf_counter() - began)
    moving = sum(p.numel() for p in trained_weights(model).values()) / 1e6
    print(
        f"| {name} | {moving:.1f} M | {rate:.0f} | {peak_bytes(device) / 1e9:.2f} GB |", flush=True
    )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="what `pianissimo finetune` takes; the embedded one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-seconds", type=float, default=20.0)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        measure(options.row, options)
        return
    cuda = options.device.startswith("cuda")
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    print(f"{where}, {platform.machine()}, PyTorch {torch.__version__}\n")
    print("| trained | weights that move | audio seconds a second | peak memory |")
    print("|---|---|---|---|", flush=True)
    for name in ROWS:  # peak memory never falls within a process
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--row", name], check=True)


if __name__ == "__main__":
    main()
