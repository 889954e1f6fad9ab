"""A real browser for the tests of the page: Chromium, whose microphone plays a file."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
)
PATIENCE_MS = 30_000


def need_browser() -> None:
    """Skips the module where there is no browser, or nothing to drive it with."""
    pytest.importorskip("playwright", reason="no playwright: pip install 'pianissimo[dev]'")
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium", allow_module_level=True)


@contextmanager
def browsing(microphone: Path) -> Iterator[Any]:
    """A browser whose microphone plays this WAV file once, then silence."""
    from playwright.sync_api import sync_playwright

    heard = f"--use-file-for-fake-audio-capture={microphone}%noloop"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, heard])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(
    browser: Any, url: str, *, expected: str = "", script: str = "", **options: Any
) -> Iterator[Any]:
    """The page behind `url` in a fresh profile; fails if it complained or left its origin.

    Complaints with the text `expected` are forgiven; `script` runs before those of the page.
    """
    context = browser.new_context(reduced_motion="reduce", **options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.add_init_script(script)
    host, faults = urlsplit(url).netloc, list[str]()

    def asked(address: str) -> None:
        place = urlsplit(address)
        if place.scheme not in ("blob", "data") and place.netloc != host:
            faults.append(f"a request left the origin: {address}")

    page.on("request", lambda request: asked(request.url))
    page.on("websocket", lambda socket: asked(socket.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: (
            faults.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    try:
        page.goto(url)
        yield page
        unexpected = [fault for fault in faults if not expected or expected not in fault]
        assert not unexpected, unexpected
    finally:
        context.close()
