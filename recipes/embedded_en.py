"""The embedded English model: 6 M parameters, four latency modes, from 6.6 hours of recordings.

    pianissimo train recipes/embedded_en.py --data DIR --run runs/embedded_en

`DIR` holds `manifest.jsonl` (see docs/training.md). Two stages: CTC alone until the encoder listens, then
transducer and CTC together on the same recordings plus single words cut out of the short-command
corpus by the first stage's own alignment, since a person may well say one word and stop.
"""

import io
from pathlib import Path

import sentencepiece
import torch

from pianissimo.audio.features import FeatureConfig
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.models.fastconformer import EncoderConfig
from pianissimo.models.transducer import TransducerConfig
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.augment import Augmenter, SpecAugment
from pianissimo.train.data import AudioCache, TrainingSet, Utterance, read_manifest
from pianissimo.train.loop import TrainConfig

VOCABULARY = 256
TIMES = {"an4": 2, "librispeech-dev-clean": 1, "speechocean762": 1, "ljspeech": 1}
LONGEST_SECONDS = 18.0
# Mean and deviation of a log-mel cell over augmented training clips.
CELL_MEAN, CELL_DEVIATION = -12.0, 3.5

FEATURES = FeatureConfig(n_mels=80)
ENCODER = EncoderConfig(
    n_mels=80, dim=144, layers=10, heads=4, ff_dim=576, subsampling_channels=64, dropout=0.0
)
MODEL = AsrConfig(
    name="embedded-en",
    language="en",
    vocab_size=VOCABULARY,
    features=FEATURES,
    encoder=ENCODER,
    transducer=TransducerConfig(VOCABULARY, predictor_dim=256, predictor_layers=1, joint_dim=256),
    ctc=True,
)
TRAIN = TrainConfig(
    steps=5800, peak_lr=2.5e-3, warmup_steps=300, clip_norm=2.0, ctc_weight=0.4, save_every=100
)
FIRST_WORDS, ALL_SPEECH = 800, 4400
SHORT_SECONDS = 5.0
AUGMENT = Augmenter()
SPEC_AUGMENT = SpecAugment(
    frequency_masks=2, frequency_width=14, time_masks=4, time_share=0.05, fill=CELL_MEAN
)


def read_data(folder: Path) -> list[Utterance]:
    """The recordings short enough to train on; the model's text is the corpus' own."""
    utterances = read_manifest(folder / "manifest.jsonl")
    return [u for u in utterances if u.duration <= LONGEST_SECONDS and u.text.strip()]


def make_tokenizer(utterances: list[Utterance]) -> Tokenizer:
    """BPE over the transcripts, as often as they are drawn in training."""
    model = io.BytesIO()
    texts = [u.text for u in utterances for _ in range(TIMES[u.extra["subset"]])]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        character_coverage=1.0,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    return Tokenizer.from_sentencepiece(model.getvalue())


def make_set(
    utterances: list[Utterance], run: Path, longest: float, augment: Augmenter | None
) -> TrainingSet:
    items = [
        i
        for i, u in enumerate(utterances)
        for _ in range(TIMES[u.extra["subset"]])
        if u.duration <= longest
    ]
    return TrainingSet(utterances, AudioCache(utterances, run / "cache"), items, augment)


def initialise(model: AsrModel) -> None:
    """Let the first convolution see cells of zero mean and unit deviation."""
    first = model.encoder.subsampling.conv[0]
    with torch.no_grad():
        first.weight /= CELL_DEVIATION
        first.bias -= CELL_MEAN * first.weight.sum(dim=(1, 2, 3))
