"""Recordings from strangers are decoded in processes of their own, which may die.

A file that crashes, hangs or bloats its decoder ends that process and its own request, nothing
else. A decoder that did its work properly takes the next file.
"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pianissimo.errors import AudioDecodeError, AudioError, AudioNotFoundError, AudioValueError
from pianissimo.serve.audio_in.decode_worker import AUDIO, DONE, HEADER

LARGEST_FRAME_BYTES = 1 << 26
ERRORS: dict[str, type[AudioError]] = {
    error.code: error for error in (AudioDecodeError, AudioNotFoundError, AudioValueError)
}


class Decoders:
    """A bounded number of decoding processes, started when they are first needed.

    A decoder from which nothing comes for `stall_seconds`, and a recording of more than
    `longest_seconds`, are stopped.
    """

    def __init__(self, most: int, stall_seconds: float, longest_seconds: float) -> None:
        self.stall_seconds, self.longest_seconds = stall_seconds, longest_seconds
        self._places = asyncio.Semaphore(most)
        self._idle: list[Process] = []
        self.killed = 0

    async def blocks(self, path: Path, sample_rate: int) -> AsyncGenerator[npt.NDArray[np.float32]]:
        """Mono samples (n,) of a file at `sample_rate` Hz; raises AudioError.

        Decoding is held up while nobody asks for the next block.
        """
        async with self._places:
            process = await self._process()
            answered, samples = False, 0
            try:
                _tell(process, {"path": str(path), "sample_rate": sample_rate})
                while True:
                    kind, payload = await self._frame(process)
                    if kind != AUDIO:
                        answered = True
                        break
                    samples += len(payload) // 4
                    if samples > self.longest_seconds * sample_rate:
                        raise AudioValueError(
                            f"the recording is longer than the {self.longest_seconds / 60:.0f} "
                            "minutes this server takes; cut it"
                        )
                    yield np.frombuffer(payload, "<f4").astype(np.float32)
            except (asyncio.IncompleteReadError, TimeoutError, OSError) as error:
                what = "takes too long" if isinstance(error, TimeoutError) else "ends the decoder"
                raise AudioDecodeError(
                    f"decoding the recording {what}: it is damaged, or made to do so; "
                    "convert it to WAV or FLAC first"
                ) from error
            finally:
                if answered:
                    self._idle.append(process)
                else:
                    self.killed += 1
                    await _end(process)
        if kind != DONE:
            told = json.loads(payload)
            raise ERRORS.get(told["code"], AudioError)(told["message"])

    async def _process(self) -> Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await _start()

    async def _frame(self, process: Process) -> tuple[bytes, bytes]:
        assert process.stdout is not None
        async with asyncio.timeout(self.stall_seconds):
            kind, size = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
            if size > LARGEST_FRAME_BYTES:
                raise OSError("the decoder sends nonsense")
            return kind, await process.stdout.readexactly(size)

    async def close(self) -> None:
        """End the processes that wait for work."""
        while self._idle:
            await _end(self._idle.pop())


async def _start() -> Process:
    # Keys of the server are no business of a process that a file might take over.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PIANISSIMO_")}
    clean |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = (sys.executable, "-m", "pianissimo.serve.audio_in.decode_worker")
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=clean)


def _tell(process: Process, request: dict[str, object]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")


async def _end(process: Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
