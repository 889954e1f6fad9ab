"""Searches and decoders: their interfaces, and the decoder of a model with heads."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.token import Hypothesis
from pianissimo.models.asr import AsrModel

S = TypeVar("S", bound="SearchState")


class SearchState(Protocol):
    """The state of a search for a batch of streams; see `GreedyState` and `BeamState`."""

    frames: Tensor
    ahead: Tensor

    def rows(self: S, index: Tensor) -> S: ...

    def write(self: S, index: Tensor, rows: S) -> None: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Set the state of one stream to what `tensors` gave; ValueError for anything else."""
        ...

    def flush(self) -> list[Hypothesis]:
        """The remaining tokens of each stream where its text ends or is locked."""
        ...


def copy_saved(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors in place; raises ValueError for one that is missing, of another shape, or
    not finite."""
    for name, tensor in tensors.items():
        given = saved.get(name)
        if given is None or given.shape != tensor.shape:
            raise ValueError(f"{name} is missing or of another shape")
        if given.is_floating_point() and not bool(given.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")
        tensor.copy_(given)


class Search(Protocol):
    """Encoder frames to tokens, chunk by chunk, with a state that the caller holds."""

    def start(self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None) -> Any: ...

    def decode(self, encoded: Tensor, lengths: Tensor | None, state: Any) -> list[Hypothesis]: ...


class Decoder(Protocol):
    """All that lies behind an encoder: what a runner calls with the new frames of each step.

    B streams, S new encoder frames, D encoder width. `prompts` (B,) are the numbers of the rows'
    languages, `lengths` (B,) their valid frames, None where all are. State is one row per stream,
    begun by `start` and mutated by `decode` and `finish`.
    """

    @property
    def prompts(self) -> int:
        """How many prompts there are, numbered from 0; 1 for a decoder without a choice."""
        ...

    def prompt(self, language: str | None) -> int:
        """The prompt of a language, of the default language for None; OptionError naming those
        that the model has."""
        ...

    def start(
        self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None
    ) -> SearchState:
        """The state of new streams, with the phrases that each boosts."""
        ...

    def decode(
        self,
        encoded: Tensor,
        lengths: Tensor | None,
        state: Any,
        prompts: Tensor | None = None,
    ) -> list[Hypothesis]:
        """The tokens that further frames (B, S, D) add to each stream."""
        ...

    def finish(
        self, encoded: Tensor, lengths: Tensor, state: Any, prompts: Tensor | None = None
    ) -> list[Hypothesis]:
        """The tokens that each stream has left, given the frames of its tail (B, S, D), S >= 0.

        A stream may continue from the state: the frames of the tail then come again with its next
        chunk, and no token is given twice.
        """
        ...


class SearchDecoder:
    """The heads of an `AsrModel`: its language prompts, then a search. See `Decoder`."""

    def __init__(self, model: AsrModel, search: Search) -> None:
        self.model, self.search, self.projector = model, search, model.prompt
        self.prompts = 1 if model.config.prompts is None else model.config.prompts.count

    def prompt(self, language: str | None) -> int:
        return self.model.config.prompt(language)

    def start(
        self, batch: int = 1, tries: Sequence[PhraseTrie | None] | None = None
    ) -> SearchState:
        state: SearchState = self.search.start(batch, tries)
        return state

    def condition(self, encoded: Tensor, prompts: Tensor | None) -> Tensor:
        """Encoder frames as the heads get them."""
        return encoded if self.projector is None else self.projector(encoded, prompts)

    def decode(
        self,
        encoded: Tensor,
        lengths: Tensor | None,
        state: SearchState,
        prompts: Tensor | None = None,
    ) -> list[Hypothesis]:
        if self.projector is not None:
            encoded = self.projector(encoded, prompts)
        return self.search.decode(encoded, lengths, state)

    def finish(
        self, encoded: Tensor, lengths: Tensor, state: SearchState, prompts: Tensor | None = None
    ) -> list[Hypothesis]:
        if encoded.shape[1]:
            results = self.decode(encoded, lengths, state, prompts)
        else:
            results = [Hypothesis() for _ in lengths]
        for hypothesis, rest in zip(results, state.flush(), strict=True):
            hypothesis.extend(rest)
        # The frames of the tail come again with the next chunk: they count then, searched by now.
        state.frames -= lengths
        state.ahead += lengths
        return results
