"""A client across restarts of the server, planned ones and kill -9."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from cutting import events_of
from serving import RATE, pcm, speech

from pianissimo.client import ClientStream, connect
from pianissimo.evaluate.wer import word_errors
from pianissimo.transcript import StreamEvent

MODEL = Path(__file__).parents[3] / "pianissimo" / "assets" / "embedded-commands"
BLOCK = RATE // 10
SENTENCE = "enter four five two nine"
SPEECH = np.concatenate([speech(2.5), np.zeros(RATE, np.float32), speech(2.5)])
STOP_AT = 15
"""The block before which the server is stopped, in the middle of the first sentence."""


class RestartableServer:
    """`pianissimo serve` on one port, started again and again."""

    def __init__(self, folder: Path | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder = folder
        self.running: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "pianissimo", "serve", "-m", f"m={MODEL}", "--verbose"]
        options = ["--port", str(self.port)]
        options += [] if self.folder is None else ["--state-folder", str(self.folder)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PIANISSIMO_")}
        self.running = subprocess.Popen(
            [*command, *options, "--drain-seconds", "0.5"],
            stderr=subprocess.PIPE,
            text=True,
            env=clean,
        )
        assert self.running.stderr is not None
        for line in self.running.stderr:
            if re.search(r"running on http", line):
                return
        raise AssertionError("the server did not start")

    def stop(self, how: signal.Signals) -> None:
        assert self.running is not None and self.running.stderr is not None
        self.running.send_signal(how)
        self.running.wait(30)
        self.running.stderr.close()


@pytest.fixture(params=["stored", "not stored"])
def restartable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RestartableServer]:
    server = RestartableServer(tmp_path if request.param == "stored" else None)
    server.start()
    yield server
    if server.running is not None and server.running.poll() is None:
        server.stop(signal.SIGKILL)


async def transcribed(
    server: RestartableServer, stops: dict[int, signal.Signals]
) -> tuple[ClientStream, list[StreamEvent]]:
    """Say the sentence twice; before the blocks of these numbers the server is restarted."""
    restarting: list[asyncio.Task[None]] = []
    async with connect(f"ws://127.0.0.1:{server.port}", sample_rate=RATE) as stream:
        reading = asyncio.create_task(events_of(stream))
        for number, start in enumerate(range(0, len(SPEECH), BLOCK)):
            if how := stops.get(number):

                def restart(how: signal.Signals = how) -> None:
                    server.stop(how)
                    server.start()

                restarting.append(asyncio.create_task(asyncio.to_thread(restart)))
            await stream.send(pcm(SPEECH[start : start + BLOCK]))
            await asyncio.sleep(0.1 if stops else 0.01)
        await asyncio.gather(*restarting)
        await stream.finish()
        events = await asyncio.wait_for(reading, 60)
    return stream, [event for event in events if event.type == "final"]


def text_of(finals: list[StreamEvent]) -> str:
    return " ".join(final.text for final in finals if final.text)


def test_the_client_survives_a_kill(restartable: RestartableServer) -> None:
    """Without a word changed if the server stores its streams; else the client starts again."""
    _, whole = asyncio.run(transcribed(restartable, {}))
    client, finals = asyncio.run(transcribed(restartable, {STOP_AT: signal.SIGKILL}))
    assert client.connections >= 2
    if restartable.folder is not None:
        assert client.restarts == 0 and finals == whole
        return
    assert client.restarts == 1
    errors = word_errors(f"{SENTENCE} {SENTENCE}", text_of(finals))
    assert errors.errors <= 2, text_of(finals)
    assert finals[0].words[0].text == "enter", "the words before the restart are lost"
    words = [word for final in finals for word in final.words]
    assert all(a.start <= b.start + 0.2 for a, b in pairwise(words))
    assert words[-1].end == pytest.approx(whole[-1].words[-1].end, abs=0.5)


@pytest.mark.parametrize("restartable", ["stored"], indirect=True)
def test_the_client_survives_a_planned_restart(restartable: RestartableServer) -> None:
    _, whole = asyncio.run(transcribed(restartable, {}))
    client, finals = asyncio.run(transcribed(restartable, {STOP_AT: signal.SIGTERM}))
    assert client.connections >= 2 and client.restarts == 0
    assert text_of(finals) == text_of(whole)
