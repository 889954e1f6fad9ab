"""The embedded English model: 6 M parameters, four latency modes, from 6.6 hours of recordings.

    python recipes/find_words.py --data DIR --run runs/embedded_en
    python recipes/speak.py --data DIR --sentences FILE --run runs/embedded_en
    pianissimo train recipes/embedded_en.py --data DIR --run runs/embedded_en

`DIR` has `manifest.jsonl` (see docs/training.md), FILE has one sentence per line. The first command
aligns the words, the second makes synthetic commands and sentences. With little data a transducer
overfits to the texts, and CTC predicts only blanks. Therefore the first run begins with the single
words of the command corpus, which need no alignment and are spoken clearly, continues with runs of
words, and ends with whole recordings. The second and third run start from its weights and add other
voices, channels, levels and orders of words. These runs train commands alone. Then the encoder is
trained to classify the phones of all recordings. The fourth run starts from that encoder, with
commands and prose together; a short fifth has more digits. The sixth and the seventh repeat these
two for longer. The eighth starts from the mean of their weights, repeats the fourth, and ends with
faster digits and much distant, noisy and quiet speech. The model is the mean of its first and last
weights.
"""

import io
import json
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch

from pianissimo.audio.features import FeatureConfig
from pianissimo.audio.simulate import draw_responses
from pianissimo.errors import ManifestError
from pianissimo.models.asr import AsrConfig, AsrModel
from pianissimo.models.checkpoints.model_folder import load_model, save_model
from pianissimo.models.fastconformer import EncoderConfig
from pianissimo.models.transducer import TransducerConfig
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.augment import Augmenter, QuietAugmenter, SpecAugment
from pianissimo.train.config import TrainConfig
from pianissimo.train.data import (
    AudioCache,
    Mixture,
    TrainingClip,
    TrainingSet,
    Utterance,
    read_manifest,
    span_clips,
    splice_clips,
)
from pianissimo.train.frames import LABELS_PER_SECOND, AlignedSet, FrameTask, Labels, train_frames
from pianissimo.train.loop import (
    Execution,
    Stage,
    train,
)
from pianissimo.train.validate import streaming_errors

VOCABULARY = 256
TIMES = {"an4": 2, "librispeech-dev-clean": 1, "speechocean762": 1, "ljspeech": 1}
LONGEST_SECONDS = 18.0
# Mean and deviation of a log-mel cell over augmented training clips.
CELL_MEAN, CELL_DEVIATION = -12.0, 3.5
BRANCH_SCALE = 0.3
# Subtracted from the blank's score after training, which is too high. Of 1.0, 1.25 and 1.5 this had
# the fewest errors on development recordings of commands and prose.
BLANK_DISCOUNT = 1.0

FEATURES = FeatureConfig(n_mels=80)
ENCODER = EncoderConfig(n_mels=80, dim=192, layers=6, heads=4, ff_dim=768, subsampling_channels=64)
MODEL = AsrConfig(
    name="embedded-commands",
    language="en",
    vocab_size=VOCABULARY,
    features=FEATURES,
    encoder=ENCODER,
    transducer=TransducerConfig(VOCABULARY, predictor_dim=256, predictor_layers=1, joint_dim=256),
    ctc=True,
    beam=4,
    rescoring=0.5,
)
FIRST = TrainConfig(
    steps=4700,
    peak_lr=1e-3,
    warmup_steps=50,
    clip_norm=2.0,
    ctc_weight=0.4,
    transducer_from=700,
    save_every=100,
)
SECOND = TrainConfig(
    steps=3300,
    peak_lr=3e-4,
    warmup_steps=200,
    flat_until=1500,
    clip_norm=2.0,
    ctc_weight=0.3,
    save_every=100,
    validate_every=2000,
    seed=2,
)
THIRD = TrainConfig(
    steps=4000,
    peak_lr=3e-4,
    warmup_steps=100,
    flat_until=2500,
    clip_norm=2.0,
    ctc_weight=0.3,
    ema_decay=0.998,
    save_every=100,
    seed=3,
)
# Averaged over these steps of the third run, which differ in their best latency modes.
THIRD_KEPT = (1500, 2600, THIRD.steps)
PHONES = (
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W "
    "Y Z ZH SIL"
).split()
HEARING = TrainConfig(
    steps=2800,
    peak_lr=1.2e-3,
    warmup_steps=100,
    flat_until=840,
    final_lr_share=0.03,
    clip_norm=2.0,
    save_every=100,
)
HEARING_LOOKAHEADS = (13, 13, 6, 1, 0)
FOURTH = TrainConfig(
    steps=5400,
    peak_lr=5e-4,
    warmup_steps=150,
    flat_until=2500,
    clip_norm=2.0,
    ctc_weight=0.4,
    ema_decay=0.997,
    save_every=100,
    seed=4,
)
FOURTH_LOOKAHEADS = (13, 13, 6, 1, 0, 0)
FIFTH = TrainConfig(
    steps=500,
    peak_lr=1.5e-4,
    warmup_steps=50,
    flat_until=150,
    clip_norm=2.0,
    ctc_weight=0.4,
    ema_decay=0.99,
    save_every=100,
    seed=5,
)
SIXTH = replace(
    FOURTH,
    steps=7000,
    peak_lr=6e-4,
    warmup_steps=200,
    flat_until=4200,
    ema_decay=0.998,
    seed=6,
)
SEVENTH = replace(FIFTH, steps=700, peak_lr=2e-4, flat_until=200, seed=7)
BRISK_FROM, QUIET_FROM = 4400, 4700
ROOMS = 60
EIGHTH = replace(SIXTH, steps=7000, flat_until=3600, seed=8)
LONGEST_PROSE_SECONDS = 12.0
# The two shortest modes have the most errors, so the last run draws them more often.
THIRD_LOOKAHEADS = (13, 6, 1, 1, 0, 0, 0)
SINGLE_WORDS_UNTIL, COMMANDS_UNTIL, SHORT_UNTIL, MIXED_UNTIL = 700, 1100, 1500, 3100
SHORT_SECONDS = 4.0
SHORTEST_SECONDS, SHORTEST_WORD, SHORTEST_RUN = 0.12, 0.15, 0.25
PLAIN = Augmenter(
    speeds=(0.95, 1.0, 1.05),
    gain_db=(-3.0, 3.0),
    noise_probability=0.0,
    room_probability=0.0,
    telephone_probability=0.0,
    pad_probability=0.0,
)
LIGHT = Augmenter(
    gain_db=(-12.0, 3.0),
    noise_probability=0.1,
    snr_db=(15.0, 35.0),
    room_probability=0.0,
    telephone_probability=0.1,
)
FULL = Augmenter(
    gain_db=(-20.0, 6.0),
    noise_probability=0.25,
    room_probability=0.15,
    telephone_probability=0.25,
)
TELEPHONE = Augmenter(
    gain_db=(-20.0, 6.0),
    noise_probability=0.2,
    room_probability=0.15,
    telephone_probability=0.5,
    pad_probability=0.5,
)
SPEEDS = (0.84, 0.9, 0.95, 1.0, 1.05, 1.1, 1.16)
ANYWHERE = Augmenter(
    speeds=SPEEDS,
    level_dbfs=(-48.0, -14.0),
    color_probability=0.5,
    noise_probability=0.3,
    snr_db=(8.0, 35.0),
    room_probability=0.15,
    telephone_probability=0.25,
)
IN_PLACE = replace(ANYWHERE, speeds=(1.0,), pad_probability=0.0)
BY_LINE = Augmenter(
    speeds=SPEEDS,
    level_dbfs=(-48.0, -14.0),
    color_probability=0.7,
    noise_probability=0.3,
    snr_db=(8.0, 35.0),
    room_probability=0.15,
    telephone_probability=0.7,
    pad_probability=0.4,
    late_probability=0.6,
)
# Single digits are spoken fast: some of the development recordings last 0.2 s.
BRISK = replace(BY_LINE, speeds=(0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5))
DIGITS = frozenset("zero oh one two three four five six seven eight nine".split())
SPEC_AUGMENT = SpecAugment(
    frequency_masks=2, frequency_width=10, time_masks=2, time_share=0.05, fill=CELL_MEAN
)
# Vocal tracts shorter and longer than the recorded ones, for unknown voices.
WARPED = replace(SPEC_AUGMENT, warp=(0.85, 1.2))


def read_data(folder: Path) -> list[Utterance]:
    """The recordings that are short enough, with the texts of the corpora."""
    utterances = read_manifest(folder / "manifest.jsonl")
    return [u for u in utterances if u.duration <= LONGEST_SECONDS and u.text.strip()]


def make_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A BPE tokenizer of the texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocabulary,
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


def read_words(run: Path) -> dict[int, list[tuple[str, float, float]]]:
    """Word times per recording, as `find_words.py` wrote them."""
    return {row["recording"]: [tuple(w) for w in row["words"]] for row in _alignments(run)}


def read_phones(run: Path) -> dict[int, Labels]:
    """The index in PHONES for each 10 ms of a recording, as `find_words.py` wrote them."""
    silence, labels = PHONES.index("SIL"), {}
    for row in _alignments(run):
        if not row["phones"]:
            continue
        phone_ids = np.full(round(row["phones"][-1][2] * LABELS_PER_SECOND), silence, np.int64)
        for phone, start, end in row["phones"]:
            cut = slice(round(start * LABELS_PER_SECOND), round(end * LABELS_PER_SECOND))
            phone_ids[cut] = PHONES.index(phone) if phone in PHONES else silence  # noises
        labels[row["recording"]] = phone_ids
    return labels


def _alignments(run: Path) -> list[dict[str, Any]]:
    path = run / "words.jsonl"
    if not path.is_file():
        raise ManifestError(f"{path} is not there: run recipes/find_words.py with the same --run")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_voices(run: Path, kind: str = "spoken") -> list[Utterance]:
    """The synthetic speech of `speak.py`: commands in "spoken", sentences in "prose"."""
    path = run / kind / "manifest.jsonl"
    if not path.is_file():
        raise ManifestError(f"{path} is not there: run recipes/speak.py with this --run")
    return read_manifest(path)


def plain(text: str) -> str:
    """Lower case without punctuation, as most of the recordings are written."""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " ")).split())


def first_stages(utterances: list[Utterance], run: Path) -> list[Stage]:
    """From single words to whole recordings; the last stage still has some single words."""
    audio, words = AudioCache(utterances, run / "cache"), read_words(run)
    subset = [u.extra["subset"] for u in utterances]
    rng = random.Random(FIRST.seed)

    def runs(longest: int, margin_seconds: float = 0.04) -> list[TrainingClip]:
        return [
            clip
            for i, aligned in words.items()
            for _ in range(TIMES[subset[i]])
            for clip in span_clips(i, aligned, longest, rng, margin_seconds)
        ]

    def commands(clips: list[TrainingClip]) -> list[TrainingClip]:
        return [clip for clip in clips if subset[clip.recording] == "an4"]

    whole = [
        TrainingClip(i, 0.0, u.duration, u.text)
        for i, u in enumerate(utterances)
        for _ in range(TIMES[subset[i]])
    ]
    single, short = commands(runs(1)), runs(5)
    brief = [clip for clip in whole if clip.end < SHORT_SECONDS]
    # Three quarters are commands, for which the data suffices.
    most = [*commands(whole) * 3, *commands(short) * 2, *single]
    most += [c for c in whole if subset[c.recording] == "speechocean762"]
    most += [c for c in brief if subset[c.recording] == "librispeech-dev-clean"]
    digits = [c for c in commands(runs(1, margin_seconds=0.0)) if c.text in DIGITS]
    last = [*commands(whole) * 3, *commands(short), *single, *digits * 2]
    last += [c for c in brief if subset[c.recording] == "speechocean762"]
    return [
        Stage(SINGLE_WORDS_UNTIL, TrainingSet(audio, single, PLAIN), 20.0),
        Stage(
            COMMANDS_UNTIL,
            TrainingSet(audio, [*single, *commands(short), *commands(whole)], LIGHT),
            30.0,
        ),
        Stage(SHORT_UNTIL, TrainingSet(audio, [*short, *brief, *single], LIGHT), 40.0),
        Stage(MIXED_UNTIL, TrainingSet(audio, most, FULL), 40.0, SPEC_AUGMENT),
        Stage(FIRST.steps, TrainingSet(audio, last, TELEPHONE), 30.0, SPEC_AUGMENT),
    ]


def later_mixture(
    utterances: list[Utterance], run: Path, digit_times: int, by_line: Augmenter = BY_LINE
) -> Mixture:
    """More voices, channels and orders of words, around commands and digits."""
    audio, words = AudioCache(utterances, run / "cache"), read_words(run)
    subset = [u.extra["subset"] for u in utterances]
    rng = random.Random(SECOND.seed)
    whole = [TrainingClip(i, 0.0, u.duration, u.text) for i, u in enumerate(utterances)]
    commands = [clip for clip in whole if subset[clip.recording] == "an4"]
    tight = [c for i, aligned in words.items() for c in span_clips(i, aligned, 1, rng, 0.01)]
    tight = [c for c in tight if c.end - c.start > SHORTEST_SECONDS]
    digits = [c for c in tight if c.text in DIGITS]
    digits += 3 * [c for c in digits if subset[c.recording] != "an4"]
    spoken: dict[str, list[TrainingClip]] = {}
    for clip in tight:
        if subset[clip.recording] == "an4":
            spoken.setdefault(utterances[clip.recording].extra["speaker"], []).append(clip)
    single = [clip for clips in spoken.values() for clip in clips]
    letters = [clip for clip in single if len(clip.text) == 1]
    orders = [clip for clip in single if len(clip.text) > 1 and clip.text not in DIGITS]
    spliced = [
        splice
        for speaker in sorted(spoken)
        for splice in splice_clips(spoken[speaker], 30, 8, (0.0, 0.05, 0.1, 0.2), rng)
    ]
    voices = read_voices(run)
    synthetic = [TrainingClip(i, 0.0, u.duration, u.text) for i, u in enumerate(voices)]
    voiced_digits = [clip for clip in synthetic if clip.text in DIGITS]
    others = [clip for clip in synthetic if clip.text not in DIGITS]
    voices_audio = AudioCache(voices, run / "cache")
    return Mixture(
        [
            TrainingSet(audio, [*commands * 3, *spliced, *orders, *letters[::4]], ANYWHERE),
            TrainingSet(audio, digits * digit_times, by_line),
            TrainingSet(voices_audio, others, ANYWHERE),
            TrainingSet(voices_audio, voiced_digits * digit_times, by_line),
        ]
    )


def second_stages(utterances: list[Utterance], run: Path) -> list[Stage]:
    """The mixture, at every latency mode alike."""
    return [Stage(SECOND.steps, later_mixture(utterances, run, 2), 30.0, SPEC_AUGMENT)]


def third_stages(utterances: list[Utterance], run: Path) -> list[Stage]:
    """More digits, more voices, and the short latency modes more often."""
    mixture = later_mixture(utterances, run, 6)
    return [Stage(THIRD.steps, mixture, 30.0, WARPED, THIRD_LOOKAHEADS)]


def fourth_stages(utterances: list[Utterance], run: Path) -> list[Stage]:
    """Commands as before, and prose."""
    mixture = Mixture([*later_mixture(utterances, run, 3).sets, *prose_sets(utterances, run, 2)])
    return [Stage(FOURTH.steps, mixture, 40.0, WARPED, FOURTH_LOOKAHEADS)]


def fifth_stages(utterances: list[Utterance], run: Path) -> list[Stage]:
    """More digits, less prose, and the short latency modes more often."""
    mixture = Mixture([*later_mixture(utterances, run, 6).sets, *prose_sets(utterances, run, 0)])
    return [Stage(FIFTH.steps, mixture, 40.0, WARPED, THIRD_LOOKAHEADS)]


def sixth_stages(utterances: list[Utterance], run: Path) -> list[Stage]:
    """The fourth run again, for longer."""
    return [replace(stage, until=SIXTH.steps) for stage in fourth_stages(utterances, run)]


def seventh_stages(utterances: list[Utterance], run: Path) -> list[Stage]:
    """The fifth run again, for longer."""
    return [replace(stage, until=SEVENTH.steps) for stage in fifth_stages(utterances, run)]


def eighth_stages(utterances: list[Utterance], run: Path) -> list[Stage]:
    """The fourth run again, from the mean of the previous two; then with faster digits.

    The last part also has much distant, noisy and quiet speech.
    """
    commands = later_mixture(utterances, run, 5, BRISK).sets
    brisk = [*commands, *prose_sets(utterances, run, 2)]
    quiet = QuietAugmenter(draw_responses(ROOMS, EIGHTH.seed))
    utterances = [replace(u, text=plain(u.text)) for u in utterances]
    whole = [TrainingClip(i, 0.0, u.duration, u.text) for i, u in enumerate(utterances)]
    far = [c for c in whole if c.end < LONGEST_PROSE_SECONDS]
    far += 2 * [c for c in whole if utterances[c.recording].extra["subset"] == "an4"]
    soft = TrainingSet(AudioCache(utterances, run / "cache"), far, quiet)
    return [
        *(replace(stage, until=BRISK_FROM) for stage in fourth_stages(utterances, run)),
        Stage(QUIET_FROM, Mixture(brisk), 40.0, WARPED, FOURTH_LOOKAHEADS),
        Stage(EIGHTH.steps, Mixture([*brisk, soft]), 40.0, WARPED, FOURTH_LOOKAHEADS),
    ]


def prose_sets(utterances: list[Utterance], run: Path, runs_times: int) -> list[TrainingSet]:
    """Prose: whole, in runs of words, in new orders, and synthetic."""
    utterances = [replace(u, text=plain(u.text)) for u in utterances]
    audio = AudioCache(utterances, run / "cache")
    prose = {i for i, u in enumerate(utterances) if u.extra["subset"] != "an4"}
    words = {
        i: [(plain(word), start, end) for word, start, end in aligned if plain(word)]
        for i, aligned in read_words(run).items()
        if i in prose
    }
    rng = random.Random(11)
    whole = [
        TrainingClip(i, 0.0, utterances[i].duration, utterances[i].text)
        for i in sorted(prose)
        if utterances[i].duration < LONGEST_PROSE_SECONDS
    ]
    runs = [clip for i, aligned in words.items() for clip in span_clips(i, aligned, 9, rng, 0.03)]
    by_speaker: dict[str, list[TrainingClip]] = {}
    for i, aligned in words.items():
        clips = [c for c in span_clips(i, aligned, 1, rng, 0.02) if c.end - c.start > SHORTEST_WORD]
        by_speaker.setdefault(utterances[i].extra["speaker"], []).extend(clips)
    spliced = [
        splice
        for _, single in sorted(by_speaker.items())
        for splice in splice_clips(
            single, max(4, len(single) // 12), 6, (0.0, 0.0, 0.05, 0.15), rng
        )
    ]
    runs = [clip for clip in runs if clip.end - clip.start > SHORTEST_RUN]
    voices = read_voices(run, "prose")
    synthetic = [TrainingClip(i, 0.0, u.duration, plain(u.text)) for i, u in enumerate(voices)]
    return [
        TrainingSet(audio, [*whole, *runs * runs_times, *spliced], ANYWHERE),
        TrainingSet(AudioCache(voices, run / "cache"), synthetic, ANYWHERE),
    ]


def initialize(model: AsrModel) -> None:
    """Initialize so that the signal reaches the head.

    The usual small weights and random biases of the subsampling leave a signal a hundred times
    smaller than its biases; it gets weights that keep the scale of its input. Each
    layer begins close to the identity; without it training learned only word frequencies.
    """
    subsampling = model.encoder.subsampling
    with torch.no_grad():
        for conv in [*subsampling.conv, *subsampling.pointwise]:
            nonlinearity = "relu" if conv.groups == 1 else "linear"
            torch.nn.init.kaiming_normal_(conv.weight, nonlinearity=nonlinearity)
            torch.nn.init.zeros_(conv.bias)
        torch.nn.init.xavier_normal_(subsampling.out.weight)
        torch.nn.init.zeros_(subsampling.out.bias)
        first = subsampling.conv[0]
        first.weight /= CELL_DEVIATION
        first.bias -= CELL_MEAN * first.weight.sum(dim=(1, 2, 3))
        for layer in model.encoder.layers:
            for branch in (layer.ff1.down, layer.attention.out, layer.conv.down, layer.ff2.down):
                branch.weight *= BRANCH_SCALE


def copying(*folders: Path) -> Callable[[AsrModel], None]:
    """An initialization from the mean of the weights of model folders."""

    def copy(model: AsrModel) -> None:
        model.load_state_dict(mean(folders).state_dict())

    return copy


def mean(folders: Sequence[Path]) -> AsrModel:
    """The model whose weights are the mean of those of several."""
    model, _ = load_model(folders[0])
    others = [load_model(folder)[0].state_dict() for folder in folders[1:]]
    for name, weight in model.state_dict().items():
        weight.copy_(torch.stack([weight, *(other[name] for other in others)]).mean(0))
    return model


def main(
    data: Path,
    run: Path,
    *,
    dev: Path | None = None,
    device: str = "cpu",
    minutes: float = math.inf,
    tensorboard: bool = False,
) -> None:
    """Train or resume, and write the model folder `run/model` when all runs are done.

    `dev` is a manifest whose word error rates are reported during training.
    """
    run.mkdir(parents=True, exist_ok=True)
    utterances = read_data(data)
    saved = run / "tokenizer.model"
    if not saved.exists():
        # Each text as often as it is drawn in the first run.
        texts = [u.text for u in utterances for _ in range(TIMES[u.extra["subset"]])]
        saved.write_bytes(make_tokenizer(texts, VOCABULARY).to_bytes())
    tokenizer = Tokenizer.from_sentencepiece(saved.read_bytes())
    deadline = time.monotonic() + 60 * minutes

    def learn(
        name: str,
        config: TrainConfig,
        make_stages: Callable[[list[Utterance], Path], list[Stage]],
        kept: Sequence[int],
        start: Callable[[AsrModel], None],
    ) -> Path | None:
        """The folder of the mean of the kept steps of a run; None if time ran out."""
        done = run / name / "model"
        if done.is_dir():
            return done
        for step in kept:
            if (run / name / f"step-{step}").is_dir():
                continue
            model, finished = train(
                config,
                MODEL,
                tokenizer,
                [replace(s, until=min(s.until, step)) for s in make_stages(utterances, run)],
                run / name,
                initialize=start,
                validate=streaming_errors(dev, tokenizer) if dev else None,
                device=device,
                minutes=(deadline - time.monotonic()) / 60,
                tensorboard=tensorboard,
            )
            if not finished:
                return None
            save_model(run / name / f"step-{step}", model.cpu(), tokenizer)
        save_model(done, mean([run / name / f"step-{step}" for step in kept]), tokenizer)
        return done

    start = initialize
    for name, config, make_stages, kept in (
        ("first", FIRST, first_stages, (FIRST.steps,)),
        ("second", SECOND, second_stages, (SECOND.steps,)),
        ("third", THIRD, third_stages, THIRD_KEPT),
    ):
        done = learn(name, config, make_stages, kept, start)
        if done is None:
            return
        start = copying(done)
    pretrained = run / "hearing" / "model"
    if not pretrained.is_dir():
        model, _ = load_model(done)
        audio = AudioCache(utterances, run / "cache")
        finished = train_frames(
            HEARING,
            model.encoder,
            model.features,
            AlignedSet(audio, read_phones(run), IN_PLACE, SPEEDS),
            FrameTask(len(PHONES), PHONES.index("SIL")),
            run / "hearing",
            spec_augment=WARPED,
            lookaheads=HEARING_LOOKAHEADS,
            execution=Execution(device, (deadline - time.monotonic()) / 60, tensorboard),
        )
        if not finished:
            return
        save_model(pretrained, model.cpu(), tokenizer)
    done = learn("fourth", FOURTH, fourth_stages, (FOURTH.steps,), copying(pretrained))
    if done is None:
        return
    done = learn("fifth", FIFTH, fifth_stages, (FIFTH.steps,), copying(done))
    if done is None:
        return
    sixth = learn("sixth", SIXTH, sixth_stages, (SIXTH.steps,), copying(done))
    if sixth is None:
        return
    seventh = learn("seventh", SEVENTH, seventh_stages, (SEVENTH.steps,), copying(sixth))
    if seventh is None:
        return
    eighth = learn("eighth", EIGHTH, eighth_stages, (EIGHTH.steps,), copying(sixth, seventh))
    if eighth is None:
        return
    model = mean([eighth, eighth, sixth, seventh])  # half of it is the start of the eighth
    assert model.joiner is not None
    with torch.no_grad():
        model.joiner.out.bias[-1] -= BLANK_DISCOUNT
    save_model(run / "model", model, tokenizer, dtype=torch.float16)
