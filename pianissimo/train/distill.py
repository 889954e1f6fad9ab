"""Distillation of a Whisper's encoder into short chunks, for live streams; needs no transcripts.

The student starts as a copy of the published encoder. It gets windows of speech in chunks of 80 to
1120 ms with a short left context, with features normalized by constants, as in a live stream. The
teacher gets the same speech clean. The student is trained toward the teacher's frames, and toward
what the published decoder predicts from them where a text is known.

Shape legend: B windows, T mel frames, S encoder frames, U tokens, D width.
"""

import math
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.audio.whisper_features import LIVE_PEAK, log_mel, mel_filters, scaled, window_of
from pianissimo.errors import OptionError
from pianissimo.models.checkpoints.whisper import WhisperParts, save_whisper
from pianissimo.models.whisper import FRAME_SECONDS, LiveConfig, WhisperEncoder
from pianissimo.recognizers.whisper import FAMILY, read_parts
from pianissimo.train.checkpoint import TrainingProgress, load_training, save_training
from pianissimo.train.data import AudioCache, read_manifest
from pianissimo.train.live_windows import FRAME_SAMPLES, WINDOW_SECONDS, Window, WindowSource
from pianissimo.train.log import RunLog
from pianissimo.train.precision import Mixed, Precision
from pianissimo.zoo.families import family_of
from pianissimo.zoo.folder import locate

RUN = "distillation"
"""The folder of the log and the checkpoints, inside that of the model."""
SHORTEST_SECONDS, LONGEST_SECONDS = 0.5, 28.0
LEFT_FRAMES = 280
CHUNKS, CHUNK_WEIGHTS = (4, 8, 28, 56), (0.12, 0.38, 0.34, 0.16)
"""Frames of 20 ms of a chunk, and how often each is drawn."""
MODES = (28, 8, 56)
"""The chunks of the new model, the usual one first. Those of 80 ms are trained, as a help for those
of 160 ms; after an hour on a processor their errors are still too many."""
SILENT_WEIGHT = 0.25
COSINE_WEIGHT = 0.5
LEAST_RATE = 4e-6
WARMUP_SHARE = 0.02
AVERAGE_DECAY = 0.998
SAVE_EVERY_SECONDS = 300.0
REPORT_EVERY = 10


@dataclass(frozen=True)
class DistillOptions:
    """One distillation.

    model: a Whisper of any layout. steps: of `batch` windows of 30 s; minutes: an earlier end, by
    the clock, toward which the learning rate falls as well. start: weights of an encoder to start
    from, by default the live encoder of the model, or its published one. teacher_chunk: frames of
    the teacher's chunks; None shows it everything. damaged: share of windows with rooms, noise and
    lines. words: share of the steps with the loss of the decoder, which cost a third more;
    words_weight: its weight beside the squared error. chunk_weights: how often each of CHUNKS is
    drawn.
    language: spoken in the data, for multilingual models; without it only frames are compared.
    """

    manifest: Path
    out: Path
    model: str | Path | None = None
    steps: int = 1500
    minutes: float = math.inf
    batch: int = 2
    rate: float = 4e-4
    start: Path | None = None
    teacher_chunk: int | None = None
    damaged: float = 1.0
    words: float = 0.3
    words_weight: float = 0.4
    chunk_weights: tuple[float, float, float, float] = CHUNK_WEIGHTS
    language: str | None = None
    precision: Precision = "auto"
    seed: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise OptionError("a distillation needs at least 1 step and 1 window per step")
        if not 0 < self.rate < math.inf:
            raise OptionError(f"the learning rate must be above 0, but is {self.rate:g}")
        if not (0 <= self.damaged <= 1 and 0 <= self.words <= 1):
            raise OptionError("damaged and words are shares of 0 to 1")
        if min(self.chunk_weights) < 0 or not any(self.chunk_weights):
            raise OptionError("the weights of chunks must be 0 or more, and not all 0")


@dataclass(frozen=True)
class DistillLoss:
    """Of one step: the relative squared error and cosine distance of frames, and the divergence of
    the decoder's predictions in nats per token, None where it was not computed."""

    total: Tensor
    squared: Tensor
    cosine: Tensor
    words: Tensor | None


class Distiller:
    """Teacher and student, and the loss of a batch of windows."""

    def __init__(self, parts: WhisperParts, options: DistillOptions, device: torch.device) -> None:
        self.network = parts.network.to(device).requires_grad_(False)
        self.tokenizer, self.options, self.device = parts.tokenizer, options, device
        self.mixed = Mixed(options.precision, str(device))
        self.student = WhisperEncoder(self.network.config).to(device)
        first = parts.live_encoder or self.network.encoder
        weights = load_file(options.start) if options.start else first.state_dict()
        self.student.load_state_dict(weights)
        self.filters = mel_filters(self.network.config.n_mels).to(device)
        language = options.language if parts.rules.multilingual else None
        self.reads_words = language is not None or not parts.rules.multilingual
        self.prompt = self.tokenizer.prompt(language, "transcribe")

    def loss(self, windows: list[Window], chunk: int, words: bool) -> DistillLoss:
        """The loss in chunks of `chunk` frames; `words` adds that of the decoder."""
        seconds = min(WINDOW_SECONDS, self.network.config.audio_positions * FRAME_SECONDS)
        whole = torch.cat([window_of(torch.from_numpy(w.clean), seconds) for w in windows])
        frames = min(max(len(w.speech) for w in windows), self.network.config.audio_positions)
        samples = torch.zeros(len(windows), frames * FRAME_SAMPLES + 160)
        weight = torch.zeros(len(windows), frames)
        for row, window in enumerate(windows):
            n = min(len(window.damaged), samples.shape[1])
            samples[row, :n] = torch.from_numpy(window.damaged[:n])
            speech = torch.from_numpy(window.speech[:frames])
            weight[row, : len(speech)] = SILENT_WEIGHT + (1 - SILENT_WEIGHT) * speech.float()
        weight = (weight / weight.sum()).to(self.device)
        mel = log_mel(samples.to(self.device), self.filters)[:, : 2 * frames]
        with self.mixed.autocast():
            with torch.no_grad():
                everything = self._teacher(log_mel(whole.to(self.device), self.filters)).float()
            found = self.student.chunked(scaled(mel, LIVE_PEAK), chunk, LEFT_FRAMES).float()
        wanted = everything[:, :frames]
        power = (wanted.pow(2).mean(-1) * weight).sum()
        squared = ((found - wanted).pow(2).mean(-1) * weight).sum() / power
        cosine = ((1 - F.cosine_similarity(found, wanted, dim=-1)) * weight).sum()
        total = squared + COSINE_WEIGHT * cosine
        divergence = self._divergence(windows, found, everything) if words else None
        if divergence is not None:
            total = total + self.options.words_weight * divergence
        return DistillLoss(total, squared, cosine, divergence)

    def _teacher(self, mel: Tensor) -> Tensor:
        """(B, T, F) -> the frames that the student is trained toward, (B, S, D)."""
        encoder, chunk = self.network.encoder, self.options.teacher_chunk
        if chunk is None:
            whole: Tensor = encoder(scaled(mel))
            return whole
        return encoder.chunked(scaled(mel, LIVE_PEAK), chunk, LEFT_FRAMES)

    def _divergence(self, windows: list[Window], found: Tensor, wanted: Tensor) -> Tensor | None:
        """How far the decoder's predictions from the student's frames are from those of the
        teacher's, in nats per token; None where no text is known or one is too long."""
        texts = [self.tokenizer.encode(" " + w.text) if w.text else [] for w in windows]
        longest = max(map(len, texts))
        room = self.network.config.text_positions - len(self.prompt)
        if not self.reads_words or not longest or longest > room:
            return None
        end = self.tokenizer.end
        rows = [[*self.prompt, *text, *[end] * (longest - len(text))] for text in texts]
        tokens = torch.tensor(rows, device=self.device)
        # Each text and the end behind it; a window without a text has no words to compare.
        counts = torch.tensor([len(text) + 1 if text else 0 for text in texts])
        meant = (torch.arange(longest + 1) < counts[:, None]).to(self.device)
        skipped = len(self.prompt) - 1
        decoder = self.network.decoder
        with self.mixed.autocast():
            with torch.no_grad():
                expected = decoder(tokens, wanted)[:, skipped:][meant].float().log_softmax(-1)
            predicted = decoder(tokens, found)[:, skipped:][meant].float().log_softmax(-1)
        return F.kl_div(predicted, expected, log_target=True, reduction="batchmean")


def distill(options: DistillOptions, device: torch.device, *, tensorboard: bool = False) -> None:
    """Distill, and write the model with its live encoder into `options.out`.

    The same options resume an interrupted run. Raises ManifestError for faulty data, OptionError
    for a model that is not a Whisper or a language that it does not know.
    """
    folder = locate(options.model)
    if family_of(folder) is not FAMILY:
        raise OptionError(f"{folder.name} is not a Whisper; only its encoder is distilled")
    parts = read_parts(folder)
    known = parts.tokenizer.languages if parts.rules.multilingual else {"en": 0}
    if options.language is not None and options.language not in known:
        raise OptionError(f"{parts.name} does not know the language {options.language!r}")
    utterances = [
        utterance
        for utterance in read_manifest(options.manifest, texts=False)
        if SHORTEST_SECONDS <= utterance.duration <= LONGEST_SECONDS
    ]
    if not utterances:
        raise OptionError(
            f"{options.manifest} has no utterance of {SHORTEST_SECONDS:g} to {LONGEST_SECONDS:g} s"
        )
    run = options.out / RUN
    audio, texts = AudioCache(utterances, run), [utterance.text for utterance in utterances]
    distiller = Distiller(parts, options, device)
    with RunLog(run, options.steps, tensorboard=tensorboard) as log:
        encoder = _trained(distiller, audio, texts, run, log)
    new = replace(
        parts,
        network=parts.network.cpu(),
        name=options.out.name,
        live=LiveConfig(LEFT_FRAMES, MODES),
        live_encoder=encoder,
    )
    save_whisper(options.out, new, torch.int8 if parts.int8 else torch.float16)


def _trained(
    distiller: Distiller, audio: AudioCache, texts: list[str], run: Path, log: RunLog
) -> WhisperEncoder:
    """The average of the student's weights over the last steps of a run, as an encoder."""
    options, student, mixed = distiller.options, distiller.student, distiller.mixed
    weights = dict(student.named_parameters())
    optimizer = torch.optim.AdamW(weights.values(), options.rate, (0.9, 0.98), weight_decay=0.0)
    average = {name: p.detach().clone() for name, p in weights.items()}
    progress = load_training(run, student, average, optimizer, scaler=mixed.scaler)
    progress = progress or TrainingProgress()
    log.resume(progress.step)
    seed = options.seed + progress.step
    source, chooser = WindowSource(audio, texts, seed, options.damaged), random.Random(seed)
    began = saved = time.monotonic()

    def save() -> None:
        save_training(run, student, average, optimizer, progress, scaler=mixed.scaler)

    while progress.step < options.steps:
        minutes = (time.monotonic() - began) / 60
        share = max(progress.step / options.steps, minutes / options.minutes)
        if share >= 1:
            break
        optimizer.param_groups[0]["lr"] = rate = rate_at(share, options.rate)
        chunk = chooser.choices(CHUNKS, options.chunk_weights)[0]
        windows = [source.draw() for _ in range(options.batch)]
        loss = distiller.loss(windows, chunk, chooser.random() < options.words)
        optimizer.zero_grad()
        mixed.backward(loss.total)
        mixed.unscale(optimizer)
        norm = nn.utils.clip_grad_norm_(weights.values(), 1.0)
        if not bool(norm.isfinite()) and mixed.scaler is None:
            raise OptionError("the loss is no finite number; lower the learning rate")
        mixed.step(optimizer)
        mixed.update()
        progress.step += 1
        decay = min(AVERAGE_DECAY, (1 + progress.step) / (10 + progress.step))
        for name, p in weights.items():
            average[name].lerp_(p.detach(), 1 - decay)
        milliseconds = chunk * round(FRAME_SECONDS * 1000)
        losses = {f"squared {milliseconds} ms": loss.squared.detach()}
        if loss.words is not None:
            losses[f"words {milliseconds} ms"] = loss.words.detach()
        log.step(progress.step, losses, options.batch * WINDOW_SECONDS)
        if progress.step % REPORT_EVERY == 0:
            log.report(progress.step, "distillation", rate)
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            save()
            saved = time.monotonic()
    save()
    encoder = WhisperEncoder(student.config)
    encoder.load_state_dict({**student.state_dict(), **average})
    return encoder.cpu().eval().requires_grad_(False)


def rate_at(share: float, peak: float) -> float:
    """The learning rate at a share of the run: a short rise, then half a cosine."""
    if share < WARMUP_SHARE:
        return peak * max(share, 1e-3) / WARMUP_SHARE
    fallen = (share - WARMUP_SHARE) / (1 - WARMUP_SHARE)
    return LEAST_RATE + (peak - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, fallen)))
