"""Recordings of any length through a recogniser that hears short ones, guarded at every step.

raw ──> gain ──> speech spans ──> segments <= 28 s ──> recogniser ──> judged ──> joined
 └───────────────> muted? silent? too short? ─────────────────────────┘

For models that write text with a language model behind a window of 30 s (Whisper, GLM-ASR and their
kin). Segments are decoded without the text before them, so a mistake does not spread.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy.typing as npt

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE
from pianissimo.audio.level import Samples, check_samples, quietest_point
from pianissimo.audio.vad import VoiceDetector
from pianissimo.guards import (
    MAX_SEGMENT_SECONDS,
    REASONS,
    Evidence,
    Reason,
    Witness,
    find_loop,
    judge,
    plan_segments,
    trim_loop,
)
from pianissimo.transcript import Segment, Transcript, Word

_RETRY_MIN_SECONDS = 2.0
_USER_CLIP_SECONDS = 30.0


@dataclass(frozen=True)
class Decoded:
    """What a recogniser made of one segment.

    `tokens` are what loops are looked for in, ids or words. `cut_off` is True when decoding ended
    because the limit of tokens was reached. `words` are timed from the start of the segment.
    """

    text: str
    tokens: tuple[Hashable, ...] = ()
    mean_log_probability: float | None = None
    cut_off: bool = False
    words: tuple[Word, ...] = ()


Decode = Callable[[Samples], Decoded]


@dataclass(frozen=True)
class _Piece:
    """A decoded stretch, in samples from the start of the recording."""

    start: int
    end: int
    decoded: Decoded
    reasons: tuple[Reason, ...]


class LongForm:
    """A guarded way from samples to a transcript, around any function that decodes a segment.

    `detector` decides what is speech; `join` is what stands between the texts of two segments.
    """

    def __init__(
        self,
        front_end: FrontEnd,
        detector: VoiceDetector,
        *,
        max_seconds: float = MAX_SEGMENT_SECONDS,
        join: str = " ",
    ) -> None:
        self.front_end, self.witness = front_end, Witness(detector)
        self.max_seconds, self.join = max_seconds, join

    def transcribe(
        self,
        samples: npt.ArrayLike,
        decode: Decode,
        *,
        model: str,
        language: str | None = None,
    ) -> Transcript:
        """Samples (n,) at 16 kHz to a transcript whose `reasons` name the guards that acted.

        A recording of up to 30 s is decoded whole even if no speech was found in it: somebody made
        it on purpose. Raises AudioValueError for samples that are not usable numbers.
        """
        raw = check_samples(samples)
        loud = self.front_end.whole(raw).samples
        state = self.witness.start()
        self.witness.push(raw, loud, state)
        evidence = self.witness.finish(state)
        seconds = len(raw) / SAMPLE_RATE
        empty = Transcript("", (), (), language, seconds, model)
        if evidence.refusal is not None:
            return replace(empty, reasons=(evidence.refusal,))
        if not state.spans and seconds > _USER_CLIP_SECONDS:
            return replace(empty, reasons=("low_evidence",))
        pieces = [
            piece
            for start, end in plan_segments(loud, state.spans, self.max_seconds)
            for piece in self._decode(loud, start, end, decode, evidence, language)
        ]
        return self._joined(pieces, empty)

    def _decode(
        self,
        loud: Samples,
        start: int,
        end: int,
        decode: Decode,
        evidence: Evidence,
        language: str | None,
        *,
        again: bool = True,
    ) -> list[_Piece]:
        """One segment; in two halves, cut where it is quietest, if it loops or is cut off."""
        decoded = decode(loud[start:end])
        loops = find_loop(decoded.tokens) is not None
        half, window = (start + end) // 2, SAMPLE_RATE // 10
        if again and (loops or decoded.cut_off) and end - start > _RETRY_MIN_SECONDS * SAMPLE_RATE:
            quarter = (end - start) // 4
            half = quietest_point(loud, half - quarter, half + quarter, window)
            return [
                piece
                for part in ((start, half), (half, end))
                for piece in self._decode(loud, *part, decode, evidence, language, again=False)
            ]
        # What speaks for the recording speaks for each segment: those were chosen for speech.
        verdict = judge(
            decoded.text,
            replace(evidence, seconds=(end - start) / SAMPLE_RATE),
            language=language,
            mean_log_probability=decoded.mean_log_probability,
            tokens=decoded.tokens,
        )
        reasons = [*verdict.reasons]
        if decoded.cut_off:
            reasons.append("truncated")
        if "repetition" in reasons:
            decoded = _without_loops(decoded)
        if not verdict.keep:
            decoded = Decoded("")
        return [_Piece(start, end, decoded, tuple(reasons))]

    def _joined(self, pieces: Sequence[_Piece], empty: Transcript) -> Transcript:
        segments = []
        for piece in pieces:
            text = piece.decoded.text.strip()
            if not text:
                continue
            offset = piece.start / SAMPLE_RATE
            words = tuple(
                replace(word, start=word.start + offset, end=word.end + offset)
                for word in piece.decoded.words
            )
            segments.append(Segment(text, offset, piece.end / SAMPLE_RATE, words))
        found = {reason for piece in pieces for reason in piece.reasons}
        return replace(
            empty,
            text=self.join.join(segment.text for segment in segments),
            segments=tuple(segments),
            words=tuple(word for segment in segments for word in segment.words),
            reasons=tuple(reason for reason in REASONS if reason in found),
        )


def _without_loops(decoded: Decoded) -> Decoded:
    """The first two rounds of each loop of words; texts without spaces lose loops of characters."""
    words = decoded.text.split()
    if len(words) > 1:
        text = " ".join(trim_loop(words))
    else:
        text = "".join(trim_loop(decoded.text))
    if len(decoded.words) == len(words):
        kept = trim_loop([word.text for word in decoded.words])
        timed = decoded.words[: len(kept)]
        return replace(decoded, text=text, words=timed)
    return replace(decoded, text=text, words=())
