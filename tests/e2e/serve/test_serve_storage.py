"""Uploads on a full disk, too many of them, and recordings whose client has left."""

import errno
import threading
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest
from serving import Server, serving, speech, wav

from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.audio_in import upload
from pianissimo.serve.settings import Settings

REST, LISTEN, PAGE = "/v1/audio/transcriptions", "/v1/listen", "/page/recordings"


def post(server: Server, path: str, sound: bytes, **options: Any) -> httpx.Response:
    options.setdefault("timeout", 60)
    if path == LISTEN:
        return httpx.post(server.http + path, content=sound, **options)
    return httpx.post(server.http + path, files={"file": ("a.wav", sound)}, **options)


@pytest.mark.parametrize("path", [REST, LISTEN, PAGE])
def test_a_full_disk_is_refused_before_the_upload_is_written(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    usage = upload.shutil.disk_usage("/")._replace(free=1 << 20)
    monkeypatch.setattr(upload.shutil, "disk_usage", lambda folder: usage)
    answer = post(server, path, wav(speech(0.5)))
    assert answer.status_code == 507
    assert int(answer.headers["retry-after"]) >= 1 and answer.headers["connection"] == "close"
    assert "disk space" in answer.text and not caplog.records


@pytest.mark.parametrize("path", [REST, LISTEN])
def test_a_disk_that_fills_up_meanwhile_is_no_failure_of_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(upload, "_write_all", full)
    monkeypatch.setattr(upload, "_copy", full)
    answer = post(server, path, wav(speech(0.5)))
    assert answer.status_code == 507 and answer.headers["connection"] == "close"
    assert "retry-after" in answer.headers and not caplog.records
    monkeypatch.undo()
    assert post(server, path, wav(speech(0.5))).status_code == 200


def test_too_many_uploads_are_refused_before_they_are_written(server: Server) -> None:
    places = server.service.uploads
    in_use, places.in_use = places.in_use, places.capacity
    try:
        for path in (REST, LISTEN):
            answer = post(server, path, wav(speech(0.5)))
            assert answer.status_code == 429 and "retry-after" in answer.headers
    finally:
        places.in_use = in_use
    assert post(server, REST, wav(speech(0.5))).status_code == 200


@pytest.mark.parametrize("path", [REST, LISTEN, PAGE, "stream"])
def test_a_recording_without_a_client_frees_its_thread(
    tiny: NativeRecognizer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Also before the first word: the recognizer stops at its next block."""
    active, transcribe = threading.Semaphore(0), tiny.transcribe
    ended = threading.Event()

    def slow(blocks: Any, **options: Any) -> Any:
        def slowed() -> Any:
            for block in blocks:
                active.release()
                time.sleep(0.2)
                yield block

        try:
            return transcribe(slowed(), **options)
        finally:
            ended.set()

    monkeypatch.setattr(tiny, "transcribe", slow)
    sound = wav(speech(300.0))
    with serving(tiny, Settings(max_files=1)) as server:
        if path == "stream":
            engine = server.service.engine
            files, url = {"file": ("a.wav", wav(speech(3600.0)))}, server.http + REST
            data = {"stream": "true"}
            with (  # the client leaves after a second without an event, or at the first one
                suppress(httpx.ReadTimeout),
                httpx.stream("POST", url, files=files, data=data, timeout=1.0),
            ):
                pass
            end = time.monotonic() + 10
            while server.service.files.in_use or engine.stats.streams:
                assert time.monotonic() < end, "the recording is still being transcribed"
                time.sleep(0.05)
            return
        with pytest.raises(httpx.ReadTimeout):
            if path == PAGE:
                files = {"file": ("a.wav", sound)}
                with httpx.stream("POST", server.http + PAGE, files=files, timeout=1.0) as answer:
                    assert active.acquire(timeout=30)
                    answer.read()
                    time.sleep(1.0)
                    raise httpx.ReadTimeout("enough")
            post(server, path, sound, timeout=1.0)
        assert ended.wait(5), "the thread is still busy"
        end = time.monotonic() + 5
        while server.service.files.in_use:
            assert time.monotonic() < end, "the place is still taken"
            time.sleep(0.05)
