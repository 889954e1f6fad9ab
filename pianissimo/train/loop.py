"""The training loop: data, step, validate, checkpoint, resume.

One model serves every latency mode because each batch is trained with a random lookahead (Noroozi
et al. 2023, section 3.3). The objective is the transducer loss plus a CTC loss on the same
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

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Subset

from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.augment import SpecAugment
from pianissimo.train.checkpoint import TrainingProgress, load_training, save_training
from pianissimo.train.config import TrainConfig, learning_rate
from pianissimo.train.data import BatchSource, Examples, TrainingBatch, epoch_batches
from pianissimo.train.early_stop import EarlyStop
from pianissimo.train.finetune.adapt import Anchor, trained_weights
from pianissimo.train.log import RunLog
from pianissimo.train.loss import Lattice, tdt_loss, transducer_loss
from pianissimo.train.parallel import ALONE, World
from pianissimo.train.precision import Mixed, recomputed_layers
from pianissimo.train.validate import Validate


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own data: until step `until`, batches of `batch_seconds`.

    `lookaheads` replace those of the model; one that is listed twice is drawn twice as often.
    """

    until: int
    data: Examples
    batch_seconds: float = 80.0
    spec_augment: SpecAugment | None = None
    lookaheads: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Execution:
    """Where and how long a run trains: its device, minutes of wall time, and its processes.

    After `minutes` training stops with a checkpoint. `tensorboard` writes event files too.
    """

    device: str = "cpu"
    minutes: float = math.inf
    tensorboard: bool = False
    world: World = ALONE


def objective(
    model: AsrModel,
    batch: TrainingBatch,
    lookahead: int | None,
    ctc_weight: float,
    transducer: bool,
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
        average = get_ema_multi_avg_fn(decay)
        average(averages, [p.detach() for p in trained.values()], None)

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
    `minutes` of wall time, with a checkpoint from which the next call resumes. The same seed on the
    same machine gives the same weights, interrupted or not.
    """
    torch.manual_seed(config.seed)
    model = AsrModel(model_config)
    if initialize is not None:
        initialize(model)
    execution = Execution(device, minutes, tensorboard)
    done, _ = train_model(
        config, model, tokenizer, stages, run, validate=validate, execution=execution
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
    execution: Execution | None = None,
) -> tuple[bool, EarlyStop | None]:
    """Train the weights of a given model that require a gradient; as `train` otherwise.

    Leaves the averaged weights in the model, or the best ones with `config.patience`; an `anchor`
    pulls the weights toward its own. Returns whether training is done, and the record of the
    validations. Each process of a `World` calls this with the same arguments.
    """
    execution = execution or Execution()
    model.to(execution.device).train()
    recomputed = recomputed_layers(model.encoder) if config.recompute else nullcontext()
    world = execution.world
    with (
        RunLog(run, config.steps, tensorboard=execution.tensorboard, kept=world.first) as log,
        recomputed,
    ):
        training = _Training(config, model, run, log, validate, anchor, execution)
        training.resume()
        for number, stage in enumerate(stages):
            training.run_stage(number, stage, tokenizer, final_step=stages[-1].until)
        return training.finish(stages), training.early_stop


class _Training:
    """The state of a run, and the steps that change it."""

    def __init__(
        self,
        config: TrainConfig,
        model: AsrModel,
        run: Path,
        log: RunLog,
        validate: Validate | None,
        anchor: Anchor | None,
        execution: Execution,
    ) -> None:
        self.config, self.model, self.run, self.log = config, model, run, log
        self.validate, self.anchor, self.execution = validate, anchor, execution
        self.world = execution.world
        self.average = MovingAverage(model, config.ema_decay)
        self.optimizer = make_optimizer(model, config)
        self.mixed = Mixed(config.precision, execution.device)
        self.early_stop = EarlyStop(config.patience) if config.patience is not None else None
        self.progress = TrainingProgress()
        self.began, self.out_of_time, self.stopped = time.monotonic(), False, False

    def resume(self) -> None:
        """Restore the newest checkpoint, if there is one."""
        saved = load_training(
            self.run,
            self.model,
            self.average.weights,
            self.optimizer,
            scaler=self.mixed.scaler,
            early_stop=self.early_stop,
        )
        self.progress = saved or self.progress
        if not self.world.first:
            torch.manual_seed(self.config.seed + 1000 * self.world.rank + self.progress.step)
        self.gradients = Gradients(self.model, self.config, self.world, self.mixed)
        size = self.model.parameter_count() / 1e6
        self.log.say(f"{size:.1f} M parameters, from step {self.progress.step}")
        self.log.resume(self.progress.step if saved else -1)
        self.stopped = self.world.agree(self.early_stop is not None and self.early_stop.over)
        if self.early_stop is not None and saved is None:
            self.score()

    def run_stage(
        self, number: int, stage: Stage, tokenizer: Tokenizer, *, final_step: int
    ) -> None:
        """Train until the end of a stage, until validations stop it, or until time is over."""
        config, progress = self.config, self.progress
        if self._is_over(stage):
            return
        if number != progress.stage:
            progress.stage, progress.epoch, progress.batch = number, 0, 0
        modes = stage.lookaheads or self.model.config.encoder.lookaheads
        device = self.execution.device
        while not self._is_over(stage):
            loader = epoch_loader(
                config, self.model, tokenizer, stage, progress, device, self.world
            )
            for group in groups(loader, config.accumulate):
                self.step(group, draw_lookahead(modes, config.seed, progress.step))
                # Validation comes first, so that a checkpoint contains its result.
                last = self.early_stop is not None and progress.step >= final_step
                if last or progress.step % config.validate_every == 0:
                    self.score()
                if progress.step % config.save_every == 0:
                    self.save()
                seconds = time.monotonic() - self.began
                self.out_of_time = self.world.agree(seconds > 60 * self.execution.minutes)
                if self._is_over(stage):
                    break
            else:
                progress.epoch, progress.batch = progress.epoch + 1, 0

    def _is_over(self, stage: Stage) -> bool:
        return self.out_of_time or self.stopped or self.progress.step >= stage.until

    def step(self, group: list[TrainingBatch], lookahead: int | None) -> None:
        """One step of the optimizer over a group of batches."""
        config, progress, optimizer = self.config, self.progress, self.optimizer
        rate = learning_rate(config, progress.step)
        for settings in optimizer.param_groups:
            settings["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        group = [batch.to(torch.device(self.execution.device)) for batch in group]
        parts = self.gradients.fill(group, lookahead, progress.step)
        self.mixed.unscale(optimizer)
        if self.anchor is not None:
            self.anchor.pull(self.model)
        trained = trained_weights(self.model).values()
        norm = torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
        if torch.isfinite(norm):
            self.mixed.step(optimizer)
            self.average.update(self.model, progress.step)
        else:
            self.log.say(f"step {progress.step}: gradient not finite, batch skipped")
        self.mixed.update()
        progress.step += 1
        progress.batch += len(group)
        frames = sum(float(batch.feature_lengths.sum()) for batch in group)
        self.log.step(progress.step, parts, frames * self.model.config.features.hop_seconds)
        if progress.step % config.report_every == 0:
            self.log.report(progress.step, f"stage {progress.stage} epoch {progress.epoch}", rate)

    def score(self) -> None:
        """Validate the averaged weights, and note whether to stop."""
        if self.validate is None:
            return
        if self.world.first:
            self.average.swap(self.model)
            scores = self.validate(self.model.eval())
            if self.early_stop is not None:
                step, weights = self.progress.step, trained_weights(self.model)
                self.early_stop.note(step, scores, weights)
            self.average.swap(self.model.train())
            self.log.scores(self.progress.step, scores)
        self.stopped = self.world.agree(self.early_stop is not None and self.early_stop.over)

    def save(self) -> None:
        if self.world.first:
            save_training(
                self.run,
                self.model,
                self.average.weights,
                self.optimizer,
                self.progress,
                scaler=self.mixed.scaler,
                early_stop=self.early_stop,
            )

    def finish(self, stages: Sequence[Stage]) -> bool:
        """Save, and leave the final weights in the model; whether training is done."""
        if self.stopped and self.early_stop is not None:
            patience = self.early_stop.patience
            self.log.say(f"stopped: no latency mode improved in {patience} validations")
        self.save()
        self.average.swap(self.model)
        if self.early_stop is not None and self.early_stop.weights:
            self.model.load_state_dict(self.early_stop.weights, strict=False)
        self.model.eval()
        return self.stopped or all(self.progress.step >= stage.until for stage in stages)


class _Objective(nn.Module):
    """`objective` as a module, as DDP needs it."""

    def __init__(self, model: AsrModel, ctc_weight: float) -> None:
        super().__init__()
        self.model, self.ctc_weight = model, ctc_weight

    def forward(
        self, batch: TrainingBatch, lookahead: int | None, transducer: bool
    ) -> dict[str, Tensor]:
        return objective(self.model, batch, lookahead, self.ctc_weight, transducer)


class Gradients:
    """The gradients of one step: over all its batches, and over all processes."""

    def __init__(self, model: AsrModel, config: TrainConfig, world: World, mixed: Mixed) -> None:
        self.config, self.world, self.mixed = config, world, mixed
        self.objective: nn.Module = _Objective(model, config.ctc_weight)
        if world.size > 1:
            # Before step `transducer_from` the transducer gets no gradient.
            self.objective = DistributedDataParallel(
                self.objective, find_unused_parameters=config.transducer_from > 0
            )

    def fill(
        self, group: Sequence[TrainingBatch], lookahead: int | None, step: int
    ) -> dict[str, Tensor]:
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
                # DDP averages over processes.
                self.mixed.backward(parts["loss"] * (self.world.size * count / everywhere))
            for name, value in parts.items():
                part = value.detach() * (count / own)
                total[name] = total[name] + part if name in total else part
        return total

    def _exchange(self, *, last: bool) -> AbstractContextManager[object]:
        """Processes exchange gradients once a step, in the last backward pass."""
        if last or not isinstance(self.objective, DistributedDataParallel):
            return nullcontext()
        return self.objective.no_sync()


def groups(batches: Iterable[TrainingBatch], size: int) -> Iterator[list[TrainingBatch]]:
    """Batches by `size`; the last group may be smaller."""
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def epoch_loader(
    config: TrainConfig,
    model: AsrModel,
    tokenizer: Tokenizer,
    stage: Stage,
    progress: TrainingProgress,
    device: str,
    world: World = ALONE,
) -> DataLoader[TrainingBatch]:
    """The remaining batches of this process in the current epoch, in order, made by workers."""
    batches = epoch_batches(
        stage.data.durations(), stage.batch_seconds, config.seed, progress.epoch
    )
    features = type(model.features)(model.config.features)
    seed = f"{config.seed}-{progress.stage}-{progress.epoch}"
    source = BatchSource(batches, stage.data.example, features, tokenizer, stage.spec_augment, seed)
    own = world.share(len(source))
    if not own:
        raise OptionError(
            f"{len(source)} batches are too few for {world.size} processes; lower batch_seconds"
        )
    return DataLoader(
        Subset(source, own[progress.batch :]),
        # Without its own generator the loader would draw from that of dropout.
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
    """AdamW with weight decay on matrices alone, not on norms and biases."""
    trained = trained_weights(model).values()
    decayed = [p for p in trained if p.dim() > 1]
    others = [p for p in trained if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=config.betas, eps=1e-9, fused=True)
