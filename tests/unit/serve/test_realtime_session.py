"""Invalid settings of a realtime session, and the order of events."""

import asyncio
from typing import Any, cast

import pytest

from pianissimo.serve.dialects.openai_realtime.session import MOST_CHOICES, SessionSettings
from pianissimo.serve.dialects.openai_realtime.wire import Wire
from pianissimo.serve.dialects.sockets import Client
from pianissimo.serve.errors import Refusal
from pianissimo.serve.service import Service
from pianissimo.serve.versions.store import ModelChoice


class Models:
    """One model, whatever it is called."""

    models: dict[str, "Models"]
    latencies_ms = (80,)

    def __init__(self) -> None:
        self.models, self.store = {"m": self}, self

    def choose(self, *asked: object, **options: object) -> ModelChoice:
        return ModelChoice("m")

    def spoken(self, *asked: object) -> None: ...


def session() -> SessionSettings:
    return SessionSettings(cast(Service, Models()), {})


@pytest.mark.parametrize(
    "given",
    [
        {"input_audio_format": ["pcm16"]},
        {"input_audio_format": {}},
        {"turn_detection": {"type": "semantic_vad", "eagerness": ["low"]}},
        {"turn_detection": {"type": ["semantic_vad"]}},
        {"audio": {"input": {"format": {"type": "audio/pcm", "rate": [8000]}}}},
        {"input_audio_transcription": {"delay": ["low"]}},
        {"input_audio_transcription": {"user": ["me"]}},
    ],
)
def test_invalid_json_values_are_refused(given: dict[str, Any]) -> None:
    settings = session()
    before = settings.shown(0)
    with pytest.raises(Refusal) as refused:
        settings.update(given)
    assert refused.value.status == 400
    assert settings.shown(0) == before


def test_a_session_does_not_remember_users_without_end() -> None:
    settings = session()
    with pytest.raises(Refusal, match="another session"):
        for number in range(MOST_CHOICES):
            settings.update({"input_audio_transcription": {"user": f"user {number}"}})
    settings.update({"input_audio_transcription": {"user": "user 0"}})


def test_events_of_one_cause_stay_together() -> None:
    """Also where the socket makes each message wait."""
    told: list[str] = []

    class Slow:
        async def send(self, message: dict[str, Any]) -> None:
            await asyncio.sleep(0)
            told.append(message["type"])

    async def talk() -> None:
        wire = Wire(cast(Client, Slow()))
        async with asyncio.TaskGroup() as group:
            for name in "ab":
                group.create_task(wire.emit([{"type": f"{name}{i}"} for i in range(3)]))

    asyncio.run(talk())
    assert told == ["a0", "a1", "a2", "b0", "b1", "b2"]
