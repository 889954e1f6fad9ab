"""Fine-tuning wav2vec 2.0, HuBERT, Data2Vec-Audio, WavLM, MMS and Wav2Vec2-BERT on own recordings.

Transformers has these networks with their dropout, layer drop and masks over time, and a trainer
that saves and resumes them. It trains on the checked data, batches and augmentation of this
package. Word errors are counted on the saved folder, read as `pianissimo.load` reads it. The result
is a folder as Transformers writes it. The convolutions from samples to frames are not trained
(Baevski et al. 2020, section 4.3).
"""

import dataclasses
import json
import math
import operator
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch.utils.data import Sampler, SequentialSampler

from pianissimo.errors import MissingExtraError, OptionError
from pianissimo.evaluate.run import Reference
from pianissimo.models.checkpoints.config_json import CONFIG_FILE, read_json
from pianissimo.models.checkpoints.huggingface import FEATURES_FILE
from pianissimo.models.checkpoints.wav2vec2 import (
    ADDED_TOKENS_FILE,
    PROCESSOR_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_CONFIG_FILE,
    VOCABULARY_FILE,
    read_wav2vec2,
)
from pianissimo.recognizers.transformers_models import (
    load_network,
    load_part,
    open_transformers,
    quiet,
)
from pianissimo.recognizers.wav2vec2 import CtcFamilyRecognizer
from pianissimo.train.curves import draw
from pianissimo.train.early_stop import mean_rate
from pianissimo.train.finetune.adapt import Anchor, anchor_weights, blend
from pianissimo.train.finetune.data_check import Bounds
from pianissimo.train.finetune.letters import LetterCapacity, Letters, RunBatches
from pianissimo.train.finetune.material import (
    CACHE,
    PICTURE,
    REGRESSION,
    RUN,
    VAL,
    Material,
    apart,
    check_material,
    examples,
    new_seconds,
    prepare,
    references,
    together,
)
from pianissimo.train.finetune.plan import FinetuneOptions, FinetunePlan, make_plan
from pianissimo.train.finetune.report import FinetuneReport
from pianissimo.train.log import RunLog
from pianissimo.train.validate import errors_of
from pianissimo.zoo.folder import locate

HfObject: TypeAlias = Any
"""An object of Transformers, whose types are not installed with this package."""
Network: TypeAlias = HfObject
"""A network for CTC of Transformers."""
KEPT_FILES = (
    CONFIG_FILE,
    VOCABULARY_FILE,
    TOKENIZER_CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    FEATURES_FILE,
    PROCESSOR_FILE,
)
"""The files of the original model that are copied."""
BEFORE = "before.json"
LONGEST_SECONDS = 30.0
SPEED_MARGIN = 1.2
"""The largest speed factor of augmentation; a faster recording must still hold a mask."""


# -- before training -------------------------------------------------------------------------------


def open_trainer() -> ModuleType:
    """Transformers with its trainer; MissingExtraError if a package is missing."""
    transformers = open_transformers()
    try:
        import accelerate  # noqa: F401  the trainer would miss it only after minutes
    except ImportError as error:
        raise MissingExtraError(
            "fine-tuning this model needs the accelerate package: pip install "
            "'pianissimo[families,train]'"
        ) from error
    return transformers


def check_ctc(options: FinetuneOptions) -> Material:
    """Check every line of every manifest, with the alphabet of the model."""
    folder = locate(options.model)
    network, alphabet = read_wav2vec2(folder)
    config, frame = read_json(folder / CONFIG_FILE), network.config.frame_seconds
    mask_seconds = (int(config.get("mask_time_length", 10)) + 1) * frame
    bounds = Bounds(max(0.1, SPEED_MARGIN * mask_seconds), LONGEST_SECONDS)
    return check_material(options, Letters(alphabet), LetterCapacity(frame), bounds)


def refuse_foreign(options: FinetuneOptions, device: str) -> None:
    """OptionError for options that only models of this package support."""
    if device.startswith("cuda:") and device != "cuda:0":
        raise OptionError(
            "this model is trained on the first GPU; select one with CUDA_VISIBLE_DEVICES"
        )
    if options.method == "lora":
        raise OptionError("this model family has no LoRA; use --full or --freeze encoder")
    if options.ewc:
        raise OptionError("this model family has no EWC; use --l2sp or --replay")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("this model family trains in one process; start it without torchrun")


def prepare_network(network: Network, options: FinetuneOptions) -> None:
    """Freeze parameters, and set the options of the loss and of the masks."""
    config = network.config
    # By default losses are summed, which favors large batches.
    config.ctc_loss_reduction, config.ctc_zero_infinity = "mean", True
    config.apply_spec_augment = options.augment
    if hasattr(network, "freeze_feature_encoder"):  # Wav2Vec2-BERT has none
        network.freeze_feature_encoder()
    if options.method == "heads":
        network.base_model.requires_grad_(False)


# -- training --------------------------------------------------------------------------------------


def make_arguments(
    transformers: ModuleType,
    options: FinetuneOptions,
    plan: FinetunePlan,
    device: str,
    tensorboard: bool,
) -> HfObject:
    """The plan as training arguments of Transformers."""
    config, cuda = plan.config, device.startswith("cuda")
    half = config.precision
    if half == "auto":
        half = "bfloat16" if cuda and torch.cuda.is_bf16_supported() else "float32"
    arguments = transformers.TrainingArguments(
        output_dir=str(options.out / RUN),
        max_steps=config.steps,
        per_device_train_batch_size=1,  # one of our batches
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.peak_lr,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.final_lr_share},
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip_norm,
        bf16=half == "bfloat16",
        fp16=half == "float16",
        activation_checkpointing=config.recompute,
        logging_steps=1,  # so that curves do not depend on interruptions
        eval_strategy="steps",
        eval_steps=config.validate_every,
        save_strategy="steps",
        save_steps=config.validate_every,
        save_total_limit=1,  # besides the best one
        load_best_model_at_end=True,
        metric_for_best_model="wer",
        greater_is_better=False,
        seed=config.seed,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        report_to=["tensorboard"] if tensorboard else [],
        disable_tqdm=True,
        use_cpu=not cuda,
        restore_callback_states_from_checkpoint=True,  # the remaining patience
    )
    # With several GPUs and one process it would load a batch per GPU and use one.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def make_trainer(
    transformers: HfObject,
    network: Network,
    arguments: HfObject,
    data: RunBatches,
    score: Callable[[Network], dict[str, float]],
    log: RunLog,
    *,
    anchor: Anchor | None,
    patience: int,
    report_every: int,
    minutes: float,
) -> tuple[HfObject, HfObject]:
    """The trainer, and its clock, whose `over` is true after `minutes`.

    The classes are defined here because their bases are imported late.
    """

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        """Ends training after `minutes` with a checkpoint, writes the log, applies the anchor."""

        def __init__(self) -> None:
            self.began, self.over = time.monotonic(), False

        def on_pre_optimizer_step(
            self, args: object, state: HfObject, control: HfObject, **_: object
        ) -> None:
            if anchor is not None:
                anchor.pull(network)

        def on_step_end(
            self, args: object, state: HfObject, control: HfObject, **_: object
        ) -> None:
            late = time.monotonic() - self.began > 60 * minutes
            if late and state.global_step < state.max_steps:
                self.over = control.should_save = control.should_training_stop = True

        def on_log(
            self, args: object, state: HfObject, control: object, logs: HfObject, **_: object
        ) -> None:
            if "loss" in logs:
                step, loss, lr = state.global_step, logs["loss"], logs["learning_rate"]
                log.scores(step, {"loss": loss, "lr": lr}, shown=False)
                if step % report_every == 0:
                    log.say(f"step {step} loss {loss:.3f} lr {lr:.2e}")

    class CtcTrainer(transformers.Trainer):  # type: ignore[misc]
        """Trains on the batches in their order, and evaluates by word error rates."""

        def _get_train_sampler(self, *_: object) -> Sampler[int]:
            return SequentialSampler(data)

        def evaluate(self, *_: object, **__: object) -> dict[str, float]:
            scores = score(self.model)
            self.model.train()
            log.scores(self.state.global_step, scores)
            metrics = {"eval_wer": mean_rate(scores)}
            self.control: HfObject = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
            return metrics

    clock = Clock()
    trainer = CtcTrainer(
        model=network,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,  # required, but not read
        data_collator=operator.itemgetter(0),
        callbacks=[clock, transformers.EarlyStoppingCallback(patience)],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, clock


def newest_checkpoint(run: Path) -> Path | None:
    """The last complete checkpoint; its state is written last."""
    whole = [path.parent for path in run.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)


# -- the whole run ---------------------------------------------------------------------------------


def save_folder(network: Network, original: Path, folder: Path) -> None:
    """Write the weights as Transformers does, with the settings and vocabulary of the original."""
    shutil.rmtree(folder, ignore_errors=True)
    network.save_pretrained(folder)
    for name in KEPT_FILES:
        if (original / name).is_file():
            shutil.copyfile(original / name, folder / name)


def errors_in(folder: Path, references: Sequence[Reference], device: str) -> dict[str, float]:
    """Word error rates of a folder, read as `pianissimo.load` reads it."""
    network, alphabet = read_wav2vec2(folder)
    return errors_of(CtcFamilyRecognizer(network.to(device), alphabet), references)


@dataclasses.dataclass(frozen=True)
class FolderErrors:
    """Word error rates of a folder on the validation set and, if given, on the general set."""

    val: Sequence[Reference]
    general: Sequence[Reference] | None
    device: str

    def __call__(self, folder: Path) -> dict[str, float]:
        new = errors_in(folder, self.val, self.device)
        if self.general is None:
            return new
        return together(new, errors_in(folder, self.general, self.device))


def once(path: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The stored result of `measure`, which is called if there is none."""
    if not path.is_file():
        partial_file = path.with_suffix(".partial")
        partial_file.write_text(json.dumps(measure()), encoding="utf-8")
        partial_file.replace(path)
    scores: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return scores


def finetune_ctc(
    options: FinetuneOptions,
    *,
    device: str = "cpu",
    minutes: float = math.inf,
    tensorboard: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> FinetuneReport | None:
    """Fine-tune a model of the wav2vec 2.0 family and write its folder; as `finetune` otherwise.

    Raises MissingExtraError without Transformers or its trainer, OptionError for options that this
    family does not support.
    """
    transformers = open_trainer()
    refuse_foreign(options, device)
    original, run = locate(options.model), options.out / RUN
    options = dataclasses.replace(options, method=options.method or "full")
    prepare(options, lambda: check_ctc(options), say)
    with quiet(transformers):
        transformers.set_seed(options.seed)
        network = load_network(transformers.AutoModelForCTC, original, torch.float32, "eager")
        extractor = load_part(transformers.AutoFeatureExtractor, original)
        plan = make_plan(options, network.num_parameters(), new_seconds(run))
        say(plan.render())
        prepare_network(network, options)
        arguments = make_arguments(transformers, options, plan, device, tensorboard)
        network.to(arguments.device)
        _, alphabet = read_wav2vec2(original)
        data = RunBatches(
            examples(options, run)[1],
            Letters(alphabet),
            extractor,
            plan.config.steps * plan.config.accumulate,
            plan.batch_seconds,
            options.seed,
        )
        trial = run / "trial"
        general = None if options.regression is None else references(run / REGRESSION)
        errors = FolderErrors(references(run / VAL), general, device)

        def score(network: Network) -> dict[str, float]:
            save_folder(network, original, trial)
            return errors(trial)

        before = once(run / BEFORE, lambda: errors(original))
        newest = newest_checkpoint(run)
        with RunLog(run, plan.config.steps) as log:
            log.resume(-1 if newest is None else int(newest.name.split("-")[1]))
            trainer, clock = make_trainer(
                transformers,
                network,
                arguments,
                data,
                score,
                log,
                anchor=anchor_weights(network, plan.l2sp) if plan.l2sp else None,
                patience=options.patience,
                report_every=plan.config.report_every,
                minutes=minutes,
            )
            trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
        if clock.over:
            return None
        best, share = trainer.state.best_global_step or 0, 1.0
        if trainer.state.best_metric is None or trainer.state.best_metric >= mean_rate(before):
            best = 0
            network = load_network(transformers.AutoModelForCTC, original, torch.float32, "eager")
        elif options.blend is not None:
            share = options.blend
            first = load_network(transformers.AutoModelForCTC, original, torch.float32, "eager")
            blend(network, first, share)
        save_folder(network.cpu(), original, trial)
    for file in sorted(trial.iterdir(), key=lambda file: file.name == CONFIG_FILE):
        file.replace(options.out / file.name)
    return write_report(run, plan, best, share, (before, errors(options.out)))


def write_report(
    run: Path,
    plan: FinetunePlan,
    best_step: int,
    share: float,
    scores: tuple[dict[str, float], dict[str, float]],
) -> FinetuneReport:
    """Write the report with the `scores` before and after, and delete what it was made from."""
    (before, old_before), (after, old_after) = (apart(part) for part in scores)
    report = FinetuneReport(
        plan.method, best_step, before, after, old_before, old_after, blend=share
    )
    report.write(run)
    draw([run], run / PICTURE)
    for leftover in (run / "trial", run / CACHE, *run.glob("checkpoint-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    return report
