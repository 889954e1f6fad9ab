"""Mono float32 to WAV, MP3, Opus, AAC, FLAC or raw samples, block by block."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from pianissimo.audio.io import Samples
from pianissimo.audio.resample import StreamingResampler
from pianissimo.errors import AudioError, OptionError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

LARGEST_SAMPLE = 32_767


@dataclass(frozen=True)
class Format:
    """A format of files and streams: its muxer and codec in libav, and the rates it can have."""

    container: str
    codec: str
    media_type: str
    rates: tuple[int, ...] = ()
    """In Hz, ascending; empty if any rate is possible."""
    bits_per_second: int | None = None
    options: tuple[tuple[str, str], ...] = ()

    def rate_for(self, rate: int) -> int:
        """The nearest possible rate that is not lower, or else the highest, in Hz."""
        if not self.rates:
            return rate
        return next((each for each in self.rates if each >= rate), self.rates[-1])


_MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
FORMATS = {
    "wav": Format("wav", "pcm_s16le", "audio/wav"),
    "mp3": Format("mp3", "libmp3lame", "audio/mpeg", _MPEG_RATES, 64_000),
    "opus": Format(
        "ogg",
        "libopus",
        "audio/ogg",
        (8_000, 12_000, 16_000, 24_000, 48_000),
        32_000,
        (("page_duration", "100000"),),  # microseconds; a player waits for a whole page
    ),
    "aac": Format("adts", "aac", "audio/aac", _MPEG_RATES, 64_000),
    "flac": Format("flac", "flac", "audio/flac"),
    "pcm": Format("s16le", "pcm_s16le", "audio/pcm"),
    "mulaw": Format("mulaw", "pcm_mulaw", "audio/basic"),
    "alaw": Format("alaw", "pcm_alaw", "audio/x-alaw-basic"),
}
"""By name; the last three have no header."""


class AudioEncoder:
    """Encodes one mono stream into `sink`, from samples at `source_rate` Hz.

    The sink is a file, whose header gets its final sizes at the end, or a function that gets bytes
    as they are ready. `sample_rate` is that of the encoded audio, by default the nearest to the
    source's. Raises OptionError for a format or rate that does not exist, and AudioError if the
    sink cannot be written.
    """

    def __init__(
        self,
        sink: "BinaryIO | Callable[[bytes], object]",
        format: str,
        source_rate: int,
        sample_rate: int | None = None,
    ) -> None:
        import av

        if format not in FORMATS:
            raise OptionError(f"unknown audio format {format!r}; choose {', '.join(FORMATS)}")
        kind = FORMATS[format]
        self.sample_rate = sample_rate or kind.rate_for(source_rate)
        if kind.rates and self.sample_rate not in kind.rates:
            known = ", ".join(map(str, kind.rates))
            raise OptionError(f"{format} has no rate of {self.sample_rate} Hz; choose {known}")
        self._resampler = StreamingResampler(source_rate, self.sample_rate)
        self._written = 0
        self._container: OutputContainer = av.open(
            _Calls(sink) if callable(sink) else sink,
            "w",
            format=kind.container,
            options=dict(kind.options) | {"flush_packets": "1", "fflags": "+bitexact"},
        )
        stream = self._container.add_stream(kind.codec, rate=self.sample_rate)
        self._stream = cast("AudioStream", stream)
        self._stream.layout = "mono"
        if kind.bits_per_second is not None:
            self._stream.bit_rate = kind.bits_per_second

    def write(self, samples: Samples) -> None:
        """Encode samples (n,); what exceeds ±1 is clipped."""
        self._encode(self._resampler.push(samples))

    def close(self) -> None:
        """Encode what is still inside, and end the file."""
        import av

        self._encode(self._resampler.finish())
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise AudioError(f"the audio cannot be written ({error})") from error

    def _encode(self, samples: Samples) -> None:
        import av

        if not len(samples):
            return
        scaled = np.rint(np.clip(samples, -1, 1) * LARGEST_SAMPLE).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(scaled[np.newaxis], format="s16", layout="mono")
        frame.sample_rate, frame.pts = self.sample_rate, self._written
        self._written += len(scaled)
        try:
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            raise AudioError(f"the audio cannot be written ({error})") from error


class _Calls:
    """A file that cannot seek, as libav wants it: what is written goes to a function."""

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink

    def write(self, data: bytes) -> int:
        self._sink(bytes(data))
        return len(data)
