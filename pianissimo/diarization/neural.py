"""Turns of a diarization network, which hears several people at once, offline and live.

push ──(mel frames)──> steps of the network ──(probabilities)──> stretches per speaker ──> turns

A speaker begins where the probability reaches `ONSET` and ends where it falls below `OFFSET`. Short
pauses are bridged, short stretches are dropped. The network's state does not grow with the audio.
"""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pianissimo.audio import SAMPLE_RATE
from pianissimo.audio.level import Samples
from pianissimo.diarization.options import RECENT_TURNS
from pianissimo.text.turns import Turn

if TYPE_CHECKING:
    from pianissimo.models.speaker_cache import SpeakerNetwork, StepSizes

ONSET, OFFSET = 0.5, 0.4
LEAST_SECONDS = 0.2
BRIDGED_SECONDS = 0.3
_LOADED = 2  # networks kept in memory


@lru_cache(maxsize=_LOADED)
def load_network(path: str) -> "SpeakerNetwork":
    """The network of a folder or file, loaded once per process; CheckpointError if it is none."""
    from pianissimo.models.checkpoints.diarization import read_diarization

    return read_diarization(Path(path))


@dataclass
class Stretch:
    """Speech of one speaker that may still continue; times in seconds.

    `total` is the sum of the probabilities of `frames` frames, `shown` what was reported of it.
    """

    start: float
    end: float
    total: float
    frames: int
    shown: float

    @property
    def confidence(self) -> float:
        return round(self.total / self.frames, 4)


class ModelTurns:
    """The turns of one recording or stream by a network; a `LiveTurnSource`.

    `sizes` are the network's `offline` or one of its `live`. Without `keep`, for streams without
    end, the turns are forgotten once they were `recent`, and `finish` returns those only.
    """

    def __init__(self, network: "SpeakerNetwork", sizes: "StepSizes", *, keep: bool = True) -> None:
        from pianissimo.models.speaker_cache import SpeakerStream, frame_seconds

        self._stream = SpeakerStream(network, sizes)
        self._frame_seconds = frame_seconds(network)
        self._score_seconds = self._frame_seconds / network.scores_per_frame
        self._scores = self._samples = 0
        self._speaking = np.zeros(network.cache.speakers, np.bool_)
        self._open: dict[int, Stretch] = {}
        self._names: dict[int, str] = {}
        self._recent: deque[Turn] = deque(maxlen=RECENT_TURNS)
        self._closed: deque[Turn] = deque(maxlen=None if keep else RECENT_TURNS)

    @property
    def seconds(self) -> float:
        """The time before which every turn is known."""
        return self._stream.scored * self._frame_seconds

    @property
    def recent(self) -> list[Turn]:
        """The last turns as far as they are known, enough for the words of one utterance."""
        return list(self._recent)

    def push(self, samples: Samples) -> None:
        """Take samples (n,) of float32 at 16 kHz."""
        import torch

        self._samples += len(samples)
        with torch.inference_mode():
            scores = self._stream.push(torch.from_numpy(np.array(samples, np.float32)))
        self._collect(scores.numpy())

    def finish(self) -> tuple[Turn, ...]:
        """The turns of everything that was pushed, in order of their start."""
        import torch

        with torch.inference_mode():
            scores = self._stream.finish()
        self._collect(scores.numpy())
        for speaker in list(self._open):
            self._close(speaker)
        return tuple(sorted(self._closed, key=lambda turn: (turn.start, turn.speaker)))

    def _collect(self, scores: npt.NDArray[np.float32]) -> None:
        """Add the next probabilities (n, S) to the stretches."""
        if not len(scores):
            return
        seconds = self._score_seconds
        begin = self._scores * seconds
        self._scores += len(scores)
        active = hysteresis(scores, self._speaking)
        self._speaking = active[-1]
        for speaker in np.flatnonzero(active.any(axis=0)).tolist():
            edges = np.flatnonzero(np.diff(active[:, speaker], prepend=False, append=False))
            for first, stop in edges.reshape(-1, 2).tolist():
                start, end = begin + first * seconds, begin + stop * seconds
                end = min(end, self._samples / SAMPLE_RATE)  # the last frame may reach beyond it
                if start < end:
                    self._extend(speaker, start, end, scores[first:stop, speaker])
        now = self._scores * seconds
        for speaker, stretch in sorted(self._open.items(), key=lambda item: item[1].start):
            self._show(speaker, stretch)
            if now - stretch.end > BRIDGED_SECONDS:
                self._close(speaker)

    def _extend(
        self, speaker: int, start: float, end: float, scores: npt.NDArray[np.float32]
    ) -> None:
        known = self._open.get(speaker)
        if known is not None and start - known.end > BRIDGED_SECONDS:
            self._show(speaker, known)
            self._close(speaker)
            known = None
        if known is None:
            known = self._open[speaker] = Stretch(start, end, 0.0, 0, start)
        known.end = end
        known.total += float(scores.sum())
        known.frames += len(scores)

    def _show(self, speaker: int, stretch: Stretch) -> None:
        """Report what is new of a stretch that is long enough."""
        if stretch.end <= stretch.shown or stretch.end - stretch.start < LEAST_SECONDS - 1e-6:
            return
        name = self._names.setdefault(speaker, str(len(self._names)))
        shown = Turn(round(stretch.shown, 6), round(stretch.end, 6), name, stretch.confidence)
        self._recent.append(shown)
        stretch.shown = stretch.end

    def _close(self, speaker: int) -> None:
        stretch = self._open.pop(speaker)
        if speaker in self._names and stretch.shown > stretch.start:
            start, end = round(stretch.start, 6), round(stretch.end, 6)
            self._closed.append(Turn(start, end, self._names[speaker], stretch.confidence))


def hysteresis(
    scores: npt.NDArray[np.float32], speaking: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Who speaks in each frame: (n, S) probabilities, the state (S,) before them -> (n, S)."""
    marks = np.where(scores >= ONSET, 1, np.where(scores < OFFSET, -1, 0))
    marks = np.concatenate([np.where(speaking, 1, -1)[None], marks])
    rows = np.where(marks != 0, np.arange(len(marks))[:, None], 0)
    last = np.maximum.accumulate(rows, axis=0)
    decided: npt.NDArray[np.bool_] = np.take_along_axis(marks, last, axis=0)[1:] > 0
    return decided
