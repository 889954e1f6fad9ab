"""The training loop, read from top to bottom: data, step, validate, checkpoint, resume.

One model serves every latency mode because each batch is trained at a lookahead drawn at random
(Noroozi et al. 2023, section 3.3). The objective is the transducer loss plus a CTC loss on the same
encoder.
"""

import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset

from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.augment import SpecAugment
from pianissimo.train.checkpoint import Progress, load_training, save_training
from pianissimo.train.data import Batch, BatchSource, Examples, epoch_batches
from pianissimo.train.early_stop import EarlyStop
from pianissimo.train.finetune.adapt import Anchor, trained_weights
from pianissimo.train.log import RunLog
from pianissimo.train.loss import Lattice, tdt_loss, transducer_loss
from pianissimo.train.parallel import ALONE, World
from pianissimo.train.precision import Mixed, Precision, recomputed_layers
from pianissimo.train.validate import Validate


@dataclass(frozen=True)
class TrainConfig:
    """The dials of a run. `transducer_from` is the step at which the transducer loss joins the CTC
    loss, whose weight is then `ctc_weight`. The learning rate stays at its peak until
    `flat_until`. `accumulate` batches make one step. With `recompute` a layer keeps only its input
    for the backward pass. With `patience` training stops once that many validations in a row were
    no better, and the best weights are kept."""

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
    accumulate: int = 1
    precision: Precision = "auto"
    recompute: bool = False
    patience: int | None = None


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
    """Losses per target token of one batch: `loss` to minimize and its parts, in nats."""
    encoded, lengths = model.encoder(batch.features, batch.feature_lengths, lookahead)
    if model.prompt is not None:
        encoded = model.prompt(encoded)
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
            durations = model.predictor.config.durations
            kind = partial(tdt_loss, durations=durations) if durations else transducer_loss
            losses = kind(
                logits, batch.targets, lengths, batch.target_lengths, model.config.vocab_size
            )
            parts["transducer"] = losses.sum() / tokens
    if "transducer" not in parts:
        return {"loss": parts["ctc"], **parts}
    weight = ctc_weight if "ctc" in parts else 0.0
    loss = (1 - weight) * parts["transducer"] + weight * parts.get("ctc", torch.zeros(()))
    return {"loss": loss, **parts}


class MovingAverage:
    """Exponential moving average of the trained weights, with a short memory at the start."""

    def __init__(self, model: AsrModel, decay: float) -> None:
        self.decay = decay
        self.weights = {n: p.detach().clone() for n, p in trained_weights(model).items()}

    def update(self, model: AsrModel, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        trained = trained_weights(model)
        averages = [self.weights[n] for n in trained]
        torch._foreach_lerp_(averages, [p.detach() for p in trained.values()], 1 - decay)

    def swap(self, model: AsrModel) -> None:
        """Exchange the model's weights with the averaged ones; call twice to restore."""
        with torch.no_grad():
            for name, parameter in trained_weights(model).items():
                average = self.weights[name]
                parameter.data, self.weights[name] = average, parameter.data


def train(
    config: TrainConfig,
    model_config: AsrConfig,
    tokenizer: Tokenizer,
    stages: Sequence[Stage],
    run: Path,
    *,
    initialize: Callable[[AsrModel], None] | None = None,
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
    if initialize is not None:
        initialize(model)
    done, _ = train_model(
        config,
        model,
        tokenizer,
        stages,
        run,
        validate=validate,
        device=device,
        minutes=minutes,
        tensorboard=tensorboard,
    )
    return model, done


def train_model(
    config: TrainConfig,
    model: AsrModel,
    tokenizer: Tokenizer,
    stages: Sequence[Stage],
    run: Path,
    *,
    validate: Validate | None = None,
    anchor: Anchor | None = None,
    device: str = "cpu",
    minutes: float = math.inf,
    tensorboard: bool = False,
    world: World = ALONE,
) -> tuple[bool, EarlyStop | None]:
    """Train the weights of a given model that ask for a gradient; as `train` otherwise.

    Leaves the averaged weights in the model, or the best ones if `config.patience` says to look for
    them; an `anchor` pulls at the weights. Returns whether training is done, and what the
    validations said. Each process of a `world` calls this with the same arguments.
    """
    model.to(device).train()
    average = MovingAverage(model, config.ema_decay)
    optimizer = make_optimizer(model, config)
    mixed = Mixed(config.precision, device)
    stop = EarlyStop(config.patience) if config.patience is not None else None
    state = (model, average.weights, optimizer)
    extras: dict[str, Any] = {"scaler": mixed.scaler, "early_stop": stop}
    found = load_training(run, *state, **extras)
    progress = found or Progress()
    if not world.first:
        torch.manual_seed(config.seed + 1000 * world.rank + progress.step)
    gradients = Gradients(model, config, world, mixed)
    began, out_of_time = time.monotonic(), False
    hop_seconds = model.config.features.hop_seconds

    def save() -> None:
        if world.first:
            save_training(run, *state, progress, **extras)

    def score(log: RunLog) -> bool:
        """Validate the averaged weights; whether to stop."""
        if validate is not None and world.first:
            average.swap(model)
            scores = validate(model.eval())
            if stop is not None:
                stop.note(progress.step, scores, trained_weights(model))
            average.swap(model.train())
            log.scores(progress.step, scores)
        return world.agree(stop is not None and stop.over)

    with (
        RunLog(run, config.steps, tensorboard=tensorboard, kept=world.first) as log,
        recomputed_layers(model.encoder) if config.recompute else nullcontext(),
    ):
        log.say(f"{model.parameter_count() / 1e6:.1f} M parameters, from step {progress.step}")
        log.resume(progress.step if found else -1)
        stopped = world.agree(stop is not None and stop.over)
        if stop is not None and found is None:
            stopped = score(log)
        for number, stage in enumerate(stages):
            if progress.step >= stage.until or out_of_time or stopped:
                continue
            if number != progress.stage:
                progress.stage, progress.epoch, progress.batch = number, 0, 0
            while progress.step < stage.until and not out_of_time and not stopped:
                loader = epoch_loader(config, model, tokenizer, stage, progress, device, world)
                for group in groups(loader, config.accumulate):
                    step = progress.step
                    for settings in optimizer.param_groups:
                        settings["lr"] = learning_rate(config, step)
                    modes = stage.lookaheads or model.config.encoder.lookaheads
                    lookahead = draw_lookahead(modes, config.seed, step)
                    optimizer.zero_grad(set_to_none=True)
                    group = [batch.to(torch.device(device)) for batch in group]
                    parts = gradients.fill(group, lookahead, step)
                    mixed.unscale(optimizer)
                    if anchor is not None:
                        anchor.pull(model)
                    trained = trained_weights(model).values()
                    norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
                    if torch.isfinite(norm):
                        mixed.step(optimizer)
                        average.update(model, step)
                    else:
                        log.say(f"step {step}: gradient not finite, batch skipped")
                    mixed.update()
                    progress.step += 1
                    progress.batch += len(group)
                    heard = sum(float(b.feature_lengths.sum()) for b in group) * hop_seconds
                    log.step(progress.step, parts, heard)
                    if progress.step % config.report_every == 0:
                        where = f"stage {number} epoch {progress.epoch}"
                        log.report(progress.step, where, learning_rate(config, step))
                    # Validation comes first, so that a checkpoint knows of it.
                    last = stop is not None and progress.step >= stages[-1].until
                    if validate and (last or progress.step % config.validate_every == 0):
                        stopped = score(log)
                    if progress.step % config.save_every == 0:
                        save()
                    out_of_time = world.agree(time.monotonic() - began > 60 * minutes)
                    if out_of_time or stopped or progress.step >= stage.until:
                        break
                else:
                    progress.epoch, progress.batch = progress.epoch + 1, 0
        if stopped and stop is not None:
            log.say(f"no latency mode improved in {stop.patience} validations: stopped")
    save()
    average.swap(model)
    if stop is not None and stop.weights:
        model.load_state_dict(stop.weights, strict=False)
    model.eval()
    return stopped or all(progress.step >= stage.until for stage in stages), stop


class _Objective(nn.Module):
    """`objective` as a module, which is what DDP needs to share the gradients of."""

    def __init__(self, model: AsrModel, ctc_weight: float) -> None:
        super().__init__()
        self.model, self.ctc_weight = model, ctc_weight

    def forward(self, batch: Batch, lookahead: int | None, transducer: bool) -> dict[str, Tensor]:
        return objective(self.model, batch, lookahead, self.ctc_weight, transducer)


class Gradients:
    """The gradients of one step: over all its batches, and over all processes."""

    def __init__(self, model: AsrModel, config: TrainConfig, world: World, mixed: Mixed) -> None:
        self.config, self.world, self.mixed = config, world, mixed
        self.objective: nn.Module = _Objective(model, config.ctc_weight)
        if world.size > 1:
            # Before the transducer joins, its weights get no gradient.
            self.objective = DistributedDataParallel(
                self.objective, find_unused_parameters=config.transducer_from > 0
            )

    def fill(self, group: Sequence[Batch], lookahead: int | None, step: int) -> dict[str, Tensor]:
        """Compute the gradients of the loss per token over the batches of every process.

        Returns the losses per token over this process's batches.
        """
        counts = [max(1, int(batch.target_lengths.sum())) for batch in group]
        own, (everywhere,) = sum(counts), self.world.sums(sum(counts))
        transducer = step >= self.config.transducer_from
        total: dict[str, Tensor] = {}
        for i, (batch, count) in enumerate(zip(group, counts, strict=True)):
            with self._exchange(last=i == len(group) - 1):
                with self.mixed.autocast():
                    parts = self.objective(batch, lookahead, transducer)
                # DDP takes the mean over processes.
                self.mixed.backward(parts["loss"] * (self.world.size * count / everywhere))
            for name, value in parts.items():
                part = value.detach() * (count / own)
                total[name] = total[name] + part if name in total else part
        return total

    def _exchange(self, *, last: bool) -> AbstractContextManager[Any]:
        """Processes exchange gradients once a step, in the last backward pass."""
        if last or not isinstance(self.objective, DistributedDataParallel):
            return nullcontext()
        return self.objective.no_sync()


def groups(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Batches by `size`; the last group may be smaller."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def epoch_loader(
    config: TrainConfig,
    model: AsrModel,
    tokenizer: Tokenizer,
    stage: Stage,
    progress: Progress,
    device: str,
    world: World = ALONE,
) -> DataLoader[Batch]:
    """What is left of this process's part of the current epoch, made ahead by workers, in order."""
    batches = epoch_batches(
        stage.data.durations(), stage.batch_seconds, config.seed, progress.epoch
    )
    features = type(model.features)(model.config.features)
    seed = f"{config.seed}-{progress.stage}-{progress.epoch}"
    source = BatchSource(batches, stage.data.example, features, tokenizer, stage.spec_augment, seed)
    own = world.share(len(source))
    if not own:
        raise OptionError(
            f"{len(source)} batches are too few for {world.size} processes: make them shorter"
        )
    return DataLoader(
        Subset(source, own[progress.batch :]),
        # Without one of its own, the loader draws from the generator that dropout uses.
        generator=torch.Generator(),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=8 if config.workers else None,
        pin_memory=device.startswith("cuda"),
    )


def draw_lookahead(lookaheads: Sequence[int], seed: int, step: int) -> int | None:
    """The lookahead of one training step, uniform over the modes; None without modes."""
    return random.Random(f"{seed}-lookahead-{step}").choice(lookaheads) if lookaheads else None


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW that decays all parameters but vectors: those of norms and the biases of layers."""
    trained = trained_weights(model).values()
    decayed = [p for p in trained if p.dim() > 1]
    others = [p for p in trained if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, eps=1e-9, fused=True)
