"""A recognizer over a test set: word errors per subset and latency mode, and the time it takes."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pianissimo.errors import ManifestError, OptionError
from pianissimo.evaluate.wer import ErrorCounts, word_errors
from pianissimo.text.normalize import normalize_for_scoring

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer

ALL = "all"
"""The name under which a manifest without subsets, and the sum over subsets, is reported."""
FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Reference:
    """One recording of a test set: where it is, what is said in it, in scoring form, its subset."""

    path: Path
    text: str
    subset: str


@dataclass
class Score:
    """What a recognizer made of one subset at one latency mode.

    `failed` counts recordings that could not be read; their words are in no other number.
    """

    subset: str
    latency_ms: int | None
    recordings: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    errors: ErrorCounts = field(default_factory=ErrorCounts)


@dataclass(frozen=True)
class Pass:
    """One latency mode over all recordings: its scores, the sum of them, and the wall time."""

    latency_ms: int | None
    scores: tuple[Score, ...]
    total: Score
    seconds: float
    faults: tuple[str, ...]
    """What was wrong with the recordings that failed, one line each."""

    @property
    def times_realtime(self) -> float:
        """Seconds of audio per second of wall time."""
        return self.total.audio_seconds / self.seconds if self.seconds else 0.0


def read_references(manifest: Path, subsets: Sequence[str] = ()) -> list[Reference]:
    """The recordings of a manifest, or those of the named subsets.

    A manifest is NeMo's: a JSON object a line with `audio_filepath` (relative to the manifest) and
    `text`, or `text_norm` which is preferred; `subset` is optional. Raises ManifestError listing
    faulty lines, and OptionError for a subset it does not have.
    """
    try:
        # Windows' editors put a mark before the first letter.
        lines = manifest.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ManifestError(f"manifest {manifest} cannot be read: {reason}") from error
    references, faults = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            references.append(_reference(json.loads(line), manifest.parent))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults or not references:
        shown = "\n  ".join(faults[:FAULTS_SHOWN]) or "it has no lines"
        more = f"\n  and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise ManifestError(f"manifest {manifest} is not usable:\n  {shown}{more}")
    known = sorted({reference.subset for reference in references})
    for subset in subsets:
        if subset not in known:
            raise OptionError(f"{manifest} has no subset {subset!r}, only {', '.join(known)}")
    return [r for r in references if not subsets or r.subset in subsets]


def _reference(row: Any, folder: Path) -> Reference:
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    path, text, subset = row.get("audio_filepath"), row.get("text_norm"), row.get("subset", ALL)
    text = row.get("text") if text is None else text
    if not isinstance(path, str) or not isinstance(text, str) or not isinstance(subset, str):
        raise ValueError("'audio_filepath', 'text' or 'subset' is missing or not a text")
    if row.get("offset"):
        raise ValueError("'offset' is set, but recordings are scored whole: cut them first")
    return Reference(folder / path, normalize_for_scoring(text), subset)


def evaluate(
    recognizer: "Recognizer",
    references: Sequence[Reference],
    *,
    latencies_ms: Iterable[int | None] = (None,),
    batch_seconds: float = 600.0,
    advance: Callable[[], None] | None = None,
) -> list[Pass]:
    """Transcribe all recordings once per latency mode and count the errors.

    Both texts are compared in scoring form. `advance` is called after every recording. Raises
    OptionError for a latency the model does not have, before anything is transcribed.
    """
    latencies = list(latencies_ms)
    for latency in latencies:
        if latency is not None and latency not in recognizer.latencies_ms:
            known = ", ".join(map(str, recognizer.latencies_ms)) or "none: it does not stream"
            raise OptionError(f"latency {latency} ms is not a mode of this model ({known})")
    return [_one_pass(recognizer, references, ms, batch_seconds, advance) for ms in latencies]


def _one_pass(
    recognizer: "Recognizer",
    references: Sequence[Reference],
    latency_ms: int | None,
    batch_seconds: float,
    advance: Callable[[], None] | None,
) -> Pass:
    scores = {r.subset: Score(r.subset, latency_ms) for r in references}
    total, faults = Score(ALL, latency_ms), []
    began = time.monotonic()
    outcomes = recognizer.outcomes(
        [reference.path for reference in references],
        batch_seconds=batch_seconds,
        latency_ms=latency_ms,
        word_timestamps=False,
    )
    for outcome in outcomes:
        reference, transcript = references[outcome.index], outcome.transcript
        for score in (scores[reference.subset], total):
            score.recordings += 1
            if transcript is None:
                score.failed += 1
                continue
            score.audio_seconds += transcript.duration
            score.errors += word_errors(reference.text, normalize_for_scoring(transcript.text))
        if transcript is None:
            name, message = str(reference.path), str(outcome.error)
            faults.append(message if message.startswith(name) else f"{name}: {message}")
        if advance is not None:
            advance()
    seconds = time.monotonic() - began
    return Pass(latency_ms, tuple(scores.values()), total, seconds, tuple(faults))
