import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import DIM, VOCABULARY, cut, make_model, make_talker, tensor

from pianissimo.decoding.ctc import CtcGreedySearch
from pianissimo.decoding.decoder import Search
from pianissimo.decoding.greedy import GreedySearch
from pianissimo.decoding.hotwords import (
    FIRST_BONUS,
    MOST_PHRASES,
    NEXT_BONUS,
    ROOT,
    Boost,
    Phrase,
    PhraseTrie,
    make_trie,
)
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel
from pianissimo.text.characters import Alphabet
from pianissimo.text.tokenizer import Tokenizer

# Words of one or two pieces: "▁a", "▁ab", ...
PIECES = ("▁a", "▁b", "▁c", "a", "b", "c")
FRAMES = 40
CPU = torch.device("cpu")


def trie_of(*phrases: tuple[int, ...], weight: float = 1.0) -> PhraseTrie:
    return PhraseTrie([(phrase, weight) for phrase in phrases], Vocabulary(PIECES))


def worth(trie: PhraseTrie, tokens: tuple[int, ...], *, ended: bool = True) -> float:
    """What a text gains, token by token."""
    node, total = trie.start, 0.0
    for token in tokens:
        score, node = trie.step(node, token)
        total += score
    return total + (trie.end(node) if ended else 0.0)


def price(phrase: tuple[int, ...]) -> float:
    return FIRST_BONUS + NEXT_BONUS * (len(phrase) - 1)


def words(tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The tokens of each word; the first one may lack its beginning."""
    starts = [i for i, t in enumerate(tokens) if t < 3 or i == 0]
    return [tokens[a:b] for a, b in itertools.pairwise([*starts, len(tokens)])]


phrases_of_words = st.lists(
    st.tuples(st.integers(0, 2), st.integers(3, 5)) | st.tuples(st.integers(0, 2)),
    min_size=1,
    max_size=2,
).map(lambda parts: tuple(itertools.chain(*parts)))
texts = st.lists(st.integers(0, 5), max_size=14).map(tuple)


@given(phrase=phrases_of_words, text=texts)
@settings(max_examples=300, deadline=None)
def test_a_text_gets_the_bonus_of_its_complete_phrases(
    phrase: tuple[int, ...], text: tuple[int, ...]
) -> None:
    """One phrase against a plain scan: found from the left, at word ends, without overlap."""
    spoken, wanted = words(text), words(phrase)
    count, i = 0, 0
    while i < len(spoken):
        # A word without its first piece is the end of another one.
        hit = spoken[i : i + len(wanted)] == wanted
        count, i = count + hit, i + (len(wanted) if hit else 1)
    assert worth(trie_of(phrase), text) == pytest.approx(count * price(phrase))


@given(phrases=st.lists(phrases_of_words, min_size=1, max_size=6), text=texts)
@settings(max_examples=200, deadline=None)
def test_a_token_gets_at_most_one_bonus(
    phrases: list[tuple[int, ...]], text: tuple[int, ...]
) -> None:
    trie = trie_of(*phrases)
    assert -1e-6 <= worth(trie, text) <= NEXT_BONUS * len(text) + 1e-6
    node = trie.start
    for token in text:
        bonuses = trie.token_bonuses(node, CPU)
        assert 0 <= float(bonuses.min()) <= float(bonuses.max()) <= NEXT_BONUS
        node = trie.step(node, token)[1]


@given(phrases=st.lists(phrases_of_words, min_size=1, max_size=6), text=texts)
@settings(max_examples=100, deadline=None)
def test_scores_of_all_tokens_are_those_of_each(
    phrases: list[tuple[int, ...]], text: tuple[int, ...]
) -> None:
    trie = trie_of(*phrases)
    node = trie.start
    for token in text:
        steps = [trie.step(node, t) for t in range(len(PIECES))]
        assert trie.scores(node, CPU).tolist() == pytest.approx([score for score, _ in steps])
        node = steps[token][1]


def test_the_bonus_of_an_abandoned_phrase_is_subtracted() -> None:
    trie = trie_of((0, 4, 5))
    assert worth(trie, (0, 4), ended=False) == pytest.approx(FIRST_BONUS + NEXT_BONUS)
    assert worth(trie, (0, 4, 3)) == worth(trie, (0, 4)) == pytest.approx(0.0)
    assert worth(trie, (0, 4, 5)) == pytest.approx(price((0, 4, 5)))
    assert worth(trie, (0, 4, 5, 3)) == pytest.approx(0.0), "the word went on and is another one"
    assert worth(trie, (0, 4, 5, 1)) == pytest.approx(price((0, 4, 5)))


def test_nested_phrases_all_count() -> None:
    trie = trie_of((0, 1, 2), (1,), (0, 1))
    assert worth(trie, (0, 1, 2)) == pytest.approx(price((0, 1)) + NEXT_BONUS)
    assert worth(trie, (0, 1, 0)) == pytest.approx(price((0, 1)))
    assert worth(trie, (2, 1, 2)) == pytest.approx(price((1,)))


def test_spellings_cover_cases_and_pieces(tiny_tokenizer: Tokenizer) -> None:
    vocabulary = Vocabulary.of_tokenizer(tiny_tokenizer)
    ways = vocabulary.spellings("The  Sea")
    assert len(ways) > 1
    assert tuple(tiny_tokenizer.encode("the sea")) in ways
    assert {tiny_tokenizer.decode(way) for way in ways} == {"the sea"}
    letters = Vocabulary.of_alphabet(Alphabet(("", " ", "A", "B"), blank=0))
    assert letters.spellings("ab a") == {(2, 3, 1, 2)}
    assert letters.spellings("xyz") == set()


def test_letters_begin_a_phrase_only_where_a_word_begins() -> None:
    vocabulary = Vocabulary.of_alphabet(Alphabet(("", " ", "A", "B"), blank=0))
    trie = make_trie(["ab"], vocabulary)
    assert trie is not None
    assert worth(trie, (2, 3)) == worth(trie, (3, 1, 2, 3, 1, 3)) == pytest.approx(price((2, 3)))
    assert worth(trie, (3, 2, 3)) == worth(trie, (2, 3, 3)) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("boost", "reason"),
    [
        ([""], "characters"),
        (["  "], "characters"),
        (["a" * 1000], "characters"),
        (["日本"], "cannot write"),
        ([Phrase("the", math.nan)], "weight"),
        ([Phrase("the", 0.0)], "weight"),
        ([Phrase("the", 99.0)], "weight"),
        (["the"] * (MOST_PHRASES + 1), "at most"),
        (["the " * 40] * MOST_PHRASES, "characters"),
        ("the", "list of phrases"),
    ],
)
def test_unusable_phrases_are_refused(boost: Boost, reason: str, tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(OptionError, match=reason):
        make_trie(boost, Vocabulary.of_tokenizer(tiny_tokenizer))
    assert make_trie([], Vocabulary.of_tokenizer(tiny_tokenizer)) is None


# -- in greedy searches ----------------------------------------------------------------------------

# Symbols of the random models are words of their own.
WORDS = Vocabulary(tuple(f"▁{i}" for i in range(VOCABULARY)))


def searches() -> list[Search]:
    spelling = make_model(seed=3)
    assert spelling.ctc is not None
    with torch.no_grad():
        spelling.ctc.out.bias[VOCABULARY] += 1.0
    return [
        GreedySearch(make_talker(1.0, seed=1)),
        GreedySearch(make_talker(2.0, seed=1, durations=(0, 1, 2, 4))),
        CtcGreedySearch(spelling),
    ]


@torch.no_grad()
def decode(
    search: Search, encoded: torch.Tensor, sizes: list[int], trie: PhraseTrie | None
) -> Hypothesis:
    state, found = search.start(1, [trie]), Hypothesis()
    for part in cut(len(encoded), sizes):
        found.extend(search.decode(encoded[None, part], None, state)[0])
    found.extend(state.flush()[0])
    return found


def pairs_trie(tokens: list[int], seed: int) -> PhraseTrie:
    """Phrases that begin with what is said and go on otherwise."""
    rng = random.Random(seed)
    phrases = {(a, rng.randrange(VOCABULARY)) for a in set(tokens)}
    return PhraseTrie([(phrase, 4.0) for phrase in phrases], WORDS)


@pytest.mark.parametrize("search", searches(), ids=["rnnt", "tdt", "ctc"])
def test_boosted_search_in_chunks_and_batches_equals_whole_and_alone(search: Search) -> None:
    encoded = tensor(3, FRAMES, DIM, seed=5)
    plain = [decode(search, row, [FRAMES], None) for row in encoded]
    tries = [pairs_trie(plain[0].tokens, 0), None, pairs_trie(plain[2].tokens, 2)]
    boosted = [decode(search, *pair, [FRAMES], trie) for *pair, trie in zip(encoded, tries)]  # noqa: B905
    assert boosted[0].tokens != plain[0].tokens
    assert boosted[2].tokens != plain[2].tokens
    assert boosted[1] == plain[1]
    for sizes in ([1], [0, 3, 11]):
        for row in range(3):
            assert decode(search, encoded[row], sizes, tries[row]).tokens == boosted[row].tokens
    state = search.start(3, tries)
    found = [Hypothesis() for _ in range(3)]
    with torch.no_grad():
        for part in cut(FRAMES, [0, 5, 9]):
            # As the engine does: some rows are taken out, stepped and put back.
            for rows in ([2, 0], [1]):
                index = torch.tensor(rows)
                taken = state.rows(index)
                for row, new in zip(rows, search.decode(encoded[index, part], None, taken)):  # noqa: B905
                    found[row].extend(new)
                state.write(index, taken)
    for together, alone in zip(found, boosted, strict=True):
        assert (together.tokens, together.frames) == (alone.tokens, alone.frames)


@pytest.mark.parametrize("search", searches(), ids=["rnnt", "tdt", "ctc"])
def test_bonuses_never_add_a_label_where_the_acoustics_have_none(search: Search) -> None:
    """Every word boosted as much as may be, alone and followed by itself: no loop."""
    every = PhraseTrie(
        [(p, 5.0) for i in range(VOCABULARY) for p in ((i,), (i, i), (i, i, i))], WORDS
    )
    silence = _silent(search)
    assert decode(silence, tensor(200, DIM), [7], every).tokens == []


def _silent(search: Search) -> Search:
    if isinstance(search, CtcGreedySearch):
        model = make_model(seed=3)
        assert model.ctc is not None
        with torch.no_grad():
            model.ctc.out.bias[VOCABULARY] += 8.0
        return CtcGreedySearch(model)
    assert isinstance(search, GreedySearch)
    return GreedySearch(make_talker(20.0, seed=1, durations=search.durations))


def test_a_hotword_close_to_the_audio_is_recognized() -> None:
    model: AsrModel = make_talker(1.0, seed=1)
    search, encoded = GreedySearch(model), tensor(FRAMES, DIM, seed=5)
    plain = decode(search, encoded, [FRAMES], None)
    with torch.no_grad():
        output, _ = search.predictor.step(torch.tensor([search.blank]), search.predictor.start(1))
        scores = search.joiner(
            search.joiner.encoder(encoded[plain.frames[0]]), search.joiner.predictor(output[0])
        )[: search.blank]
    first, second = scores.topk(2).indices.tolist()
    assert plain.tokens[0] == first
    gap = float(scores[first] - scores[second])
    for weight, expected in ((gap - 0.01, first), (gap + 0.01, second)):
        trie = PhraseTrie([((second,), weight / FIRST_BONUS)], WORDS)
        found = decode(search, encoded, [FRAMES], trie)
        assert found.tokens[0] == expected
        assert found.frames[0] == plain.frames[0]
        # The confidence is the word's own.
        assert found.confidences[0] == pytest.approx(math.exp(found.log_probs[0]), abs=1e-5)
    assert trie.start == ROOT
