"""Ids to text: whole, piece by piece, and from damaged files."""

import io
import json
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from pianissimo.errors import CheckpointError, MissingExtraError, OptionError
from pianissimo.text.tokenizer import IncrementalDetokenizer, Tokenizer, main_language

SENTENCES = [
    "the quick brown fox jumps over the lazy dog.",
    "she sells sea shells by the sea shore, doesn't she?",
    "how much wood would a woodchuck chuck if a woodchuck could chuck wood!",
    "peter piper picked a peck of pickled peppers; where is the peck?",
]


def train(**options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        model_type="bpe",
        bos_id=-1,
        eos_id=-1,
        character_coverage=1.0,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


PLAIN_MODEL = train(vocab_size=80)
PLAIN = Tokenizer.from_sentencepiece(PLAIN_MODEL)
BYTES = Tokenizer.from_sentencepiece(
    train(vocab_size=340, byte_fallback=True, user_defined_symbols=["<en-US>", "<de>"])
)


def hf_json(**changes: Any) -> bytes:
    """A hand-written tokenizer.json with the vocabulary of PLAIN, and what Hugging Face adds."""
    size = PLAIN.vocab_size
    root = {
        "version": "1.0",
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": True},
            {"id": size, "content": "<blank>", "special": True},
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "vocab": {piece: i for i, piece in enumerate(PLAIN.pieces)},
            "merges": [],
        },
    }
    return json.dumps(root | changes).encode()


HF = Tokenizer.from_hf_json(hf_json())
TOKENIZERS = [PLAIN, BYTES, HF]


def test_sentencepiece_text_round_trip() -> None:
    for sentence in SENTENCES:
        assert PLAIN.decode(PLAIN.encode(sentence)) == sentence
    assert (PLAIN.kind, PLAIN.file_name, PLAIN.vocab_size) == (
        "sentencepiece",
        "tokenizer.model",
        80,
    )
    assert PLAIN.to_bytes() == PLAIN_MODEL
    assert PLAIN.unk_id == 0


@pytest.mark.parametrize(("tokenizer", "letters"), [(PLAIN, "abcde.,'"), (BYTES, "abé字🎉.,'")])
@given(data=st.data())
def test_decode_equals_sentencepiece(
    tokenizer: Tokenizer, letters: str, data: st.DataObject
) -> None:
    words = data.draw(st.lists(st.text(st.sampled_from(letters), min_size=1), max_size=6))
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_bytes())
    ids = processor.EncodeAsIds(" ".join(words))
    assert tokenizer.encode(" ".join(words)) == ids
    assert tokenizer.decode(ids) == processor.DecodeIds(ids) == " ".join(words)


def test_both_kinds_of_one_model_agree() -> None:
    assert HF.pieces == PLAIN.pieces
    assert HF.unk_id == PLAIN.unk_id
    ids = PLAIN.encode(SENTENCES[0])
    assert HF.decode([*ids, PLAIN.vocab_size]) == PLAIN.decode(ids) == SENTENCES[0]
    assert HF.special_ids - PLAIN.special_ids == {PLAIN.vocab_size}
    assert HF.kind == "huggingface"
    assert HF.file_name == "tokenizer.json"
    assert HF.to_bytes() == hf_json()


def test_hf_encode_and_byte_fallback_agree_with_the_tokenizers_package() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Metaspace()]
    )
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=360, special_tokens=["<unk>", *byte_pieces], show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    root = json.loads(tokenizer.to_str())
    root["added_tokens"] = root["added_tokens"][:1]  # bytes are pieces, not special tokens
    ours = Tokenizer.from_hf_json(json.dumps(root).encode())
    theirs = tokenizers.Tokenizer.from_str(json.dumps(root))
    for text in [*SENTENCES, "a naïve 字 🎉 zebra"]:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids) == text


def test_unigram_vocabularies() -> None:
    pieces = ["<pad>", "<unk>", "▁a", "b", "<blank>"]
    model = {"type": "Unigram", "unk_id": 1, "vocab": [[piece, 0.0] for piece in pieces]}
    tokenizer = Tokenizer.from_hf_json(hf_json(model=model, added_tokens=[]))
    assert tokenizer.pieces == tuple(pieces[:-1])
    assert tokenizer.unk_id == 1
    assert sorted(tokenizer.special_ids) == [0, 1, 4]
    assert tokenizer.decode([4, 2, 0, 3, 1, 2, 4]) == "ab a"


def test_special_tokens_never_enter_text() -> None:
    tags = {BYTES.pieces.index("<en-US>"), BYTES.pieces.index("<de>")}
    assert tags | {BYTES.unk_id} == BYTES.special_ids
    mixed = [i for id in BYTES.encode("the dog") for i in (*tags, id, 0)]
    assert BYTES.decode(mixed) == "the dog"
    assert BYTES.decode([*tags, 0]) == ""


def test_one_leading_space_is_stripped() -> None:
    space = PLAIN.pieces.index("▁")
    the = PLAIN.encode("the")
    assert PLAIN.decode([space, *the, *the]) == " the the"
    assert PLAIN.decode(the, continued=True) == " the"
    assert PLAIN.decode([]) == ""


def test_bytes_join_to_characters() -> None:
    def of(*values: int) -> list[int]:
        return [BYTES.pieces.index(f"<0x{value:02X}>") for value in values]

    assert BYTES.decode(of(*"é字🎉".encode())) == "é字🎉"
    assert BYTES.decode([*of(0xE5), *BYTES.encode("the"), *of(0x41)]) == "\ufffd theA"
    assert BYTES.byte_values.get(of(0x41)[0]) == b"A"
    assert BYTES.byte_values.get(0) is None


@pytest.mark.parametrize("id", [-1, 80, 10**9])
def test_foreign_ids_are_refused(id: int) -> None:
    with pytest.raises(OptionError, match="outside the vocabulary of 80"):
        PLAIN.decode([5, id])


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_pickle(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.pieces == tokenizer.pieces
    assert copy.special_ids == tokenizer.special_ids
    if tokenizer is not HF:
        assert copy.encode("the dog") == tokenizer.encode("the dog")


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_incremental_equals_whole(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids_of_bytes = list(tokenizer.byte_values)
    any_id = st.sampled_from(range(tokenizer.vocab_size)) | st.sampled_from(ids_of_bytes or [0])
    pushes = data.draw(st.lists(st.lists(any_id, max_size=5), max_size=12))
    max_pending = data.draw(st.sampled_from([1, 3, 128]))
    detokenizer = IncrementalDetokenizer(tokenizer, max_pending=max_pending)
    whole: list[int] = []
    stable = ""
    for push in pushes:
        whole += push
        stable += detokenizer.push(push)
        assert tokenizer.decode(whole).startswith((stable + detokenizer.tail).rstrip("\ufffd"))
    stable += detokenizer.finish()
    assert stable == tokenizer.decode(whole)
    assert detokenizer.tail == detokenizer.finish() == ""


def test_words_become_stable_when_the_next_begins() -> None:
    detokenizer = IncrementalDetokenizer(PLAIN)
    said = []
    for id in PLAIN.encode("the lazy dog."):
        stable = detokenizer.push([id])
        said += [stable] if stable else []
    assert said == ["the", " lazy"]
    assert detokenizer.tail == " dog."
    assert detokenizer.finish() == " dog."
    detokenizer.push(PLAIN.encode("the"))
    assert detokenizer.finish() == "the"


def test_memory_of_the_detokenizer_is_bounded() -> None:
    detokenizer = IncrementalDetokenizer(BYTES)
    lone = BYTES.pieces.index("<0xE5>")
    letter = next(i for i, piece in enumerate(BYTES.pieces) if piece == "e")
    for id in (lone, letter):
        total = sum(len(detokenizer.push([id])) for _ in range(2000))
        assert total >= 1800
        assert len(detokenizer._pending) <= 129
    with pytest.raises(OptionError):
        IncrementalDetokenizer(BYTES, max_pending=0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a model",
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" * 64 + data,
        lambda data: data[100:],
    ],
)
def test_damaged_sentencepiece_is_refused(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CheckpointError, match="SentencePiece model"):
        Tokenizer.from_sentencepiece(damage(PLAIN_MODEL))


BPE = {"type": "BPE", "unk_token": "<unk>", "merges": []}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        hf_json()[:-20],
        hf_json(model={}),
        hf_json(model={"type": "WordPiece", "vocab": {"a": 0}}),
        hf_json(model=BPE | {"vocab": {}}, added_tokens=[]),
        hf_json(model=BPE | {"vocab": {"<unk>": 0, "b": 10**12}}, added_tokens=[]),
        hf_json(model=BPE | {"vocab": {"<unk>": 0, "b": 0}}, added_tokens=[]),
        hf_json(model=BPE | {"vocab": {"<unk>": 0, "b": "1"}}, added_tokens=[]),
        hf_json(added_tokens=[{"id": 3, "content": "<other>", "special": True}]),
        hf_json(added_tokens=[{"id": 300, "content": "<blank>", "special": True}]),
        hf_json(added_tokens=[7]),
        hf_json(decoder={"type": "ByteLevel"}),
        hf_json(pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}),
    ],
)
def test_damaged_or_foreign_tokenizer_json_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_hf_json(data)


def test_a_vocabulary_without_merges_decodes_but_does_not_encode() -> None:
    pytest.importorskip("tokenizers")
    model = {"type": "BPE", "vocab": {"▁a": 0, "b": 1}}
    tokenizer = Tokenizer.from_hf_json(hf_json(model=model, added_tokens=[]))
    assert tokenizer.unk_id is None
    assert tokenizer.decode([0, 1]) == "ab"
    with pytest.raises(CheckpointError, match="cannot read this"):
        tokenizer.encode("ab")


def test_encode_without_the_tokenizers_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match="pip install tokenizers"):
        Tokenizer.from_hf_json(hf_json()).encode("the")


def test_language_tags_are_told_apart_from_other_marks() -> None:
    pieces = ["<unk>", "<pad>", "<en-US>", "<zh-CN>", "<de>", "<yue-HK>", "<0x41>", "<|en|>", "▁a"]
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": {p: i for i, p in enumerate(pieces)}}
    tokenizer = Tokenizer.from_hf_json(json.dumps({"model": model}).encode())
    assert tokenizer.language_tags == {2: "en-US", 3: "zh-CN", 4: "de", 5: "yue-HK"}
    assert tokenizer.language_tags.keys() <= tokenizer.special_ids
    tags = tokenizer.language_tags
    assert main_language([2, 8, 8, 3, 8], tags) == "en-US"
    assert main_language([2, 8, 3, 8, 8], tags) == "zh-CN"
    assert main_language([8, 8, 4], tags) == "de"
    assert main_language([8, 8], tags) is None
