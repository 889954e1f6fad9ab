"""The end of a server in peace: nobody new, time for those who are there, then their state."""

import asyncio
import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from pianissimo.serve.dialects.resumable import Streams
from pianissimo.serve.service import Service

WATCH_SECONDS = 0.05

log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn, which at the first SIGTERM or SIGINT drains and then ends; at a second one it ends
    at once."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._loop is None or not self.started or self._draining is not None:
            super().handle_exit(sig, frame)
            return
        self._loop.call_soon_threadsafe(self._begin, sig)

    def _begin(self, sig: int) -> None:
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(sig))

    async def _drain(self, sig: int) -> None:
        service: Service = self._app.state.service
        streams: Streams = self._app.state.streams
        seconds = service.settings.drain_seconds
        service.set_draining(True)
        if not service.idle:
            log.warning("draining: streams and recordings have %g s to end", seconds)
        try:
            async with asyncio.timeout(seconds):
                while not service.idle:
                    await asyncio.sleep(WATCH_SECONDS)
        except TimeoutError:
            log.warning("%d streams are sent away", service.seats.taken)
        finally:
            # Their state is there before their clients look for it elsewhere.
            try:
                await streams.close()
            finally:
                super().handle_exit(sig, None)
