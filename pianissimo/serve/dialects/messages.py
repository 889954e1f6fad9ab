"""JSON messages of clients: parsing, typed fields, and errors that name the valid values."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from starlette.requests import Request

from pianissimo.serve.audio_in.upload import limited
from pianissimo.serve.errors import Refusal

JsonObject: TypeAlias = dict[str, object]

SMALL_TEXT_BYTES = 64 << 10
"""Messages up to this size are parsed at once, whatever their structure."""
LARGEST_BODY_BYTES = 1 << 20
MOST_MARKS = 4096
"""Structural characters in a larger message. A long string has none, so audio in base64 passes;
millions of small values, which take seconds to parse, do not."""
LONGEST_SHOWN_NAME = 60


def parse_object(text: str | bytes) -> JsonObject:
    """Parse a JSON object; raises Refusal for anything else."""
    if len(text) > SMALL_TEXT_BYTES:
        _check_structure(text)
    try:
        value = json.loads(text, parse_constant=_reject_constant)
        if _has_surrogates(text):
            json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be sent back
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the message is not valid JSON: {error}", "invalid_json") from error
    if not isinstance(value, dict):
        raise Refusal(400, "a message must be a JSON object", "invalid_json")
    return value


async def json_body(request: Request) -> JsonObject:
    """The JSON object in the body of a request; raises Refusal for another one."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(400, "send the request as application/json", "invalid_content_type")
    return parse_object(await limited(request, LARGEST_BODY_BYTES).body())


def _check_structure(text: str | bytes) -> None:
    marks = 0
    for start in range(0, len(text), SMALL_TEXT_BYTES):
        part = text[start : start + SMALL_TEXT_BYTES]
        if isinstance(part, str):
            marks += sum(part.count(mark) for mark in ',[{"')
        else:
            marks += sum(part.count(mark) for mark in b',[{"')
        if marks > MOST_MARKS:
            raise Refusal(
                413,
                f"a message above {SMALL_TEXT_BYTES >> 10} KiB may hold long strings, "
                "but not thousands of values",
                "message_too_complex",
            )


def _has_surrogates(text: str | bytes) -> bool:
    if isinstance(text, str):
        return "\\ud" in text or "\\uD" in text
    return b"\\ud" in text or b"\\uD" in text


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not part of JSON")


def text_field(given: Mapping[str, object], name: str) -> str | None:
    """The text of that name, or None if absent; raises Refusal for another type."""
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise Refusal(400, f"{name} must be text", "invalid_value", name)
    return value


def whole_field(given: Mapping[str, object], name: str, default: int, least: int) -> int:
    """The whole number of that name; raises Refusal for another type or a smaller value."""
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Refusal(
            400, f"{name} must be a whole number of at least {least}", "invalid_value", name
        )
    return value


def nearest_first(name: str, valid: Iterable[str]) -> list[str]:
    """The valid names, the most similar one first."""
    names = sorted(valid)
    short = name[:LONGEST_SHOWN_NAME].lower()
    return sorted(
        names, key=lambda each: -difflib.SequenceMatcher(None, short, each.lower()).ratio()
    )


def shown(name: object) -> str:
    """A name as an error repeats it, cut to a sensible length."""
    text = repr(name)
    return text if len(text) <= LONGEST_SHOWN_NAME else text[:LONGEST_SHOWN_NAME] + "..."


def unknown_keys(given: Mapping[str, object], valid: Iterable[str]) -> list[str]:
    """The keys of a message that are not valid, in the order given."""
    known = frozenset(valid)
    return [key for key in given if key not in known]


def check_keys(given: Mapping[str, object], valid: Iterable[str], what: str) -> None:
    """Raises Refusal, with the valid keys, for a message that has another one."""
    if unknown := unknown_keys(given, valid):
        names = ", ".join(nearest_first(unknown[0], valid))
        raise Refusal(
            400,
            f"{what} has no key {shown(unknown[0])}; valid keys: {names}",
            "unknown_key",
            unknown[0][:LONGEST_SHOWN_NAME],
        )


def unknown_type(kind: object, valid: Iterable[str]) -> Refusal:
    """The refusal of a message whose type is not known."""
    names = ", ".join(nearest_first(kind if isinstance(kind, str) else "", valid))
    what = "the message has no type" if kind is None else f"unknown message type {shown(kind)}"
    return Refusal(400, f"{what}; valid types: {names}", "unknown_type", "type")


def wrong(param: str, what: str) -> Refusal:
    """The refusal of a value that is not valid."""
    return Refusal(400, f"{param} {what}", "invalid_value", param)
