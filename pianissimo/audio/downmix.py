"""Mix channels to one: the average, unless the phase is opposite or one channel is noise.

`Downmix` looks at every 10 s of a recording together. `LiveDownmix` knows only the past of a stream
and decides again every 20 ms. Both work on an absolute grid: blocks of any size give the same
bits. Two things change what a channel counts for. One whose signal is the opposite of the
strongest channel's is inverted ("opposite_phase"), and stays so until it clearly no longer is.
One with steady noise that would drown the speech of the others is left out ("one_channel"). Both
are measured behind a first difference, so that hum and offsets count for little.
"""

from collections import deque
from collections.abc import Mapping
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from pianissimo.audio.notes import Note

Samples = npt.NDArray[np.float32]

WINDOW_SECONDS = 10.0

_SHORTEST_SECONDS = 0.5  # a last window as short keeps what was decided before it
_EMPHASIS = 0.97
_OPPOSITE, _NOT_OPPOSITE = -0.7, 0.3
_SILENT_POWER = 1e-12  # behind the first difference; nothing to decide on
_FRAME_SECONDS = 0.02
_STEADY_DB = 7.0  # between the 10th and 90th percentile of frames: speech has 20 dB and more
_LIVELY_DB = 12.0
_DROWNING_DB = 6.0  # of noise over the quiet frames of the best channel
_MEMORY_SECONDS = 2.0  # of a live stream's correlation
_CERTAIN_SECONDS = 1.0  # of sound; before that only a clear inverse is inverted
_CLEARLY_OPPOSITE = -0.9
_RECHECK_FRAMES = 25


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
        return _mix(window, self._signs, self._kept)

    def _decide(self, window: Samples) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            x = window[1:].astype(np.float64) - _EMPHASIS * window[:-1]
            powers = np.mean(x * x, axis=0) if len(x) else np.zeros(self.channels)
        if not np.isfinite(powers).all() or powers.max() < _SILENT_POWER:
            return  # an empty window, or one that will be refused
        self._decided = True
        self._kept = _useful(_frame_energies(x, self.sample_rate))
        best = int(np.argmax(np.where(self._kept, powers, -1.0)))
        alike = _likeness(x.T @ x / len(x), best) * self._signs[best]
        self._signs[alike < _OPPOSITE] = -1.0
        self._signs[alike > _NOT_OPPOSITE] = 1.0
        if (self._signs[self._kept] < 0).any():
            self.notes.add("opposite_phase")
        if not self._kept.all():
            self.notes.add("one_channel")


class SavedDownmix(TypedDict):
    """The state of a `LiveDownmix` of C channels."""

    signs: npt.NDArray[np.float32]
    kept: npt.NDArray[np.bool_]
    held: Samples
    previous: Samples
    covariance: npt.NDArray[np.float64]
    energies: npt.NDArray[np.float64]
    sounding: int
    frames: int


class LiveDownmix:
    """Makes the (n, channels) of a live stream (n,), 20 ms at a time; a single channel at once."""

    def __init__(self, channels: int, sample_rate: int) -> None:
        self.channels, self.sample_rate = channels, sample_rate
        self._frame = max(1, round(_FRAME_SECONDS * sample_rate))
        self._held = np.zeros((0, channels), np.float32)
        self._previous = np.zeros((1, channels), np.float32)
        self._signs = np.ones(channels, np.float32)
        self._kept = np.ones(channels, np.bool_)
        self._covariance = np.zeros((channels, channels))
        self._energies: deque[npt.NDArray[np.float64]] = deque(
            maxlen=round(WINDOW_SECONDS / _FRAME_SECONDS)
        )
        self._sounding = self._frames = 0

    def push(self, block: Samples) -> Samples:
        """Take scaled samples (n, channels); those that are ready, as (m,)."""
        if self.channels == 1:
            return block[:, 0]
        held = np.concatenate([self._held, block])
        whole = len(held) - len(held) % self._frame
        frames = [self._mixed(held[i : i + self._frame]) for i in range(0, whole, self._frame)]
        self._held = held[whole:]
        return np.concatenate(frames) if frames else np.zeros(0, np.float32)

    def finish(self) -> Samples:
        """The samples that still wait, (m,)."""
        held, self._held = self._held, self._held[:0]
        return _mix(held, self._signs, self._kept) if len(held) else np.zeros(0, np.float32)

    def _mixed(self, frame: Samples) -> Samples:
        with np.errstate(over="ignore", invalid="ignore"):
            emphasized = np.concatenate([self._previous, frame]).astype(np.float64)
            x = emphasized[1:] - _EMPHASIS * emphasized[:-1]
            energy = np.mean(x * x, axis=0)
        self._previous = frame[-1:].copy()
        self._frames += 1
        self._energies.append(energy)
        if self._frames % _RECHECK_FRAMES == 0:
            self._kept = _useful(np.stack(self._energies))
        if energy.max() >= _SILENT_POWER:
            self._sounding += 1
            self._covariance *= 1 - _FRAME_SECONDS / _MEMORY_SECONDS
            self._covariance += x.T @ x / len(x)
            powers = np.where(self._kept, self._covariance.diagonal(), -1.0)
            best = int(np.argmax(powers))
            alike = _likeness(self._covariance, best) * self._signs[best]
            certain = self._sounding * _FRAME_SECONDS >= _CERTAIN_SECONDS
            self._signs[alike < (_OPPOSITE if certain else _CLEARLY_OPPOSITE)] = -1.0
            self._signs[alike > _NOT_OPPOSITE] = 1.0
        return _mix(frame, self._signs, self._kept)

    def save(self) -> SavedDownmix:
        return {
            "signs": self._signs.copy(),
            "kept": self._kept.copy(),
            "held": self._held.copy(),
            "previous": self._previous.copy(),
            "covariance": self._covariance.copy(),
            "energies": np.array(self._energies).reshape(-1, self.channels),
            "sounding": self._sounding,
            "frames": self._frames,
        }

    @classmethod
    def restored(cls, saved: Mapping[str, object], sample_rate: int) -> "LiveDownmix":
        """The saved one; raises KeyError, TypeError or ValueError for what `save` did not make."""
        signs = np.array(saved["signs"], np.float32)
        if signs.ndim != 1 or not 1 < len(signs) <= 64:
            raise ValueError("the saved downmix has no channels")
        downmix = cls(len(signs), sample_rate)
        downmix.restore(saved)
        return downmix

    def restore(self, saved: Mapping[str, object]) -> None:
        """Continue from what `save` gave for as many channels; raises as `restored` does."""
        channels = self.channels
        self._signs = np.array(saved["signs"], np.float32).reshape(channels)
        self._kept = np.array(saved["kept"], np.bool_).reshape(channels)
        self._held = np.array(saved["held"], np.float32).reshape(-1, channels)
        self._previous = np.array(saved["previous"], np.float32).reshape(1, channels)
        self._covariance = np.array(saved["covariance"], np.float64).reshape(channels, channels)
        self._energies.extend(np.array(saved["energies"], np.float64).reshape(-1, channels))
        self._sounding, self._frames = int(str(saved["sounding"])), int(str(saved["frames"]))
        if not self._kept.any():
            raise ValueError("the saved downmix keeps no channel")


def _mix(window: Samples, signs: npt.NDArray[np.float32], kept: npt.NDArray[np.bool_]) -> Samples:
    """The kept channels of (n, channels) with their signs, averaged to (n,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        chosen = [window[:, c] * signs[c] for c in np.flatnonzero(kept)]
        mixed: Samples = chosen[0]
        for channel in chosen[1:]:
            mixed = mixed + channel
        if len(chosen) > 1:
            mixed = mixed / np.float32(len(chosen))
    return mixed


def _likeness(covariance: npt.NDArray[np.float64], best: int) -> npt.NDArray[np.float64]:
    """The correlation (channels,) of each channel with the channel `best`."""
    powers = covariance.diagonal()
    scale = np.sqrt(powers * powers[best])
    return np.divide(
        covariance[:, best], scale, out=np.zeros(len(powers)), where=scale > _SILENT_POWER
    )


def _frame_energies(x: npt.NDArray[np.float64], sample_rate: int) -> npt.NDArray[np.float64]:
    """The mean energies (frames, channels) of (n, channels)."""
    size = max(1, round(_FRAME_SECONDS * sample_rate))
    frames = len(x) // size
    energies: npt.NDArray[np.float64] = np.mean(
        (x[: frames * size] ** 2).reshape(frames, size, x.shape[1]), axis=1
    )
    return energies


def _useful(energies: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which channels (channels,) count, by how their energies (frames, channels) vary."""
    everything = np.ones(energies.shape[1], np.bool_)
    if len(energies) < 10 or not np.isfinite(energies).all():
        return everything
    low, high = 10 * np.log10(np.percentile(energies, [10, 90], axis=0) + _SILENT_POWER)
    best = int(np.argmax(high - low))
    if high[best] - low[best] < _LIVELY_DB:
        return everything
    noise = (high - low < _STEADY_DB) & (low > low[best] + _DROWNING_DB)
    return ~noise
