"""CTC head (Graves et al. 2006): encoder frames to log-probabilities, the blank last."""

from torch import Tensor, nn


class CtcHead(nn.Module):
    """(B, S, D) encoder frames -> (B, S, V + 1) log-probabilities."""

    def __init__(self, encoder_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.out = nn.Linear(encoder_dim, vocab_size + 1)

    def forward(self, encoder: Tensor) -> Tensor:
        return self.out(encoder).log_softmax(-1)
