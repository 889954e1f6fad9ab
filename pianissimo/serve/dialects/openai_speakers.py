"""Speakers in OpenAI's REST interface: `diarized_json`, and references of known speakers."""

import base64
import binascii
import re
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np

from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.diarization.options import Diarization
from pianissimo.serve.audio_in.decode import Decoders, Upload
from pianissimo.serve.dialects.openai_fields import usage
from pianissimo.serve.errors import Refusal
from pianissimo.transcript import Segment, Transcript

DIARIZED = "diarized_json"
MOST_KNOWN = 4
LONGEST_REFERENCE_SECONDS = 30.0
"""OpenAI takes 2 to 10 s; what is longer is cut."""
NAMES, REFERENCES = "known_speaker_names", "known_speaker_references"
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.I)
_LETTERS = 26


def is_diarizing(model: str | None) -> bool:
    """Whether a model name asks for speakers, such as gpt-4o-transcribe-diarize."""
    return bool(model and model.lower().endswith("-diarize"))


def check_known(names: Sequence[str], references: Sequence[str]) -> None:
    """Raises Refusal unless each known speaker has a name and a reference."""
    if len(names) != len(references) or len(set(names)) != len(names) or not all(names):
        raise Refusal(
            400,
            f"{len(names)} {NAMES} and {len(references)} {REFERENCES}: send a different name and "
            "one data URL for each known speaker, in the same order",
            "invalid_value",
            NAMES,
        )
    if len(names) > MOST_KNOWN:
        raise Refusal(
            400, f"at most {MOST_KNOWN} known speakers, not {len(names)}", "invalid_value", NAMES
        )


async def diarization(
    decoders: Decoders, names: Sequence[str], references: Sequence[str]
) -> Diarization:
    """What is asked: speakers by voice, with the known ones.

    Raises Refusal for a reference that is no data URL, and AudioError for one without audio.
    """
    voices: dict[str, Samples] = {}
    for name, reference in zip(names, references, strict=True):
        head = _DATA_URL.match(reference)
        try:
            data = base64.b64decode(reference[head.end() :], validate=True) if head else b""
        except (binascii.Error, ValueError):
            data = b""
        if not data:
            raise Refusal(
                400,
                f"the reference of {name[:60]!r} must be a data URL with audio in base64",
                "invalid_value",
                REFERENCES,
            )
        voices[name] = await _decoded(decoders, data)
    return Diarization(voices=voices)


async def _decoded(decoders: Decoders, data: bytes) -> Samples:
    """The samples (n,) of a reference, decoded where uploads are."""
    with tempfile.NamedTemporaryFile(prefix="pianissimo-", buffering=0) as file:
        file.write(data)
        blocks, seconds = [], 0.0
        async with aclosing(decoders.blocks(Upload(Path(file.name)), SAMPLE_RATE)) as decoded:
            async for block in decoded:
                blocks.append(block)
                seconds += len(block) / SAMPLE_RATE
                if seconds > LONGEST_REFERENCE_SECONDS:
                    break
        samples: Samples = np.concatenate(blocks)
        return samples[: round(LONGEST_REFERENCE_SECONDS * SAMPLE_RATE)]


def diarized(transcript: Transcript) -> dict[str, object]:
    """The body of `diarized_json`."""
    return {
        "task": "transcribe",
        "duration": transcript.duration,
        "text": transcript.text,
        **({} if transcript.lexical is None else {"lexical": transcript.lexical}),
        "segments": segments(transcript),
        "usage": usage(transcript.duration),
    }


def segments(transcript: Transcript) -> list[dict[str, object]]:
    """Segments with their speakers; one of an unknown speaker continues the one before."""
    found, before = [], "0"
    for number, segment in enumerate(transcript.segments):
        before = segment.speaker or before
        found.append(_segment(number, segment, before))
    return found


def _segment(number: int, segment: Segment, speaker: str) -> dict[str, object]:
    return {
        "type": "transcript.text.segment",
        "id": f"seg_{number:03d}",
        "start": segment.start,
        "end": segment.end,
        "speaker": _letter(speaker),
        "text": segment.text,
    }


def _letter(label: str) -> str:
    """ "A" for the label "0", a name as it is."""
    if not label.isdecimal() or int(label) >= _LETTERS:
        return label
    return chr(ord("A") + int(label))
