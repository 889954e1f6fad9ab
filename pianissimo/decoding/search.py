"""The search of a model: one interface over its heads."""

from typing import Any, Literal, Protocol

from torch import Tensor

from pianissimo.decoding.ctc import CtcGreedySearch
from pianissimo.decoding.greedy import GreedySearch
from pianissimo.decoding.hypothesis import Hypothesis
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel

Head = Literal["transducer", "ctc"]


class SearchState(Protocol):
    """What a search remembers of a batch of streams; see `GreedyState` and `CtcState`."""

    frames: Tensor
    ahead: Tensor

    def rows(self, index: Tensor) -> Any: ...

    def write(self, index: Tensor, rows: Any) -> None: ...

    def tensors(self) -> dict[str, Tensor]: ...


class Search(Protocol):
    """Encoder frames to tokens, chunk by chunk, with a state that the caller keeps."""

    def start(self, batch: int = 1) -> Any: ...

    def decode(self, encoded: Tensor, lengths: Tensor | None, state: Any) -> list[Hypothesis]: ...


def make_search(model: AsrModel, head: Head | None = None) -> Search:
    """Greedy search with the head asked for, or the transducer where the model has one.

    Raises OptionError if the model lacks that head.
    """
    if head not in (None, "transducer", "ctc"):
        raise OptionError(f"unknown head {head!r}; choose transducer or ctc")
    if head == "ctc" or (head is None and model.joiner is None):
        return CtcGreedySearch(model)
    return GreedySearch(model)
