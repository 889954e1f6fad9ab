"""The settings of an OpenAI realtime transcription session: merged, checked, and shown."""

import copy
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pianissimo.decoding.hotwords import Phrase
from pianissimo.serve.access.auth import caller_of
from pianissimo.serve.access.phrases import terms
from pianissimo.serve.audio_in.pcm import Encoding
from pianissimo.serve.errors import Refusal
from pianissimo.serve.service import NO_PAUSES, Service
from pianissimo.serve.versions.store import Choice
from pianissimo.streaming.endpoint import ENDPOINT, EndpointRules

RATES = (8000, 16_000, 24_000, 48_000)
DELAYS = ("minimal", "low", "medium", "high", "xhigh")
"""How long a session may wait for better text: a latency mode each, the shortest first."""
EAGERNESS_SECONDS = {"low": 1.5, "medium": 0.8, "auto": 0.8, "high": 0.5}
SHORTEST_PAUSE_SECONDS = 0.2
LOGPROBS = "item.input_audio_transcription.logprobs"
SERVER_VAD = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
}
DEFAULTS: dict[str, Any] = {
    "format": {"type": "audio/pcm", "rate": 24_000},
    "noise_reduction": None,
    "transcription": None,
    "turn_detection": SERVER_VAD,
}
COMMITTED_MODELS = ("gpt-realtime-whisper", "gpt-live-transcribe")
"""Names under which OpenAI finds no turns: whoever asks for one of them commits by himself."""
MOST_CHOICES = 16
"""Pairs of a model's name and a user that a session remembers the model of."""
OLD_FORMATS = {
    "pcm16": {"type": "audio/pcm", "rate": 24_000},
    "g711_ulaw": {"type": "audio/pcmu"},
    "g711_alaw": {"type": "audio/pcma"},
}


@dataclass(frozen=True)
class Hearing:
    """What of a session the engine must know: when it changes, the stream must."""

    encoding: Encoding
    sample_rate: int
    latency_ms: int | None
    endpoint: EndpointRules
    finds_turns: bool
    prefix_seconds: float
    choice: Choice
    boost: tuple[Phrase, ...]


class SessionSettings:
    """The session object, as the client sees it.

    `model` is the one in the address of the socket: it counts where the session names none, and
    means nothing if it is not known here.
    """

    def __init__(
        self, service: Service, headers: Mapping[str, str], model: str | None = None
    ) -> None:
        self._service = service
        self.id = f"sess_{secrets.token_hex(12)}"
        self._headers, self._model = headers, model
        self._choices: dict[tuple[str | None, str | None], Choice] = {}
        self.input: dict[str, Any] = copy.deepcopy(DEFAULTS)
        self.include: list[str] = []
        self._chose_turns = False
        self._choose({})  # now: a session keeps its model, whatever becomes of a split

    def update(self, given: Any) -> None:
        """Merge what a client sent, in the present shape or the one before it.

        What is absent stays, null clears. Raises Refusal, or OptionError and ModelNotFoundError
        for what the model cannot do; nothing has changed then.
        """
        if not isinstance(given, dict):
            raise _wrong("session", "must be an object")
        if given.get("type", "transcription") != "transcription":
            raise _wrong("session.type", "must be 'transcription'; this server only listens")
        audio = given.get("audio") or {}
        if not isinstance(audio, dict) or not isinstance(audio.get("input") or {}, dict):
            raise _wrong("session.audio.input", "must be an object")
        changes = {**_old_shape(given), **(audio.get("input") or {})}
        merged = {**self.input, **{k: v for k, v in changes.items() if k in DEFAULTS}}
        merged["format"] = merged["format"] or DEFAULTS["format"]
        if isinstance(merged["turn_detection"], dict):
            base = SERVER_VAD if merged["turn_detection"].get("type") != "semantic_vad" else {}
            merged["turn_detection"] = {**base, **merged["turn_detection"]}
        include = given.get("include", self.include) or []
        if not isinstance(include, list) or not all(isinstance(each, str) for each in include):
            raise _wrong("session.include", "must be a list of names")
        transcription = merged["transcription"]
        chose_turns = self._chose_turns or "turn_detection" in changes
        if transcription is not None:
            if not isinstance(transcription, dict):
                raise _wrong("session.audio.input.transcription", "must be an object")
            model = self._service.store.models[self._choose(transcription).name]
            model.check_language(_text(transcription, "language"))
            model.check_languages(_texts(transcription, "languages"))
            named = _text(transcription, "model") or ""
            if named.startswith(COMMITTED_MODELS) and not chose_turns:
                merged["turn_detection"] = None
        self.hearing_of(merged)
        self.input, self.include, self._chose_turns = merged, include, chose_turns

    @property
    def hearing(self) -> Hearing:
        return self.hearing_of(self.input)

    def hearing_of(self, input: Mapping[str, Any]) -> Hearing:
        """Raises Refusal for values that make no sense, OptionError for what the model cannot."""
        transcription = input["transcription"] or {}
        choice = self._choose(transcription)
        encoding, rate = _format(input["format"])
        endpoint = _endpoint(input["turn_detection"])
        prefix = (input["turn_detection"] or {}).get("prefix_padding_ms", 0)
        return Hearing(
            encoding,
            rate,
            self._latency(choice, _text(transcription, "delay")),
            NO_PAUSES if endpoint is None else endpoint,
            endpoint is not None,
            _number(prefix, "prefix_padding_ms", 0, 60_000) / 1000,
            choice,
            _phrases(transcription),
        )

    def _choose(self, transcription: Mapping[str, Any]) -> Choice:
        """The model of the session: for the same name and user always the same, while it is there,
        whatever becomes of an experiment's weights."""
        store = self._service.store
        name, user = _text(transcription, "model"), _text(transcription, "user")
        known = self._choices.get((name, user))
        if known is None or known.name not in store.models:
            if known is None and len(self._choices) >= MOST_CHOICES:
                raise _wrong("transcription.user", "changed too often; open another session")
            caller = caller_of(self._headers, user, self.id)
            known = store.choose(name or self._model, caller, lenient=not name)
            self._choices[name, user] = known
        return known

    def _latency(self, choice: Choice, delay: str | None) -> int | None:
        if delay is None:
            return None
        if delay not in DELAYS:
            raise _wrong("transcription.delay", f"must be one of {', '.join(DELAYS)}")
        modes = self._service.store.models[choice.name].latencies_ms
        return modes[min(DELAYS.index(delay), len(modes) - 1)] if modes else None

    def shown(self, expires_at: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "realtime.transcription_session",
            "type": "transcription",
            "expires_at": expires_at,
            "audio": {"input": copy.deepcopy(self.input)},
            "include": list(self.include),
        }


def _old_shape(given: Mapping[str, Any]) -> dict[str, Any]:
    """The flat fields of the time before the interface was generally available."""
    changes: dict[str, Any] = {}
    if "input_audio_format" in given:
        name = given["input_audio_format"]
        if name not in tuple(OLD_FORMATS):  # it may be anything, also what has no hash
            raise _wrong("input_audio_format", f"must be one of {', '.join(OLD_FORMATS)}")
        changes["format"] = OLD_FORMATS[name]
    for old, new in (
        ("input_audio_transcription", "transcription"),
        ("input_audio_noise_reduction", "noise_reduction"),
        ("turn_detection", "turn_detection"),
    ):
        if old in given:
            changes[new] = given[old]
    return changes


def _format(format: Any) -> tuple[Encoding, int]:
    kind = format.get("type") if isinstance(format, dict) else None
    if kind == "audio/pcmu":
        return "mulaw", 8000
    if kind == "audio/pcma":
        return "alaw", 8000
    if kind != "audio/pcm":
        raise _wrong("session.audio.input.format", "must be audio/pcm, audio/pcmu or audio/pcma")
    rate = format.get("rate", 24_000)
    if rate not in RATES:
        known = ", ".join(map(str, RATES))
        raise _wrong("session.audio.input.format.rate", f"must be one of {known}")
    return "pcm_s16le", rate


def _endpoint(turns: Any) -> EndpointRules | None:
    if turns is None:
        return None
    kind = turns.get("type") if isinstance(turns, dict) else None
    if kind == "semantic_vad":
        eagerness = turns.get("eagerness") or "auto"
        if eagerness not in tuple(EAGERNESS_SECONDS):
            raise _wrong("turn_detection.eagerness", "must be low, medium, high or auto")
        return replace(ENDPOINT, trailing_silence=EAGERNESS_SECONDS[eagerness])
    if kind != "server_vad":
        raise _wrong("turn_detection.type", "must be server_vad or semantic_vad, or null for none")
    pause = _number(turns.get("silence_duration_ms", 500), "silence_duration_ms", 0, 60_000) / 1000
    return replace(ENDPOINT, trailing_silence=max(pause, SHORTEST_PAUSE_SECONDS))


def _number(value: Any, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise _wrong(f"turn_detection.{name}", f"must be a number from {least} to {most}")
    return value


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong(f"transcription.{name}", "must be text")
    return value


def _texts(given: Mapping[str, Any], name: str) -> list[str]:
    values = given.get(name) or []
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise _wrong(f"transcription.{name}", "must be a list of texts")
    return values


def _phrases(transcription: Mapping[str, Any]) -> tuple[Phrase, ...]:
    """The terms of `prompt` and `keywords`; whoever sends something else has sent none."""
    prompt, keywords = transcription.get("prompt"), transcription.get("keywords")
    lines = [prompt] if isinstance(prompt, str) else []
    found = [*terms("\n".join(lines))]
    if isinstance(keywords, list):
        found += terms("\n".join(each for each in keywords if isinstance(each, str)))
    return tuple(dict.fromkeys(found))


def _wrong(param: str, what: str) -> Refusal:
    return Refusal(400, f"{param} {what}", "invalid_value", param)
