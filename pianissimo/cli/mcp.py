"""`pianissimo mcp`: a tool server for language-model agents, over standard input and output.

It speaks the Model Context Protocol through its official SDK. Agents may read files of the
directories in `--root` only, and the microphone only with `--microphone`.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pianissimo import __version__
from pianissimo.cli.command import command
from pianissimo.cli.listen import MICROPHONE_RATE, microphone_blocks
from pianissimo.cli.options import ModelOptions
from pianissimo.errors import AudioNotFoundError, MissingExtraError, OptionError, PianissimoError
from pianissimo.zoo.catalog import CATALOG

if TYPE_CHECKING:
    from mcp.server import MCPServer

    from pianissimo.protocols import Recognizer

LONGEST_LISTEN = 60.0
"""Seconds that one call may listen: agents wait for the answer."""
INSTRUCTIONS = (
    "Speech recognition on this machine. transcribe_file turns a recording into text with times; "
    "audio does not leave the machine."
)


@dataclass(frozen=True)
class Passage:
    """A sentence or a stretch between pauses, with times in seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Found:
    """The text of a recording, and its passages with times in seconds."""

    text: str
    language: str | None
    duration: float
    passages: list[Passage]


@dataclass(frozen=True)
class KnownModel:
    """A model that `pianissimo pull` can download; `embedded` ones are part of the package."""

    name: str
    summary: str
    languages: list[str]
    streams: bool
    embedded: bool


@dataclass(frozen=True)
class McpOptions:
    """What agents may reach."""

    root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Directory whose files agents may transcribe; repeatable [default: the working "
            "directory].",
        ),
    ] = None
    microphone: Annotated[bool, typer.Option(help="Let agents listen to the microphone.")] = False


@command
def mcp(model: ModelOptions, options: McpOptions) -> None:
    """Serve speech recognition as tools of agents, over MCP.

    Tools: transcribe_file, list_models and, with --microphone, listen.
    """
    roots = [root.resolve() for root in options.root or [Path.cwd()]]
    for root in roots:
        if not root.is_dir():
            raise AudioNotFoundError(f"--root {root} is no directory")
    tool_server(model.load, roots, microphone=options.microphone).run()


def tool_server(
    load: "Callable[[], Recognizer]", roots: list[Path], *, microphone: bool = False
) -> "MCPServer[None]":
    """The tools; `load` is called before the first transcription.

    Raises MissingExtraError without the extra `mcp`.
    """
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise MissingExtraError(
            "the tool server needs the mcp package: pip install 'pianissimo[mcp]'"
        ) from error

    server: MCPServer[None] = MCPServer(
        "pianissimo", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING"
    )
    loaded: list[Recognizer] = []
    lock = threading.Lock()

    def recognizer() -> "Recognizer":
        with lock:
            if not loaded:
                loaded.append(load())
            return loaded[0]

    @server.tool()
    async def transcribe_file(path: str) -> Found:
        """Transcribe an audio or video file on this machine. Returns text and passages in seconds.

        Relative paths count from the first directory that the server may read.
        """
        try:
            place = _allowed(path, roots)
            found = await asyncio.to_thread(lambda: recognizer().transcribe(place))
        except PianissimoError as error:
            raise ToolError(str(error)) from error
        passages = [Passage(one.start, one.end, one.text) for one in found.segments]
        return Found(found.text, found.language, found.duration, passages)

    @server.tool()
    async def list_models() -> list[KnownModel]:
        """List the known speech recognition models."""
        return [
            KnownModel(
                entry.short_name,
                entry.summary,
                list(entry.languages),
                entry.streams,
                entry.repository is None,
            )
            for entry in CATALOG
        ]

    if microphone:

        @server.tool()
        async def listen(seconds: float = 10.0) -> str:
            """Listen to the microphone for 1 to 60 seconds and return what was said."""
            try:
                return await asyncio.to_thread(_listen, recognizer, seconds)
            except PianissimoError as error:
                raise ToolError(str(error)) from error

    return server


def _allowed(path: str, roots: list[Path]) -> Path:
    """The resolved path; AudioNotFoundError outside the roots, links included."""
    place = (roots[0] / path).resolve()
    if not any(place.is_relative_to(root) for root in roots):
        allowed = ", ".join(map(str, roots))
        raise AudioNotFoundError(f"{path} is outside the directories of --root: {allowed}")
    if not place.is_file():
        raise AudioNotFoundError(f"{path} is no file")
    return place


def _listen(recognizer: "Callable[[], Recognizer]", seconds: float) -> str:
    if not 1 <= seconds <= LONGEST_LISTEN:
        raise OptionError(f"listening takes 1 to {LONGEST_LISTEN:g} seconds, not {seconds:g}")
    stream = recognizer().stream(sample_rate=MICROPHONE_RATE)
    events = []
    with microphone_blocks(None, MICROPHONE_RATE) as blocks:
        left = round(seconds * MICROPHONE_RATE)  # of audio: a slow machine may lag behind
        for block in blocks:
            events += stream.push(block)
            left -= len(block)
            if left <= 0:
                break
    events += stream.finish()
    return " ".join(event.text for event in events if event.type == "final" and event.text)
