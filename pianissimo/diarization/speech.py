"""Where a recording has speech, with the tight edges that turns need."""

import numpy as np

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.level import Samples
from pianissimo.audio.vad import (
    WINDOW_SECONDS,
    SpeechModel,
    VadOptions,
    VoiceDetector,
    available,
)

TURN_EDGES = VadOptions(
    onset=0.5,
    offset=0.35,
    energy_db=None,
    min_speech_seconds=0.2,
    pad_seconds=0.03,
    merge_seconds=0.3,
)
"""Unlike before a recognizer, a false alarm costs as much here as a miss."""
ENERGY_EDGES = VadOptions(min_speech_seconds=0.2, pad_seconds=0.03)
"""The same without the detector's model."""
LONGEST_PIECE_SECONDS = 20.0
"""Speech without a pause is handed out in pieces, so that memory stays bounded."""


class SpeechPieces:
    """The stretches of speech of one recording, each with its leveled samples.

    `live` levels without waiting; a recording gets one gain for up to 30 s.
    """

    def __init__(
        self, *, live: bool = False, longest_seconds: float = LONGEST_PIECE_SECONDS
    ) -> None:
        model = SpeechModel() if available() else None
        self._detector = VoiceDetector(ENERGY_EDGES if model is None else TURN_EDGES, model)
        self._vad = self._detector.start()
        self._front_end = FrontEnd("on")
        self._gain = self._front_end.start(live=live)
        self._longest = longest_seconds
        self._first = 0  # the position of the first sample that is kept
        self._kept = np.zeros(0, np.float32)
        self._done = 0.0  # seconds up to which speech was handed out

    @property
    def seconds(self) -> float:
        """The end of the audio that was searched."""
        return self._vad.windows * WINDOW_SECONDS

    @property
    def settled_seconds(self) -> float:
        """The time before which all speech was handed out."""
        opened = self._vad.start
        return self.seconds if opened is None else max(opened * WINDOW_SECONDS, self._done)

    def push(self, samples: Samples) -> list[tuple[float, float, Samples]]:
        """Take samples (n,); the complete pieces as (start, end, samples), times in seconds."""
        return self._search(self._front_end.push(samples, self._gain).samples, last=False)

    def finish(self) -> list[tuple[float, float, Samples]]:
        """The last pieces."""
        return self._search(self._front_end.finish(self._gain).samples, last=True)

    def _search(self, leveled: Samples, *, last: bool) -> list[tuple[float, float, Samples]]:
        found: list[tuple[float, float, Samples]] = []
        # Block by block of a second: an open stretch is cut where it becomes too long.
        for start in range(0, max(len(leveled), 1), SAMPLE_RATE):
            block = leveled[start : start + SAMPLE_RATE]
            self._kept = np.concatenate([self._kept, block])
            for span in self._detector.push(block, self._vad):
                found += self._piece(span.start, span.end)
            opened = self._vad.start
            if opened is not None:
                begin = max(opened * WINDOW_SECONDS, self._done)
                if self.seconds - begin > self._longest:
                    found += self._piece(begin, self._vad.end * WINDOW_SECONDS)
            self._forget()
        if last:
            for span in self._detector.finish(self._vad):
                found += self._piece(span.start, span.end)
        return found

    def _piece(self, start: float, end: float) -> list[tuple[float, float, Samples]]:
        start = max(start, self._done)
        if end <= start:
            return []
        self._done = end
        first, stop = (round(time * SAMPLE_RATE) - self._first for time in (start, end))
        return [(start, end, self._kept[max(first, 0) : stop].copy())]

    def _forget(self) -> None:
        """Drop the samples that no later piece can hold."""
        opened = self._vad.start
        start = self.seconds if opened is None else opened * WINDOW_SECONDS
        start = max(start - 2 * TURN_EDGES.pad_seconds, self._done)
        gone = min(max(0, round(start * SAMPLE_RATE) - self._first), len(self._kept))
        if gone > SAMPLE_RATE:
            self._kept, self._first = self._kept[gone:].copy(), self._first + gone
