"""The events of an agent as messages of OpenAI's realtime dialect, in their order."""

import base64
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pianissimo.agent.agent import (
    AgentEvent,
    AnswerEnded,
    AnswerSent,
    AnswerStarted,
    SilenceTimedOut,
    SpeechStarted,
    SpeechStopped,
    TurnCommitted,
    TurnTranscribed,
    UserSaid,
)
from pianissimo.agent.answer import (
    Answer,
    AnswerEnd,
    ArgumentsDelta,
    AudioBlock,
    ItemDone,
    ItemStarted,
    TextPiece,
)
from pianissimo.agent.history import Item, Message, ToolCall
from pianissimo.serve.dialects.messages import JsonObject
from pianissimo.serve.dialects.openai_fields import usage
from pianissimo.serve.dialects.openai_realtime.agent_items import shown_item
from pianissimo.serve.dialects.openai_realtime.output_audio import OutputAudio
from pianissimo.serve.feed import GrowingText

if TYPE_CHECKING:
    from pianissimo.serve.dialects.openai_realtime.agent_session import AgentSession

TRANSCRIPTION = "conversation.item.input_audio_transcription"


class AgentMessages:
    """Turns the events of one conversation into messages; the session says in which format."""

    def __init__(self, session: "AgentSession", voice_rate: int, conversation_id: str) -> None:
        self._session, self.voice_rate = session, voice_rate
        self._conversation_id = conversation_id
        self._user_item, self._user_text = "", GrowingText()
        self._audio: OutputAudio | None = None

    def of(self, event: AgentEvent) -> Iterator[JsonObject]:
        """The messages for an event."""
        match event:
            case SpeechStarted(item_id, at):
                padding = self._session.recognition.stream_config.prefix_seconds
                start = round(max(0.0, at - padding) * 1000)
                yield {
                    "type": "input_audio_buffer.speech_started",
                    "audio_start_ms": start,
                    "item_id": item_id,
                }
            case SpeechStopped(item_id, at):
                yield {
                    "type": "input_audio_buffer.speech_stopped",
                    "audio_end_ms": round(at * 1000),
                    "item_id": item_id,
                }
            case SilenceTimedOut(item_id, start, end):
                yield {
                    "type": "input_audio_buffer.timeout_triggered",
                    "audio_start_ms": round(start * 1000),
                    "audio_end_ms": round(end * 1000),
                    "item_id": item_id,
                }
            case UserSaid():
                yield from self._user_delta(event)
            case TurnCommitted(message, previous):
                before = {"previous_item_id": previous}
                yield {"type": "input_audio_buffer.committed", "item_id": message.id, **before}
                yield from added(message, previous, begun=True)
            case TurnTranscribed(message, seconds):
                if self._transcribes:
                    yield {
                        "type": f"{TRANSCRIPTION}.completed",
                        "item_id": message.id,
                        "content_index": 0,
                        "transcript": message.text,
                        "usage": {**usage(0), "seconds": math.ceil(max(0.0, seconds))},
                    }
            case AnswerStarted():
                form = str(self._session.output.format["type"])
                rate = self._session.output.sample_rate
                self._audio = OutputAudio(form, rate, self.voice_rate)
                response = self._response(event, None)
                yield {"type": "response.created", "response": response}
            case AnswerSent():
                yield from self._sent(event)
            case AnswerEnded():
                response = self._response(event, event.end)
                yield {"type": "response.done", "response": response}

    @property
    def _transcribes(self) -> bool:
        return self._session.recognition.input["transcription"] is not None

    def _user_delta(self, said: UserSaid) -> Iterator[JsonObject]:
        if said.item_id != self._user_item:
            self._user_item, self._user_text = said.item_id, GrowingText()
        if (delta := self._user_text.add(said.event)) and self._transcribes:
            yield {
                "type": f"{TRANSCRIPTION}.delta",
                "item_id": said.item_id,
                "content_index": 0,
                "delta": delta,
            }

    # -- answers -----------------------------------------------------------------------------------

    def _sent(self, sent: AnswerSent) -> Iterator[JsonObject]:
        answer, event = sent.answer, sent.event
        where: JsonObject = {
            "response_id": answer.id,
            "item_id": event.item.id,
            "output_index": answer.items.index(event.item),
        }
        part = {**where, "content_index": 0}
        match event:
            case ItemStarted(item):
                yield self._output_item("added", answer, item, begun=True)
                if sent.in_history:
                    yield added(item, sent.previous_id, begun=True)[0]
                if isinstance(item, Message):
                    empty = _part(item, "")
                    yield {"type": "response.content_part.added", **part, "part": empty}
            case TextPiece(item, text):
                kind = "output_audio_transcript" if item.spoken else "output_text"
                yield {"type": f"response.{kind}.delta", **part, "delta": text}
            case AudioBlock(_, samples):
                assert self._audio is not None
                if data := self._audio.push(samples):
                    yield self._delta(part, data)
            case ArgumentsDelta(call, delta):
                kind = "response.function_call_arguments.delta"
                yield {"type": kind, **where, "call_id": call.call_id, "delta": delta}
            case ItemDone(item):
                yield from self._done(sent, where, part)

    def _delta(self, part: JsonObject, data: bytes) -> JsonObject:
        self._session.audio_sent = True
        audio = base64.b64encode(data).decode()
        return {"type": "response.output_audio.delta", **part, "delta": audio}

    def _done(self, sent: AnswerSent, where: JsonObject, part: JsonObject) -> Iterator[JsonObject]:
        item = sent.event.item
        match item:
            case Message(spoken=True):
                if self._audio is not None and item.complete and (rest := self._audio.finish()):
                    yield self._delta(part, rest)
                yield {"type": "response.output_audio.done", **part}
                kind = "response.output_audio_transcript.done"
                yield {"type": kind, **part, "transcript": item.text}
            case Message():
                yield {"type": "response.output_text.done", **part, "text": item.text}
            case ToolCall():
                yield {
                    "type": "response.function_call_arguments.done",
                    **where,
                    "call_id": item.call_id,
                    "name": item.name,
                    "arguments": item.arguments,
                }
        if isinstance(item, Message):
            kind = "response.content_part.done"
            yield {"type": kind, **part, "part": _part(item, item.text)}
        yield self._output_item("done", sent.answer, item)
        if sent.in_history:
            yield added(item, sent.previous_id)[1]

    def _output_item(
        self, kind: str, answer: Answer, item: Item, *, begun: bool = False
    ) -> JsonObject:
        return {
            "type": f"response.output_item.{kind}",
            "response_id": answer.id,
            "output_index": answer.items.index(item),
            "item": shown_item(item, begun=begun),
        }

    def _response(self, event: AnswerStarted | AnswerEnded, end: AnswerEnd | None) -> JsonObject:
        answer, output = event.answer, self._session.output
        shown: JsonObject = {
            "id": answer.id,
            "object": "realtime.response",
            "conversation_id": self._conversation_id if event.in_history else None,
            "status": "in_progress" if end is None else end.status,
            "status_details": None,
            "output": [shown_item(item) for item in answer.items],
            "output_modalities": ["audio" if answer.options.spoken else "text"],
            "audio": {"output": {"format": dict(output.format), "voice": output.voice}},
            "max_output_tokens": answer.request.max_tokens or "inf",
            "metadata": event.metadata,
            "usage": None,
        }
        if end is None:
            return shown
        if end.status != "completed":
            details: JsonObject = {"type": end.status}
            if end.reason is not None:
                details["reason"] = end.reason
            if end.error is not None:
                details["error"] = {
                    "type": "server_error",
                    "code": end.error.code,
                    "message": str(end.error),
                }
            shown["status_details"] = details
        tokens = (end.input_tokens, end.output_tokens)
        shown["usage"] = {
            "total_tokens": sum(tokens),
            "input_tokens": tokens[0],
            "output_tokens": tokens[1],
            "input_token_details": {"text_tokens": tokens[0], "audio_tokens": 0},
            "output_token_details": {"text_tokens": tokens[1], "audio_tokens": 0},
        }
        return shown


def added(item: Item, previous_id: str | None, *, begun: bool = False) -> list[JsonObject]:
    """The messages of a new item of the conversation: added, then done."""
    before = {"previous_item_id": previous_id}
    return [
        {"type": "conversation.item.added", "item": shown_item(item, begun=begun), **before},
        {"type": "conversation.item.done", "item": shown_item(item), **before},
    ]


def _part(message: Message, text: str) -> JsonObject:
    if message.spoken:
        return {"type": "audio", "transcript": text}
    return {"type": "text", "text": text}
