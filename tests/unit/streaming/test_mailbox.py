"""The unread events of a stream: order, replaced partials, waiting readers, the end."""

import asyncio
import threading

import pytest

from pianissimo.errors import EngineError
from pianissimo.streaming.mailbox import Mailbox
from pianissimo.transcript import StreamEvent

SOON = 30.0


def partial(text: str) -> StreamEvent:
    return StreamEvent("partial", text, (), 0.0, 1.0)


def final(text: str) -> StreamEvent:
    return StreamEvent("final", text, (), 0.0, 1.0, reason="endpoint")


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox(threading.RLock(), 3)


def texts(mailbox: Mailbox) -> list[str]:
    events = []
    while (event := mailbox.get(0.0)) is not None:
        events.append(event.text)
    return events


def test_a_partial_replaces_an_unread_partial_and_never_a_final(mailbox: Mailbox) -> None:
    mailbox.deliver([partial("a"), partial("a b"), final("a b")])
    mailbox.deliver([partial("c")])
    mailbox.deliver([partial("c d")])
    mailbox.end()
    assert texts(mailbox) == ["a b", "a b", "c d"]
    assert mailbox.get(0.0) is None, "the end stays the end"


def test_a_read_partial_is_not_taken_back(mailbox: Mailbox) -> None:
    mailbox.deliver([partial("a")])
    assert mailbox.get(0.0) == partial("a")
    mailbox.deliver([partial("a b")])
    assert mailbox.get_nowait() == partial("a b")
    assert mailbox.get_nowait() is None


def test_reading_a_full_mailbox_resumes_the_stream_once(mailbox: Mailbox) -> None:
    resumed: list[int] = []
    mailbox.resume = lambda: resumed.append(len(mailbox))
    mailbox.deliver([final("a"), final("b"), final("c"), final("d")])
    assert mailbox.full and len(mailbox) == 4
    for unread in (3, 2, 1, 0):
        mailbox.get(0.0)
        assert mailbox.full == (unread >= 3)
    assert resumed == [2]
    mailbox.deliver([final("e")] * 3)
    mailbox.end()
    mailbox.get(0.0)
    assert resumed == [2], "a stream that has ended is not resumed"


def test_an_error_comes_after_the_last_event(mailbox: Mailbox) -> None:
    mailbox.deliver([final("a")])
    mailbox.end(EngineError("out of memory"))
    assert mailbox.get(0.0) == final("a")
    for _ in range(2):
        with pytest.raises(EngineError, match="out of memory"):
            mailbox.get(0.0)


def test_a_thread_waits_for_an_event_and_no_longer_than_its_timeout(mailbox: Mailbox) -> None:
    with pytest.raises(TimeoutError):
        mailbox.get(0.01)
    found: list[StreamEvent | None] = []
    reader = threading.Thread(target=lambda: found.append(mailbox.get(SOON)))
    reader.start()
    mailbox.deliver([final("a")])
    reader.join(SOON)
    assert found == [final("a")]


def test_coroutines_wait_for_events_of_another_thread(mailbox: Mailbox) -> None:
    async def read() -> list[str]:
        writer = threading.Timer(0.05, mailbox.deliver, [[final("a")]])
        writer.start()
        found = []
        async for event in mailbox:
            found.append(event.text)
            if event.text == "a":
                threading.Timer(0.05, mailbox.end).start()
        return found

    assert asyncio.run(asyncio.wait_for(read(), SOON)) == ["a"]


def test_a_closed_loop_does_not_disturb_the_writer(mailbox: Mailbox) -> None:
    reader = aiter(mailbox)

    async def begin() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(anext(reader))), 0.01)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.close()
    mailbox.deliver([final("a")])
    assert mailbox.get(0.0) == final("a")
