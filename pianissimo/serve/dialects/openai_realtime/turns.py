"""Assigns the text of a realtime session to its items.

Pure state: events of the stream and commits of the client go in, events for the client come out.
Each commit, by the client or by a pause, is answered by exactly one `completed` or `failed`.
"""

import math
import secrets
from collections import deque
from collections.abc import Iterator

from pianissimo.serve.dialects.messages import JsonObject
from pianissimo.serve.dialects.openai_fields import logprobs, usage
from pianissimo.serve.feed import GrowingText
from pianissimo.text.words import joined
from pianissimo.transcript import StreamEvent, Word

Message = JsonObject
TRANSCRIPTION = "conversation.item.input_audio_transcription"


class Item:
    """One turn of the speaker."""

    def __init__(self, previous: str | None, start: float) -> None:
        self.id, self.previous = f"item_{secrets.token_hex(12)}", previous
        self.start = start  # seconds since the session began, as all times here
        self.text = GrowingText()
        self.words: list[Word] = []
        self.spoken: list[str] = []  # of finals in written form
        self.speaking = False
        self.cleared = False


class Turns:
    """The open item, and the committed items whose text is not complete."""

    def __init__(self) -> None:
        self.finds_turns, self.prefix_seconds, self.logprobs = True, 0.3, False
        self.written = False
        """Whether finals have the written form; then partials, whose numbers may grow, add none."""
        self._open = Item(None, 0.0)
        self._waiting: deque[Item] = deque()

    @property
    def waiting(self) -> int:
        """Commits without an answer yet."""
        return sum(not item.cleared for item in self._waiting)

    def commit(self, now: float) -> Iterator[Message]:
        """Commit the audio up to `now`; the caller finalizes the stream."""
        item = self._open
        self._waiting.append(item)
        self._open = Item(item.id, now)
        yield from self._committed(item)

    def clear(self, now: float) -> Iterator[Message]:
        """Discard the audio since the last commit; the caller finalizes the stream."""
        self._open.cleared = True
        self._waiting.append(self._open)
        self._open = Item(self._open.previous, now)
        yield {"type": "input_audio_buffer.cleared"}

    def accept(self, event: StreamEvent) -> Iterator[Message]:
        """The events for the client that an event of the stream causes."""
        if event.type == "endpoint":
            return
        committed = bool(self._waiting)
        item = self._waiting[0] if committed else self._open
        if not item.cleared:
            yield from self._grow(item, event, committed)
        if event.reason == "finalize":
            self._waiting.popleft()
            if not item.cleared:
                yield self._completed(item, event.end)
        elif event.reason == "endpoint" and not committed:
            end = round(event.end * 1000)
            yield {
                "type": "input_audio_buffer.speech_stopped",
                "audio_end_ms": end,
                "item_id": item.id,
            }
            yield from self._committed(item)
            yield self._completed(item, event.end)
            self._open = Item(item.id, event.end)

    def fail(self, message: str, code: str) -> Iterator[Message]:
        """The stream failed: answer every open commit."""
        while self._waiting:
            item = self._waiting.popleft()
            if item.cleared:
                continue
            error = {"type": "server_error", "code": code, "message": message, "param": None}
            yield {
                "type": f"{TRANSCRIPTION}.failed",
                "item_id": item.id,
                "content_index": 0,
                "error": error,
            }

    def _grow(self, item: Item, event: StreamEvent, committed: bool) -> Iterator[Message]:
        if event.text and not item.speaking:
            item.speaking = True
            if self.finds_turns and not committed:
                start = max(item.start, event.start - self.prefix_seconds)
                yield {
                    "type": "input_audio_buffer.speech_started",
                    "audio_start_ms": round(start * 1000),
                    "item_id": item.id,
                }
        if self.written and event.type == "partial":
            return
        if added := item.text.add(event):
            yield {
                "type": f"{TRANSCRIPTION}.delta",
                "item_id": item.id,
                "content_index": 0,
                "delta": added,
            }
        if event.type == "final":
            item.words += event.words
            if event.lexical is not None:
                item.spoken.append(event.lexical)

    def _committed(self, item: Item) -> Iterator[Message]:
        before = {"previous_item_id": item.previous}
        yield {"type": "input_audio_buffer.committed", "item_id": item.id, **before}
        for kind, status in (("added", "in_progress"), ("done", "completed")):
            shown = {
                "id": item.id,
                "object": "realtime.item",
                "type": "message",
                "status": status,
                "role": "user",
                "content": [{"type": "input_audio", "transcript": None}],
            }
            yield {"type": f"conversation.item.{kind}", "item": shown, **before}

    def _completed(self, item: Item, end: float) -> Message:
        message: Message = {
            "type": f"{TRANSCRIPTION}.completed",
            "item_id": item.id,
            "content_index": 0,
            "transcript": item.text.sent,
            "usage": {**usage(0), "seconds": math.ceil(max(0.0, end - item.start))},
        }
        if self.written:
            message["lexical"] = joined(item.spoken)
        if self.logprobs:
            message["logprobs"] = logprobs(item.words)
        return message
