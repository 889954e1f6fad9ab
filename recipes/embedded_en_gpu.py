"""A larger English model for one datacenter GPU and about 25 minutes, while 16 cores synthesize.

    pianissimo train recipes/embedded_en_gpu.py --data DIR --run runs/embedded_en_gpu --device cuda

This recipe has not been run on a GPU. Shapes, stages and resuming are tested on a CPU at a small
size; batches and steps are an estimate for 16 cores. Error rates are unknown.

`DIR` has `manifest.jsonl` (see docs/training.md) and `sentences.txt` with one sentence per line, in
the case and with the marks that the model should write. The workers that prepare batches synthesize
speech, in a new voice each time, without files. The first stage has short commands, which are easy
to align for CTC; then come sentences, the transducer, and human recordings, each drawn several
times per epoch. The installed synthesizers are used; recipes/speak.py lists their packages.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from embedded_en import CELL_MEAN, LONGEST_SECONDS, initialize, make_tokenizer
from speak import HELD_OUT_ENGINE

from pianissimo.audio.features import FeatureConfig
from pianissimo.errors import ManifestError
from pianissimo.models.asr import AsrConfig
from pianissimo.models.checkpoints.model_folder import save_model
from pianissimo.models.fastconformer import EncoderConfig
from pianissimo.models.transducer import TransducerConfig
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.augment import Augmenter, SpecAugment
from pianissimo.train.config import TrainConfig
from pianissimo.train.data import (
    AudioCache,
    Replay,
    TrainingClip,
    TrainingSet,
    Utterance,
    read_manifest,
)
from pianissimo.train.loop import (
    Stage,
    train,
)
from pianissimo.train.synthesize import Prompt, SpokenSet, compose_commands, installed_engines
from pianissimo.train.validate import streaming_errors

MOST_WORDS = 16
AUGMENT = Augmenter(
    speeds=(0.84, 0.9, 0.95, 1.0, 1.05, 1.1, 1.16),
    level_dbfs=(-48.0, -14.0),
    color_probability=0.5,
    noise_probability=0.3,
    snr_db=(5.0, 35.0),
    room_probability=0.25,
    telephone_probability=0.2,
)
MASKS = SpecAugment(
    frequency_masks=2, frequency_width=10, time_masks=4, time_share=0.05, fill=CELL_MEAN
)


@dataclass(frozen=True)
class Setting:
    """One size of the recipe: the model, the run, and the shares of the data.

    Stages end at `commands_until`, `sentences_until` and with the run; in the last one
    `spoken_share` of the seconds are synthetic and every recording is drawn `times` per epoch.
    """

    vocabulary: int
    encoder: EncoderConfig
    transducer: TransducerConfig
    config: TrainConfig
    commands: int
    commands_until: int
    sentences_until: int
    batch_seconds: float
    spoken_share: float = 0.6
    times: int = 3

    @property
    def model(self) -> AsrConfig:
        return AsrConfig(
            name="embedded-commands-gpu",
            language="en",
            vocab_size=self.vocabulary,
            features=FeatureConfig(n_mels=self.encoder.n_mels),
            encoder=self.encoder,
            transducer=self.transducer,
            ctc=True,
        )


GPU = Setting(
    vocabulary=1024,
    encoder=EncoderConfig(
        n_mels=80, dim=256, layers=16, heads=4, ff_dim=1024, subsampling_channels=128, dropout=0.1
    ),
    transducer=TransducerConfig(1024, predictor_dim=320, predictor_layers=1, joint_dim=320),
    config=TrainConfig(
        steps=2400,
        peak_lr=1e-3,
        warmup_steps=200,
        flat_until=1200,
        clip_norm=2.0,
        transducer_from=400,
        save_every=200,
        validate_every=600,
        workers=15,
        precision="auto",  # bfloat16
    ),
    commands=40_000,
    commands_until=200,
    sentences_until=800,
    batch_seconds=600.0,
)


def read_sentences(path: Path) -> list[str]:
    """The sentences that are short enough; ManifestError without the file."""
    if not path.is_file():
        raise ManifestError(f"{path} is not there: it holds a sentence a line, to be spoken")
    lines = map(str.strip, path.read_text(encoding="utf-8").splitlines())
    sentences = [line for line in lines if 2 <= len(line.split()) <= MOST_WORDS]
    if not sentences:
        raise ManifestError(f"{path} has no sentence of 2 to {MOST_WORDS} words")
    return sentences


def make_stages(
    setting: Setting, utterances: list[Utterance], sentences: list[str], run: Path
) -> list[Stage]:
    """Commands; then sentences as well; then human recordings mixed with both."""
    engines = [engine for engine in installed_engines() if engine != HELD_OUT_ENGINE]
    seed = setting.config.seed
    words = " ".join(sentences).lower().split()
    said = compose_commands(setting.commands, seed, words)
    read = [Prompt(sentence, spelled=False) for sentence in sentences]
    both = [*said, *read]
    random.Random(seed).shuffle(both)
    short = [prompt for prompt in said if len(prompt.text.split()) <= 3]
    clips = [TrainingClip(i, 0.0, u.duration, u.text) for i, u in enumerate(utterances)]
    people = TrainingSet(AudioCache(utterances, run / "cache"), clips * setting.times, AUGMENT)
    spoken = SpokenSet(both, engines, AUGMENT)
    seconds = setting.batch_seconds
    return [
        Stage(setting.commands_until, SpokenSet(short, engines, AUGMENT), seconds / 2),
        Stage(setting.sentences_until, spoken, seconds, MASKS),
        Stage(setting.config.steps, Replay(people, spoken, setting.spoken_share), seconds, MASKS),
    ]


def run_setting(
    setting: Setting,
    data: Path,
    run: Path,
    *,
    dev: Path | None = None,
    device: str = "cpu",
    minutes: float = math.inf,
    tensorboard: bool = False,
) -> None:
    """Train or resume; write `run/model` in half precision when training is done."""
    run.mkdir(parents=True, exist_ok=True)
    utterances = [
        u for u in read_manifest(data / "manifest.jsonl") if u.duration <= LONGEST_SECONDS
    ]
    sentences = read_sentences(data / "sentences.txt")
    saved = run / "tokenizer.model"
    if not saved.exists():
        texts = [*sentences, *(u.text for u in utterances)]
        texts += [p.text for p in compose_commands(1000, 0, " ".join(sentences).lower().split())]
        saved.write_bytes(make_tokenizer(texts, setting.vocabulary).to_bytes())
    tokenizer = Tokenizer.from_sentencepiece(saved.read_bytes())
    model, done = train(
        setting.config,
        setting.model,
        tokenizer,
        make_stages(setting, utterances, sentences, run),
        run,
        initialize=initialize,
        validate=streaming_errors(dev, tokenizer) if dev else None,
        device=device,
        minutes=minutes,
        tensorboard=tensorboard,
    )
    if done:
        save_model(run / "model", model.cpu(), tokenizer, dtype=torch.float16)


def main(
    data: Path,
    run: Path,
    *,
    dev: Path | None = None,
    device: str = "cpu",
    minutes: float = math.inf,
    tensorboard: bool = False,
) -> None:
    """The setting for a GPU, on any device."""
    run_setting(GPU, data, run, dev=dev, device=device, minutes=minutes, tensorboard=tensorboard)
