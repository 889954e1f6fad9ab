"""The Talk tab in Chromium: a spoken question, its spoken answer, an interruption."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
from browsing import browsing, need_browser, visiting
from scripted_llm import Reply, scripted
from serving import RATE, Server, serving, speech
from tone_voice import WORD_SECONDS, ToneVoice

from pianissimo.agent.history import CUT_MARK
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

need_browser()

NUMBER = "enter four five two nine"
LONG = "This is a long answer. " * 8
LONG_SECONDS = len(LONG.split()) * WORD_SECONDS
KEPT_MESSAGES = """
const send = WebSocket.prototype.send;
window.sent = [];
WebSocket.prototype.send = function (text) {
  const message = JSON.parse(text);
  if (message.type !== "input_audio_buffer.append") window.sent.push(message);
  else window.audio = (window.audio ?? 0) + atob(message.audio).length;
  return send.call(this, text);
};
const ask = navigator.mediaDevices.getUserMedia;
navigator.mediaDevices.getUserMedia = function (wanted) {
  window.wanted = wanted.audio;
  return ask.call(this, wanted);
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Its microphone asks a question, and another one while the first is answered."""
    path = tmp_path_factory.mktemp("microphone") / "questions.wav"
    number = speech(2.5)
    parts = [np.zeros(RATE, np.float32), number, np.zeros(3 * RATE, np.float32), number]
    soundfile.write(path, np.concatenate(parts), RATE, subtype="PCM_16")
    with browsing(path) as running:
        yield running


def test_a_question_is_answered_and_the_answer_interrupted(
    browser: Any, embedded: NativeRecognizer
) -> None:
    with scripted(LONG.strip(), "All is well.") as fake:
        settings = Settings(llm_url=fake.url, llm_model="scripted")
        with (
            serving(embedded, settings, {"tone": ToneVoice()}) as server,
            visiting(browser, server.http + "/#talk", script=KEPT_MESSAGES) as page,
        ):
            page.get_by_text("scripted", exact=True).wait_for()
            page.get_by_role("button", name="Talk").click()
            agent = page.locator("#talk-text .agent p")
            agent.filter(has_text="This is a long answer.").wait_for()
            latency = page.locator("#talk-latency", has_text=re.compile(r"^\d+ ms$"))
            latency.wait_for()
            # The server waits for 500 ms of silence before it ends a turn.
            assert 500 <= int(latency.text_content().removesuffix(" ms")) < 10_000
            agent.filter(has_text="All is well.").wait_for()
            assert page.locator("#talk-text .user p").all_text_contents() == [NUMBER, NUMBER]
            assert page.locator("#talk-text .agent p.interrupted").count() == 1
            assert agent.first.get_attribute("class") == "interrupted"
            sent, rate, wanted = page.evaluate("[sent, audio, wanted]")
            page.get_by_role("button", name="Stop").click()
            page.get_by_role("button", name="Talk").wait_for()
            server.wait_until_empty()
        update, truncation = sent
        assert update["session"]["type"] == "realtime"
        assert wanted["echoCancellation"] is True and wanted["autoGainControl"] is False
        assert rate > 2 * 24_000 * 5, "16-bit samples at 24 kHz"
        assert truncation["type"] == "conversation.item.truncate"
        assert 500 < truncation["audio_end_ms"] < 1000 * LONG_SECONDS
        _, asked, answered, again = fake.requests[-1]["messages"]
        assert (asked["content"], again["content"]) == (NUMBER, NUMBER)
        known = answered["content"].removesuffix(CUT_MARK)
        assert answered["content"].endswith(CUT_MARK) and LONG.startswith(known)
        words = truncation["audio_end_ms"] / 1000 / WORD_SECONDS
        assert len(known.split()) == pytest.approx(words, abs=1.01)


def test_push_to_talk(browser: Any, embedded: NativeRecognizer) -> None:
    """Nothing is sent but while the button is held; a second press stops the answer."""
    with scripted(LONG.strip()) as fake:
        settings = Settings(llm_url=fake.url, llm_model="scripted")
        with (
            serving(embedded, settings, {"tone": ToneVoice()}) as server,
            visiting(browser, server.http + "/#talk", script=KEPT_MESSAGES) as page,
        ):
            page.get_by_label("Push to talk").check()
            page.get_by_role("button", name="Talk", exact=True).click()
            hold = page.get_by_role("button", name="Hold to speak")
            hold.wait_for()
            page.wait_for_function("window.sent.length === 1")
            page.wait_for_timeout(300)
            assert page.evaluate("window.audio ?? 0") == 0
            hold.hover()
            page.mouse.down()
            page.wait_for_function("window.audio > 2 * 24000 * 4.5")
            page.mouse.up()
            page.locator("#talk-latency", has_text=re.compile(r"^\d+ ms$")).wait_for()
            sent = page.evaluate("window.audio")
            page.wait_for_timeout(300)
            assert page.evaluate("window.audio") == sent
            assert NUMBER in page.locator("#talk-text .user p").text_content()
            page.mouse.down()
            page.locator("#talk-text .agent p.interrupted").wait_for()
            page.mouse.up()
            page.get_by_text("That was too short.").wait_for()
            kinds = [message["type"] for message in page.evaluate("window.sent")]
            page.get_by_role("button", name="Stop").click()
            server.wait_until_empty()
        assert kinds[:3] == ["session.update", "input_audio_buffer.commit", "response.create"]
        assert set(kinds[3:]) <= {
            "response.cancel",
            "conversation.item.truncate",
            "input_audio_buffer.clear",
        }
        assert "conversation.item.truncate" in kinds and len(fake.requests) == 1


def test_a_language_model_that_fails_is_explained(browser: Any, embedded: NativeRecognizer) -> None:
    with scripted(Reply(status=500)) as fake:
        settings = Settings(llm_url=fake.url, llm_model="scripted")
        with (
            serving(embedded, settings, {"tone": ToneVoice()}) as server,
            visiting(browser, server.http + "/#talk") as page,
        ):
            page.get_by_role("button", name="Talk").click()
            page.locator("#talk-note.wrong", has_text="language model").wait_for()
            page.get_by_text("Sorry, I cannot answer right now.").first.wait_for()
            page.get_by_role("button", name="Stop").click()
            server.wait_until_empty()


def test_without_a_language_model_the_tab_says_how_to_add_one(
    browser: Any, words_server: Server
) -> None:
    with visiting(browser, words_server.http + "/#talk") as page:
        page.get_by_text(re.compile(r"pianissimo serve --llm-url \S+ --llm-model \S+")).wait_for()
        assert page.get_by_role("button", name="Talk", exact=True).is_disabled()
