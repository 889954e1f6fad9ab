"""A recording in passages: each begins with a fresh state where speech begins after a pause.

Passages are those of a live stream of the same samples, see `streaming.onset`. Positions are
samples at the model's rate.
"""

from collections import deque
from collections.abc import Iterable

from pianissimo.audio.buffer import SampleBuffer
from pianissimo.audio.io import Samples
from pianissimo.audio.vad import Track, VoiceDetector
from pianissimo.hallucination.evidence import Intake
from pianissimo.streaming.endpoint import OnsetRules
from pianissimo.streaming.grid import ChunkGrid
from pianissimo.streaming.onset import MOST_BACK_SECONDS, OnsetMeter, chunks_before, fresh_start


class OnsetFinder:
    """The onsets of one recording, by the detector of its intake if that hears what leaves it."""

    def __init__(self, rules: OnsetRules, intake: Intake, detector: VoiceDetector | None) -> None:
        self._meter, self._intake = OnsetMeter(rules), intake
        self._detector = detector or VoiceDetector()
        self._voice = self._detector.start()

    def push(self, samples: Samples, *, last: bool) -> list[int]:
        """Take the samples (n,) that left the intake just now; the windows of new onsets."""
        track = self._intake.track
        if track is None:
            track = self._voice.track = Track(self._voice.windows)
            self._detector.push(samples, self._voice)
            if last:
                self._detector.finish(self._voice)
        return self._meter.push(track.values[self._meter.windows - track.first :])


class Passages:
    """Cuts one recording into passages while it comes. `origin` is where the present one began.

    Push samples and their onsets; while an onset is `pending`, let the model hear `read(stop)`,
    then `decide`. What `read()` returns after that is known to belong to the present passage.
    """

    def __init__(self, grid: ChunkGrid, rules: OnsetRules) -> None:
        self.origin = 0
        self._grid, self._rules = grid, rules
        self._buffer, self._read = SampleBuffer(), 0
        self._onsets: deque[int] = deque()
        self._last = False

    def push(self, samples: Samples, onsets: Iterable[int], *, last: bool) -> None:
        """Take the next samples (n,) and the windows of the onsets found in them."""
        self._buffer.append(samples)
        self._onsets.extend(onsets)
        self._last = last

    @property
    def pending(self) -> int | None:
        """Where the model has heard the last chunk before the next onset is known; None if that is
        open yet."""
        if not self._onsets:
            return None
        chunks = self._chunks()
        if not self._last and self.origin + self._grid.needed(chunks) > self._buffer.end:
            return None
        return self.origin + self._grid.needed(chunks - 1) if chunks else self.origin

    def _chunks(self) -> int:
        """The chunks of the present passage that are complete by then."""
        grid = self._grid
        chunks = chunks_before(self._onsets[0], self.origin, grid)
        if self._last:
            known = self._buffer.end - self.origin - grid.needed(0)
            chunks = min(chunks, max(0, known // grid.chunk_samples + 1))
        return chunks

    def decide(self, last_token: int) -> int | None:
        """Where a fresh state begins for the pending onset, or None for no fresh state.

        `last_token` is the end of the last token. What comes next is read from there.
        """
        chunks, onset = self._chunks(), self._onsets.popleft()
        start = fresh_start(onset, self.origin, chunks, last_token, self._grid, self._rules)
        if start is not None:
            self.origin = self._read = start
        return start

    def read(self, stop: int | None = None) -> Samples:
        """The samples (n,) after those read before, up to `stop` or to the newest one."""
        end = max(self._read, self._buffer.end if stop is None else stop)
        samples = self._buffer.read(self._read, end)
        self._read = end
        back = MOST_BACK_SECONDS + self._rules.preroll_seconds + self._grid.chunk_seconds
        self._buffer.forget(end - round(back * self._grid.features.sample_rate))
        return samples
