"""The TypeScript client, compiled, in Node against a real server."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cutting import Cutter
from serving import RATE, Server, as_heard, pcm, serving, speech

from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

CLIENT = Path(__file__).parents[3] / "clients" / "typescript"
NODE = shutil.which("node")
pytestmark = [
    pytest.mark.skipif(NODE is None, reason="needs Node"),
    pytest.mark.skipif(
        not (CLIENT / "dist" / "index.js").exists(), reason="not compiled: make clients"
    ),
]
PAUSE = np.zeros(RATE, np.float32)
TALK = as_heard(np.concatenate([speech(2.5), PAUSE, speech(5.0), PAUSE]))


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("audio") / "talk.pcm"
    file.write_bytes(pcm(TALK))
    return file


def run(url: str, audio: Path, **options: object) -> dict[str, Any]:
    """What the program of the client prints."""
    assert NODE is not None
    program = CLIENT / "test" / "transcribe.mjs"
    command = [NODE, "--experimental-websocket", "--no-warnings", program, url, audio]
    done = subprocess.run(
        [*command, json.dumps(options)], capture_output=True, text=True, timeout=90, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def lasting(found: dict[str, Any]) -> list[tuple[object, ...]]:
    """All events but partials, without confidences."""
    events = [event for event in found["events"] if event["type"] != "partial"]
    return [(e["type"], e["text"], e["start"], e["end"], e.get("reason")) for e in events]


def test_streams_survive_cut_connections(words_server: Server, audio: Path) -> None:
    whole = run(words_server.http + "/", audio)
    finals = [event for event in whole["events"] if event["type"] == "final"]
    assert next(final["text"] for final in finals if final["text"]) == "enter four five two nine"
    assert finals[-1]["reason"] == "finish" and whole["connections"] == 1 and whole["model"]
    partials = [event["text"] for event in whole["events"] if event["type"] == "partial"]
    assert partials and len(finals[0]["words"]) == len(finals[0]["text"].split())
    assert lasting(run(words_server.ws, audio, floats=True, encoding="pcm_f32le")) == lasting(whole)

    async def cut() -> dict[str, Any]:
        cutter = Cutter(words_server.port, seed=7, shortest=0.05, longest=0.5)
        async with cutter.running() as port:
            return await asyncio.to_thread(run, f"ws://127.0.0.1:{port}", audio, pause_ms=30)

    found = asyncio.run(cut())
    assert found["connections"] > 2 and found["restarts"] == 0
    assert lasting(found) == lasting(whole)
    words_server.wait_until_empty()


def test_refusals_are_typed(embedded: NativeRecognizer, audio: Path) -> None:
    with serving(embedded, Settings(api_keys=("right",))) as server:
        assert run(server.ws, audio, key="right")["connections"] == 1
        wrong = run(server.ws, audio, key="wrong")
        assert wrong["kind"] in ("refused", "unreachable")
        assert "no answer" not in wrong["message"]  # it does not wait until a handshake is given up
        refused = run(server.ws, audio, key="right", model="no-such-model")
        assert (refused["kind"], refused["code"]) == ("refused", "model_not_found")
        url = server.ws
    assert run(url, audio, key="right")["kind"] == "unreachable"
