"""Options of decoding, and the search of a model for its head and these options."""

import os
from dataclasses import dataclass, replace
from typing import Literal

from pianissimo.decoding.beam import BeamSearch
from pianissimo.decoding.beam_state import BeamOptions
from pianissimo.decoding.ctc import CtcGreedySearch
from pianissimo.decoding.ctc_beam import CtcBeamSearch
from pianissimo.decoding.decoder import Search
from pianissimo.decoding.greedy import GreedySearch
from pianissimo.decoding.lm.fusion import LanguageModel, read_lm
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel

Head = Literal["transducer", "ctc"]
FUSION_BEAM = 8
"""The default beam of a search with a language model."""
RESCORED_PAUSE_SECONDS = 0.8
"""The pause at which texts are rescored: longer than one between two words of a list."""


@dataclass(frozen=True)
class Decoding:
    """How text is decoded: by greedy search, or by a beam search over `beam` hypotheses.

    `rescoring` is the weight of the CTC head where the texts of a transducer's beam are rescored at
    a pause. The default is the weight of the model's configuration; 0.5 is usual, 0 turns rescoring
    off. It needs both heads.
    `lm` is an ARPA file of words or of the model's tokens; it needs a beam, 8 by default.
    `lm_weight` is the weight of the language model (0.5 for words, 0.3 for tokens). `word_bonus`,
    in nats, is added for each word (1.5), since each further word makes a text less likely.
    """

    beam: int | None = None
    lm: str | os.PathLike[str] | None = None
    lm_weight: float | None = None
    word_bonus: float | None = None
    rescoring: float | None = None

    def __post_init__(self) -> None:
        if self.lm is None and (self.lm_weight is not None or self.word_bonus is not None):
            raise OptionError("lm_weight and word_bonus need a language model; set lm to its file")
        if self.lm_weight is not None and not 0 <= self.lm_weight <= 10:
            raise OptionError(f"lm_weight must be 0 to 10, not {self.lm_weight}")
        if self.word_bonus is not None and not -20 <= self.word_bonus <= 20:
            raise OptionError(f"word_bonus must be -20 to 20, not {self.word_bonus}")
        if self.rescoring and self.greedy:
            raise OptionError("rescoring needs a beam of several hypotheses")
        BeamOptions(self.width, rescoring=self.rescoring or 0.0)

    @property
    def width(self) -> int:
        """The number of hypotheses that are kept."""
        if self.beam is not None:
            return self.beam
        return 1 if self.lm is None else FUSION_BEAM

    @property
    def greedy(self) -> bool:
        return self.width == 1 and self.lm is None

    def language_model(self, vocabulary: Vocabulary) -> LanguageModel | None:
        """The language model for a vocabulary, None without `lm`; raises what `read_lm` raises."""
        if self.lm is None:
            return None
        return read_lm(self.lm, vocabulary, self.lm_weight, self.word_bonus)


def make_search(
    model: AsrModel,
    head: Head | None = None,
    decoding: Decoding | None = None,
    vocabulary: Vocabulary | None = None,
) -> Search:
    """The search with the requested head, by default the transducer if the model has one.

    A language model needs the `vocabulary`. Raises OptionError if the model lacks that head or the
    head has no such search, and what reading the language model raises.
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
            raise OptionError("rescoring needs the transducer head, not the CTC head")
        return CtcBeamSearch(model, options, lm)
    default = model.config.rescoring
    if weight := default if decoding.rescoring is None else decoding.rescoring:
        options = replace(options, rescoring=weight, pause_seconds=RESCORED_PAUSE_SECONDS)
    return BeamSearch(model, options, lm)
