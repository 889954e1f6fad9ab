"""Transducer losses in plain PyTorch, exact; that of the plain transducer with its own gradient.

Shape legend: B batch, S encoder frames, U target tokens, V vocabulary without blank, N lattice
nodes. Row b of the batch contributes S_b * (U_b + 1) nodes, in the order (s, u), without padding.

Graves 2012 (arXiv 1211.3711), section 2.4. The forward variable obeys
    a(s, u) = logaddexp(a(s-1, u) + blank(s-1, u), a(s, u-1) + label(s, u-1)),
which along s is a cumulative log-sum: with B(s, u) = sum of blank(0..s-1, u),
    a(s, u) = B(s, u) + logcumsumexp_s(a(s, u-1) + label(s, u-1) - B(s, u)),
so the lattice takes U + 1 vectorized steps. Both variables run in float64.

With durations (Xu et al. 2023, arXiv 2304.06795) there is no such sum; its lattice is walked by
anti-diagonals, and PyTorch derives the gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pianissimo.errors import OptionError

IMPOSSIBLE = -1e30


def transducer_loss(
    logits: Tensor, targets: Tensor, frame_lengths: Tensor, target_lengths: Tensor, blank: int
) -> Tensor:
    """Negative log-likelihood of each row's target, (B,), in nats.

    logits (N, V + 1), unnormalized, packed row after row; targets (B, max U), lengths (B,).
    Raises OptionError if the lengths do not add up to N or a row has no frame.
    """
    _check_lattice(logits, frame_lengths, target_lengths)
    apply: Callable[..., Tensor] = _TransducerLoss.apply
    return apply(logits, targets, frame_lengths, target_lengths, blank)


def tdt_loss(
    logits: Tensor,
    targets: Tensor,
    frame_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    durations: Sequence[int],
) -> Tensor:
    """As `transducer_loss` for a token-and-duration transducer: (B,), in nats.

    logits (N, V + 1 + durations). A label may stay on its frame, a blank may not; the last symbol
    is a blank that ends exactly after the last frame. Without an alignment it is about 1e30.
    """
    _check_lattice(logits, frame_lengths, target_lengths)
    lattice = Lattice(frame_lengths, target_lengths)
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    symbols, log_duration = precise[:, : blank + 1], precise[:, blank + 1 :].log_softmax(-1)
    log_blank, log_label, _ = _symbol_scores(symbols, targets, target_lengths, blank, lattice)
    W = lattice.shape[2]
    # Arcs that leave each node, by duration: (B, S, W, durations).
    arcs = [
        torch.stack([lattice.scatter(part, IMPOSSIBLE) for part in (log + log_duration.T)], dim=-1)
        for log in (log_blank, log_label)
    ]
    blanks, labels = (_skewed(grid) for grid in arcs)
    nothing = blanks.new_full((len(targets), W), IMPOSSIBLE)
    start = nothing.index_fill(1, torch.zeros(1, dtype=torch.long, device=nothing.device), 0.0)
    by_blank: list[Tensor] = []  # alpha + arc, for each diagonal: (B, W, durations)
    by_label: list[Tensor] = []
    for n in range(blanks.shape[1]):
        arriving = [start if n == 0 else nothing]
        for k, duration in enumerate(durations):
            if 0 < duration <= n:
                arriving.append(by_blank[n - duration][:, :, k])
            if duration < n:
                moved = by_label[n - duration - 1][:, :-1, k]
                arriving.append(torch.nn.functional.pad(moved, (1, 0), value=IMPOSSIBLE))
        alpha = torch.stack(arriving).logsumexp(0)
        by_blank.append(alpha[:, :, None] + blanks[:, n])
        by_label.append(alpha[:, :, None] + labels[:, n])
    ends = torch.stack(by_blank, dim=1)  # (B, diagonals, W, durations)
    rows = torch.arange(len(targets), device=targets.device)
    last = []
    for k, duration in enumerate(durations):
        if duration:
            frame = frame_lengths - duration
            final = ends[rows, (frame + target_lengths).clamp(min=0), target_lengths, k]
            last.append(torch.where(frame >= 0, final, IMPOSSIBLE))
    return -torch.stack(last).logsumexp(0).to(precise.dtype)


def _skewed(grid: Tensor) -> Tensor:
    """(B, S, W, n) -> (B, S + W - 1, W, n): row s + u has the entry of (s, u)."""
    W = grid.shape[2]
    columns = [
        torch.nn.functional.pad(grid[:, :, u], (0, 0, u, W - 1 - u), value=IMPOSSIBLE)
        for u in range(W)
    ]
    return torch.stack(columns, dim=2)


def _check_lattice(logits: Tensor, frame_lengths: Tensor, target_lengths: Tensor) -> None:
    nodes = frame_lengths * (target_lengths + 1)
    if int(nodes.sum()) != len(logits) or int(frame_lengths.min()) < 1:
        raise OptionError(
            f"transducer loss got {len(logits)} lattice nodes, expected "
            f"{int(nodes.sum())} by the lengths; every row needs at least one frame"
        )


def _symbol_scores(
    symbols: Tensor, targets: Tensor, target_lengths: Tensor, blank: int, lattice: "Lattice"
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of blank and next label at each node, (N,) each, and the labels."""
    total = symbols.logsumexp(-1)
    last = lattice.token == target_lengths[lattice.row]
    padded = torch.nn.functional.pad(targets, (0, 1), value=blank)
    labels = torch.where(last, blank, padded[lattice.row, lattice.token])
    log_label = symbols.gather(1, labels[:, None])[:, 0] - total
    return symbols[:, blank] - total, log_label.masked_fill(last, IMPOSSIBLE), labels


class Lattice:
    """Where each packed node sits in the padded grid (B, max S, max U + 1)."""

    def __init__(self, frame_lengths: Tensor, target_lengths: Tensor) -> None:
        device = frame_lengths.device
        self.frame_lengths, self.target_lengths = frame_lengths, target_lengths
        widths = target_lengths + 1
        nodes = frame_lengths * widths
        self.shape = (len(nodes), int(frame_lengths.max()), int(widths.max()))
        self.row = torch.repeat_interleave(torch.arange(len(nodes), device=device), nodes)
        offset = torch.arange(len(self.row), device=device) - (nodes.cumsum(0) - nodes)[self.row]
        width = widths[self.row]
        self.frame, self.token = offset // width, offset % width

    def scatter(self, values: Tensor, fill: float) -> Tensor:
        """(N,) -> (B, max S, max U + 1) in float64."""
        grid = torch.full(self.shape, fill, dtype=torch.float64, device=values.device)
        grid[self.row, self.frame, self.token] = values.double()
        return grid

    def gather(self, grid: Tensor) -> Tensor:
        """(B, max S, max U + 1) -> (N,)."""
        return grid[self.row, self.frame, self.token]


class _TransducerLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        frame_lengths: Tensor,
        target_lengths: Tensor,
        blank: int,
    ) -> Tensor:
        lattice = Lattice(frame_lengths, target_lengths)
        precise = logits.double() if logits.dtype == torch.float64 else logits.float()
        total = precise.logsumexp(-1)
        log_blank, log_label, labels = _symbol_scores(
            precise, targets, target_lengths, blank, lattice
        )

        blank_grid = lattice.scatter(log_blank, 0.0)
        label_grid = lattice.scatter(log_label, IMPOSSIBLE)
        alpha = _forward_variable(blank_grid, label_grid)
        beta = _backward_variable(blank_grid, label_grid, lattice)
        loss = -beta[:, 0, 0]

        # Probability that a path leaves a node by a blank or by a label.
        after_blank = torch.nn.functional.pad(beta[:, 1:], (0, 0, 0, 1), value=IMPOSSIBLE)
        rows = torch.arange(len(loss), device=loss.device)
        after_blank[rows, frame_lengths - 1, target_lengths] = 0.0
        after_label = torch.nn.functional.pad(beta[:, :, 1:], (0, 1), value=IMPOSSIBLE)
        reach = alpha + loss[:, None, None]
        by_blank = lattice.gather(reach + blank_grid + after_blank).exp().to(total.dtype)
        by_label = lattice.gather(reach + label_grid + after_label).exp().to(total.dtype)
        ctx.save_for_backward(logits, total, labels, by_blank, by_label, lattice.row)
        ctx.blank = blank
        return loss.to(total.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, total, labels, by_blank, by_label, row = ctx.saved_tensors
        weight = grads[0][row]
        gradient = (logits.to(total.dtype) - total[:, None]).exp_()
        gradient *= ((by_blank + by_label) * weight)[:, None]
        gradient[:, ctx.blank] -= by_blank * weight
        gradient.scatter_add_(1, labels[:, None], -(by_label * weight)[:, None])
        return gradient.to(logits.dtype), None, None, None, None


def _forward_variable(blank: Tensor, label: Tensor) -> Tensor:
    """a(s, u), (B, S, U + 1), from the log-probabilities of blank and label at each node."""
    gone = torch.nn.functional.pad(blank.cumsum(1)[:, :-1], (0, 0, 1, 0))
    columns = [gone[:, :, 0]]
    for u in range(1, blank.shape[2]):
        entered = columns[-1] + label[:, :, u - 1] - gone[:, :, u]
        columns.append(gone[:, :, u] + entered.logcumsumexp(1))
    return torch.stack(columns, dim=2)


def _backward_variable(blank: Tensor, label: Tensor, lattice: Lattice) -> Tensor:
    """b(s, u): log-likelihood of the rest of the target from node (s, u) on."""
    _, S, W = lattice.shape
    device = blank.device
    frames, tokens = lattice.frame_lengths[:, None], lattice.target_lengths
    inside = torch.arange(S, device=device) < frames
    # to_come(s) = sum of blank(s .. S_b - 1, u); nodes outside the row's lattice count 0.
    to_come = (blank * inside[:, :, None]).flip(1).cumsum(1).flip(1)
    columns: list[Tensor] = []
    below = blank.new_full((len(tokens), S), IMPOSSIBLE)
    for u in reversed(range(W)):
        left = below + label[:, :, u] - to_come[:, :, u]
        left = left.masked_fill(~inside, IMPOSSIBLE)
        rest = left.flip(1).logcumsumexp(1).flip(1) + to_come[:, :, u]
        # The last token's column may also leave the lattice by the final blank.
        ends = (tokens == u)[:, None]
        below = torch.where(ends, torch.where(inside, to_come[:, :, u], IMPOSSIBLE), rest)
        columns.append(below)
    return torch.stack(columns[::-1], dim=2)
