"""What happens to a client's samples before the model: checked, resampled, brought to level."""

from typing import Any

import numpy as np
import numpy.typing as npt

from pianissimo.audio.front_end import FrontEnd, export_state, import_state
from pianissimo.audio.io import from_array
from pianissimo.audio.resample import StreamingResampler, check_sample_rate
from pianissimo.errors import StreamError


class StreamInput:
    """One client's samples at `sample_rate` Hz to mono float32 at the model's rate."""

    def __init__(
        self, sample_rate: int, model_rate: int, front_end: FrontEnd | None = None
    ) -> None:
        self.sample_rate = check_sample_rate(sample_rate, "sample_rate")
        self._resampler = StreamingResampler(self.sample_rate, model_rate)
        self._front_end = front_end
        self._level = None if front_end is None else front_end.start(live=True)

    def push(self, samples: Any, sample_rate: int | None = None) -> npt.NDArray[np.float32]:
        """Take float samples in [-1, 1] or integers, (n,) or (n, channels).

        Raises AudioValueError for samples that are not usable, StreamError for another rate.
        """
        if sample_rate is not None and sample_rate != self.sample_rate:
            raise StreamError(
                f"this stream was opened for {self.sample_rate} Hz and cannot go on at "
                f"{sample_rate} Hz; open another stream, or resample"
            )
        block = from_array(samples, self.sample_rate, target_rate=self.sample_rate)
        return self._leveled(self._resampler.push(block))

    def finish(self) -> npt.NDArray[np.float32]:
        """The samples still inside the filters."""
        rest = self._leveled(self._resampler.finish())
        if self._front_end is None or self._level is None:
            return rest
        return np.concatenate([rest, self._front_end.finish(self._level).samples])

    @property
    def gain_db(self) -> float:
        """The gain at the end of what was pushed; 0 without a front end."""
        return 0.0 if self._level is None else self._level.gain_db

    def _leveled(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self._front_end is None or self._level is None:
            return samples
        return self._front_end.push(samples, self._level).samples

    def save(self) -> dict[str, Any]:
        """The state of the filters as numbers, lists and arrays."""
        return {
            "sample_rate": self.sample_rate,
            "resampler": self._resampler.save(),
            "level": None if self._level is None else export_state(self._level),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Fill new filters with what `save` returned; raises what a malformed one provokes."""
        self._resampler.restore(saved["resampler"])
        if self._level is not None and saved["level"] is not None:
            self._level = import_state(saved["level"])
