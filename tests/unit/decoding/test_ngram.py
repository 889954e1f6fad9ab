import gzip
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pianissimo.decoding.lm.arpa import (
    BEGIN,
    END,
    LN_10,
    MOST_NGRAMS,
    UNKNOWN,
    count_ngrams,
    read_arpa,
    write_arpa,
)
from pianissimo.decoding.lm.ngram import NO_UNKNOWN, NgramModel
from pianissimo.errors import CheckpointError, OptionError

Listed = dict[tuple[str, ...], tuple[float, float]]
WORDS = ("a", "b", "c", "d")


def text_of(listed: Listed) -> str:
    order = max(len(gram) for gram in listed)
    by_order = [[g for g in listed if len(g) == k] for k in range(1, order + 1)]
    lines = ["\\data\\", *(f"ngram {k}={len(g)}" for k, g in enumerate(by_order, start=1)), ""]
    for k, grams in enumerate(by_order, start=1):
        lines.append(f"\\{k}-grams:")
        for gram in grams:
            probability, weight = listed[gram]
            end = f"\t{weight}" if k < order else ""
            lines.append(f"{probability}\t{' '.join(gram)}{end}")
        lines.append("")
    return "\n".join([*lines, "\\end\\", ""])


def defined(listed: Listed, history: tuple[str, ...], word: str) -> float:
    """The definition of the format, read naively, in base-10 logarithms."""
    if (*history, word) in listed:
        return listed[*history, word][0]
    if not history:
        return listed[UNKNOWN,][0] if (UNKNOWN,) in listed else NO_UNKNOWN / LN_10
    weight = listed[history][1] if history in listed else 0.0
    return weight + defined(listed, history[1:], word)


def model_of(listed: Listed, folder: Path) -> NgramModel:
    path = folder / "model.arpa"
    path.write_text(text_of(listed), encoding="utf-8")
    return NgramModel(read_arpa(path))


def drawn(seed: int, order: int, unknown: bool, pruned: bool) -> Listed:
    """A random model; pruned ones list n-grams whose contexts and suffixes they do not list."""
    rng = random.Random(seed)
    words = [*WORDS, BEGIN, END, *([UNKNOWN] if unknown else [])]
    listed: Listed = {}
    for k in range(1, order + 1):
        for gram in itertools.product(words, repeat=k):
            context_there = k == 1 or gram[:-1] in listed or pruned
            if k == 1 or (context_there and rng.random() < 0.3 / (k - 1)):
                listed[gram] = (round(-3 * rng.random(), 4), round(rng.uniform(-1, 0.3), 4))
    return listed


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("unknown", [True, False])
@pytest.mark.parametrize("pruned", [True, False])
def test_scores_are_those_of_the_definition(
    order: int, unknown: bool, pruned: bool, tmp_path: Path
) -> None:
    listed = drawn(order, order, unknown, pruned)
    model = model_of(listed, tmp_path)
    rng = random.Random(7)
    backed_off = 0
    for _ in range(60):
        history, state = [BEGIN], model.start()
        for _ in range(6):
            word = rng.choice([*WORDS, END, "elsewhere"])
            score, state = model.score(state, model.ids.get(word))
            context = tuple(history[max(0, len(history) - order + 1) :])
            if word == "elsewhere":
                word = UNKNOWN
            expected = defined(listed, context, word) if unknown or word != UNKNOWN else None
            if expected is None:
                assert score == NO_UNKNOWN
                history = []
                continue
            backed_off += (*context, word) not in listed
            assert score == pytest.approx(expected * LN_10, abs=1e-4)
            history.append(word)
    assert order == 1 or backed_off > 30


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("pruned", [True, False])
def test_all_words_at_once_equal_one_by_one(order: int, pruned: bool, tmp_path: Path) -> None:
    model = model_of(drawn(order, order, True, pruned), tmp_path)
    states = torch.arange(len(model.back)).flip(0)
    together = model.tables().scores(states)
    for row, state in enumerate(states.tolist()):
        alone = [model.score(state, word)[0] for word in range(len(model.words))]
        assert together[row].tolist() == pytest.approx(alone, abs=1e-5)


def test_a_file_may_be_gzip_and_hold_words_of_any_script(tmp_path: Path) -> None:
    # Pieces written as characters from 100 on are often white space of other scripts.
    odd = chr(160), chr(0x2028), "語", "ü"
    listed: Listed = {(w,): (-0.5, -0.1) for w in (*odd, END)}
    listed[odd[0], odd[1]] = (-0.25, 0.0)
    path = tmp_path / "model.arpa.gz"
    path.write_bytes(gzip.compress(text_of(listed).encode()))
    model = NgramModel(read_arpa(path))
    assert model.words == (*odd, END)
    _, state = model.score(0, 0)
    assert model.score(state, 1)[0] == pytest.approx(-0.25 * LN_10)
    assert model.end(state) == pytest.approx(-0.6 * LN_10)


@given(
    sentences=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), min_size=1),
    order=st.integers(1, 4),
)
@settings(max_examples=40, deadline=None)
def test_counted_models_are_distributions(sentences: list[list[str]], order: int) -> None:
    arpa = count_ngrams(sentences, order)
    model = NgramModel(arpa)
    scores = model.tables().scores(torch.arange(len(model.back)))
    scores[:, model.ids[BEGIN]] = -math.inf
    assert scores.exp().sum(1).tolist() == pytest.approx([1.0] * len(scores), abs=1e-4)


def test_a_counted_model_prefers_its_sentences(tmp_path: Path) -> None:
    arpa = count_ngrams([["a", "b"], ["a", "b"], ["a", "c"], ["b", "a"], ["c", "d"]], order=3)
    path = tmp_path / "counted.arpa.gz"
    write_arpa(arpa, path)
    model = NgramModel(read_arpa(path))
    again = NgramModel(arpa)
    assert np.allclose(model.log_probs, again.log_probs, atol=1e-5)
    _, after_a = model.score(model.start(), model.ids["a"])
    likely = model.score(after_a, model.ids["b"])[0]
    assert (
        likely > model.score(after_a, model.ids["c"])[0] > model.score(after_a, model.ids["d"])[0]
    )
    with pytest.raises(OptionError, match="at least one sentence"):
        count_ngrams([[]])
    with pytest.raises(OptionError, match="order"):
        count_ngrams([["a"]], order=0)


GOOD = text_of({("a",): (-1, 0), ("b",): (-1, 0), ("a", "b"): (-0.5, 0)})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is incomplete"),
        ("hello\n", "not an ARPA file"),
        (GOOD.replace("ngram 1=2", "ngram 1=3"), "line 9"),
        (GOOD.replace("ngram 1=2", "ngram 1=1"), "2-grams"),
        (GOOD.replace("ngram 1=2", f"ngram 1={MOST_NGRAMS + 1}"), "up to"),
        (GOOD.replace("ngram 2=1", "ngram 3=1"), "ngram 2"),
        (GOOD.replace("-0.5\ta b", "-0.5\ta z"), "not among the 1-grams"),
        (GOOD.replace("-0.5\ta b", "nan\ta b"), "not finite"),
        (GOOD.replace("-0.5\ta b", "0.5\ta b"), "above 1"),
        (GOOD.replace("-0.5\ta b", "-inf\ta b"), "not finite"),
        (GOOD.replace("-0.5\ta b", "x\ta b"), "not a number"),
        (GOOD.replace("-0.5\ta b", "-0.5\ta"), "2 words"),
        (GOOD.replace("-0.5\ta b", "-0.5\ta b" + " " * (1 << 17)), "longer than"),
        (GOOD.replace("\tb", "\ta"), "appears twice"),
        (GOOD.replace("\\end\\", ""), "is incomplete"),
        (GOOD.replace("\\end\\", "-1\tb a\n\\end\\"), "expected .end"),
        ("mmap lm http://kheafield.com/code format version 5\n", "KenLM binary"),
    ],
)
def test_hostile_files_are_refused_with_a_reason(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.arpa"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=reason):
        read_arpa(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nowhere"):
        read_arpa(tmp_path / "nowhere.arpa")
    cut_off = tmp_path / "model.arpa.gz"
    cut_off.write_bytes(gzip.compress(GOOD.encode())[:40])
    with pytest.raises(CheckpointError):
        read_arpa(cut_off)
    latin = tmp_path / "latin.arpa"
    latin.write_bytes(GOOD.replace("\tb", "\t\xff").replace("a b", "a \xff").encode("latin-1"))
    with pytest.raises(CheckpointError, match="UTF-8"):
        read_arpa(latin)
