"""One recording on its way to a recogniser: brought to level, watched for evidence of speech."""

from collections.abc import Iterable, Iterator

import numpy as np

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.level import Samples
from pianissimo.audio.vad import VoiceDetector
from pianissimo.guards import Evidence, Witness, WitnessState


class Hearing:
    """Of one recording; make another for the next. Without front end or detector it does nothing.

    The recogniser takes its samples from `levelled`; `evidence` is complete when they have ended.
    """

    def __init__(
        self, front_end: FrontEnd | None = None, detector: VoiceDetector | None = None
    ) -> None:
        self._front_end = front_end
        self._witness = None if detector is None else Witness(detector)
        self._heard: WitnessState | None = None

    def levelled(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """Mono blocks at 16 kHz in, the same samples at the right level out."""
        gain = None if self._front_end is None else self._front_end.start(live=False)
        if self._witness is not None:
            self._heard = self._witness.start()
        for block in blocks:
            loud = block
            if self._front_end is not None and gain is not None:
                loud = self._front_end.push(block, gain).samples
            self._watch(block, loud)
            if len(loud):
                yield loud
        if self._front_end is not None and gain is not None:
            rest = self._front_end.finish(gain).samples
            self._watch(rest[:0], rest)
            if len(rest):
                yield rest

    def whole(self, samples: Samples) -> Samples:
        """As `levelled`, for a recording (n,) at once."""
        return np.concatenate([samples[:0], *self.levelled([samples])])

    def _watch(self, raw: Samples, loud: Samples) -> None:
        if self._witness is not None and self._heard is not None:
            self._witness.push(raw, loud, self._heard)

    @property
    def evidence(self) -> Evidence | None:
        """What speaks for speech in the whole recording; None without a detector."""
        if self._witness is None or self._heard is None:
            return None
        return self._witness.finish(self._heard)
