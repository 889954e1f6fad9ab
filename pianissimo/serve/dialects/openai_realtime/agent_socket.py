"""OpenAI's realtime sessions that answer: a client's messages to an agent, its events back."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from pianissimo.agent.agent import Agent, AgentEvent, TurnTranscribed
from pianissimo.agent.history import Item, Message, new_id
from pianissimo.agent.turn_detector import VoiceTurns
from pianissimo.agent.turn_input import TurnInput
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.errors import PianissimoError
from pianissimo.serve.audio_in.pcm import PcmReader
from pianissimo.serve.dialects.messages import JsonObject, unknown_type, wrong
from pianissimo.serve.dialects.openai_realtime.agent_events import AgentMessages, added
from pianissimo.serve.dialects.openai_realtime.agent_items import (
    missing,
    read_item,
    shown_item,
    untranscribed,
)
from pianissimo.serve.dialects.openai_realtime.agent_session import AgentSession
from pianissimo.serve.dialects.openai_realtime.session import StreamConfig
from pianissimo.serve.dialects.openai_realtime.wire import DIALECT, Wire, decoded
from pianissimo.serve.dialects.sockets import until_first
from pianissimo.serve.errors import GOING_AWAY, Refusal, refusal_for
from pianissimo.serve.feed import SHORTEST_SECONDS, Feed
from pianissimo.serve.service import NO_PAUSES
from pianissimo.serve.versions.store import Lease
from pianissimo.streaming.input import StreamInput

LONGEST_SESSION_SECONDS = 3600
LEAST_COMMIT_SECONDS = 0.1
ROUNDING_MS = 1
KEYS: dict[str, tuple[str, ...]] = {
    "session.update": ("type", "event_id", "session"),
    "input_audio_buffer.append": ("type", "event_id", "audio"),
    "input_audio_buffer.commit": ("type", "event_id"),
    "input_audio_buffer.clear": ("type", "event_id"),
    "conversation.item.create": ("type", "event_id", "previous_item_id", "item"),
    "conversation.item.retrieve": ("type", "event_id", "item_id"),
    "conversation.item.truncate": ("type", "event_id", "item_id", "content_index", "audio_end_ms"),
    "conversation.item.delete": ("type", "event_id", "item_id"),
    "response.create": ("type", "event_id", "response"),
    "response.cancel": ("type", "event_id", "response_id"),
}
"""Valid keys of each message type."""


class AgentConversation:
    """One socket with one agent.

    The stream of the recognizer is opened with the first audio and replaced when its part of the
    session changes.
    """

    def __init__(self, wire: Wire, session: AgentSession, expires_at: int) -> None:
        self.wire, self.one, self.session = wire, wire.one, session
        self.service, self.expires_at = wire.one.service, expires_at
        shared = self.service.agent
        assert shared is not None
        self.messages = AgentMessages(session, shared.voice.sample_rate, new_id("conv"))
        self.agent = Agent(
            shared.chat,
            shared.voice,
            shared.threads,
            session.options(),
            self._emit,
            self.service.metrics.agent,
        )
        self._turn_input: TurnInput | None = None
        self._feed: Feed | None = None
        self._reader = PcmReader("pcm_s16le")
        self._offset = 0.0  # seconds of earlier streams
        self._opened: asyncio.Queue[TurnInput] = asyncio.Queue()
        self._drained = asyncio.Event()
        self._resources = AsyncExitStack()

    async def run(self, first: str | bytes) -> None:
        """Serve the client, whose first message was read already."""
        try:
            async with self._resources, asyncio.timeout(LONGEST_SESSION_SECONDS):
                await until_first(
                    self.wire.receive(self._handle, KEYS, first),
                    self._listen(),
                    self.agent.failed(),
                )
        except TimeoutError:
            error = Refusal(408, "the session has expired; open another one", "session_expired")
            with suppress(Exception):
                await self.wire.emit([{"type": "error", "error": error.body()}])
            await self.one.close(GOING_AWAY, "the session has expired")
        finally:
            await self.agent.close()

    async def _emit(self, event: AgentEvent) -> None:
        await self.wire.emit(self.messages.of(event))

    async def _handle(self, given: JsonObject) -> None:
        match given.get("type"):
            case "session.update":
                await self._update(given.get("session"))
            case "input_audio_buffer.append":
                await self._append(given.get("audio"))
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                await self.one.pace_command()
                await self.agent.clear(await self._open())
                await self.wire.emit([{"type": "input_audio_buffer.cleared"}])
            case "conversation.item.create":
                await self._create_item(given)
            case "conversation.item.retrieve":
                shown = shown_item(self._item(given))
                await self.wire.emit([{"type": "conversation.item.retrieved", "item": shown}])
            case "conversation.item.truncate":
                await self._truncate(given)
            case "conversation.item.delete":
                item = self._item(given)
                self.agent.history.remove(item.id)
                await self.wire.emit([{"type": "conversation.item.deleted", "item_id": item.id}])
            case "response.create":
                await self._respond(given.get("response"))
            case "response.cancel":
                running, named = self.agent.running, given.get("response_id")
                if running is None or named not in (None, running.id):
                    raise Refusal(
                        400, "no such response is in progress", "response_cancel_not_active"
                    )
                await self.agent.interrupt("client_cancelled")
            case kind:
                raise unknown_type(kind, KEYS)

    # -- user audio --------------------------------------------------------------------------------

    async def _update(self, given: object) -> None:
        await self.one.pace_command()
        before = self._stream_key()
        try:
            self.session.update(given)
        except PianissimoError as error:  # an unknown language or model
            raise refusal_for(error) from error
        self.agent.options = self.session.options()
        voice = await self.service.voices.load(self.session.voice)
        self.agent.voice, self.messages.voice_rate = voice, voice.sample_rate
        if self._stream_key() != before:
            await self._replace()
        shown = self.session.shown(self.expires_at)
        await self.wire.emit([{"type": "session.updated", "session": shown}])

    def _stream_key(self) -> object:
        """What the stream and its detector depend on."""
        return self.session.recognition.stream_config, self.session.judge, self.session.threshold

    async def _append(self, audio: object) -> None:
        data = await decoded(audio)
        turn_input = await self._open()
        assert self._feed is not None and self.one.lease is not None
        self.one.account.check_audio()
        seconds = len(data) / self._reader.frame_bytes / self._feed.sample_rate
        self.service.record_audio(DIALECT, self.one.lease, seconds)
        shortest = math.ceil(SHORTEST_SECONDS * self._feed.sample_rate)
        if not self._reader.hold(data, shortest):
            await self.agent.push(turn_input, self._reader.push(data))

    async def _commit(self) -> None:
        await self.one.pace_command()
        turn_input = await self._open()
        await self.agent.push(turn_input, self._reader.push(b""))
        seconds = self.agent.uncommitted_seconds(turn_input)
        if seconds < LEAST_COMMIT_SECONDS:
            raise Refusal(
                400,
                f"the input audio buffer has {1000 * seconds:.0f} ms of audio; "
                f"a commit needs at least {1000 * LEAST_COMMIT_SECONDS:.0f}",
                "input_audio_buffer_commit_empty",
            )
        self.one.final_requested()
        await self.agent.commit(turn_input)
        self.one.final_sent()

    async def _open(self) -> TurnInput:
        if self._turn_input is not None:
            return self._turn_input
        config = self.session.recognition.stream_config
        shared_lease = self.service.lease(
            DIALECT, config.choice, self.session.recognition.id, self.one.account
        )
        lease = self.one.lease = self._resources.enter_context(shared_lease)
        self._reader = PcmReader(config.encoding)
        self._feed = await self._resources.enter_async_context(self._new_feed(lease, config))
        judge = self.session.judge
        detector = None if judge is None else VoiceTurns(judge, self.session.threshold)
        front_end = lease.model.recognizer.front_end
        self._turn_input = TurnInput(
            self._feed,
            detector,
            StreamInput(config.sample_rate, SAMPLE_RATE, front_end),
            self.service.audio_threads,
            self._offset,
        )
        self._opened.put_nowait(self._turn_input)
        return self._turn_input

    @asynccontextmanager
    async def _new_feed(self, lease: Lease, config: StreamConfig) -> AsyncIterator[Feed]:
        async with self.service.feed(
            lease,
            PcmReader(config.encoding),
            sample_rate=config.sample_rate,
            latency_ms=config.latency_ms,
            endpoint=NO_PAUSES,  # the agent says when an utterance ends
            boost=await asyncio.to_thread(lease.model.hints, config.boost),
            language=config.language,
        ) as feed:
            yield feed

    async def _replace(self) -> None:
        """End the stream; the next audio opens another one."""
        if self._feed is None or self._turn_input is None:
            return
        self._drained.clear()
        await self._feed.finish()
        await self._drained.wait()
        await self._resources.aclose()
        self._offset, self._feed, self._turn_input = self._turn_input.seconds, None, None

    async def _listen(self) -> None:
        while True:
            turn_input = await self._opened.get()
            await self.agent.listen(turn_input.events())
            self._drained.set()

    # -- items -------------------------------------------------------------------------------------

    def _item(self, given: Mapping[str, object], code: str = "item_not_found") -> Item:
        if (name := given.get("item_id")) is None:
            raise missing("item_id")
        if (item := self.agent.history.find(name)) is None:
            raise Refusal(400, f"there is no item {str(name)[:64]!r}", code, "item_id")
        return item

    async def _create_item(self, given: Mapping[str, object]) -> None:
        audio_seconds = await self._transcribe(given.get("item"))
        item = read_item(given.get("item"))
        after = given.get("previous_item_id")
        if self.agent.history.find(item.id) is not None:
            raise wrong("item.id", "is the id of another item")
        if after is not None and not isinstance(after, str):
            raise wrong("previous_item_id", "must be text")
        try:
            before = self.agent.history.add(item, after)
        except KeyError:
            raise Refusal(
                400, f"there is no item {str(after)[:64]!r}", "item_not_found", "previous_item_id"
            ) from None
        await self.wire.emit(added(item, before))
        if isinstance(item, Message) and audio_seconds:
            await self._emit(TurnTranscribed(item, audio_seconds))

    async def _transcribe(self, given: object) -> float:
        """Add the transcripts of an item's audio to it; returns the seconds of the audio."""
        seconds = 0.0
        for part in untranscribed(given):
            data = await decoded(part["audio"])
            self.one.account.check_audio()
            config = self.session.recognition.stream_config
            try:
                with self.service.lease(
                    DIALECT, config.choice, self.session.recognition.id, self.one.account
                ) as lease:
                    async with self._new_feed(lease, config) as feed:
                        pushing = asyncio.create_task(_push_all(feed, data))
                        finals = [event.text async for event in feed if event.type == "final"]
                        pushed = await pushing
                        self.service.record_audio(DIALECT, lease, pushed)
            except PianissimoError as error:
                raise refusal_for(error) from error
            part["transcript"] = " ".join(filter(None, finals))
            seconds += pushed
        return seconds

    async def _truncate(self, given: Mapping[str, object]) -> None:
        item = self._item(given, "item_truncate_invalid_item_id")
        if not isinstance(item, Message) or item.role != "assistant" or not item.spoken:
            raise Refusal(
                400,
                "only spoken answers can be truncated",
                "item_truncate_invalid_item_id",
                "item_id",
            )
        if given.get("content_index", 0) != 0:
            raise wrong("content_index", "must be 0: answers have one part")
        end_ms = given.get("audio_end_ms")
        if isinstance(end_ms, bool) or not isinstance(end_ms, int) or end_ms < 0:
            raise Refusal(
                400,
                "audio_end_ms must be a whole number from 0",
                "invalid_audio_end_ms",
                "audio_end_ms",
            )
        length_ms = round(item.seconds * 1000)
        if end_ms > length_ms + ROUNDING_MS:
            raise Refusal(
                400,
                f"audio_end_ms is {end_ms}, but the item has {length_ms} ms of audio",
                "invalid_audio_end_ms",
                "audio_end_ms",
            )
        running = self.agent.running
        if running is not None and running.open_item is item:
            await self.agent.interrupt("client_cancelled")
        item.played_seconds = end_ms / 1000
        await self.wire.emit(
            [
                {
                    "type": "conversation.item.truncated",
                    "item_id": item.id,
                    "content_index": 0,
                    "audio_end_ms": end_ms,
                }
            ]
        )

    # -- answers -----------------------------------------------------------------------------------

    async def _respond(self, given: object) -> None:
        await self.one.pace_command()
        response = {} if given is None else given
        if not isinstance(response, dict):
            raise wrong("response", "must be an object")
        if (running := self.agent.running) is not None:
            raise Refusal(
                400,
                f"the response {running.id} is in progress; cancel it, or wait for response.done",
                "conversation_already_has_active_response",
            )
        if response.get("conversation", "auto") not in ("auto", "none"):
            raise wrong("response.conversation", "must be auto or none")
        metadata = response.get("metadata")
        if metadata is not None and not isinstance(metadata, dict):
            raise wrong("response.metadata", "must be an object")
        output = self.session.changed(response, "response")
        items = response.get("input")
        if items is not None and not isinstance(items, list):
            raise wrong("response.input", "must be a list of items")
        await self.agent.respond(
            self.session.options(output),
            None if items is None else [await self._input(n, each) for n, each in enumerate(items)],
            in_history=response.get("conversation") != "none",
            metadata=metadata,
        )

    async def _input(self, number: int, given: object) -> Item:
        """An item of `response.input`, new or by reference."""
        path = f"response.input[{number}]"
        if isinstance(given, dict) and given.get("type") == "item_reference":
            return self._item({"item_id": given.get("id")})
        await self._transcribe(given)
        return read_item(given, path)


async def _push_all(feed: Feed, data: bytes) -> float:
    """Push a whole recording into a stream and end it; returns its seconds."""
    seconds = await feed.push(data)
    await feed.finish()
    return seconds
