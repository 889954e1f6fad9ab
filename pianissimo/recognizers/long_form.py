"""Recordings of any length for models with a window of 30 s: cut, filtered, in batches.

A long recording is cut into stretches at quiet places. The pieces of all recordings share batches.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from pianissimo.audio.front_end import FrontEnd
from pianissimo.audio.io import SAMPLE_RATE, Samples
from pianissimo.audio.level import quietest_point
from pianissimo.audio.vad import VoiceDetector, plan_segments
from pianissimo.hallucination.evidence import REASONS, Evidence, Intake, Reason
from pianissimo.hallucination.verdict import is_too_fast, judge
from pianissimo.text.loops import LOOP_KEPT, find_loop, is_monotonous, letters, trim_loop
from pianissimo.text.words import joined, segments_from_words
from pianissimo.transcript import Segment, Transcript, Word

STRETCH_SECONDS = 120.0
STRETCH_CUT_SECONDS = 20.0
"""The end of a stretch in which the quietest place is looked for."""
USER_CLIP_SECONDS = 30.0
"""A recording up to here is decoded even if no speech was found: it was made on purpose."""
RETRY_MIN_SECONDS = 2.0
"""Halves of less are too short to be understood."""
_PAUSE_SAMPLES = SAMPLE_RATE // 10
_HALVES_SHARE = 0.25
"""How much more or less text two halves may have than the whole."""


@dataclass(frozen=True)
class Decoded:
    """What a recognizer made of one segment.

    `tokens` are what loops are looked for in, ids or words. `cut_off` is True when decoding ended
    because the limit of tokens was reached. `words` are timed from the start of the segment.
    `language` is the detected one, where the recognizer reports it. `ended` is False when decoding
    was stopped in a loop.
    """

    text: str
    tokens: tuple[Hashable, ...] = ()
    mean_log_probability: float | None = None
    cut_off: bool = False
    words: tuple[Word, ...] = ()
    language: str | None = None
    ended: bool = True


DecodeMany = Callable[[Sequence[Samples]], list[Decoded]]


@dataclass(frozen=True, eq=False)
class Piece:
    """At most 28 s of recording `row` at the right level, from sample `start` on.

    What speaks for its stretch speaks for a piece as well: it was chosen for speech. Only the
    seconds of the evidence are those of the piece.
    """

    row: int
    start: int
    samples: Samples
    evidence: Evidence


@dataclass(frozen=True)
class Found:
    """What was made of a piece: from `start` on, in seconds. The piece itself is not kept."""

    start: float
    seconds: float
    decoded: Decoded


@dataclass(frozen=True)
class _Part:
    """A piece with its text. In `spoken` text a repetition is in the audio."""

    piece: Piece
    decoded: Decoded
    spoken: bool = False


@dataclass
class RecordingResult:
    """What was found in one recording so far."""

    samples: int = 0
    found: list[Found] = field(default_factory=list)
    reasons: set[Reason] = field(default_factory=set)


class PieceDecoder:
    """Cuts recordings into pieces, has them decoded in batches, and judges what comes back.

    `decode` makes texts of up to `most` pieces at once. `language` is that of the texts, None to
    report the one that `decode` found.
    """

    def __init__(
        self,
        front_end: FrontEnd | None,
        decode: DecodeMany,
        *,
        detector: VoiceDetector | None,
        most: int,
        language: str | None = None,
    ) -> None:
        self.front_end = front_end or FrontEnd("off")
        self.detector = detector or VoiceDetector()
        self.decode, self.most, self.language = decode, most, language

    def run(
        self, recordings: Sequence[Iterable[Samples]], name: str, words: bool
    ) -> Iterator[Transcript]:
        """Recordings in blocks of mono float32 at 16 kHz to their transcripts, in order.

        `name` is that of the model. A transcript comes once all pieces of its recording are done.
        """
        rows = [RecordingResult() for _ in recordings]
        pieces = (
            piece
            for row, blocks in enumerate(recordings)
            for stretch in _stretches(blocks)
            for piece in self._pieces(row, *stretch, rows[row])
        )
        done, group = 0, list[Piece]()
        for piece in chain(pieces, [None]):
            if piece is not None:
                group.append(piece)
            if group and (piece is None or len(group) == self.most):
                decoded = self.decode([piece.samples for piece in group])
                for part in self._settled(group, decoded):
                    self._judge(part, rows[part.piece.row])
            if piece is None or len(group) == self.most:
                complete = len(rows) if piece is None else piece.row
                for progress in rows[done:complete]:
                    language = self.language or main_language(progress)
                    yield transcript(progress, name, language, words)
                done, group = complete, []

    # -- before the model --------------------------------------------------------------------------

    def _pieces(
        self, row: int, start: int, raw: Samples, whole: bool, progress: RecordingResult
    ) -> list[Piece]:
        """The pieces of one stretch, none where nothing in it may be speech."""
        progress.samples = start + len(raw)
        intake = Intake(self.front_end, self.detector)
        loud = np.concatenate([intake.push(raw), intake.push(None)])
        evidence = intake.evidence
        assert evidence is not None
        if evidence.refusal is not None:
            # A few silent samples after a long recording are no news.
            progress.reasons |= {evidence.refusal} if whole else set()
            return []
        if not intake.spans and not (whole and evidence.seconds <= USER_CLIP_SECONDS):
            progress.reasons.add("low_evidence")
            return []
        return [
            Piece(
                row,
                start + first,
                loud[first:last],
                replace(evidence, seconds=(last - first) / SAMPLE_RATE),
            )
            for first, last in plan_segments(loud, intake.spans)
        ]

    # -- after the model ---------------------------------------------------------------------------

    def _settled(self, pieces: Sequence[Piece], texts: Sequence[Decoded]) -> list[_Part]:
        """The pieces with their texts, in order; doubtful ones in halves where those know better.

        A text is doubtful if it loops or did not end by itself, unless its piece is too short.
        A loop of the decoder is cut, a repetition in the audio is not. In the audio both halves
        repeat what the whole repeats, and so on to parts short enough to be written without a loop.
        """
        doubtful = [
            i
            for i, (piece, text) in enumerate(zip(pieces, texts, strict=True))
            if piece.evidence.seconds > RETRY_MIN_SECONDS
            and (is_monotonous(text.text, text.tokens) or text.cut_off or not text.ended)
        ]
        halves = [half for i in doubtful for half in _halves(pieces[i])]
        decoded = [
            text
            for i in range(0, len(halves), self.most)
            for text in self.decode([half.samples for half in halves[i : i + self.most]])
        ]
        instead: dict[int, list[_Part]] = {}
        for n, i in enumerate(doubtful):
            pair, found = halves[2 * n : 2 * n + 2], decoded[2 * n : 2 * n + 2]
            if follows_audio(texts[i], found):
                instead[i] = [_Part(pieces[i], texts[i], spoken=True)]
                continue
            instead[i] = [_Part(*both) for both in zip(pair, found, strict=True)]
            if repeats_in_all(texts[i], found):
                finer = self._settled(pair, found)
                if all(map(_is_settled, finer)):
                    instead[i] = finer
        settled: list[_Part] = []
        for i, (piece, text) in enumerate(zip(pieces, texts, strict=True)):
            seconds = piece.evidence.seconds
            spoken = seconds <= RETRY_MIN_SECONDS and could_be_said(text, seconds)
            settled += instead.get(i, [_Part(piece, text, spoken)])
        return settled

    def _judge(self, part: _Part, progress: RecordingResult) -> None:
        """Keep what may stand."""
        piece, decoded, spoken = part.piece, part.decoded, part.spoken
        verdict = judge(
            decoded.text,
            piece.evidence,
            language=self.language,
            mean_log_probability=decoded.mean_log_probability,
            tokens=decoded.tokens,
        )
        looped = "repetition" in verdict.reasons and not spoken
        progress.reasons |= {*verdict.reasons} - ({"repetition"} if spoken else set())
        if decoded.cut_off:
            progress.reasons.add("truncated")
        if verdict.keep:
            kept = without_loops(decoded) if looped else decoded
            start, seconds = piece.start / SAMPLE_RATE, piece.evidence.seconds
            progress.found.append(Found(start, seconds, kept))


def transcript(
    progress: RecordingResult, model: str, language: str | None, words: bool
) -> Transcript:
    """What was found in a recording as one transcript; without word times a piece is a segment."""
    texts: list[str] = []
    timed: list[Word] = []
    segments: list[Segment] = []
    for found in progress.found:
        text, start = found.decoded.text.strip(), found.start
        if not text:
            continue
        texts.append(text)
        inside = [
            replace(w, start=round(start + w.start, 6), end=round(start + w.end, 6))
            for w in found.decoded.words
        ]
        timed += inside
        if inside:
            segments += segments_from_words(inside)
        else:
            segments.append(Segment(text, start, start + found.seconds))
    return Transcript(
        text=joined(texts),
        segments=tuple(s if words else replace(s, words=()) for s in segments),
        words=tuple(timed) if words else (),
        language=language,
        duration=progress.samples / SAMPLE_RATE,
        model=model,
        reasons=tuple(reason for reason in REASONS if reason in progress.reasons),
    )


def main_language(progress: RecordingResult) -> str | None:
    """The language of most seconds of a recording, if there is one."""
    seconds = Counter[str]()
    for found in progress.found:
        if found.decoded.language and found.decoded.text.strip():
            seconds[found.decoded.language] += math.ceil(found.seconds)
    return seconds.most_common(1)[0][0] if seconds else None


def _is_settled(part: _Part) -> bool:
    """Whether a text ended by itself, and loops only where the audio does."""
    text = part.decoded
    loops = is_monotonous(text.text, text.tokens)
    return text.ended and not text.cut_off and (part.spoken or not loops)


def could_be_said(decoded: Decoded, seconds: float) -> bool:
    """Whether text that repeats itself may be what was said in a short clip.

    It ended by itself and is no faster than speech. A loop of the decoder continues to the limit.
    """
    return decoded.ended and not decoded.cut_off and not is_too_fast(decoded.text, seconds)


def repeats_in_all(whole: Decoded, parts: Sequence[Decoded]) -> bool:
    """Whether every part has what the whole repeats: then the audio repeats it."""
    words = [letters(word) for word in whole.text.split()]
    tokens: Sequence[str] = words if len(words) > 1 else "".join(words)
    loop = find_loop(tokens)
    if loop is None:
        return False
    unit = "".join(tokens[loop.start : loop.start + loop.unit])
    return bool(unit) and all(unit in letters(part.text) for part in parts)


def follows_audio(whole: Decoded, halves: Sequence[Decoded]) -> bool:
    """Whether text that repeats itself does so because the audio does.

    Each half of such audio has its share of the rounds, and decoding ends by itself. A loop of the
    decoder does not depend on how much audio there is.
    """
    if any(decoded.cut_off or not decoded.ended for decoded in (whole, *halves)):
        return False
    once = len(letters(without_loops(whole).text)) / LOOP_KEPT
    all_of_it = len(letters(whole.text))
    in_halves = sum(len(letters(half.text)) for half in halves)
    return abs(in_halves - all_of_it) <= max(_HALVES_SHARE * all_of_it, min(once, all_of_it / 3))


def without_loops(decoded: Decoded) -> Decoded:
    """The text with each loop of words, or of characters without spaces, cut to two rounds."""
    words = decoded.text.split()
    text = " ".join(trim_loop(words)) if len(words) > 1 else "".join(trim_loop(decoded.text))
    unlooped = len(trim_loop([word.text for word in decoded.words])) == len(decoded.words)
    return replace(decoded, text=text, words=decoded.words if unlooped else ())


def _stretches(blocks: Iterable[Samples]) -> Iterator[tuple[int, Samples, bool]]:
    """Start, samples, and whether this is all: pieces of a recording cut at quiet places."""
    most = round(STRETCH_SECONDS * SAMPLE_RATE)
    held, start = np.zeros(0, np.float32), 0
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) > 2 * most:
            first = most - round(STRETCH_CUT_SECONDS * SAMPLE_RATE)
            cut = quietest_point(held, first, most, _PAUSE_SAMPLES)
            yield start, held[:cut], False
            held, start = held[cut:].copy(), start + cut
    yield start, held, start == 0


def _halves(piece: Piece) -> Iterator[Piece]:
    """The piece in two, cut where its middle is quietest."""
    count = len(piece.samples)
    cut = quietest_point(piece.samples, count // 4, count - count // 4, _PAUSE_SAMPLES)
    for first, last in ((0, cut), (cut, count)):
        yield Piece(
            piece.row,
            piece.start + first,
            piece.samples[first:last],
            replace(piece.evidence, seconds=(last - first) / SAMPLE_RATE),
        )
