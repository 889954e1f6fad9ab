"""The clips of a benchmark: built from clean speech, kept as files with their record.

Clips that exist, by recipe and checksum, are not built again, so an interrupted run resumes. Audio
is built locally and never shipped.
"""

import json
import os
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pianissimo.audio.io import SAMPLE_RATE, load_audio
from pianissimo.audio.manifest import manifest_rows, recording_part, seconds_in
from pianissimo.errors import AudioError, ManifestError, OptionError
from pianissimo.evaluate.quietbench.scenarios import (
    NON_SPEECH,
    RECIPE_VERSION,
    SCENARIOS,
    SWEEP_LEVELS_DB,
    Built,
    Scenario,
    at_sweep_level,
    build,
    build_non_speech,
    seed_of,
)

MIN_SECONDS, MAX_SECONDS = 0.6, 20.0
_BABBLE_VOICES = 16


@dataclass(frozen=True)
class Source:
    """Clean speech and its text; `offset` and `duration` in seconds select a part of the file."""

    id: str
    path: Path
    text: str
    speaker: str
    language: str
    subset: str = ""
    offset: float = 0.0
    duration: float | None = None

    def samples(self) -> npt.NDArray[np.float32]:
        """The samples (n,) at 16 kHz."""
        return load_audio(recording_part(self.path, self.offset, self.duration))


@dataclass(frozen=True)
class BenchClip:
    """One recording of the benchmark: a file of 16 bits at 16 kHz, or of float for the sweep."""

    id: str
    group: str
    """The scenario, "nonspeech", or "sweep -45 int16"."""
    path: Path
    text: str
    speaker: str
    language: str
    seconds: float
    sha256: str
    record: dict[str, Any] = field(default_factory=dict, compare=False)

    def samples(self) -> npt.NDArray[np.float32]:
        """The samples (n,) that a recognizer gets."""
        return load_audio(self.path)


def read_sources(manifest: Path, subsets: Sequence[str] = ()) -> list[Source]:
    """Recordings of 0.6 to 20 s from a manifest: JSON lines with audio_filepath and text.

    Raises ManifestError for a manifest that cannot be read or has none, OptionError for a subset
    that it does not have.
    """
    everything = []
    for number, row in manifest_rows(manifest):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            everything.append(_source(row, manifest.parent))
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(
                f"manifest {manifest} is not usable, line {number} ({type(error).__name__}: "
                f"{error}); expected JSON lines with audio_filepath and text"
            ) from error
    known = sorted({source.subset for source in everything})
    for subset in subsets:
        if subset not in known:
            raise OptionError(f"{manifest} has no subset {subset!r}, only {', '.join(known)}")
    chosen = [
        source
        for source in everything
        if (not subsets or source.subset in subsets)
        and (source.duration is None or MIN_SECONDS <= source.duration <= MAX_SECONDS)
        and not any(character.isdigit() for character in source.text)
        and source.text.strip()
    ]
    if not chosen:
        raise ManifestError(
            f"manifest {manifest} has no recording of {MIN_SECONDS} to {MAX_SECONDS} s with a text "
            "without digits"
        )
    return chosen


def _source(row: dict[str, Any], folder: Path) -> Source:
    name = str(row["audio_filepath"])
    text = row.get("text_norm")
    offset = seconds_in(row, "offset") or 0.0
    return Source(
        id=f"{Path(name).stem}-{offset:g}" if offset else Path(name).stem,
        path=folder / name,
        text=str(row["text"] if text is None else text),
        speaker=str(row.get("speaker", name)),
        language=str(row.get("lang", row.get("language", "en"))),
        subset=str(row.get("subset", "")),
        offset=offset,
        duration=seconds_in(row, "duration"),
    )


def bundled_sources(folder: Path) -> list[Source]:
    """The example clips of the repository, with synthetic voices: enough for a trial run."""
    try:
        texts = json.loads((folder / "clips.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(
            f"there is no manifest and no example clips in {folder} ({error}); "
            "name a manifest of clean speech with --speech"
        ) from error
    return [
        Source(Path(name).stem, folder / name, text, Path(name).stem, "en", "examples")
        for name, text in texts.items()
    ]


def choose(sources: Sequence[Source], count: int, seed: int) -> list[Source]:
    """Draw `count` sources by `seed`, one speaker after the other; all if there are fewer."""
    rng = random.Random(seed)
    by_speaker: dict[str, list[Source]] = {}
    for source in sorted(sources, key=lambda source: source.id):
        by_speaker.setdefault(source.speaker, []).append(source)
    queues = list(by_speaker.values())
    for queue in queues:
        rng.shuffle(queue)
    rng.shuffle(queues)
    chosen: list[Source] = []
    while queues and len(chosen) < count:
        queues = [queue for queue in queues if queue]
        chosen += [queue.pop() for queue in queues]
    return chosen[:count]


@dataclass(frozen=True)
class Job:
    """A clip to build: its id, its group, its source of speech, and how to build it."""

    id: str
    group: str
    source: Source | None
    make: Callable[[], Built]


@dataclass(frozen=True)
class Suite:
    """The clips to build: scenarios and level sweep over `sources`, and clips without speech."""

    sources: tuple[Source, ...]
    seed: int = 1
    non_speech: int = 16
    sweep: int = 6
    """Number of sources in the level sweep."""
    scenarios: tuple[Scenario, ...] = SCENARIOS

    def jobs(self) -> Iterator["Job"]:
        """Every clip, in a fixed order."""
        for scenario in self.scenarios:
            for source in self.sources:
                seed = seed_of(self.seed, scenario.name, source.id)
                make = partial(_build, source, scenario, seed)
                yield Job(f"{scenario.name}/{source.id}", scenario.name, source, make)
        for i in range(self.non_speech):
            kind = NON_SPEECH[i % len(NON_SPEECH)]
            name = f"nonspeech/{kind.replace(' ', '')}-{i // len(NON_SPEECH)}"
            yield Job(name, "nonspeech", None, partial(self._non_speech, kind, name))
        for level in SWEEP_LEVELS_DB:
            scenario = at_sweep_level(SCENARIOS[0], level)
            for form in ("int16", "float"):
                group = f"sweep {level:g} {form}"
                for source in self.sources[: self.sweep]:
                    seed = seed_of(self.seed, "sweep", source.id)
                    make = partial(_build, source, scenario, seed, quantized=form == "int16")
                    yield Job(f"sweep{level:g}{form}/{source.id}", group, source, make)

    def _non_speech(self, kind: str, name: str) -> Built:
        return build_non_speech(kind, self._voices(), seed_of(self.seed, name))

    def _voices(self) -> list[npt.NDArray[np.float64]]:
        return [source.samples().astype(np.float64) for source in self.sources[:_BABBLE_VOICES]]


def make_clips(
    plan: Suite, folder: Path, advance: Callable[[], None] | None = None
) -> tuple[list[BenchClip], list[str]]:
    """Build missing clips in `folder`; return all clips, and the errors of those that failed.

    The level sweep has two forms: float and 16 bits. Raises MissingExtraError without
    pyroomacoustics, OptionError if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"the folder {folder} cannot be created: {error.strerror}") from error
    clips: list[BenchClip] = []
    faults: list[str] = []
    for job in plan.jobs():
        path = folder / f"{job.id.replace('/', '--')}.wav"
        record = _read_record(path)
        if record is None or record.get("seed") != plan.seed:
            try:
                built = job.make()
            except AudioError as error:
                faults.append(f"{job.id}: {error}")
                continue
            record = _keep(built, path, plan.seed)
        clips.append(_clip(job, path, record))
        if advance is not None:
            advance()
    return clips, faults


def _build(
    source: Source, scenario: Scenario, seed: tuple[int, ...], *, quantized: bool = True
) -> Built:
    return build(source.samples(), scenario, seed, quantized=quantized)


def _clip(job: Job, path: Path, record: dict[str, Any]) -> BenchClip:
    source = job.source
    return BenchClip(
        id=job.id,
        group=job.group,
        path=path,
        text="" if source is None else source.text,
        speaker=job.id if source is None else source.speaker,
        language="en" if source is None else source.language,
        seconds=float(record["seconds"]),
        sha256=str(record["sha256"]),
        record=record,
    )


def _read_record(path: Path) -> dict[str, Any] | None:
    """The record of a clip if it and the audio are complete and of this recipe version."""
    try:
        record: dict[str, Any] = json.loads(path.with_suffix(".json").read_text("utf-8"))
        whole = record["recipe"] == RECIPE_VERSION and path.stat().st_size == record["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def _keep(built: Built, path: Path, seed: int) -> dict[str, Any]:
    """Write the audio, then the record, which marks both as complete."""
    import soundfile

    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    subtype = "PCM_16" if built.samples.dtype == np.int16 else "FLOAT"
    soundfile.write(draft, built.samples, SAMPLE_RATE, format="WAV", subtype=subtype)
    record = {
        **built.measured,
        "seed": seed,
        "seconds": len(built.samples) / SAMPLE_RATE,
        "sha256": built.sha256,
        "bytes": draft.stat().st_size,
    }
    os.replace(draft, path)
    draft.write_text(json.dumps(record), "utf-8")
    os.replace(draft, path.with_suffix(".json"))
    return record


def write_manifest(clips: Sequence[BenchClip], path: Path) -> None:
    """Write one JSON line per clip: id, source, seed, levels and SHA-256."""
    lines = []
    for clip in clips:
        row = asdict(clip)
        record = row.pop("record")
        lines.append(json.dumps({**record, **row, "path": clip.path.name}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n", "utf-8")
