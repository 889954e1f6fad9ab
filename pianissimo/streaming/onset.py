"""Onsets: where speech begins after a pause, and where the state of the model restarts for it.

Streaming models learn from single utterances. After long silence in
their caches they miss the first word, or all of a short command. Live streams and recordings
restart at the same places, by the same functions.

Positions are samples at the model's rate, windows are those of the voice detector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pianissimo.audio.vad import GROUP_WINDOWS, PRESETS, WINDOW_SAMPLES, WINDOW_SECONDS
from pianissimo.streaming.endpoint import OnsetRules
from pianissimo.streaming.grid import ChunkGrid

GROUP_SAMPLES = GROUP_WINDOWS * WINDOW_SAMPLES
"""Samples per step of the detector."""
MOST_BACK_SECONDS = 0.5
"""The latest report of an onset: one step of the detector and parts of a chunk after it."""


@dataclass
class OnsetMeter:
    """Finds onsets in what a detector thinks of consecutive windows, see `Track`.

    `windows` were heard so far; `voiced` is the window behind the last one with speech.
    """

    rules: OnsetRules
    windows: int = 0
    voiced: int = 0

    def push(self, values: Sequence[float]) -> list[int]:
        """Take the values of the next windows; the windows in which speech began after a pause."""
        onsets = []
        for value in values:
            if value >= PRESETS["normal"].onset:
                if (self.windows - self.voiced) * WINDOW_SECONDS >= self.rules.quiet_seconds:
                    onsets.append(self.windows)
                self.voiced = self.windows + 1
            self.windows += 1
        return onsets


def known_windows(position: int) -> int:
    """What the detector had heard when so much audio was there: it takes whole groups."""
    return position // GROUP_SAMPLES * GROUP_WINDOWS


def chunks_before(onset: int, origin: int, grid: ChunkGrid) -> int:
    """The chunks from `origin` on that are complete before the onset in window `onset` is known."""
    known = (onset // GROUP_WINDOWS + 1) * GROUP_SAMPLES
    chunks = max(0, (known - origin - grid.needed(0)) // grid.chunk_samples)
    while origin + grid.needed(chunks) < known:
        chunks += 1
    while chunks and origin + grid.needed(chunks - 1) >= known:
        chunks -= 1
    return chunks


def fresh_start(
    onset: int, origin: int, chunks: int, last: int, grid: ChunkGrid, rules: OnsetRules
) -> int | None:
    """Where a fresh state begins for the onset in window `onset`; None if it shall not.

    The present state began at `origin` and has `chunks` complete chunks; the last token ended at
    `last`. A fresh state begins at an encoder frame, and never behind those chunks.
    """
    rate, frame = grid.features.sample_rate, grid.factor * grid.features.hop_samples
    preroll = round(rules.preroll_seconds * rate)
    done = origin + chunks * grid.chunk_samples
    start = min(done, (onset * WINDOW_SAMPLES - preroll) // frame * frame)
    return start if origin < start and last <= start else None
