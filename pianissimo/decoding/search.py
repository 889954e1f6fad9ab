"""The search of a model: one interface over its heads and over greedy and beam search."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from torch import Tensor

from pianissimo.decoding.beam import BeamSearch
from pianissimo.decoding.beam_state import BeamOptions
from pianissimo.decoding.ctc import CtcGreedySearch
from pianissimo.decoding.ctc_beam import CtcBeamSearch
from pianissimo.decoding.greedy import GreedySearch
from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.lm.fusion import LanguageModel, read_lm
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel

Head = Literal["transducer", "ctc"]
FUSION_BEAM = 8
"""The default width of a beam that a language model needs."""
RESCORED_PAUSE_SECONDS = 0.8
"""The pause at which texts are rescored: longer than one between two words of a list."""


@dataclass(frozen=True)
class Decoding:
    """The search: greedy, or the best of `beam` hypotheses that live side by side.

    `rescoring` is how much the CTC head counts when the texts of a transducer's beam are weighed
    again at a pause, by default what the model's configuration says (0.5 is usual, 0 is never);
    it needs both heads.
    `lm` is an ARPA file of words or of the model's tokens; it needs a beam, 8 by default.
    `lm_weight` is how much it counts (0.5 for words, 0.3 for tokens) and `word_bonus`, in nats, is
    added for each of its words (1.5), since every word makes a text less likely.
    """

    beam: int | None = None
    lm: str | os.PathLike[str] | None = None
    lm_weight: float | None = None
    word_bonus: float | None = None
    rescoring: float | None = None

    def __post_init__(self) -> None:
        if self.lm is None and (self.lm_weight is not None or self.word_bonus is not None):
            raise OptionError("the weights of a language model need one: give its file as lm")
        if self.lm_weight is not None and not 0 <= self.lm_weight <= 10:
            raise OptionError(f"lm_weight must be 0 to 10, not {self.lm_weight}")
        if self.word_bonus is not None and not -20 <= self.word_bonus <= 20:
            raise OptionError(f"word_bonus must be -20 to 20, not {self.word_bonus}")
        if self.rescoring and self.greedy:
            raise OptionError("rescoring needs a beam of several hypotheses")
        BeamOptions(self.width, rescoring=self.rescoring or 0.0)

    @property
    def width(self) -> int:
        """The hypotheses that live side by side."""
        if self.beam is not None:
            return self.beam
        return 1 if self.lm is None else FUSION_BEAM

    @property
    def greedy(self) -> bool:
        return self.width == 1 and self.lm is None

    def language_model(self, vocabulary: Vocabulary) -> LanguageModel | None:
        """The language model for a vocabulary, if one is asked for; raises what `read_lm` does."""
        if self.lm is None:
            return None
        return read_lm(self.lm, vocabulary, self.lm_weight, self.word_bonus)


class SearchState(Protocol):
    """What a search remembers of a batch of streams; see `GreedyState` and `CtcState`."""

    frames: Tensor
    ahead: Tensor

    def rows(self, index: Tensor) -> Any: ...

    def write(self, index: Tensor, rows: Any) -> None: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def flush(self) -> list[Hypothesis]:
        """What each stream has left at its end, or where its text is locked."""
        ...


class Search(Protocol):
    """Encoder frames to tokens, chunk by chunk, with a state that the caller keeps."""

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
        self, encoded: Tensor, lengths: Tensor | None, state: Any, prompts: Tensor | None = None
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
        self, encoded: Tensor, lengths: Tensor | None, state: Any, prompts: Tensor | None = None
    ) -> list[Hypothesis]:
        if self.projector is not None:
            encoded = self.projector(encoded, prompts)
        return self.search.decode(encoded, lengths, state)

    def finish(
        self, encoded: Tensor, lengths: Tensor, state: Any, prompts: Tensor | None = None
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


def make_search(
    model: AsrModel,
    head: Head | None = None,
    decoding: Decoding | None = None,
    vocabulary: Vocabulary | None = None,
) -> Search:
    """The search with the head asked for, or the transducer where the model has one.

    A language model needs the `vocabulary`. Raises OptionError if the model lacks that head or
    there is no such search for it, and what reading the language model raises.
    """
    if head not in (None, "transducer", "ctc"):
        raise OptionError(f"unknown head {head!r}; choose transducer or ctc")
    decoding = decoding or Decoding()
    ctc = head == "ctc" or (head is None and model.joiner is None)
    if decoding.greedy:
        return CtcGreedySearch(model) if ctc else GreedySearch(model)
    lm = None if vocabulary is None else decoding.language_model(vocabulary)
    options = BeamOptions(decoding.width)
    if ctc:
        if decoding.rescoring:
            raise OptionError("rescoring is for the texts of a transducer, not for those of CTC")
        return CtcBeamSearch(model, options, lm)
    usual = model.config.rescoring
    if weight := usual if decoding.rescoring is None else decoding.rescoring:
        options = replace(options, rescoring=weight, pause_seconds=RESCORED_PAUSE_SECONDS)
    return BeamSearch(model, options, lm)
