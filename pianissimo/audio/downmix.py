"""Mix channels to one: the average, unless the phase is opposite or one channel is noise.

Every 10 s of a recording are looked at together, on an absolute grid: blocks of any size give the
same bits. Two things change what a channel counts for. One whose signal is the opposite of the
strongest channel's is turned round ("opposite_phase"), and stays so until it clearly no longer is.
One with steady noise that would drown the speech of the others is left out ("one_channel"). Both
are measured behind a first difference, so that hum and offsets count for little.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]
Note = Literal["opposite_phase", "one_channel", "several_tracks"]
"""What is worth telling about how a recording was read; part of `Transcript.reasons`."""
NOTES: tuple[Note, ...] = get_args(Note)

WINDOW_SECONDS = 10.0

_SHORTEST_SECONDS = 0.5  # a last window as short keeps what was decided before it
_EMPHASIS = 0.97
_OPPOSITE, _NOT_OPPOSITE = -0.7, 0.3
_SILENT_POWER = 1e-12  # behind the first difference; nothing to decide on
_FRAME_SECONDS = 0.02
_STEADY_DB = 7.0  # between the 10th and 90th percentile of frames: speech has 20 dB and more
_LIVELY_DB = 12.0
_DROWNING_DB = 6.0  # of noise over the quiet frames of the best channel


class Downmix:
    """Makes (n, channels) of one recording (n,). `notes` gets what was done."""

    def __init__(self, channels: int, sample_rate: int, notes: set[Note] | None = None) -> None:
        self.channels, self.sample_rate = channels, sample_rate
        self.notes: set[Note] = set() if notes is None else notes
        self._window = max(1, round(WINDOW_SECONDS * sample_rate))
        self._waiting: list[Samples] = []
        self._held = 0
        self._signs = np.ones(channels, np.float32)
        self._kept = np.ones(channels, np.bool_)
        self._decided = False

    def push(self, block: Samples) -> Samples:
        """Take scaled samples (n, channels); those that are ready, as (m,)."""
        if self.channels == 1:
            return block[:, 0]
        ready = []
        while self._held + len(block) >= self._window:
            part, block = np.split(block, [self._window - self._held])
            ready.append(self._mixed(np.concatenate([*self._waiting, part])))
            self._waiting, self._held = [], 0
        if len(block):
            self._waiting.append(block)
            self._held += len(block)
        return np.concatenate(ready) if ready else np.zeros(0, np.float32)

    def finish(self) -> Samples:
        """The samples that still wait, (m,)."""
        if not self._held:
            return np.zeros(0, np.float32)
        window, self._waiting, self._held = np.concatenate(self._waiting), [], 0
        return self._mixed(window)

    def _mixed(self, window: Samples) -> Samples:
        if not self._decided or len(window) >= _SHORTEST_SECONDS * self.sample_rate:
            self._decide(window)
        with np.errstate(over="ignore", invalid="ignore"):
            chosen = [window[:, c] * self._signs[c] for c in np.flatnonzero(self._kept)]
            mixed: Samples = chosen[0]
            for channel in chosen[1:]:
                mixed = mixed + channel
            if len(chosen) > 1:
                mixed = mixed / np.float32(len(chosen))
        return mixed

    def _decide(self, window: Samples) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            x = window[1:].astype(np.float64) - _EMPHASIS * window[:-1]
            powers = np.mean(x * x, axis=0) if len(x) else np.zeros(self.channels)
        if not np.isfinite(powers).all() or powers.max() < _SILENT_POWER:
            return  # an empty window, or one that will be refused
        self._decided = True
        self._kept = self._useful(x, powers)
        best = int(np.argmax(np.where(self._kept, powers, -1.0)))
        together = x.T @ x[:, best] / len(x)
        scale = np.sqrt(powers * powers[best])
        alike = np.divide(together, scale, out=np.zeros(self.channels), where=scale > _SILENT_POWER)
        alike *= self._signs[best]  # against the channel as it counts now
        self._signs[alike < _OPPOSITE] = -1.0
        self._signs[alike > _NOT_OPPOSITE] = 1.0
        if (self._signs[self._kept] < 0).any():
            self.notes.add("opposite_phase")
        if not self._kept.all():
            self.notes.add("one_channel")

    def _useful(
        self, x: npt.NDArray[np.float64], powers: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """Which channels (channels,) count, by how their (n, channels) go up and down."""
        size = max(1, round(_FRAME_SECONDS * self.sample_rate))
        frames = len(x) // size
        everything = np.ones(self.channels, np.bool_)
        if frames < 10:
            return everything
        energy = np.mean((x[: frames * size] ** 2).reshape(frames, size, -1), axis=1)
        low, high = 10 * np.log10(np.percentile(energy, [10, 90], axis=0) + _SILENT_POWER)
        best = int(np.argmax(high - low))
        if high[best] - low[best] < _LIVELY_DB:
            return everything
        noise = (high - low < _STEADY_DB) & (low > low[best] + _DROWNING_DB)
        return ~noise
