"""Distill an encoder of Whisper into short chunks, without transcripts; resumable.

    python recipes/distill_whisper.py --teacher FOLDER --data DIR --run DIR --processor-minutes 60

The student starts with the weights of the teacher. It gets windows of up to 30 s in chunks of 80
to 1120 ms, with features normalized by constants, as in a live stream. The teacher gets the same
speech whole and clean. The student is trained toward the frames of the teacher, and toward what
the decoder of the teacher predicts from them. A manifest with texts (`DIR/manifest.jsonl`) gives
the words for that second loss; without texts only the frames count.

The learning rate follows the share of `--processor-minutes` that is used, so a busy machine takes
longer and trains the same. A checkpoint is written every few minutes; the same `--run` resumes
from it. The average of the weights (`average.safetensors`) can be evaluated during the training.
"""

import argparse
import json
import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from pianissimo.audio import simulate
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.whisper_features import (
    LIVE_PEAK,
    log_mel,
    mel_filters,
    scaled,
    window_of,
)
from pianissimo.models.checkpoints.whisper import read_ctranslate2_weights
from pianissimo.models.whisper import Whisper, WhisperEncoder
from pianissimo.train.augment import change_speed, color, telephone_band

WINDOW_SECONDS = 30.0
LEFT_FRAMES = 280
CHUNKS = (4, 8, 28, 56)
CHUNK_WEIGHTS = (0.12, 0.38, 0.34, 0.16)
LEVEL = 0.07
"""RMS of the loud frames of speech at the front end's level."""
LEVEL_JITTER_DB = 4.0
SILENCE_AFTER_SECONDS = (1.0, 10.0)
PAUSE_SECONDS = (0.15, 1.6)
SILENT_WEIGHT = 0.25
COSINE_WEIGHT = 0.5
WORDS_WEIGHT, WORDS_SHARE = 0.4, 0.3
"""What the decoder says costs as much as the rest, so it is asked at some of the steps."""
PEAK_RATE = 4e-4
LEAST_RATE = 4e-6
WARMUP_SHARE = 0.02
AVERAGE_DECAY = 0.998
SAVE_EVERY_SECONDS = 300.0
ROOMS = 30
HALF_PRECISION = torch.cpu._is_avx512_bf16_supported()
"""Without these instructions a step in bfloat16 takes two to seven times as long as in float32."""

Samples = NDArray[np.float32]


# -- what is heard ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoken:
    """One recording of the manifest and what is said in it."""

    start: int
    samples: int
    text: str


@dataclass(frozen=True)
class Window:
    """Up to 30 s: what the teacher hears, what the student hears, and the words.

    `speech` is True for each frame of 20 ms that may hold speech; it ends with the silence
    that the student gets.
    """

    clean: Samples
    heard: Samples
    speech: NDArray[np.bool_]
    text: str


class Material:
    """All recordings of a manifest as 16-bit samples in one memory-mapped file."""

    def __init__(self, data: Path, cache: Path) -> None:
        rows = [json.loads(line) for line in (data / "manifest.jsonl").open()]
        index = cache.with_suffix(".json")
        if not index.is_file():
            self._decode(data, rows, cache, index)
        self.clips = [Spoken(*row) for row in json.loads(index.read_text())]
        self.samples = np.load(cache, mmap_mode="r")

    @staticmethod
    def _decode(data: Path, rows: list[dict[str, str]], cache: Path, index: Path) -> None:
        import soundfile
        import soxr

        parts, clips, start = [], [], 0
        for row in rows:
            x, rate = soundfile.read(data / row["audio_filepath"], dtype="float32", always_2d=True)
            mono = x.mean(1)
            if rate != SAMPLE_RATE:
                mono = soxr.resample(mono, rate, SAMPLE_RATE)
            if not 0.5 <= len(mono) / SAMPLE_RATE <= 28 or not mono.any():
                continue
            whole = (mono / np.abs(mono).max() * 32000).astype(np.int16)
            parts.append(whole)
            clips.append((start, len(whole), row.get("text", "")))
            start += len(whole)
        np.save(cache, np.concatenate(parts))
        index.write_text(json.dumps(clips))

    def clip(self, spoken: Spoken) -> Samples:
        part = self.samples[spoken.start : spoken.start + spoken.samples]
        return part.astype(np.float32) / np.float32(32768)


class Windows:
    """Draws windows: utterances with pauses, silence around them, noise, rooms, lines, levels."""

    def __init__(self, material: Material, seed: int) -> None:
        self.material = material
        self.rng = random.Random(seed)
        self.numpy = np.random.default_rng(seed)
        self.rooms = simulate.draw_responses(ROOMS, 7)
        self.order: list[Spoken] = []

    def draw(self) -> Window:
        rng = self.rng
        before = rng.uniform(0.0, 0.5) if rng.random() < 0.8 else rng.uniform(0.0, 3.0)
        after = rng.uniform(*SILENCE_AFTER_SECONDS)
        room_left = WINDOW_SECONDS - 2.0 - before
        most = rng.choice((1, 2, 3, 6, 12, 12, 12))
        parts, spans, texts = [np.zeros(self._count(before), np.float32)], [], []
        at = len(parts[0])
        while len(texts) < most:
            spoken = self._next()
            x = change_speed(self.material.clip(spoken), rng.choice((0.9, 1.0, 1.0, 1.0, 1.1)))
            if texts and at + len(x) > self._count(room_left):
                break
            if rng.random() < 0.3:
                x = color(x, 5.0, rng)
            x = at_level(x, LEVEL * 10 ** (rng.gauss(0, 1.5) / 20))
            spans.append((at, at + len(x)))
            pause = np.zeros(self._count(rng.uniform(*PAUSE_SECONDS)), np.float32)
            parts += [x, pause]
            at += len(x) + len(pause)
            texts.append(written(spoken.text))
        clean = np.concatenate([*parts, np.zeros(self._count(after), np.float32)])
        clean = clean[: self._count(WINDOW_SECONDS)]
        frames = len(clean) // 320
        speech = np.zeros(frames, np.bool_)
        for first, last in spans:
            speech[max(0, first // 320 - 5) : last // 320 + 5] = True
        return Window(clean, self._damaged(clean), speech, " ".join(texts))

    def _next(self) -> Spoken:
        if not self.order:
            self.order = list(self.material.clips)
            self.rng.shuffle(self.order)
        return self.order.pop()

    @staticmethod
    def _count(seconds: float) -> int:
        return round(seconds * SAMPLE_RATE)

    def _damaged(self, clean: Samples) -> Samples:
        """What reaches the student: half of it as it is, but for its level and a noise floor."""
        rng, numpy = self.rng, self.numpy
        x = clean.astype(np.float64)
        floor = 10 ** (rng.uniform(-90, -55) / 20)
        if rng.random() < 0.15:
            x = simulate.convolve(x, self.rooms[rng.randrange(len(self.rooms))])
        if rng.random() < 0.3:
            x = x + self._noise(len(x)) * LEVEL * 0.6 * 10 ** (-rng.uniform(8, 35) / 20)
        if rng.random() < 0.08:
            x = simulate.telephone(
                x / max(1.0, float(np.abs(x).max())), rng.choice(("ALAW", "ULAW", "GSM610", None))
            )
        elif rng.random() < 0.05:
            x = telephone_band(x.astype(np.float32), 0.0, rng.uniform(3300, 4000)).astype(
                np.float64
            )
        x = x + numpy.standard_normal(len(x)) * floor
        jitter = 10 ** (rng.uniform(-LEVEL_JITTER_DB, LEVEL_JITTER_DB) / 20)
        return at_level(x.astype(np.float32), LEVEL * jitter)

    def _noise(self, n: int) -> simulate.Float64:
        """Noise of one kind, RMS 1, all of it made here or from the training voices."""
        rng, numpy = self.rng, self.numpy
        kind = rng.choice(("hvac", "floor", "color", "music", "keys", "babble", "babble"))
        if kind == "babble":
            voices = [
                self.material.clip(rng.choice(self.material.clips))
                for _ in range(rng.choice((1, 3, 6)))
            ]
            return simulate.babble([v.astype(np.float64) for v in voices], n, numpy)
        if kind == "music":
            return simulate.music(n, numpy)
        if kind == "keys":
            return simulate.key_clicks(n, numpy)
        if kind == "hvac":
            return simulate.hvac(n, numpy)
        return simulate.colored_noise(n, 0.0 if kind == "floor" else rng.uniform(1, 6), numpy)


def at_level(samples: Samples, level: float) -> Samples:
    """Scaled so that the loud frames of 25 ms (95th percentile) have this RMS."""
    frames = samples[: len(samples) // 400 * 400].reshape(-1, 400)
    rms = np.sqrt(np.mean(np.square(frames), axis=1)) if len(frames) else np.zeros(1)
    loud = rms[rms > 1e-4 * rms.max(initial=0.0)]
    top = float(np.quantile(loud, 0.95)) if len(loud) else 0.0
    return samples * np.float32(level / max(top, 1e-5))


def written(text: str) -> str:
    """A transcript about as Whisper would write it."""
    text = " ".join(text.split())
    if text.isupper():
        text = text.lower()
    text = text[:1].upper() + text[1:]
    return text if not text or text[-1] in ".?!" else text + "."


# -- how it learns ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Losses:
    """Of one step: relative squared error and cosine distance of frames, divergence a token."""

    total: Tensor
    squared: float
    cosine: float
    words: float


class Distiller:
    """Teacher, student, and what a batch of windows teaches."""

    def __init__(self, teacher: Whisper, tokenizer: Path | None) -> None:
        self.teacher = teacher
        self.student = WhisperEncoder(teacher.config)
        self.student.load_state_dict(teacher.encoder.state_dict())
        self.filters = mel_filters(teacher.config.n_mels)
        self.tokenizer = None
        if tokenizer is not None:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(str(tokenizer))

    def losses(self, windows: list[Window], chunk: int, ask: bool) -> Losses:
        whole = torch.cat([window_of(torch.from_numpy(w.clean), WINDOW_SECONDS) for w in windows])
        frames = max(len(w.speech) for w in windows)
        samples = torch.zeros(len(windows), frames * 320 + 160)
        weight = torch.zeros(len(windows), frames)
        for row, window in enumerate(windows):
            n = min(len(window.heard), samples.shape[1])
            samples[row, :n] = torch.from_numpy(window.heard[:n])
            speech = torch.from_numpy(window.speech)
            weight[row, : len(speech)] = SILENT_WEIGHT + (1 - SILENT_WEIGHT) * speech.float()
        mel = scaled(log_mel(samples, self.filters)[:, : 2 * frames], LIVE_PEAK)
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF_PRECISION):
            with torch.no_grad():
                wanted_all = self.teacher.encoder(scaled(log_mel(whole, self.filters))).float()
            heard = self.student.chunked(mel, chunk, LEFT_FRAMES).float()
        wanted = wanted_all[:, :frames]
        weight = weight / weight.sum()
        power = (wanted.pow(2).mean(-1) * weight).sum()
        squared = ((heard - wanted).pow(2).mean(-1) * weight).sum() / power
        cosine = ((1 - F.cosine_similarity(heard, wanted, dim=-1)) * weight).sum()
        total, words = squared + COSINE_WEIGHT * cosine, math.nan
        if self.tokenizer is not None and ask:
            asked = self._asked(windows, heard, wanted_all)
            if asked is not None:
                total, words = total + WORDS_WEIGHT * asked, float(asked.detach())
        return Losses(total, float(squared.detach()), float(cosine.detach()), words)

    def _asked(self, windows: list[Window], heard: Tensor, wanted: Tensor) -> Tensor | None:
        """How far what the decoder reads in the student's frames is from what it reads in the
        teacher's, in nats a token."""
        assert self.tokenizer is not None
        prompt = [
            self.tokenizer.token_to_id(t) for t in ("<|startoftranscript|>", "<|notimestamps|>")
        ]
        end = self.tokenizer.token_to_id("<|endoftext|>")
        texts = [
            self.tokenizer.encode(" " + w.text, add_special_tokens=False).ids
            if w.text.strip()
            else []
            for w in windows
        ]
        longest = max(map(len, texts))
        if not longest or longest + len(prompt) > self.teacher.config.text_positions:
            return None
        tokens = torch.tensor([[*prompt, *t, *[end] * (longest - len(t))] for t in texts])
        meant = torch.tensor([[i <= len(t) for i in range(longest + 1)] for t in texts])
        decoder = self.teacher.decoder
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF_PRECISION):
            with torch.no_grad():
                teacher = decoder(tokens, wanted)[:, len(prompt) - 1 :][meant].float()
            student = decoder(tokens, heard)[:, len(prompt) - 1 :][meant].float()
        divergence = F.kl_div(
            student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        return divergence


def rate_at(share: float) -> float:
    """The learning rate at a share of the budget: a short rise, then half a cosine."""
    if share < WARMUP_SHARE:
        return PEAK_RATE * max(share, 1e-3) / WARMUP_SHARE
    fallen = (share - WARMUP_SHARE) / (1 - WARMUP_SHARE)
    return LEAST_RATE + (PEAK_RATE - LEAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, fallen)))


@dataclass
class Progress:
    """What a run remembers besides its weights."""

    step: int = 0
    elapsed_seconds: float = 0.0
    budget_seconds: float = 0.0


class Run:
    """A folder with the state of the training: student, average, optimizer, progress."""

    def __init__(self, folder: Path, distiller: Distiller, minutes: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.student = folder, distiller.student
        self.parameters = [p.requires_grad_() for p in self.student.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.average = {n: p.detach().clone() for n, p in self.student.named_parameters()}
        self.progress = Progress(budget_seconds=minutes * 60)
        if (folder / "progress.json").is_file():
            self._resume(minutes)

    def _resume(self, minutes: float) -> None:
        self.student.load_state_dict(load_file(self.folder / "student.safetensors"))
        self.average = {
            n: t
            for n, t in load_file(self.folder / "average.safetensors").items()
            if n in self.average
        }
        saved = torch.load(self.folder / "optimizer.pt", weights_only=True)
        self.optimizer.load_state_dict(saved)
        self.progress = Progress(**json.loads((self.folder / "progress.json").read_text()))
        self.progress.budget_seconds = minutes * 60
        print(f"going on after step {self.progress.step}", flush=True)

    def advance(self, losses: Losses) -> None:
        share = self.progress.elapsed_seconds / self.progress.budget_seconds
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(share)
        self.optimizer.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.progress.step += 1
        decay = min(AVERAGE_DECAY, (1 + self.progress.step) / (10 + self.progress.step))
        for name, p in self.student.named_parameters():
            self.average[name].lerp_(p.detach(), 1 - decay)

    def save(self) -> None:
        """Each file appears whole under its name or not at all; progress comes last."""
        student = {n: t.detach().contiguous() for n, t in self.student.state_dict().items()}
        averaged = {**student, **self.average}

        def place(name: str, write) -> None:  # type: ignore[no-untyped-def]
            part = self.folder / (name + ".part")
            write(part)
            os.replace(part, self.folder / name)

        place("student.safetensors", lambda p: save_file(student, p))
        place("average.safetensors", lambda p: save_file(averaged, p))
        place("optimizer.pt", lambda p: torch.save(self.optimizer.state_dict(), p))
        text = json.dumps(vars(self.progress))
        place("progress.json", lambda p: p.write_text(text))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--teacher", type=Path, required=True, help="CTranslate2 folder of a Whisper"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.jsonl")
    parser.add_argument("--run", type=Path, required=True, help="where the run lives")
    parser.add_argument(
        "--processor-minutes",
        type=float,
        required=True,
        help="of all threads, until the rate has fallen",
    )
    parser.add_argument("--batch", type=int, default=2, help="windows of 30 s a step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="stop after this number of steps")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    teacher = read_ctranslate2_weights(options.teacher / "model.bin")
    distiller = Distiller(teacher, options.teacher / "tokenizer.json")
    run = Run(options.run, distiller, options.processor_minutes)
    progress = run.progress
    seed = 1 + progress.step
    windows = Windows(Material(options.data, options.run.parent / "material.npy"), seed)
    chooser = random.Random(seed)
    shown: dict[str, float] = {}
    last, saved = time.process_time(), time.monotonic()
    while progress.elapsed_seconds < progress.budget_seconds:
        batch = [windows.draw() for _ in range(options.batch)]
        chunk = chooser.choices(CHUNKS, CHUNK_WEIGHTS)[0]
        losses = distiller.losses(batch, chunk, chooser.random() < WORDS_SHARE)
        if not bool(losses.total.detach().isfinite()):
            print(f"step {progress.step}: the loss is no finite number, left out", flush=True)
            continue
        run.advance(losses)
        for name, value in (
            ("squared", losses.squared),
            ("cosine", losses.cosine),
            ("words", losses.words),
        ):
            if math.isnan(value):
                continue
            key = f"{chunk * 20}ms {name}"
            shown[key] = 0.95 * shown[key] + 0.05 * value if key in shown else value
        used, now = time.process_time(), time.monotonic()
        progress.elapsed_seconds += used - last
        last = used
        if progress.step % 10 == 0:
            share = progress.elapsed_seconds / progress.budget_seconds
            figures = " ".join(f"{k} {v:.3f}" for k, v in sorted(shown.items()))
            print(f"{progress.step} {100 * share:.1f}% {figures}", flush=True)
        if now - saved > SAVE_EVERY_SECONDS:
            run.save()
            saved = now
        if options.steps and progress.step >= options.steps:
            break
    run.save()
    print("done", flush=True)


if __name__ == "__main__":
    main()
