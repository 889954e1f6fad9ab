"""Resumable streams without an engine: competing connections, and the end."""

import asyncio
import weakref
from typing import Any, cast

import pytest

from pianissimo.serve.access.accounts import Account
from pianissimo.serve.dialects.resumable import ResumableStream, StreamOptions
from pianissimo.serve.errors import Refusal
from pianissimo.serve.service import Service
from pianissimo.serve.versions.store import ModelChoice

OPTIONS = StreamOptions(16_000, "pcm_s16le", 1, 160, None, ModelChoice("m"), "session")


def test_the_newest_of_many_connections_gets_the_stream() -> None:
    """Two that come while an older one still has it: the first of them is not served any more."""

    async def talk() -> None:
        stream = ResumableStream(cast(Service, None), OPTIONS, "token")
        stream.ended = True  # it needs no engine
        served: list[str] = []

        async def connection(name: str) -> None:
            async with stream.attached(cast(Account, None)):
                served.append(name)
                await stream.displaced.wait()
                assert stream.closing_reason is not None
                raise stream.closing_reason

        tasks: dict[str, asyncio.Task[Any]] = {}
        for name in ("old", "newer", "newest"):
            tasks[name] = asyncio.create_task(connection(name))
            if name == "old":
                await asyncio.sleep(0)  # it is served before the others come
        async with asyncio.timeout(60):
            await asyncio.wait([tasks["old"], tasks["newer"]])
            while len(served) < 2:
                await asyncio.sleep(0.001)
        assert served == ["old", "newest"] and not tasks["newest"].done()
        for name in ("old", "newer"):
            with pytest.raises(Refusal, match="another connection"):
                tasks[name].result()
        tasks["newest"].cancel()
        await asyncio.wait([tasks["newest"]])

    asyncio.run(talk())


@pytest.mark.usefixtures("no_collection")
def test_a_discarded_stream_is_freed_at_once() -> None:
    async def collects(stream: ResumableStream) -> None:
        await asyncio.sleep(60)

    async def talk() -> None:
        stream = ResumableStream(cast(Service, None), OPTIONS, "token")
        stream._pump = asyncio.create_task(collects(stream))
        await asyncio.sleep(0)
        known = weakref.ref(stream)
        await stream.discard()
        del stream
        await asyncio.sleep(0)
        assert known() is None

    asyncio.run(talk())
