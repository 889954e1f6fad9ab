"""Sentences from whole texts and from texts that arrive in pieces."""

import random

import pytest

from pianissimo.synthesis.sentences import LONGEST_SENTENCE, SentenceBuffer, split_sentences

STORY = (
    'Dr. Smith paid $9.99 on the 3rd of May. "Really?" asked J. K. Rowling. Yes... it was so!\n'
    "1. First point, with more words, and a list: one, two; three.\n\nThe end… Or not? 你好。再见！"
)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("Dr. Smith met Mr. T. Jones.", ["Dr. Smith met Mr. T. Jones."]),
        ("It costs 3.50 dollars. Cheap.", ["It costs 3.50 dollars.", "Cheap."]),
        ('He said "Go." Then he left.', ['He said "Go."', "Then he left."]),
        ("Well... maybe. e.g. this one", ["Well... maybe. e.g. this one"]),
        ("1. Wash. 2. Dry.", ["1. Wash.", "2. Dry."]),
        ("First line\nsecond line", ["First line", "second line"]),
        ("It was in 1990. Then it ended.", ["It was in 1990.", "Then it ended."]),
        ("  \n ", []),
        ("你好。再见！", ["你好。", "再见！"]),
    ],
)
def test_sentences_end_at_marks_but_not_at_abbreviations(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@pytest.mark.parametrize("eager", [False, True])
def test_any_pieces_give_the_same_sentences(eager: bool) -> None:
    def fed(pieces: list[str]) -> list[str]:
        buffer = SentenceBuffer(eager=eager)
        return [s for piece in pieces for s in buffer.push(piece)] + buffer.finish()

    texts = [STORY, "word " * 200, "a, b. " * 100, "x" * 1000]
    shuffler = random.Random(1)
    for text in texts:
        whole = fed([text])
        assert fed(list(text)) == whole
        for _ in range(20):
            cuts = sorted(shuffler.sample(range(len(text)), 5))
            pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            assert fed(pieces) == whole
        assert "".join("".join(whole).split()) == "".join(text.split())


def test_a_sentence_is_returned_once_the_next_word_begins() -> None:
    buffer = SentenceBuffer()
    assert buffer.push("It is ten. ") == []
    assert buffer.push("W") == ["It is ten."]
    assert buffer.push("hat then?") == []
    assert buffer.finish() == ["What then?"]
    assert buffer.finish() == []


def test_an_eager_first_piece_is_a_clause_or_twelve_words() -> None:
    buffer = SentenceBuffer(eager=True)
    text = "Well, I think so, but I am not sure, honestly. And you, my old friend, too?"
    pieces = [*buffer.push(text), *buffer.finish()]
    assert pieces == [
        "Well, I think so,",
        "but I am not sure, honestly.",
        "And you, my old friend, too?",
    ]
    counting = SentenceBuffer(eager=True)
    assert counting.push("a b c d e f g h i j k l m n o p ") == ["a b c d e f g h i j k l"]


def test_long_sentences_are_cut_between_words() -> None:
    pieces = split_sentences("word " * 200)
    assert all(len(piece) <= LONGEST_SENTENCE for piece in pieces)
    assert all(set(piece.split()) == {"word"} for piece in pieces)
    assert sum(len(piece.split()) for piece in pieces) == 200
    assert [len(piece) for piece in split_sentences("x" * 700)] == [300, 300, 100]
