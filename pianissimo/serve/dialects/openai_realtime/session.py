"""The settings of an OpenAI realtime transcription session: merged, checked, and shown."""

import copy
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pianissimo.decoding.hotwords import Phrase
from pianissimo.serve.access.auth import caller_of
from pianissimo.serve.access.phrases import terms
from pianissimo.serve.audio_in.pcm import Encoding
from pianissimo.serve.dialects.messages import LONGEST_SHOWN_NAME, JsonObject, nearest_first, wrong
from pianissimo.serve.service import NO_PAUSES, Service
from pianissimo.serve.versions.store import ModelChoice
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules

RATES = (8000, 16_000, 24_000, 48_000)
DELAYS = ("minimal", "low", "medium", "high", "xhigh")
"""Trades latency for accuracy: one latency mode each, the shortest first."""
EAGERNESS_SECONDS = {"low": 1.5, "medium": 0.8, "auto": 0.8, "high": 0.5}
SHORTEST_PAUSE_SECONDS = 0.2
LOGPROBS = "item.input_audio_transcription.logprobs"
SERVER_VAD = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
}
DEFAULTS: JsonObject = {
    "format": {"type": "audio/pcm", "rate": 24_000},
    "noise_reduction": None,
    "transcription": None,
    "turn_detection": SERVER_VAD,
}
COMMITTED_MODELS = ("gpt-realtime-whisper", "gpt-live-transcribe")
"""Models for which OpenAI detects no turns: their clients commit the buffer themselves."""
MOST_CHOICES = 16
"""Choices of a model that one session remembers, by requested name and user."""
OLD_FORMATS = {
    "pcm16": {"type": "audio/pcm", "rate": 24_000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}


KEYS: dict[str, tuple[str, ...]] = {
    "session": (
        "type",
        "audio",
        "include",
        *("input_audio_format", "input_audio_transcription", "input_audio_noise_reduction"),
        "turn_detection",
        # Documented; without meaning for a session that only transcribes.
        *("id", "object", "expires_at", "client_secret", "model", "instructions", "modalities"),
        *("output_modalities", "voice", "speed", "tools", "tool_choice", "parallel_tool_calls"),
        *("temperature", "max_output_tokens", "max_response_output_tokens", "prompt", "reasoning"),
        *("output_audio_format", "tracing", "truncation"),
    ),
    "session.audio": ("input", "output"),
    "session.audio.output": ("format", "voice", "speed"),
    "session.audio.input": tuple(DEFAULTS),
    "session.audio.input.format": ("type", "rate"),
    "session.audio.input.noise_reduction": ("type",),
    "session.audio.input.transcription": (
        *("model", "language", "languages", "prompt", "keywords", "delay", "user", "itn"),
    ),
    "session.audio.input.turn_detection": (
        *("type", "threshold", "prefix_padding_ms", "silence_duration_ms", "eagerness"),
        *("create_response", "interrupt_response", "idle_timeout_ms"),
    ),
}
"""Valid keys of a session and of the objects in it, by their path."""


@dataclass(frozen=True)
class StreamConfig:
    """The part of a session that the engine depends on; a change of it opens a new stream."""

    encoding: Encoding
    sample_rate: int
    latency_ms: int | None
    endpoint: EndpointRules
    finds_turns: bool
    prefix_seconds: float
    choice: ModelChoice
    boost: tuple[Phrase, ...]
    language: str | None = None
    """As the model is told; None where it has no choice."""
    itn: bool = False
    """Whether numbers, dates and the like are written as people do."""


class SessionSettings:
    """The session object, as the client sees it.

    `model` is the one in the URL of the socket. It applies where the session names none, and is
    ignored if it is unknown.
    """

    def __init__(
        self, service: Service, headers: Mapping[str, str], model: str | None = None
    ) -> None:
        self._service = service
        self.id = f"sess_{secrets.token_hex(12)}"
        self._headers, self._model = headers, model
        self._choices: dict[tuple[str | None, str | None], ModelChoice] = {}
        self.input: JsonObject = copy.deepcopy(DEFAULTS)
        self.include: list[str] = []
        self._chose_turns = False
        self._choose({})  # now: a session keeps its model when a split changes

    def update(self, given: object, kind: str = "transcription") -> None:
        """Merge a session of this kind that a client sent, in the present or in the beta shape.

        Absent fields stay, null clears. Raises Refusal for invalid values, OptionError and
        ModelNotFoundError for unsupported ones; the session is unchanged then.
        """
        if not isinstance(given, dict):
            raise wrong("session", "must be an object")
        if given.get("type", kind) != kind:
            reason = "the first message fixes it"
            if self._service.agent is None:
                reason = "this server has no language model to answer with (--llm-url)"
            raise wrong("session.type", f"must be {kind!r}: {reason}")
        audio = given.get("audio") or {}
        if not isinstance(audio, dict) or not isinstance(audio.get("input") or {}, dict):
            raise wrong("session.audio.input", "must be an object")
        changes = {**_old_shape(given), **(audio.get("input") or {})}
        merged = {**self.input, **{k: v for k, v in changes.items() if k in DEFAULTS}}
        merged["format"] = merged["format"] or DEFAULTS["format"]
        if isinstance(merged["turn_detection"], dict):
            base = SERVER_VAD if merged["turn_detection"].get("type") != "semantic_vad" else {}
            merged["turn_detection"] = {**base, **merged["turn_detection"]}
        include = given.get("include", self.include) or []
        if not isinstance(include, list) or not all(isinstance(each, str) for each in include):
            raise wrong("session.include", "must be a list of names")
        transcription = merged["transcription"]
        chose_turns = self._chose_turns or "turn_detection" in changes
        if transcription is not None:
            if not isinstance(transcription, dict):
                raise wrong("session.audio.input.transcription", "must be an object")
            model = self._service.store.models[self._choose(transcription).name]
            model.spoken(_text(transcription, "language"), *_texts(transcription, "languages"))
            named = _text(transcription, "model") or ""
            committed = kind == "transcription" and named.startswith(COMMITTED_MODELS)
            if committed and not chose_turns:
                merged["turn_detection"] = None
            if kind != "transcription" and transcription.get("itn"):
                raise wrong("transcription.itn", "is for sessions that transcribe, not answer")
        self.config_for(merged)
        self.input, self.include, self._chose_turns = merged, include, chose_turns

    @property
    def stream_config(self) -> StreamConfig:
        return self.config_for(self.input)

    def config_for(self, input: Mapping[str, object]) -> StreamConfig:
        """Raises Refusal for invalid values, OptionError for what the model does not support."""
        transcription = _object(input["transcription"])
        choice = self._choose(transcription)
        encoding, rate = _format(input["format"])
        endpoint = _endpoint(input["turn_detection"])
        prefix = _object(input["turn_detection"]).get("prefix_padding_ms", 0)
        model = self._service.store.models[choice.name]
        language = model.spoken(_text(transcription, "language"))
        itn = transcription.get("itn") or False
        if not isinstance(itn, bool):
            raise wrong("transcription.itn", "must be true or false")
        if itn:
            model.written_form(language)  # refused with the settings
        return StreamConfig(
            encoding,
            rate,
            self._latency(choice, _text(transcription, "delay")),
            NO_PAUSES if endpoint is None else endpoint,
            endpoint is not None,
            _number(prefix, "prefix_padding_ms", 0, 60_000) / 1000,
            choice,
            _phrases(transcription),
            language,
            itn,
        )

    def _choose(self, transcription: Mapping[str, object]) -> ModelChoice:
        """The model of the session. The same name and user always get the same model while it is
        loaded, even if the weights of an experiment change."""
        store = self._service.store
        name, user = _text(transcription, "model"), _text(transcription, "user")
        known = self._choices.get((name, user))
        if known is None or known.name not in store.models:
            if known is None and len(self._choices) >= MOST_CHOICES:
                raise wrong("transcription.user", "changed too often; open another session")
            caller = caller_of(self._headers, user, self.id)
            known = store.choose(name or self._model, caller, lenient=not name)
            self._choices[name, user] = known
        return known

    def _latency(self, choice: ModelChoice, delay: str | None) -> int | None:
        if delay is None:
            return None
        if delay not in DELAYS:
            raise wrong("transcription.delay", f"must be one of {', '.join(DELAYS)}")
        modes = self._service.store.models[choice.name].latencies_ms
        return modes[min(DELAYS.index(delay), len(modes) - 1)] if modes else None

    def shown(self, expires_at: int) -> JsonObject:
        return {
            "id": self.id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "expires_at": expires_at,
            "audio": {"input": copy.deepcopy(self.input)},
            "include": list(self.include),
        }


def unknown_session_keys(given: object, path: str = "session") -> Iterator[tuple[str, list[str]]]:
    """The path of each key of a session that is not valid, and the valid ones, nearest first."""
    if not isinstance(given, dict) or path not in KEYS:
        return
    valid = KEYS[path]
    for key, value in given.items():
        if key not in valid:
            yield f"{path}.{key[:LONGEST_SHOWN_NAME]}", nearest_first(key, valid)
        else:
            yield from unknown_session_keys(value, f"{path}.{key}")


def _old_shape(given: Mapping[str, object]) -> JsonObject:
    """The flat fields of the beta interface."""
    changes: JsonObject = {}
    if "input_audio_format" in given:
        name = given["input_audio_format"]
        if name not in tuple(OLD_FORMATS):  # it may be unhashable
            raise wrong("input_audio_format", f"must be one of {', '.join(OLD_FORMATS)}")
        changes["format"] = OLD_FORMATS[name]
    for old, new in (
        ("input_audio_transcription", "transcription"),
        ("input_audio_noise_reduction", "noise_reduction"),
        ("turn_detection", "turn_detection"),
    ):
        if old in given:
            changes[new] = given[old]
    return changes


def _format(given: object) -> tuple[Encoding, int]:
    format = _object(given)
    kind = format.get("type")
    if kind == "audio/pcmu":
        return "mulaw", 8000
    if kind == "audio/pcma":
        return "alaw", 8000
    if kind != "audio/pcm":
        raise wrong("session.audio.input.format", "must be audio/pcm, audio/pcmu or audio/pcma")
    rate = format.get("rate", 24_000)
    if rate not in RATES:
        known = ", ".join(map(str, RATES))
        raise wrong("session.audio.input.format.rate", f"must be one of {known}")
    return "pcm_s16le", rate


def _endpoint(given: object) -> EndpointRules | None:
    if given is None:
        return None
    turns = _object(given)
    kind = turns.get("type")
    if kind == "semantic_vad":
        eagerness = turns.get("eagerness") or "auto"
        if eagerness not in tuple(EAGERNESS_SECONDS):
            raise wrong("turn_detection.eagerness", "must be low, medium, high or auto")
        return replace(ENDPOINT, trailing_silence=EAGERNESS_SECONDS[eagerness])
    if kind != "server_vad":
        raise wrong("turn_detection.type", "must be server_vad or semantic_vad, or null for none")
    pause = _number(turns.get("silence_duration_ms", 500), "silence_duration_ms", 0, 60_000) / 1000
    return replace(ENDPOINT, trailing_silence=max(pause, SHORTEST_PAUSE_SECONDS))


def _object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _number(value: object, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise wrong(f"turn_detection.{name}", f"must be a number from {least} to {most}")
    return value


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise wrong(f"transcription.{name}", "must be text")
    return value


def _texts(given: Mapping[str, object], name: str) -> list[str]:
    values = given.get(name) or []
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise wrong(f"transcription.{name}", "must be a list of strings")
    return values


def _phrases(transcription: Mapping[str, object]) -> tuple[Phrase, ...]:
    """The terms of `prompt` and `keywords`; values of other types are ignored."""
    prompt, keywords = transcription.get("prompt"), transcription.get("keywords")
    lines = [prompt] if isinstance(prompt, str) else []
    found = [*terms("\n".join(lines))]
    if isinstance(keywords, list):
        found += terms("\n".join(each for each in keywords if isinstance(each, str)))
    return tuple(dict.fromkeys(found))
