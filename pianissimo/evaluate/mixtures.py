"""Conversations made of single recordings: real people, known turns, the same bits every time.

    voices = read_voices(Path("manifest.jsonl"))
    mixture = mix(voices, MixtureOptions(speakers=3, seconds=600), seed=1)

Speakers take turns at random. A turn is a recording of that speaker, or a part of one. It follows
the turn before after a gap, or begins before its end, so that the asked share of speech overlaps.
A speaker with little material repeats it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pianissimo.audio.io import SAMPLE_RATE, AudioSource, Samples, load_audio
from pianissimo.audio.level import measure_levels
from pianissimo.audio.manifest import manifest_rows, recording_part, seconds_in
from pianissimo.diarization.speech import SpeechPieces
from pianissimo.errors import ManifestError, OptionError
from pianissimo.text.turns import Turn

LEVEL_DB = -26.0
FAULTS_SHOWN = 20
"""Faulty lines named in an error."""


@dataclass(frozen=True)
class MixtureOptions:
    """What a conversation is like; times in seconds.

    `overlap` is the share of speech that two people say at once. `turn_seconds` bounds the length
    of a turn, which is then a part of a recording without a known text; None takes whole
    recordings. `level_db` is how far a speaker's level may be from the others' at most.
    """

    speakers: int = 2
    seconds: float = 60.0
    overlap: float = 0.1
    gap_seconds: tuple[float, float] = (0.1, 0.7)
    overlap_seconds: tuple[float, float] = (0.4, 1.2)
    turn_seconds: tuple[float, float] | None = (2.0, 5.0)
    level_db: float = 4.0

    def __post_init__(self) -> None:
        if self.speakers < 1 or not self.seconds > 0 or not 0 <= self.overlap < 0.5:
            raise OptionError(
                "a mixture has 1 speaker or more, more than 0 s and an overlap from 0 to 0.5, not "
                f"{self.speakers}, {self.seconds} and {self.overlap}"
            )


@dataclass(frozen=True)
class Utterance:
    """What a speaker says in one turn: times of the mixture, and the text if it is known."""

    start: float
    end: float
    speaker: str
    text: str | None


@dataclass(frozen=True)
class Mixture:
    """A conversation (n,) at 16 kHz, its turns as a voice detector finds them in the single
    recordings, and its utterances."""

    samples: Samples
    turns: tuple[Turn, ...]
    utterances: tuple[Utterance, ...]


Voices = Mapping[str, Sequence[tuple[AudioSource, str]]]
"""Speaker -> recordings, each with its text."""


def read_voices(manifest: Path, subsets: Sequence[str] = ()) -> Voices:
    """The recordings of each speaker of a manifest, or of the named subsets.

    A line has `audio_filepath`, `speaker` and `text`; `text_norm` is preferred to `text`, `subset`,
    `offset` and `duration` are optional. Raises ManifestError for faulty lines.
    """
    voices: dict[str, list[tuple[AudioSource, str]]] = {}
    faults = []
    for number, row in manifest_rows(manifest):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            path, speaker = row.get("audio_filepath"), row.get("speaker")
            text = row.get("text_norm") or row.get("text") or ""
            if not isinstance(path, str) or not isinstance(speaker, str | int):
                raise ValueError("'audio_filepath' or 'speaker' is missing")
            if subsets and row.get("subset") not in subsets:
                continue
            offset, duration = seconds_in(row, "offset") or 0.0, seconds_in(row, "duration")
            audio = recording_part(manifest.parent / path, offset, duration)
            voices.setdefault(f"{row.get('subset', '')}/{speaker}", []).append((audio, str(text)))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults or not voices:
        shown = "\n  ".join(faults[:FAULTS_SHOWN]) or "no line has a speaker of these subsets"
        raise ManifestError(f"manifest {manifest} holds no voices:\n  {shown}")
    return voices


def mix(voices: Voices, options: MixtureOptions, *, seed: int) -> Mixture:
    """A conversation of speakers drawn from `voices`; the same seed gives the same one.

    Raises OptionError if there are fewer speakers, and the errors of `load_audio`.
    """
    if len(voices) < options.speakers:
        raise OptionError(f"{len(voices)} voices cannot make {options.speakers} speakers")
    rng = np.random.default_rng(seed)
    names = sorted(voices)
    drawn = [names[i] for i in rng.choice(len(names), options.speakers, replace=False)]
    levels = {name: LEVEL_DB + rng.uniform(-1, 1) * options.level_db for name in drawn}
    decks: dict[str, list[int]] = {name: [] for name in drawn}
    total = round(options.seconds * SAMPLE_RATE)
    mixed = np.zeros(total, np.float32)
    turns: list[Turn] = []
    utterances: list[Utterance] = []
    end, spoken, overlapped, last = 0, 1e-9, 0.0, ""
    while True:
        # Everyone speaks once before anyone is drawn freely; no one follows himself.
        fresh = [n for n in drawn if all(u.speaker != n for u in utterances)]
        others = fresh or [n for n in drawn if n != last] or drawn
        speaker = others[rng.integers(len(others))]
        if not decks[speaker]:
            decks[speaker] = list(rng.permutation(len(voices[speaker])))
        audio, text = voices[speaker][decks[speaker].pop()]
        samples = load_audio(audio)
        whole = options.turn_seconds is None
        if options.turn_seconds is not None:
            samples = _part(samples, rng.uniform(*options.turn_seconds), rng)
        gain_db = levels[speaker] - measure_levels(samples).speech_db
        samples = samples * np.float32(10 ** (np.clip(gain_db, -40, 40) / 20))
        speech = _speech(samples)
        start = end + round(rng.uniform(*options.gap_seconds) * SAMPLE_RATE)
        if turns and overlapped / spoken < options.overlap and speaker != last:
            most = min(rng.uniform(*options.overlap_seconds), len(samples) / SAMPLE_RATE / 2)
            start = max(0, end - round(most * SAMPLE_RATE))
            overlapped += (end - start) / SAMPLE_RATE
        if start + len(samples) > total:
            break
        mixed[start : start + len(samples)] += samples
        at = start / SAMPLE_RATE
        turns += [Turn(at + first, at + stop, speaker) for first, stop in speech]
        spoken += sum(stop - first for first, stop in speech)
        end, last = start + len(samples), speaker
        utterances.append(Utterance(at, end / SAMPLE_RATE, speaker, text if whole else None))
    if not utterances:
        raise OptionError(
            f"no recording fits into a mixture of {options.seconds} s; make it longer"
        )
    turns.sort(key=lambda turn: turn.start)
    return Mixture(mixed[:end], tuple(turns), tuple(utterances))


def _part(samples: Samples, seconds: float, rng: np.random.Generator) -> Samples:
    """A part of a recording of at most that length, with its edges faded over 10 ms."""
    size = round(seconds * SAMPLE_RATE)
    if len(samples) <= size:
        return samples
    first = int(rng.integers(len(samples) - size))
    part = samples[first : first + size].copy()
    ramp = np.linspace(0, 1, SAMPLE_RATE // 100, dtype=np.float32)
    part[: len(ramp)] *= ramp
    part[-len(ramp) :] *= ramp[::-1]
    return part


def _speech(samples: Samples) -> list[tuple[float, float]]:
    """The stretches of speech in a single recording, in seconds."""
    pieces = SpeechPieces()
    found = [*pieces.push(samples), *pieces.finish()]
    return [(start, min(end, len(samples) / SAMPLE_RATE)) for start, end, _ in found]
