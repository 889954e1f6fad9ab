"""Compression of a model: bytes on disk against word error rates.

    python bench/compression.py [precision] [onnx] [pruning] [--data MANIFEST] [--train MANIFEST]

`precision` stores a model in float32, float16 and 8 bits and loads it again, also computing in
8 bits; `onnx` does so with ONNX files, as a stream of the whole recording; `pruning` makes
weights zero, or removes units of the feed-forwards or heads of the attention. With `--train`
the heads are chosen by that data, and each pruned model is trained on it for `--steps` steps. Word
errors are those of `--subset` of the manifest at one latency mode; the manifest is that of the
folder PIANISSIMO_SPEECH unless given. Tables go to standard output.
"""

import argparse
import copy
import os
import platform
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

import pianissimo
from pianissimo.audio.io import load_audio
from pianissimo.evaluate.run import Reference, evaluate, read_references
from pianissimo.evaluate.wer import ErrorCounts, word_errors
from pianissimo.models.asr import AsrModel
from pianissimo.models.checkpoints.model_folder import save_model
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.text.normalize import normalize_for_scoring
from pianissimo.text.tokenizer import Tokenizer
from pianissimo.train.augment import Augmenter
from pianissimo.train.data import TrainingSet, Utterance, read_manifest
from pianissimo.train.finetune.material import AUGMENT, training_set
from pianissimo.train.finetune.run import example_losses
from pianissimo.train.loop import Stage, TrainConfig, train_model
from pianissimo.train.prune import (
    head_importance,
    head_norms,
    prune_heads,
    prune_units,
    prune_weights,
)

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SPEECH = Path(os.environ.get("PIANISSIMO_SPEECH", ROOT / "../shared/data/speech"))
DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}
Row = dict[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What to measure: `shares` of weights are pruned, `parts` of units and heads."""

    model: str | None
    references: Sequence[Reference]
    latency_ms: int
    shares: Sequence[float]
    parts: Sequence[float]
    train: Sequence[Utterance]
    steps: int
    batch_seconds: float
    rate: float


def load(model: str | Path | None, dtype: str = "float32") -> NativeRecognizer:
    recognizer = pianissimo.load(model, device="cpu", dtype=dtype)
    if not isinstance(recognizer, NativeRecognizer):
        raise SystemExit(f"{recognizer.name} is of another family; only our own are measured")
    return recognizer


def errors(recognizer: NativeRecognizer, plan: Plan) -> str:
    (result,) = evaluate(recognizer, plan.references, latencies_ms=[plan.latency_ms])
    return percent(result.total.errors)


def percent(counts: ErrorCounts) -> str:
    return f"{100 * counts.rate:.2f} %"


def weights_bytes(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


def megabytes(size: int, whole: int) -> str:
    return f"{size / 1e6:.2f} ({100 * size / whole:.0f} %)"


def precision(plan: Plan) -> list[Row]:
    rows, whole = [], 0
    original = load(plan.model)
    with tempfile.TemporaryDirectory() as folder:
        for stored, dtype in DTYPES.items():
            place = Path(folder) / stored
            save_model(place, original.model, original.tokenizer, dtype)
            size = weights_bytes(place)
            whole = whole or size
            for computed in ("float32", "int8") if stored != "float16" else ("float32",):
                tell(f"stored {stored}, computed {computed}")
                wer = errors(load(place, computed), plan)
                row = {"stored": stored, "computed": computed}
                rows.append({**row, "MB": megabytes(size, whole), "word errors": wer})
    return rows


def onnx(plan: Plan) -> list[Row]:
    from pianissimo.export.onnx import export, quantize

    sys.path.insert(0, str(EXAMPLES))
    from onnx_stream import OnnxStream

    rows, whole = [], 0
    original = load(plan.model)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        done = export(original.model, original.tokenizer, place, latencies_ms=[plan.latency_ms])
        for name in ("float32", "int8"):
            if name == "int8":
                for file in done.sizes:
                    if file.endswith(".onnx"):
                        quantize(place / file)
            tell(f"ONNX in {name}")
            counts = ErrorCounts()
            for reference in plan.references:
                stream = OnnxStream(place, plan.latency_ms)
                tokens = stream.push(load_audio(reference.path)) + stream.finish()
                text = normalize_for_scoring(stream.text(tokens))
                counts = counts + word_errors(reference.text, text)
            size = sum(f.stat().st_size for f in place.glob("*.onnx") if f.name != "ctc.onnx")
            whole = whole or size
            rows.append(
                {"files": name, "MB": megabytes(size, whole), "word errors": percent(counts)}
            )
    return rows


def pruning(plan: Plan) -> list[Row]:
    rows, whole = [], 0
    original = load(plan.model)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        worth = worth_of_heads(original, plan, place)
        for kind, shares in (
            ("weights", plan.shares),
            ("units", plan.parts),
            ("heads", plan.parts),
        ):
            for share in shares:
                tell(f"{share:.0%} of the {kind}")
                model = pruned(original.model, kind, share, worth)
                row = {"pruned": kind, "share": f"{share:.0%}"}
                row["word errors"] = errors(with_model(original, model), plan)
                if plan.train:
                    train(model, original.tokenizer, plan, place, f"{kind}-{share}")
                    row["after training"] = errors(with_model(original, model), plan)
                save_model(place / "saved", model, original.tokenizer, torch.float16)
                data = (place / "saved" / "model.safetensors").read_bytes()
                whole = whole or len(data)
                row["MB in float16"] = megabytes(len(data), whole)
                row["compressed"] = megabytes(len(zlib.compress(data, 6)), whole)
                rows.append(row)
    return rows


def worth_of_heads(recognizer: NativeRecognizer, plan: Plan, place: Path) -> torch.Tensor:
    """By the loss on the training data, or by norms without data."""
    if not plan.train:
        return head_norms(recognizer.model)
    tell("the worth of each head")
    model = copy.deepcopy(recognizer.model).requires_grad_()
    data = training_data(plan, place)
    return head_importance(model, example_losses(model, recognizer.tokenizer, data))


def pruned(model: AsrModel, kind: str, share: float, worth: torch.Tensor) -> AsrModel:
    if kind == "units":
        return prune_units(model, share)
    if kind == "heads":
        return prune_heads(model, share, worth)
    model = copy.deepcopy(model).requires_grad_()
    prune_weights(model, share)
    return model


def training_data(plan: Plan, place: Path, augment: Augmenter | None = None) -> TrainingSet:
    """Decoded once for all models."""
    return training_set(plan.train, place / "cache", augment)


def train(model: AsrModel, tokenizer: Tokenizer, plan: Plan, place: Path, name: str) -> None:
    """Train all remaining weights."""
    model.requires_grad_()
    config = TrainConfig(
        plan.steps, peak_lr=plan.rate, warmup_steps=plan.steps // 10, clip_norm=2.0
    )
    stage = Stage(plan.steps, training_data(plan, place, AUGMENT), plan.batch_seconds)
    train_model(config, model, tokenizer, [stage], place / name)


def with_model(original: NativeRecognizer, model: AsrModel) -> NativeRecognizer:
    """Another model with the same front end; a new recognizer, since searches pack weights."""
    return NativeRecognizer(
        model, original.tokenizer, front_end=original.front_end, detector=original.detector
    )


PARTS = {"precision": precision, "onnx": onnx, "pruning": pruning}


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(title: str, rows: Sequence[Row]) -> None:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    print(f"\n## {title.capitalize()}\n")
    print("\n".join("| " + " | ".join(line) + " |" for line in lines), flush=True)


def shares(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def even(items: Sequence[T], most: int | None) -> Sequence[T]:
    """At most `most` of them, evenly chosen."""
    if most is None or len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    add("--model", help="what `pianissimo.load` takes; the embedded one by default")
    add("--data", type=Path, default=SPEECH / "manifest.jsonl", help="to count word errors on")
    add("--subset", action="append", default=[], help="only these of its recordings")
    add("--most", type=int, help="the most recordings, evenly chosen")
    add("--latency", type=int, default=560, help="latency mode in ms")
    add("--shares", type=shares, default=[0.0, 0.2, 0.4, 0.5, 0.6, 0.8], help="of weights: 0,0.5")
    add("--structured", type=shares, default=[0.25, 0.5], help="of units and heads: 0.25,0.5")
    add("--train", type=Path, help="a manifest to train pruned models on")
    add("--train-most", type=int, default=600, help="the most recordings for training")
    add("--steps", type=int, default=60)
    add("--batch-seconds", type=float, default=20.0)
    add("--lr", type=float, default=1.5e-4, help="peak learning rate of that training")
    asked = parser.parse_args()
    parts = asked.parts or list(PARTS)
    for part in parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; choose {', '.join(PARTS)}")
    plan = Plan(
        model=asked.model,
        references=even(read_references(asked.data, asked.subset), asked.most),
        latency_ms=asked.latency,
        shares=asked.shares,
        parts=asked.structured,
        train=even(read_manifest(asked.train), asked.train_most) if asked.train else (),
        steps=asked.steps,
        batch_seconds=asked.batch_seconds,
        rate=asked.lr,
    )
    where = f"{len(plan.references)} recordings at {plan.latency_ms} ms"
    print(f"{where}, {torch.get_num_threads()} threads, {platform.machine()}")
    for part in parts:
        began = time.monotonic()
        show(part, PARTS[part](plan))
        tell(f"{part}: {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
