"""Raw samples as they come over a wire: linear PCM and G.711."""

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from pianissimo.errors import AudioValueError

Encoding: TypeAlias = Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)


class PcmReader:
    """Bytes to samples (n,) or (n, channels); a sample split over two messages is rejoined."""

    def __init__(self, encoding: Encoding, channels: int = 1) -> None:
        if encoding not in ENCODINGS:
            raise AudioValueError(
                f"unknown encoding {encoding!r}; choose one of {', '.join(ENCODINGS)}"
            )
        if not 1 <= channels <= 8:
            raise AudioValueError(f"{channels} channels are not supported; send 1 to 8")
        self.encoding, self.channels = encoding, channels
        self.frame_bytes = {"pcm_s16le": 2, "pcm_f32le": 4}.get(encoding, 1) * channels
        self.rest = b""

    def hold(self, data: bytes, shortest: int) -> bool:
        """Keep the bytes if all that is kept is shorter than `shortest` samples."""
        if len(self.rest) + len(data) >= shortest * self.frame_bytes:
            return False
        self.rest += data
        return True

    def push(self, data: bytes) -> npt.NDArray[np.int16] | npt.NDArray[np.float32]:
        """All complete samples, those held included."""
        data = self.rest + data
        whole = len(data) - len(data) % self.frame_bytes
        self.rest = data[whole:]
        samples: npt.NDArray[np.int16] | npt.NDArray[np.float32]
        match self.encoding:
            case "pcm_s16le":
                samples = np.frombuffer(data[:whole], "<i2").astype(np.int16)
            case "pcm_f32le":
                samples = np.frombuffer(data[:whole], "<f4").astype(np.float32)
            case "mulaw":
                samples = MULAW[np.frombuffer(data[:whole], np.uint8)]
            case "alaw":
                samples = ALAW[np.frombuffer(data[:whole], np.uint8)]
        return samples if self.channels == 1 else samples.reshape(-1, self.channels)


def _mulaw_table() -> npt.NDArray[np.int16]:
    """The 256 levels of mu-law, ITU-T G.711 table 2: all bits are sent inverted."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    level = ((mantissa << 3) + 132 << exponent) - 132
    return np.where(code & 128, -level, level).astype(np.int16)


def _alaw_table() -> npt.NDArray[np.int16]:
    """The 256 levels of A-law, ITU-T G.711 table 1: every other bit is sent inverted."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = (code >> 4 & 7).astype(np.int32), (code & 15).astype(np.int32)
    linear = (mantissa << 4) + 8
    level = np.where(exponent == 0, linear, linear + 256 << np.maximum(exponent - 1, 0))
    return np.where(code & 128, level, -level).astype(np.int16)


MULAW, ALAW = _mulaw_table(), _alaw_table()
