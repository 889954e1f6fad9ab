"""What both kinds of realtime sessions share: messages in, events out, errors and warnings."""

import asyncio
import base64
import binascii
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping

from pianissimo.serve.dialects.messages import (
    LONGEST_SHOWN_NAME,
    SMALL_TEXT_BYTES,
    JsonObject,
    nearest_first,
    unknown_keys,
)
from pianissimo.serve.dialects.openai_realtime.session import unknown_session_keys
from pianissimo.serve.dialects.sockets import Client, parse_message
from pianissimo.serve.errors import Refusal
from pianissimo.serve.websocket import LARGEST_MESSAGE_BYTES

DIALECT = "openai-realtime"
LARGEST_APPEND_BYTES = 15 << 20
BASE64_PIECE = 1 << 18
"""Characters of base64 decoded at once, a multiple of 4."""
MOST_WARNINGS = 32


class Wire:
    """One socket of the dialect. `error` events report faults of the client only."""

    def __init__(self, one: Client) -> None:
        self.one = one
        self._sending = asyncio.Lock()
        self._warned: set[str] = set()

    async def receive(
        self,
        handle: Callable[[JsonObject], Awaitable[None]],
        keys: Mapping[str, tuple[str, ...]],
        first: str | bytes | None = None,
    ) -> None:
        """Handle each message of the client, `first` before the others.

        A refused message is answered by an `error` event; at a limit the session ends.
        """
        while True:
            message = await self.one.receive() if first is None else first
            first, event_id = None, None
            try:
                if isinstance(message, bytes):
                    raise Refusal(400, "send audio as base64 in JSON, not binary", "invalid_json")
                given = await parse_message(message, LARGEST_MESSAGE_BYTES)
                event_id = given.get("event_id")
                await self._warn_unknown_keys(given, keys)
                await handle(given)
            except Refusal as refusal:
                if refusal.status == 429:
                    raise  # the message is valid; the session ends
                error = {**refusal.body(), "event_id": event_id}
                await self.emit([{"type": "error", "error": error}])

    async def emit(self, messages: Iterable[Mapping[str, object]]) -> None:
        # Events of one cause stay together, even if the client reads slowly.
        found = list(messages)
        async with self._sending:
            for message in found:
                await self.one.send({"event_id": f"event_{secrets.token_hex(12)}", **message})

    async def _warn_unknown_keys(
        self, given: JsonObject, keys: Mapping[str, tuple[str, ...]]
    ) -> None:
        """Report each unknown key once; newer SDKs send optional fields that are unknown here."""
        kind = given.get("type")
        valid = keys.get(kind) if isinstance(kind, str) else None
        if valid is None:
            return
        unknown = [
            (key[:LONGEST_SHOWN_NAME], nearest_first(key, valid))
            for key in unknown_keys(given, valid)[:MOST_WARNINGS]
        ]
        for key, names in (*unknown, *unknown_session_keys(given.get("session"))):
            if key in self._warned or len(self._warned) >= MOST_WARNINGS:
                continue
            self._warned.add(key)
            warning = {
                "code": "unknown_key",
                "param": key,
                "message": f"the key {key} is unknown and ignored; valid keys: {', '.join(names)}",
            }
            await self.emit([{"type": "warning", "warning": warning}])


async def decoded(audio: object) -> bytes:
    """The bytes of an `input_audio_buffer.append`; raises Refusal."""
    if not isinstance(audio, str) or len(audio) > LARGEST_APPEND_BYTES * 4 // 3 + 4:
        raise Refusal(400, "audio must be base64 text of at most 15 MiB", "invalid_audio")
    if len(audio) > SMALL_TEXT_BYTES:
        return await asyncio.to_thread(_decoded, audio)
    return _decoded(audio)


def _decoded(audio: str) -> bytes:
    """Decoded in pieces that leave other threads their turn."""
    try:
        starts = range(0, len(audio), BASE64_PIECE)
        return b"".join(
            base64.b64decode(audio[start : start + BASE64_PIECE], validate=True) for start in starts
        )
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"audio is not base64: {error}", "invalid_audio", "audio") from error
