"""The decoder process of the server: limited in memory, and unable to write files.

One request per line of standard input, as JSON: the path, the sample rate, and the raw format of a
file without a header. The answer on standard output is a sequence of frames: one byte for the
kind, four for the length, and the payload.
"""

import json
import os
import struct
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from pianissimo.audio.notes import Note
from pianissimo.serve.audio_in.pcm import Encoding, PcmReader

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MEMORY_BYTES = 2 << 30
BLOCK_SECONDS = 5.0
RAW_BYTES = 1 << 18
HEADER, LENGTH = struct.Struct("<cI"), struct.Struct("<I")
AUDIO, CHANNELS, DONE, ERROR, MARK = b"a", b"c", b"d", b"e", b"m"
"""Kinds of frames: float32 samples; one byte with the number of channels and their interleaved
float32 samples; the end of the recording, with its notes as JSON; an error; a mark of the input."""


def limit_this_process() -> None:
    """Limit memory, and forbid written files and core dumps, where the system supports it."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def answer(request: dict[str, object], out: BinaryIO) -> None:
    """Decode one recording into frames."""
    from pianissimo.audio.io import read_channels, stream_audio
    from pianissimo.errors import PianissimoError

    notes = set[Note]()
    path, rate, raw = str(request["path"]), int(str(request["sample_rate"])), request.get("raw")
    try:
        if request.get("split"):
            parts = (
                _raw_channels(path, rate, **raw)
                if isinstance(raw, dict)
                else read_channels(path, block_seconds=BLOCK_SECONDS)
            )
            for part in parts:
                count = bytes([min(part.shape[1], 255)])
                write_frame(out, CHANNELS, count + part.astype("<f4").tobytes())
            write_frame(out, DONE, b"")
            return
        if isinstance(raw, dict):
            blocks = _raw_blocks(path, rate, notes, **raw)
        else:
            blocks = stream_audio(path, sample_rate=rate, block_seconds=BLOCK_SECONDS, notes=notes)
        for block in blocks:
            write_frame(out, AUDIO, block.astype("<f4").tobytes())
        write_frame(out, DONE, json.dumps(sorted(notes)).encode())
    except PianissimoError as error:
        message = str(error).replace(path, "the recording")
        write_frame(out, ERROR, json.dumps({"code": error.code, "message": message}).encode())
    except MemoryError:
        message = "the recording needs too much memory to decode; convert it to WAV or FLAC first"
        write_frame(
            out, ERROR, json.dumps({"code": "audio_undecodable", "message": message}).encode()
        )


def _raw_blocks(
    path: str,
    target_rate: int,
    notes: "set[Note]",
    encoding: Encoding,
    sample_rate: int,
    channels: int,
) -> "Iterator[npt.NDArray[np.float32]]":
    """The samples (n,) of a file without a header; raises AudioValueError."""
    from pianissimo.audio.downmix import Downmix
    from pianissimo.audio.io import from_piece
    from pianissimo.audio.resample import StreamingResampler, check_sample_rate

    reader = PcmReader(encoding, channels)
    source_rate = check_sample_rate(sample_rate, "sample_rate")
    resampler = StreamingResampler(source_rate, target_rate)
    downmix = Downmix(channels, source_rate, notes)
    with open(path, "rb") as file:
        while data := file.read(RAW_BYTES):
            samples = reader.push(data)
            yield resampler.push(downmix.push(from_piece(samples, source_rate)))
    yield resampler.push(downmix.finish())
    yield resampler.finish()


def _raw_channels(
    path: str, target_rate: int, encoding: Encoding, sample_rate: int, channels: int
) -> "Iterator[npt.NDArray[np.float32]]":
    """The samples (n, channels) of a file without a header; raises AudioValueError."""
    import numpy as np

    from pianissimo.audio.io import from_piece
    from pianissimo.audio.resample import StreamingResampler, check_sample_rate

    reader = PcmReader(encoding, channels)
    source_rate = check_sample_rate(sample_rate, "sample_rate")
    resamplers = [StreamingResampler(source_rate, target_rate) for _ in range(channels)]
    with open(path, "rb") as file:
        while data := file.read(RAW_BYTES):
            samples = from_piece(reader.push(data), source_rate)
            pairs = zip(resamplers, samples.T, strict=True)
            yield np.stack([resampler.push(channel) for resampler, channel in pairs], axis=1)
    yield np.stack([each.finish() for each in resamplers], axis=1)


def write_frame(out: BinaryIO, kind: bytes, payload: bytes) -> None:
    out.write(HEADER.pack(kind, len(payload)))
    out.write(payload)
    out.flush()


def main() -> None:
    import pianissimo.audio.io  # noqa: F401  before the limits, which count it too

    limit_this_process()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        # A decoder that prints must not write into the frames.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin.buffer:
            answer(json.loads(line), out)


if __name__ == "__main__":
    main()
