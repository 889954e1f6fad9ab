"""Training data: manifests, the audio cache, examples, and padded batches by length.

A manifest has the format of NeMo: one JSON object per line with `audio_filepath` (relative to the
manifest), `duration` (seconds) and `text`; `offset` (seconds) selects a part; other keys are kept
in `extra`.
"""

import hashlib
import itertools
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pianissimo.audio.features import MelFeatures
from pianissimo.audio.io import SAMPLE_RATE, load_audio
from pianissimo.audio.manifest import manifest_rows, seconds_in
from pianissimo.errors import AudioError, ManifestError, OptionError
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.augment import SpecAugment

Samples = NDArray[np.float32]
DURATION_TOLERANCE = 0.02
"""The share by which audio may be shorter than in its manifest; 0.1 s is always allowed."""


@dataclass(frozen=True)
class Utterance:
    """One line of a manifest, by its number there; `duration` and `offset` in seconds."""

    path: Path
    duration: float
    text: str
    offset: float = 0.0
    extra: dict[str, object] = field(default_factory=dict)
    line: int | None = field(default=None, compare=False)


def read_manifest(path: Path, *, texts: bool = True) -> list[Utterance]:
    """All utterances of a manifest; ManifestError lists every faulty line by number.

    Without `texts` a line may lack its text, which is then empty.
    """
    utterances, faults = [], []
    for number, line in manifest_lines(path, texts=texts):
        if isinstance(line, Utterance):
            utterances.append(line)
        else:
            faults.append(f"line {number}: {line}")
    if faults or not utterances:
        shown = "\n  ".join(faults) or "it has no lines"
        raise ManifestError(f"manifest {path} is not usable:\n  {shown}")
    return utterances


def manifest_lines(path: Path, *, texts: bool = True) -> Iterator[tuple[int, "Utterance | str"]]:
    """The number of each line that is not empty, with its utterance or its fault.

    Without `texts` a line may lack its text.
    """
    for number, row in manifest_rows(path):
        if isinstance(row, str):
            yield number, row
            continue
        try:
            known = row if texts else {"text": "", **row}
            yield number, replace(_utterance(known, path.parent), line=number)
        except (ValueError, TypeError, OverflowError) as error:
            yield number, str(error)


def write_manifest(path: Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest for `read_manifest` atomically, with absolute paths of audio."""
    rows = [
        {
            **u.extra,
            "audio_filepath": os.path.abspath(u.path),
            "duration": u.duration,
            "text": u.text,
            "offset": u.offset,
        }
        for u in utterances
    ]
    partial = path.with_suffix(".partial")
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(path)


def _utterance(row: Mapping[str, object], folder: Path) -> Utterance:
    name, text, duration = row.get("audio_filepath"), row.get("text"), seconds_in(row, "duration")
    if not isinstance(name, str) or not isinstance(text, str) or not duration:
        wrong = {"audio_filepath": not isinstance(name, str), "text": not isinstance(text, str)}
        key = next((key for key, is_wrong in wrong.items() if is_wrong), "duration")
        raise ValueError(f"{key!r} is missing or of the wrong type")
    audio = folder / name
    if not audio.is_file():
        raise ValueError(f"no file {audio}")
    known = ("audio_filepath", "duration", "text", "offset")
    extra = {k: v for k, v in row.items() if k not in known}
    return Utterance(audio, duration, text, seconds_in(row, "offset") or 0.0, extra)


class AudioCache:
    """All audio of a training set decoded once into one 16-bit file, read by memory map.

    The file is in `folder`; its name is a hash of the utterances. Training reads tens of random
    clips per second, and decoding MP3 or Vorbis each time would be too slow.
    """

    def __init__(self, utterances: Sequence[Utterance], folder: Path) -> None:
        key = hashlib.sha256()
        for u in utterances:
            key.update(f"{u.path}|{u.offset}|{u.duration}|{u.path.stat().st_size}\n".encode())
        stem = folder / f"audio-{key.hexdigest()[:16]}"
        data, index = stem.with_suffix(".i16"), stem.with_suffix(".npy")
        if not index.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            self._decode(utterances, data, index)
        self._offsets = np.load(index)
        self._samples = np.memmap(data, dtype=np.int16, mode="r")

    @staticmethod
    def _decode(utterances: Sequence[Utterance], data: Path, index: Path) -> None:
        offsets, faults = [0], []
        partial, partial_index = data.with_suffix(".partial"), index.with_suffix(".partial.npy")
        try:
            with partial.open("wb") as out:
                for u in utterances:
                    try:
                        samples = cut_utterance(u, load_audio(u.path))
                    except (AudioError, ValueError) as error:
                        where = f"{u.path}: " if u.line is None else f"line {u.line}: {u.path}: "
                        faults.append(where + str(error))
                        continue
                    pcm = np.rint(np.clip(samples * 32768, -32768, 32767))
                    out.write(pcm.astype(np.int16).tobytes())
                    offsets.append(offsets[-1] + len(samples))
            if faults:
                raise ManifestError("unusable audio:\n  " + "\n  ".join(faults))
            np.save(partial_index, np.array(offsets))
            partial.rename(data)
            partial_index.rename(index)  # last: it marks the cache as complete
        finally:
            partial.unlink(missing_ok=True)
            partial_index.unlink(missing_ok=True)

    def __getitem__(self, i: int) -> Samples:
        part = self._samples[self._offsets[i] : self._offsets[i + 1]]
        return part.astype(np.float32) / np.float32(32768)


def cut_utterance(u: Utterance, recording: Samples) -> Samples:
    """The samples of an utterance; ValueError if its recording ends too early."""
    start = round(u.offset * SAMPLE_RATE)
    samples = recording[start : start + round(u.duration * SAMPLE_RATE)]
    missing = u.duration - len(samples) / SAMPLE_RATE
    if missing > max(0.1, DURATION_TOLERANCE * u.duration):
        raise ValueError(
            f"the audio is {missing:.2f} s shorter than the manifest says, {u.duration:.2f} s"
        )
    return samples


@dataclass(frozen=True)
class TrainingBatch:
    """A padded batch: features (B, T, F), targets (B, U), and the valid lengths of each."""

    features: Tensor
    feature_lengths: Tensor
    targets: Tensor
    target_lengths: Tensor

    def to(self, device: torch.device) -> "TrainingBatch":
        return TrainingBatch(
            self.features.to(device, non_blocking=True),
            self.feature_lengths.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.target_lengths.to(device, non_blocking=True),
        )


Example = tuple[Samples, str]
"""Samples at 16 kHz and their transcript."""


def epoch_batches(
    durations: Sequence[float], batch_seconds: float, seed: int, epoch: int
) -> list[list[int]]:
    """Indices grouped into batches of about equal length, at most `batch_seconds` after padding.

    The same (seed, epoch) gives the same batches in the same order. Lengths are jittered, so that
    batches differ from epoch to epoch.
    """
    rng = random.Random(f"{seed}-{epoch}")
    order = sorted(range(len(durations)), key=lambda i: durations[i] * rng.uniform(0.85, 1.15))
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0.0
    for i in order:
        longest = max(longest, durations[i])
        if current and longest * (len(current) + 1) > batch_seconds:
            batches.append(current)
            current, longest = [], durations[i]
        current.append(i)
    if current:
        batches.append(current)
    rng.shuffle(batches)
    return batches


class BatchSource(Dataset[TrainingBatch]):
    """The batches of one epoch, each made deterministically from (seed, epoch, index).

    `example` draws item i with the given generator: decoding, cutting and augmenting in one place.
    """

    def __init__(
        self,
        batches: list[list[int]],
        example: Callable[[int, random.Random], Example],
        features: MelFeatures,
        tokenizer: Tokenizer,
        spec_augment: SpecAugment | None,
        seed: str,
    ) -> None:
        self.batches, self.example, self.features = batches, example, features
        self.tokenizer, self.spec_augment, self.seed = tokenizer, spec_augment, seed

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> TrainingBatch:
        rng = random.Random(f"{self.seed}-{index}")
        mels, targets = [], []
        for i in self.batches[index]:
            samples, text = self.example(i, rng)
            mel = self.features.whole(torch.from_numpy(np.ascontiguousarray(samples)))
            mels.append(mel if self.spec_augment is None else self.spec_augment(mel, rng))
            targets.append(torch.tensor(self.tokenizer.encode(text), dtype=torch.long))
        return collate(mels, targets)


def collate(mels: Sequence[Tensor], targets: Sequence[Tensor]) -> TrainingBatch:
    """Pad (T, F) features and (U,) targets with zeros to one batch."""
    pad = torch.nn.utils.rnn.pad_sequence
    return TrainingBatch(
        features=pad(list(mels), batch_first=True),
        feature_lengths=torch.tensor([len(m) for m in mels]),
        targets=pad(list(targets), batch_first=True),
        target_lengths=torch.tensor([len(t) for t in targets]),
    )


@dataclass(frozen=True)
class TrainingClip:
    """A training item: part of a cached recording, in seconds, and its transcript."""

    recording: int
    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Splice:
    """A training item of several clips with `gap_seconds` of silence between them."""

    parts: tuple[TrainingClip, ...]
    gap_seconds: float = 0.0

    @property
    def text(self) -> str:
        return " ".join(part.text for part in self.parts)


class Examples(Protocol):
    """The examples of a stage of training."""

    def durations(self) -> list[float]:
        """Seconds of each item, before augmentation."""
        ...

    def example(self, item: int, rng: random.Random) -> Example:
        """Samples and transcript of one item, freshly augmented."""
        ...


@dataclass(frozen=True)
class TrainingSet:
    """Clips of cached recordings; one that is listed twice is drawn twice an epoch."""

    audio: AudioCache
    clips: Sequence[TrainingClip | Splice]
    augment: Callable[[Samples, random.Random], Samples] | None = None

    def durations(self) -> list[float]:
        """Seconds of each clip, before augmentation."""
        return [_seconds(clip) for clip in self.clips]

    def example(self, item: int, rng: random.Random) -> Example:
        """Samples and transcript of one clip, freshly augmented."""
        clip = self.clips[item]
        samples = self._cut(clip) if isinstance(clip, TrainingClip) else self._join(clip)
        if self.augment is not None:
            samples = self.augment(samples, rng)
        return samples, clip.text

    def _cut(self, clip: TrainingClip) -> Samples:
        samples = self.audio[clip.recording]
        return samples[round(clip.start * SAMPLE_RATE) : round(clip.end * SAMPLE_RATE)]

    def _join(self, splice: Splice) -> Samples:
        gap = np.zeros(round(splice.gap_seconds * SAMPLE_RATE), np.float32)
        pieces = [piece for part in splice.parts for piece in (gap, self._cut(part))]
        return np.concatenate(pieces[1:])


def _seconds(clip: TrainingClip | Splice) -> float:
    if isinstance(clip, TrainingClip):
        return clip.end - clip.start
    return sum(map(_seconds, clip.parts)) + clip.gap_seconds * (len(clip.parts) - 1)


@dataclass(frozen=True)
class Mixture:
    """Several training sets drawn as one, each with its own augmentation."""

    sets: Sequence[TrainingSet]

    def durations(self) -> list[float]:
        """Seconds of each item, before augmentation."""
        return [seconds for part in self.sets for seconds in part.durations()]

    def example(self, item: int, rng: random.Random) -> Example:
        """Samples and transcript of one item, freshly augmented."""
        for part in self.sets:
            if item < len(part.clips):
                return part.example(item, rng)
            item -= len(part.clips)
        raise IndexError(f"item {item} is past the end of the mixture")


class Replay:
    """New items mixed with items of older data that make up `share` of the seconds.

    Every epoch has the same number of places for older items. A place has a set of items of about
    one length, of which one is drawn each time.
    """

    def __init__(self, new: Examples, old: Examples, share: float) -> None:
        if not 0 < share < 1:
            raise OptionError(f"the share of older data must be between 0 and 1, not {share:g}")
        self._new, self._old = new, old
        self._fresh = new.durations()
        lengths = old.durations()
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        wanted = share / (1 - share) * sum(self._fresh)
        places = max(1, round(wanted * len(lengths) / sum(lengths)))
        edges = [i * len(order) / places for i in range(places + 1)]
        self._places = [
            order[int(a) : max(int(a) + 1, int(b))] for a, b in itertools.pairwise(edges)
        ]
        self._longest = [max(lengths[i] for i in place) for place in self._places]

    def durations(self) -> list[float]:
        """Seconds of each item; for a place, of its longest item."""
        return [*self._fresh, *self._longest]

    def example(self, item: int, rng: random.Random) -> Example:
        """Samples and transcript of a new item, or of an older one for its place."""
        if item < len(self._fresh):
            return self._new.example(item, rng)
        return self._old.example(rng.choice(self._places[item - len(self._fresh)]), rng)


def span_clips(
    recording: int,
    words: Sequence[tuple[str, float, float]],
    longest: int,
    rng: random.Random,
    margin_seconds: float = 0.04,
) -> list[TrainingClip]:
    """Cut an aligned recording into runs of 1 to `longest` words, in order and complete.

    `words` are (text, start, end) in seconds. A run is extended by a margin on both sides.
    """
    clips, at = [], 0
    while at < len(words):
        run = words[at : at + rng.randint(1, longest)]
        at += len(run)
        start = max(0.0, run[0][1] - margin_seconds)
        text = " ".join(word for word, _, _ in run)
        clips.append(TrainingClip(recording, start, run[-1][2] + margin_seconds, text))
    return clips


def splice_clips(
    words: Sequence[TrainingClip],
    count: int,
    longest: int,
    gaps: Sequence[float],
    rng: random.Random,
) -> list[Splice]:
    """Draw `count` new orders of 2 to `longest` of these words; each distinct word as likely.

    `words` are single-word clips that fit together, for example of one speaker. The random order
    prevents the model from learning an order of words. `gaps` are the pauses to draw from, in
    seconds.
    """
    by_text: dict[str, list[TrainingClip]] = {}
    for clip in words:
        by_text.setdefault(clip.text, []).append(clip)
    texts = sorted(by_text)
    return [
        Splice(
            tuple(rng.choice(by_text[rng.choice(texts)]) for _ in range(rng.randint(2, longest))),
            rng.choice(gaps),
        )
        for _ in range(count)
    ]
