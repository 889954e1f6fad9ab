"""Results and stream events: frozen dataclasses without tensors, times in seconds as float."""

import json
import os
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pianissimo.audio.notes import NOTE_TEXTS, NOTES, Note
from pianissimo.errors import OptionError
from pianissimo.text import formats
from pianissimo.text.turns import Turn as Turn
from pianissimo.text.turns import segments_with_speakers, with_speakers
from pianissimo.text.words import Segment as Segment
from pianissimo.text.words import Word as Word
from pianissimo.text.words import joined
from pianissimo.text.written_form import written_segment, written_text, written_words


@dataclass(frozen=True)
class Transcript:
    """What was said in one recording.

    `words` is empty when word times were not asked for. `language` is a tag such as "en-US", or
    None when it is not known. `duration` is the length of the audio in seconds. `reasons` name the
    hallucination filters that acted: why a text is empty, or what is doubtful about it; then the
    notes on how the recording was read. `turns` say who speaks when, in order of their start; None
    without diarization. `lexical` is the text as it was spoken, "twenty five dollars", where `text`
    is its written form, "$25"; None where `text` is as the model wrote it.
    """

    text: str
    segments: tuple[Segment, ...]
    words: tuple[Word, ...]
    language: str | None
    duration: float
    model: str
    reasons: tuple[str, ...] = ()
    turns: tuple[Turn, ...] | None = None
    lexical: str | None = None

    def with_turns(self, turns: Iterable[Turn]) -> "Transcript":
        """The same text with a speaker for each word; segments are cut where it changes."""
        turns = tuple(sorted(turns, key=lambda turn: (turn.start, turn.end)))
        segments = segments_with_speakers(self.segments, turns)
        return replace(self, segments=segments, words=with_speakers(self.words, turns), turns=turns)

    def in_written_form(self, language: str | None = None) -> "Transcript":
        """Numbers, dates, money, times, measures and addresses as they are written.

        `text`, segments and words change, `lexical` keeps the text. `language` is that of the
        transcript unless given. Raises OptionError for a language without a written form, and
        MissingExtraError for Chinese or Japanese without the extra `itn`.
        """
        language = language or self.language
        segments = tuple(written_segment(segment, language) for segment in self.segments)
        if self.words == tuple(word for segment in self.segments for word in segment.words):
            words = tuple(word for segment in segments for word in segment.words)
        else:
            words = written_words(self.words, language)
        if segments == self.segments and segments:
            text = self.text
        elif self.text == joined(segment.text for segment in self.segments):
            text = joined(segment.text for segment in segments)
        else:
            text = written_text(self.text, language)
        lexical = self.text if self.lexical is None else self.lexical
        return replace(self, text=text, segments=segments, words=words, lexical=lexical)

    @property
    def speakers(self) -> tuple[str, ...]:
        """The speakers of `turns` in order of appearance."""
        return tuple(dict.fromkeys(turn.speaker for turn in self.turns or ()))

    def noted(self, notes: Collection[Note]) -> "Transcript":
        """The transcript with these notes among its reasons."""
        told = (note for note in NOTES if note in notes and note not in self.reasons)
        return replace(self, reasons=(*self.reasons, *told)) if notes else self

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence for people about each note on how the recording was read."""
        return tuple(NOTE_TEXTS[reason] for reason in self.reasons if reason in NOTE_TEXTS)

    def to_txt(self) -> str:
        """Plain text, one segment per line, with time and speaker after diarization."""
        return formats.to_txt(self)

    def to_srt(self) -> str:
        """SubRip subtitles: at most two lines of 42 characters for at most 7 seconds."""
        return formats.to_srt(self)

    def to_vtt(self) -> str:
        """WebVTT subtitles: at most two lines of 42 characters for at most 7 seconds."""
        return formats.to_vtt(self)

    def to_tsv(self) -> str:
        """One line per segment: start and end in integer milliseconds, text; with a header.

        After diarization there is a column for the speaker.
        """
        return formats.to_tsv(self)

    def to_json(self) -> str:
        """Everything, as a JSON object; `Transcript.from_json` reads it back unchanged."""
        return formats.to_json(self)

    def to_rttm(self, name: str = "recording") -> str:
        """The turns as RTTM, with `name` for the recording; OptionError without diarization."""
        return formats.to_rttm(self, name)

    @classmethod
    def from_json(cls, data: str | bytes) -> "Transcript":
        """Read what `to_json` wrote.

        Raises OptionError when `data` is not JSON, or not a transcript.
        """
        try:
            root = json.loads(data)
            segments = tuple(
                Segment(
                    str(item["text"]),
                    float(item["start"]),
                    float(item["end"]),
                    tuple(_word(word) for word in item.get("words") or ()),
                    _confidence(item),
                    _speaker(item),
                )
                for item in root["segments"]
            )
            words = root.get("words")
            if words is None:
                words = tuple(word for segment in segments for word in segment.words)
            else:
                words = tuple(_word(word) for word in words)
            language, turns = root.get("language"), root.get("turns")
            lexical = root.get("lexical")
            return cls(
                str(root["text"]),
                segments,
                words,
                None if language is None else str(language),
                float(root["duration"]),
                str(root["model"]),
                tuple(str(reason) for reason in root.get("reasons") or ()),
                None if turns is None else tuple(_turn(turn) for turn in turns),
                None if lexical is None else str(lexical),
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise OptionError(
                f"this is not the JSON of a transcript: {type(error).__name__}: {error}; "
                "expected what Transcript.to_json writes"
            ) from error

    def save(self, path: str | os.PathLike[str], format: str | None = None) -> None:
        """Write the transcript to `path`: the whole file appears at once, or none of it.

        `format` is txt, srt, vtt, tsv, json or rttm; without it the suffix of `path` decides.
        Raises OptionError for any other format, and for rttm without diarization, and OSError when
        the file cannot be written.
        """
        target = Path(path)
        name = (target.suffix.removeprefix(".") if format is None else format).lower()
        if name not in formats.WRITERS:
            raise OptionError(
                f"cannot save a transcript as {name!r} ({target}); "
                f"choose one of {', '.join(formats.WRITERS)}"
            )
        text = self.to_rttm(target.stem) if name == "rttm" else formats.WRITERS[name](self)
        _write_atomically(target, text)


def _word(item: Mapping[str, Any]) -> Word:
    return Word(
        str(item["text"]),
        float(item["start"]),
        float(item["end"]),
        _confidence(item),
        _speaker(item),
        _confidence(item, "speaker_confidence"),
    )


def _turn(item: Mapping[str, Any]) -> Turn:
    start, end = float(item["start"]), float(item["end"])
    return Turn(start, end, str(item["speaker"]), _confidence(item))


def _speaker(item: Mapping[str, Any]) -> str | None:
    value = item.get("speaker")
    return None if value is None else str(value)


def _confidence(item: Mapping[str, Any], key: str = "confidence") -> float | None:
    value = item.get(key)
    return None if value is None else float(value)


def _write_atomically(path: Path, text: str) -> None:
    """Write UTF-8 `text` beside `path` first, then rename it into place; raises OSError."""
    draft = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(draft, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


TurnMark = Literal["end", "backchannel"]


@dataclass(frozen=True)
class StreamEvent:
    """One piece of news from a live stream.

    - "partial": `text` is all that was said since the last final. It is append-only: it begins
      with the text of the partial before, unless that one said `stable=False`.
    - "final": `text` is the whole utterance, and nothing emitted later ever changes it. It begins
      with the last stable partial, unless the stream has a second pass, which decodes the whole
      utterance again. The next partial starts from an empty text.
    - "endpoint": the speaker stopped at `end`; `text` and `words` are empty. The final that
      belongs to it is an event of its own.

    `words` are the words of `text` that are complete: in a partial the last word of `text` may be
    missing, as more letters of it may come. `start` and `end` are in seconds since the beginning
    of the stream and span the text.
    """

    type: Literal["partial", "final", "endpoint"]
    text: str
    words: tuple[Word, ...]
    start: float
    end: float
    stable: bool = True
    """False when a later partial or the final may still revise the end of `text`."""
    reason: Literal["endpoint", "length", "finalize", "finish"] | None = None
    """Why a final is one: the speaker paused, spoke too long for one utterance, or the text was
    locked on request, or the stream ended; the last two are answered even if nothing was said."""
    reasons: tuple[str, ...] = ()
    """Of a final: the hallucination filters that acted, as in `Transcript.reasons`."""
    lexical: str | None = None
    """Of a final in written form: its text as it was spoken, as in `Transcript.lexical`."""
    language: str | None = None
    """The language of the text, where the model tells it or can be told; else None."""
    turn: TurnMark | None = None
    """What the model says about the turn behind `text`, where its vocabulary has such tokens: it is
    over, or it was a sign of listening that asks for no answer."""

    def in_written_form(self, language: str | None) -> "StreamEvent":
        """A final in written form, as `Transcript.in_written_form`; other events as they are.

        Partials only grow, and a number at their end may still become another one.
        """
        if self.type != "final":
            return self
        words = written_words(self.words, language)
        if not words:
            text = written_text(self.text, language)
        else:
            text = self.text if words == self.words else joined(word.text for word in words)
        lexical = self.text if self.lexical is None else self.lexical
        return replace(self, text=text, words=words, lexical=lexical)

    def with_turns(self, turns: Sequence[Turn]) -> "StreamEvent":
        """The same event with a speaker for each word, as far as `turns` say."""
        return replace(self, words=with_speakers(self.words, turns)) if self.words else self
