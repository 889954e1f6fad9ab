"""A client's samples on their way to the model: checked, resampled, brought to level."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from pianissimo.audio.downmix import LiveDownmix, SavedDownmix
from pianissimo.audio.front_end import FrontEnd, FrontEndState, export_state, import_state
from pianissimo.audio.io import Samples, from_piece
from pianissimo.audio.level import check_samples
from pianissimo.audio.resample import SavedResampler, StreamingResampler, check_sample_rate
from pianissimo.errors import StreamError


class SavedInput(TypedDict):
    """The filters of a saved stream."""

    sample_rate: int
    resampler: SavedResampler | None
    """None where the rate is that of the model; early releases wrote an empty one."""
    level: Mapping[str, Any] | None
    downmix: SavedDownmix | None
    """None for one channel, and in streams of early releases."""


class StreamInput:
    """One client's samples at `sample_rate` Hz to mono float32 at the model's rate."""

    def __init__(
        self, sample_rate: int, model_rate: int, front_end: FrontEnd | None = None
    ) -> None:
        self.sample_rate = check_sample_rate(sample_rate, "sample_rate")
        self._resampler: StreamingResampler | None = None
        if self.sample_rate != model_rate:
            self._resampler = StreamingResampler(self.sample_rate, model_rate)
        self._downmix: LiveDownmix | None = None
        self.front_end = front_end
        self.level = None if front_end is None else front_end.start(live=True)

    def push(self, samples: npt.ArrayLike, sample_rate: int | None = None) -> Samples:
        """Filter float samples in [-1, 1] or integers, (n,) or (n, channels).

        Raises AudioValueError for unusable samples, StreamError for another rate.
        """
        block = self.mono(samples, sample_rate)
        if self.front_end is None or self.level is None:
            return check_samples(block)
        return self.front_end.push(block, self.level).samples

    @staticmethod
    def push_many(
        inputs: Sequence["StreamInput"], pieces: Sequence[npt.ArrayLike]
    ) -> list[Samples | Exception]:
        """As `push` of one piece to each of several streams: its samples, or its error.

        Streams with one front end share its calls, which takes a fraction of the time.
        """
        found: list[Samples | Exception] = []
        leveled: dict[FrontEnd, list[tuple[int, FrontEndState]]] = {}
        for i, (input, piece) in enumerate(zip(inputs, pieces, strict=True)):
            try:
                samples = input.mono(piece, None)
                if input.front_end is None or input.level is None:
                    samples = check_samples(samples)
                else:
                    leveled.setdefault(input.front_end, []).append((i, input.level))
                found.append(samples)
            except Exception as error:  # of one stream, which must not affect the others
                found.append(error)
        for front_end, members in leveled.items():
            blocks = [block for i, _ in members if isinstance(block := found[i], np.ndarray)]
            gained = front_end.push_many(blocks, [state for _, state in members])
            for (i, _), ready in zip(members, gained, strict=True):
                found[i] = ready if isinstance(ready, Exception) else ready.samples
        return found

    def mono(self, samples: npt.ArrayLike, sample_rate: int | None) -> Samples:
        """The samples as mono float32 at the model's rate; raises as `push`."""
        if sample_rate is not None and sample_rate != self.sample_rate:
            raise StreamError(
                f"this stream was opened for {self.sample_rate} Hz and cannot accept "
                f"{sample_rate} Hz; open another stream, or resample"
            )
        channels = from_piece(samples, self.sample_rate)
        count, rest = channels.shape[1], np.zeros(0, np.float32)
        if self._downmix is not None and self._downmix.channels != count:
            rest, self._downmix = self._downmix.finish(), None
        if self._downmix is None and count > 1:
            self._downmix = LiveDownmix(count, self.sample_rate)
        block = channels[:, 0] if self._downmix is None else self._downmix.push(channels)
        if len(rest):
            block = np.concatenate([rest, block])
        return block if self._resampler is None else self._resampler.push(block)

    def finish(self) -> Samples:
        """The samples still inside the filters."""
        rest = np.zeros(0, np.float32) if self._downmix is None else self._downmix.finish()
        if self._resampler is not None:
            rest = np.concatenate([self._resampler.push(rest), self._resampler.finish()])
        if self.front_end is None or self.level is None:
            return rest
        leveled = self.front_end.push(rest, self.level).samples
        return np.concatenate([leveled, self.front_end.finish(self.level).samples])

    @property
    def gain_db(self) -> float:
        """The gain at the end of what was pushed; 0 without a front end."""
        return 0.0 if self.level is None else self.level.gain_db

    def save(self) -> SavedInput:
        """The state of the filters as numbers, lists and arrays."""
        return {
            "sample_rate": self.sample_rate,
            "resampler": None if self._resampler is None else self._resampler.save(),
            "level": None if self.level is None else export_state(self.level),
            "downmix": None if self._downmix is None else self._downmix.save(),
        }

    def restore(self, saved: SavedInput) -> None:
        """Set new filters to a saved state; a malformed one raises KeyError, TypeError, ValueError
        or OptionError."""
        if self._resampler is not None:
            if saved["resampler"] is None:
                raise ValueError("the saved stream has no resampler")
            self._resampler.restore(saved["resampler"])
        if saved["downmix"] is not None:
            self._downmix = LiveDownmix.restored(saved["downmix"], self.sample_rate)
        if self.level is not None and saved["level"] is not None:
            self.level = import_state(saved["level"])
