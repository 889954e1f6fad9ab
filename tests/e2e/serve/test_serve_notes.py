"""Notes on how a recording was read, and live stereo: what the dialects say and hear."""

import io
import json

import httpx
import numpy as np
import soundfile
from serving import RATE, Server, pcm, speech
from websockets.sync.client import connect

NUMBER = "enter four five two nine"


def stereo() -> np.ndarray:
    left = speech(2.5)
    return np.stack([left, -left], axis=1)


def opposite() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, stereo(), RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def test_recordings_have_their_notes(words_server: Server) -> None:
    files = {"file": ("clip.wav", opposite())}
    url = words_server.http
    answer = httpx.post(f"{url}/page/recordings", files=files, timeout=60)
    last = json.loads(answer.text.splitlines()[-1])
    assert (last["text"], last["reasons"]) == (NUMBER, ["opposite_phase"])
    assert len(last["remarks"]) == 1 and "opposite phase" in last["remarks"][0]
    form = {"response_format": "verbose_json"}
    given = httpx.post(f"{url}/v1/audio/transcriptions", files=files, data=form, timeout=60).json()
    assert (given["text"], given["reasons"]) == (NUMBER, ["opposite_phase"])
    heard = httpx.post(f"{url}/v1/listen", content=opposite(), timeout=60).json()
    (warning,) = heard["metadata"]["warnings"]
    assert warning["type"] == "opposite_phase"
    raw = httpx.post(
        f"{url}/v1/listen?encoding=linear16&sample_rate={RATE}&channels=2",
        content=pcm(stereo()),
        timeout=60,
    ).json()
    assert raw["results"]["channels"][0]["alternatives"][0]["transcript"].lower() == NUMBER


def test_live_stereo_in_opposite_phase_has_its_words(words_server: Server) -> None:
    with connect(f"{words_server.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "start", "channels": 2, "endpoint": None}))
        data = pcm(stereo())
        for start in range(0, len(data), 6400):
            socket.send(data[start : start + 6400])
        socket.send('{"type": "finish"}')
        while (event := json.loads(socket.recv(timeout=60)))["type"] != "final":
            pass
    assert event["text"] == NUMBER
