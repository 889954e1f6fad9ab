"""Batched greedy decoding of language models: each row ends by itself, loops end early."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pianissimo.text.loops import is_stuck


@dataclass
class Generated:
    """The tokens of one row, its end token included, with their natural log-probabilities."""

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


def write_greedily(
    logits: Tensor,
    advance: Callable[[Tensor], Tensor],
    limits: Sequence[int],
    ends: Collection[int],
) -> list[Generated]:
    """The best token at each step, until an end token, a limit, or a loop at half of the limit.

    `logits` (B, V) are those of the first token; `advance` takes (B, 1) tokens and returns the
    logits after them. The length of other rows does not influence a row.
    """
    rows = [Generated() for _ in limits]
    going = [limit > 0 for limit in limits]
    while any(going):
        values, best = logits.float().log_softmax(-1).max(-1)
        for i, (token, value) in enumerate(zip(best.tolist(), values.tolist(), strict=True)):
            if not going[i]:
                continue
            written = rows[i]
            written.tokens.append(token)
            written.log_probs.append(value)
            ended = token in ends or len(written.tokens) >= limits[i]
            # People repeat themselves too, but not at half of the pace that limits allow.
            stuck = 2 * len(written.tokens) >= limits[i] and is_stuck(written.tokens)
            going[i] = not ended and not stuck
        if any(going):
            logits = advance(best[:, None])
    return rows
