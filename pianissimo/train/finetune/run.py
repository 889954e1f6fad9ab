"""Fine-tuning of a trained model: checks of the data before, word error rates before and after.

    report = finetune(FinetuneOptions(Path("train.jsonl"), Path("val.jsonl"), Path("my-model")))

The data is checked, then the model is adapted and trained with early stopping on the word errors of
live streams. The best weights become a plain model folder. The checkpoint and the log of the run
are in `finetune/` below that folder; the files of the model are moved there last.
"""

import dataclasses
import math
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.models.checkpoints.config_json import CONFIG_FILE
from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.recognizers.fastconformer import read_model
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.augment import SpecAugment
from pianissimo.train.checkpoint import FOLDER as CHECKPOINT
from pianissimo.train.config import TrainConfig
from pianissimo.train.curves import draw
from pianissimo.train.data import BatchSource, Examples, TrainingBatch, TrainingSet, read_manifest
from pianissimo.train.finetune.adapt import (
    Anchor,
    add_lora,
    anchor_weights,
    fisher_information,
    freeze_encoder,
    merge_lora,
)
from pianissimo.train.finetune.data_check import render
from pianissimo.train.finetune.find_lr import RateCurve, find_rate
from pianissimo.train.finetune.material import (
    CACHE,
    PICTURE,
    REGRESSION,
    REPLAY,
    RUN,
    VAL,
    apart,
    check_material,
    examples,
    new_seconds,
    prepare,
    references,
    together,
    training_set,
)
from pianissimo.train.finetune.plan import FinetuneOptions, Method, choose_method, make_plan
from pianissimo.train.finetune.report import FinetuneReport
from pianissimo.train.finetune.settle import Settled, settle
from pianissimo.train.loop import (
    Execution,
    Stage,
    draw_lookahead,
    objective,
    train_model,
)
from pianissimo.train.parallel import joined_world, local_device
from pianissimo.train.validate import Validate, errors_on
from pianissimo.zoo.families import NATIVE, family_of
from pianissimo.zoo.folder import locate

RATE_CURVE = "find-lr.csv"
DEFAULT_RANK = 16
FISHER_EXAMPLES = 200
FILL_EXAMPLES = 32


# -- before training -------------------------------------------------------------------------------


def read_original(model: str) -> tuple[AsrModel, Tokenizer]:
    """The original model; OptionError for one of another family."""
    path = locate(model)
    if is_wav2vec2_family(model):
        raise OptionError(
            f"{path.name} is trained by Transformers, without a search for the rate; set --lr"
        )
    if family_of(path).name != NATIVE:
        raise OptionError(
            f"{path.name} cannot be fine-tuned by pianissimo; train it with Transformers and load "
            "the result"
        )
    network, tokenizer = read_model(path)
    if tokenizer.vocab_size != network.config.vocab_size:
        raise OptionError(f"{path.name}: tokenizer and weights belong to different models")
    return network, tokenizer


def is_wav2vec2_family(model: str) -> bool:
    """Whether Transformers trains the model: wav2vec 2.0 and related families."""
    return family_of(locate(model)).name == "wav2vec2"


def check_data(options: FinetuneOptions) -> tuple[str, bool]:
    """The report on all manifests, and whether none has a fault."""
    if is_wav2vec2_family(options.model):
        from pianissimo.train.finetune.ctc import check_ctc

        material = check_ctc(options)
    else:
        model, tokenizer = read_original(options.model)
        material = check_material(options, tokenizer, model.config)
    return render(material.parts), not any(part.faulty_lines for part in material.parts)


# -- the parts of a run ----------------------------------------------------------------------------


def adapt(model: AsrModel, method: Method, rank: int | None) -> None:
    """Freeze or add parameters for the method."""
    if method == "heads":
        freeze_encoder(model)
    elif method == "lora":
        add_lora(model, rank or DEFAULT_RANK)


def mean_feature(model: AsrModel, data: Examples) -> float:
    """The mean of the features over a few examples, the value of masked cells."""
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
    new, data = examples(options, run)
    masks = SpecAugment(fill=mean_feature(model, new)) if options.augment else None
    return Stage(steps, data, batch_seconds, masks)


def make_anchor(
    options: FinetuneOptions, l2sp: float, model: AsrModel, tokenizer: Tokenizer, run: Path
) -> Anchor | None:
    """The regularization toward the original weights, if there is any."""
    if l2sp:
        return anchor_weights(model, l2sp)
    if not options.ewc:
        return None
    old = training_set(read_manifest(run / REPLAY), run / CACHE)
    model.train()  # CUDA's LSTM has no gradient otherwise
    importance = fisher_information(model, example_losses(model, tokenizer, old))
    return anchor_weights(model, options.ewc, importance)


def example_losses(
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


def _example_loss(model: AsrModel, batch: TrainingBatch, lookahead: int | None) -> Tensor:
    parts = objective(model, batch, lookahead, TrainConfig(1).ctc_weight, True)
    return parts["loss"] * batch.target_lengths.sum()


def validation(options: FinetuneOptions, run: Path, tokenizer: Tokenizer) -> Validate:
    """Word error rates on the validation set and, if given, on the general set."""
    new = errors_on(references(run / VAL), tokenizer)
    if options.regression is None:
        return new
    general = errors_on(references(run / REGRESSION), tokenizer)
    return lambda model: together(new(model), general(model))


def publish(folder: Path, run: Path, model: AsrModel, tokenizer: Tokenizer, half: bool) -> None:
    """Move the model's files into `folder`, the configuration last."""
    model.config = dataclasses.replace(model.config, name=folder.resolve().name)
    draft = run / "model"
    shutil.rmtree(draft, ignore_errors=True)
    save_model(draft, model, tokenizer, torch.float16 if half else None)
    for file in sorted(draft.iterdir(), key=lambda file: file.name == CONFIG_FILE):
        file.replace(folder / file.name)
    draft.rmdir()


def fits_half(model: AsrModel) -> bool:
    """Whether all weights are exact in float16, as those of a model stored in float16."""
    return all(bool((p.half().float() == p).all()) for p in model.parameters())


# -- the whole run ---------------------------------------------------------------------------------


def find_learning_rate(
    options: FinetuneOptions,
    *,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> RateCurve:
    """Try learning rates on the training data; the curve is written into the run's folder."""
    model, tokenizer = read_original(options.model)
    choose_method(options, model.parameter_count())  # raises before files are written
    run = prepare(options, partial(check_material, options, tokenizer, model.config), say)
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
    """Fine-tune and write the model folder; the same call again resumes an interrupted run.

    With `torchrun` several processes train together. Returns None if `minutes` ran out, and on all
    processes but the first. Raises ManifestError for faulty data, OptionError if the folder already
    has a model or a run with other options.
    """
    if is_wav2vec2_family(options.model):
        from pianissimo.train.finetune.ctc import finetune_ctc

        return finetune_ctc(
            options, device=device, minutes=minutes, tensorboard=tensorboard, say=say
        )
    device = local_device(device)
    with joined_world(device) as world:
        model, tokenizer = read_original(options.model)
        half = fits_half(model)
        run = options.out / RUN
        if world.first:
            choose_method(options, model.parameter_count())  # raises before files are written
            prepare(options, partial(check_material, options, tokenizer, model.config), say)
        else:
            say = _nothing
            world.wait()  # until the data is checked and decoded
        plan = make_plan(options, model.parameter_count(), new_seconds(run))
        stage = make_stage(options, model, run, plan.config.steps, plan.batch_seconds)
        if world.first:
            world.wait()
        say(plan.render())
        model.to(device)
        validate = validation(options, run, tokenizer)
        torch.manual_seed(options.seed)
        adapt(model, plan.method, options.rank)
        done, stop = train_model(
            plan.config,
            model,
            tokenizer,
            [stage],
            run,
            validate=validate,
            anchor=make_anchor(options, plan.l2sp, model, tokenizer, run),
            execution=Execution(device, minutes, tensorboard, world),
        )
        if not done or not world.first:
            return None
        assert stop is not None
        merge_lora(model)
        settled = Settled(blank_discount=0.0, blend=1.0)
        if stop.best_step:
            first, _ = read_original(options.model)
            settled = settle(model, first, options.blend, validate, stop)
            say(settled.render())
        publish(options.out, run, model.cpu(), tokenizer, half)
        saved, _ = load_model(options.out)
        scores = stop.first, validate(saved.to(device))
        return write_report(run, plan.method, stop.best_step, scores, settled)


def write_report(
    run: Path,
    method: Method,
    best_step: int,
    scores: tuple[dict[str, float], dict[str, float]],
    settled: Settled,
) -> FinetuneReport:
    """Write the report with the `scores` before and after, and delete what it was made from."""
    (before, old_before), (after, old_after) = (apart(part) for part in scores)
    report = FinetuneReport(
        method,
        best_step,
        before,
        after,
        old_before,
        old_after,
        blank_discount=settled.blank_discount,
        blend=settled.blend,
    )
    report.write(run)
    draw([run], run / PICTURE)
    for leftover in (CHECKPOINT, CACHE):
        shutil.rmtree(run / leftover, ignore_errors=True)
    return report


def _nothing(text: str) -> None:
    """Discard the messages of all processes but the first."""
