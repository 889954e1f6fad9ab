import itertools
import math

import pytest
import torch
from tiny import tensor
from torch import Tensor

from pianissimo.errors import OptionError
from pianissimo.train.loss import Lattice, transducer_loss

VOCABULARY = 4
BLANK = VOCABULARY


def batch(
    lengths: list[tuple[int, int]], seed: int = 0, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packed logits in float64 and the targets of rows of (frames, tokens)."""
    frames, tokens = (torch.tensor(n) for n in zip(*lengths, strict=True))
    nodes = int((frames * (tokens + 1)).sum())
    logits = scale * tensor(nodes, VOCABULARY + 1, seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    size = (len(lengths), int(tokens.max()))
    return logits, torch.randint(0, VOCABULARY, size, generator=generator), frames, tokens


def loss_of_row(logits: Tensor, targets: list[int], frames: int) -> float:
    """Minus the log of the summed probability of every path, each walked on its own.

    A path is an order of all labels and all blanks whose last symbol is a blank.
    """
    log_probs = logits.log_softmax(-1).reshape(frames, len(targets) + 1, VOCABULARY + 1)
    total = 0.0
    for places in itertools.combinations(range(frames - 1 + len(targets)), len(targets)):
        s = u = 0
        path = 0.0
        for step in range(frames + len(targets)):
            if step in places:
                path += float(log_probs[s, u, targets[u]])
                u += 1
            else:
                path += float(log_probs[s, u, BLANK])
                s += 1
        assert (s, u) == (frames, len(targets))
        total += math.exp(path)
    return -math.log(total)


def losses_of_rows(logits: Tensor, targets: Tensor, frames: Tensor, tokens: Tensor) -> list[float]:
    out, start = [], 0
    for row, (s, u) in enumerate(zip(frames.tolist(), tokens.tolist(), strict=True)):
        nodes = s * (u + 1)
        out.append(loss_of_row(logits[start : start + nodes], targets[row, :u].tolist(), s))
        start += nodes
    return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "lengths",
    [
        [(1, 0)],
        [(5, 0)],
        [(1, 4)],
        [(2, 1)],
        [(4, 4)],
        [(3, 2), (1, 0), (5, 1), (1, 3), (4, 4), (2, 0)],
    ],
)
def test_the_loss_sums_over_every_path(lengths: list[tuple[int, int]], seed: int) -> None:
    logits, targets, frames, tokens = batch(lengths, seed, scale=3.0)
    found = transducer_loss(logits, targets, frames, tokens, BLANK)
    assert found.shape == (len(lengths),)
    assert found.dtype == torch.float64
    expected = losses_of_rows(logits, targets, frames, tokens)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "lengths", [[(1, 0)], [(1, 2)], [(3, 0)], [(3, 2), (1, 1), (2, 0), (4, 3)]]
)
def test_the_gradient_is_that_of_the_loss(lengths: list[tuple[int, int]]) -> None:
    logits, targets, frames, tokens = batch(lengths, scale=2.0)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: transducer_loss(x, targets, frames, tokens, BLANK), (logits,)
    )


def test_the_gradient_is_that_of_finite_differences_of_every_path() -> None:
    logits, targets, frames, tokens = batch([(3, 2), (2, 1)])
    logits.requires_grad_()
    weights = torch.tensor([1.0, -0.5], dtype=torch.float64)
    (transducer_loss(logits, targets, frames, tokens, BLANK) * weights).sum().backward()
    assert logits.grad is not None
    step = 1e-5
    for node, symbol in itertools.product(range(len(logits)), range(VOCABULARY + 1)):
        values = []
        for sign in (1, -1):
            moved = logits.detach().clone()
            moved[node, symbol] += sign * step
            rows = losses_of_rows(moved, targets, frames, tokens)
            values.append(sum(w * r for w, r in zip(weights.tolist(), rows, strict=True)))
        slope = (values[0] - values[1]) / (2 * step)
        assert float(logits.grad[node, symbol]) == pytest.approx(slope, abs=1e-7)


def test_rows_packed_together_equal_each_alone() -> None:
    lengths = [(7, 3), (1, 0), (12, 5), (2, 9), (4, 0)]
    logits, targets, frames, tokens = batch(lengths)
    logits.requires_grad_()
    together = transducer_loss(logits, targets, frames, tokens, BLANK)
    together.sum().backward()
    assert logits.grad is not None
    start = 0
    for row, (s, u) in enumerate(lengths):
        part = logits.detach()[start : start + s * (u + 1)].clone().requires_grad_()
        alone = transducer_loss(
            part, targets[row : row + 1, :u], frames[row : row + 1], tokens[row : row + 1], BLANK
        )
        alone.sum().backward()
        assert part.grad is not None
        torch.testing.assert_close(together[row].detach(), alone[0].detach())
        torch.testing.assert_close(logits.grad[start : start + len(part)], part.grad)
        start += len(part)


@pytest.mark.parametrize("fill", [0, 2, BLANK])
def test_the_padding_of_targets_is_ignored(fill: int) -> None:
    logits, targets, frames, tokens = batch([(3, 2), (4, 5), (2, 0)])
    expected = transducer_loss(logits, targets, frames, tokens, BLANK)
    padded = torch.nn.functional.pad(targets, (0, 3), value=fill)
    padded[0, 2:] = fill
    padded[2] = fill
    assert torch.equal(transducer_loss(logits, padded, frames, tokens, BLANK), expected)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_single_precision_is_exact_enough_on_a_large_lattice(scale: float) -> None:
    logits, targets, frames, tokens = batch([(250, 60), (90, 80), (200, 1)], scale=scale)
    results = []
    for dtype in (torch.float64, torch.float32):
        x = logits.to(dtype, copy=True).requires_grad_()
        loss = transducer_loss(x, targets, frames, tokens, BLANK)
        assert loss.dtype == dtype
        loss.sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
        results.append((loss.detach().double(), x.grad.double()))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=2e-6, atol=1e-4)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=2e-5)


def test_the_gradient_of_a_node_sums_to_zero_and_counts_the_paths_through_it() -> None:
    """Every path leaves a row by as many blanks as it has frames."""
    logits, targets, frames, tokens = batch([(6, 3)])
    logits.requires_grad_()
    transducer_loss(logits, targets, frames, tokens, BLANK).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(24, dtype=torch.float64))
    # Gradient = chance of coming here * softmax - chance of leaving by the symbol.
    unused = [v for v in range(VOCABULARY) if v not in targets[0].tolist()]
    here = (logits.grad / logits.detach().softmax(-1))[:, unused[0]].reshape(6, 4)
    assert float(here[0, 0]) == pytest.approx(1)
    assert float(here[5, 3]) == pytest.approx(1)
    diagonals = [sum(float(here[s, d - s]) for s in range(6) if 0 <= d - s < 4) for d in range(9)]
    assert diagonals == pytest.approx([1.0] * 9)


def test_unlikely_targets_have_finite_losses_and_gradients() -> None:
    logits, targets, frames, tokens = batch([(30, 10), (20, 4)], scale=300.0)
    x = logits.float().requires_grad_()
    loss = transducer_loss(x, targets, frames, tokens, BLANK)
    loss.sum().backward()
    assert x.grad is not None
    assert bool(loss.isfinite().all())
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_loss_in_single_precision(dtype: torch.dtype) -> None:
    logits, targets, frames, tokens = batch([(8, 3)])
    x = logits.to(dtype).requires_grad_()
    loss = transducer_loss(x, targets, frames, tokens, BLANK)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert x.grad is not None
    assert x.grad.dtype == dtype
    expected = transducer_loss(x.detach().double(), targets, frames, tokens, BLANK)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize(
    "frames, tokens",
    [([3, 4], [2, 2]), ([3, 3], [2, 1]), ([0, 6], [2, 2]), ([7, -1], [2, 2])],
)
def test_lengths_that_do_not_make_the_lattice_are_refused(
    frames: list[int], tokens: list[int]
) -> None:
    logits, targets, _, _ = batch([(3, 2), (3, 2)])
    with pytest.raises(OptionError, match="lattice nodes"):
        transducer_loss(logits, targets, torch.tensor(frames), torch.tensor(tokens), BLANK)


def test_targets_shorter_than_their_lengths_are_not_read_past_their_end() -> None:
    logits, targets, frames, tokens = batch([(3, 2), (3, 2)])
    with pytest.raises((OptionError, IndexError)):
        transducer_loss(logits, targets[:, :1], frames, tokens, BLANK)


def test_the_lattice_packs_rows_frame_by_frame() -> None:
    lattice = Lattice(torch.tensor([2, 1]), torch.tensor([1, 2]))
    assert lattice.row.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert lattice.frame.tolist() == [0, 0, 1, 1, 0, 0, 0]
    assert lattice.token.tolist() == [0, 1, 0, 1, 0, 1, 2]
    assert lattice.shape == (2, 2, 3)
    values = torch.arange(7.0)
    grid = lattice.scatter(values, -1.0)
    assert grid.dtype == torch.float64
    assert torch.equal(lattice.gather(grid), values.double())
    assert int((grid == -1).sum()) == 12 - 7
