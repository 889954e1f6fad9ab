"""Speakers on the page in Chromium: colors, names and saved files, of recordings and live."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browsing import browsing, need_browser, visiting
from serving import CLIPS, RATE, Server, wav

from pianissimo.audio.io import load_audio

need_browser()

ONE, OTHER = load_audio(CLIPS / "sentence.flac"), load_audio(CLIPS / "number.flac")
PAUSE = np.zeros(RATE, np.float32)
TALK = np.concatenate([PAUSE[:8000], ONE, PAUSE, OTHER, PAUSE, OTHER, PAUSE, PAUSE])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Its microphone hears two people in turn."""
    path = tmp_path_factory.mktemp("microphone") / "talk.wav"
    soundfile.write(path, TALK, RATE, subtype="PCM_16")
    with browsing(path) as running:
        yield running


def colors(page: Any, root: str) -> list[str]:
    script = "buttons => buttons.map(each => getComputedStyle(each).color)"
    return page.locator(f"{root} .speaker").evaluate_all(script)


def test_a_recording_shows_its_speakers(browser: Any, words_server: Server) -> None:
    with visiting(browser, f"{words_server.http}/#file", accept_downloads=True) as page:
        page.get_by_label("Speakers").last.select_option("2")
        file = {"name": "talk.wav", "mimeType": "audio/wav", "buffer": wav(TALK)}
        page.locator("#file-input").set_input_files(file)
        page.locator("#file-text .speaker").first.wait_for()
        names = page.locator("#file-text .speaker").all_text_contents()
        assert set(names) == {"Speaker 1", "Speaker 2"}
        assert names[0] == "Speaker 1"
        shown = dict(zip(names, colors(page, "#file-text"), strict=True))
        assert len(set(shown.values())) == 2
        page.once("dialog", lambda dialog: dialog.accept("Ann <1>"))
        page.locator("#file-text .speaker").first.click()
        renamed = page.locator("#file-text .speaker").all_text_contents()
        assert set(renamed) == {"Ann <1>", "Speaker 2"}
        page.locator("#file-tools").scroll_into_view_if_needed()
        with page.expect_download() as waiting:
            page.locator("#file-tools").get_by_label("Save as vtt").click()
        text = Path(waiting.value.path()).read_text(encoding="utf-8")
        assert "<v Ann &lt;1&gt;>" in text
        assert "<v Speaker 2>enter" in text


def test_live_words_have_the_colors_of_two_people(browser: Any, words_server: Server) -> None:
    with visiting(browser, f"{words_server.http}/#live") as page:
        page.locator("#live-speakers").check()
        page.get_by_role("button", name="Listen").click()
        page.locator("#live-text .speaker-1").first.wait_for()
        page.get_by_role("button", name="Stop").click()
        assert len(set(colors(page, "#live-text"))) == 2
        assert page.locator("#live-text .speaker").first.text_content() == "Speaker 1"
