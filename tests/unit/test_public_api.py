"""What the package promises: its names, and that importing it costs next to nothing."""

import subprocess
import sys

import pytest

import pianissimo

NAMES = [
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
HEAVY = tuple("torch numpy av soundfile huggingface_hub onnxruntime hibari rich.table".split())


def test_the_public_names_are_these() -> None:
    assert pianissimo.__all__ == NAMES
    assert set(NAMES) <= set(dir(pianissimo))
    run(f"import pianissimo; [getattr(pianissimo, name) for name in {NAMES}]")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pianissimo.nonsense


def test_the_names_do_not_depend_on_what_was_imported_before() -> None:
    imports = "; ".join(f"import pianissimo.{home}" for home in set(pianissimo._HOMES.values()))
    run(f"{imports}; import inspect; assert inspect.isfunction(pianissimo.load)")


@pytest.mark.parametrize("module", ["pianissimo", "pianissimo.cli", "pianissimo.errors"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    loaded = run(f"import {module}, sys; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert loaded.strip() == ""


def run(code: str) -> str:
    """What that code prints in a fresh interpreter."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
