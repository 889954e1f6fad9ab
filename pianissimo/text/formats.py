"""Transcripts as files: txt, srt, vtt, tsv, json and rttm; with speakers where they are known.

words ──(sentence ends, pauses, speakers, length)──> cues ──> srt, vtt
segments ──────────────────────────────────────────> lines of txt and tsv, objects of json
turns ─────────────────────────────────────────────> lines of rttm
"""

import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from pianissimo.errors import OptionError
from pianissimo.text.turns import Turn, speaker_name
from pianissimo.text.words import Segment, Word, ends_sentence, joined, segments_from_words

_COMMAS = tuple(",;:\u060c\u061b\u3001\uff0c\uff1a\uff1b")


class Timed(Protocol):
    """The fields of a `Transcript` that the formats write."""

    @property
    def text(self) -> str: ...
    @property
    def segments(self) -> tuple[Segment, ...]: ...
    @property
    def words(self) -> tuple[Word, ...]: ...
    @property
    def language(self) -> str | None: ...
    @property
    def duration(self) -> float: ...
    @property
    def model(self) -> str: ...
    @property
    def reasons(self) -> tuple[str, ...]: ...
    @property
    def turns(self) -> tuple[Turn, ...] | None: ...
    @property
    def lexical(self) -> str | None: ...


@dataclass(frozen=True)
class CueOptions:
    """How large a cue may be and where it breaks; a wide character, such as 字, counts as two."""

    max_line_characters: int = 42
    max_lines: int = 2
    max_seconds: float = 7.0
    pause_seconds: float = 1.0
    """A longer pause between two words always ends a cue."""

    def __post_init__(self) -> None:
        if self.max_line_characters < 1 or self.max_lines < 1:
            raise OptionError(
                "a cue needs room for one character and one line at least, "
                f"not {self.max_line_characters} and {self.max_lines}"
            )
        if not self.max_seconds >= 0.001 or not self.pause_seconds >= 0:
            raise OptionError(
                "max_seconds must be at least 0.001 and pause_seconds at least 0, "
                f"not {self.max_seconds} and {self.pause_seconds}"
            )


@dataclass(frozen=True)
class Cue:
    """What a subtitle shows at one time; `start_ms` < `end_ms`, in whole milliseconds."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]
    speaker: str | None = None


def to_txt(transcript: Timed) -> str:
    """Plain text, one segment per line; with speakers `[00:01:02] Speaker 1: text`."""
    lines = []
    for segment in _segments(transcript):
        text = _one_line(segment.text)
        if transcript.turns is not None:
            time = timestamp(int(segment.start) * 1000, ".").partition(".")[0]
            name = "" if segment.speaker is None else f"{speaker_name(segment.speaker)}: "
            text = text and f"[{time}] {name}{text}"
        lines.append(text)
    return "".join(line + "\n" for line in lines if line)


def to_srt(transcript: Timed, options: CueOptions | None = None) -> str:
    """SubRip: numbered cues with comma times. The format has no escapes: "-->" becomes "->".

    "Speaker 1:" begins the first cue of each speaker.
    """
    blocks = []
    for number, cue in enumerate(cues(transcript, options, names=True), start=1):
        times = f"{timestamp(cue.start_ms, ',')} --> {timestamp(cue.end_ms, ',')}"
        text = "\n".join(cue.lines).replace("-->", "->")
        blocks.append(f"{number}\n{times}\n{text}\n")
    return "\n".join(blocks)


def to_vtt(transcript: Timed, options: CueOptions | None = None) -> str:
    """WebVTT: cues with dot times; `&`, `<` and `>` (so also "-->") are escaped.

    A cue with a speaker is `<v Speaker 1>text</v>`.
    """
    blocks = ["WEBVTT\n"]
    for cue in cues(transcript, options):
        times = f"{timestamp(cue.start_ms, '.')} --> {timestamp(cue.end_ms, '.')}"
        text = _escaped("\n".join(cue.lines))
        if cue.speaker is not None:
            text = f"<v {_escaped(speaker_name(cue.speaker))}>{text}</v>"
        blocks.append(f"{times}\n{text}\n")
    return "\n".join(blocks)


def to_tsv(transcript: Timed) -> str:
    """A header and one line per segment: start and end in integer milliseconds, text.

    With speakers there is a fourth column for them.
    """
    speakers = transcript.turns is not None
    rows = ["start\tend\ttext\tspeaker\n" if speakers else "start\tend\ttext\n"]
    for segment in _segments(transcript):
        start, end = round(segment.start * 1000), round(segment.end * 1000)
        speaker = f"\t{_one_line(segment.speaker or '')}" if speakers else ""
        rows.append(f"{start}\t{end}\t{_one_line(segment.text)}{speaker}\n")
    return "".join(rows)


def to_json(transcript: Timed) -> str:
    """Everything, as one JSON object in the layout of whisper.

    The key `words` at the top is there only when the segments do not hold just these words, the key
    `reasons` only when a guard acted; the keys of speakers and `turns` only with diarization;
    `lexical` only beside a written form.
    """
    root: dict[str, object] = {
        "text": transcript.text,
        **({} if transcript.lexical is None else {"lexical": transcript.lexical}),
        "language": transcript.language,
        "duration": transcript.duration,
        "model": transcript.model,
        "segments": [
            {
                "id": number,
                "start": segment.start,
                "end": segment.end,
                "text": segment.text,
                "confidence": segment.confidence,
                **({} if segment.speaker is None else {"speaker": segment.speaker}),
                "words": [_word_object(word) for word in segment.words],
            }
            for number, segment in enumerate(transcript.segments)
        ],
    }
    if transcript.words != _words_of(transcript.segments):
        root["words"] = [_word_object(word) for word in transcript.words]
    if transcript.reasons:
        root["reasons"] = list(transcript.reasons)
    if transcript.turns is not None:
        root["turns"] = [asdict(turn) for turn in transcript.turns]
    return json.dumps(root, ensure_ascii=False, indent=2) + "\n"


def to_rttm(transcript: Timed, name: str = "recording") -> str:
    """One SPEAKER line per turn, with `name` for the recording; OptionError without diarization."""
    if transcript.turns is None:
        raise OptionError(
            "rttm holds speaker turns, and this transcript has none: transcribe with diarize=True "
            "(--diarize or --channels)"
        )
    return rttm_lines(transcript.turns, name)


WRITERS: Mapping[str, Callable[[Timed], str]] = {
    "txt": to_txt,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
    "json": to_json,
    "rttm": to_rttm,
}
"""Every file format by the suffix of its files."""


def cues(
    transcript: Timed, options: CueOptions | None = None, *, names: bool = False
) -> Iterator[Cue]:
    """Cut a transcript into cues that follow each other without overlap.

    A segment without words is one cue if it fits; a longer one is spread over its time in
    proportion to its characters. `names` puts the speaker's name before the first cue of each.
    """
    options = options or CueOptions()
    previous_ms, previous = 0, None
    for segment in _segments(transcript):
        timed = segment.words or (Word(segment.text, segment.start, segment.end),)
        if names and segment.speaker not in (None, previous):
            name = f"{speaker_name(segment.speaker or '')}:"
            timed = (Word(name, timed[0].start, timed[0].start), *timed)
        previous = segment.speaker or previous
        words = [part for word in timed for part in _parts(word, options.max_line_characters)]
        lines = _wrap([word.text for word in words], options.max_line_characters)
        fits = not segment.words and len(lines) <= options.max_lines
        begin = 0
        while begin < len(words):
            end = len(words) if fits else _cue_end(words, begin, options)
            start_ms = max(round(words[begin].start * 1000), previous_ms)
            end_ms = min(
                round(words[end - 1].end * 1000), start_ms + round(options.max_seconds * 1000)
            )
            end_ms = max(end_ms, start_ms + 1)
            texts = [word.text for word in words[begin:end]]
            lines_shown = _lines(texts, options.max_line_characters)
            yield Cue(start_ms, end_ms, lines_shown, segment.speaker)
            previous_ms, begin = end_ms, end


def timestamp(milliseconds: int, separator: str) -> str:
    """`HH:MM:SS` and milliseconds behind `separator`; hours take more digits when needed."""
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{separator}{milliseconds:03d}"


def _cue_end(words: Sequence[Word], begin: int, options: CueOptions) -> int:
    """The index behind the last word of the cue that begins at `begin`."""
    width = options.max_line_characters
    texts = [words[begin].text]
    for index in range(begin + 1, len(words)):
        before, word = words[index - 1], words[index]
        pause = word.start - before.end > options.pause_seconds
        if pause or ends_sentence(before.text, word.text):
            return index
        texts.append(word.text)
        too_long = word.end - words[begin].start > options.max_seconds
        if too_long or len(_wrap(texts, width)) > options.max_lines:
            # Rather break behind a comma, unless that leaves a cue less than half full.
            for comma in range(index, begin + (index - begin + 1) // 2, -1):
                if words[comma - 1].text.endswith(_COMMAS):
                    return comma
            return index
    return len(words)


def _wrap(texts: Sequence[str], width: int) -> list[str]:
    """Fill lines of at most `width` characters greedily; only a longer text exceeds it."""
    lines: list[str] = []
    for text in texts:
        longer = joined((*lines[-1:], text))
        if lines and _width(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(text)
    return lines


def _lines(texts: Sequence[str], width: int) -> tuple[str, ...]:
    """As few lines as `width` allows, as equally long as possible."""
    count = len(_wrap(texts, width))
    while count > 1 and width > max(map(_width, texts)) and len(_wrap(texts, width - 1)) == count:
        width -= 1
    return tuple(_wrap(texts, width))


def _parts(word: Word, width: int) -> Iterator[Word]:
    """The word without stray white space, in pieces that fit on a line, each with its time."""
    texts = [part for text in word.text.split() for part in _pieces(text, width)]
    total = sum(map(len, texts))
    done = 0
    for text in texts:
        start = word.start + (word.end - word.start) * done / total
        done += len(text)
        end = word.start + (word.end - word.start) * done / total
        yield Word(text, start, end, word.confidence)


def _pieces(text: str, width: int) -> Iterator[str]:
    """A text without spaces in pieces of at most `width`, or of one character that is wider."""
    piece, size = "", 0
    for character in text:
        if piece and size + _width(character) > width:
            yield piece
            piece, size = "", 0
        piece += character
        size += _width(character)
    yield piece


def _width(text: str) -> int:
    """The columns that a text takes where wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def _segments(transcript: Timed) -> tuple[Segment, ...]:
    """The transcript's segments, or what comes nearest to them."""
    if transcript.words and not any(segment.words for segment in transcript.segments):
        return segments_from_words(transcript.words)
    if transcript.segments or not transcript.text.strip():
        return transcript.segments
    return (Segment(transcript.text, 0.0, transcript.duration),)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _words_of(segments: Sequence[Segment]) -> tuple[Word, ...]:
    return tuple(word for segment in segments for word in segment.words)


def _word_object(word: Word) -> dict[str, object]:
    item: dict[str, object] = {
        "text": word.text,
        "start": word.start,
        "end": word.end,
        "confidence": word.confidence,
    }
    if word.speaker is not None:
        item |= {"speaker": word.speaker, "speaker_confidence": word.speaker_confidence}
    return item


def rttm_lines(turns: Iterable[Turn], name: str) -> str:
    """One line per turn, sorted by start; white space in names becomes "_"."""
    recording = "_".join(name.split()) or "recording"
    lines = []
    for turn in sorted(turns, key=lambda turn: (turn.start, turn.end, turn.speaker)):
        speaker = "_".join(turn.speaker.split()) or "unknown"
        start, duration = turn.start, turn.end - turn.start
        lines.append(
            f"SPEAKER {recording} 1 {start:.3f} {duration:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
        )
    return "".join(lines)
