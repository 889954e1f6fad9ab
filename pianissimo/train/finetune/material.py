"""The data of a fine-tuning: checks, the manifests of a run, and training examples.

It is shared by all families: `run.py` trains FastConformer models, `ctc.py` the wav2vec 2.0 family.
"""

import dataclasses
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from pianissimo.audio.io import SAMPLE_RATE, load_audio
from pianissimo.audio.simulate import draw_responses
from pianissimo.errors import ManifestError, OptionError
from pianissimo.evaluate.run import ALL, Reference
from pianissimo.models.checkpoints.config_json import CONFIG_FILE
from pianissimo.text.normalize import normalize_for_scoring
from pianissimo.train.augment import Augmenter, QuietAugmenter
from pianissimo.train.checkpoint import FOLDER as CHECKPOINT
from pianissimo.train.data import (
    AudioCache,
    Examples,
    Replay,
    TrainingClip,
    TrainingSet,
    Utterance,
    cut_utterance,
    read_manifest,
    write_manifest,
)
from pianissimo.train.finetune.data_check import (
    Bounds,
    Capacity,
    Checked,
    Writer,
    check_manifest,
    check_overlap,
    render,
)
from pianissimo.train.finetune.plan import FinetuneOptions

RUN = "finetune"
"""The folder of a run, below that of the model."""
TRAIN, VAL, REPLAY, REGRESSION = "train.jsonl", "val.jsonl", "replay.jsonl", "regression.jsonl"
OPTIONS, CACHE, PICTURE, QUIET = "options.json", "cache", "losses.svg", "quiet"
GENERAL = "general "

AUGMENT = Augmenter(
    speeds=(0.9, 0.95, 1.0, 1.05, 1.1),
    gain_db=(-15.0, 6.0),
    noise_probability=0.3,
    snr_db=(10.0, 35.0),
    room_probability=0.15,
    telephone_probability=0.1,
)
ROOMS = 48
"""The number of impulse responses for quiet speech."""


@dataclass(frozen=True)
class Material:
    """The checked data of a fine-tuning."""

    train: Checked
    val: Checked
    replay: Checked | None = None
    regression: Checked | None = None

    @property
    def parts(self) -> list[Checked]:
        return [part for part in (self.train, self.val, self.replay, self.regression) if part]


def check_material(
    options: FinetuneOptions, writer: Writer, capacity: Capacity, bounds: Bounds | None = None
) -> Material:
    """Check every line of every manifest; ManifestError only for a missing file."""

    def check(path: Path) -> Checked:
        return check_manifest(path, writer, capacity, bounds=bounds)

    train, val = check(options.manifest), check(options.val)
    return Material(
        train,
        check_overlap(train, val),
        None if options.replay is None else check(options.replay),
        None if options.regression is None else check(options.regression),
    )


def refuse_faults(material: Material, skip_faulty: bool) -> None:
    """ManifestError for faulty lines without `skip_faulty`, or if no line is usable."""
    faulty = sum(len(part.faulty_lines) for part in material.parts)
    if faulty and not skip_faulty:
        raise ManifestError(
            f"{faulty} lines cannot be used (see above); correct them or add --skip-faulty"
        )
    for part in material.parts:
        if not part.lines:
            raise ManifestError(f"{part.manifest} has no usable line")


def prepare(
    options: FinetuneOptions, check: Callable[[], Material], say: Callable[[str], None]
) -> Path:
    """Check the data and write the usable lines into the run's folder, which is returned."""
    run = options.out / RUN
    if (options.out / CONFIG_FILE).exists():
        raise OptionError(f"{options.out} already has a model; choose another folder for --out")
    _refuse_other_options(run, options)
    material = check()
    say(render(material.parts))
    refuse_faults(material, options.skip_faulty)
    run.mkdir(parents=True, exist_ok=True)
    (run / OPTIONS).write_text(json.dumps(_plain(options), indent=2) + "\n", encoding="utf-8")
    for name, part in (
        (TRAIN, material.train),
        (VAL, material.val),
        (REPLAY, material.replay),
        (REGRESSION, material.regression),
    ):
        if part is not None:
            write_manifest(run / name, part.utterances)
    if options.quiet_speech:
        twins = quiet_twins(material.val.utterances, run / QUIET, options.seed)
        write_manifest(run / VAL, [*material.val.utterances, *twins])
    return run


def quiet_twins(utterances: Sequence[Utterance], folder: Path, seed: int) -> list[Utterance]:
    """Quiet copies of recordings as `quiet_speech` makes them, in 16 bits, as separate subsets.

    A gain on distant speech may cost some accuracy on close speech, so both are validated. The
    rooms differ from those of the training; the seed determines every bit.
    """
    folder.mkdir(exist_ok=True)
    augment = QuietAugmenter(draw_responses(ROOMS, seed + 1))
    twins = []
    for number, u in enumerate(utterances):
        path = folder / f"{number:06}.wav"
        clean, rng = cut_utterance(u, load_audio(u.path)), random.Random(f"{seed} {number}")
        soundfile.write(path, augment(clean, rng), SAMPLE_RATE, subtype="PCM_16")
        subset = f"{u.extra['subset']}, quiet" if "subset" in u.extra else "quiet"
        extra = {**u.extra, "subset": subset}
        twins.append(dataclasses.replace(u, path=path, offset=0.0, extra=extra))
    return twins


def _refuse_other_options(run: Path, options: FinetuneOptions) -> None:
    """OptionError if the folder has a run with other options."""
    if not any(run.glob(f"{CHECKPOINT}*")) or not (run / OPTIONS).is_file():
        return
    before, now = json.loads((run / OPTIONS).read_text(encoding="utf-8")), _plain(options)
    different = sorted(name for name in now if now[name] != before.get(name))
    if different:
        raise OptionError(
            f"{run} has a run with other options ({', '.join(different)}); use the same options "
            "or another folder"
        )


def _plain(options: FinetuneOptions) -> dict[str, object]:
    values = dataclasses.asdict(options).items()
    return {k: os.path.abspath(v) if isinstance(v, Path) else v for k, v in values}


def new_seconds(run: Path) -> float:
    """Seconds of new training data."""
    return sum(u.duration for u in read_manifest(run / TRAIN))


def training_set(
    utterances: Sequence[Utterance], cache: Path, augment: Augmenter | QuietAugmenter | None = None
) -> TrainingSet:
    """Whole utterances of a manifest, decoded into `cache`."""
    clips = [TrainingClip(i, 0.0, u.duration, u.text) for i, u in enumerate(utterances)]
    return TrainingSet(AudioCache(utterances, cache), clips, augment)


def augmenter(options: FinetuneOptions) -> Augmenter | QuietAugmenter | None:
    """The augmentation of the training recordings."""
    if not options.augment:
        return None
    return QuietAugmenter(draw_responses(ROOMS, options.seed)) if options.quiet_speech else AUGMENT


def examples(options: FinetuneOptions, run: Path) -> tuple[TrainingSet, Examples]:
    """The new data of a run, and all training data: with the older data if there is any."""
    cache, augment = run / CACHE, augmenter(options)
    new = training_set(read_manifest(run / TRAIN), cache, augment)
    if options.replay is None:
        return new, new
    old = training_set(read_manifest(run / REPLAY), cache, augment)
    return new, Replay(new, old, options.replay_share)


def references(manifest: Path) -> list[Reference]:
    """The references of a checked manifest, from `text_norm` or else `text`."""
    return [
        Reference(
            u.path,
            normalize_for_scoring(str(u.extra.get("text_norm") or u.text)),
            str(u.extra.get("subset", ALL)),
            u.offset,
            u.duration,
        )
        for u in read_manifest(manifest)
    ]


def together(new: dict[str, float], general: dict[str, float]) -> dict[str, float]:
    """Scores on the validation set and on the general set in one dictionary."""
    return {**new, **{GENERAL + name: rate for name, rate in general.items()}}


def apart(scores: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """The two arguments of `together`."""
    general = {k.removeprefix(GENERAL): v for k, v in scores.items() if k.startswith(GENERAL)}
    return {k: v for k, v in scores.items() if not k.startswith(GENERAL)}, general
