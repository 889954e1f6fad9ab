"""A process that decodes recordings for the server and can do nothing else.

One request per line of standard input, as JSON: the path, and the rate wanted. The answer on
standard output is a row of frames: one byte for the kind, four for the length, and the payload.
"""

import json
import os
import struct
import sys
from typing import BinaryIO

MEMORY_BYTES = 2 << 30
BLOCK_SECONDS = 5.0
HEADER = struct.Struct("<cI")
AUDIO, DONE, ERROR = b"a", b"d", b"e"
"""The kinds of frames: float32 samples; the recording has ended; it cannot be read, and why."""


def limit_this_process() -> None:
    """No large memory, no files written, no core dumps; where the system knows such limits."""
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
    from pianissimo.audio.io import stream_audio
    from pianissimo.errors import PianissimoError

    path, rate = str(request["path"]), int(str(request["sample_rate"]))
    try:
        for block in stream_audio(path, sample_rate=rate, block_seconds=BLOCK_SECONDS):
            _write(out, AUDIO, block.astype("<f4").tobytes())
        _write(out, DONE, b"")
    except PianissimoError as error:
        message = str(error).replace(path, "the recording")
        _write(out, ERROR, json.dumps({"code": error.code, "message": message}).encode())
    except MemoryError:
        message = "the recording needs too much memory to decode; convert it to WAV or FLAC first"
        _write(out, ERROR, json.dumps({"code": "audio_undecodable", "message": message}).encode())


def _write(out: BinaryIO, kind: bytes, payload: bytes) -> None:
    out.write(HEADER.pack(kind, len(payload)))
    out.write(payload)
    out.flush()


def main() -> None:
    import pianissimo.audio.io  # noqa: F401  before the limits, so that no file pays for it

    limit_this_process()
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as out:
        # A decoder that prints must not write into the frames.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for line in sys.stdin.buffer:
            answer(json.loads(line), out)


if __name__ == "__main__":
    main()
