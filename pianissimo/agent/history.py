"""What was said in a conversation, and the messages in which a language model gets it.

An answer is kept with the audio of each of its pieces, so that it can be cut to what was played: a
model must not take text for said that was never played.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

JsonObject: TypeAlias = dict[str, object]

MOST_CHARACTERS = 24_000
"""Of the conversation that a model gets, about 6,000 tokens; the oldest items are left out."""
MOST_ITEMS = 1000
"""Items that are kept; the oldest are dropped."""
CUT_MARK = " —"
"""Ends the text of an answer that was interrupted."""


def new_id(prefix: str) -> str:
    """A random identifier, such as item_5f0c..."""
    return f"{prefix}_{secrets.token_hex(12)}"


@dataclass
class SpokenPiece:
    """A piece of an answer and the length of its audio, as far as it was sent."""

    text: str
    seconds: float = 0.0


@dataclass
class Message:
    """Something that the user, the agent or the system said."""

    role: Literal["user", "assistant", "system"]
    text: str
    id: str = field(default_factory=lambda: new_id("item"))
    pieces: list[SpokenPiece] = field(default_factory=list)
    """Of a spoken answer."""
    played_seconds: float | None = None
    """Of a spoken answer that was cut; None if it is whole."""
    spoken: bool = False
    """Whether it is speech, of the user or of the voice."""
    complete: bool = True

    @property
    def seconds(self) -> float:
        """The length of its audio, as far as it was sent."""
        return sum(piece.seconds for piece in self.pieces)

    @property
    def played_text(self) -> str:
        """The text that the user knows: all of it, or what was played."""
        if self.played_seconds is None or self.played_seconds >= self.seconds:
            return self.text
        said, left = [], self.played_seconds
        for piece in self.pieces:
            share = min(1.0, left / piece.seconds) if piece.seconds else 1.0
            words = piece.text.split()
            said += words[: int(share * len(words))]
            left -= piece.seconds
            if left <= 0:
                break
        return " ".join(said) + CUT_MARK if said else ""


@dataclass
class ToolCall:
    """A call that the model asks the client for."""

    call_id: str
    name: str
    arguments: str
    id: str = field(default_factory=lambda: new_id("item"))
    complete: bool = True


@dataclass
class ToolResult:
    """The client's answer to a tool call."""

    call_id: str
    output: str
    id: str = field(default_factory=lambda: new_id("item"))
    complete: bool = True


Item: TypeAlias = Message | ToolCall | ToolResult


class History:
    """The items of one conversation in order."""

    def __init__(self) -> None:
        self.items: list[Item] = []

    def find(self, item_id: object) -> Item | None:
        return next((item for item in self.items if item.id == item_id), None)

    @property
    def last(self) -> Item | None:
        return self.items[-1] if self.items else None

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Insert an item behind the one with the id `after`, "root" for the beginning, None for
        the end; returns the id of the item before it. Raises KeyError if there is no such item."""
        if after is None:
            position = len(self.items)
        elif after == "root":
            position = 0
        else:
            positions = {each.id: number for number, each in enumerate(self.items, start=1)}
            position = positions[after]
        before = self.items[position - 1].id if position else None
        self.items.insert(position, item)
        if len(self.items) > MOST_ITEMS:
            del self.items[0]
        return before

    def remove(self, item_id: str) -> None:
        self.items = [item for item in self.items if item.id != item_id]

    def messages(
        self, instructions: str, items: "list[Item] | None" = None, *, trim: bool = True
    ) -> list[JsonObject]:
        """The conversation in the format of a chat endpoint, or that of other items.

        With `trim` the oldest items are left out until the rest has `MOST_CHARACTERS`.
        """
        chosen = list(self.items if items is None else items)
        if trim:
            left = MOST_CHARACTERS - len(instructions)
            kept: list[Item] = []
            for item in reversed(chosen):
                left -= _length(item)
                if left < 0 and kept:
                    break
                kept.insert(0, item)
            chosen = kept
        system: list[JsonObject] = []
        if instructions:
            system.append({"role": "system", "content": instructions})
        return system + list(_joined(chosen))


def _length(item: Item) -> int:
    match item:
        case Message():
            return len(item.played_text)
        case ToolCall():
            return len(item.name) + len(item.arguments)
        case ToolResult():
            return len(item.output)


def _joined(items: list[Item]) -> Iterator[JsonObject]:
    """One message for what a role says in a row, and one for calls that belong to one answer.

    A result without its call, whose item was left out or deleted, is left out too: endpoints refuse
    it. A call without a result gets an empty one.
    """
    items = [item for item in items if not isinstance(item, Message) or item.played_text]
    results = {item.call_id: item.output for item in items if isinstance(item, ToolResult)}
    index = 0
    while index < len(items):
        item = items[index]
        index += 1
        if isinstance(item, Message):
            texts = [item.played_text]
            while index < len(items):
                following = items[index]
                if not isinstance(following, Message) or following.role != item.role:
                    break
                texts.append(following.played_text)
                index += 1
            yield {"role": item.role, "content": " ".join(texts)}
        elif isinstance(item, ToolCall):
            calls = [item]
            while index < len(items):
                following = items[index]
                if not isinstance(following, ToolCall):
                    break
                calls.append(following)
                index += 1
            yield {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": call.call_id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call in calls
                ],
            }
            for call in calls:
                output = results.get(call.call_id, "")
                yield {"role": "tool", "tool_call_id": call.call_id, "content": output}
