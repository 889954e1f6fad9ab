"""Predictor and joiner of the RNN transducer (Graves 2012, arXiv 1211.3711).

Shape legend: B batch, S encoder frames, U tokens, D encoder width, P predictor width, J joint
width, V vocabulary without blank. The blank is the last id, V, and also the start symbol, whose
embedding row is zero. A token-and-duration transducer (Xu et al. 2023, arXiv 2304.06795) scores
the number of frames to advance beside the symbols: `durations`, after the blank in the output.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pianissimo.errors import OptionError


@dataclass(frozen=True)
class TransducerConfig:
    """Shape of predictor and joiner; `vocab_size` counts tokens without the blank.

    `durations`, in encoder frames, are empty for a plain RNN transducer.
    """

    vocab_size: int = 1024
    predictor_dim: int = 640
    predictor_layers: int = 2
    joint_dim: int = 640
    durations: tuple[int, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "predictor_dim", "predictor_layers", "joint_dim"):
            if getattr(self, name) < 1:
                raise OptionError(f"transducer {name} is {getattr(self, name)}, expected 1 or more")
        if min(self.durations, default=0) < 0 or not 0 <= self.dropout < 1:
            raise OptionError(
                f"durations {self.durations} or transducer dropout {self.dropout} are out of range"
            )

    @property
    def blank(self) -> int:
        return self.vocab_size


@dataclass
class PredictorState:
    """LSTM state of a batch of hypotheses: hidden and cell, each (layers, B, P)."""

    hidden: Tensor
    cell: Tensor


class Predictor(nn.Module):
    """The label side: what was emitted so far -> (B, P)."""

    def __init__(self, config: TransducerConfig) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(config.vocab_size + 1, config.predictor_dim)
        if not weight.is_meta:  # drawing unused numbers would load PyTorch's compiler
            nn.init.normal_(weight)
            weight[config.blank] = 0.0
        self.embedding = nn.Embedding(
            len(weight), config.predictor_dim, padding_idx=config.blank, _weight=weight
        )
        self.lstm = nn.LSTM(
            config.predictor_dim, config.predictor_dim, config.predictor_layers, batch_first=True
        )
        self.dropout = nn.Dropout(config.dropout)

    def start(self, batch: int) -> PredictorState:
        zeros = self.embedding.weight.new_zeros(
            self.config.predictor_layers, batch, self.config.predictor_dim
        )
        return PredictorState(zeros, zeros.clone())

    def step(self, labels: Tensor, state: PredictorState) -> tuple[Tensor, PredictorState]:
        """Feed one label per row: (B,) -> (B, P) and the state after it."""
        out, (hidden, cell) = self.lstm(self.embedding(labels)[:, None], (state.hidden, state.cell))
        return out[:, 0], PredictorState(hidden, cell)

    def forward(self, targets: Tensor) -> Tensor:
        """All prefixes of the targets: (B, U) -> (B, U + 1, P), the empty prefix first."""
        start = targets.new_full((targets.shape[0], 1), self.config.blank)
        out, _ = self.lstm(self.dropout(self.embedding(torch.cat([start, targets], dim=1))))
        return out


class Joiner(nn.Module):
    """Scores of what comes next: relu(encoder + predictor) -> logits."""

    def __init__(self, encoder_dim: int, config: TransducerConfig) -> None:
        super().__init__()
        self.encoder = nn.Linear(encoder_dim, config.joint_dim)
        self.predictor = nn.Linear(config.predictor_dim, config.joint_dim)
        self.out = nn.Linear(config.joint_dim, config.vocab_size + 1 + len(config.durations))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, encoder: Tensor, predictor: Tensor) -> Tensor:
        """Projected frames and predictor outputs, broadcast: (..., J) -> (..., V + 1 + durations).

        Both come through `self.encoder` and `self.predictor` once, not once per pair.
        """
        return self.out(self.dropout(torch.relu(encoder + predictor)))
