"""Pianissimo: speech recognition that is live and hears quiet speech, and speech synthesis.

    import pianissimo
    recognizer = pianissimo.load()
    print(recognizer.transcribe("meeting.mp3").text)
    samples = pianissimo.load_voice().speak("Seven streams at once.")

The names below load on first use, so that importing the package costs no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from pianissimo.decoding.hotwords import Phrase
    from pianissimo.decoding.search import Decoding
    from pianissimo.diarization.options import Diarization
    from pianissimo.engine.engine import Engine, EngineOptions
    from pianissimo.errors import PianissimoError
    from pianissimo.protocols import Recognizer, Stream, StreamRecognizer, Synthesizer
    from pianissimo.streaming.endpoint import EndpointRules, OnsetRules, WatchdogRules
    from pianissimo.text.turns import Turn
    from pianissimo.transcript import Segment, StreamEvent, Transcript, Word
    from pianissimo.zoo.load import load
    from pianissimo.zoo.voices import load_voice

_HOMES = {
    "Decoding": "decoding.search",
    "Diarization": "diarization.options",
    "EndpointRules": "streaming.endpoint",
    "OnsetRules": "streaming.endpoint",
    "Engine": "engine.engine",
    "EngineOptions": "engine.engine",
    "Phrase": "decoding.hotwords",
    "PianissimoError": "errors",
    "Recognizer": "protocols",
    "Segment": "transcript",
    "Stream": "protocols",
    "StreamEvent": "transcript",
    "StreamRecognizer": "protocols",
    "Synthesizer": "protocols",
    "WatchdogRules": "streaming.endpoint",
    "Transcript": "transcript",
    "Turn": "text.turns",
    "Word": "transcript",
    "load": "zoo.load",
    "load_voice": "zoo.voices",
}

__all__ = [
    "Decoding",
    "Diarization",
    "EndpointRules",
    "Engine",
    "EngineOptions",
    "OnsetRules",
    "Phrase",
    "PianissimoError",
    "Recognizer",
    "Segment",
    "Stream",
    "StreamEvent",
    "StreamRecognizer",
    "Synthesizer",
    "Transcript",
    "Turn",
    "WatchdogRules",
    "Word",
    "load",
    "load_voice",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
