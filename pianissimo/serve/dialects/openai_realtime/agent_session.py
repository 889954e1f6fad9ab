"""The settings of an OpenAI realtime session that answers: merged, checked, and shown."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict

from pianissimo.agent.agent import AgentOptions
from pianissimo.agent.smart_turn import SmartTurn
from pianissimo.agent.turn_detector import THRESHOLD
from pianissimo.agent.turn_rules import EndJudge, SilenceRule, TextRules
from pianissimo.serve.agent import AgentService
from pianissimo.serve.dialects.messages import JsonObject, wrong
from pianissimo.serve.dialects.openai_realtime.session import OLD_FORMATS, SessionSettings
from pianissimo.serve.dialects.openai_speech import FOREIGN_VOICES
from pianissimo.serve.errors import Refusal

MOST_WAIT_SECONDS = {"low": 8.0, "medium": 4.0, "auto": 4.0, "high": 2.0}
"""The longest silence inside a turn of `semantic_vad`, by eagerness."""
LONGEST_INSTRUCTIONS = 64 << 10
MOST_TOOLS = 128
PCM = {"type": "audio/pcm", "rate": 24_000}
OUTPUT_FORMATS = ("audio/pcm", "audio/pcmu", "audio/pcma")
SPEEDS = (0.25, 1.5)
IDLE_TIMEOUTS_MS = (5000, 30_000)


@dataclass(frozen=True)
class OutputSettings:
    """The part of a session that shapes answers, as the client sees it."""

    instructions: str
    voice: str
    modalities: tuple[str, ...] = ("audio",)
    format: Mapping[str, object] = field(default_factory=lambda: dict(PCM))
    speed: float = 1.0
    tools: tuple[JsonObject, ...] = ()
    tool_choice: object = "auto"
    parallel_tool_calls: bool | None = None
    max_tokens: int | Literal["inf"] = "inf"
    truncation: object = "auto"

    @property
    def sample_rate(self) -> int:
        return 24_000 if self.format["type"] == "audio/pcm" else 8000


class OutputChanges(TypedDict, total=False):
    """Fields of `OutputSettings` to replace."""

    instructions: str
    voice: str
    modalities: tuple[str, ...]
    format: Mapping[str, object]
    speed: float
    tools: tuple[JsonObject, ...]
    tool_choice: object
    parallel_tool_calls: bool | None
    max_tokens: int | Literal["inf"]
    truncation: object


class AgentSession:
    """A session object of type "realtime": recognition as in transcription, and the answers."""

    def __init__(self, service: AgentService, recognition: SessionSettings) -> None:
        self._service, self.recognition = service, recognition
        self.output = OutputSettings(service.instructions, service.voices.names[0])
        self.audio_sent = False
        """Whether the client has audio of the voice; the voice stays the same from then on."""

    def update(self, given: object) -> None:
        """Merge a session that a client sent. Raises Refusal for invalid values, OptionError and
        ModelNotFoundError for unsupported ones; the session is unchanged then."""
        if not isinstance(given, dict):
            raise wrong("session", "must be an object")
        output = self.changed(given, "session")
        if self.audio_sent and output.voice != self.output.voice:
            raise Refusal(
                400,
                "the voice cannot change once the session has audio; open another session",
                "cannot_update_voice",
                "session.audio.output.voice",
            )
        _check_turns(given)
        self.recognition.update(given, "realtime")
        self.output = output

    def changed(self, given: Mapping[str, object], path: str) -> OutputSettings:
        """The settings of answers after a change by a session or a `response.create`.

        Keys of the beta interface are accepted. Raises Refusal.
        """
        changes: OutputChanges = {}
        modalities = given.get("output_modalities", given.get("modalities"))
        if modalities is not None:
            changes["modalities"] = _modalities(modalities, f"{path}.output_modalities")
        if (instructions := given.get("instructions")) is not None:
            if not isinstance(instructions, str) or len(instructions) > LONGEST_INSTRUCTIONS:
                raise wrong(
                    f"{path}.instructions", f"must be text of at most {LONGEST_INSTRUCTIONS}"
                )
            changes["instructions"] = instructions
        if (tools := given.get("tools")) is not None:
            changes["tools"] = _tools(tools, f"{path}.tools")
        if (choice := given.get("tool_choice")) is not None:
            changes["tool_choice"] = _tool_choice(choice, f"{path}.tool_choice")
        if (parallel := given.get("parallel_tool_calls")) is not None:
            if not isinstance(parallel, bool):
                raise wrong(f"{path}.parallel_tool_calls", "must be true or false")
            changes["parallel_tool_calls"] = parallel
        tokens = given.get("max_output_tokens", given.get("max_response_output_tokens"))
        if tokens is not None:
            changes["max_tokens"] = _max_tokens(tokens, f"{path}.max_output_tokens")
        if (truncation := given.get("truncation")) is not None:
            if truncation not in ("auto", "disabled") and not isinstance(truncation, dict):
                raise wrong(f"{path}.truncation", "must be auto, disabled or an object")
            changes["truncation"] = truncation
        audio = given.get("audio") or {}
        audio_output = (audio.get("output") or {}) if isinstance(audio, dict) else None
        if not isinstance(audio_output, dict):
            raise wrong(f"{path}.audio.output", "must be an object")
        changes.update(self._audio(given, audio_output, path))
        return replace(self.output, **changes)

    def _audio(
        self, given: Mapping[str, object], output: Mapping[str, object], path: str
    ) -> OutputChanges:
        changes: OutputChanges = {}
        where = f"{path}.audio.output"
        form = output.get("format")
        if (old := given.get("output_audio_format")) is not None:
            if old not in tuple(OLD_FORMATS):
                raise wrong("output_audio_format", f"must be one of {', '.join(OLD_FORMATS)}")
            form = OLD_FORMATS[str(old)]
        if form is not None:
            if not isinstance(form, dict) or form.get("type") not in OUTPUT_FORMATS:
                raise wrong(f"{where}.format", f"must have a type of {', '.join(OUTPUT_FORMATS)}")
            if form["type"] == "audio/pcm" and form.get("rate", 24_000) != 24_000:
                raise wrong(f"{where}.format.rate", "must be 24000")
            changes["format"] = dict(PCM) if form["type"] == "audio/pcm" else {"type": form["type"]}
        voice = output.get("voice", given.get("voice"))
        if isinstance(voice, dict):
            voice = voice.get("id")
        if voice is not None:
            if not isinstance(voice, str):
                raise wrong(f"{where}.voice", "must be the name of a voice")
            self._service.voices.choose(voice, foreign=FOREIGN_VOICES)
            changes["voice"] = voice
        if (speed := output.get("speed", given.get("speed"))) is not None:
            least, most = SPEEDS
            if isinstance(speed, bool) or not isinstance(speed, int | float):
                raise wrong(f"{where}.speed", f"must be a number from {least} to {most}")
            if not least <= speed <= most:
                raise wrong(f"{where}.speed", f"must be from {least} to {most}, not {speed}")
            changes["speed"] = float(speed)
        return changes

    @property
    def voice(self) -> str:
        """The served voice that speaks; OpenAI's names stand for the default."""
        return self._service.voices.choose(self.output.voice, foreign=FOREIGN_VOICES)

    # -- for the agent -----------------------------------------------------------------------------

    def options(self, output: OutputSettings | None = None) -> AgentOptions:
        """What the agent goes by, with these settings of answers."""
        shown = output or self.output
        turns = self.recognition.input["turn_detection"]
        rules = turns if isinstance(turns, dict) else {}
        return AgentOptions(
            instructions=shown.instructions,
            spoken="audio" in shown.modalities,
            speed=shown.speed,
            tools=tuple(_chat_tool(tool) for tool in shown.tools),
            tool_choice=_chat_choice(shown.tool_choice),
            parallel_tool_calls=shown.parallel_tool_calls,
            max_tokens=None if shown.max_tokens == "inf" else int(shown.max_tokens),
            trim=shown.truncation != "disabled",
            eager=self._service.eager,
            respond=rules.get("create_response", True) is not False,
            interrupt=rules.get("interrupt_response", True) is not False,
            interrupt_by_words=rules.get("type") == "semantic_vad",
            idle_seconds=_idle_seconds(rules),
            apology=self._service.apology,
        )

    @property
    def judge(self) -> EndJudge | None:
        """What decides the end of a turn; None if the client does."""
        turns = self.recognition.input["turn_detection"]
        if not isinstance(turns, dict):
            return None
        if turns["type"] == "server_vad":
            return SilenceRule(self.recognition.stream_config.endpoint.trailing_silence)
        rules = TextRules(most_seconds=MOST_WAIT_SECONDS[turns.get("eagerness") or "auto"])
        if self._service.smart_turn is not None:
            smart = SmartTurn(self._service.smart_turn)
            return replace(smart, rules=replace(smart.rules, most_seconds=rules.most_seconds))
        return rules

    @property
    def threshold(self) -> float:
        """The probability of speech from which on sound is voice."""
        turns = self.recognition.input["turn_detection"]
        return float(turns.get("threshold") or THRESHOLD) if isinstance(turns, dict) else THRESHOLD

    def shown(self, expires_at: int) -> JsonObject:
        recognized, output = self.recognition.shown(expires_at), self.output
        return {
            "id": self.recognition.id,
            "object": "realtime.session",
            "type": "realtime",
            "model": self._service.model,
            "expires_at": expires_at,
            "output_modalities": list(output.modalities),
            "instructions": output.instructions,
            "tools": copy.deepcopy(list(output.tools)),
            "tool_choice": output.tool_choice,
            "max_output_tokens": output.max_tokens,
            "truncation": output.truncation,
            "tracing": None,
            "prompt": None,
            "audio": {
                "input": copy.deepcopy(self.recognition.input),
                "output": {
                    "format": dict(output.format),
                    "voice": output.voice,
                    "speed": output.speed,
                },
            },
            "include": recognized["include"],
        }


def _check_turns(given: Mapping[str, object]) -> None:
    """Check the fields of turn detection that only an agent has; others are checked elsewhere."""
    audio = given.get("audio")
    user = audio.get("input") if isinstance(audio, dict) else None
    turns = user.get("turn_detection") if isinstance(user, dict) else given.get("turn_detection")
    if not isinstance(turns, dict):
        return
    if (idle_ms := turns.get("idle_timeout_ms")) is not None:
        least, most = IDLE_TIMEOUTS_MS
        where = "turn_detection.idle_timeout_ms"
        if turns.get("type") == "semantic_vad":
            raise wrong(where, "needs server_vad")
        if (
            isinstance(idle_ms, bool)
            or not isinstance(idle_ms, int)
            or not least <= idle_ms <= most
        ):
            raise wrong(where, f"must be a whole number from {least} to {most}")
    value = turns.get("threshold")
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise wrong("turn_detection.threshold", "must be a number between 0 and 1")


def _idle_seconds(turns: Mapping[str, object]) -> float | None:
    idle_ms = turns.get("idle_timeout_ms")
    return idle_ms / 1000 if isinstance(idle_ms, int) else None


def _modalities(given: object, path: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not given or not set(map(str, given)) <= {"audio", "text"}:
        raise wrong(path, "must be ['audio'] or ['text']")
    return ("audio",) if "audio" in given else ("text",)


def _max_tokens(given: object, path: str) -> int | Literal["inf"]:
    if given == "inf":
        return "inf"
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= 1 << 20:
        raise wrong(path, "must be a whole number from 1, or 'inf'")
    return given


def _tools(given: object, path: str) -> tuple[JsonObject, ...]:
    if not isinstance(given, list) or len(given) > MOST_TOOLS:
        raise wrong(path, f"must be a list of at most {MOST_TOOLS} tools")
    for number, tool in enumerate(given):
        where = f"{path}[{number}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise wrong(f"{where}.type", "must be 'function'; other tools are not supported")
        if not isinstance(tool.get("name"), str) or not tool["name"]:
            raise wrong(f"{where}.name", "must be text")
        if not isinstance(tool.get("parameters") or {}, dict):
            raise wrong(f"{where}.parameters", "must be an object")
    return tuple(given)


def _tool_choice(given: object, path: str) -> object:
    if given in ("auto", "none", "required"):
        return given
    if isinstance(given, dict) and given.get("type") == "function":
        if isinstance(given.get("name"), str):
            return given
    raise wrong(path, "must be auto, none, required, or a function with its name")


def _chat_tool(tool: JsonObject) -> JsonObject:
    """A tool in the format of chat endpoints."""
    function = {key: tool[key] for key in ("name", "description", "parameters") if tool.get(key)}
    return {"type": "function", "function": function}


def _chat_choice(choice: object) -> object:
    if isinstance(choice, dict):
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice
