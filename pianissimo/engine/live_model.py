"""A model made ready for live streams: the encoder and the decoder that a runner drives."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pianissimo.decoding.decoder import Decoder, Search, SearchDecoder
from pianissimo.decoding.token import Hypothesis
from pianissimo.engine.slot_encoder import SlotEncoder
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.models.streaming_encoder import Memory, Rows, StreamingEncoder
from pianissimo.streaming.grid import ChunkGrid


class SecondPass(Protocol):
    """Hears what streams said since their state began once more, as well as the model can."""

    def finish(
        self,
        features: Sequence[Tensor | None],
        rows: Rows,
        memory: Memory,
        state: Any,
        prompts: Tensor,
    ) -> list[Hypothesis]:
        """The features (T, F) behind the last chunk of each row, or None; the states of the
        decoder, and the languages (B,) -> the whole text of each row. Arena and state stay."""
        ...


@dataclass(frozen=True)
class LiveModel:
    """An encoder and the decoder behind it, shared by all runners and their arenas.

    `fingerprint` names configuration and weights: a saved stream continues on no other model.
    `second_pass` is None for a model without one.
    """

    encoder: StreamingEncoder
    decoder: Decoder
    fingerprint: str
    second_pass: SecondPass | None = None

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    @property
    def lookaheads(self) -> tuple[int, ...]:
        """The latency modes, in encoder frames."""
        return self.encoder.lookaheads

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.grid(self.lookaheads[0]).features.sample_rate

    def grid(self, lookahead: int) -> ChunkGrid:
        """The chunks of one latency mode; OptionError naming the modes for any other."""
        return self.encoder.grid(lookahead)


def live_model(model: AsrModel, search: Search) -> LiveModel:
    """A streaming model with that search, packed where that helps; OptionError for other models."""
    if not model.config.streams:
        raise OptionError(
            f"{model.config.name} transcribes whole recordings and cannot stream; choose a "
            "streaming model"
        )
    weights = model.encoder.subsampling.conv.parameters()
    return LiveModel(
        SlotEncoder(model), SearchDecoder(model, search), fingerprint(model.config, weights)
    )


def fingerprint(config: object, weights: Iterable[Tensor]) -> str:
    """A digest of a configuration, by its repr, and of some of the weights."""
    digest = hashlib.sha256(repr(config).encode())
    for weight in weights:
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
