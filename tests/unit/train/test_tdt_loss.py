"""The loss of a token-and-duration transducer against paths walked one by one."""

import math

import pytest
import torch
from tiny import make_model, tensor
from torch import Tensor

from pianissimo.errors import OptionError
from pianissimo.train.data import collate
from pianissimo.train.loop import objective
from pianissimo.train.loss import tdt_loss

VOCABULARY = 4
BLANK = VOCABULARY
DURATIONS = (0, 1, 2, 4)


def lattice(
    lengths: list[tuple[int, int]], durations: tuple[int, ...] = DURATIONS, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packed logits in float64 and the targets of rows of (frames, tokens)."""
    frames, tokens = (torch.tensor(n) for n in zip(*lengths, strict=True))
    nodes = int((frames * (tokens + 1)).sum())
    logits = 2.0 * tensor(nodes, VOCABULARY + 1 + len(durations), seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    size = (len(lengths), int(tokens.max()))
    return logits, torch.randint(0, VOCABULARY, size, generator=generator), frames, tokens


def probability(
    symbols: Tensor, jumps: Tensor, targets: list[int], durations: tuple[int, ...], s: int, u: int
) -> float:
    """Of all paths from frame s and label u to just behind the last frame, each walked alone."""
    frames = len(symbols)
    total = 0.0
    for k, duration in enumerate(durations):
        jump = float(jumps[s, u, k])
        if duration:
            blank = math.exp(float(symbols[s, u, BLANK]) + jump)
            if s + duration == frames and u == len(targets):
                total += blank
            elif s + duration < frames:
                total += blank * probability(symbols, jumps, targets, durations, s + duration, u)
        if u < len(targets) and s + duration < frames:
            label = math.exp(float(symbols[s, u, targets[u]]) + jump)
            rest = probability(symbols, jumps, targets, durations, s + duration, u + 1)
            total += label * rest
    return total


LENGTHS = [(5, 2), (1, 0), (4, 3), (3, 0), (6, 1)]


@pytest.mark.parametrize("durations", [DURATIONS, (1,), (0, 1), (2, 1)])
def test_the_loss_sums_over_every_path(durations: tuple[int, ...]) -> None:
    rows = LENGTHS if 0 in durations else [(5, 2), (4, 3), (3, 0), (6, 1)]
    logits, targets, frames, tokens = lattice(rows, durations)
    found = tdt_loss(logits, targets, frames, tokens, BLANK, durations)
    assert found.dtype == torch.float64
    start = 0
    for row, (s, u) in enumerate(rows):
        part = logits[start : start + s * (u + 1)].reshape(s, u + 1, -1)
        start += s * (u + 1)
        symbols = part[..., : BLANK + 1].log_softmax(-1)
        jumps = part[..., BLANK + 1 :].log_softmax(-1)
        labels = targets[row, :u].tolist()
        expected = -math.log(probability(symbols, jumps, labels, durations, 0, 0))
        assert float(found[row]) == pytest.approx(expected, abs=1e-9)


def test_the_gradient_is_that_of_the_loss() -> None:
    logits, targets, frames, tokens = lattice([(4, 2), (2, 1), (3, 0)])
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: tdt_loss(x, targets, frames, tokens, BLANK, DURATIONS), (logits,)
    )


def test_it_is_the_loss_of_transformers() -> None:
    oracle = pytest.importorskip("transformers.loss.loss_tdt")
    frames, tokens = 7, 3
    logits, targets, *lengths = lattice([(frames, tokens)])
    grid = logits.float().reshape(1, frames, tokens + 1, -1)
    expected = oracle.tdt_loss(
        grid[..., : BLANK + 1],
        grid[..., BLANK + 1 :],
        targets,
        *lengths,
        blank_token_id=BLANK,
        durations=list(DURATIONS),
        reduction="none",
    )
    found = tdt_loss(logits, targets, *lengths, BLANK, DURATIONS)
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-5)


def test_rows_do_not_depend_on_the_lengths_of_others() -> None:
    logits, targets, frames, tokens = lattice([(3, 1), (9, 4)])
    together = tdt_loss(logits, targets, frames, tokens, BLANK, DURATIONS)
    alone = tdt_loss(logits[:6], targets[:1, :1], frames[:1], tokens[:1], BLANK, DURATIONS)
    torch.testing.assert_close(together[:1], alone)


def test_lengths_that_do_not_make_the_lattice_are_refused() -> None:
    logits, targets, frames, tokens = lattice([(3, 1)])
    with pytest.raises(OptionError, match="lattice nodes"):
        tdt_loss(logits[1:], targets, frames, tokens, BLANK, DURATIONS)


def test_a_model_with_durations_is_trained_with_them() -> None:
    model = make_model(durations=DURATIONS).train()
    mels = [tensor(90, 16), tensor(64, 16, seed=1)]
    batch = collate(mels, [torch.tensor([1, 2]), torch.tensor([3])])
    parts = objective(model, batch, 1, 0.3, True)
    parts["loss"].backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
