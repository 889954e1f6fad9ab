"""Routes of the page: its files and their headers, models, recordings."""

import json
import re
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from serving import RATE, Server, serving, speech, wav

import pianissimo
from pianissimo.decoding.hotwords import Phrase
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.page.routes import STATIC, static_files
from pianissimo.serve.settings import Settings
from pianissimo.transcript import Transcript

NUMBER = "enter four five two nine"


def lines(response: httpx.Response) -> list[dict]:
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def upload(server: Server, data: bytes, **fields: str) -> list[dict]:
    files = {"file": ("clip.wav", data)}
    response = httpx.post(f"{server.http}/page/recordings", files=files, data=fields, timeout=60)
    return lines(response)


# -- the files -------------------------------------------------------------------------------------


def test_the_page_allows_itself_nothing_from_elsewhere(server: Server) -> None:
    answer = httpx.get(server.http + "/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert "style=" not in answer.text and not re.search(r"<script(?![^>]* src=)", answer.text)


def test_all_that_the_files_name_is_there(server: Server) -> None:
    texts = [file.content.decode() for file in static_files().values()]
    wanted = {name for text in texts for name in re.findall(r'"(/page/[\w.-]+\.\w+)"', text)}
    with httpx.Client(base_url=server.http) as client:
        for name in wanted:
            answer = client.get(name)
            assert answer.status_code == 200, name
            assert answer.headers["x-content-type-options"] == "nosniff"
            again = {"if-none-match": answer.headers["etag"]}
            assert client.get(name, headers=again).status_code == 304
    assert {path.name for path in STATIC.iterdir()} == set(static_files())
    assert {name.removeprefix("/page/") for name in wanted} == set(static_files()) - {"index.html"}


@pytest.mark.parametrize("path", ["/page/none.js", "/page/..%2froutes.py", "/page/../routes.py"])
def test_nothing_else_is_there(server: Server, path: str) -> None:
    assert httpx.get(server.http + path).status_code == 404


@pytest.mark.parametrize("path", ["/gradio_api", "/gradio_api/"])
def test_where_others_have_their_interfaces_ours_are_shown(server: Server, path: str) -> None:
    answer = httpx.get(server.http + path)
    assert answer.is_redirect and answer.headers["location"] == "/#api"


# -- what the server has ---------------------------------------------------------------------------


def test_the_page_learns_what_is_served(server: Server, tiny: NativeRecognizer) -> None:
    described = httpx.get(server.http + "/page/server").json()
    assert described["language_model"] is None
    (model,) = described["models"]
    assert model == {"name": tiny.name, "latencies_ms": list(tiny.latencies_ms), "gain": True}


def test_without_the_key_it_learns_nothing(tiny: NativeRecognizer) -> None:
    with serving(tiny, Settings(api_keys=("s3cret",))) as server:
        assert httpx.get(server.http + "/").status_code == 200
        for path in ("/page/server", "/page/quietbench"):
            assert httpx.get(server.http + path).status_code == 401
        assert httpx.post(server.http + "/page/recordings").status_code == 401
        known = {"authorization": "Bearer s3cret"}
        assert httpx.get(server.http + "/page/server", headers=known).status_code == 200


# -- recordings ------------------------------------------------------------------------------------


def test_page_transcript_equals_the_recognizers(
    words_server: Server, embedded: NativeRecognizer
) -> None:
    *progress, last = upload(words_server, wav(speech(2.5)))
    assert last.pop("type") == "transcript"
    found = Transcript.from_json(json.dumps(last))
    samples = np.frombuffer(wav(speech(2.5))[44:], "<i2")
    assert found == embedded.transcribe(samples, sample_rate=RATE) and found.text == NUMBER
    assert {each["type"] for each in progress} == {"progress"}
    heard = [each["consumed"] for each in progress]
    assert heard == sorted(heard) and heard[-1] == pytest.approx(2.5, abs=0.01)


def test_silence_has_no_text_but_a_reason(words_server: Server) -> None:
    last = upload(words_server, wav(np.zeros(2 * RATE, np.float32)))[-1]
    assert last["text"] == "" and last["reasons"] == ["muted"]


def test_gain_can_be_turned_on_and_off(words_server: Server, embedded: NativeRecognizer) -> None:
    quiet = wav(speech(2.5) * 0.001)
    texts = {mode: upload(words_server, quiet, gain=mode)[-1]["text"] for mode in ("off", "on")}
    for mode, text in texts.items():
        same = pianissimo.load("embedded-commands", device="cpu", gain=mode)
        assert text == same.transcribe(quiet).text
    assert texts["off"] != texts["on"]
    assert embedded.front_end is not None and embedded.front_end.mode == "auto"


def test_language_and_hotwords_of_a_form_reach_the_model(
    words_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    transcriber = words_server.service.transcriber
    transcribe = transcriber.transcribe

    def spy(upload, recognizer, threads, boost=(), *others):
        given.extend(boost)
        return transcribe(upload, recognizer, threads, boost, *others)

    monkeypatch.setattr(transcriber, "transcribe", spy)
    data, phrases = wav(speech(2.5)), [{"text": "center", "weight": 3}, "nine"]
    last = upload(words_server, data, language="en-US", hotwords=json.dumps(phrases))[-1]
    assert last["text"] == NUMBER and given == [Phrase("center", 3), Phrase("nine")]
    files = {"file": ("clip.wav", data)}
    for fields in ({"language": "de"}, {"hotwords": "{"}, {"hotwords": '{"nine": 1}'}):
        answer = httpx.post(f"{words_server.http}/page/recordings", files=files, data=fields)
        assert answer.status_code == 400, answer.text


def test_page_reports_undecodable_and_unknown_input(server: Server) -> None:
    last = upload(server, b"no sound at all" * 100)[-1]
    assert last["type"] == "error" and last["error"]["code"] == "audio_undecodable"
    for fields in ({"model": "nobody"}, {"gain": "loud"}):
        files = {"file": ("clip.wav", wav(speech(0.5)))}
        answer = httpx.post(server.http + "/page/recordings", files=files, data=fields)
        assert answer.status_code in (400, 404), answer.text


@pytest.fixture(scope="module")
def narrow(embedded: NativeRecognizer) -> Iterator[Server]:
    """A server with room for one recording at a time."""
    with serving(embedded, Settings(max_files=1)) as running:
        yield running


def test_a_page_that_goes_away_ends_its_recording(narrow: Server) -> None:
    files = {"file": ("long.wav", wav(speech(600.0)))}
    began = time.monotonic()
    with httpx.stream("POST", narrow.http + "/page/recordings", files=files) as response:
        for line in response.iter_lines():
            if json.loads(line)["consumed"] > 0:
                break
    spent = time.monotonic() - began
    assert upload(narrow, wav(speech(2.5)))[-1]["text"] == NUMBER  # in the only place there is
    assert narrow.service.files.waiting == 0
    assert json.loads(line)["consumed"] < 600, f"it was transcribed to its end within {spent:.0f} s"
