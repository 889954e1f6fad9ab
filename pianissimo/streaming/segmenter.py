"""The speech of a live stream in segments that end in pauses, for offline models.

    push -> segments that are complete; mark -> what is left, the last one answers the mark

The detector listens to a copy at the right level, in steps on an absolute grid: blocks of any size
give the same segments. The segments themselves are the samples as they came, since a recognizer
brings each to its level with one gain.
"""

import copy
from dataclasses import dataclass

import numpy as np

from pianissimo.audio.buffer import SampleBuffer
from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.level import quietest_point
from pianissimo.audio.vad import MAX_SEGMENT_SECONDS, WINDOW_SAMPLES, VoiceDetector
from pianissimo.streaming.endpoint import EndpointRules, FinalReason, Mark

STEP_SAMPLES = 8 * WINDOW_SAMPLES
"""Samples per step of the detector."""
LONGEST_PAUSE_SECONDS = 2.0
"""A longer one ends a segment whatever the rules say: silence never reaches the model."""
CUT_SECONDS = 4.0
"""Without a pause, a segment is cut at the quietest point of its last seconds."""
_QUIET_SAMPLES = SAMPLE_RATE // 10


@dataclass(frozen=True, eq=False)
class LiveSegment:
    """Samples (n,) of a stream from sample `start` on; none, if a mark found no speech."""

    start: int
    samples: Samples
    reason: FinalReason


class Segmenter:
    """One stream of mono float32 at 16 kHz. Without `rules` only long pauses end a segment."""

    def __init__(
        self, detector: VoiceDetector, front_end: FrontEnd, rules: EndpointRules | None
    ) -> None:
        self._detector, self._front_end, self._rules = detector, front_end, rules
        longest = MAX_SEGMENT_SECONDS
        if rules is not None:
            longest = min(longest, rules.maximum_utterance)
        self._most = round(longest * SAMPLE_RATE)
        self._pad = round(detector.options.pad_seconds * SAMPLE_RATE)
        self._level = front_end.start(live=True)
        self._vad = detector.start()
        self._loud = np.zeros(0, np.float32)
        self._buffer = SampleBuffer()
        self._heard = 0
        self._floor = 0  # what lies before it has left
        self._first: int | None = None
        self._last = 0  # where speech ended, as far as is known

    @property
    def position(self) -> int:
        """Samples pushed so far."""
        return self._buffer.end

    @property
    def speaking(self) -> bool:
        """Whether a segment has begun and not ended."""
        return self._first is not None

    def push(self, samples: Samples) -> list[LiveSegment]:
        """Take samples (n,), n >= 0, and return the segments that they end."""
        self._buffer.append(samples)
        loud = self._front_end.push(samples, self._level).samples
        self._loud = np.concatenate([self._loud, loud])
        segments = []
        while len(self._loud) >= STEP_SAMPLES:
            self._listen(self._loud[:STEP_SAMPLES])
            self._loud = self._loud[STEP_SAMPLES:].copy()
            segments += self._ended()
            self._forget()
        return segments

    def mark(self, kind: Mark) -> list[LiveSegment]:
        """End the segment of everything pushed so far; the last one returned has `kind` as reason.

        The stream may continue.
        """
        # The detector itself continues unchanged: only a copy is told that the sound ends.
        end, vad = self.position, copy.deepcopy(self._vad)
        for span in (*self._detector.push(self._loud, vad), *self._detector.finish(vad)):
            self._note(*self._spoken(span.start, span.end))
        self._heard, heard = end, self._heard
        segments = self._too_long()
        self._heard = heard
        if self._first is None:
            segments.append(LiveSegment(end, np.zeros(0, np.float32), kind))
        else:
            segments.append(self._close(min(self._last + self._pad, end), kind))
        self._floor = end
        self._forget()
        return segments

    # -- what the detector says --------------------------------------------------------------------

    def _listen(self, step: Samples) -> None:
        vad, options = self._vad, self._detector.options
        spans = self._detector.push(step, vad)
        self._heard += len(step)
        for span in spans:
            self._note(*self._spoken(span.start, span.end))
        if vad.start is not None and self._detector.open_seconds(vad) >= options.min_speech_seconds:
            start = max(0, vad.start * WINDOW_SAMPLES - self._pad)
            self._note(start, vad.end * WINDOW_SAMPLES)

    def _spoken(self, start: float, end: float) -> tuple[int, int]:
        """A span in samples: from its padding on, until the speech in it ends."""
        return round(start * SAMPLE_RATE), round(end * SAMPLE_RATE) - self._pad

    def _note(self, start: int, last: int) -> None:
        if self._first is None:
            if last <= self._floor:
                return
            self._first = max(start, self._floor)
        self._last = max(self._last, last)

    # -- segments ----------------------------------------------------------------------------------

    def _ended(self) -> list[LiveSegment]:
        """The segments that end here: in a pause, or because they are long enough."""
        segments = self._too_long()
        if self._first is None:
            return segments
        pause_ends = min(self._last + self._pad, self._heard)
        if (
            self._rules is not None
            and self._rules.verdict(
                (self._first + self._pad) / SAMPLE_RATE,
                self._last / SAMPLE_RATE,
                self._heard / SAMPLE_RATE,
            )
            == "endpoint"
        ):
            segments.append(self._close(pause_ends, "endpoint"))
        elif self._heard - self._last >= LONGEST_PAUSE_SECONDS * SAMPLE_RATE:
            segments.append(self._close(pause_ends, "length"))
        return segments

    def _too_long(self) -> list[LiveSegment]:
        """Segments of speech without a pause, cut where it is quietest."""
        segments = []
        while self._first is not None and self._heard - self._first > self._most:
            if self._last + self._pad <= self._first + self._most:
                break  # it ended in time: only silence was added
            least = max(self._most // 2, self._most - round(CUT_SECONDS * SAMPLE_RATE))
            samples = self._buffer.read(self._first, self._first + self._most)
            cut = self._first + quietest_point(samples, least, self._most, _QUIET_SAMPLES)
            segments.append(self._close(cut, "length"))
            self._note(cut, self._last)
        return segments

    def _close(self, end: int, reason: FinalReason) -> LiveSegment:
        assert self._first is not None
        segment = LiveSegment(self._first, self._buffer.read(self._first, end), reason)
        self._first, self._floor = None, end
        return segment

    def _forget(self) -> None:
        """Keep what the open segment needs, or what one may need that begins now."""
        needed = self._first
        if needed is None:
            begun = self._heard if self._vad.start is None else self._vad.start * WINDOW_SAMPLES
            needed = max(self._floor, begun - self._pad)
        self._buffer.forget(needed)
