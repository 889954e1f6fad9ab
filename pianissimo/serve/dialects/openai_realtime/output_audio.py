"""The audio of a voice in the format of a session: PCM or G.711, at its rate."""

import numpy as np
import numpy.typing as npt

from pianissimo.audio.level import Samples
from pianissimo.audio.resample import StreamingResampler
from pianissimo.serve.audio_in.pcm import ALAW, MULAW

FULL_SCALE = 32767.0


class OutputAudio:
    """Blocks of one answer, (n,) float32 at `voice_rate`, to bytes at `sample_rate`.

    `kind` is audio/pcm (16 bit, little endian), audio/pcmu or audio/pcma.
    """

    def __init__(self, kind: str, sample_rate: int, voice_rate: int) -> None:
        self._kind = kind
        self._resampler: StreamingResampler | None = None
        if voice_rate != sample_rate:
            self._resampler = StreamingResampler(voice_rate, sample_rate)

    def push(self, samples: Samples) -> bytes:
        return self._coded(samples if self._resampler is None else self._resampler.push(samples))

    def finish(self) -> bytes:
        """What is left in the resampler."""
        return b"" if self._resampler is None else self._coded(self._resampler.finish())

    def _coded(self, samples: Samples) -> bytes:
        levels = np.clip(samples, -1.0, 1.0) * FULL_SCALE
        if self._kind == "audio/pcm":
            return levels.astype("<i2").tobytes()
        return _nearest(levels, MULAW if self._kind == "audio/pcmu" else ALAW)


def _nearest(levels: Samples, table: npt.NDArray[np.int16]) -> bytes:
    """The code of the nearest level of a G.711 table for each sample."""
    order = np.argsort(table, kind="stable")
    steps = table[order].astype(np.float32)
    codes = order[np.searchsorted((steps[1:] + steps[:-1]) / 2, levels)]
    return codes.astype(np.uint8).tobytes()
