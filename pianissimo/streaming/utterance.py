"""From the tokens of a live stream to its events: the text of one utterance after the other."""

from dataclasses import replace

from pianissimo.decoding.token import Hypothesis
from pianissimo.hallucination.verdict import Verdict
from pianissimo.streaming.endpoint import FinalReason
from pianissimo.text import WORD_START
from pianissimo.text.tokenizer import IncrementalDetokenizer, Tokenizer
from pianissimo.text.words import WordAssembler, WordOptions, clamped
from pianissimo.transcript import StreamEvent, TurnMark, Word


class UtteranceText:
    """Collects the tokens since the last final; only those are kept, so memory stays flat."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        frame_seconds: float,
        extend_frames: int = 2,
        language: str | None = None,
    ) -> None:
        """Words end up to `extend_frames` after their last token, see `WordOptions`. `language`
        holds until a token tells another one."""
        self._tokenizer, self._frame_seconds = tokenizer, frame_seconds
        self._assembler = WordAssembler(tokenizer, WordOptions(frame_seconds, extend_frames))
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self.language = language
        self._clear()

    def _clear(self) -> None:
        self.found = Hypothesis()
        self.first: float | None = None
        """The start of the utterance in seconds; None while it has no token."""
        self.last: float | None = None
        """The end of its last token."""
        self._turn: TurnMark | None = None
        self._text = ""
        self._words: list[Word] = []

    def push(self, found: Hypothesis) -> list[StreamEvent]:
        """Take further tokens; a partial with the whole text since the last final, if any came."""
        tags, marks = self._tokenizer.language_tags, self._tokenizer.turn_marks
        marked = self._turn
        for token in found.tokens:
            self.language = tags.get(token, self.language)
            self._turn = marks.get(token)
        found = found.without(tags).without(marks)
        if not found.tokens:
            return self.partial() if self._turn != marked else []
        self.found.extend(found)
        self.first = self.found.frames[0] * self._frame_seconds
        self.last = (self.found.frames[-1] + 1) * self._frame_seconds
        self._words += self._assembler.push(found.tokens, found.frames, found.confidences)
        self._text += self._detokenizer.push(found.tokens)
        return self.partial()

    def partial(self) -> list[StreamEvent]:
        """The text since the last final, if there is any."""
        text = (self._text + self._detokenizer.tail).strip()
        if not text:
            return []
        assert self.first is not None
        assert self.last is not None
        event = StreamEvent("partial", text, tuple(self._words), self.first, self.last)
        return [replace(event, language=self.language, turn=self._turn)]

    def close(
        self, reason: FinalReason, heard: float, verdict: Verdict | None = None
    ) -> StreamEvent:
        """The final of this utterance, empty if nothing was said or the verdict does not keep it;
        no word ends after `heard`."""
        text = (self._text + self._detokenizer.finish()).strip()
        words = [clamped(w, heard) for w in [*self._words, *self._assembler.finish()]]
        reasons = () if verdict is None else verdict.reasons
        if verdict is not None and not verdict.keep:
            text, words = "", []
        now = round(heard, 6)
        start, end = (words[0].start, words[-1].end) if words else (now, now)
        event = StreamEvent("final", text, tuple(words), start, end, True, reason, reasons)
        if text:
            event = replace(event, language=self.language, turn=self._turn)
        self._clear()
        return event

    def reduce(self, found: Hypothesis) -> None:
        """Go on as if only these tokens of the utterance had come."""
        self._assembler.finish()
        self._detokenizer.finish()
        turn = self._turn
        self._clear()
        self.push(found)
        self._turn = turn

    def cut(self, heard: float) -> list[StreamEvent]:
        """The final of all words but the last, with which the next utterance begins."""
        tokens, pieces = self.found.tokens, self._tokenizer.pieces
        starts = [i for i, token in enumerate(tokens) if pieces[token].startswith(WORD_START)]
        at = starts[-1] if starts and starts[-1] > 0 else len(tokens)
        head, tail = self.found.split(at)
        turn, self._turn = self._turn, None
        self.reduce(head)
        if tail.frames:
            heard = min(heard, tail.frames[0] * self._frame_seconds)
        final = self.close("length", heard)
        rest = self.push(tail)
        self._turn = turn
        return [final, *rest]
