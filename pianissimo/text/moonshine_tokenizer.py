"""Moonshine's tokens: pieces as SentencePiece has them, between a start and an end token."""

from collections.abc import Iterable, Mapping

from pianissimo.errors import CheckpointError
from pianissimo.text.tokenizer import Tokenizer


class MoonshineTokenizer:
    """The vocabulary of a Moonshine, with the prompts of `WhisperTokenizer`: the start token alone.

    `start` and `end` are ids. A Moonshine knows one language, so there are no `languages`.
    """

    languages: Mapping[str, int] = {}

    def __init__(self, tokenizer: Tokenizer, start: int, end: int) -> None:
        """Raises CheckpointError for a start or end outside of the vocabulary."""
        if not (0 <= start < tokenizer.vocab_size and 0 <= end < tokenizer.vocab_size):
            raise CheckpointError(
                f"the tokens {start} and {end} that begin and end a text are outside of the "
                f"vocabulary of {tokenizer.vocab_size} pieces; download the whole model again"
            )
        self._tokenizer, self.start, self.end = tokenizer, start, end

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; the first word has a space before it, as all others have."""
        return self._tokenizer.decode(ids, continued=True)

    def prompt(self, language: str | None, task: str | None) -> list[int]:
        """What a text begins with."""
        return [self.start]

    def for_streams(self) -> Tokenizer:
        """The vocabulary as live streams use it."""
        return self._tokenizer
