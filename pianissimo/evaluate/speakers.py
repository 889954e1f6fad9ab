"""Diarization over a test set: error rates, numbers of speakers, and words by speaker."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pianissimo.audio.io import AudioSource, read_blocks
from pianissimo.audio.manifest import manifest_rows, recording_part, seconds_in
from pianissimo.diarization.options import Diarization
from pianissimo.diarization.sources import turn_source
from pianissimo.errors import ManifestError, OptionError, PianissimoError
from pianissimo.evaluate.diarization import (
    COLLAR_SECONDS,
    TurnErrors,
    attributed_word_errors,
    jaccard_error,
    turn_errors,
)
from pianissimo.evaluate.wer import ErrorCounts
from pianissimo.text.normalize import normalize_for_scoring
from pianissimo.text.rttm import read_rttm
from pianissimo.text.turns import Turn
from pianissimo.transcript import Transcript

if TYPE_CHECKING:
    from pianissimo.protocols import Recognizer

FAULTS_SHOWN = 20
"""Faulty lines named in an error."""


@dataclass(frozen=True)
class Conversation:
    """One recording of a test set: its audio, its turns, and what each speaker says if known."""

    path: Path
    audio: AudioSource
    turns: tuple[Turn, ...]
    words: dict[str, str] = field(default_factory=dict)


@dataclass
class SpeakerScore:
    """Errors over the recordings of a test set; DER without and with the usual collar."""

    recordings: int = 0
    exact: TurnErrors = field(default_factory=TurnErrors)
    collar: TurnErrors = field(default_factory=TurnErrors)
    jaccard: float = 0.0
    """The sum of JER over the recordings."""
    right_number: int = 0
    """Recordings for which the number of speakers is right."""
    words: ErrorCounts = field(default_factory=ErrorCounts)
    audio_seconds: float = 0.0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    """Errors of recordings that cannot be read, one line each."""


def read_conversations(manifest: Path) -> list[Conversation]:
    """The recordings of a manifest with `audio_filepath` and `rttm_filepath` in each line.

    `segments`, a list of objects with `speaker` and `text`, is what is said; `offset` and
    `duration` are optional. An RTTM file may hold several recordings: then the one named like the
    audio counts. Raises ManifestError listing faulty lines.
    """
    conversations, faults = [], []
    for number, row in manifest_rows(manifest):
        try:
            if isinstance(row, str):
                raise ValueError(row)
            conversations.append(_conversation(row, manifest.parent))
        except (ValueError, ManifestError) as error:
            faults.append(f"line {number}: {error}")
    if faults or not conversations:
        shown = "\n  ".join(faults[:FAULTS_SHOWN]) or "it has no lines"
        raise ManifestError(f"manifest {manifest} has no usable conversations:\n  {shown}")
    return conversations


def _conversation(row: dict[str, Any], folder: Path) -> Conversation:
    audio, rttm = row.get("audio_filepath"), row.get("rttm_filepath")
    if not isinstance(audio, str) or not isinstance(rttm, str):
        raise ValueError("'audio_filepath' or 'rttm_filepath' is missing or not a string")
    recordings = read_rttm(folder / rttm)
    name = "_".join(Path(audio).stem.split())
    if len(recordings) > 1 and name not in recordings:
        raise ValueError(f"{rttm} holds {len(recordings)} recordings, none of them named {name}")
    turns = recordings[name] if name in recordings else [t for r in recordings.values() for t in r]
    words: dict[str, list[str]] = {}
    for segment in row.get("segments") or ():
        if isinstance(segment, dict) and segment.get("text") and segment.get("speaker") is not None:
            words.setdefault(str(segment["speaker"]), []).append(str(segment["text"]))
    offset, duration = seconds_in(row, "offset") or 0.0, seconds_in(row, "duration")
    path = folder / audio
    said = {name: normalize_for_scoring(" ".join(texts)) for name, texts in words.items()}
    return Conversation(path, recording_part(path, offset, duration), tuple(turns), said)


def evaluate_speakers(
    conversations: Sequence[Conversation],
    diarization: Diarization,
    recognizer: "Recognizer | None" = None,
    *,
    advance: Callable[[], None] | None = None,
) -> SpeakerScore:
    """Diarize all recordings and count the errors; with a `recognizer` also those of the words.

    Raises OptionError for channels, whose labels are the reference itself.
    """
    if diarization.by != "voices":
        raise OptionError("channels need no evaluation: the speaker of a channel is given")
    score, began = SpeakerScore(), time.monotonic()
    for conversation in conversations:
        try:
            found = _diarized(conversation, diarization, recognizer)
        except PianissimoError as error:
            message, name = str(error), str(conversation.path)
            score.faults.append(message if message.startswith(name) else f"{name}: {message}")
        else:
            _count(score, conversation, found)
        if advance is not None:
            advance()
    score.seconds = time.monotonic() - began
    return score


def _diarized(
    conversation: Conversation, diarization: Diarization, recognizer: "Recognizer | None"
) -> Transcript:
    if recognizer is not None:
        return recognizer.transcribe(conversation.audio, diarize=diarization)
    source, samples = turn_source(diarization), 0
    for block in read_blocks(conversation.audio):
        source.push(block)
        samples += len(block)
    return Transcript("", (), (), None, samples / 16_000, "", turns=source.finish())


def _count(score: SpeakerScore, conversation: Conversation, found: Transcript) -> None:
    turns = found.turns or ()
    score.recordings += 1
    score.audio_seconds += found.duration
    score.exact += turn_errors(conversation.turns, turns)
    score.collar += turn_errors(conversation.turns, turns, collar=COLLAR_SECONDS)
    score.jaccard += jaccard_error(conversation.turns, turns)
    speakers = {turn.speaker for turn in conversation.turns}
    score.right_number += len(speakers) == len(found.speakers)
    if conversation.words:
        said: dict[str, list[str]] = {}
        for word in found.words:
            said.setdefault(word.speaker or "", []).append(word.text)
        texts = {name: normalize_for_scoring(" ".join(words)) for name, words in said.items()}
        score.words += attributed_word_errors(conversation.words, texts)
