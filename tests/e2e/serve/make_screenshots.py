"""Pictures of the page for docs/web-page.md: every tab, on a desktop and on a phone, and dark.

    python tests/e2e/serve/make_screenshots.py

Needs Chromium and, for small files, Pillow; the fonts are those of the machine.
"""

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from browsing import browsing, visiting
from PIL import Image
from serving import RATE, serving, speech, wav

import pianissimo

PICTURES = Path(__file__).parents[3] / "docs" / "pictures"
SIZES = {"desktop": (1180, 800), "phone": (375, 740)}
COLORS = 128
SOFT = 0.03
"""What is said in the pictures, against the examples: there is something to do for the gain."""


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        talk = Path(folder) / "talk.wav"
        pause = np.zeros(round(1.2 * RATE), np.float32)
        number, digits = speech(2.5), speech(1.9, first=1) * 10
        parts = [pause, number, pause, digits, pause, number, number, pause]
        soundfile.write(talk, SOFT * np.concatenate(parts), RATE, subtype="PCM_16")
        with (
            serving(pianissimo.load("embedded-commands", device="cpu")) as server,
            browsing(talk) as browser,
        ):
            for name, (width, height) in SIZES.items():
                viewport = {"width": width, "height": height}
                with visiting(browser, server.http, viewport=viewport) as page:
                    take_all(page, name)
            dark = {"color_scheme": "dark", "viewport": {"width": 1180, "height": 800}}
            with visiting(browser, server.http, **dark) as page:
                live(page)
                save(page, "live-dark")


def take_all(page: Any, size: str) -> None:
    """All tabs, one after the other, with something in them."""
    clip = {"name": "number.wav", "mimeType": "audio/wav", "buffer": wav(speech(2.5))}
    live(page)
    save(page, f"live-{size}")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("tab", name="File").click()
    pause = np.zeros(RATE, np.float32)
    both = np.concatenate([speech(2.5), pause, speech(1.9, first=1), pause, speech(2.5)])
    page.locator("#file-input").set_input_files({**clip, "buffer": wav(both)})
    page.locator("#file-text .word").first.wait_for()
    save(page, f"file-{size}")
    page.get_by_role("tab", name="History").click()
    page.locator("#history-list .link", has_text="number").click()
    page.locator("#history-text .word").first.wait_for()
    save(page, f"history-{size}")
    page.get_by_role("tab", name="Compare").click()
    page.locator("#lane-b").select_option("embedded-commands, whole")
    page.locator("#compare-input").set_input_files(
        {**clip, "name": "talk.wav", "buffer": wav(speech(8.0))}
    )
    page.locator("#took-a", has_text="complete").wait_for()
    page.locator("#took-b", has_text="complete").wait_for()
    save(page, f"compare-{size}")
    page.get_by_role("tab", name="QuietBench").click()
    page.locator("#quiet-input").set_input_files(clip)
    page.get_by_role("button", name="All levels").click()
    page.locator("#quiet-found tbody tr").nth(5).wait_for()
    save(page, f"quietbench-{size}")
    page.get_by_role("tab", name="API").click()
    save(page, f"api-{size}")


def live(page: Any) -> None:
    """Two paragraphs, and a third one that still grows."""
    page.get_by_role("button", name="Listen").click()
    page.locator("#live-text .paragraph:not(.partial)").nth(1).wait_for()
    page.locator("#live-text .partial p").wait_for()


def save(page: Any, name: str) -> None:
    """A PNG of few colors: an eighth of what the browser writes."""
    page.wait_for_timeout(150)
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    small = shot.quantize(COLORS, dither=Image.Dither.NONE)
    small.save(PICTURES / f"{name}.png", optimize=True)
    print(f"{name}.png", (PICTURES / f"{name}.png").stat().st_size // 1024, "KiB")


if __name__ == "__main__":
    main()
