"""How much speech a voice detector in front of a recognizer would discard.

The clips go through several gates: a common one (threshold 0.5, before the gain), one with a lower
threshold, that one after the gain, and that one with the additional energy criterion.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.level import Samples
from pianissimo.audio.vad import PRESETS, SpeechModel, VadOptions, segments
from pianissimo.evaluate.quietbench.clips import BenchClip

FILE = "gates.json"
_NORMAL = PRESETS["normal"]


@dataclass(frozen=True)
class Gate:
    """A detector in front of a recognizer; `leveled` if it runs after the gain."""

    name: str
    options: VadOptions
    leveled: bool


GATES = (
    Gate("0.5", replace(_NORMAL, onset=0.5, offset=0.35, energy_db=None), False),
    Gate("0.3", replace(_NORMAL, energy_db=None), False),
    Gate("0.3 after gain", replace(_NORMAL, energy_db=None), True),
    Gate("normal after gain", _NORMAL, True),
)


@dataclass(frozen=True)
class Kept:
    """What one gate keeps of one group of clips."""

    gate: str
    group: str
    clips: int
    share: float
    """Share of the time that is kept, margins included."""
    lost: int
    """Clips of which nothing is kept."""


def known_or_measured(
    clips: Sequence[BenchClip],
    model: SpeechModel,
    folder: Path,
    advance: Callable[[], None] | None = None,
) -> list[Kept]:
    """The results of `measure_gates`, read from `folder` if it holds those of the same clips."""
    sums = "".join(clip.id + clip.sha256 for clip in clips)
    key = hashlib.sha256(f"{GATES}{sums}".encode()).hexdigest()
    path = folder / FILE
    try:
        stored = json.loads(path.read_text("utf-8"))
        if stored["clips"] == key:
            return [Kept(**row) for row in stored["kept"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no file, or of another version: measure
    kept = measure_gates(clips, model, advance)
    rows = [asdict(one) for one in kept]
    path.write_text(json.dumps({"clips": key, "kept": rows}, indent=1) + "\n", "utf-8")
    return kept


def measure_gates(
    clips: Sequence[BenchClip], model: SpeechModel, advance: Callable[[], None] | None = None
) -> list[Kept]:
    """Run all gates over all 16-bit clips with speech, group by group."""
    front_end = FrontEnd("on")
    groups: dict[str, list[BenchClip]] = {}
    for clip in clips:
        if clip.text and not clip.group.endswith(" float"):
            groups.setdefault(clip.group, []).append(clip)
    kept = []
    for group, members in groups.items():
        spans: list[list[float]] = [[] for _ in GATES]
        for clip in members:
            raw = clip.samples()
            loud = front_end.whole(raw).samples
            for gate, seconds in zip(GATES, spans, strict=True):
                seconds.append(_speech_seconds(loud if gate.leveled else raw, gate, model))
            if advance is not None:
                advance()
        total = sum(clip.seconds for clip in members)
        for gate, seconds in zip(GATES, spans, strict=True):
            lost = sum(not s for s in seconds)
            kept.append(Kept(gate.name, group, len(members), sum(seconds) / total, lost))
    return kept


def _speech_seconds(samples: Samples, gate: Gate, model: SpeechModel) -> float:
    return sum(span.end - span.start for span in segments(samples, gate.options, model))
