"""Who speaks when: turns, and the one function that joins them with words."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pianissimo.errors import OptionError
from pianissimo.text.words import Segment, Word, changes_speaker, segment_of

LATE_SECONDS = 0.08
"""Transducers write a word up to one encoder frame after its sound, so its span is widened."""
NEAR_SECONDS = 0.5
"""A word outside of all turns belongs to the nearest one, if that is no farther away."""
ISLAND_SECONDS = 0.4
"""A word of at most this length between two words of another speaker may be theirs."""
ISLAND_MARGIN = 0.2
"""It is if its own speaker covers less than this share more of it than theirs."""


@dataclass(frozen=True)
class Turn:
    """A stretch of time in which one person speaks; turns of two people may overlap.

    `start` and `end` are in seconds. `speaker` is "0", "1" and so on in the order of appearance,
    the number of a channel, or the name of a known voice. `confidence` is between 0 and 1, None
    where it is not known.
    """

    start: float
    end: float
    speaker: str
    confidence: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < float("inf"):
            raise OptionError(f"a turn from {self.start} to {self.end} s is not a stretch of time")


def speaker_name(label: str) -> str:
    """What people read: "Speaker 1" for the label "0", a name as it is."""
    return f"Speaker {int(label) + 1}" if label.isdecimal() else label


def with_speakers(words: Iterable[Word], turns: Sequence[Turn]) -> tuple[Word, ...]:
    """The words, each with the speaker whose turns cover most of it.

    A word that no turn covers gets the speaker of the nearest turn within `NEAR_SECONDS`, otherwise
    None. A short word between two words of one other speaker gets that speaker if the turns hardly
    decide. `speaker_confidence` is the share of the covered time that is the speaker's, times the
    confidence of the turn.
    """
    words, waiting = tuple(words), sorted(turns, key=lambda turn: turn.start, reverse=True)
    shares: list[dict[str, float]] = [{} for _ in words]
    found = list(words)
    near: list[Turn] = []
    for i in sorted(range(len(words)), key=lambda i: words[i].start):
        start, end = max(0.0, words[i].start - LATE_SECONDS), words[i].end
        while waiting and waiting[-1].start <= end + NEAR_SECONDS:
            near.append(waiting.pop())
        near = [turn for turn in near if turn.end >= start - NEAR_SECONDS]
        best, shares[i], confidence = _covering(near, start, end)
        found[i] = replace(words[i], speaker=best, speaker_confidence=confidence)
    for i in range(1, len(found) - 1):
        before, word, after = found[i - 1 : i + 2]
        theirs = before.speaker
        if theirs is None or theirs != after.speaker or word.speaker in (None, theirs):
            continue
        margin = shares[i].get(word.speaker or "", 0.0) - shares[i].get(theirs, 0.0)
        if word.end - word.start <= ISLAND_SECONDS and margin < ISLAND_MARGIN:
            found[i] = replace(word, speaker=theirs)
    return tuple(found)


def _covering(
    turns: Sequence[Turn], start: float, end: float
) -> tuple[str | None, dict[str, float], float | None]:
    """The speaker of a span, the share of the span that each speaker covers, and a confidence."""
    covered: dict[str, float] = defaultdict(float)
    certain: dict[str, float] = {}
    nearest: tuple[float, Turn] | None = None
    for turn in turns:
        seconds = min(turn.end, end) - max(turn.start, start)
        if seconds > 0:
            covered[turn.speaker] += seconds
            if turn.confidence is not None:
                certain[turn.speaker] = max(certain.get(turn.speaker, 0.0), turn.confidence)
        elif -seconds <= NEAR_SECONDS and (nearest is None or -seconds < nearest[0]):
            nearest = (-seconds, turn)
    if not covered:
        return (None if nearest is None else nearest[1].speaker), {}, None
    best = max(covered, key=lambda speaker: covered[speaker])
    share = covered[best] / sum(covered.values())
    length = max(end - start, 1e-6)
    shares = {speaker: seconds / length for speaker, seconds in covered.items()}
    return best, shares, round(share * certain.get(best, 1.0), 4)


def segments_with_speakers(
    segments: Iterable[Segment], turns: Sequence[Turn]
) -> tuple[Segment, ...]:
    """The segments, cut where the speaker changes; one without words is not cut.

    A word outside of all turns stays with the words before it: some models write the last word of
    a sentence into the pause behind it.
    """
    segments = tuple(segments)
    words = iter(with_speakers((word for each in segments for word in each.words), turns))
    found: list[Segment] = []
    for segment in segments:
        if not segment.words:
            speaker, _, _ = _covering(turns, segment.start, segment.end)
            found.append(replace(segment, speaker=speaker))
            continue
        parts: list[list[Word]] = []
        for word in [next(words) for _ in segment.words]:
            before = parts[-1][-1].speaker if parts else None
            if word.speaker_confidence is None and before is not None:
                word = replace(word, speaker=before)
            if not parts or changes_speaker(parts[-1], word):
                parts.append([])
            parts[-1].append(word)
        if len(parts) == 1:
            speaker = next((word.speaker for word in parts[0] if word.speaker is not None), None)
            found.append(replace(segment, words=tuple(parts[0]), speaker=speaker))
        else:
            found += map(segment_of, parts)
    return tuple(found)


def later(turns: Iterable[Turn], seconds: float) -> tuple[Turn, ...]:
    """The turns of an excerpt that begins at `seconds`, with times of the whole recording."""
    return tuple(
        replace(turn, start=round(turn.start + seconds, 6), end=round(turn.end + seconds, 6))
        for turn in turns
    )
