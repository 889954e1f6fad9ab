import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tiny import ENCODER, MELS
from tones import WORDS, sentences, spoken

from pianissimo.audio.features import FeatureConfig, MelFeatures
from pianissimo.errors import OptionError
from pianissimo.models.fastconformer import FastConformerEncoder
from pianissimo.train.augment import Augmenter
from pianissimo.train.config import TrainConfig
from pianissimo.train.data import AudioCache, Utterance
from pianissimo.train.frames import (
    UNKNOWN,
    AlignedSet,
    FrameBatch,
    FrameClassifier,
    FrameTask,
    train_frames,
)
from pianissimo.train.loop import (
    Execution,
)

RATE = 16_000
SILENCE = len(WORDS)
TASK = FrameTask(symbols=SILENCE + 1, silence=SILENCE)
CONFIG = TrainConfig(
    steps=60, peak_lr=5e-3, warmup_steps=5, save_every=1000, report_every=10, workers=0
)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> AlignedSet:
    """Tones whose labels are known: 0.3 s of silence, then each word and 0.3 s of silence."""
    folder = tmp_path_factory.mktemp("aligned")
    utterances, labels = [], {}
    for i, text in enumerate(sentences(12)):
        samples = spoken(text, seed=i)
        soundfile.write(folder / f"{i}.wav", samples, RATE, subtype="PCM_16")
        utterances.append(Utterance(folder / f"{i}.wav", len(samples) / RATE, text))
        order = [SILENCE, *(n for w in text.split() for n in (sorted(WORDS).index(w), SILENCE))]
        labels[i] = np.repeat(np.array(order), 30)
    return AlignedSet(AudioCache(utterances, folder / "cache"), labels)


def make_encoder() -> FastConformerEncoder:
    torch.manual_seed(0)
    return FastConformerEncoder(ENCODER)


def features() -> MelFeatures:
    return MelFeatures(FeatureConfig(n_mels=MELS))


def test_the_labels_of_an_encoder_frame_are_those_of_its_new_mel_frames() -> None:
    labels = np.arange(100)  # the label of each 10 ms is its number
    targets = FrameTask(symbols=100, silence=0, delay=0).targets(labels, 32, factor=8)
    # Frame s sees mel frames up to 8 s, the last eight of them as the first.
    assert targets.tolist()[1:5] == [
        [8 * s - 7, 8 * s - 5, 8 * s - 3, 8 * s - 1] for s in (1, 2, 3, 4)
    ]
    assert (targets[0] == UNKNOWN).all()
    late = FrameTask(symbols=100, silence=0, delay=4).targets(labels, 32, factor=8)
    assert torch.equal(late[2], targets[2] - 4)
    assert (FrameTask(2, 0).targets(labels[:0], 16, factor=8) == UNKNOWN).all()


def test_labels_follow_the_speed(aligned: AlignedSet) -> None:
    plain_samples, plain = aligned.example(0, random.Random(0))
    fast_samples, fast = replace(aligned, speeds=(1.25,)).example(0, random.Random(0))
    assert len(fast) == round(len(plain) / 1.25)
    assert abs(len(fast_samples) - len(plain_samples) / 1.25) < RATE / 100
    # The first change from silence to a word comes as much sooner.
    assert int(np.argmax(fast != SILENCE)) == pytest.approx(30 / 1.25, abs=1)


def test_long_recordings_are_cut_with_their_labels(aligned: AlignedSet) -> None:
    short = replace(aligned, longest_seconds=0.5)
    assert max(short.durations()) == 0.5
    for seed in range(5):
        samples, labels = short.example(1, random.Random(seed))
        assert len(samples) == len(labels) * RATE // 100 == RATE // 2
        for block, label in zip(samples.reshape(-1, RATE // 100), labels, strict=True):
            assert (np.abs(block).max() > 0.1) == (label != SILENCE)


@pytest.mark.parametrize(
    "augment",
    [
        Augmenter(speeds=(0.9, 1.0), pad_probability=0.0),
        Augmenter(speeds=(1.0,), pad_probability=0.5),
        Augmenter(speeds=(1.0,), pad_probability=0.0, late_probability=0.1),
    ],
)
def test_an_augmenter_that_moves_the_time_is_refused(
    aligned: AlignedSet, augment: Augmenter
) -> None:
    with pytest.raises(OptionError, match="labels would not fit"):
        replace(aligned, augment=augment)


@torch.no_grad()
def test_loss_is_the_cross_entropy_over_known_labels_with_silence_at_half_weight() -> None:
    namer = FrameClassifier(make_encoder(), TASK).eval()
    torch.manual_seed(1)
    mel, lengths = torch.randn(2, 40, MELS), torch.tensor([40, 24])
    labels = torch.randint(0, TASK.symbols, (2, 6, TASK.per_frame))
    labels[0, 2] = UNKNOWN
    loss, right = namer(FrameBatch(mel, lengths, labels), ENCODER.lookaheads[0])
    encoded, counts = namer.encoder(mel, lengths, ENCODER.lookaheads[0])
    total = weight = hits = words = 0.0
    for row in range(2):
        for frame in range(int(counts[row])):
            scores = namer.head(encoded[row, frame]).reshape(TASK.per_frame, TASK.symbols)
            for n, label in enumerate(labels[row, frame].tolist()):
                if label == UNKNOWN:
                    continue
                w = 0.5 if label == SILENCE else 1.0
                total -= w * float(torch.log_softmax(scores[n], -1)[label])
                weight += w
                words += label != SILENCE
                hits += label != SILENCE and int(scores[n].argmax()) == label
    assert float(loss) == pytest.approx(total / weight, rel=1e-5)
    assert float(right) == pytest.approx(hits / words)


def test_an_encoder_learns_to_classify_tones(aligned: AlignedSet, tmp_path: Path) -> None:
    encoder = make_encoder()
    done = train_frames(CONFIG, encoder, features(), aligned, TASK, tmp_path, batch_seconds=8.0)
    assert done
    rows = [json.loads(row) for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["right"] > 0.8 > rows[0]["right"]


def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    aligned: AlignedSet, tmp_path: Path
) -> None:
    config = replace(CONFIG, steps=12)
    whole = make_encoder()
    assert train_frames(config, whole, features(), aligned, TASK, tmp_path / "whole")
    stops = 0
    brief = Execution(minutes=1e-9)
    folder = tmp_path / "parts"
    while not train_frames(
        config, parts := make_encoder(), features(), aligned, TASK, folder, execution=brief
    ):
        stops += 1
    assert stops > 1
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_features_of_another_hop_are_refused(aligned: AlignedSet, tmp_path: Path) -> None:
    wide = MelFeatures(FeatureConfig(n_mels=MELS, hop_samples=200))
    with pytest.raises(OptionError, match="expected that of the labels"):
        train_frames(CONFIG, make_encoder(), wide, aligned, TASK, tmp_path)
