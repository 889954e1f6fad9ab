"""What the sockets of all dialects share."""

import asyncio
import weakref

import pytest

from pianissimo.serve.dialects.sockets import Gone, until_first


@pytest.mark.usefixtures("no_collection")
def test_a_socket_that_ended_is_freed_at_once() -> None:
    """Thousands that come and go must not pile up until garbage is collected."""

    class Connection:
        """What a job knows."""

    async def breaks(one: Connection) -> None:
        raise Gone(1006)

    async def talk() -> None:
        one = Connection()
        known = weakref.ref(one)
        try:
            await until_first(breaks(one), asyncio.sleep(60))
        except Gone as gone:
            assert gone.code == 1006
        del one
        await asyncio.sleep(0)
        assert known() is None

    asyncio.run(talk())
