"""A training set of tones and a model that can learn it, shared by the tests of the loop."""

import dataclasses
import sys
from pathlib import Path

import pytest
from tiny import ENCODER, MELS
from tones import sentences, write_clips

from pianissimo.audio.features import FeatureConfig
from pianissimo.models.asr import AsrConfig
from pianissimo.models.transducer import TransducerConfig
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.data import AudioCache, TrainingClip, TrainingSet, read_manifest

# Tiny checkpoints of other people's layouts are made there.
sys.path.append(str(Path(__file__).parents[1] / "models" / "checkpoints"))


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """Sixteen clips of one to four words, 1.4 s on average."""
    folder = tmp_path_factory.mktemp("tones")
    utterances = read_manifest(write_clips(folder, "train", list(sentences(16))))
    clips = [TrainingClip(i, 0.0, u.duration, u.text) for i, u in enumerate(utterances)]
    return TrainingSet(AudioCache(utterances, folder / "cache"), clips)


@pytest.fixture(scope="session")
def tone_model(tiny_tokenizer: Tokenizer) -> AsrConfig:
    """A model of both heads, small enough for a step in milliseconds."""
    V = tiny_tokenizer.vocab_size
    return AsrConfig(
        vocab_size=V,
        features=FeatureConfig(n_mels=MELS),
        encoder=dataclasses.replace(ENCODER, conv_kernel=5),
        transducer=TransducerConfig(V, 12, 1, 16),
        ctc=True,
        max_symbols=3,
    )
