"""Unmodified clients, each in an environment of its own, against `pianissimo serve`.

`make clients` makes the environments from the requirements beside this file. A program here prints
as JSON what its client was given; the programs in docs/clients.md are run as they stand there.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_llm import Reply, scripted, words

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "clients.md"
RECIPE = re.compile(r'^```python title="(\w+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
CLIENTS = ("deepgram", "langchain", "livekit", "llamaindex", "openai", "pipecat", "wyoming")
NUMBER = "enter four five two nine"
WORDS = NUMBER.split()
TEXT = "Seven streams at once. And one more."
ANSWER = "You said four numbers."
STORY = " ".join(["Once upon a time there was a very long story."] * 4)
START_SECONDS, TALK_SECONDS = 300.0, 300.0


@dataclass(frozen=True)
class Served:
    """Where the server is, and a clip in the folder where the programs run."""

    port: int
    wyoming_port: int
    folder: Path

    def run(self, client: str, *arguments: str | Path) -> str:
        """What a program of a client prints; fails if it does."""
        python = ROOT / ".venv-clients" / client / "bin" / "python"
        if not python.exists():
            pytest.skip(f"no environment for {client}: make clients")
        done = subprocess.run(
            [python, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "examples")},
            timeout=TALK_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def spoken(self, client: str) -> dict[str, Any]:
        """What the client's program here plays of TEXT."""
        program = Path(__file__).with_name(f"speak_{client}.py")
        place = f"127.0.0.1:{self.port}"
        found: dict[str, Any] = json.loads(self.run(client, program, place, TEXT))
        return found

    def talk(self, client: str) -> dict[str, Any]:
        """What the client's program here says about the clip."""
        program = Path(__file__).with_name(f"talk_{client}.py")
        port = self.wyoming_port if client == "wyoming" else self.port
        found: dict[str, Any] = json.loads(
            self.run(client, program, f"127.0.0.1:{port}", "talk.wav")
        )
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import soundfile

    folder = tmp_path_factory.mktemp("clients")
    samples, rate = soundfile.read(ROOT / "examples" / "audio" / "number.flac")
    soundfile.write(folder / "talk.wav", samples, rate, subtype="PCM_16")
    other, _ = soundfile.read(ROOT / "examples" / "audio" / "sentence.flac")
    pause = np.zeros(rate)
    people = np.concatenate([samples, pause, other, pause, samples, pause, other])
    soundfile.write(folder / "people.wav", people, rate, subtype="PCM_16")
    command = [sys.executable, "-m", "pianissimo", "serve", "--port", "0", "--wyoming-port", "0"]
    command += ["-m", "embedded-commands"]  # hears words before a pause
    log = folder / "serve.log"
    with open(log, "wb") as file:
        process = subprocess.Popen([*command, "--verbose"], stderr=file)
    try:
        end = time.monotonic() + START_SECONDS
        while not (
            (http := re.search(r"running on http://127.0.0.1:(\d+)", log.read_text()))
            and (tcp := re.search(r"listens on tcp://127.0.0.1:(\d+)", log.read_text()))
        ):
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield Served(int(http[1]), int(tcp[1]), folder)
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("client", ["langchain", "llamaindex"])
def test_document_loaders(served: Served, client: str) -> None:
    found = served.talk(client)
    assert [text for text, _ in found["documents"]] == [NUMBER, NUMBER]
    metadata = found["documents"][0][1]
    assert (metadata["source"], metadata["start"]) == ("talk.wav", 0.0)
    assert metadata["end"] > 1.0
    ((text, part),) = found["parts"]
    assert text == NUMBER and 0.0 < part["start"] < part["end"] <= metadata["end"]
    assert "audio_undecodable" in found["refused"]


def test_openai(served: Served) -> None:
    found = served.talk("openai")
    told = found["recordings"]
    assert told["text"] == told["deltas"] == NUMBER and told["done"] == [NUMBER]
    assert [word for word, _, _ in told["words"]] == WORDS
    assert NUMBER in told["srt"] and told["refused"] == "model_not_found"
    assert told["models"] == ["embedded-commands", "heart"]
    for live in (found["realtime"], found["realtime, committed"]):
        assert live["text"] == live["deltas"] == NUMBER and "error" not in live["events"]
    assert found["speakers"]["types"] == ["TranscriptionDiarized", "TranscriptionDiarizedSegment"]
    assert set(found["speakers"]["speakers"]) == {"A", "B"}
    started = "input_audio_buffer.speech_started"
    assert started in found["realtime"]["events"]
    assert started not in found["realtime, committed"]["events"]


def test_deepgram(served: Served) -> None:
    found = served.talk("deepgram")
    live = found["live"]
    assert live["text"] == found["recording"]["text"] == NUMBER
    assert [word for word, _, _ in live["words"]] == WORDS
    assert len(live["interim"]) >= 2 and NUMBER.startswith(live["interim"][0])
    assert found["type"].endswith("WordsItem") and set(found["speakers"]) == {0, 1}
    assert live["duration"] == pytest.approx(2.5, abs=0.1)
    kinds = {"ListenV1SpeechStarted", "ListenV1Results", "ListenV1Metadata"}
    assert set(live["types"]) == kinds


def test_wyoming(served: Served) -> None:
    found = served.talk("wyoming")
    assert found["text"] == found["chunks"] == NUMBER
    assert found["models"] == ["embedded-commands"] and found["languages"] == ["en"]


def test_pipecat(served: Served) -> None:
    found = served.talk("pipecat")
    for name, heard in found.items():
        assert heard["text"] == NUMBER and not heard["errors"], (name, heard)
    # Only a service that asked for the final text, or sends whole utterances, marks it.
    marked = {name: heard["finalized"] for name, heard in found.items()}
    expected = {"deepgram": True, "rest": True, "realtime": False}
    assert marked == {**expected, "realtime with server VAD": False}
    assert found["deepgram"]["interim"].endswith(NUMBER)
    assert found["realtime"]["interim"].replace("|", "") == NUMBER
    assert found["realtime with server VAD"]["proposed"] == ["started", "stopped"]


def test_livekit(served: Served) -> None:
    found = served.talk("livekit")
    assert {heard["text"] for heard in found.values()} == {NUMBER}
    for name in ("deepgram", "realtime", "realtime, committed"):
        assert NUMBER.startswith(found[name]["interim"]) and found[name]["interim"]
        assert found[name]["events"][0] == "start_of_speech"
        assert "end_of_speech" in found[name]["events"]
    assert found["deepgram"]["words"] == len(WORDS)


@pytest.mark.parametrize("client", ["livekit", "pipecat"])
def test_services_play_speech(served: Served, client: str) -> None:
    """OpenAI's speech as events and as audio in LiveKit, OpenAI's and Deepgram's in pipecat."""
    found = served.spoken(client)
    assert len(found) == 2
    for name, played in found.items():
        assert 2 < played["seconds"] < 4 and played["peak"] > 3_000, (name, played)
        assert not played.get("errors"), (name, played)


@pytest.mark.parametrize("client", ["livekit", "pipecat"])
def test_the_example_of_an_agent_holds_three_turns(served: Served, client: str) -> None:
    """The third question interrupts the answer to the second one, which has no end of its own."""
    pytest.importorskip("hibari", reason="the voice needs pianissimo[tts]")
    program, place = ROOT / "examples" / f"agent_{client}.py", f"127.0.0.1:{served.port}"
    with scripted(ANSWER, Reply(words(STORY), holds=True), "Good bye.") as fake:
        clips = ("talk.wav", "talk.wav", "+talk.wav")
        printed = served.run(client, program, place, fake.url, "scripted", *clips)
        fake.wait_until_left()
    found = json.loads(printed.splitlines()[-1])
    assert not found["errors"] and found["you"] == [NUMBER] * 3
    first, second, third = found["agent"]
    assert (first["text"].split(), third["text"]) == (ANSWER.split(), "Good bye.")
    assert [each["interrupted"] for each in found["agent"]] == [False, True, False]
    assert 0.8 < first["seconds"] < 4 and 0 < second["seconds"]
    assert STORY.startswith(second["text"])
    assert len(fake.requests) == 3 and fake.hung_up == 1
    asked = [m["content"] for m in fake.requests[-1]["messages"] if m["role"] == "user"]
    assert asked == [NUMBER] * 3


RECIPES = RECIPE.findall(PAGE.read_text(encoding="utf-8"))


def test_every_client_has_a_recipe() -> None:
    assert {client for client, _ in RECIPES} == set(CLIENTS)


@pytest.mark.parametrize(
    ("client", "code"), RECIPES, ids=[f"{client}{i}" for i, (client, _) in enumerate(RECIPES)]
)
def test_recipes_of_the_page_print_the_words(served: Served, client: str, code: str) -> None:
    code = code.replace("7860", str(served.port)).replace("10300", str(served.wyoming_port))
    program = served.folder / "recipe.py"
    program.write_text(code)
    lines = [line for line in served.run(client, program).splitlines() if line.strip()]
    assert lines and all(line.startswith(NUMBER) for line in lines), lines
