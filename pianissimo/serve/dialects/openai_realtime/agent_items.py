"""Items of a conversation: read from a client, and shown to it."""

from collections.abc import Iterator, Mapping

from pianissimo.agent.history import Item, Message, ToolCall, ToolResult, new_id
from pianissimo.serve.dialects.messages import JsonObject, wrong
from pianissimo.serve.errors import Refusal

LONGEST_TEXT = 256 << 10
LONGEST_ID = 64
TEXT_KINDS = ("input_text", "text", "output_text")
SPOKEN_KINDS = ("input_audio", "output_audio", "audio")


def read_item(given: object, path: str = "item") -> Item:
    """An item of `conversation.item.create` or of `response.input`; raises Refusal.

    Audio in it needs a transcript, see `untranscribed`.
    """
    if not isinstance(given, dict):
        raise missing(path) if given is None else wrong(path, "must be an object")
    item_id = given.get("id")
    if item_id is not None and (not isinstance(item_id, str) or not 0 < len(item_id) <= LONGEST_ID):
        raise wrong(f"{path}.id", f"must be text of at most {LONGEST_ID} characters")
    name = item_id or new_id("item")
    match given.get("type"):
        case "message":
            return _message(given, name, path)
        case "function_call":
            return ToolCall(
                _text(given, "call_id", path, default=new_id("call")),
                _text(given, "name", path),
                _text(given, "arguments", path),
                name,
            )
        case "function_call_output":
            return ToolResult(_text(given, "call_id", path), _text(given, "output", path), name)
        case None:
            raise missing(f"{path}.type")
        case _:
            raise wrong(f"{path}.type", "must be message, function_call or function_call_output")


def _message(given: Mapping[str, object], name: str, path: str) -> Message:
    role = given.get("role")
    if role not in ("user", "assistant", "system"):
        raise wrong(f"{path}.role", "must be user, assistant or system")
    content = given.get("content")
    if not isinstance(content, list) or not content:
        raise (
            missing(f"{path}.content")
            if content is None
            else wrong(f"{path}.content", "must be a list of parts")
        )
    texts, spoken = [], True
    for number, part in enumerate(content):
        where = f"{path}.content[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        spoken &= kind in SPOKEN_KINDS
        if kind in TEXT_KINDS:
            texts.append(_text(part, "text", where))
        elif kind in SPOKEN_KINDS and isinstance(part.get("transcript"), str):
            texts.append(_text(part, "transcript", where))
        elif kind in SPOKEN_KINDS:
            raise wrong(where, "must have audio or a transcript")
        else:
            raise wrong(f"{where}.type", "must be input_text, input_audio or output_text")
    return Message(role, " ".join(texts), name, spoken=spoken)


def untranscribed(given: object) -> Iterator[dict[str, object]]:
    """The parts of an item that a client sent which have audio of the user and no transcript."""
    content = given.get("content") if isinstance(given, dict) else None
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and part.get("type") == "input_audio":
            if isinstance(part.get("audio"), str) and part.get("transcript") is None:
                yield part


def _text(given: Mapping[str, object], key: str, path: str, default: str | None = None) -> str:
    value = given.get(key, default)
    if value is None:
        raise missing(f"{path}.{key}")
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise wrong(f"{path}.{key}", f"must be text of at most {LONGEST_TEXT >> 10} KiB")
    return value


def missing(param: str) -> Refusal:
    return Refusal(400, f"{param} is missing", "missing_required_parameter", param)


def shown_item(item: Item, *, begun: bool = False) -> JsonObject:
    """An item as a client sees it. One that has only begun has no text yet."""
    status = "in_progress" if begun else "completed" if item.complete else "incomplete"
    shown: JsonObject = {"id": item.id, "object": "realtime.item", "status": status}
    match item:
        case Message(role="assistant"):
            shown |= {"type": "message", "role": item.role, "content": []}
            if not begun:
                shown["content"] = [_said(item)]
        case Message():
            shown |= {"type": "message", "role": item.role, "content": [_asked(item, begun)]}
        case ToolCall():
            shown |= {"type": "function_call", "call_id": item.call_id, "name": item.name}
            shown["arguments"] = "" if begun else item.arguments
        case ToolResult():
            shown |= {"type": "function_call_output", "call_id": item.call_id}
            shown["output"] = item.output
    return shown


def _said(message: Message) -> JsonObject:
    if message.spoken:
        return {"type": "output_audio", "transcript": message.text}
    return {"type": "output_text", "text": message.text}


def _asked(message: Message, begun: bool) -> JsonObject:
    if message.spoken:
        return {"type": "input_audio", "transcript": None if begun else message.text}
    return {"type": "input_text", "text": message.text}
