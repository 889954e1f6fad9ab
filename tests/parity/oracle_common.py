"""What the two oracles share: a tokenizer, random weights that make good tests, the files."""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import sentencepiece
import torch
from parity_inputs import (
    CLIP_SAMPLES,
    CORPUS,
    PLANS,
    SAMPLE_RATE,
    SEED,
    VOCABULARY,
    Floats,
    Plan,
    mel,
    waveform,
)
from torch import Tensor, nn

Result = TypeVar("Result")

Outputs = dict[str, Any]
"""Arrays or tensors by key; the keys are explained at the top of each oracle."""

TOKENS_PER_SECOND = (3.0, 6.0)
SAFE_MARGIN = 2e-3
"""A model whose best label leads by less than this somewhere is drawn again: no ties in tests."""


GOOD_SEEDS: dict[str, dict[str, int]] = {
    "golden": {
        "streaming": 111,
        "streaming56": 18,
        "hybrid": 55,
        "prompt": 27,
        "tdt": 1,
        "nemotron": 33,
        "nemotron_bias": 66,
        "nemotron35": 9,
        "parakeet_rnnt": 5,
    },
    "full": {
        "streaming": 39,
        "streaming56": 8,
        "batchnorm": 2,
        "hybrid": 37,
        "prompt": 3,
        "tdt": 1,
        "nemotron": 8,
        "nemotron_bias": 7,
        "nemotron35": 17,
        "parakeet_ctc": 1,
        "parakeet_rnnt": 4,
    },
}
"""Where the search for a seed starts, to save time; without an entry it starts at 0."""

WARM_UP = 12
"""First encoder frames of an utterance, whose short history makes them unlike all others."""


class RetryError(Exception):
    """These random weights make a poor test; the next seed may do better."""


def train_tokenizer(folder: Path, special: tuple[str, ...] = ()) -> None:
    """A SentencePiece BPE model laid out as NeMo wants it: no bos, eos or pad, id 0 is <unk>."""
    folder.mkdir()
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(CORPUS) + "\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=VOCABULARY,
        model_type="bpe",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        unk_id=0,
        user_defined_symbols=list(special),
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    pieces = (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    plain = [piece.split("\t")[0].removeprefix("▁") for piece in pieces]
    (folder / "vocab.txt").write_text("\n".join(plain) + "\n", encoding="utf-8")


def rounded(value: Tensor) -> Tensor:
    """To the nearest bfloat16: float32 holds it exactly, and the files compress to a half."""
    return value.to(torch.bfloat16).to(value.dtype)


def randomise(model: nn.Module, seed: int) -> None:
    """Give every parameter and running statistic a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith("preprocessor."):
            continue
        if name.endswith("num_batches_tracked"):
            tensor.fill_(1000)
            continue
        value = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            value = 0.5 + value.abs()
        elif "norm" in name and name.endswith("weight"):
            value = 1 + 0.2 * value
        elif "embed" in name:
            value[-1] = 0.0  # the blank, which is also the start symbol
        elif tensor.dim() == 1 or "bias_" in name:
            value = 0.3 * value
        else:
            value /= (tensor.numel() / len(tensor)) ** 0.5
        tensor.copy_(rounded(value))


def add_toggle(lstm: nn.LSTM) -> None:
    """Make the first unit of the last layer change its sign with each label.

    A random transducer tells a label that is due from one already said no better than chance: it
    repeats labels until `max_symbols`, or says nothing. See `spread_joiner` for the other half.
    """
    last = lstm.num_layers - 1
    inner, outer = (getattr(lstm, f"weight_{kind}_l{last}") for kind in ("hh", "ih"))
    bias = getattr(lstm, f"bias_ih_l{last}")
    for gate, level in enumerate((5.0, -5.0, 0.25, 5.0)):  # input, forget, cell, output
        row = gate * lstm.hidden_size
        inner[row], outer[row], bias[row] = 0.0, 0.0, level
        getattr(lstm, f"bias_hh_l{last}")[row] = 0.0
        if gate == 2:
            inner[row, 0] = -3.0


def spread(layer: nn.Module, inputs: Tensor, deviation: float) -> Tensor:
    """Rescale a linear layer (or convolution of width 1) to outputs of mean 0 over `inputs`.

    Without this a random head says the same at every frame. Returns the new outputs (..., out).
    """
    weight = layer.weight.view(layer.weight.shape[:2])
    raw = inputs.reshape(-1, inputs.shape[-1]) @ weight.T
    weight *= deviation / raw.std(0).mean()
    weight.copy_(rounded(weight))
    out = inputs @ weight.T
    layer.bias.copy_(rounded(-out.reshape(-1, out.shape[-1]).mean(0)))
    return out + layer.bias


def spread_joiner(
    encoded: Tensor,
    encoder_layer: nn.Module,
    predicted: Tensor,
    predictor_layer: nn.Module,
    head: nn.Module,
) -> None:
    """Make the labels depend on the frames (T, D) and on the predictor's outputs (U, P).

    The first two hidden units measure whether a signal of the frames and the predictor's toggle
    have the same sign; if they do, the blank gains. So a label is due when the signal turns.
    """
    left = spread(encoder_layer, encoded, 1.5)
    right = spread(predictor_layer, predicted, 1.0)
    spread(head, (left[:, None] + right[None]).relu(), 2.0)
    blank = VOCABULARY
    encoder_layer.weight[1] = -encoder_layer.weight[0]
    encoder_layer.bias[1] = -encoder_layer.bias[0]
    predictor_layer.weight[:2], predictor_layer.bias[:2], head.weight[:, :2] = 0.0, 0.0, 0.0
    predictor_layer.weight[0, 0], predictor_layer.weight[1, 0] = 2.5, -2.5
    head.weight[blank, :2] = 3.0


def calibrate(count: Callable[[], int], bias: Tensor, blank: int) -> None:
    """Move the blank's bias until clip 0 gives as many tokens per second as speech does."""
    seconds = CLIP_SAMPLES[0] / SAMPLE_RATE
    wanted = sum(TOKENS_PER_SECOND) / 2
    low, high = -10.0, 20.0
    for _ in range(12):
        bias[blank] = rounded(torch.tensor((low + high) / 2))
        rate = count() / seconds
        if TOKENS_PER_SECOND[0] < rate < TOKENS_PER_SECOND[1]:
            return
        low, high = (float(bias[blank]), high) if rate > wanted else (low, float(bias[blank]))
    raise RetryError(f"{rate:.1f} tokens per second")


def check_margin(logits: Tensor, what: str) -> None:
    """Refuse weights by which the best of (steps, labels) leads too narrowly anywhere."""
    top = logits.topk(2, dim=-1).values
    if len(logits) and float((top[:, 0] - top[:, 1]).min()) < SAFE_MARGIN:
        raise RetryError(f"the race is too close in {what}")


def check_variety(tokens: list[int], frames: list[int], what: str) -> None:
    """Refuse searches that say the same all the time, or all in a few bursts."""
    if len(set(tokens)) < 3:
        raise RetryError(f"only {len(set(tokens))} different tokens in {what}")
    if len(tokens) > 4 * len(set(frames)):
        raise RetryError(f"{len(tokens)} tokens in {len(set(frames))} frames of {what}")


def clip_waveforms() -> list[Floats]:
    return [waveform(samples, seed=clip) for clip, samples in enumerate(CLIP_SAMPLES)]


def mel_batch(frames: Iterable[int], bins: int, padding: float) -> tuple[Tensor, Tensor]:
    """(B, T, F) and (B): rows of random mel frames, padded."""
    counts = torch.tensor(list(frames))
    batch = torch.full((len(counts), int(counts.max()), bins), padding)
    for row, count in enumerate(counts.tolist()):
        batch[row, :count] = torch.from_numpy(mel(count, bins, seed=count))
    return batch, counts


def write_outputs(out: Path, name: str, arrays: Outputs, facts: dict[str, Any]) -> None:
    """OUT/NAME.npz and OUT/NAME.json."""
    np.savez_compressed(out / f"{name}.npz", **{k: np.asarray(v) for k, v in arrays.items()})
    text = json.dumps(facts, ensure_ascii=False) + "\n"
    (out / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"{name}: seed {facts['seed']}, {len(arrays)} arrays", flush=True)


def seeds_of(name: str, index: int, plan: Plan) -> Iterable[int]:
    """Seeds to try: those of this variant only, from the one last found good."""
    start = SEED + 1000 * index
    return range(start + GOOD_SEEDS[plan.name].get(name, 0), start + 1000)


def first_good(seeds: Iterable[int], attempt: Callable[[int], Result]) -> tuple[int, Result]:
    """The first seed for which `attempt` does not ask for another one, and its result."""
    for seed in seeds:
        try:
            return seed, attempt(seed)
        except RetryError as reason:
            print(f"seed {seed}: {reason}", flush=True)
    raise SystemExit("no usable seed")


def parse_arguments(summary: str, names: Iterable[str]) -> tuple[Path, Plan, list[str]]:
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("out", type=Path)
    parser.add_argument("--plan", choices=PLANS, default="full")
    parser.add_argument("--only", nargs="*", default=list(names), metavar="VARIANT")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    return arguments.out.resolve(), PLANS[arguments.plan], arguments.only
