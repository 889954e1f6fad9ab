"""The written form of the transcripts and finals of one client."""

from dataclasses import dataclass, replace
from typing import TypeVar

from pianissimo.errors import MissingExtraError, OptionError
from pianissimo.text.written_form import check_language
from pianissimo.transcript import StreamEvent, Transcript

Text = TypeVar("Text", Transcript, StreamEvent)


@dataclass(frozen=True)
class WrittenForm:
    """Writes numbers, dates, money and times as people do; `lexical` keeps the spoken text.

    `language` is that of texts whose own is not known. A text without a known language, or in one
    that has no written form, stays as it was spoken.
    """

    language: str | None = None

    @classmethod
    def of(cls, language: str | None) -> "WrittenForm":
        """For a language such as "en-US", None where it is not known yet.

        Raises OptionError for one that has no written form, and MissingExtraError for one that
        needs the extra `itn`.
        """
        return cls(None if language is None else check_language(language))

    def write(self, found: Text) -> Text:
        """A transcript or a final in written form; other events as they are."""
        if isinstance(found, StreamEvent) and found.type != "final":
            return found
        try:
            return found.in_written_form(found.language or self.language)
        except (OptionError, MissingExtraError):  # of a language that the model found itself
            return replace(found, lexical=found.text if found.lexical is None else found.lexical)
