"""A spoken conversation: detects turns, asks a language model, and speaks its answers.

    listening ──turn ended──> thinking ──first audio──> speaking ──> listening
        ^                        │ user goes on              │ user speaks
        └──────answer discarded──┴───────answer cut──────────┘

All state belongs to one event loop. Each answer has a generation; an interruption raises the
number, and what an older answer still sends is dropped.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from pianissimo.agent.answer import (
    APOLOGY,
    Answer,
    AnswerEnd,
    AnswerEvent,
    AudioBlock,
    ItemDone,
    ItemStarted,
    SpeakOptions,
)
from pianissimo.agent.chat import ChatModel, ChatRequest
from pianissimo.agent.history import History, Item, Message, ToolCall, new_id
from pianissimo.agent.playback import MOST_AHEAD_SECONDS, Playback
from pianissimo.agent.turn_detector import TurnSignal
from pianissimo.agent.turn_input import Sound, TurnInput
from pianissimo.errors import StreamError
from pianissimo.protocols import Synthesizer
from pianissimo.transcript import StreamEvent, TurnMark

INSTRUCTIONS = (
    "You are a voice assistant. Your answers are spoken aloud: answer in one to three short "
    "sentences of plain language, without lists, headings, code or emoji. If a request is unclear, "
    "which happens because it was recognized from speech, ask."
)
BACKCHANNELS = frozenset(
    "yeah yes yep mhm mm hmm uh-huh uhuh okay ok right sure aha ah oh i see".split()
)
"""Words that show that one listens, and ask for no answer."""
MOST_BACKCHANNEL_WORDS = 2
FALSE_END_SECONDS = 1.5
"""A turn that begins so soon after another one continues it: its end was called too early."""
SILENCE_NOTE = "(The user is silent. Ask briefly whether they are still there.)"
"""What the language model gets in place of a turn when the user has been silent too long."""


@dataclass(frozen=True)
class AgentOptions:
    """How one conversation is led.

    `eager` prepares an answer when a turn has probably ended. `respond` answers turns by itself,
    `interrupt` stops an answer when the user speaks. With `interrupt_by_words` the voice alone does
    not: it takes a word that is no backchannel. After an answer, `idle_seconds` of audio without
    speech make the agent ask whether the user is still there; None waits forever.
    """

    instructions: str = INSTRUCTIONS
    spoken: bool = True
    speed: float = 1.0
    tools: tuple[dict[str, object], ...] = ()
    tool_choice: object = "auto"
    parallel_tool_calls: bool | None = None
    max_tokens: int | None = None
    trim: bool = True
    eager: bool = False
    respond: bool = True
    interrupt: bool = True
    interrupt_by_words: bool = False
    idle_seconds: float | None = None
    apology: str = APOLOGY


@dataclass(frozen=True)
class SpeechStarted:
    """The user speaks; what they say will be in the item of this id. `at` in seconds of audio."""

    item_id: str
    at: float


@dataclass(frozen=True)
class SpeechStopped:
    """The user's turn ended at `at` seconds of audio."""

    item_id: str
    at: float


@dataclass(frozen=True)
class SilenceTimedOut:
    """The user was silent from `start` to `end`, in seconds of audio; an item without text and an
    answer follow."""

    item_id: str
    start: float
    end: float


@dataclass(frozen=True)
class UserSaid:
    """An event of the recognizer, about the item of this id."""

    item_id: str
    event: StreamEvent


@dataclass(frozen=True)
class TurnCommitted:
    """The user's audio became an item; its text follows in `TurnTranscribed`."""

    message: Message
    previous_id: str | None


@dataclass(frozen=True)
class TurnTranscribed:
    """The text of a committed item. `seconds` is the length of its audio."""

    message: Message
    seconds: float


@dataclass(frozen=True)
class AnswerStarted:
    """An answer begins, with the client's name for it, if it has one."""

    answer: Answer
    metadata: object = None
    in_history: bool = True


@dataclass(frozen=True)
class AnswerSent:
    """A part of an answer; `previous_id` is the item of the history before the one it is about."""

    answer: Answer
    event: AnswerEvent
    in_history: bool = True
    previous_id: str | None = None


@dataclass(frozen=True)
class AnswerEnded:
    """An answer is over."""

    answer: Answer
    end: AnswerEnd
    metadata: object = None
    in_history: bool = True


AgentEvent: TypeAlias = (
    SpeechStarted
    | SpeechStopped
    | SilenceTimedOut
    | UserSaid
    | TurnCommitted
    | TurnTranscribed
    | AnswerStarted
    | AnswerSent
    | AnswerEnded
)


class Observer(Protocol):
    """What is told of the times and outcomes of turns; the server's metrics are one."""

    def stage(self, stage: str, seconds: float) -> None: ...

    def count(self, outcome: str) -> None: ...


@dataclass
class _Turn:
    """The turn that the user is in, or will be."""

    item_id: str = field(default_factory=lambda: new_id("item"))
    locked: str = ""
    partial: str = ""
    started: TurnSignal | None = None
    announced: bool = False
    marked: TurnMark | None = None
    """What the recognizer says about it."""
    ended_at: float = 0.0
    """When its last sound arrived, by the monotonic clock."""

    @property
    def text(self) -> str:
        return f"{self.locked} {self.partial}".strip()

    @property
    def asks(self) -> bool:
        """Whether it says more than a sign of listening."""
        return self.marked != "backchannel" and _is_request(self.text)


@dataclass
class _Running:
    """The answer in progress."""

    answer: Answer
    task: "asyncio.Task[None]"
    turn: _Turn | None
    in_history: bool
    metadata: object
    announced: asyncio.Event = field(default_factory=asyncio.Event)
    audio_sent: bool = False
    previous_id: str | None = None

    def sent(self, event: AnswerEvent) -> AnswerSent:
        return AnswerSent(self.answer, event, self.in_history, self.previous_id)

    def ended(self, end: AnswerEnd) -> AnswerEnded:
        return AnswerEnded(self.answer, end, self.metadata, self.in_history)


class Agent:
    """One conversation. `emit` delivers its events; they are never emitted concurrently.

    Call `push`, `commit`, `clear`, `respond` and `interrupt` one at a time, and run `listen` and
    `failed` beside them. `close` ends everything.
    """

    def __init__(
        self,
        chat: ChatModel,
        voice: Synthesizer,
        threads: Executor,
        options: AgentOptions,
        emit: Callable[[AgentEvent], Awaitable[None]],
        observer: Observer | None = None,
    ) -> None:
        self.options, self.history, self.playback = options, History(), Playback()
        self.generation = 0
        self.voice = voice
        self._chat, self._threads = chat, threads
        self._emit, self._observer = emit, observer
        self._emitting = asyncio.Lock()
        self._turn = _Turn()
        self._last_end = float("-inf")  # of a turn, in seconds of audio
        self._committed = 0.0  # seconds of audio up to the last committed or cleared
        self._silent_since: float | None = None  # in seconds of audio; None before an answer
        self._running: _Running | None = None
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- user audio --------------------------------------------------------------------------------

    async def push(self, turn_input: TurnInput, samples: Sound) -> None:
        """Push samples (n,) of the user, and act on the turns found in them."""
        for piece in turn_input.pieces(samples):
            signals = await turn_input.push(piece)
            while True:
                for signal in signals:
                    await self._follow(signal, turn_input)
                if not signals or signals[-1].kind != "paused":
                    break
                signals = await turn_input.continued()
            await self._watch_silence(turn_input)

    async def listen(self, events: AsyncIterator[StreamEvent]) -> None:
        """Take the events of the recognizer until they end."""
        async for event in events:
            turn = self._turn
            if event.type == "final":
                turn.locked, turn.partial = f"{turn.locked} {event.text}".strip(), ""
            elif event.type == "partial":
                turn.partial = event.text
            if event.text:
                turn.marked = event.turn
            if turn.started is not None and not turn.announced and turn.asks:
                await self._announce(turn)
            if event.type != "endpoint":
                await self._say(UserSaid(turn.item_id, event))

    async def _follow(self, signal: TurnSignal, turn_input: TurnInput) -> None:
        turn = self._turn
        match signal.kind:
            case "started":
                turn.started = signal
                if signal.at - self._last_end < FALSE_END_SECONDS:
                    self._count("false_end")
                waits = self.options.interrupt_by_words and self._answering
                if not waits or turn.asks:
                    await self._announce(turn)
            case "paused":
                began = time.monotonic()
                await turn_input.finalize()
                self._stage("final", time.monotonic() - began)
            case "eager_end":
                given = self.options
                # An answer in progress that the turn did not interrupt goes on.
                prepares = given.eager and given.respond and self.running is None
                if prepares and turn.announced and turn.text:
                    await self._prepare(turn)
            case "resumed":
                if self._running is not None and not self._running.answer.confirmed.is_set():
                    self._count("discarded")
                    await self._cancel("turn_detected")
            case "ended":
                turn.ended_at = time.monotonic() - (turn_input.seconds - signal.at)
                await self._end_turn(turn, signal.at, turn_input.seconds)

    async def _watch_silence(self, turn_input: TurnInput) -> None:
        """Answer a silence that has lasted too long since the last answer was played."""
        now, most = turn_input.seconds, self.options.idle_seconds
        speaking = self._turn.started is not None and self._silent_since is not None
        if speaking or self._running is not None or self.playback.playing:
            self._silent_since = now
            return
        waits_for_tool = isinstance(self.history.last, ToolCall)
        if most is None or self._silent_since is None or waits_for_tool:
            return
        if now - self._silent_since < most or not self.options.respond:
            return
        turn, since = self._turn, self._silent_since
        self._silent_since = None
        self._count("idle")
        await self._say(SilenceTimedOut(turn.item_id, since, now))
        await self.commit(turn_input)
        note = [] if turn.text else [Message("user", SILENCE_NOTE)]
        await self._start(items=[*self.history.items, *note])

    async def _announce(self, turn: _Turn) -> None:
        """The turn of the user counts: tell the client, and stop the answer."""
        assert turn.started is not None
        turn.announced = True
        await self._say(SpeechStarted(turn.item_id, turn.started.at))
        if self.options.interrupt:
            await self.interrupt("turn_detected")

    async def _end_turn(self, turn: _Turn, at: float, now: float) -> None:
        self._last_end = at
        if not turn.announced and not turn.asks:
            if self._answering or not turn.text:
                self._turn = _Turn()  # a backchannel, or a noise
                self._count("backchannel")
                return
        if not turn.announced:
            await self._announce(turn)
        await self._say(SpeechStopped(turn.item_id, at))
        message = await self._commit(turn, now)
        await self._transcribed(turn, message, now)
        if not self.options.respond or not turn.text:
            return
        running = self._running
        if running is not None and not running.answer.confirmed.is_set():
            await self._confirm(running)
        elif running is None:
            await self._start(turn=turn)

    async def commit(self, turn_input: TurnInput) -> None:
        """End the user's turn here, and wait for its text."""
        turn = self._turn
        if self._running is not None and not self._running.answer.confirmed.is_set():
            await self._cancel("turn_detected")
        message = await self._commit(turn, turn_input.seconds, keep=True)
        await turn_input.finalize()
        turn.ended_at = time.monotonic()
        await self._transcribed(turn, message, turn_input.seconds)

    async def clear(self, turn_input: TurnInput) -> None:
        """Forget what the user said since the last turn."""
        if self._running is not None and not self._running.answer.confirmed.is_set():
            await self._cancel("turn_detected")
        await turn_input.finalize()
        self._turn, self._committed = _Turn(), turn_input.seconds

    def uncommitted_seconds(self, turn_input: TurnInput) -> float:
        """Audio since the last committed or cleared."""
        return turn_input.seconds - self._committed

    async def _commit(self, turn: _Turn, now: float, *, keep: bool = False) -> Message:
        message = Message("user", turn.text, turn.item_id, complete=not keep, spoken=True)
        before = self.history.add(message)
        if not keep:
            self._turn = _Turn()
        await self._say(TurnCommitted(message, before))
        return message

    async def _transcribed(self, turn: _Turn, message: Message, now: float) -> None:
        message.text, message.complete = turn.text, True
        seconds, self._committed = now - self._committed, now
        if self._turn is turn:
            self._turn = _Turn()
        await self._say(TurnTranscribed(message, seconds))

    # -- answering ---------------------------------------------------------------------------------

    @property
    def running(self) -> Answer | None:
        """The answer in progress that the client knows of."""
        running = self._running
        return running.answer if running is not None and running.answer.confirmed.is_set() else None

    @property
    def _answering(self) -> bool:
        return self.running is not None or self.playback.playing

    async def respond(
        self,
        options: AgentOptions | None = None,
        items: list[Item] | None = None,
        *,
        in_history: bool = True,
        metadata: object = None,
    ) -> None:
        """Answer the conversation so far, or other items; see `response.create`.

        Raises StreamError while an answer is in progress.
        """
        if self.running is not None:
            raise StreamError("an answer is in progress; cancel it, or wait for its end")
        await self._cancel("turn_detected")
        await self._start(options, items, in_history=in_history, metadata=metadata)

    async def interrupt(self, reason: str) -> None:
        """Stop the answer, and cut its text to what was played."""
        if self._answering:
            self._count("interrupted")
        self.playback.stop()
        await self._cancel(reason)

    async def failed(self) -> None:
        """Wait for an unexpected failure of an answer, such as a client that is gone; raises it."""
        await asyncio.shield(self._failure)

    async def close(self) -> None:
        """End the answer in progress, without telling the client."""
        self.generation += 1
        if self._running is not None:
            self._running.task.cancel()
            await asyncio.wait([self._running.task])
            self._running = None
        if self._failure.done() and not self._failure.cancelled():
            self._failure.exception()  # it was raised where it was awaited

    async def _prepare(self, turn: _Turn) -> None:
        await self._cancel("turn_detected")
        await self._start(turn=turn, held=True)

    async def _start(
        self,
        options: AgentOptions | None = None,
        items: list[Item] | None = None,
        *,
        turn: _Turn | None = None,
        held: bool = False,
        in_history: bool = True,
        metadata: object = None,
    ) -> None:
        given = options or self.options
        if held and turn is not None:
            items = [*self.history.items, Message("user", turn.text)]
        request = ChatRequest(
            self.history.messages(given.instructions, items, trim=given.trim),
            given.tools,
            given.tool_choice,
            given.parallel_tool_calls if given.tools else None,
            given.max_tokens,
        )
        speak = SpeakOptions(given.spoken, given.speed, given.apology)
        answer = Answer(self.generation, self._chat, self.voice, self._threads, request, speak)
        task = asyncio.create_task(self._answer(answer))
        self._running = _Running(answer, task, turn, in_history, metadata)
        if not held:
            await self._confirm(self._running)

    async def _confirm(self, running: _Running) -> None:
        """Tell the client of an answer, and let it speak."""
        running.answer.confirmed.set()
        await self._say(AnswerStarted(running.answer, running.metadata, running.in_history))
        running.announced.set()

    async def _cancel(self, reason: str) -> None:
        """End the answer in progress; a confirmed one is reported with this reason."""
        running, self._running = self._running, None
        self.generation += 1
        if running is None:
            return
        running.task.cancel()
        await asyncio.wait([running.task])
        if not running.answer.confirmed.is_set():
            return
        self._note_stages(running)
        if (item := running.answer.open_item) is not None:
            item.complete = False
            await self._say(running.sent(ItemDone(item)))
        end = AnswerEnd("cancelled", reason)
        self._count(end.status)
        await self._say(running.ended(end))

    async def _answer(self, answer: Answer) -> None:
        """The task of one answer."""
        running = self._running
        assert running is not None and running.answer is answer

        async def send(event: AnswerEvent) -> None:
            await self._send(running, event)

        try:
            end = await answer.run(send)
            async with self._emitting:
                if answer.generation != self.generation:
                    return
                self._running = None
                self._note_stages(running)
                self._count(end.status)
                await self._emit(running.ended(end))
        except Exception as error:
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            if not self._failure.done():
                self._failure.set_exception(error)

    async def _send(self, running: _Running, event: AnswerEvent) -> None:
        """Emit a part of an answer, unless a newer generation has begun."""
        await running.announced.wait()
        if isinstance(event, AudioBlock):
            while (ahead := self.playback.ahead_seconds) > MOST_AHEAD_SECONDS:
                await asyncio.sleep(ahead - MOST_AHEAD_SECONDS)
        async with self._emitting:
            if running.answer.generation != self.generation:
                return
            if isinstance(event, ItemStarted) and running.in_history:
                running.previous_id = self.history.add(event.item)
            elif isinstance(event, AudioBlock):
                if not running.audio_sent and running.turn is not None:
                    self._stage("voice_to_voice", time.monotonic() - running.turn.ended_at)
                running.audio_sent = True
                seconds = len(event.samples) / running.answer.sample_rate
                self.playback.sent(event.item, seconds)
            await self._emit(running.sent(event))

    async def _say(self, event: AgentEvent) -> None:
        async with self._emitting:
            await self._emit(event)

    # -- measuring ---------------------------------------------------------------------------------

    def _note_stages(self, running: _Running) -> None:
        stages = running.answer.stages
        for name, since, until in (
            ("first_token", stages.asked, stages.first_token),
            ("first_piece", stages.first_token, stages.first_piece),
            ("first_audio", stages.first_piece, stages.first_audio),
        ):
            if since is not None and until is not None:
                self._stage(name, until - since)

    def _stage(self, stage: str, seconds: float) -> None:
        if self._observer is not None:
            self._observer.stage(stage, seconds)

    def _count(self, outcome: str) -> None:
        if self._observer is not None:
            self._observer.count(outcome)


def _is_request(text: str) -> bool:
    """Whether a text is more than a sign of listening."""
    words = [word.strip(".,!?…").lower() for word in text.split()]
    return len(words) > MOST_BACKCHANNEL_WORDS or not BACKCHANNELS.issuperset(words)
