"""Whisper's tokens: byte-level pieces, and marks that say what is spoken and asked for."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from pianissimo.errors import CheckpointError
from pianissimo.text import WORD_START
from pianissimo.text.tokenizer import HfEncoder, Tokenizer

START, END = "<|startoftranscript|>", "<|endoftext|>"
NO_TIMESTAMPS, PREVIOUS = "<|notimestamps|>", "<|startofprev|>"
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
TASKS = ("transcribe", "translate")
MOST_TOKENS = 1 << 20

_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


class WhisperTokenizer:
    """The vocabulary of a `tokenizer.json`, and text to ids and back.

    `start`, `end`, `no_timestamps`, `previous` and `no_speech` are ids; `languages` are the codes
    that a multilingual model may be told, by id; `tasks` likewise.
    """

    def __init__(self, data: bytes) -> None:
        """Raises CheckpointError for what is damaged, or has not the tokens of a Whisper."""
        self._data = data
        self._encoder = HfEncoder(data)
        try:
            pieces, marks = _read(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _damaged(f"{type(error).__name__}: {error}") from error
        self._bytes = pieces
        self._marks = {content: id for id, content in marks.items()}
        self.size = max([*pieces, *marks], default=-1) + 1
        missing = [mark for mark in (START, END, NO_TIMESTAMPS) if mark not in self._marks]
        if missing:
            raise _damaged(f"it has no {' and no '.join(missing)}, as that of every Whisper has")
        self.start, self.end = self._marks[START], self._marks[END]
        self.no_timestamps = self._marks[NO_TIMESTAMPS]
        self.previous = self._marks.get(PREVIOUS)
        silent = [self._marks[mark] for mark in NO_SPEECH if mark in self._marks]
        self.no_speech = silent[0] if silent else self.no_timestamps - 1
        self.languages = {
            found[1]: id for mark, id in self._marks.items() if (found := _LANGUAGE.fullmatch(mark))
        }
        self.tasks = {t: self._marks[f"<|{t}|>"] for t in TASKS if f"<|{t}|>" in self._marks}
        self._special = frozenset(marks)
        self.has_empty_piece = b"" in {piece for id, piece in pieces.items() if id not in marks}
        """So have all vocabularies of several languages, and none of English alone."""

    def to_bytes(self) -> bytes:
        """The very bytes this tokenizer was read from."""
        return self._data

    def decode(self, ids: Iterable[int]) -> str:
        """Ids to text; marks and unknown ids leave nothing, bytes that are not UTF-8 U+FFFD."""
        known = (self._bytes.get(id, b"") for id in ids if id not in self._special)
        return b"".join(known).decode("utf-8", errors="replace")

    def encode(self, text: str) -> list[int]:
        """Text to ids, without marks around it."""
        return self._encoder(text)

    def for_streams(self) -> Tokenizer:
        """The same vocabulary as pieces in which `▁` begins a word, as live streams use them."""
        texts = {id: self._bytes.get(id, b"") for id in range(self.size)}
        pieces: list[str] = []
        partial: dict[int, bytes] = {}
        for id, data in texts.items():
            text = data.decode("utf-8", errors="replace")
            if "\ufffd" in text:
                partial[id] = data
            pieces.append(WORD_START + text[1:] if text.startswith(" ") else text)
        silent = {id for id, data in texts.items() if not data}
        encode = self._encoder
        return Tokenizer(
            "huggingface", self._data, tuple(pieces), None, self._special | silent, encode, partial
        )

    def prompt(self, language: str | None, task: str | None) -> list[int]:
        """What a text begins with; without a language it is that of a model of one language."""
        told: Sequence[int] = ()
        if language is not None:
            told = [self.languages[language], *([self.tasks[task]] if task in self.tasks else [])]
        return [self.start, *told, self.no_timestamps]


def _damaged(reason: str) -> CheckpointError:
    return CheckpointError(
        f"tokenizer.json is damaged or belongs to another kind of model ({reason}); fetch it again"
    )


def _read(root: Any) -> tuple[dict[int, bytes], dict[int, str]]:
    """The bytes of each piece and the text of each added token, by id."""
    # Translating whole pieces is ten times as fast as a look-up for each character. What stands
    # for no byte becomes a character that Latin-1 does not have, and is refused.
    table = dict.fromkeys(range(256), 0xFFFF)
    table |= {ord(character): value for value, character in enumerate(byte_characters())}
    pieces: dict[int, bytes] = {}
    for piece, id in root["model"]["vocab"].items():
        if not isinstance(id, int) or not 0 <= id < MOST_TOKENS:
            raise ValueError(f"a piece has the id {id!r}")
        marked = piece.startswith("<|") and piece.endswith("|>")
        pieces[id] = b"" if marked else piece.translate(table).encode("latin-1")
    marks: dict[int, str] = {}
    for token in root.get("added_tokens") or []:
        id = token["id"]
        if not isinstance(id, int) or not 0 <= id < MOST_TOKENS:
            raise ValueError(f"an added token has the id {id!r}")
        marks[id] = str(token["content"])
    return pieces, marks


def byte_characters() -> str:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    characters, others = [], 0
    for value in range(256):
        if value in printable:
            characters.append(chr(value))
        else:
            characters.append(chr(256 + others))
            others += 1
    return "".join(characters)
