"""Rescoring of a transducer's beam by the CTC head of the same model.

Rescoring happens where tokens are settled although hypotheses disagree: at a pause, at the end of
a text, and where tokens are old. The score of a hypothesis is then its own score plus a weight
times the CTC log-probability of its whole text since the last pause (n-best rescoring). The two
heads make different errors: a transducer learns which texts are likely, CTC judges the audio alone.

Shape legend: S frames, V vocabulary, N texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss

from pianissimo.decoding.token import Token

LONGEST_FRAMES = 400
"""The most frames that are scored; of longer speech without a pause only the newer half is kept."""
NEVER = -1e4
"""Nats of a text that has no alignment, finite so that the other scores still rank such texts."""


@dataclass(frozen=True)
class Rescoring:
    """The CTC output for one stream since its last pause.

    `log_probs` (S, V + 1), the blank last, are those of the frames from `first` on, counted from
    the start of the stream; `settled` are the tokens that were settled in these frames.
    """

    weight: float
    log_probs: Tensor
    first: int = 0
    settled: tuple[Token, ...] = ()

    def extended(self, log_probs: Tensor, frame: int) -> "Rescoring":
        """The state after (S, V + 1) further frames, of which `frame` is the first."""
        first = self.first if len(self.log_probs) else frame  # a stream may begin at any frame
        return replace(self, log_probs=torch.cat([self.log_probs, log_probs]), first=first)

    def scores(self, texts: Sequence[tuple[int, ...]], frame: int | None = None) -> list[float]:
        """The weighted CTC scores of N texts.

        A text is the token ids after the settled ones. Frames after `frame` are not scored; by
        default all frames are.
        """
        end = None if frame is None else frame + 1 - self.first
        frames = self.log_probs[:end]
        S, N = len(frames), len(texts)
        before = [token.id for token in self.settled]
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

    def settle(
        self, tokens: Sequence[Token], frame: int, next_frame: int, pause: float
    ) -> "Rescoring":
        """The state after `tokens` were settled at a frame.

        Frames before a pause of more than `pause` frames are dropped, and so is the older part of
        speech without a pause. `next_frame` is the first frame of a token that is not settled.
        """
        settled = (*self.settled, *tokens)
        last = settled[-1].frame if settled else self.first - 1
        first = self.first
        if settled and next_frame - last > pause:
            first = last + 1
        elif frame - self.first >= LONGEST_FRAMES:
            first = max(self.first, min(next_frame, frame - LONGEST_FRAMES // 2))
        if not tokens and first == self.first:
            return self
        return replace(self, settled=settled).after(first)

    def after(self, frame: int) -> "Rescoring":
        """The state without the frames before `frame` and the tokens settled in them."""
        kept = tuple(token for token in self.settled if token.frame >= frame)
        return replace(
            self, log_probs=self.log_probs[frame - self.first :], first=frame, settled=kept
        )
