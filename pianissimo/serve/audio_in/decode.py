"""Uploads are decoded in separate processes.

A file that crashes, hangs or bloats its decoder ends that process and fails its own request only. A
decoder that finished a file decodes the next one.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.notes import NOTES, Note
from pianissimo.errors import AudioDecodeError, AudioError, AudioNotFoundError, AudioValueError
from pianissimo.serve.audio_in.decode_worker import AUDIO, CHANNELS, DONE, HEADER
from pianissimo.serve.audio_in.pcm import Encoding

WORKER = "pianissimo.serve.audio_in.decode_worker"
LARGEST_FRAME_BYTES = 1 << 26
ERRORS: dict[str, type[AudioError]] = {
    error.code: error for error in (AudioDecodeError, AudioNotFoundError, AudioValueError)
}


@dataclass(frozen=True)
class RawFormat:
    """How the samples of a file without a header are stored."""

    encoding: Encoding
    sample_rate: int
    channels: int


@dataclass(frozen=True)
class Upload:
    """A recording on disk; `raw` if it has no header."""

    path: Path
    raw: RawFormat | None = None


class Decoders:
    """A bounded number of decoder processes, started on demand.

    A decoder that sends nothing for `stall_seconds` and a recording longer than `longest_seconds`
    are stopped.
    """

    def __init__(self, most: int, stall_seconds: float, longest_seconds: float) -> None:
        self.stall_seconds, self.longest_seconds = stall_seconds, longest_seconds
        self._places = asyncio.Semaphore(most)
        self._idle: list[Process] = []
        self.killed = 0

    def blocks(
        self, upload: Upload, sample_rate: int, notes: set[Note] | None = None
    ) -> AsyncGenerator[npt.NDArray[np.float32]]:
        """Mono samples (n,) of an upload at `sample_rate` Hz; raises AudioError.

        The decoder pauses while the next block is not requested. `notes` gets what is worth telling
        about the recording, after the last block.
        """
        return self._decoded(upload, sample_rate, notes, split=False)

    def channel_blocks(self, upload: Upload) -> AsyncGenerator[npt.NDArray[np.float32]]:
        """Samples (n, channels) of an upload at 16 kHz; raises AudioError."""
        return self._decoded(upload, SAMPLE_RATE, None, split=True)

    async def _decoded(
        self, upload: Upload, sample_rate: int, notes: set[Note] | None, *, split: bool
    ) -> AsyncGenerator[npt.NDArray[np.float32]]:
        async with self._places:
            process = await self._process()
            answered, samples = False, 0
            try:
                raw = None if upload.raw is None else asdict(upload.raw)
                request = {"path": str(upload.path), "sample_rate": sample_rate, "raw": raw}
                _send(process, {**request, "split": split})
                while True:
                    kind, payload = await self._frame(process)
                    if kind not in (AUDIO, CHANNELS):
                        answered = True
                        break
                    channels = payload[0] if kind == CHANNELS else 1
                    if not channels:
                        raise OSError("the decoder sent an invalid frame")
                    samples += len(payload) // (4 * channels)
                    if samples > self.longest_seconds * sample_rate:
                        raise AudioValueError(
                            f"the recording is longer than the {self.longest_seconds / 60:.0f} "
                            "minutes this server accepts; cut it"
                        )
                    block = np.frombuffer(payload, "<f4", offset=int(kind == CHANNELS))
                    block = block.astype(np.float32)
                    yield block.reshape(-1, channels) if kind == CHANNELS else block
            except (asyncio.IncompleteReadError, TimeoutError, OSError) as error:
                what = "timed out" if isinstance(error, TimeoutError) else "crashed the decoder"
                raise AudioDecodeError(
                    f"decoding the recording {what}: the file is damaged or malicious; "
                    "convert it to WAV or FLAC first"
                ) from error
            finally:
                if answered:
                    self._idle.append(process)
                else:
                    self.killed += 1
                    await end_process(process)
        if kind != DONE:
            failure = json.loads(payload)
            raise ERRORS.get(failure["code"], AudioError)(failure["message"])
        if notes is not None and payload:
            told = json.loads(payload)
            notes |= {note for note in NOTES if note in told}

    async def _process(self) -> Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await start_process((sys.executable, "-m", WORKER))

    async def _frame(self, process: Process) -> tuple[bytes, bytes]:
        async with asyncio.timeout(self.stall_seconds):
            return await read_frame(process)

    async def close(self) -> None:
        """End the idle processes."""
        while self._idle:
            await end_process(self._idle.pop())


async def read_frame(process: Process) -> tuple[bytes, bytes]:
    """Kind and payload of the next frame; raises OSError and IncompleteReadError."""
    if process.stdout is None:
        raise OSError("the decoder has no output")
    kind, size = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
    if size > LARGEST_FRAME_BYTES:
        raise OSError("the decoder sent an invalid frame")
    return kind, await process.stdout.readexactly(size)


async def start_process(command: tuple[str, ...]) -> Process:
    """Start a decoder process with pipes and a clean environment."""
    # A file might take the process over; it must not find the keys of the server.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PIANISSIMO_")}
    clean |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=clean)


def _send(process: Process, request: dict[str, object]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")


async def end_process(process: Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    with suppress(ProcessLookupError):
        process.kill()
    if process.stdout is not None:  # a paused pipe would keep `wait` from returning
        while await process.stdout.read(LARGEST_FRAME_BYTES):
            pass
    await process.wait()
