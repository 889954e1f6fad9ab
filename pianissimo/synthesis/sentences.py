"""Text to sentences, whole or while it is still being written."""

import re

LONGEST_SENTENCE = 300
"""Characters; longer sentences are cut at a clause, else between words."""
FIRST_CLAUSE_WORDS, FIRST_WORDS = 4, 12
"""Of an eager first piece: a clause of at least 4 words, else 12 words."""
END_MARKS = ".!?…"
WIDE_END_MARKS = "。！？"
"""Ends of sentences that no space follows."""
CLAUSE_MARKS = ",;:—"
CLOSING = "\"')]}”’»"
_TITLES = frozenset(
    "dr mr mrs ms prof st sr jr gen col capt lt sgt rev hon no vs etc e.g i.e cf approx dept "
    "fig vol pp ca".split()
)
"""Words before a period that ends no sentence."""
_CLOSING = rf"[{re.escape(CLOSING)}]*"
_CANDIDATE = re.compile(
    rf"\n|[{WIDE_END_MARKS}]{_CLOSING}|[{re.escape(END_MARKS)}]+{_CLOSING}(?=\s)"
)
_CLAUSE = re.compile(rf"[{CLAUSE_MARKS}](?=\s)")
_SPACE = re.compile(r"\s+")


class SentenceBuffer:
    """Collects text that arrives in pieces, and returns sentences when they are complete.

    Any division of a text into pieces gives the same sentences. With `eager`, the first one may be
    a clause or the first words of a long sentence, so that speech can begin earlier.
    """

    def __init__(self, *, eager: bool = False) -> None:
        self._text = ""
        self._eager = eager

    def push(self, text: str) -> list[str]:
        """Add text; return the sentences that it completes, without surrounding space."""
        self._text += text
        return self._complete(final=False)

    def finish(self) -> list[str]:
        """The rest of the text; the buffer can be used again."""
        sentences = self._complete(final=True)
        self._text = ""
        return sentences

    def _complete(self, final: bool) -> list[str]:
        found = []
        while self._text:
            self._text = self._text.lstrip()
            end = self._next_end(final)
            if end is None:
                break
            if sentence := self._text[:end].strip():
                found.append(sentence)
                self._eager = False
            self._text = self._text[end:]
        return found

    def _next_end(self, final: bool) -> int | None:
        """Where the first sentence ends, None while the text does not tell."""
        text = self._text
        limit = LONGEST_SENTENCE
        early = self._early_end() if self._eager else None
        for candidate in _CANDIDATE.finditer(text):
            end = candidate.end()
            if end > limit or (early is not None and end > early):
                break
            if candidate[0] == "\n":
                return end
            if candidate[0][0] in WIDE_END_MARKS:
                return end if final or end < len(text) else None  # a closing quote may follow
            rest = text[end:].lstrip(" \t")
            if not rest and not final:
                return None  # the next word decides
            if _ends_sentence(text[: candidate.start()], candidate[0], rest):
                return end
        if early is not None and early <= limit:
            return early
        if len(text) > limit:
            return _cut(text[:limit])
        return len(text) if final else None

    def _early_end(self) -> int | None:
        for clause in _CLAUSE.finditer(self._text):
            if len(self._text[: clause.end()].split()) >= FIRST_CLAUSE_WORDS:
                clause_end = clause.end()
                break
        else:
            clause_end = None
        spaces = [found.start() for found in _SPACE.finditer(self._text)]
        words_end = spaces[FIRST_WORDS - 1] if len(spaces) >= FIRST_WORDS else None
        ends = [end for end in (clause_end, words_end) if end is not None]
        return min(ends, default=None)


def split_sentences(text: str) -> list[str]:
    """The sentences of a whole text."""
    buffer = SentenceBuffer()
    return [*buffer.push(text), *buffer.finish()]


def _ends_sentence(before: str, mark: str, rest: str) -> bool:
    """Whether a mark ends the sentence, by the word before it and the text behind it."""
    if rest[:1].islower():
        return False
    if not mark.startswith(".") or mark.startswith(".."):
        return True
    word = before.split()[-1].lstrip("(\"'“‘[") if before.split() else ""
    if len(word) == 1 and word.isupper():
        return False  # an initial
    if word.lower() in _TITLES:
        return False
    return not (word.isdigit() and before.strip() == word)  # the number of a list item


def _cut(text: str) -> int:
    """Where to cut a sentence that is too long: behind its last clause, else its last word."""
    clauses = [found.end() for found in _CLAUSE.finditer(text)]
    if clauses and clauses[-1] >= len(text) // 2:
        return clauses[-1]
    space = text.rfind(" ")
    return space if space > 0 else len(text)
