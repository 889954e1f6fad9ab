"""Live audio in a container or in Opus packets, decoded in a process per stream."""

import asyncio
import json
import sys
from asyncio.subprocess import Process
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pianissimo.errors import AudioDecodeError
from pianissimo.serve.audio_in.decode import end_process, read_frame, start_process
from pianissimo.serve.audio_in.decode_worker import AUDIO, DONE, LENGTH, MARK

LiveKind: TypeAlias = Literal["container", "opus"]
Push: TypeAlias = Callable[[npt.NDArray[np.float32]], Awaitable[object]]


class LiveDecoder:
    """Decodes the messages of one stream; samples go to `push` in the order of the messages."""

    def __init__(self, process: Process, push: Push) -> None:
        self._process, self._push = process, push
        self._marks: deque[asyncio.Future[None]] = deque()
        self._reading = asyncio.create_task(self._read())

    async def write(self, data: bytes) -> None:
        """Decode a message; raises AudioDecodeError if the stream cannot be decoded."""
        self._check()
        await self._send(LENGTH.pack(len(data)) + data)

    async def flush(self) -> None:
        """Return when everything written so far was decoded and pushed."""
        self._check()
        mark = asyncio.get_running_loop().create_future()
        self._marks.append(mark)
        await self._send(LENGTH.pack(0))
        await asyncio.wait({mark, self._reading}, return_when=asyncio.FIRST_COMPLETED)
        self._check()

    async def finish(self) -> None:
        """The audio has ended: return when all of it was decoded and pushed."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._reading

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await end_process(self._process)

    def _check(self) -> None:
        if self._reading.done():
            self._reading.result()

    async def _send(self, data: bytes) -> None:
        if self._process.stdin is None or self._process.stdin.is_closing():
            return
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except OSError:
            await self._reading  # it knows why the process ended

    async def _read(self) -> None:
        try:
            while True:
                kind, payload = await read_frame(self._process)
                if kind == AUDIO:
                    await self._push(np.frombuffer(payload, "<f4").astype(np.float32))
                elif kind == MARK:
                    self._marks.popleft().set_result(None)
                elif kind == DONE:
                    return
                else:
                    raise AudioDecodeError(json.loads(payload)["message"])
        except (asyncio.IncompleteReadError, OSError) as error:
            raise AudioDecodeError(
                "the decoder ended: the audio is damaged or malicious; send raw samples"
            ) from error


@asynccontextmanager
async def live_decoder(kind: LiveKind, sample_rate: int, push: Push) -> AsyncIterator[LiveDecoder]:
    """A decoder process of one stream, to mono float32 at `sample_rate` Hz."""
    worker = "pianissimo.serve.audio_in.live_worker"
    process = await start_process((sys.executable, "-m", worker, kind, str(sample_rate)))
    decoder = LiveDecoder(process, push)
    try:
        yield decoder
    finally:
        await decoder.close()
