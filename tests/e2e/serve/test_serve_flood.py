"""Floods of valid messages from one client: a polite one gets its answers as before."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Server, serving

from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings

ATTACK = Path(__file__).parents[3] / "bench" / "attack.py"
sys.path.insert(0, str(ATTACK.parent))
import attack  # noqa: E402

SECONDS = 4.0
FLOODS = [name for name in attack.ATTACKS if name != "audio"]


@pytest.fixture(scope="module")
def flooded(embedded: NativeRecognizer) -> Iterator[Server]:
    with serving(embedded, Settings(linger_seconds=0.1)) as server:
        yield server


@pytest.fixture(scope="module")
def calm(flooded: Server) -> float:
    """The median time to a final without a flood, in seconds."""
    attack.polite(flooded.port, 1.0)
    return statistics.median(attack.polite(flooded.port, SECONDS))


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_leaves_a_polite_client_its_answers(
    flooded: Server, calm: float, name: str
) -> None:
    """Within two times calm, and 50 ms that the attacker's own process takes of two processors."""
    command = [sys.executable, str(ATTACK), "--attack", name, "--port", str(flooded.port)]
    hostile = subprocess.Popen([*command, "--seconds", str(2 * SECONDS)])
    try:
        time.sleep(1.0)
        attacked = attack.polite(flooded.port, SECONDS)
    finally:
        hostile.kill()
        hostile.wait()
    assert len(attacked) >= 5, f"{len(attacked)} answers in {SECONDS:g} s"
    assert statistics.median(attacked) <= 2 * calm + 0.05
    flooded.wait_until_empty(60.0)
