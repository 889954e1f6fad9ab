"""Our numbers against an oracle's: one function per thing compared, for golden and live outputs.

Shape legend: B batch, N samples, T mel frames, F mel bins, S encoder frames, D width, U tokens.
The keys of the arrays are explained at the top of `oracle_nemo.py` and `oracle_hf.py`.
"""

import copy
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_inputs import CLIP_SAMPLES, mel, waveform
from safetensors.torch import load_file
from torch import Tensor

from pianissimo.audio.features import normalize_per_feature
from pianissimo.decoding.confidence import Confidence
from pianissimo.decoding.ctc import CtcGreedySearch
from pianissimo.decoding.greedy import GreedySearch
from pianissimo.decoding.token import Hypothesis
from pianissimo.models.asr import AsrModel
from pianissimo.models.checkpoints.format import foreign_weights
from pianissimo.models.checkpoints.huggingface import huggingface_names, read_huggingface
from pianissimo.models.checkpoints.nemo import nemo_names, read_nemo, to_nemo_names
from pianissimo.text.tokenizer import Tokenizer

FEATURES = 2e-6
NORMALISED_FEATURES = 2e-5
SHORT_FEATURES = 1e-3
"""Normalization divides by deviations, which may be tiny among fewer than 10 frames."""
ACTIVATIONS = 1e-5
LOG_PROBS = 5e-5
SCORES = 1e-3


@dataclass(frozen=True)
class Case:
    """One checkpoint of an oracle and what the oracle computed with it."""

    source: str
    folder: Path
    name: str

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / f"{self.name}.npz") as file:
            return dict(file)

    @cached_property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(
            (self.folder / f"{self.name}.json").read_text(encoding="utf-8")
        )
        return facts

    @cached_property
    def _loaded(self) -> tuple[AsrModel, Tokenizer]:
        if self.source == "nemo":
            return read_nemo(self.folder / f"{self.name}.nemo")
        return read_huggingface(self.folder / self.name)

    @property
    def model(self) -> AsrModel:
        return self._loaded[0]

    @property
    def tokenizer(self) -> Tokenizer:
        return self._loaded[1]

    def keys(self, pattern: str) -> list[str]:
        return [key for key in self.arrays if re.fullmatch(pattern, key)]

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def mel(self, frames: int) -> Tensor:
        return torch.from_numpy(mel(frames, self.facts["mels"], seed=frames))

    def mel_batch(self) -> tuple[Tensor, Tensor]:
        """(B, T, F) and (B): rows of random mel frames, the padding set to 7 so leaks show."""
        counts = self.facts["encoder_batch"]
        batch = torch.full((len(counts), max(counts), self.facts["mels"]), 7.0)
        for row, count in enumerate(counts):
            batch[row, :count] = self.mel(count)
        return batch, torch.tensor(counts)

    def encode_clip(self, clip: int, lookahead: str) -> Tensor:
        """(1, S, D) encoder frames of a clip, through the prompt if the model has one."""
        frames = self.model.features.whole(clip_samples(clip))[None]
        lengths = torch.tensor([frames.shape[1]])
        return self.prompted(self.model.encoder(frames, lengths, number(lookahead))[0])

    def prompted(self, encoded: Tensor) -> Tensor:
        if self.model.prompt is None:
            return encoded
        return self.model.prompt(encoded, torch.full((len(encoded),), self.facts["prompt"]))


def clip_samples(clip: int) -> Tensor:
    return torch.from_numpy(waveform(CLIP_SAMPLES[clip], seed=clip))


def number(lookahead: str) -> int | None:
    return None if lookahead == "full" else int(lookahead)


def close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    assert ours.shape == theirs.shape, f"{what}: {tuple(ours.shape)}, not {tuple(theirs.shape)}"
    assert bool(ours.isfinite().all()), f"{what}: not finite"
    worst = float((ours - theirs).abs().max()) if ours.numel() else 0.0
    assert worst <= tolerance, f"{what}: differs by {worst:.2g}, more than {tolerance:.2g}"


# -- features --------------------------------------------------------------------------------------


def feature_tolerance(case: Case, frames: int) -> float:
    if case.model.config.features.normalize == "none":
        return FEATURES
    return SHORT_FEATURES if frames < 10 else NORMALISED_FEATURES


def check_features(case: Case) -> None:
    """The oracle's tensor has one frame more than the utterance: zeros."""
    for key in case.keys(r"features/\d+"):
        samples = int(key.split("/")[1])
        theirs = case.tensor(key)
        ours = case.model.features.whole(torch.from_numpy(waveform(samples, seed=samples)))
        assert len(ours) == samples // 160
        close(ours, theirs[: len(ours)], feature_tolerance(case, len(ours)), key)
        assert bool((theirs[len(ours) :] == 0).all()), key


def check_feature_batch(case: Case) -> None:
    """A padded batch whose padding is noise."""
    samples = case.facts["feature_batch"]
    rows = [torch.from_numpy(waveform(count, seed=count)) for count in samples]
    batch = torch.full((len(rows), max(samples)), 0.5)
    for index, sound in enumerate(rows):
        batch[index, : len(sound)] = sound
    ours, counts = case.model.features(batch, torch.tensor(samples))
    assert counts.tolist() == case.arrays["features/batch_counts"].tolist()
    theirs = case.tensor("features/batch")
    for row, count in enumerate(counts.tolist()):
        tolerance = feature_tolerance(case, count)
        close(ours[row], theirs[row, : ours.shape[1]], tolerance, f"features/batch, row {row}")
    assert bool((theirs[:, ours.shape[1] :] == 0).all())


def check_incremental_features(case: Case) -> None:
    """Pushes of any size give the oracle's frames of the whole."""
    features = case.model.features
    for key in case.keys(r"features/\d+"):
        samples = int(key.split("/")[1])
        sound = torch.from_numpy(waveform(samples, seed=samples))
        for push in (1, 7, 160, 1279, 1280):
            state = features.start()
            blocks = sound.split(push) if samples < 4000 or push > 100 else sound.split(977)
            frames = torch.cat([features.push(b, state) for b in blocks] + [features.finish(state)])
            assert len(frames) == samples // 160
            if features.config.normalize == "per_feature":
                frames = normalize_per_feature(frames)
            tolerance = feature_tolerance(case, len(frames))
            close(frames, case.tensor(key)[: len(frames)], tolerance, f"{key} by {push}")


# -- encoder ---------------------------------------------------------------------------------------


def check_subsampling(case: Case) -> None:
    for key in case.keys(r"subsampling/\d+"):
        frames = int(key.split("/")[1])
        ours, counts = case.model.encoder.subsampling(
            case.mel(frames)[None], torch.tensor([frames])
        )
        assert int(counts[0]) == ours.shape[1]
        close(ours[0], case.tensor(key), ACTIVATIONS, key)


def rows_close(ours: Tensor, counts: Tensor, theirs: Tensor, expected: Tensor, what: str) -> None:
    """Only valid frames: what stands in the padding is nobody's business."""
    assert counts.tolist() == expected.tolist(), what
    for row, count in enumerate(counts.tolist()):
        close(ours[row, :count], theirs[row, :count], ACTIVATIONS, f"{what}, row {row}")


def check_subsampling_batch(case: Case) -> None:
    ours, counts = case.model.encoder.subsampling(*case.mel_batch())
    expected = case.tensor("subsampling/batch_counts")
    rows_close(ours, counts, case.tensor("subsampling/batch"), expected, "subsampling/batch")


def check_encoder(case: Case) -> None:
    for key in case.keys(r"encoder/\w+/\d+"):
        _, lookahead, frames = key.split("/")
        lengths = torch.tensor([int(frames)])
        ours, _ = case.model.encoder(case.mel(int(frames))[None], lengths, number(lookahead))
        close(ours[0], case.tensor(key), ACTIVATIONS, key)


def check_encoder_batch(case: Case) -> None:
    for key in case.keys(r"encoder/\w+/batch"):
        batch, lengths = case.mel_batch()
        ours, counts = case.model.encoder(batch, lengths, number(key.split("/")[1]))
        rows_close(ours, counts, case.tensor(key), case.tensor(f"{key}_counts"), key)


def check_prompt(case: Case) -> None:
    for key in case.keys(r"prompted/\d+"):
        frames = int(key.split("/")[1])
        encoded, _ = case.model.encoder(case.mel(frames)[None], torch.tensor([frames]))
        close(case.prompted(encoded)[0], case.tensor(key), ACTIVATIONS, key)


def stream(case: Case, frames: Tensor, lookahead: int, pushes: Iterator[int]) -> Tensor:
    """Our streaming of (T, F) mel frames in pushes of those sizes: (S, D)."""
    encoder = case.model.encoder
    plan, state = encoder.plan(lookahead), encoder.start()
    parts, start = [], 0
    while start < len(frames):
        end = start + next(pushes)
        parts.append(encoder.step(frames[None, start:end], state, plan))
        start = end
    parts.append(encoder.step(frames[None, :0], state, plan, final=True))
    return torch.cat(parts, dim=1)[0]


def sizes(kind: str, lookahead: int) -> Iterator[int]:
    """Sizes of pushes: the oracles' chunks, single frames, or anything."""
    random = np.random.default_rng(lookahead)
    if kind == "chunks":
        yield 1 + 8 * lookahead
    while True:
        yield {"chunks": 8 * (lookahead + 1), "ones": 1}.get(kind) or int(random.integers(0, 70))


def check_streaming_equals_offline(case: Case) -> None:
    """Ours chunk by chunk against theirs whole, every lookahead, every tail."""
    for key in case.keys(r"encoder/\d+/\d+"):
        _, lookahead, frames = key.split("/")
        for kind in ("chunks", "any", "ones")[: 2 if int(frames) > 100 else 3]:
            pushes = sizes(kind, int(lookahead))
            ours = stream(case, case.mel(int(frames)), int(lookahead), pushes)
            close(ours, case.tensor(key), ACTIVATIONS, f"{key} in {kind}")


def check_streaming(case: Case) -> None:
    """Chunk by chunk on both sides.

    Not NeMo without lookahead: from its second chunk on it sees convolved zeros where the whole
    utterance has none, and is off by some 1e-3. Ours equals its whole utterance there too.
    """
    for key in case.keys(r"stream/\d+/\d+"):
        _, lookahead, frames = key.split("/")
        if case.source == "nemo" and lookahead == "0":
            continue
        pushes = sizes("chunks", int(lookahead))
        ours = stream(case, case.mel(int(frames)), int(lookahead), pushes)
        close(ours, case.tensor(key), ACTIVATIONS, key)


# -- transducer ------------------------------------------------------------------------------------


def check_predictor(case: Case) -> None:
    predictor = case.model.predictor
    assert predictor is not None
    tokens, theirs = case.tensor("predictor/tokens"), case.tensor("predictor/out")
    close(predictor(tokens), theirs, ACTIVATIONS, "predictor, whole")
    state = predictor.start(len(tokens))
    blank = torch.full((len(tokens),), case.model.config.vocab_size)
    steps = []
    for labels in [blank, *tokens.T]:
        out, state = predictor.step(labels, state)
        steps.append(out)
    close(torch.stack(steps, dim=1), theirs, ACTIVATIONS, "predictor, step by step")
    close(state.hidden, case.tensor("predictor/hidden"), ACTIVATIONS, "predictor/hidden")
    close(state.cell, case.tensor("predictor/cell"), ACTIVATIONS, "predictor/cell")


def check_joiner(case: Case) -> None:
    joiner = case.model.joiner
    assert joiner is not None
    encoder = joiner.encoder(case.tensor("joiner/encoded"))[:, None]
    ours = joiner(encoder, joiner.predictor(case.tensor("predictor/out")[0])[None])
    close(ours, case.tensor("joiner/logits"), ACTIVATIONS, "joiner/logits")


def search_whole(search: Any, encoded: Tensor, lengths: Tensor | None = None) -> list[Hypothesis]:
    found: list[Hypothesis] = search.decode(encoded, lengths, search.start(len(encoded)))
    return found


def same_tokens(case: Case, found: Hypothesis, key: str, what: str) -> None:
    assert found.tokens == case.arrays[f"{key}/tokens"].tolist(), what
    assert found.frames == case.arrays[f"{key}/frames"].tolist(), what
    scored = f"{key}/score" in case.arrays and not durations(case)
    if scored:  # NeMo's scores of durations and tokens share one softmax, which says little
        assert abs(found.score - float(case.arrays[f"{key}/score"])) <= SCORES, what


def durations(case: Case) -> tuple[int, ...]:
    transducer = case.model.config.transducer
    return () if transducer is None else transducer.durations


def clip_keys(case: Case, head: str) -> list[tuple[str, str, int]]:
    """(key, lookahead, clip) of what a head's search gave."""
    parts = [key.split("/") for key in case.keys(rf"{head}/\w+/\d+/tokens")]
    return [("/".join(part[:3]), part[1], int(part[2])) for part in parts]


def check_greedy(case: Case) -> None:
    """From samples to tokens and frames, whole."""
    search = GreedySearch(case.model)
    for key, lookahead, clip in clip_keys(case, "greedy"):
        found = search_whole(search, case.encode_clip(clip, lookahead))[0]
        same_tokens(case, found, key, key)


def check_greedy_batch(case: Case) -> None:
    """The same as a padded batch, padded with noise."""
    search = GreedySearch(case.model)
    for lookahead in map(str, case.facts["lookaheads"]):
        rows = [case.encode_clip(clip, lookahead)[0] for clip in range(len(CLIP_SAMPLES))]
        batch = torch.full((len(rows), len(rows[0]), rows[0].shape[1]), 3.0)
        for row, frames in enumerate(rows):
            batch[row, : len(frames)] = frames
        found = search_whole(search, batch, torch.tensor([len(row) for row in rows]))
        for clip, hypothesis in enumerate(found):
            key = f"greedy/{lookahead}/{clip}"
            same_tokens(case, hypothesis, key, f"{key} in a batch")


def check_greedy_chunks(case: Case) -> None:
    """The same with the encoder's frames given in pieces of any size."""
    search = GreedySearch(case.model)
    for key, lookahead, clip in clip_keys(case, "greedy"):
        encoded = case.encode_clip(clip, lookahead)
        for size in (1, 2, 7, 14):
            state, found = search.start(), Hypothesis()
            for piece in encoded.split(size, dim=1):
                found.extend(search.decode(piece, None, state)[0])
            same_tokens(case, found, key, f"{key} in pieces of {size}")


def check_greedy_live(case: Case) -> None:
    """From samples to tokens as in a live stream: features, encoder and search in steps."""
    model, search = case.model, GreedySearch(case.model)
    for key, lookahead, clip in clip_keys(case, "greedy"):
        plan, encoder_state = model.encoder.plan(int(lookahead)), model.encoder.start()
        feature_state, state, found = model.features.start(), search.start(), Hypothesis()
        for samples in [*clip_samples(clip).split(1237), None]:
            final = samples is None
            frames = (
                model.features.finish(feature_state)
                if samples is None
                else model.features.push(samples, feature_state)
            )
            encoded = model.encoder.step(frames[None], encoder_state, plan, final=final)
            found.extend(search.decode(case.prompted(encoded), None, state)[0])
        same_tokens(case, found, key, f"{key} live")


def check_max_symbols(case: Case) -> None:
    model = copy.deepcopy(case.model)
    assert model.joiner is not None
    model.joiner.out.bias.data.copy_(case.tensor("greedy_max/bias"))
    search = GreedySearch(model)
    search.max_symbols = int(case.arrays["greedy_max/max_symbols"])
    encoded = case.encode_clip(0, str(case.facts["lookaheads"][0]))
    same_tokens(case, search_whole(search, encoded)[0], "greedy_max", "greedy_max")
    state, found = search.start(), Hypothesis()
    for piece in encoded.split(3, dim=1):
        found.extend(search.decode(piece, None, state)[0])
    same_tokens(case, found, "greedy_max", "greedy_max in pieces")


def measure(name: str) -> Confidence:
    """The confidence measure of a key: max_prob_ALPHA or ENTROPY_NORM_ALPHA."""
    kind, _, alpha = name.rpartition("_")
    if kind == "max_prob":
        return Confidence("max_prob", alpha=float(alpha))
    entropy, norm = kind.split("_")
    return Confidence(entropy, norm, float(alpha))  # type: ignore[arg-type]


def check_confidence(case: Case) -> None:
    encoded = case.encode_clip(0, str(case.facts["lookaheads"][0]))
    for key in case.keys(r"confidence/.*"):
        search = GreedySearch(case.model, measure(key.split("/")[1]))
        ours = torch.tensor(search_whole(search, encoded)[0].confidences)
        close(ours, case.tensor(key), ACTIVATIONS, key)


# -- CTC -------------------------------------------------------------------------------------------


def check_ctc(case: Case) -> None:
    assert case.model.ctc is not None
    search = CtcGreedySearch(case.model)
    for key, lookahead, clip in clip_keys(case, "ctc"):
        encoded = case.encode_clip(clip, lookahead)
        close(case.model.ctc(encoded)[0], case.tensor(f"{key}/log_probs"), LOG_PROBS, key)
        state, pieces = search.start(), Hypothesis()
        for piece in encoded.split(3, dim=1):
            pieces.extend(search.decode(piece, None, state)[0])
        for found in (search_whole(search, encoded)[0], pieces):
            assert found.tokens == case.arrays[f"{key}/tokens"].tolist(), key
            assert found.frames == case.arrays[f"{key}/frames"].tolist(), key


def check_ctc_confidence(case: Case) -> None:
    """Of tokens that last one frame: of the others NeMo takes the least certain frame."""
    lookahead = str(case.facts["lookaheads"][0])
    encoded = case.encode_clip(0, lookahead)
    best = case.tensor(f"ctc/{lookahead}/0/log_probs").argmax(-1)
    starts = case.tensor(f"ctc/{lookahead}/0/frames")
    after = torch.cat([best[1:], best[:1] * 0 - 1])
    single = best[starts] != after[starts]
    assert int(single.sum()) > 2
    for key in case.keys(r"ctc_confidence/.*"):
        search = CtcGreedySearch(case.model, measure(key.split("/")[1]))
        ours = torch.tensor(search_whole(search, encoded)[0].confidences)
        close(ours[single], case.tensor(key)[single], ACTIVATIONS, key)


# -- checkpoints -----------------------------------------------------------------------------------


def check_tensors(case: Case) -> None:
    """Every tensor of the file is one of ours, and nothing else is."""
    names = nemo_names if case.source == "nemo" else huggingface_names
    ours = foreign_weights(case.model, names(case.model.config))
    if case.source == "nemo":
        ours = to_nemo_names(case.model)
        with tarfile.open(case.folder / f"{case.name}.nemo") as archive:
            member = archive.extractfile("./model_weights.ckpt")
            assert member is not None
            theirs = torch.load(io.BytesIO(member.read()), weights_only=True)
    else:
        theirs = load_file(case.folder / case.name / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


# -- text ------------------------------------------------------------------------------------------


def check_text(case: Case) -> None:
    """Ids to text. SentencePiece writes the unknown piece as ⁇; ours leaves it out."""
    for key, note in case.facts["notes"].items():
        ours = case.tokenizer.decode(case.arrays[f"{key}/tokens"].tolist())
        theirs = note["text"].replace(" ⁇ ", "")
        assert ours.strip() == theirs.strip(), key
        pieces = [case.tokenizer.pieces[i] for i in case.arrays[f"{key}/tokens"].tolist()]
        assert pieces == note.get("pieces", pieces), key


CHECKS: dict[str, tuple[str, Callable[[Case], None]]] = {
    "tensors": (r"encoder/.*", check_tensors),
    "features": (r"features/\d+", check_features),
    "feature batch": (r"features/batch", check_feature_batch),
    "incremental features": (r"features/\d+", check_incremental_features),
    "subsampling": (r"subsampling/\d+", check_subsampling),
    "subsampling batch": (r"subsampling/batch", check_subsampling_batch),
    "encoder": (r"encoder/\w+/\d+", check_encoder),
    "encoder batch": (r"encoder/\w+/batch", check_encoder_batch),
    "prompt": (r"prompted/\d+", check_prompt),
    "streaming equals offline": (r"encoder/\d+/\d+", check_streaming_equals_offline),
    "streaming": (r"stream/\d+/\d+", check_streaming),
    "predictor": (r"predictor/out", check_predictor),
    "joiner": (r"joiner/logits", check_joiner),
    "greedy": (r"greedy/\w+/\d+/tokens", check_greedy),
    "greedy batch": (r"greedy/\w+/\d+/tokens", check_greedy_batch),
    "greedy chunks": (r"greedy/\w+/\d+/tokens", check_greedy_chunks),
    "greedy live": (r"greedy/\d+/\d+/tokens", check_greedy_live),
    "max symbols": (r"greedy_max/tokens", check_max_symbols),
    "confidence": (r"confidence/.*", check_confidence),
    "ctc": (r"ctc/\w+/\d+/tokens", check_ctc),
    "ctc confidence": (r"ctc_confidence/.*", check_ctc_confidence),
    "text": (r"(greedy|ctc)/\w+/\d+/tokens", check_text),
}
"""Name -> the keys that it needs, and the check."""

BATCH_NORM_VARIANTS = (
    "batchnorm",
    "conformer",
    "ctc",
    "tdt",
    "parakeet_ctc",
    "parakeet_rnnt",
    "parakeet_tdt",
)
"""Their batch norms are folded into other tensors when they are read."""


def read_cases(folder: Path, source: str) -> list[Case]:
    """The cases that an oracle wrote into a folder."""
    return [Case(source, folder, path.stem) for path in sorted(folder.glob("*.json"))]


def checks_of(case: Case) -> list[str]:
    """The names of the checks that a case has outputs for."""
    names = [name for name, (pattern, _) in CHECKS.items() if case.keys(pattern)]
    return [n for n in names if n != "tensors" or case.name not in BATCH_NORM_VARIANTS]
