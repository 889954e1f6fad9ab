"""Pre-training of an encoder by frame labels from a forced alignment.

With a few hours of recordings, CTC and transducer losses overfit to the texts. A cross-entropy
against the phones of a forced alignment, as for hybrid recognizers (Hinton et al. 2012, "Deep
neural networks for acoustic modeling in speech recognition"), trains the encoder on the sounds. The
head for the phones is discarded afterwards.

Alignments have a symbol for each 10 ms of a recording. An encoder frame is longer and has several
labels, evenly spread over its time.
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from pianissimo.audio.features import MelFeatures
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import OptionError
from pianissimo.models.fastconformer import FastConformerEncoder
from pianissimo.train.augment import Augmenter, Samples, SpecAugment, change_speed
from pianissimo.train.checkpoint import TrainingProgress, load_training, save_training
from pianissimo.train.config import TrainConfig, learning_rate
from pianissimo.train.data import AudioCache, epoch_batches
from pianissimo.train.finetune.adapt import trained_weights
from pianissimo.train.log import RunLog
from pianissimo.train.loop import (
    Execution,
    draw_lookahead,
    make_optimizer,
)

LABELS_PER_SECOND = 100
UNKNOWN = -1
"""The label of time without an alignment; it is ignored by the loss."""

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class FrameTask:
    """The targets of an encoder frame: `per_frame` labels out of `symbols`.

    The labels of frame s are spread evenly over the mel frames that are new to it, shifted `delay`
    mel frames to the past, so that a frame without lookahead has some context after a sound.
    `silence` is the symbol with half the weight, since it is frequent.
    """

    symbols: int
    silence: int
    per_frame: int = 4
    delay: int = 4

    def targets(self, labels: Labels, mel_frames: int, factor: int) -> Tensor:
        """(mel_frames,) labels, or fewer -> (S, per_frame) of the encoder's S frames.

        `factor` is the encoder's subsampling; time outside the labels is `UNKNOWN`.
        """
        last = factor * np.arange(-(-mel_frames // factor) + 1)
        within = (np.arange(self.per_frame) + 0.5) * factor / self.per_frame - factor
        at = (np.rint(last[:, None] + within[None]) - self.delay).astype(np.int64)
        known = (at >= 0) & (at < len(labels))
        names = labels[np.clip(at, 0, max(0, len(labels) - 1))] if len(labels) else at
        return torch.from_numpy(np.where(known, names, UNKNOWN))


@dataclass(frozen=True)
class AlignedSet:
    """Recordings with a label for each 10 ms: by index in `audio`, in `labels`.

    Longer ones are cut to `longest_seconds` at a random place. They are played at one of `speeds`;
    `augment` must not change the timing. Raises OptionError if it does.
    """

    audio: AudioCache
    labels: Mapping[int, Labels]
    augment: Augmenter | None = None
    speeds: tuple[float, ...] = (1.0,)
    longest_seconds: float = 6.0

    def __post_init__(self) -> None:
        a = self.augment
        if a is not None and (a.speeds != (1.0,) or a.pad_probability or a.late_probability):
            raise OptionError("labels would not fit: let the augmenter not change speed or ends")

    def durations(self) -> list[float]:
        """Seconds of each item, before the change of speed."""
        return [
            min(len(labels) / LABELS_PER_SECOND, self.longest_seconds)
            for labels in self.labels.values()
        ]

    def example(self, item: int, rng: random.Random) -> tuple[Samples, Labels]:
        """Samples and labels of one recording, or of a part of it, freshly augmented."""
        recording = list(self.labels)[item]
        labels = self.labels[recording]
        most = round(self.longest_seconds * LABELS_PER_SECOND)
        start = rng.randint(0, max(0, len(labels) - most))
        labels = labels[start : start + most]
        hop = SAMPLE_RATE // LABELS_PER_SECOND
        samples = self.audio[recording][start * hop : (start + most) * hop]
        speed = rng.choice(self.speeds)
        samples = change_speed(samples, speed)
        if self.augment is not None:
            samples = self.augment(samples, rng)
        at = np.rint(np.arange(round(len(labels) / speed)) * speed).astype(np.int64)
        return samples, labels[np.minimum(at, len(labels) - 1)]


@dataclass(frozen=True)
class FrameBatch:
    """features (B, T, F), feature_lengths (B,), labels (B, S, per_frame)."""

    features: Tensor
    feature_lengths: Tensor
    labels: Tensor


class FrameBatches(Dataset[FrameBatch]):
    """The batches of one epoch, each made deterministically from (seed, index)."""

    def __init__(
        self,
        batches: list[list[int]],
        data: AlignedSet,
        task: FrameTask,
        features: MelFeatures,
        factor: int,
        spec_augment: SpecAugment | None,
        seed: str,
    ) -> None:
        self.batches, self.data, self.task, self.features = batches, data, task, features
        self.factor, self.spec_augment, self.seed = factor, spec_augment, seed

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> FrameBatch:
        rng = random.Random(f"{self.seed}-{index}")
        mels, targets = [], []
        for item in self.batches[index]:
            samples, labels = self.data.example(item, rng)
            mel = self.features.whole(torch.from_numpy(np.ascontiguousarray(samples)))
            mels.append(mel if self.spec_augment is None else self.spec_augment(mel, rng))
            targets.append(self.task.targets(labels, len(mel), self.factor))
        pad = nn.utils.rnn.pad_sequence
        return FrameBatch(
            pad(mels, batch_first=True),
            torch.tensor([len(mel) for mel in mels]),
            pad(targets, batch_first=True, padding_value=UNKNOWN),
        )


class FrameClassifier(nn.Module):
    """An encoder with a head that classifies each of its frames."""

    def __init__(self, encoder: FastConformerEncoder, task: FrameTask) -> None:
        super().__init__()
        self.encoder, self.task = encoder, task
        self.head = nn.Linear(encoder.config.dim, task.per_frame * task.symbols)

    def forward(self, batch: FrameBatch, lookahead: int | None) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy in nats, and the share of labels that are right; scalars."""
        encoded, counts = self.encoder(batch.features, batch.feature_lengths, lookahead)
        scores = self.head(encoded).unflatten(-1, (self.task.per_frame, self.task.symbols))
        labels = batch.labels[:, : scores.shape[1]]
        outside = torch.arange(scores.shape[1], device=counts.device) >= counts[:, None]
        labels = labels.masked_fill(outside[:, :, None], UNKNOWN)
        weights = scores.new_ones(self.task.symbols)
        weights[self.task.silence] = 0.5
        loss = F.cross_entropy(
            scores.flatten(0, 2), labels.flatten(), weights, ignore_index=UNKNOWN
        )
        spoken = (labels != UNKNOWN) & (labels != self.task.silence)
        right = ((scores.argmax(-1) == labels) & spoken).sum() / spoken.sum().clamp(min=1)
        return loss, right


def train_frames(
    config: TrainConfig,
    encoder: FastConformerEncoder,
    features: MelFeatures,
    data: AlignedSet,
    task: FrameTask,
    run: Path,
    *,
    batch_seconds: float = 48.0,
    spec_augment: SpecAugment | None = None,
    lookaheads: Sequence[int] = (),
    execution: Execution | None = None,
) -> bool:
    """Train the encoder's weights in place, from the newest checkpoint in `run` if there is one.

    Returns whether all steps are done. Training uses one process.
    The same seed on the same machine gives the same weights, interrupted or not. Raises OptionError
    if the features have another hop than the labels.
    """
    if round(features.config.hop_seconds * LABELS_PER_SECOND, 6) != 1:
        raise OptionError(
            f"the features have a hop of {features.config.hop_seconds:g} s; "
            f"expected that of the labels, {1 / LABELS_PER_SECOND:g} s"
        )
    execution = execution or Execution()
    device = execution.device
    torch.manual_seed(config.seed)
    model = FrameClassifier(encoder, task).to(device).train()
    optimizer = make_optimizer(model, config)
    progress = load_training(run, model, {}, optimizer) or TrainingProgress()
    began, out_of_time = time.monotonic(), False
    factor = encoder.config.subsampling_factor
    modes = lookaheads or encoder.config.lookaheads
    with RunLog(run, config.steps, tensorboard=execution.tensorboard) as log:
        log.resume(progress.step or -1)
        while progress.step < config.steps and not out_of_time:
            batches = epoch_batches(data.durations(), batch_seconds, config.seed, progress.epoch)
            seed = f"{config.seed}-frames-{progress.epoch}"
            source = FrameBatches(batches, data, task, features, factor, spec_augment, seed)
            loader = DataLoader(
                Subset(source, range(progress.batch, len(source))),
                generator=torch.Generator(),
                batch_size=None,
                num_workers=config.workers,
                prefetch_factor=8 if config.workers else None,
            )
            for batch in loader:
                step = progress.step
                for settings in optimizer.param_groups:
                    settings["lr"] = learning_rate(config, step)
                batch = FrameBatch(
                    batch.features.to(device),
                    batch.feature_lengths.to(device),
                    batch.labels.to(device),
                )
                loss, right = model(batch, draw_lookahead(modes, config.seed, step))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                weights = trained_weights(model).values()
                if torch.isfinite(nn.utils.clip_grad_norm_(weights, config.clip_norm)):
                    optimizer.step()
                else:
                    log.say(f"step {step}: gradient not finite, batch skipped")
                progress.step += 1
                progress.batch += 1
                seconds = float(batch.feature_lengths.sum()) / LABELS_PER_SECOND
                log.step(progress.step, {"loss": loss, "right": right}, seconds)
                if progress.step % config.report_every == 0:
                    where = f"epoch {progress.epoch}"
                    log.report(progress.step, where, learning_rate(config, step))
                if progress.step % config.save_every == 0:
                    save_training(run, model, {}, optimizer, progress)
                out_of_time = time.monotonic() - began > 60 * execution.minutes
                if out_of_time or progress.step >= config.steps:
                    break
            else:
                progress.epoch, progress.batch = progress.epoch + 1, 0
    save_training(run, model, {}, optimizer, progress)
    encoder.eval()
    return progress.step >= config.steps
