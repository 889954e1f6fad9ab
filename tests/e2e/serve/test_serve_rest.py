"""OpenAI's REST endpoints over a real socket: every format and every refusal."""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from serving import CLIPS, RATE, Server, serving, speech, wav

from pianissimo.audio.io import load_audio
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

URL = "/v1/audio/transcriptions"


def post(server: Server, data: bytes, **fields: object) -> httpx.Response:
    return httpx.post(server.http + URL, files={"file": ("a.wav", data)}, data=fields, timeout=60)


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    return speech(7.3)


@pytest.fixture(scope="module")
def sound(recording: np.ndarray) -> bytes:
    return wav(recording)


# -- answers ---------------------------------------------------------------------------------------


def test_json_is_what_the_recognizer_writes(
    server: Server, tiny: NativeRecognizer, sound: bytes
) -> None:
    answer = post(server, sound, model="tiny").json()
    assert answer["text"] == tiny.transcribe(sound).text != ""
    assert answer["usage"] == {"type": "duration", "seconds": 8}


def test_a_long_recording_keeps_every_word(
    words_server: Server, embedded: NativeRecognizer
) -> None:
    long = wav(speech(95.0))
    whole = embedded.transcribe(long)
    answer = post(
        words_server,
        long,
        response_format="verbose_json",
        **{"timestamp_granularities[]": ["word", "segment"]},
    ).json()
    assert answer["text"] == whole.text
    assert [w["word"] for w in answer["words"]] == [w.text for w in whole.words]
    assert [w["start"] for w in answer["words"]] == [w.start for w in whole.words]
    assert answer["duration"] == pytest.approx(95.0)
    assert [s["id"] for s in answer["segments"]] == list(range(len(answer["segments"])))
    assert " ".join(s["text"] for s in answer["segments"]) == whole.text


def test_a_clip_through_the_embedded_model(words_server: Server) -> None:
    clip = (CLIPS / "number.flac").read_bytes()
    answer = post(words_server, clip, model="whisper-1", language="en").json()
    assert answer["text"] == "enter four five two nine"


def test_the_formats_of_subtitles(server: Server, sound: bytes, tiny: NativeRecognizer) -> None:
    whole = tiny.transcribe(sound)
    text = post(server, sound, response_format="text")
    assert text.headers["content-type"].startswith("text/plain")
    assert text.text == whole.text + "\n"
    srt = post(server, sound, response_format="srt").text
    assert re.match(r"1\n\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}\n", srt)
    vtt = post(server, sound, response_format="vtt").text
    assert vtt.startswith("WEBVTT\n\n") and re.search(r"\d\d\.\d{3} --> ", vtt)


def test_verbose_json_gives_only_what_was_asked(server: Server, sound: bytes) -> None:
    words = post(server, sound, response_format="verbose_json", timestamp_granularities="word")
    assert words.json()["words"] and "segments" not in words.json()
    plain = post(server, sound, response_format="verbose_json").json()
    assert "words" not in plain and plain["task"] == "transcribe" and plain["language"] == "en"
    assert isinstance(plain["duration"], float)
    segment = plain["segments"][0]
    assert segment.keys() == {
        *("id", "seek", "start", "end", "text", "tokens", "temperature"),
        *("avg_logprob", "compression_ratio", "no_speech_prob"),
    }


def test_logprobs_spell_the_text(words_server: Server, embedded: NativeRecognizer) -> None:
    sound = wav(speech(7.3))
    answer = post(words_server, sound, **{"include[]": "logprobs"}).json()
    assert "".join(entry["token"] for entry in answer["logprobs"]) == answer["text"]
    words = embedded.transcribe(sound).words
    for entry, word in zip(answer["logprobs"], words, strict=True):
        assert math.exp(entry["logprob"]) == pytest.approx(word.confidence, rel=1e-3)
        assert bytes(entry["bytes"]).decode() == entry["token"]


def test_events_are_those_of_openai_and_add_up(
    words_server: Server, embedded: NativeRecognizer
) -> None:
    long = wav(speech(64.0))
    events = []
    files = {"file": ("a.wav", long)}
    form = {"stream": "true", "include[]": "logprobs"}
    with httpx.stream(
        "POST", words_server.http + URL, files=files, data=form, timeout=60
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            assert line == "" or line.startswith("data: ")
            if line:
                events.append(line.removeprefix("data: "))
    assert events[-1] == "[DONE]"
    *deltas, done = (json.loads(event) for event in events[:-1])
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert len(deltas) > 5
    assert done["type"] == "transcript.text.done"
    assert "".join(event["delta"] for event in deltas) == done["text"]
    assert done["text"] == live_text(embedded, long)
    assert "".join(entry["token"] for entry in done["logprobs"]) == done["text"]


def live_text(recognizer: NativeRecognizer, recording: bytes) -> str:
    with recognizer.stream(latency_ms=1120, endpoint=None, watchdog=None) as stream:
        events = [*stream.push(load_audio(recording)), *stream.finish()]
    return " ".join(event.text for event in events if event.type == "final")


@pytest.mark.parametrize("container", ["flac", "ogg", "mp3"])
def test_other_containers(
    server: Server, recording: np.ndarray, tmp_path: Path, container: str
) -> None:
    path = tmp_path / f"a.{container}"
    soundfile.write(path, recording, RATE)
    assert post(server, path.read_bytes()).json()["text"]


def test_the_models(server: Server) -> None:
    listed = httpx.get(server.http + "/v1/models").json()
    assert listed["object"] == "list"
    model, *voices = listed["data"]
    assert {voice["task"] for voice in voices} <= {"text-to-speech"}
    assert (
        model["id"] == "tiny" and model["object"] == "model" and isinstance(model["created"], int)
    )
    assert httpx.get(server.http + "/v1/models/tiny").json() == model


# -- refusals --------------------------------------------------------------------------------------


def refused(answer: httpx.Response, status: int, code: str | None, param: str | None) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    return str(error["message"])


def test_invalid_requests_are_reported_in_openais_shape(server: Server, sound: bytes) -> None:
    refused(post(server, sound, model="gpt-9"), 404, "model_not_found", "model")
    refused(post(server, sound, language="de"), 400, "invalid_option", None)
    refused(
        post(server, sound, response_format="docx"),
        *(400, "unsupported_response_format", "response_format"),
    )
    refused(
        post(server, sound, timestamp_granularities="line"),
        *(400, "invalid_value", "timestamp_granularities"),
    )
    refused(httpx.post(server.http + URL, json={}), 400, "invalid_content_type", None)
    refused(httpx.post(server.http + URL, files={"x": b"y"}), 400, "missing_file", "file")
    broken = {"content-type": "multipart/form-data"}
    refused(
        httpx.post(server.http + URL, content=b"--x\r\nnonsense", headers=broken),
        *(400, "invalid_form", None),
    )
    translation = server.http + "/v1/audio/translations"
    files = {"file": ("a.wav", sound)}
    refused(httpx.post(translation, files=files), 400, "translation_unsupported", "model")
    half = {"session": {"audio": {"input": {"transcription": {"prompt": "\ud800"}}}}}
    secrets = server.http + "/v1/realtime/client_secrets"
    refused(httpx.post(secrets, content=json.dumps(half)), 400, "invalid_json", None)
    refused(httpx.get(server.http + "/v1/nothing"), 404, None, None)
    refused(httpx.get(server.http + URL), 405, None, None)


def test_unusable_recordings_are_400_and_name_no_path(server: Server) -> None:
    for data, code in (
        (b"these are no samples" * 99, "audio_undecodable"),
        (wav(speech(1.0))[:40], "audio_undecodable"),
        (b"", "audio_not_found"),
    ):
        message = refused(post(server, data), 400, code, "file")
        assert "/" not in message and "tmp" not in message
    spoiled = io.BytesIO()
    samples = np.where(np.arange(RATE) == 99, np.nan, speech(1.0))
    soundfile.write(spoiled, samples, RATE, format="WAV", subtype="FLOAT")
    refused(post(server, spoiled.getvalue()), 400, "audio_invalid_values", "file")
    assert post(server, (CLIPS / "number.flac").read_bytes()).status_code == 200


def test_a_file_that_kills_or_hangs_its_decoder_fails_alone(
    tiny: NativeRecognizer, sound: bytes
) -> None:
    settings = Settings(decoders=1, decode_stall_seconds=5.0)
    with serving(tiny, settings) as server:
        good = post(server, sound).json()["text"]
        (decoder,) = server.service.decoders._idle
        os.kill(decoder.pid, signal.SIGSTOP)  # a decoder that hangs
        message = refused(post(server, sound), 400, "audio_undecodable", "file")
        assert "timed out" in message
        assert post(server, sound).json()["text"] == good
        (decoder,) = server.service.decoders._idle
        os.kill(decoder.pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (decoder.pid, signal.SIGKILL)).start()
        message = refused(post(server, sound), 400, "audio_undecodable", "file")
        assert "crashed the decoder" in message
        assert post(server, sound).json()["text"] == good
        assert server.service.decoders.killed == 2


def test_uploads_and_recordings_have_limits(tiny: NativeRecognizer, sound: bytes) -> None:
    settings = Settings(largest_upload_mb=0.3, longest_audio_seconds=5.0)
    with serving(tiny, settings) as server:
        quick = "the upload is larger than the 0.3 MB"
        big = bytes(3_000_000)
        assert quick in refused(post(server, big), 413, "file_too_large", "file")

        def chunks():
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(60):  # 6 MB: more than the limit and the other fields of a form
                yield bytes(100_000)

        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = httpx.post(server.http + URL, content=chunks(), headers=headers)
        assert quick in refused(answer, 413, "file_too_large", "file")
        slow = wav(speech(6.0), 8000)
        assert refused(post(server, bytes(400_000)), 413, "file_too_large", "file")
        assert "longer than" in refused(post(server, slow), 400, "audio_invalid_values", "file")
        assert post(server, wav(speech(2.0))).status_code == 200


def test_too_many_recordings_are_refused(tiny: NativeRecognizer) -> None:
    long = wav(speech(60.0))
    with serving(tiny, Settings(max_files=1)) as server:
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=lambda: answers.append(post(server, long))) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses[0] == 200 and statuses[-1] == 429
        late = next(answer for answer in answers if answer.status_code == 429)
        refused(late, 429, "server_full", None)
        assert late.headers["retry-after"] == "1"
        assert post(server, wav(speech(1.0))).status_code == 200


# -- keys and origins ------------------------------------------------------------------------------


def test_keys_open_the_server_and_the_admin_key_its_numbers(
    tiny: NativeRecognizer, sound: bytes
) -> None:
    settings = Settings(api_keys=("first", "second"), admin_key="boss")
    with serving(tiny, settings) as server:

        def models(key: str) -> int:
            headers = {"authorization": key} if key else {}
            return httpx.get(server.http + "/v1/models", headers=headers).status_code

        assert [models(k) for k in ("Bearer first", "Token second")] == [200, 200]
        assert [models(k) for k in ("", "Bearer", "Bearer third", "Bearer boss")] == [401] * 4
        refused(post(server, sound), 401, "invalid_api_key", None)
        metrics = server.http + "/metrics"
        assert httpx.get(metrics, headers={"authorization": "Bearer first"}).status_code == 401
        assert httpx.get(metrics, headers={"authorization": "Bearer boss"}).status_code == 200
        assert httpx.get(server.http + "/healthz").status_code == 200


def test_pages_of_other_sites_are_turned_away(server: Server) -> None:
    def models(**headers: str) -> int:
        return httpx.get(server.http + "/v1/models", headers=headers).status_code

    assert models() == 200
    assert models(origin=f"http://127.0.0.1:{server.port}") == 200
    assert models(origin="https://evil.example") == 403
    assert models(host="evil.example") == 403


def test_pages_of_allowed_sites_may_read_the_answers(tiny: NativeRecognizer) -> None:
    origin = "https://good.example"
    with serving(tiny, Settings(allow_origins=(origin,))) as server:
        asked = {"origin": origin, "access-control-request-method": "POST"}
        for answer in (
            httpx.options(server.http + URL, headers=asked),
            httpx.get(server.http + "/v1/models", headers={"origin": origin}),
        ):
            assert answer.status_code == 200
            assert answer.headers["access-control-allow-origin"] == origin


# -- the server itself -----------------------------------------------------------------------------


def test_metrics_count_what_happened(tiny: NativeRecognizer, sound: bytes) -> None:
    with serving(tiny) as server:
        assert httpx.get(server.http + "/readyz").text == "ready\n"
        post(server, sound)
        post(server, sound, stream="true")
        post(server, b"nothing")
        page = httpx.get(server.http + "/metrics").text
        assert f'pianissimo_requests_total{{dialect="{URL}",outcome="200"}} 2.0' in page
        assert f'pianissimo_requests_total{{dialect="{URL}",outcome="400"}} 1.0' in page
        labels = '{dialect="openai",experiment="",model="tiny"}'
        assert f"pianissimo_audio_seconds_total{labels} 14.6" in page
        assert 'pianissimo_engine_streams{model="tiny"} 0.0' in page
        delay = r'chunk_delay_seconds\{latency_ms="1120",model="tiny",quantile="0.99"\} \d'
        assert re.search(delay, page)


def test_the_command_serves_until_a_signal(tiny_model_folder: Path, sound: bytes) -> None:
    command = [sys.executable, "-m", "pianissimo", "serve", "-m", str(tiny_model_folder)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIANISSIMO_")}
    process = subprocess.Popen(
        [*command, "--port", "0", "--verbose"], stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    try:
        port = None
        for line in process.stderr:
            if found := re.search(r"running on http://127.0.0.1:(\d+)", line):
                port = found[1]
                break
        answer = httpx.post(
            f"http://127.0.0.1:{port}{URL}", files={"file": ("a.wav", sound)}, timeout=60
        )
        assert answer.json()["text"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stderr.close()


def test_a_server_for_others_wants_a_key(capfd: pytest.CaptureFixture[str]) -> None:
    from pianissimo.cli import main

    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "API key" in capfd.readouterr().err
