"""`pianissimo talk`: a spoken conversation with a language model, on this machine."""

import asyncio
import base64
import json
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from pianissimo.cli.command import command
from pianissimo.cli.listen import sounddevice_package
from pianissimo.cli.options import ModelOptions
from pianissimo.cli.output import emit, say
from pianissimo.errors import AudioNotFoundError, MissingExtraError, StreamError

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer
    from pianissimo.serve.settings import Settings

Socket: TypeAlias = Any
"""A connection of websockets, which is imported late."""
RATE = 24_000
BLOCK_SECONDS = 0.04
DEAF_SECONDS = 0.3
"""Half-duplex: how long the microphone stays off after the loudspeaker."""
LEAST_TURN_SECONDS = 0.15
"""With push-to-talk; the server refuses turns of less than 0.1 s."""
START_SECONDS = 60.0


@dataclass(frozen=True)
class TalkOptions:
    """The language model, the voice and the devices."""

    llm_url: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint of the language model.",
        ),
    ] = "http://127.0.0.1:11434/v1"
    llm_model: Annotated[str, typer.Option(metavar="NAME", help="Name of the language model.")] = (
        "llama3.2"
    )
    llm_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Key of the endpoint. Prefer PIANISSIMO_LLM_KEY."),
    ] = None
    instructions: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System prompt of the conversation.")
    ] = None
    headphones: Annotated[
        bool,
        typer.Option(
            help="Keep the microphone on while the voice speaks, so that you can interrupt it. "
            "With loudspeakers it would hear itself."
        ),
    ] = False
    push_to_talk: Annotated[
        bool,
        typer.Option(
            help="Speak between two presses of Enter. A press also stops an answer.",
        ),
    ] = False
    microphone: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="Name or number of the microphone, see `pianissimo listen --list`.",
        ),
    ] = None
    loudspeaker: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Name or number of the loudspeaker.")
    ] = None
    smart_turn: Annotated[
        str | None,
        typer.Option(metavar="FILE|pipecat", help="Smart Turn model, as for `pianissimo serve`."),
    ] = None


@command
def talk(model: ModelOptions, options: TalkOptions) -> None:
    """Talk with a language model. Press Ctrl-C to stop.

    It runs a private server on this machine. The conversation is printed to stdout, with
    the time from your last sound to the first sound of each answer.
    """
    from pianissimo.serve.settings import Settings

    sounddevice_package()  # before the models are loaded
    settings = Settings(
        llm_url=options.llm_url,
        llm_model=options.llm_model,
        llm_key=options.llm_key,
        llm_instructions=options.instructions,
        smart_turn=options.smart_turn,
    )
    recognizer = model.load()
    with suppress(KeyboardInterrupt), serving(settings, recognizer) as port:
        with _devices(options) as (heard, player):
            if options.push_to_talk:
                say("press Enter, speak, and press Enter again; press Ctrl-C to stop")
                asyncio.run(PushToTalk(player).run(port, heard))
            else:
                side = (
                    "" if options.headphones else "; the microphone is off while the voice speaks"
                )
                say(f"talk now; press Ctrl-C to stop{side}")
                asyncio.run(Talk(player, options.headphones).run(port, heard))


class Player:
    """The loudspeaker: plays what is queued, and knows how much of it was played."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._audio, self.item_id = bytearray(), ""
        self._played = 0
        self._silent_since = 0.0

    def add(self, item_id: str, data: bytes) -> None:
        with self._lock:
            if item_id != self.item_id:
                self.item_id, self._played = item_id, -len(self._audio)
            self._audio += data

    def take(self, size: int) -> bytes:
        """The next bytes for the device, silence where there are none."""
        with self._lock:
            data = bytes(self._audio[:size])
            del self._audio[:size]
            self._played += len(data)
            if data:
                self._silent_since = time.monotonic()
            return data.ljust(size, b"\0")

    def stop(self) -> int | None:
        """Forget what is queued; the milliseconds of the item that were played, if it was cut."""
        with self._lock:
            cut, self._audio = len(self._audio) > 0, bytearray()
            return max(0, self._played) // 2 * 1000 // RATE if cut else None

    @property
    def audible(self) -> bool:
        """Whether the room has its sound, or had it a moment ago."""
        with self._lock:
            return bool(self._audio) or time.monotonic() - self._silent_since < DEAF_SECONDS


class Talk:
    """A client of the realtime socket with a microphone and a player."""

    def __init__(
        self, player: Player, full_duplex: bool, turn_detection: str | None = "semantic_vad"
    ) -> None:
        self._player, self._full_duplex = player, full_duplex
        self._turn_detection = None if turn_detection is None else {"type": turn_detection}
        self._sent_samples = 0
        self._clock: list[tuple[int, float]] = []
        self._stopped: float | None = None

    async def run(self, port: int, heard: "queue.Queue[bytes]") -> None:
        """Until the connection ends; raises StreamError for an error of the server."""
        from websockets.asyncio.client import connect

        url = f"ws://127.0.0.1:{port}/v1/realtime?model=pianissimo"
        async with connect(url, max_size=None) as connection:
            transcription = {"model": "pianissimo"}
            heard_as = {"turn_detection": self._turn_detection, "transcription": transcription}
            session = {"type": "realtime", "audio": {"input": heard_as}}
            await _send(connection, "session.update", session=session)
            sending = asyncio.create_task(self._send(connection, heard))
            try:
                async for text in connection:
                    await self._follow(connection, json.loads(text))
            finally:
                sending.cancel()

    async def _send(self, connection: Socket, heard: "queue.Queue[bytes]") -> None:
        while True:
            data = await asyncio.to_thread(_next, heard)
            if data is None:
                continue
            if not self._full_duplex and self._player.audible:
                data = bytes(len(data))
            await self._append(connection, data)

    async def _append(self, connection: Socket, data: bytes) -> None:
        self._sent_samples += len(data) // 2
        self._clock = [*self._clock[-500:], (self._sent_samples, time.monotonic())]
        audio = base64.b64encode(data).decode()
        await _send(connection, "input_audio_buffer.append", audio=audio)

    async def _follow(self, connection: Socket, event: dict[str, Any]) -> None:
        match event["type"]:
            case "input_audio_buffer.speech_started":
                await self._interrupt(connection)
            case "input_audio_buffer.speech_stopped":
                self._stopped = self._sent_at(event["audio_end_ms"])
            case "conversation.item.input_audio_transcription.completed":
                emit(f"you: {event['transcript']}\n")
            case "response.output_audio.delta":
                self._player.add(event["item_id"], base64.b64decode(event["delta"]))
                if self._stopped is not None:
                    seconds, self._stopped = time.monotonic() - self._stopped, None
                    say(f"voice to voice: {1000 * seconds:.0f} ms")
            case "response.output_audio_transcript.done":
                emit(f"agent: {event['transcript']}\n")
            case "response.done":
                details = event["response"]["status_details"] or {}
                if error := details.get("error"):
                    say(f"error: {error['message']}")
            case "error":
                raise StreamError(f"the conversation failed: {event['error']['message']}")

    async def _interrupt(self, connection: Socket) -> None:
        """Stop playing, and tell the server how much was played."""
        played_ms = self._player.stop()
        if played_ms is not None:
            cut = {"item_id": self._player.item_id, "audio_end_ms": played_ms}
            await _send(connection, "conversation.item.truncate", content_index=0, **cut)

    def _sent_at(self, milliseconds: int) -> float | None:
        """When that moment of the audio was sent."""
        samples = milliseconds * RATE // 1000
        return next((at for count, at in self._clock if count >= samples), None)


class PushToTalk(Talk):
    """The same without turn detection: a line of `presses` begins the user's turn, the next one
    ends it. The microphone is off in between."""

    def __init__(self, player: Player, presses: Callable[[], str] | None = None) -> None:
        """`presses` waits for a line, by default of standard input, and returns it."""
        super().__init__(player, full_duplex=True, turn_detection=None)
        self._presses = presses or sys.stdin.readline
        self._speaking_samples: int | None = None
        """Sent in this turn; None between turns."""
        self._response: str | None = None

    @property
    def speaking(self) -> bool:
        """Whether the user's turn is open."""
        return self._speaking_samples is not None

    async def _send(self, connection: Socket, heard: "queue.Queue[bytes]") -> None:
        pressing = asyncio.create_task(self._follow_presses(connection))
        try:
            while not pressing.done():
                data = await asyncio.to_thread(_next, heard)
                if data is not None and self._speaking_samples is not None:
                    self._speaking_samples += len(data) // 2
                    await self._append(connection, data)
            await pressing
        finally:
            pressing.cancel()
        await connection.close()

    async def _follow_presses(self, connection: Socket) -> None:
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[str] = asyncio.Queue()

        def read() -> None:
            line = "more"
            while line:
                line = self._presses()
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(lines.put_nowait, line)

        # A daemon, because a read from a terminal cannot be canceled.
        threading.Thread(target=read, name="pianissimo-presses", daemon=True).start()
        while await lines.get():
            await self._press(connection)

    async def _press(self, connection: Socket) -> None:
        if self._speaking_samples is None:
            self._speaking_samples = 0
            if self._response is not None:
                await _send(connection, "response.cancel", response_id=self._response)
            await self._interrupt(connection)
            say("speak, then press Enter")
            return
        samples, self._speaking_samples = self._speaking_samples, None
        if samples < LEAST_TURN_SECONDS * RATE:
            say("that was too short; press Enter, speak, and press Enter again")
            await _send(connection, "input_audio_buffer.clear")
            return
        self._stopped = time.monotonic()
        await _send(connection, "input_audio_buffer.commit")
        await _send(connection, "response.create")

    async def _follow(self, connection: Socket, event: dict[str, Any]) -> None:
        match event["type"]:
            case "response.created":
                self._response = event["response"]["id"]
                if self._speaking_samples is not None:
                    await _send(connection, "response.cancel", response_id=self._response)
            case "response.done":
                self._response = None
            case "error" if event["error"]["code"] == "response_cancel_not_active":
                return  # the answer ended when the user pressed
            case "response.output_audio.delta" if self._speaking_samples is not None:
                return  # it was on its way when the user pressed
        await super()._follow(connection, event)


async def _send(connection: Socket, kind: str, **fields: object) -> None:
    await connection.send(json.dumps({"type": kind, **fields}))


def _next(heard: "queue.Queue[bytes]") -> bytes | None:
    with suppress(queue.Empty):
        return heard.get(timeout=0.5)
    return None


@contextmanager
def serving(settings: "Settings", recognizer: "Recognizer") -> Iterator[int]:
    """A server on a free loopback port in a thread of this process; its port."""
    try:
        import uvicorn

        from pianissimo.serve.app import create_app
        from pianissimo.serve.speech import read_voices
        from pianissimo.serve.websocket import SocketProtocol
    except ImportError as error:
        raise MissingExtraError(
            f"talking needs packages that are not installed ({error.name}): "
            "pip install 'pianissimo[serve,tts,mic]'"
        ) from error
    voices = read_voices(settings)
    if not voices:
        raise MissingExtraError("talking needs a voice: pip install 'pianissimo[tts]'")
    app = create_app(settings, recognizer, voices)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws=SocketProtocol))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end:
            raise StreamError("the server of the conversation did not start; see the log above")
        time.sleep(0.02)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


@contextmanager
def _devices(options: TalkOptions) -> Iterator[tuple["queue.Queue[bytes]", Player]]:
    """Blocks of the microphone as 16-bit samples, and the loudspeaker."""
    sounddevice = sounddevice_package()
    heard: queue.Queue[bytes] = queue.Queue(500)
    player = Player()

    def on_input(data: Any, frames: int, clock: object, status: object) -> None:
        with suppress(queue.Full):
            heard.put_nowait(bytes(data))

    def on_output(data: Any, frames: int, clock: object, status: object) -> None:
        data[:] = player.take(len(data))

    shape: dict[str, Any] = {"samplerate": RATE, "channels": 1, "dtype": "int16"}
    shape["blocksize"] = round(BLOCK_SECONDS * RATE)
    try:
        microphone = sounddevice.RawInputStream(
            device=_device(options.microphone), callback=on_input, **shape
        )
        loudspeaker = sounddevice.RawOutputStream(
            device=_device(options.loudspeaker), callback=on_output, **shape
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise AudioNotFoundError(
            f"the microphone or the loudspeaker cannot be opened ({error}); "
            "`pianissimo listen --list` lists the microphones"
        ) from error
    with microphone, loudspeaker:
        yield heard, player


def _device(given: str | None) -> int | str | None:
    return int(given) if given and given.isdigit() else given
