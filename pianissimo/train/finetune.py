"""Fine-tuning a trained model on recordings of one's own, with checks before and numbers after.

    report = finetune(FinetuneOptions(Path("train.jsonl"), Path("val.jsonl"), Path("my-model")))

Data is checked, the model adapted as asked and trained with early stopping on the word errors of
live streams; the best weights become a plain model folder. What a run needs to go on, and its log,
are in `finetune/` below that folder; the model's own files come last and at once.
"""

import dataclasses
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pianissimo.errors import ManifestError, OptionError
from pianissimo.evaluate.run import ALL, Reference
from pianissimo.loading import FAMILIES, locate, model_type, read_model
from pianissimo.models.asr import CONFIG_FILE, AsrModel, load_model, save_model
from pianissimo.text.normalize import normalize_for_scoring
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.adapt import (
    Anchor,
    add_lora,
    anchor_weights,
    fisher_information,
    freeze_encoder,
    merge_lora,
)
from pianissimo.train.augment import Augmenter, SpecAugment
from pianissimo.train.check import Checked, check_manifest, check_overlap, render
from pianissimo.train.checkpoint import FOLDER as CHECKPOINT
from pianissimo.train.data import (
    AudioCache,
    Batch,
    BatchSource,
    Clip,
    Examples,
    Replay,
    TrainingSet,
    Utterance,
    read_manifest,
    write_manifest,
)
from pianissimo.train.find_lr import RateCurve, find_rate
from pianissimo.train.loop import Stage, TrainConfig, draw_lookahead, objective, train_model
from pianissimo.train.parallel import joined_world, local_device
from pianissimo.train.plan import FinetuneOptions, Method, choose_method, make_plan
from pianissimo.train.report import FinetuneReport, draw_losses
from pianissimo.train.validate import Validate, errors_on

RUN = "finetune"
"""The folder of a run, below that of the model."""
TRAIN, VAL, REPLAY, REGRESSION = "train.jsonl", "val.jsonl", "replay.jsonl", "regression.jsonl"
OPTIONS, BEFORE, CACHE, RATE_CURVE = "options.json", "before.json", "cache", "find-lr.csv"

DEFAULT_RANK = 16
FISHER_EXAMPLES = 200
FILL_EXAMPLES = 32
AUGMENT = Augmenter(
    speeds=(0.9, 0.95, 1.0, 1.05, 1.1),
    gain_db=(-15.0, 6.0),
    noise_probability=0.3,
    snr_db=(10.0, 35.0),
    room_probability=0.15,
    telephone_probability=0.1,
)


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


# -- before training -------------------------------------------------------------------------------


def read_original(model: str | None) -> tuple[AsrModel, Tokenizer]:
    """The model to begin with; OptionError for one of another family."""
    path = locate(model)
    if model_type(path) in FAMILIES:
        raise OptionError(
            f"{path.name} is of a family that cannot be fine-tuned here: train it with "
            "Transformers, and load what that saves"
        )
    network, tokenizer = read_model(path)
    if tokenizer.vocab_size != network.config.vocab_size:
        raise OptionError(f"{path.name}: tokenizer and weights belong to different models")
    return network, tokenizer


def check_material(options: FinetuneOptions, model: AsrModel, tokenizer: Tokenizer) -> Material:
    """Look at every line of every manifest; ManifestError only if one is not there at all."""

    def look(path: Path, whole: bool) -> Checked:
        return check_manifest(path, tokenizer, model.config, whole=whole)

    train, val = look(options.manifest, False), look(options.val, True)
    return Material(
        train,
        check_overlap(train, val),
        None if options.replay is None else look(options.replay, False),
        None if options.regression is None else look(options.regression, True),
    )


def check_data(options: FinetuneOptions) -> tuple[str, bool]:
    """The report on all manifests, and whether none has a fault."""
    material = check_material(options, *read_original(options.model))
    return render(material.parts), not any(part.faulty_lines for part in material.parts)


def refuse_faults(material: Material, skip_faulty: bool) -> None:
    """ManifestError if lines are faulty and not to be skipped, or if nothing is left."""
    faulty = sum(len(part.faulty_lines) for part in material.parts)
    if faulty and not skip_faulty:
        raise ManifestError(
            f"{faulty} lines cannot be used (see above): correct them, or leave them out with "
            "--skip-faulty"
        )
    for part in material.parts:
        if not part.lines:
            raise ManifestError(f"{part.manifest} has no line that can be used")


# -- what to do ------------------------------------------------------------------------------------


def adapt(model: AsrModel, method: Method, rank: int | None) -> None:
    """Freeze and add what the method asks for."""
    if method == "heads":
        freeze_encoder(model)
    elif method == "lora":
        add_lora(model, rank or DEFAULT_RANK)


def new_seconds(run: Path) -> float:
    """How much new data there is to train on."""
    return sum(u.duration for u in read_manifest(run / TRAIN))


def training_set(utterances: Sequence[Utterance], cache: Path, augment: bool) -> TrainingSet:
    """Whole utterances of a manifest, decoded into `cache`."""
    clips = [Clip(i, 0.0, u.duration, u.text) for i, u in enumerate(utterances)]
    return TrainingSet(AudioCache(utterances, cache), clips, AUGMENT if augment else None)


def mean_feature(model: AsrModel, data: Examples) -> float:
    """The mean of the features over a few examples: what a masked cell is set to."""
    rng = random.Random(0)
    items = range(len(data.durations()))
    drawn = rng.sample(items, min(len(items), FILL_EXAMPLES))
    features = type(model.features)(model.config.features)
    cells = [features.whole(torch.from_numpy(data.example(i, rng)[0])).flatten() for i in drawn]
    return float(torch.cat(cells).mean())


def make_stage(
    options: FinetuneOptions, model: AsrModel, run: Path, steps: int, batch_seconds: float
) -> Stage:
    """The one stage of a fine-tuning, from the manifests in `run`."""
    cache = run / CACHE
    new = training_set(read_manifest(run / TRAIN), cache, options.augment)
    data: Examples = new
    if options.replay is not None:
        old = training_set(read_manifest(run / REPLAY), cache, options.augment)
        data = Replay(new, old, options.replay_share)
    masks = SpecAugment(fill=mean_feature(model, new)) if options.augment else None
    return Stage(steps, data, batch_seconds, masks)


def make_anchor(
    options: FinetuneOptions, model: AsrModel, tokenizer: Tokenizer, run: Path
) -> Anchor | None:
    """The pull towards the original weights, if asked for."""
    if options.l2sp:
        return anchor_weights(model, options.l2sp)
    if not options.ewc:
        return None
    old = training_set(read_manifest(run / REPLAY), run / CACHE, augment=False)
    model.train()  # CUDA's LSTM has no gradient otherwise
    importance = fisher_information(model, _example_losses(model, tokenizer, old))
    return anchor_weights(model, options.ewc, importance)


def _example_losses(
    model: AsrModel, tokenizer: Tokenizer, data: TrainingSet
) -> Iterator[Callable[[], Tensor]]:
    """The loss of single utterances, each at one of the model's lookaheads."""
    items = range(len(data.clips))
    drawn = random.Random(0).sample(items, min(len(items), FISHER_EXAMPLES))
    features = type(model.features)(model.config.features)
    source = BatchSource([[i] for i in drawn], data.example, features, tokenizer, None, "fisher")
    for i in range(len(source)):
        lookahead = draw_lookahead(model.config.encoder.lookaheads, 0, i)
        yield partial(_example_loss, model, source[i].to(model.device), lookahead)


def _example_loss(model: AsrModel, batch: Batch, lookahead: int | None) -> Tensor:
    parts = objective(model, batch, lookahead, TrainConfig(1).ctc_weight, True)
    return parts["loss"] * batch.target_lengths.sum()


def validation(manifest: Path, tokenizer: Tokenizer) -> Validate:
    """Word errors on a checked manifest, `text_norm` before `text`."""
    references = [
        Reference(
            u.path,
            normalize_for_scoring(str(u.extra.get("text_norm") or u.text)),
            str(u.extra.get("subset", ALL)),
        )
        for u in read_manifest(manifest)
    ]
    return errors_on(references, tokenizer)


# -- the folder of a run ---------------------------------------------------------------------------


def prepare(
    options: FinetuneOptions,
    model: AsrModel,
    tokenizer: Tokenizer,
    say: Callable[[str], None],
) -> Path:
    """Check the data and write what can be used of it into the run's folder, which is returned."""
    run = options.out / RUN
    choose_method(options, model.parameter_count())  # refuses before anything is written
    if (options.out / CONFIG_FILE).exists():
        raise OptionError(f"{options.out} holds a model already; choose another folder for --out")
    _refuse_other_options(run, options)
    material = check_material(options, model, tokenizer)
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
    return run


def _refuse_other_options(run: Path, options: FinetuneOptions) -> None:
    """OptionError if the folder holds a run that was begun with other options."""
    if not (run / CHECKPOINT).is_dir() or not (run / OPTIONS).is_file():
        return
    before, now = json.loads((run / OPTIONS).read_text(encoding="utf-8")), _plain(options)
    different = sorted(name for name in now if now[name] != before.get(name))
    if different:
        raise OptionError(
            f"{run} holds a run with other options ({', '.join(different)}): go on with the same, "
            "or choose another folder"
        )


def _plain(options: FinetuneOptions) -> dict[str, Any]:
    values = dataclasses.asdict(options).items()
    return {k: os.path.abspath(v) if isinstance(v, Path) else v for k, v in values}


def publish(folder: Path, run: Path, model: AsrModel, tokenizer: Tokenizer, half: bool) -> None:
    """Put the model's files into `folder`; what makes it one, its configuration, comes last."""
    model.config = dataclasses.replace(model.config, name=folder.resolve().name)
    made = run / "model"
    shutil.rmtree(made, ignore_errors=True)
    save_model(made, model, tokenizer, torch.float16 if half else None)
    for file in sorted(made.iterdir(), key=lambda file: file.name == CONFIG_FILE):
        file.replace(folder / file.name)
    made.rmdir()


def fits_half(model: AsrModel) -> bool:
    """Whether all weights are float16 numbers, as those of a model that was stored so."""
    return all(bool((p.half().float() == p).all()) for p in model.parameters())


# -- the whole of it -------------------------------------------------------------------------------


def find_learning_rate(
    options: FinetuneOptions,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> RateCurve:
    """Try learning rates on the training data; the curve is written into the run's folder."""
    model, tokenizer = read_original(options.model)
    run = prepare(options, model, tokenizer, say)
    plan = make_plan(options, model.parameter_count(), new_seconds(run))
    torch.manual_seed(options.seed)
    adapt(model, plan.method, options.rank)
    stage = make_stage(options, model, run, plan.config.steps, plan.batch_seconds)
    curve = find_rate(plan.config, model, tokenizer, stage, device=device)
    curve.write(run / RATE_CURVE)
    return curve


def finetune(
    options: FinetuneOptions,
    *,
    device: str = "cpu",
    minutes: float = math.inf,
    tensorboard: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> FinetuneReport | None:
    """Fine-tune, and write the model folder; the same call again goes on where it stopped.

    Started by `torchrun`, several processes train together. Returns None if `minutes` ran out, and
    on all processes but the first. Raises ManifestError for faulty data, OptionError if the folder
    holds a model already or a run with other options.
    """
    device = local_device(device)
    with joined_world(device) as world:
        model, tokenizer = read_original(options.model)
        half = fits_half(model)
        run = options.out / RUN
        if world.first:
            prepare(options, model, tokenizer, say)
        else:
            say = _nothing
            world.wait()  # until the data is checked and decoded
        plan = make_plan(options, model.parameter_count(), new_seconds(run))
        stage = make_stage(options, model, run, plan.config.steps, plan.batch_seconds)
        if world.first:
            world.wait()
        say(plan.render())
        model.to(device)
        old_before: dict[str, float] = {}
        validate = validation(run / VAL, tokenizer)
        if options.regression is not None and world.first:
            validate_old = validation(run / REGRESSION, tokenizer)
            old_before = _once(run / BEFORE, lambda: validate_old(model.eval()))
        torch.manual_seed(options.seed)
        adapt(model, plan.method, options.rank)
        done, stop = train_model(
            plan.config,
            model,
            tokenizer,
            [stage],
            run,
            validate=validate,
            anchor=make_anchor(options, model, tokenizer, run),
            device=device,
            minutes=minutes,
            tensorboard=tensorboard,
            world=world,
        )
        if not done or not world.first:
            return None
        assert stop is not None
        merge_lora(model)
        publish(options.out, run, model.cpu(), tokenizer, half)
        saved, _ = load_model(options.out)
        saved.to(device)
        report = FinetuneReport(
            method=plan.method,
            best_step=stop.best_step,
            before=stop.first,
            after=validate(saved),
            old_before=old_before,
            old_after=validate_old(saved) if old_before else {},
        )
        report.write(run)
        draw_losses(run)
        for leftover in (CHECKPOINT, CACHE):
            shutil.rmtree(run / leftover, ignore_errors=True)
        return report


def _nothing(text: str) -> None:
    """Where the words of all processes but the first go."""


def _once(path: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Numbers that were measured before this run was interrupted, or measured now."""
    if not path.is_file():
        partial_file = path.with_suffix(".partial")
        partial_file.write_text(json.dumps(measure()), encoding="utf-8")
        partial_file.replace(path)
    found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return found
