"""OpenAPI descriptions of the requests that the dialects parse themselves.

Forms and bodies are streamed and checked by the dialects themselves, so FastAPI knows no types.
"""

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
SECONDS: Schema = {"type": "number", "minimum": 0}


def _object(required: str = "", **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": required.split()}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": [*values]}


def _answer(description: str, contents: Mapping[str, Schema]) -> dict[str, Any]:
    content = {kind: {"schema": schema} for kind, schema in contents.items()}
    return {"description": description, "content": content}


def _query(name: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


def _body(content: Mapping[str, Schema], *, required: bool = True) -> dict[str, Any]:
    schemas = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"requestBody": {"required": required, "content": schemas}}


NULLABLE_TEXT: Schema = {"type": ["string", "null"]}
ERROR = _object(
    "error",
    error=_object(
        "message type param code",
        message=TEXT,
        type=TEXT,
        param=NULLABLE_TEXT,
        code=NULLABLE_TEXT,
    ),
)
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": _answer("What was wrong, in OpenAI's shape", {"application/json": ERROR})
}
"""Of every route: the error response."""

# -- OpenAI ----------------------------------------------------------------------------------------

WORD = _object("word start end", word=TEXT, start=SECONDS, end=SECONDS)
LOGPROB = _object("token logprob bytes", token=TEXT, logprob={"type": "number"})
SEGMENT = _object("id start end text", id={"type": "integer"}, start=SECONDS, end=SECONDS)
TRANSCRIPTION_FORM = _body(
    {
        "multipart/form-data": _object(
            "file",
            file={"type": "string", "format": "binary"},
            model=TEXT,
            language=TEXT,
            prompt=TEXT,
            temperature={"type": "number"},
            response_format=_one_of("json", "text", "srt", "verbose_json", "vtt", "diarized_json"),
            stream=FLAG,
            polish=FLAG,
            itn=FLAG,
            **{
                "known_speaker_names[]": _list(TEXT),
                "known_speaker_references[]": _list(TEXT),
                "languages[]": _list(TEXT),
                "timestamp_granularities[]": _list(_one_of("word", "segment")),
                "include[]": _list(_one_of("logprobs")),
            },
        )
    }
)
TRANSCRIPTION: dict[int | str, dict[str, Any]] = {
    200: _answer(
        "The text, in the requested format",
        {
            "application/json": _object(
                "text",
                text=TEXT,
                lexical=TEXT,
                usage=_object("type seconds", type=TEXT, seconds=SECONDS),
                logprobs=_list(LOGPROB),
                duration=SECONDS,
                language=TEXT,
                words=_list(WORD),
                segments=_list(SEGMENT),
            ),
            "text/plain": TEXT,
            "text/event-stream": _object("data", data=TEXT),
        },
    )
}
SPEECH_BODY = _body(
    {
        "application/json": _object(
            "input",
            model=TEXT,
            input=TEXT,
            voice={"oneOf": [TEXT, _object("id", id=TEXT)]},
            instructions=TEXT,
            response_format=_one_of("mp3", "opus", "aac", "flac", "wav", "pcm"),
            speed={"type": "number", "minimum": 0.25, "maximum": 4},
            stream_format=_one_of("audio", "sse"),
        )
    }
)
BINARY: Schema = {"type": "string", "format": "binary"}
SPEECH: dict[int | str, dict[str, Any]] = {
    200: _answer(
        "Audio in the requested format, or events",
        {
            **dict.fromkeys(
                ("audio/mpeg", "audio/ogg", "audio/aac", "audio/flac", "audio/wav", "audio/pcm"),
                BINARY,
            ),
            "text/event-stream": _object("data", data=TEXT),
        },
    )
}
SESSION = _object(
    type=_one_of("transcription"),
    audio=_object(
        input=_object(
            format={"type": ["object", "null"]},
            transcription={"type": ["object", "null"]},
            turn_detection={"type": ["object", "null"]},
        )
    ),
    include=_list(TEXT),
)
EXPIRES = _object(
    anchor=_one_of("created_at"), seconds={"type": "integer", "minimum": 10, "maximum": 7200}
)
SECRET_BODY = _body(
    {"application/json": _object(session=SESSION, expires_after=EXPIRES)}, required=False
)
OLD_SESSION_BODY = _body({"application/json": SESSION}, required=False)

# -- Deepgram --------------------------------------------------------------------------------------

LISTEN_BODY = {
    **_body(dict.fromkeys(("audio/*", "application/*"), BINARY)),
    "parameters": [
        _query("model", TEXT),
        _query("language", TEXT),
        _query("encoding", _one_of("linear16", "mulaw", "alaw", "opus")),
        _query("sample_rate", {"type": "integer", "minimum": 1000, "maximum": 384_000}),
        _query("channels", {"type": "integer", "minimum": 1, "maximum": 8}),
        _query("keyterm", _list(TEXT)),
        _query("keywords", _list(TEXT)),
        _query("utterances", FLAG),
        _query("diarize", FLAG),
        _query("diarize_model", TEXT),
        _query("multichannel", FLAG),
        _query("smart_format", FLAG),
        _query("numerals", FLAG),
        _query("endpointing", TEXT),
        _query("utterance_end_ms", TEXT),
    ],
}
ALTERNATIVE = _object(
    "transcript confidence words",
    transcript=TEXT,
    lexical=TEXT,
    confidence={"type": "number", "minimum": 0, "maximum": 1},
    words=_list(_object("word start end confidence", word=TEXT, start=SECONDS, end=SECONDS)),
)
CHANNEL = _object("alternatives", alternatives=_list(ALTERNATIVE))
LISTEN: dict[int | str, dict[str, Any]] = {
    200: _answer(
        "The text and its words",
        {
            "application/json": _object(
                "metadata results",
                metadata=_object("request_id duration", request_id=TEXT, duration=SECONDS),
                results=_object("channels", channels=_list(CHANNEL)),
            )
        },
    ),
    "default": _answer(
        "What was wrong, in Deepgram's shape",
        {
            "application/json": _object(
                "err_code err_msg request_id", err_code=TEXT, err_msg=TEXT, request_id=TEXT
            )
        },
    ),
}
SPEAK_BODY = {
    **_body({"application/json": _object("text", text=TEXT)}),
    "parameters": [
        _query("model", TEXT),
        _query("encoding", _one_of("linear16", "mulaw", "alaw", "mp3", "opus", "flac", "aac")),
        _query("container", _one_of("wav", "ogg", "none")),
        _query("sample_rate", {"type": "integer", "minimum": 8000, "maximum": 48_000}),
        _query("speed", {"type": "number", "minimum": 0.25, "maximum": 4}),
    ],
}
SPEAK: dict[int | str, dict[str, Any]] = {
    200: _answer("Audio in the requested encoding", {"audio/*": BINARY}),
    "default": LISTEN["default"],
}
