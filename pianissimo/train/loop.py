"""The training loop, read from top to bottom: data, step, validate, checkpoint, resume.

One model serves every latency mode because each batch is trained at a lookahead drawn at random
(Noroozi et al. 2023, section 3.3). The objective is the transducer loss plus a CTC loss on the same
encoder.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.augment import SpecAugment
from pianissimo.train.checkpoint import Progress, load_training, save_training
from pianissimo.train.data import Batch, BatchSource, Examples, epoch_batches
from pianissimo.train.log import RunLog
from pianissimo.train.loss import Lattice, transducer_loss

Validate = Callable[[AsrModel], dict[str, float]]


@dataclass(frozen=True)
class TrainConfig:
    """The dials of a run. `transducer_from` is the step at which the transducer loss joins the CTC
    loss, whose weight is then `ctc_weight`. The learning rate stays at its peak until
    `flat_until`."""

    steps: int
    peak_lr: float = 1.5e-3
    final_lr_share: float = 0.02
    warmup_steps: int = 500
    flat_until: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 5.0
    ctc_weight: float = 0.3
    transducer_from: int = 0
    ema_decay: float = 0.999
    seed: int = 1
    save_every: int = 200
    validate_every: int = 500
    report_every: int = 50
    workers: int = 1


@dataclass(frozen=True)
class Stage:
    """A part of a run with data of its own: until step `until`, batches of `batch_seconds`.

    `lookaheads` are drawn from instead of the model's; one that is listed twice comes twice as
    often.
    """

    until: int
    data: Examples
    batch_seconds: float = 80.0
    spec_augment: SpecAugment | None = None
    lookaheads: tuple[int, ...] | None = None


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, the peak until `flat_until`, a cosine down to `final_lr_share` of it."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    falls_from = max(config.warmup_steps, config.flat_until)
    done = (step - falls_from) / max(1, config.steps - falls_from)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))
    return config.peak_lr * (config.final_lr_share + (1 - config.final_lr_share) * cosine)


def objective(
    model: AsrModel, batch: Batch, lookahead: int | None, ctc_weight: float, transducer: bool
) -> dict[str, Tensor]:
    """Losses per target token of one batch: `loss` to minimise and its parts, in nats."""
    encoded, lengths = model.encoder(batch.features, batch.feature_lengths, lookahead)
    tokens = batch.target_lengths.sum().clamp(min=1)
    parts: dict[str, Tensor] = {}
    with torch.autocast(encoded.device.type, enabled=False):
        encoded = encoded.float()
        if model.ctc is not None:
            parts["ctc"] = (
                torch.nn.functional.ctc_loss(
                    model.ctc(encoded).transpose(0, 1),
                    batch.targets,
                    lengths,
                    batch.target_lengths,
                    blank=model.config.vocab_size,
                    reduction="sum",
                    zero_infinity=True,
                )
                / tokens
            )
        if transducer and model.joiner is not None and model.predictor is not None:
            frames = model.joiner.encoder(encoded)
            prefixes = model.joiner.predictor(model.predictor(batch.targets))
            at = Lattice(lengths, batch.target_lengths)
            logits = model.joiner(frames[at.row, at.frame], prefixes[at.row, at.token])
            losses = transducer_loss(
                logits, batch.targets, lengths, batch.target_lengths, model.config.vocab_size
            )
            parts["transducer"] = losses.sum() / tokens
    if "transducer" not in parts:
        return {"loss": parts["ctc"], **parts}
    weight = ctc_weight if "ctc" in parts else 0.0
    loss = (1 - weight) * parts["transducer"] + weight * parts.get("ctc", torch.zeros(()))
    return {"loss": loss, **parts}


class MovingAverage:
    """Exponential moving average of the weights, with a short memory at the start."""

    def __init__(self, model: AsrModel, decay: float) -> None:
        self.decay = decay
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters()}

    def update(self, model: AsrModel, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [self.weights[n] for n, _ in model.named_parameters()]
        torch._foreach_lerp_(averages, [p.detach() for p in model.parameters()], 1 - decay)

    def swap(self, model: AsrModel) -> None:
        """Exchange the model's weights with the averaged ones; call twice to restore."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                average = self.weights[name]
                parameter.data, self.weights[name] = average, parameter.data


def train(
    config: TrainConfig,
    model_config: AsrConfig,
    tokenizer: Tokenizer,
    stages: Sequence[Stage],
    run: Path,
    *,
    initialise: Callable[[AsrModel], None] | None = None,
    validate: Validate | None = None,
    device: str = "cpu",
    minutes: float = math.inf,
    tensorboard: bool = False,
) -> tuple[AsrModel, bool]:
    """Train from the newest checkpoint in `run`, or from scratch.

    Returns the model with averaged weights, and whether all stages are done. Stops early after
    `minutes` of wall time, with a checkpoint to go on from. The same seed on the same machine gives
    the same weights, interrupted or not.
    """
    torch.manual_seed(config.seed)
    model = AsrModel(model_config)
    if initialise is not None:
        initialise(model)
    model.to(device).train()
    average = MovingAverage(model, config.ema_decay)
    optimizer = make_optimizer(model, config)
    progress = load_training(run, model, average.weights, optimizer) or Progress()
    bf16 = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    began, out_of_time = time.monotonic(), False
    hop_seconds = model_config.features.hop_seconds
    with RunLog(run, config.steps, tensorboard=tensorboard) as log:
        log.say(f"{model.parameter_count() / 1e6:.1f} M parameters, from step {progress.step}")
        for number, stage in enumerate(stages):
            if progress.step >= stage.until or out_of_time:
                continue
            if number != progress.stage:
                progress.stage, progress.epoch, progress.batch = number, 0, 0
            while progress.step < stage.until and not out_of_time:
                source = _epoch(config, model, tokenizer, stage, progress)
                for batch in _loader(source, config.workers, device):
                    step = progress.step
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(config, step)
                    modes = stage.lookaheads or model_config.encoder.lookaheads
                    lookahead = draw_lookahead(modes, config.seed, step)
                    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=bf16):
                        parts = objective(
                            model,
                            batch.to(torch.device(device)),
                            lookahead,
                            config.ctc_weight,
                            step >= config.transducer_from,
                        )
                    optimizer.zero_grad(set_to_none=True)
                    parts["loss"].backward()
                    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                    if torch.isfinite(norm):
                        optimizer.step()
                        average.update(model, step)
                    else:
                        log.say(f"step {step}: gradient not finite, batch skipped")
                    progress.step += 1
                    progress.batch += 1
                    heard = float(batch.feature_lengths.sum()) * hop_seconds
                    log.step(progress.step, parts, heard)
                    if progress.step % config.report_every == 0:
                        where = f"stage {number} epoch {progress.epoch}"
                        log.report(progress.step, where, learning_rate(config, step))
                    if progress.step % config.save_every == 0:
                        save_training(run, model, average.weights, optimizer, progress)
                    if validate and progress.step % config.validate_every == 0:
                        average.swap(model)
                        log.scores(progress.step, validate(model.eval()))
                        average.swap(model.train())
                    out_of_time = time.monotonic() - began > 60 * minutes
                    if out_of_time or progress.step >= stage.until:
                        break
                else:
                    progress.epoch, progress.batch = progress.epoch + 1, 0
    save_training(run, model, average.weights, optimizer, progress)
    average.swap(model)
    return model.eval(), all(progress.step >= stage.until for stage in stages)


def _loader(source: Dataset[Batch], workers: int, device: str) -> DataLoader[Batch]:
    """Batches made ahead by `workers` processes, in order."""
    return DataLoader(
        source,
        # Without one of its own, the loader draws from the generator that dropout uses.
        generator=torch.Generator(),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        pin_memory=device.startswith("cuda"),
    )


def _epoch(
    config: TrainConfig,
    model: AsrModel,
    tokenizer: Tokenizer,
    stage: Stage,
    progress: Progress,
) -> Dataset[Batch]:
    """What is left of the current epoch."""
    batches = epoch_batches(
        stage.data.durations(), stage.batch_seconds, config.seed, progress.epoch
    )
    features = type(model.features)(model.config.features)
    seed = f"{config.seed}-{progress.stage}-{progress.epoch}"
    source = BatchSource(batches, stage.data.example, features, tokenizer, stage.spec_augment, seed)
    return Subset(source, range(progress.batch, len(source)))


def draw_lookahead(lookaheads: Sequence[int], seed: int, step: int) -> int | None:
    """The lookahead of one training step, uniform over the modes; None without modes."""
    return random.Random(f"{seed}-lookahead-{step}").choice(lookaheads) if lookaheads else None


def make_optimizer(model: AsrModel, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW that decays all parameters but vectors: those of norms and the biases of layers."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, eps=1e-9, fused=True)
