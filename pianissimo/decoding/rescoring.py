"""A second opinion on the texts of a transducer's beam, by the CTC head of the same model.

Where tokens are settled although hypotheses disagree (at a pause, at the end, or because they are
old), each hypothesis is worth its own score and, times a weight, the logarithm of what CTC says of
its whole text since the last pause: n-best rescoring. A transducer expects what its training texts
would say next, CTC only listens, so the two err in different places.

Shape legend: S frames, V vocabulary, N texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss

from pianissimo.decoding.token import Heard

LONGEST_FRAMES = 400
"""What is weighed at most; of longer speech without a pause the newer part."""
NEVER = -1e4
"""Nats of a text that has no alignment, finite so that the other scores still rank such texts."""


@dataclass(frozen=True)
class Rescoring:
    """What CTC heard of one stream since its last pause.

    `log_probs` (S, V + 1), the blank last, are of the frames from `first` on, counted from the
    start of the stream; `settled` are the tokens that were settled since.
    """

    weight: float
    log_probs: Tensor
    first: int = 0
    settled: tuple[Heard, ...] = ()

    def extended(self, log_probs: Tensor) -> "Rescoring":
        """With (S, V + 1) further frames."""
        return replace(self, log_probs=torch.cat([self.log_probs, log_probs]))

    def worth(self, texts: Sequence[tuple[int, ...]], frame: int | None = None) -> list[float]:
        """What is added to the scores of N texts, each the tokens after the settled ones, as heard
        up to a frame, by default the newest."""
        end = None if frame is None else frame + 1 - self.first
        frames = self.log_probs[:end]
        S, N = len(frames), len(texts)
        before = [heard.token for heard in self.settled]
        whole = [torch.tensor([*before, *text], dtype=torch.long) for text in texts]
        lengths = torch.tensor([len(text) for text in whole])
        targets = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True).to(frames.device)
        losses = ctc_loss(
            frames[:, None].expand(-1, N, -1),
            targets,
            torch.full((N,), S),
            lengths,
            blank=frames.shape[-1] - 1,
            reduction="none",
        )
        return (self.weight * (-losses).clamp(min=NEVER)).tolist()

    def told(self, settled: Sequence[Heard]) -> "Rescoring":
        """After these tokens were settled."""
        return replace(self, settled=(*self.settled, *settled)) if settled else self

    def restarted(self) -> "Rescoring":
        """Where a text ends: all that was heard is done with."""
        return self.after(self.first + len(self.log_probs))

    def after(self, frame: int) -> "Rescoring":
        """Without the frames before this one and what was settled in them."""
        kept = tuple(heard for heard in self.settled if heard.frame >= frame)
        return replace(
            self, log_probs=self.log_probs[frame - self.first :], first=frame, settled=kept
        )

    def forgetting(self, frame: int, next_heard: int, pause: float) -> "Rescoring":
        """What is still of use at a frame, where `next_heard` is the first frame of a token that is
        not settled yet: nothing from before a pause of so many frames, and not too much."""
        last = self.settled[-1].frame if self.settled else self.first - 1
        if self.settled and next_heard - last > pause:
            return self.after(last + 1)
        if frame - self.first < LONGEST_FRAMES:
            return self
        return self.after(max(self.first, min(next_heard, frame - LONGEST_FRAMES // 2)))
