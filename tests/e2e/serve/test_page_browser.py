"""The page in Chromium: words from a microphone, from files, side by side; accessibility."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from browsing import browsing, need_browser, visiting
from serving import RATE, Server, pcm, serving, speech, wav
from tiny_voice import TinyVoice

from pianissimo.recognizers.base import BaseRecognizer
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings
from pianissimo.transcript import Segment, Transcript

need_browser()

NUMBER = "enter four five two nine"
DIGITS = NUMBER.split()[1:]
KEPT_SOCKETS = """
const Socket = window.WebSocket;
window.sockets = [];
window.WebSocket = class extends Socket {
  constructor(...given) { super(...given); window.sockets.push(this); }
};
"""
KEPT_FORM = """
const send = window.fetch;
window.fetch = (address, options) => {
  const form = options?.body;
  if (form instanceof FormData) window.sent = [form.get("language"), form.get("hotwords")];
  return send(address, options);
};
"""
CUT = """new Promise((resolve) => {
  const socket = window.sockets.at(-1);
  const cut = () => { socket.close(4000); resolve(); };
  if (socket.readyState === WebSocket.OPEN) cut();
  else socket.addEventListener("open", cut);
})"""


def pause(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Its microphone hears the number, a pause, and the number twice without one."""
    path = tmp_path_factory.mktemp("microphone") / "talk.wav"
    number = speech(2.5)
    talk = [pause(0.4), number, pause(1.2), number, pause(0.2), number, pause(1.0)]
    soundfile.write(path, np.concatenate(talk), RATE, subtype="PCM_16")
    with browsing(path) as running:
        yield running


def words(page: Any, root: str) -> list[str]:
    return page.locator(f"{root} .word").all_text_contents()


def recording(seconds: float, name: str = "number.wav") -> dict[str, Any]:
    return {"name": name, "mimeType": "audio/wav", "buffer": wav(speech(seconds))}


def saved(page: Any, click: Callable[[], None]) -> str:
    with page.expect_download() as download:
        click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def paragraphs(page: Any, count: int) -> None:
    """Wait until there are so many that will not change."""
    page.locator("#live-text .paragraph:not(.partial)").nth(count - 1).wait_for()


# -- live ------------------------------------------------------------------------------------------


def test_the_microphone_becomes_partial_and_final_words(browser: Any, words_server: Server) -> None:
    with visiting(browser, words_server.http) as page:
        page.get_by_role("button", name="Listen").click()
        partial = page.locator("#live-text .partial p")
        partial.filter(has_text="four").wait_for()
        assert NUMBER.startswith(partial.text_content().strip())
        paragraphs(page, 1)
        assert words(page, "#live-text") == NUMBER.split()
        assert page.locator("#live-log").text_content() == NUMBER
        for readout in ("delay", "final"):
            assert re.fullmatch(r"\d+ ms", page.locator(f"#live-{readout}").text_content())
        assert re.fullmatch(r"[+−]\d+ dB", page.locator("#live-gain").text_content())
        page.locator("#live-text .word").first.click()
        page.locator("#live-text .word.playing", has_text="enter").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Listen").wait_for()
        words_server.wait_until_empty()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save sound").click()
        sound, rate = soundfile.read(download.value.path(), dtype="float32")
        assert 2.5 < len(sound) / rate < 20 and np.abs(sound).max() > 0.1


def test_another_latency_while_talking_loses_no_word(browser: Any, words_server: Server) -> None:
    with visiting(browser, words_server.http) as page:
        page.get_by_role("button", name="Listen").click()
        partial = page.locator("#live-text .partial p")
        partial.filter(has_text=re.compile("four five")).wait_for()
        page.get_by_label("80 ms", exact=True).check()
        paragraphs(page, 1)
        partial.filter(has_text=re.compile("two|five")).wait_for()
        page.get_by_label("1120 ms", exact=True).check()
        page.locator("#live-text .word", has_text="nine").nth(2).wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Listen").wait_for()
        # "enter" is heard as another word now and then, yet never as two.
        number = r"(\w+ )?" + " ".join(DIGITS)
        assert re.fullmatch(
            " ".join(3 * [number]) + "( enter)?", " ".join(words(page, "#live-text"))
        )


def test_a_cut_connection_is_taken_up_again(browser: Any, words_server: Server) -> None:
    with visiting(browser, words_server.http, script=KEPT_SOCKETS) as page:
        page.get_by_role("button", name="Listen").click()
        for text in ("enter", "five"):
            page.locator("#live-text .partial p", has_text=text).wait_for()
            page.evaluate(CUT)
        paragraphs(page, 1)
        assert words(page, "#live-text") == NUMBER.split()
        assert page.evaluate("sockets.length") >= 3


class Whole(BaseRecognizer):
    """The embedded model as one that hears recordings whole and gives no times of words."""

    name, model, language = "whole", None, "en"

    def __init__(self, recognizer: NativeRecognizer) -> None:
        self.recognizer = recognizer

    def recognize(
        self, recordings: Any, words: bool, latency_ms: int | None = None
    ) -> Iterator[Transcript]:
        for blocks in recordings:
            samples = np.concatenate([*blocks])
            found = self.recognizer.transcribe(samples, sample_rate=RATE)
            segment = Segment(found.text, 0.0, found.duration)
            yield Transcript(found.text, (segment,), (), "en", found.duration, self.name)


def test_a_model_without_latencies_writes_in_pauses(
    browser: Any, embedded: NativeRecognizer
) -> None:
    with (
        serving({"whole": Whole(embedded), "live": embedded}) as server,
        visiting(browser, server.http) as page,
    ):
        page.get_by_text("This model transcribes when you pause.").wait_for()
        assert not page.get_by_role("group", name="Latency").is_visible()
        page.get_by_role("button", name="Listen").click()
        paragraphs(page, 1)
        assert page.locator("#live-text .paragraph p").first.text_content() == NUMBER
        assert re.fullmatch(r"\d+ ms", page.locator("#live-final").text_content())
        page.locator("#live-text .word", has_text="five").click()
        page.locator("#live-text .word.playing", has_text="five").wait_for()
        page.get_by_label("Model").and_(page.locator("#live-model")).select_option("live")
        page.get_by_label("160 ms", exact=True).and_(page.locator(":checked")).wait_for()
        assert not page.get_by_text("This model transcribes when you pause.").is_visible()
        page.locator("#live-text .word", has_text="nine").nth(2).wait_for()
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("button", name="Listen").wait_for()
        assert [word for word in words(page, "#live-text") if word in DIGITS] == 3 * DIGITS
        panel = page.locator("#live")
        text = saved(page, panel.get_by_role("button", name="Save as srt").click)
        assert text.count(" --> ") >= 2 and NUMBER in text
        found = saved(page, panel.get_by_role("button", name="Save as json").click)
        assert json.loads(found)["segments"][0]["words"] == [], "no times are made up"
        page.get_by_role("tab", name="Compare").click()
        page.locator("#lane-a").select_option("whole, whole")
        page.locator("#lane-b").select_option("live, whole")
        page.locator("#compare-input").set_input_files(recording(2.5))
        page.get_by_text("Both transcripts are equal.").wait_for()


# -- files -----------------------------------------------------------------------------------------


def test_a_file_becomes_words_that_can_be_corrected_and_saved(
    browser: Any, words_server: Server, embedded: NativeRecognizer
) -> None:
    with visiting(browser, words_server.http + "/#file") as page:
        page.locator("#file-input").set_input_files(recording(2.5))
        page.locator("#file-text .word").first.wait_for()
        assert words(page, "#file-text") == NUMBER.split()
        page.locator("#file-text .word", has_text="five").click()
        page.locator("#file-text .word.playing").first.wait_for()
        begun = page.locator("#file-audio").evaluate("audio => audio.played.start(0)")
        start = embedded.transcribe(speech(2.5), sample_rate=RATE).words[2].start
        assert start - 0.5 < begun < start
        panel = page.locator("#file")
        panel.get_by_role("button", name="Edit").click()
        panel.get_by_role("textbox", name="Paragraph").fill("enter the four 7 two nine")
        panel.get_by_role("button", name="Done").click()
        files = {
            kind: saved(page, panel.get_by_role("button", name=f"Save as {kind}").click)
            for kind in ("txt", "srt", "vtt", "json")
        }
    assert files["txt"] == "enter the four 7 two nine\n"
    found = Transcript.from_json(files["json"])
    before = embedded.transcribe(speech(2.5), sample_rate=RATE)
    assert [word.text for word in found.words] == "enter the four 7 two nine".split()
    assert (found.model, found.duration) == (embedded.name, pytest.approx(2.5))
    for index, same in ((0, 0), (2, 1), (4, 3), (5, 4)):
        assert found.words[index].start == pytest.approx(before.words[same].start, abs=0.1)
    times = [time for word in found.words for time in (word.start, word.end)]
    assert times == sorted(times) and found.words[1].confidence is None
    cue = r"(\d\d:\d\d:\d\d{0}\d\d\d) --> (\d\d:\d\d:\d\d{0}\d\d\d)\n(.+\n)+"
    assert re.fullmatch("1\n" + cue.format(","), files["srt"])
    assert re.fullmatch("WEBVTT\n\n" + cue.format(r"\."), files["vtt"])


def test_silence_is_reported(browser: Any, words_server: Server) -> None:
    silence = {"name": "still.wav", "mimeType": "audio/wav", "buffer": wav(pause(2.0))}
    with visiting(browser, words_server.http + "/#file") as page:
        page.locator("#file-input").set_input_files(silence)
        page.get_by_text("No speech found: it contains no sound").wait_for()
        assert words(page, "#file-text") == []


def test_a_long_file_shows_how_far_it_is_and_can_be_cancelled(
    browser: Any, words_server: Server, tmp_path: Path
) -> None:
    long = tmp_path / "long.wav"
    long.write_bytes(wav(speech(600.0)))
    with visiting(browser, words_server.http + "/#file") as page:
        page.locator("#file-input").set_input_files(long)
        page.get_by_text(re.compile(r"transcribing: \d+:\d\d of \d+:\d\d")).wait_for()
        assert 0 < page.locator("#file-progress").evaluate("p => p.value") < 1
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled.").wait_for()
        assert not page.locator("#file-work").is_visible()
        page.locator("#file-input").set_input_files(recording(2.5))
        page.locator("#file-text .word").first.wait_for()
        assert words(page, "#file-text") == NUMBER.split()


# -- side by side, quiet, interfaces ---------------------------------------------------------------


def test_two_ways_of_hearing_stand_side_by_side(browser: Any, words_server: Server) -> None:
    with visiting(browser, words_server.http + "/#compare") as page:
        page.locator("#lane-b option:checked").wait_for(state="attached")
        names = page.locator("#lane-a option:checked, #lane-b option:checked").all_text_contents()
        assert names == ["embedded-commands, live at 80 ms", "embedded-commands, live at 1120 ms"]
        page.locator("#compare-input").set_input_files(recording(2.5))
        page.get_by_text("Both transcripts are equal.").wait_for()
        assert words(page, "#text-a") == words(page, "#text-b") == NUMBER.split()
        page.locator("#lane-b").select_option("embedded-commands, whole")
        page.get_by_role("button", name="Use the microphone").click()
        # The microphone may begin in the middle of its loop: what counts is one whole round.
        page.wait_for_function(
            "phrase => [...document.querySelectorAll('#text-a .word')]"
            ".map(word => word.textContent.trim()).join(' ').includes(phrase)",
            arg=NUMBER,
        )
        page.locator("#compare").get_by_role("button", name="Stop").click()
        page.locator("#took-b", has_text="complete").wait_for()
        assert NUMBER in " ".join(words(page, "#text-a"))
        assert NUMBER in " ".join(words(page, "#text-b"))


def test_two_models_stand_side_by_side(
    browser: Any, embedded: NativeRecognizer, tiny: NativeRecognizer
) -> None:
    with (
        serving({"good": embedded, "babble": tiny}) as server,
        visiting(browser, server.http + "/#compare") as page,
    ):
        page.locator("#lane-b option:checked").wait_for(state="attached")
        names = page.locator("#lane-a option:checked, #lane-b option:checked").all_text_contents()
        assert [name.split(",")[0] for name in names] == ["good", "babble"]
        page.locator("#compare-input").set_input_files(recording(2.5))
        page.locator("#took-a", has_text="complete").wait_for()
        page.locator("#took-b", has_text="complete").wait_for()
        assert words(page, "#text-a") == NUMBER.split() != words(page, "#text-b")
        assert page.locator("#text-a .differs").count() == len(NUMBER.split())
        page.get_by_role("tab", name="File").click()
        page.get_by_label("Model").and_(page.locator("#file-model")).select_option("babble")
        page.locator("#file-input").set_input_files(recording(2.5))
        page.locator("#file-text .word").first.wait_for()
        assert words(page, "#file-text") != NUMBER.split()


def test_a_text_is_spoken_and_saved(browser: Any, tiny: NativeRecognizer) -> None:
    with (
        serving(tiny, voices={"tones": TinyVoice()}) as server,
        visiting(browser, server.http + "/#speak") as page,
    ):
        page.get_by_label("Text to speak").fill("One two three. Four.")
        page.get_by_role("button", name="Speak", exact=True).click()
        page.get_by_role("button", name="Save as wav").wait_for()
        assert "0.8 s of speech" in page.locator("#speak-note").text_content()
        with page.expect_download() as download:
            page.get_by_role("button", name="Save as wav").click()
        samples, rate = soundfile.read(download.value.path())
        assert len(samples) / rate == pytest.approx(0.8) and np.abs(samples).max() > 0.2


def test_stop_ends_the_synthesis(browser: Any, tiny: NativeRecognizer) -> None:
    voice = TinyVoice(gates=40)
    voice.gates[0].set()
    with (
        serving(tiny, voices={"tones": voice}) as server,
        visiting(browser, server.http + "/#speak") as page,
    ):
        page.get_by_label("Text to speak").fill("One two. " * 40)
        page.get_by_role("button", name="Speak", exact=True).click()
        page.get_by_role("button", name="Stop").click()
        page.get_by_text("Stopped.").wait_for()
        for gate in voice.gates:
            gate.set()
        server.wait_until_empty()
        assert len(voice.spoken) < 10


def test_an_unspeakable_text_and_a_missing_voice_are_explained(
    browser: Any, tiny: NativeRecognizer
) -> None:
    with (
        serving(tiny, voices={"tones": TinyVoice()}) as server,
        visiting(browser, server.http + "/#speak", expected="400") as page,
    ):
        page.get_by_label("Text to speak").fill("你好")
        page.get_by_role("button", name="Speak", exact=True).click()
        page.get_by_text("the voice reads Latin letters").wait_for()
    with (
        serving(tiny, voices={}) as server,
        visiting(browser, server.http + "/#speak") as page,
    ):
        page.get_by_text("No voice is installed").wait_for()
        assert page.get_by_role("button", name="Speak", exact=True).is_disabled()


def test_quiet_clip_is_transcribed_with_and_without_gain(
    browser: Any, words_server: Server
) -> None:
    with visiting(browser, words_server.http + "/#quiet") as page:
        page.get_by_text("pianissimo serve --quietbench").wait_for()
        page.locator("#quiet-input").set_input_files(recording(2.5))
        page.locator("#quiet-level").fill("-80")
        page.get_by_role("button", name="Transcribe").click()
        row = page.locator("#quiet-found tbody tr")
        row.wait_for()
        level, off, on = row.locator("th, td").all_text_contents()
        assert level == "−80 dBFS" and on == NUMBER and off != on


def test_the_report_of_a_benchmark_is_shown(
    browser: Any, tiny: NativeRecognizer, tmp_path: Path
) -> None:
    error = {"value": 0.125, "low": 0.1, "high": 0.15}
    system = {"recognizer": "tiny", "gain": "on", "scenarios": {"whisper": {"error": error}}}
    (tmp_path / "summary.json").write_text(json.dumps({"systems": [system]}))
    with serving(tiny, Settings(quietbench=tmp_path)) as server:
        with visiting(browser, server.http + "/#quiet") as page:
            page.locator("#quiet-report td", has_text="12.5 %").wait_for()


def test_the_examples_work_as_they_stand(
    browser: Any, words_server: Server, tmp_path: Path
) -> None:
    (tmp_path / "talk.mp3").write_bytes(wav(speech(2.5)))
    (tmp_path / "talk.raw").write_bytes(pcm(speech(2.5)))
    with visiting(browser, words_server.http + "/gradio_api/") as page:
        page.get_by_role("tab", name="API", selected=True).wait_for()
        codes = page.locator("#api pre").all_text_contents()
    for code in codes:
        command = ["sh", "-c", code] if code.startswith("curl") else [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert NUMBER in done.stdout, done.stderr
    assert len(codes) == 4


# -- who may, and on what --------------------------------------------------------------------------


def test_the_key_is_asked_for_once(browser: Any, embedded: NativeRecognizer) -> None:
    with (
        serving(embedded, Settings(api_keys=("pp-3f9c",))) as server,
        visiting(browser, server.http, expected="401") as page,
    ):
        for key in ("wrong", "pp-3f9c"):
            page.get_by_role("textbox", name="API key").fill(key)
            page.get_by_role("button", name="Use key").click()
            page.wait_for_load_state("networkidle")
        page.get_by_role("button", name="Listen").click()
        page.locator("#live-text .partial p", has_text="enter").wait_for()
        page.on("dialog", lambda dialog: dialog.accept())
        page.reload()
        page.get_by_role("button", name="Listen").and_(page.locator(":enabled")).wait_for()
        assert not page.get_by_role("dialog").is_visible()
        assert page.evaluate("localStorage.length") == 0


@pytest.mark.parametrize(
    "tab", ["live", "file", "history", "speak", "talk", "compare", "quiet", "api"]
)
def test_it_fits_a_phone(browser: Any, words_server: Server, tab: str) -> None:
    phone = {"width": 375, "height": 700}
    with visiting(browser, f"{words_server.http}/#{tab}", viewport=phone) as page:
        page.locator(f"#{tab}").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_the_keyboard_reaches_everything(browser: Any, words_server: Server) -> None:
    with visiting(browser, words_server.http) as page:
        page.get_by_role("tab", name="Live").focus()
        page.keyboard.press("ArrowRight")
        assert page.get_by_role("tab", name="File").get_attribute("aria-selected") == "true"
        page.locator("#file-input").set_input_files(recording(2.5))
        page.locator("#file-text .word").first.wait_for()
        page.locator("#file-text").focus()
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert page.locator("#file-text .word.active").text_content() == "five"
        page.keyboard.press("Enter")
        assert page.locator("#file-audio").evaluate("a => a.currentTime") > 0.5


# -- several files, drops, history, search, exports ------------------------------------------------

DROP = """(target) => {
  const transfer = new DataTransfer();
  for (const [name, bytes] of window.given) {
    transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "audio/wav" }));
  }
  const event = (kind) => new DragEvent(kind, {
    dataTransfer: transfer, bubbles: true, cancelable: true,
  });
  const over = !document.querySelector(target).dispatchEvent(event("dragover"));
  return over && !document.querySelector(target).dispatchEvent(event("drop"));
}"""


def test_a_file_dropped_anywhere_is_transcribed(browser: Any, words_server: Server) -> None:
    given = [["dropped.wav", [*wav(speech(2.5))]]]
    with visiting(browser, words_server.http) as page:
        page.locator("#live-listen:enabled").wait_for()
        page.evaluate("given => { window.given = given; }", given)
        assert page.evaluate(DROP, "header h1"), "the browser would have opened the file"
        page.locator("#file-text .word").first.wait_for()
        assert words(page, "#file-text") == NUMBER.split()
        assert page.url.endswith("#file")


def test_several_files_wait_in_a_queue(browser: Any, words_server: Server) -> None:
    broken = {"name": "broken.wav", "mimeType": "audio/wav", "buffer": b"no sound at all" * 100}
    files = [recording(2.5, "one.wav"), broken, recording(2.5, "three.wav")]
    with visiting(browser, words_server.http + "/#file") as page:
        page.locator("#file-input").set_input_files(files)
        rows = page.locator("#file-queue li")
        rows.nth(2).filter(has_text="done").wait_for()
        assert words(page, "#file-text") == NUMBER.split(), "the first one stays on the page"
        assert "decoded" in rows.nth(1).text_content()
        rows.nth(1).get_by_role("button", name="broken.wav").click()
        page.locator("#file-note.wrong").wait_for()
        assert words(page, "#file-text") == []
        rows.nth(2).get_by_role("button", name="three.wav").click()
        page.locator("#file-text .word").first.wait_for()
        name = saved_name(
            page, page.locator("#file").get_by_role("button", name="Save as txt").click
        )
        assert name == "three.txt"


def saved_name(page: Any, click: Callable[[], None]) -> str:
    with page.expect_download() as download:
        click()
    return download.value.suggested_filename


def test_a_reload_keeps_the_history_until_it_is_deleted(browser: Any, words_server: Server) -> None:
    with visiting(browser, words_server.http + "/#file") as page:
        page.locator("#file-input").set_input_files(recording(2.5, "kept.wav"))
        page.locator("#file-text .word").first.wait_for()
        panel = page.locator("#file")
        panel.get_by_role("button", name="Edit").click()
        panel.get_by_role("textbox", name="Paragraph").fill("enter four five two ten")
        panel.get_by_role("button", name="Done").click()
        page.reload()
        page.get_by_role("tab", name="History").click()
        page.get_by_role("button", name="kept", exact=True).click()
        page.locator("#history-text .word").first.wait_for()
        assert words(page, "#history-text") == "enter four five two ten".split()
        (entry,) = json.loads(saved(page, page.get_by_role("button", name="Export all").click))
        assert entry["name"] == "kept"
        assert entry["transcript"]["segments"][0]["text"] == "enter four five two ten"
        page.on("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete all").click()
        page.get_by_text("Nothing has been transcribed here yet.").wait_for()
        page.reload()
        page.get_by_text("Nothing has been transcribed here yet.").wait_for()


def test_live_text_is_kept_and_a_reload_warns(browser: Any, words_server: Server) -> None:
    asked: list[str] = []
    with visiting(browser, words_server.http) as page:
        page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
        page.reload()
        assert asked == [], "nothing would be lost"
        page.get_by_role("button", name="Listen").click()
        paragraphs(page, 1)
        page.reload()
        assert asked == ["beforeunload"]
        page.get_by_role("tab", name="History").click()
        page.locator("#history-list li", has_text=NUMBER).wait_for()


def test_search_and_playback_show_their_place(browser: Any, words_server: Server) -> None:
    long = np.concatenate([speech(2.5), pause(1.0)] * 12)
    file = {"name": "long.wav", "mimeType": "audio/wav", "buffer": wav(long)}
    small = {"width": 900, "height": 420}
    with visiting(browser, words_server.http + "/#file", viewport=small) as page:
        page.locator("#file-input").set_input_files(file)
        page.locator("#file-text .word", has_text="nine").nth(11).wait_for()
        field = page.locator("#file-find input")
        field.fill("two ni")
        page.get_by_text("1 of 12").wait_for()
        assert page.locator("#file-text .word.found").count() == 24
        field.press("Shift+Enter")
        page.get_by_text("12 of 12").wait_for()
        current = page.locator("#file-text .word.current")
        assert current.text_content() == "two" and in_sight(current)
        field.fill("seven")
        page.get_by_text("not found").wait_for()
        page.evaluate("scrollTo(0, 0)")
        page.locator("#file-audio").evaluate("a => { a.currentTime = 38; return a.play(); }")
        playing = page.locator("#file-text .word.playing")
        playing.first.wait_for()
        assert in_sight(playing.first)


MARKED = "four < five & \N{MUSICAL SYMBOL PIANO}"


def in_sight(element: Any) -> bool:
    return bool(
        element.evaluate(
            "e => e.getBoundingClientRect().top >= 0 "
            "&& e.getBoundingClientRect().bottom <= innerHeight"
        )
    )


def test_a_transcript_becomes_a_word_document(browser: Any, words_server: Server) -> None:
    with visiting(browser, words_server.http + "/#file") as page:
        page.locator("#file-input").set_input_files(recording(2.5))
        page.locator("#file-text .word").first.wait_for()
        panel = page.locator("#file")
        panel.get_by_role("button", name="Edit").click()
        panel.get_by_role("textbox", name="Paragraph").fill(MARKED)
        panel.get_by_role("button", name="Done").click()
        with page.expect_download() as download:
            panel.get_by_role("button", name="Save as docx").click()
        with zipfile.ZipFile(download.value.path()) as document:
            assert document.testzip() is None
            root = ElementTree.fromstring(document.read("word/document.xml"))
    assert "".join(root.itertext()).endswith(MARKED)


def test_language_and_hotwords_reach_the_model(browser: Any, words_server: Server) -> None:
    options = {"expected": "400", "script": KEPT_FORM}
    with visiting(browser, words_server.http + "/#file", **options) as page:
        panel = page.locator("#file")
        panel.get_by_text("Language and hotwords").click()
        panel.get_by_label("Language", exact=True).fill("de")
        page.locator("#file-input").set_input_files(recording(2.5))
        page.locator("#file-note.wrong", has_text="supports 'en' only").wait_for()
        panel.get_by_label("Language", exact=True).fill("en-US")
        panel.get_by_label("Hotwords").fill("nine, Ada Lovelace")
        page.locator("#file-input").set_input_files(recording(2.5))
        page.locator("#file-text .word").first.wait_for()
        assert page.evaluate("sent") == ["en-US", '["nine","Ada Lovelace"]']
        assert words(page, "#file-text") == NUMBER.split()
        page.get_by_role("tab", name="Live").click()
        page.locator("#live").get_by_text("Language and hotwords").click()
        page.locator("#live").get_by_label("Hotwords").fill("nine")
        frames: list[str] = []
        page.on(
            "websocket", lambda socket: socket.on("framesent", lambda data: frames.append(data))
        )
        page.get_by_role("button", name="Listen").click()
        page.locator("#live-text .partial p").wait_for()
        start = next(json.loads(frame) for frame in frames if isinstance(frame, str))
        assert start["boost"] == ["nine"]


def test_the_theme_is_chosen_and_remembered(browser: Any, server: Server) -> None:
    color = "getComputedStyle(document.body).backgroundColor"
    with visiting(browser, server.http, color_scheme="light") as page:
        light = page.evaluate(color)
        for name in ("Theme: auto", "Theme: light"):
            page.get_by_role("button", name=name).click()
        dark = page.evaluate(color)
        assert dark != light
        page.reload()
        page.get_by_role("button", name="Theme: dark").wait_for()
        assert page.evaluate(color) == dark
        page.get_by_role("button", name="Theme: dark").click()
        assert page.evaluate(color) == light


def test_the_operator_sees_models_seats_keys_and_margins(
    browser: Any, tiny: NativeRecognizer
) -> None:
    settings = Settings(admin_key="s3cret", max_streams=7)
    with (
        serving({"small": tiny}, settings) as server,
        visiting(browser, server.http, expected="401") as page,
    ):
        page.get_by_role("tab", name="Operator").click()
        for key in ("wrong", "s3cret"):
            page.get_by_label("Admin key").fill(key)
            page.get_by_role("button", name="Open").click()
            if key == "wrong":
                page.get_by_text("does not accept this admin key").wait_for()
        page.get_by_text("0 of 7 seats in use, 0 recordings").wait_for()
        assert page.locator("#operator-models tbody th").all_text_contents() == ["small"]
        assert "serving" in page.locator("#operator-models tbody tr").text_content()
        assert page.locator("#operator-keys tbody th").all_text_contents() == ["anyone"]


def test_without_an_admin_key_there_is_no_operators_view(browser: Any, server: Server) -> None:
    with visiting(browser, server.http) as page:
        page.locator("#live-listen:enabled").wait_for()
        assert not page.get_by_role("tab", name="Operator").is_visible()
