"""GLM-ASR behind the server: files, and live segments between pauses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import RATE, Server, as_heard, pcm, serving, speech, wav
from websockets.sync.client import ClientConnection, connect

import pianissimo
from pianissimo.recognizers.base import BaseRecognizer
from pianissimo.serve.settings import Settings

pytest.importorskip("transformers", reason="needs the extra families")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
SOUND = np.concatenate([speech(4.0), np.zeros(2 * RATE, np.float32)])
"""Speech, and a pause long enough to end it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published layout."""
    path = tmp_path_factory.mktemp("served") / "tiny-glm-asr"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "unit" / "recognizers")
        from tiny_glm_asr import save_tiny_glm_asr

        save_tiny_glm_asr(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> BaseRecognizer:
    """The same model, not served."""
    found = pianissimo.load(folder, device="cpu")
    assert isinstance(found, BaseRecognizer)
    return found


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(pianissimo.load(folder, device="cpu"), Settings(wyoming_port=0)) as running:
        yield running


def until(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of that type."""
    while True:
        message: dict[str, Any] = json.loads(socket.recv(timeout=60))
        if message["type"] == kind:
            return message


def test_a_file_gets_the_text_of_the_recognizer(server: Server, alone: BaseRecognizer) -> None:
    answer = httpx.post(
        f"{server.http}/v1/audio/transcriptions",
        files={"file": ("a.wav", wav(SOUND))},
        data={"model": "tiny-glm-asr"},
        timeout=60,
    )
    assert answer.status_code == 200
    assert answer.json()["text"] == alone.transcribe(wav(SOUND)).text != ""


def test_a_microphone_gets_a_final_in_the_pause(server: Server, alone: BaseRecognizer) -> None:
    with alone.stream() as stream:
        events = [*stream.push(as_heard(SOUND)), *stream.finish()]
    [expected] = [event.text for event in events if event.text]
    with connect(f"{server.ws}/v1/stream") as socket:
        socket.send(json.dumps({"type": "start"}))
        for start in range(0, len(SOUND), RATE // 10):
            socket.send(pcm(SOUND[start : start + RATE // 10]))
        final = until(socket, "final")
        assert (final["reason"], final["text"]) == ("endpoint", expected)
        socket.send(json.dumps({"type": "finish"}))
        assert until(socket, "final")["text"] == ""
        until(socket, "end")
    server.wait_until_empty()
