"""One answer: the language model's tokens become pieces of text, and those become audio.

    chat endpoint ──pieces──> voice ──events──> client
        write         (8)     speak    (64)      send

Each stage is a task; bounded queues make a stage wait for the next one. Nothing leaves an answer
before it is `confirmed`, so it can be prepared while the speaker may still continue.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

from pianissimo.agent.chat import ChatEnd, ChatModel, ChatRequest, TextDelta, ToolCallDelta
from pianissimo.agent.history import Item, Message, SpokenPiece, ToolCall, new_id
from pianissimo.agent.spoken import Spoken
from pianissimo.audio.level import Samples
from pianissimo.errors import LanguageModelReplyError, NothingToSayError, PianissimoError
from pianissimo.protocols import Synthesizer
from pianissimo.synthesis.sentences import SentenceBuffer

PIECES_AHEAD, EVENTS_AHEAD = 8, 64
BLOCK_SECONDS = 0.2
"""Audio of one event."""
MOST_CHARACTERS = 32_000
"""Of one answer; the rest is not read."""
APOLOGY = "Sorry, I cannot answer right now."

NewItem = TypeVar("NewItem", Message, ToolCall)
Status = Literal["completed", "cancelled", "failed", "incomplete"]


@dataclass(frozen=True)
class ItemStarted:
    """A message or a tool call begins."""

    item: Item


@dataclass(frozen=True)
class TextPiece:
    """More text of a message; the audio of it follows."""

    item: Message
    text: str


@dataclass(frozen=True)
class AudioBlock:
    """More audio of a message: (n,) mono float32 at the rate of the voice."""

    item: Message
    samples: Samples


@dataclass(frozen=True)
class ArgumentsDelta:
    """More arguments of a tool call."""

    item: ToolCall
    delta: str


@dataclass(frozen=True)
class ItemDone:
    """A message or a tool call is complete."""

    item: Item


AnswerEvent: TypeAlias = ItemStarted | TextPiece | AudioBlock | ArgumentsDelta | ItemDone


@dataclass(frozen=True)
class AnswerEnd:
    """How an answer ended. `reason` says why it is not completed."""

    status: Status
    reason: str | None = None
    error: PianissimoError | None = None
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class SpeakOptions:
    """How an answer is given: spoken by the voice, or as text only."""

    spoken: bool = True
    speed: float = 1.0
    apology: str = APOLOGY
    """Said when the language model fails before it said anything; "" for silence."""


@dataclass
class Stages:
    """When an answer reached which stage, by the monotonic clock."""

    asked: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    first_piece: float | None = None
    first_audio: float | None = None


class Answer:
    """One answer of one generation. `run` it once; cancel the task that runs it to end it."""

    def __init__(
        self,
        generation: int,
        chat: ChatModel,
        voice: Synthesizer,
        threads: Executor,
        request: ChatRequest,
        options: SpeakOptions,
    ) -> None:
        self.generation, self.request, self.options = generation, request, options
        self.id = new_id("resp")
        self.confirmed = asyncio.Event()
        self.items: list[Item] = []
        self.stages = Stages()
        self._chat, self._voice, self._threads = chat, voice, threads
        self._pieces: asyncio.Queue[str | ToolCallDelta | AnswerEnd] = asyncio.Queue(PIECES_AHEAD)
        self._events: asyncio.Queue[AnswerEvent | AnswerEnd] = asyncio.Queue(EVENTS_AHEAD)
        self.open_item: Item | None = None
        """The item that has begun and is not done."""
        self._said = False

    @property
    def sample_rate(self) -> int:
        """Of its audio, in Hz."""
        return self._voice.sample_rate

    async def run(self, send: Callable[[AnswerEvent], Awaitable[None]]) -> AnswerEnd:
        """Prepare the answer, and send its events in order once it is confirmed."""
        async with asyncio.TaskGroup() as stages:
            stages.create_task(self._write())
            stages.create_task(self._speak())
            await self.confirmed.wait()
            while not isinstance(event := await self._events.get(), AnswerEnd):
                self._note(event)
                await send(event)
            return event

    def _note(self, event: AnswerEvent) -> None:
        """Items hold what is sent, which may be less than what is prepared."""
        match event:
            case ItemStarted(item):
                self.open_item = item
                self.items.append(item)
            case TextPiece(message, text):
                message.text += text
                message.pieces.append(SpokenPiece(text))
            case AudioBlock(message, samples):
                message.pieces[-1].seconds += len(samples) / self._voice.sample_rate
            case ArgumentsDelta(call, delta):
                call.arguments += delta
            case ItemDone():
                self.open_item = None

    # -- the language model ------------------------------------------------------------------------

    async def _write(self) -> None:
        end: AnswerEnd
        sentences = SentenceBuffer(eager=True)
        written = 0
        try:
            async with aclosing(self._chat.stream(self.request)) as events:
                async for event in events:
                    if self.stages.first_token is None:
                        self.stages.first_token = time.monotonic()
                    match event:
                        case TextDelta(text):
                            written += len(text)
                            for piece in sentences.push(text) if self.options.spoken else [text]:
                                await self._pieces.put(piece)
                            if written > MOST_CHARACTERS:
                                end = AnswerEnd("incomplete", "max_output_tokens")
                                break
                        case ToolCallDelta():
                            for piece in sentences.finish():
                                await self._pieces.put(piece)
                            written += 1
                            await self._pieces.put(event)
                        case ChatEnd():
                            end = _ended(event, written > 0)
        except PianissimoError as error:
            end = AnswerEnd("failed", error=error)
        for piece in sentences.finish():
            await self._pieces.put(piece)
        await self._pieces.put(end)

    # -- the voice ---------------------------------------------------------------------------------

    async def _speak(self) -> None:
        """Turn pieces into events of one item after the other, and of its text and audio."""
        spoken, calls = Spoken(), dict[int, ToolCall]()
        item: Item | None = None
        while True:
            piece = await self._pieces.get()
            if isinstance(piece, AnswerEnd):
                apology = self.options.apology if self.options.spoken else ""
                if piece.status == "failed" and item is None and apology:
                    item = await self._begin(self._message(), None)
                    await self._say(item, apology, apology)
                break
            if isinstance(piece, ToolCallDelta):
                if piece.index not in calls:
                    call = ToolCall(piece.id or new_id("call"), piece.name, "", complete=False)
                    calls[piece.index] = call
                    item = await self._begin(call, item)
                if piece.arguments:
                    await self._events.put(ArgumentsDelta(calls[piece.index], piece.arguments))
                continue
            if not isinstance(item, Message):
                item = await self._begin(self._message(), item)
            if not self.options.spoken:
                await self._events.put(TextPiece(item, piece))
            elif failed := await self._say(item, piece, spoken.clean(piece)):
                piece = failed
                break
        if item is not None:
            item.complete = piece.status == "completed"
            await self._events.put(ItemDone(item))
        await self._events.put(piece)

    def _message(self) -> Message:
        return Message("assistant", "", complete=False, spoken=self.options.spoken)

    async def _begin(self, item: NewItem, before: Item | None) -> NewItem:
        """Start an item, after the one before it is done."""
        if before is not None:
            before.complete = True
            await self._events.put(ItemDone(before))
        await self._events.put(ItemStarted(item))
        self._said = False
        return item

    async def _say(self, message: Message, text: str, speech: str) -> AnswerEnd | None:
        """The events of a piece; how the answer ends, if the voice cannot say it."""
        if self.stages.first_piece is None:
            self.stages.first_piece = time.monotonic()
        await self._events.put(TextPiece(message, f" {text}" if self._said else text))
        self._said = True
        try:
            async for block in self._audio(speech):
                if self.stages.first_audio is None:
                    self.stages.first_audio = time.monotonic()
                await self._events.put(AudioBlock(message, block))
        except NothingToSayError:
            pass  # a mark or an ornament
        except PianissimoError as error:
            return AnswerEnd("failed", error=error)
        return None

    async def _audio(self, text: str) -> AsyncIterator[Samples]:
        """Blocks of `BLOCK_SECONDS`; the voice works in a thread, sentence by sentence."""
        if not text:
            return
        loop = asyncio.get_running_loop()
        step = round(BLOCK_SECONDS * self._voice.sample_rate)

        def first() -> tuple[Iterator[Samples], Samples | None]:
            blocks = iter(self._voice.stream(text, speed=self.options.speed))
            return blocks, next(blocks, None)

        blocks, block = await loop.run_in_executor(self._threads, first)
        while block is not None:
            for start in range(0, len(block), step):
                yield block[start : start + step]
            block = await loop.run_in_executor(self._threads, next, blocks, None)


def _ended(end: ChatEnd, written: bool) -> AnswerEnd:
    """How the answer ends after the model said its last."""
    tokens = (end.input_tokens, end.output_tokens)
    if end.reason == "length":
        return AnswerEnd("incomplete", "max_output_tokens", None, *tokens)
    if end.reason == "content_filter":
        return AnswerEnd("incomplete", "content_filter", None, *tokens)
    if not written:
        error = LanguageModelReplyError("the language model answered nothing; see its log")
        return AnswerEnd("failed", None, error, *tokens)
    return AnswerEnd("completed", None, None, *tokens)
