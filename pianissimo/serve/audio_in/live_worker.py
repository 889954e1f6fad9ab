"""A process that decodes one live container or a sequence of Opus packets, and cannot write files.

Standard input is a sequence of messages, four bytes of length before each; an empty one asks for a
mark. Standard output is a sequence of frames, as those of `decode_worker`: samples, marks, and at
the end DONE or ERROR. The first argument is "container" or "opus", the second the sample rate.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from pianissimo.serve.audio_in.decode_worker import (
    AUDIO,
    DONE,
    ERROR,
    LENGTH,
    MARK,
    limit_this_process,
    write_frame,
)

if TYPE_CHECKING:
    import av

PROBE_BYTES = 4096
"""What libav reads to identify a container: the header and the first packets."""
OPTIONS = {"probesize": str(PROBE_BYTES), "analyzeduration": "0"}
LARGEST_CHANNELS = 8


class LiveInput:
    """The messages of standard input as packets, or as one file that libav reads."""

    def __init__(self, source: BinaryIO, out: BinaryIO) -> None:
        self._source, self._out = source, out
        self._rest = b""

    def packets(self) -> Iterator[bytes]:
        """Each message; a mark is answered when everything before it was decoded."""
        while head := self._source.read(LENGTH.size):
            (size,) = LENGTH.unpack(head)
            if size:
                yield self._source.read(size)
            else:
                write_frame(self._out, MARK, b"")

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end; libav asks when it has used what came before."""
        if not self._rest:
            self._rest = next(self.packets(), b"")
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def decode(kind: str, rate: int, source: LiveInput, out: BinaryIO) -> None:
    """Decode until the input ends; raises what libav raises."""
    import av

    from pianissimo.audio.downmix import LiveDownmix

    resampler = av.AudioResampler("flt", None, rate)  # packed, with the channels of the input
    downmix: LiveDownmix | None = None

    def send(frame: "av.AudioFrame | None") -> None:
        nonlocal downmix
        for each in resampler.resample(frame):
            channels = len(each.layout.channels)
            downmix = downmix or LiveDownmix(channels, rate)
            mono = downmix.push(each.to_ndarray().astype("f4").reshape(-1, channels))
            if len(mono):
                write_frame(out, AUDIO, mono.astype("<f4").tobytes())

    for frame in _opus(source) if kind == "opus" else _container(source):
        if len(frame.layout.channels) > LARGEST_CHANNELS:
            raise ValueError(f"{len(frame.layout.channels)} channels are not supported")
        frame.pts = None  # gaps between packets are not filled
        send(frame)
    send(None)
    if downmix is not None:
        write_frame(out, AUDIO, downmix.finish().astype("<f4").tobytes())


def _container(source: LiveInput) -> "Iterator[av.AudioFrame]":
    import av

    with av.open(source, "r", options=OPTIONS) as container:
        if not container.streams.audio:
            raise ValueError("the container has no audio track")
        track = container.streams.audio[0]
        for packet in container.demux(track):
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                continue  # one damaged packet


def _opus(source: LiveInput) -> "Iterator[av.AudioFrame]":
    import av

    decoder = av.AudioCodecContext.create("opus", "r")
    decoder.layout, decoder.sample_rate = "mono", 48_000
    for data in source.packets():
        try:
            yield from decoder.decode(av.Packet(data))
        except av.InvalidDataError as error:
            raise ValueError(
                "a message is neither an Opus packet nor part of a container"
            ) from error


def main() -> None:
    import av

    kind, rate = sys.argv[1], int(sys.argv[2])
    limit_this_process()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libav must not print into the frames
        try:
            decode(kind, rate, LiveInput(sys.stdin.buffer, out), out)
            write_frame(out, DONE, b"")
        except (av.FFmpegError, ValueError, MemoryError) as error:
            message = f"the audio cannot be decoded: {error}"
            body = json.dumps({"code": "audio_undecodable", "message": message})
            write_frame(out, ERROR, body.encode())


if __name__ == "__main__":
    main()
