"""`pianissimo mcp`: tools of an agent, called by the client of the official SDK."""

import asyncio
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pianissimo
from pianissimo.audio.io import load_audio
from pianissimo.cli import main
from pianissimo.cli import mcp as command

sdk = pytest.importorskip("mcp", reason="needs the extra mcp")
AUDIO = Path(__file__).parents[2] / "examples" / "audio"
SPOKEN = "enter four five two nine"
SMALL = ("--model", "embedded-commands", "--device", "cpu")


def call(server: Any, name: str, **arguments: object) -> Any:
    async def run() -> Any:
        async with sdk.Client(server, read_timeout_seconds=90) as client:
            return await client.call_tool(name, arguments)

    return asyncio.run(run())


def said(result: Any) -> str:
    return " ".join(part.text for part in result.content)


def test_an_agent_transcribes_over_stdio(tmp_path: Path) -> None:
    (tmp_path / "number.flac").write_bytes((AUDIO / "number.flac").read_bytes())
    (tmp_path / "link.flac").symlink_to(AUDIO / "number.flac")
    (tmp_path / "text.flac").write_text("no audio")
    arguments = ["-m", "pianissimo", "mcp", *SMALL, "--root", str(tmp_path)]
    server = sdk.StdioServerParameters(command=sys.executable, args=arguments)

    async def run() -> None:
        async with sdk.Client(server, read_timeout_seconds=90) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {"transcribe_file", "list_models"}
            found = await client.call_tool("transcribe_file", {"path": "number.flac"})
            assert found.structured_content["text"] == SPOKEN
            passage = found.structured_content["passages"][0]
            assert (passage["text"], passage["start"] < passage["end"]) == (SPOKEN, True)
            models = await client.call_tool("list_models", {})
            names = [model["name"] for model in models.structured_content["result"]]
            assert "embedded-commands" in names
            for path, why in [
                (str(AUDIO / "number.flac"), "outside the directories of --root"),
                ("../number.flac", "outside the directories of --root"),
                ("link.flac", "outside the directories of --root"),
                ("missing.flac", "is no file"),
                ("text.flac", "text.flac"),
            ]:
                refused = await client.call_tool("transcribe_file", {"path": path})
                assert refused.is_error and why in said(refused)
            again = await client.call_tool("transcribe_file", {"path": "number.flac"})
            assert again.structured_content["text"] == SPOKEN

    asyncio.run(run())


class Microphone:
    """Stands for the package sounddevice: a microphone that hears a clip and then silence."""

    PortAudioError = OSError

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples

    def InputStream(self, *, callback: Callable[..., None], **_: object) -> Any:
        import contextlib
        import threading

        @contextlib.contextmanager
        def opened() -> Any:
            stop = threading.Event()

            def run() -> None:
                silence = np.zeros(1280, np.float32)
                blocks = [self.samples[i : i + 1280] for i in range(0, len(self.samples), 1280)]
                while not stop.is_set():
                    block = blocks.pop(0) if blocks else silence
                    callback(block[:, None], len(block), None, None)
                    stop.wait(0.01)

            thread = threading.Thread(target=run)
            thread.start()
            yield
            stop.set()
            thread.join()

        return opened()


def test_an_agent_listens_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Microphone(load_audio(AUDIO / "number.flac"))
    module = types.SimpleNamespace(InputStream=fake.InputStream, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", module)

    def load() -> Any:
        return pianissimo.load("embedded-commands", device="cpu")

    server = command.tool_server(load, [AUDIO], microphone=True)
    assert said(call(server, "listen", seconds=3)) == SPOKEN
    for seconds in (0, 61, -1):
        refused = call(server, "listen", seconds=seconds)
        assert refused.is_error and "1 to 60 seconds" in said(refused)
    deaf = command.tool_server(load, [AUDIO])
    assert call(deaf, "listen", seconds=3).is_error


def test_a_model_that_is_missing_is_told(tmp_path: Path) -> None:
    def load() -> Any:
        return pianissimo.load(tmp_path / "no-model", device="cpu")

    refused = call(command.tool_server(load, [AUDIO]), "transcribe_file", path="number.flac")
    assert refused.is_error and "no-model" in said(refused)


def test_bad_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mcp", "--root", str(tmp_path / "none")]) != 0
    assert "is no directory" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    assert main(["mcp", "--root", str(tmp_path)]) != 0
    assert "pianissimo[mcp]" in capsys.readouterr().err
