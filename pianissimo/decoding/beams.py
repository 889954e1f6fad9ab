"""What beam searches share: the beams of a batch of streams, and when their text is settled.

A beam says nothing that it might take back. A token is settled, and returned, once all hypotheses
of the beam agree on it; or once it is `settle_seconds` old, when hypotheses that disagree with the
best one are given up; or once nothing was said for `pause_seconds`, so that a pause finds the text
complete. So text only grows here too, a little later than in greedy search.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, Protocol, Self, TypeVar

import torch
from torch import Tensor

from pianissimo.decoding.lm.fusion import Fusion
from pianissimo.decoding.rescoring import Rescoring
from pianissimo.decoding.token import Heard, Hypothesis
from pianissimo.errors import OptionError, StateError
from pianissimo.models.asr import LARGEST_BEAM


@dataclass(frozen=True)
class BeamOptions:
    """How widely to search.

    Of each frame's CTC symbols those below `token_floor` (a natural logarithm) are passed over, and
    hypotheses that score `window` less than the best one are given up. `rescoring` is how much CTC
    counts when the texts of a transducer are weighed again, see `Rescoring`.
    """

    beam: int = 4
    settle_seconds: float = 2.0
    pause_seconds: float = 0.4
    token_floor: float = -5.0
    window: float = 15.0
    rescoring: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.beam <= LARGEST_BEAM:
            raise OptionError(f"a beam is 1 to {LARGEST_BEAM} hypotheses wide, not {self.beam}")
        if not min(self.settle_seconds, self.pause_seconds, self.window, -self.token_floor) > 0:
            raise OptionError("the bounds of a beam search must be above 0, its token floor below")
        if not 0 <= self.rescoring <= 10:
            raise OptionError(f"rescoring must be 0 to 10, not {self.rescoring}")


class Scored(Protocol):
    """A hypothesis of a beam: its tokens since the last settled one, and its score with all that
    is added to it."""

    @property
    def tokens(self) -> tuple[int, ...]: ...

    @property
    def heard(self) -> tuple[Heard, ...]: ...

    @property
    def score(self) -> float: ...

    @property
    def state(self) -> Any: ...

    def without(self, count: int) -> Self:
        """The hypothesis after its first tokens were settled."""
        ...


H = TypeVar("H", bound=Scored)


@dataclass(frozen=True)
class Beam:
    """The hypotheses of one stream, the best first; what a search needs beside them is `memory`.

    With `rescoring` they are weighed again where their text ends.
    """

    hypotheses: tuple[Any, ...]
    fusion: Fusion = field(default_factory=Fusion)
    last_frame: int = 0
    memory: Any = None
    rescoring: Rescoring | None = None


@dataclass
class BeamState:
    """What a beam search remembers of B streams: their beams, and the counts of `GreedyState`."""

    beams: list[Beam]
    frames: Tensor
    ahead: Tensor

    def rows(self, index: Tensor) -> "BeamState":
        """The state of some of the streams: index (R,)."""
        beams = [self.beams[i] for i in index.tolist()]
        return BeamState(beams, self.frames[index], self.ahead[index])

    def write(self, index: Tensor, rows: "BeamState") -> None:
        """Put back what `rows` returned: row r becomes stream index[r]."""
        for stream, beam in zip(index.tolist(), rows.beams, strict=True):
            self.beams[stream] = beam
        self.frames[index], self.ahead[index] = rows.frames, rows.ahead

    def flush(self) -> list[Hypothesis]:
        """What each stream has left at its end, or where its text is locked; the beams go on from
        there with their best hypothesis."""
        found = [Hypothesis() for _ in self.beams]
        for row, beam in enumerate(self.beams):
            beam, settled = ended(beam)
            self.beams[row] = report(beam, settled, found[row])
        return found

    def tensors(self) -> NoReturn:
        """Raises StateError: beams are not saved."""
        raise StateError("a stream that is decoded with a beam cannot be saved; use greedy search")


@dataclass(frozen=True)
class Settling:
    """When tokens are settled, in frames; see `BeamOptions`."""

    age: float
    pause: float

    @classmethod
    def of(cls, options: BeamOptions, frame_seconds: float) -> "Settling":
        return cls(options.settle_seconds / frame_seconds, options.pause_seconds / frame_seconds)

    def due(self, best: Scored, frame: int) -> int:
        """How many tokens of the best hypothesis are settled now even if others disagree."""
        if best.heard and frame - best.heard[-1].frame >= self.pause:
            return len(best.heard)
        return sum(heard.frame < frame - self.age for heard in best.heard)

    def __call__(self, hypotheses: Sequence[H], frame: int) -> tuple[list[H], tuple[Heard, ...]]:
        """The hypotheses, of which the first is the best, that stay after a frame, and what is
        settled by then."""
        best = hypotheses[0]
        due = self.due(best, frame)
        if due:
            hypotheses = [h for h in hypotheses if h.tokens[:due] == best.tokens[:due]]
        agreed = min(len(h.tokens) for h in hypotheses)
        for h in hypotheses:
            while h.tokens[:agreed] != best.tokens[:agreed]:
                agreed -= 1
        if not agreed:
            return list(hypotheses), ()
        return [h.without(agreed) for h in hypotheses], best.heard[:agreed]


def ended(beam: Beam) -> tuple[Beam, tuple[Heard, ...]]:
    """The beam where a text ends: its best hypothesis alone, all of it settled."""
    best, _ = max(_texts(beam).values(), key=lambda pair: pair[1])
    rescoring = beam.rescoring and beam.rescoring.restarted()
    return replace(
        beam, hypotheses=(best.without(len(best.tokens)),), rescoring=rescoring
    ), best.heard


def report(beam: Beam, settled: Iterable[Heard], found: Hypothesis) -> Beam:
    """Append settled tokens to what was found; frames never go back, whoever heard them."""
    last = beam.last_frame
    for heard in settled:
        last = max(last, heard.frame)
        found.append(heard.token, last, heard.log_prob, min(max(heard.confidence, 0.0), 1.0))
    return replace(beam, last_frame=last)


def alternatives(beam: Beam) -> list[tuple[tuple[int, ...], float]]:
    """The texts of a beam after what is settled, the best first, as tokens with their scores."""
    scored = [(tokens, score) for tokens, (_, score) in _texts(beam).items()]
    return sorted(scored, key=lambda pair: -pair[1])


def _texts(beam: Beam) -> dict[tuple[int, ...], tuple[Any, float]]:
    """For each text its likeliest hypothesis, and what it is worth where it ends.

    Hypotheses of one text that wait for different frames are the same there.
    """
    texts: dict[tuple[int, ...], tuple[Any, float]] = {}
    for h in sorted(beam.hypotheses, key=lambda h: -h.score):
        first, total = texts.get(h.tokens, (h, -math.inf))
        texts[h.tokens] = first, log_add(total, h.score + beam.fusion.end(h.state))
    if beam.rescoring is not None and len(texts) > 1:
        worth = beam.rescoring.worth(list(texts))
        for (tokens, (first, total)), more in zip(list(texts.items()), worth, strict=True):
            texts[tokens] = first, total + more
    return texts


def log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def empty_state(beams: list[Beam], device: torch.device) -> BeamState:
    zeros = torch.zeros(len(beams), dtype=torch.long, device=device)
    return BeamState(beams, zeros, zeros.clone())
