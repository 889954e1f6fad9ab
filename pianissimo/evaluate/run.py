"""Word error rates of a recognizer over a test set, per subset and latency mode, and its speed."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pianissimo.audio.io import AudioSource
from pianissimo.audio.manifest import manifest_rows, recording_part, seconds_in
from pianissimo.errors import ManifestError, OptionError
from pianissimo.evaluate.wer import ErrorCounts, word_errors
from pianissimo.text.normalize import normalize_for_scoring, separate_characters

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer

ALL = "all"
"""Subset name of lines without one, and of the sum over subsets."""
FAULTS_SHOWN = 20
"""Faulty lines named in an error."""


@dataclass(frozen=True)
class Reference:
    """One utterance of a test set: its audio, its text in scoring form, and its subset.

    `offset` and `duration` in seconds select a part of the file; None is its end.
    """

    path: Path
    text: str
    subset: str
    offset: float = 0.0
    duration: float | None = None

    @property
    def audio(self) -> AudioSource:
        """The file, or the selected part of it."""
        return recording_part(self.path, self.offset, self.duration)


@dataclass
class Score:
    """Errors and audio of one subset in one latency mode.

    `failed` counts recordings that could not be read; they are excluded from the other figures.
    """

    subset: str
    latency_ms: int | None
    recordings: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    errors: ErrorCounts = field(default_factory=ErrorCounts)


@dataclass(frozen=True)
class Pass:
    """One latency mode over all recordings: scores per subset, their sum, and the wall time."""

    latency_ms: int | None
    scores: tuple[Score, ...]
    total: Score
    seconds: float
    faults: tuple[str, ...]
    """The errors of failed recordings, one line each."""

    @property
    def times_realtime(self) -> float:
        """Seconds of audio per second of wall time."""
        return self.total.audio_seconds / self.seconds if self.seconds else 0.0


def read_references(manifest: Path, subsets: Sequence[str] = ()) -> list[Reference]:
    """The utterances of a manifest, or those of the named subsets.

    A line has `audio_filepath` and `text`, or `text_norm` which is preferred; `offset`, `duration`
    and `subset` are optional. Raises ManifestError listing faulty lines, and OptionError for an
    unknown subset.
    """
    references, faults = [], []
    for number, row in manifest_rows(manifest):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            references.append(_reference(row, manifest.parent))
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


def _reference(row: dict[str, Any], folder: Path) -> Reference:
    path, text, subset = row.get("audio_filepath"), row.get("text_norm"), row.get("subset", ALL)
    text = row.get("text") if text is None else text
    if not isinstance(path, str) or not isinstance(text, str) or not isinstance(subset, str):
        raise ValueError("'audio_filepath', 'text' or 'subset' is missing or not a string")
    offset, duration = seconds_in(row, "offset") or 0.0, seconds_in(row, "duration")
    if duration == 0:
        raise ValueError("'duration' must be above 0 s")
    return Reference(folder / path, scored(text), subset, offset, duration)


def scored(text: str) -> str:
    """A text in the form in which words are compared."""
    return separate_characters(normalize_for_scoring(text))


def evaluate(
    recognizer: "Recognizer",
    references: Sequence[Reference],
    *,
    latencies_ms: Iterable[int | None] = (None,),
    batch_seconds: float = 600.0,
    advance: Callable[[], None] | None = None,
) -> list[Pass]:
    """Transcribe all recordings once per latency mode and count the errors.

    Both texts are compared in scoring form; a character of a script without spaces counts as a
    word. `advance` is called after every recording. Raises
    OptionError for an unknown latency mode before anything is transcribed.
    """
    latencies = check_latencies(recognizer, latencies_ms)
    return [_one_pass(recognizer, references, ms, batch_seconds, advance) for ms in latencies]


def check_latencies(
    recognizer: "Recognizer", latencies_ms: Iterable[int | None]
) -> list[int | None]:
    """The latency modes as a list; raises OptionError for one that the model does not have."""
    latencies = list(latencies_ms)
    for latency in latencies:
        if latency is not None and latency not in recognizer.latencies_ms:
            known = ", ".join(map(str, recognizer.latencies_ms)) or "none: it does not stream"
            raise OptionError(f"latency {latency} ms is not a mode of this model ({known})")
    return latencies


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
        [reference.audio for reference in references],
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
            score.errors += word_errors(reference.text, scored(transcript.text))
        if transcript is None:
            name, message = str(reference.path), str(outcome.error)
            faults.append(message if message.startswith(name) else f"{name}: {message}")
        if advance is not None:
            advance()
    seconds = time.monotonic() - began
    return Pass(latency_ms, tuple(scores.values()), total, seconds, tuple(faults))
