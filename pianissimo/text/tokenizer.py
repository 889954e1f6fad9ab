"""Conversion between token ids and text, for whole texts and for live streams.

A piece is one entry of the vocabulary. `▁` (U+2581) in a piece stands for a space, so a piece that
begins with it begins a word; a piece such as `<0x41>` stands for one byte of UTF-8.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from pianissimo.errors import CheckpointError, MissingExtraError, OptionError
from pianissimo.text import WORD_START

if TYPE_CHECKING:
    import sentencepiece
    import tokenizers

BLANK = "<blank>"

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# <en>, <en-US>, <pad>, <blank>, <|notimestamps|>; never <0x41>.
_TAG = re.compile(r"</?[A-Za-z]{1,5}(?:-[A-Za-z0-9]{2,8})*>|<\|[^|<>]*\|>")

# <en-US>, <zh-CN>, <yue-HK>, <de>; three letters alone may be <unk> or <pad>.
_LANGUAGE_TAG = re.compile(r"<([a-z]{2}|[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})+)>")

TURN_MARKS: Mapping[str, Literal["end", "backchannel"]] = {"<EOU>": "end", "<EOB>": "backchannel"}
Kind = Literal["sentencepiece", "huggingface"]


class Tokenizer:
    """A vocabulary that encodes text to ids and decodes ids to text.

    Both kinds of tokenizer file of one model have equal `pieces`: the `<blank>` that Hugging Face
    repositories append to the vocabulary is a special id and no piece. A tokenizer can be pickled.
    """

    def __init__(
        self,
        kind: Kind,
        data: bytes,
        pieces: tuple[str, ...],
        unk_id: int | None,
        special_ids: Iterable[int],
        encoder: Callable[[str], list[int]],
        byte_values: Mapping[int, bytes] | None = None,
    ) -> None:
        """Use `from_sentencepiece` or `from_hf_json` instead."""
        tags = {i for i, piece in enumerate(pieces) if _TAG.fullmatch(piece)}
        unknown = set() if unk_id is None else {unk_id}
        self.kind: Kind = kind
        self.pieces = pieces
        self.unk_id = unk_id
        self.special_ids = frozenset(special_ids) | tags | unknown
        """Ids that never enter text: control and added special tokens, tags, the unknown piece."""
        self.language_tags: Mapping[int, str] = {
            i: match[1] for i in tags if (match := _LANGUAGE_TAG.fullmatch(pieces[i]))
        }
        """By id of a piece that says which language is spoken, such as `<de-DE>`: "de-DE"."""
        self.turn_marks: Mapping[int, Literal["end", "backchannel"]] = {
            i: TURN_MARKS[piece] for i, piece in enumerate(pieces) if piece in TURN_MARKS
        }
        """By id of a piece that says what becomes of the speaker's turn, as NVIDIA's Parakeet
        Realtime EOU writes it."""
        self.byte_values: Mapping[int, bytes] = byte_values or {
            i: bytes([int(match[1], 16)])
            for i, p in enumerate(pieces)
            if (match := _BYTE.fullmatch(p))
        }
        """The bytes of each piece that may be part of a character, such as `<0x41>`, by id."""
        self._data = data
        self._encoder = encoder

    @classmethod
    def from_sentencepiece(cls, model_bytes: bytes) -> "Tokenizer":
        """Read a SentencePiece model (`tokenizer.model`).

        Raises CheckpointError when the bytes are damaged, MissingExtraError without sentencepiece.
        """
        try:
            import sentencepiece
        except ImportError as error:
            raise MissingExtraError(
                "this model needs the sentencepiece package; run: pip install sentencepiece"
            ) from error
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model_bytes)
            size = int(processor.GetPieceSize())
            pieces = tuple(str(processor.IdToPiece(i)) for i in range(size))
            control = {i for i in range(size) if processor.IsControl(i) or processor.IsUnused(i)}
            unk_id = int(processor.unk_id())
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise CheckpointError(
                f"the SentencePiece model ({len(model_bytes)} bytes) cannot be read: {error}; "
                "download or convert the checkpoint again"
            ) from error
        if size == 0:
            raise CheckpointError(
                f"the SentencePiece model ({len(model_bytes)} bytes) has no pieces; "
                "download or convert the checkpoint again"
            )
        encoder = _SentencePieceEncoder(processor)
        unk = unk_id if 0 <= unk_id < size else None
        return cls("sentencepiece", model_bytes, pieces, unk, control, encoder)

    @classmethod
    def from_hf_json(cls, tokenizer_json_bytes: bytes) -> "Tokenizer":
        """Read a Hugging Face `tokenizer.json` with a BPE or Unigram vocabulary of `▁` pieces.

        Needs the `tokenizers` package for `encode` only. Raises CheckpointError when the file is
        damaged, or of a kind whose pieces are not SentencePiece's (byte-level BPE, WordPiece).
        """
        try:
            by_id, special, unk_id = _read_hf_json(json.loads(tokenizer_json_bytes))
        except CheckpointError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"tokenizer.json ({len(tokenizer_json_bytes)} bytes) cannot be read: "
                f"{type(error).__name__}: {error}; download or convert the checkpoint again"
            ) from error
        if not by_id or min(by_id) != 0 or max(by_id) != len(by_id) - 1:
            raise CheckpointError(
                f"tokenizer.json holds {len(by_id)} pieces whose ids do not run from 0 without "
                "gaps; download or convert the checkpoint again"
            )
        pieces = tuple(by_id[i] for i in range(len(by_id)))
        if pieces[-1] == BLANK:
            special.add(len(pieces) - 1)
            pieces = pieces[:-1]
        encoder = HfEncoder(tokenizer_json_bytes)
        return cls("huggingface", tokenizer_json_bytes, pieces, unk_id, special, encoder)

    @property
    def vocab_size(self) -> int:
        """The number of pieces, without the blank."""
        return len(self.pieces)

    @property
    def file_name(self) -> str:
        """The name under which a checkpoint stores `to_bytes()`."""
        return "tokenizer.model" if self.kind == "sentencepiece" else "tokenizer.json"

    def to_bytes(self) -> bytes:
        """The file contents that the tokenizer was read from."""
        return self._data

    def encode(self, text: str) -> list[int]:
        """Text to ids, without special tokens around it.

        The Hugging Face kind raises MissingExtraError without the `tokenizers` package, and
        CheckpointError when that package cannot use the file.
        """
        return self._encoder(text)

    def decode(self, ids: Iterable[int], *, continued: bool = False) -> str:
        """Ids to text; special ids and the unknown piece write nothing.

        One leading space is stripped, unless the text is `continued` from earlier ids. Bytes that
        are not UTF-8 become U+FFFD. Raises OptionError for an id outside the vocabulary.
        """
        parts: list[str] = []
        pending = bytearray()
        for id in ids:
            if id in self.special_ids:
                continue
            if not 0 <= id < len(self.pieces):
                raise OptionError(
                    f"token id {id} is outside the vocabulary of {len(self.pieces)} pieces; "
                    "does this tokenizer belong to the model?"
                )
            byte = self.byte_values.get(id)
            if byte is not None:
                pending += byte
                continue
            if pending:
                parts.append(pending.decode("utf-8", errors="replace"))
                pending.clear()
            parts.append(self.pieces[id].replace(WORD_START, " "))
        parts.append(pending.decode("utf-8", errors="replace"))
        text = "".join(parts)
        return text if continued else text.removeprefix(" ")


def main_language(ids: Iterable[int], tags: Mapping[int, str]) -> str | None:
    """The language of most tokens, each of which follows its tag; None without a tag."""
    counts: dict[str, int] = {}
    language: str | None = None
    for id in ids:
        if id in tags:
            language = tags[id]
            counts.setdefault(language, 0)
        elif language is not None:
            counts[language] += 1
    return max(counts, key=counts.__getitem__) if counts else None


class IncrementalDetokenizer:
    """Ids of a live stream to stable text, and a tail that may still grow.

    A word is stable once the first piece of the next one arrives. Only the ids of the unfinished
    word are kept. The results of `push` and `finish`, joined, equal `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_pending: int = 128) -> None:
        """`max_pending` is the longest unfinished word, in ids; a longer one is stable at once."""
        if max_pending < 1:
            raise OptionError(f"max_pending must be at least 1, not {max_pending}")
        self._tokenizer = tokenizer
        self._max_pending = max_pending
        self._pending: list[int] = []
        self._started = False

    def push(self, ids: Iterable[int]) -> str:
        """Add ids; return the text that became stable, with its leading space.

        Raises OptionError for an id outside the vocabulary.
        """
        tokenizer = self._tokenizer
        stable = 0
        for id in ids:
            if id in tokenizer.special_ids:
                continue
            if 0 <= id < len(tokenizer.pieces) and tokenizer.pieces[id].startswith(WORD_START):
                stable = len(self._pending)
            self._pending.append(id)
        if len(self._pending) - stable > self._max_pending:
            stable = self._whole_characters()
        text = tokenizer.decode(self._pending[:stable], continued=True)
        del self._pending[:stable]
        if not self._started and text:
            self._started = True
            text = text.removeprefix(" ")
        return text

    @property
    def tail(self) -> str:
        """The text of the unfinished word, with its leading space; it may still grow."""
        ids = self._pending
        if ids and ids[-1] in self._tokenizer.byte_values:
            ids = ids[: self._whole_characters()]
        return self._tokenizer.decode(ids, continued=self._started)

    def finish(self) -> str:
        """Return the rest of the text, and reset for a new text."""
        text = self._tokenizer.decode(self._pending, continued=self._started)
        self._pending, self._started = [], False
        return text

    def _whole_characters(self) -> int:
        """The number of pending ids before an incomplete UTF-8 character."""
        run: list[bytes] = []
        for id in reversed(self._pending):
            byte = self._tokenizer.byte_values.get(id)
            if byte is None:
                break
            run.append(byte)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(reversed(run)))
        open_bytes, ids = len(decoder.getstate()[0]), 0
        while open_bytes > 0:
            open_bytes -= len(run[ids])
            ids += 1
        return len(self._pending) - ids


class _SentencePieceEncoder:
    def __init__(self, processor: "sentencepiece.SentencePieceProcessor") -> None:
        self._processor = processor

    def __call__(self, text: str) -> list[int]:
        return [int(id) for id in self._processor.EncodeAsIds(text)]


class HfEncoder:
    """Loads the `tokenizers` package on first use: recognition itself never encodes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._tokenizer: tokenizers.Tokenizer | None = None

    def __call__(self, text: str) -> list[int]:
        if self._tokenizer is None:
            try:
                import tokenizers
            except ImportError as error:
                raise MissingExtraError(
                    "encoding text with a tokenizer.json needs the tokenizers package; "
                    "run: pip install tokenizers"
                ) from error
            try:
                self._tokenizer = tokenizers.Tokenizer.from_str(self._data.decode("utf-8"))
            except Exception as error:  # the binding raises nothing more specific
                raise CheckpointError(
                    f"the tokenizers package cannot read this tokenizer.json: {error}; "
                    "download or convert the checkpoint again"
                ) from error
        return [int(id) for id in self._tokenizer.encode(text, add_special_tokens=False).ids]


def _read_hf_json(root: Any) -> tuple[dict[int, str], set[int], int | None]:
    """Pieces by id, ids of special added tokens, id of the unknown piece."""
    model = root["model"]
    vocab = model["vocab"]
    unk_id: int | None
    if isinstance(vocab, list):  # Unigram: [[piece, score], ...]
        by_id = {i: str(piece) for i, (piece, _) in enumerate(vocab)}
        unk_id = model.get("unk_id")
    elif model.get("type", "BPE") == "BPE":
        by_id = {_id(id): str(piece) for piece, id in vocab.items()}
        if len(by_id) != len(vocab):
            raise ValueError("two pieces share an id")
        unk_id = vocab.get(model.get("unk_token"))
    else:
        raise CheckpointError(
            f"tokenizer.json holds a {model['type']} model; only BPE and Unigram are known"
        )
    stages = (root.get("pre_tokenizer"), root.get("decoder"))
    if any('"type": "ByteLevel"' in json.dumps(stage) for stage in stages):
        raise CheckpointError(
            "tokenizer.json holds byte-level BPE; only pieces in the SentencePiece style are known"
        )
    special = set()
    for token in root.get("added_tokens") or []:
        id, content = _id(token["id"]), str(token["content"])
        if by_id.setdefault(id, content) != content:
            raise ValueError(f"added token {content!r} and piece {by_id[id]!r} share the id {id}")
        if token.get("special"):
            special.add(id)
    if unk_id is not None and unk_id not in by_id:
        raise ValueError(f"the unknown piece has the id {unk_id}, which is not in the vocabulary")
    return by_id, special, unk_id


def _id(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"a piece has the id {value!r}, which is not an integer")
    return value
