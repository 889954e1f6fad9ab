"""Failures of the event loop are logged once per kind, not thousands of times a second."""

import asyncio
import errno
import logging
from types import SimpleNamespace

import pytest

from pianissimo.serve import shutdown
from pianissimo.serve.shutdown import LoopErrors


def test_exhausted_descriptors_are_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    # Only this module's clock: servers of other tests run in other threads.
    monkeypatch.setattr(shutdown, "time", SimpleNamespace(monotonic=lambda: now))
    loop, errors = asyncio.new_event_loop(), LoopErrors()
    loop.set_exception_handler(errors.handle)
    full = OSError(errno.EMFILE, "Too many open files")
    context = {"message": "socket.accept() out of system resource", "exception": full}
    with caplog.at_level(logging.ERROR):
        for _ in range(2048):
            loop.call_exception_handler(context)
        loop.call_exception_handler({"message": "a task failed", "exception": ValueError("x")})
        assert len(caplog.records) == 2 and not caplog.records[0].exc_info
        now += 60.0
        loop.call_exception_handler(context)
    loop.close()
    assert "2047 similar messages" in caplog.records[-1].getMessage()
