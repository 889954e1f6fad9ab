import functools
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from tiny import DIM, VOCABULARY, cut, make_model, make_talker, tensor
from torch import Tensor

from pianissimo.decoding.beam import BeamSearch, TransducerHypothesis
from pianissimo.decoding.beam_state import BeamOptions, BeamState
from pianissimo.decoding.greedy import GreedySearch
from pianissimo.decoding.hotwords import PhraseTrie
from pianissimo.decoding.lm.arpa import count_ngrams
from pianissimo.decoding.lm.fusion import Fusion, TokenLm, WordLm
from pianissimo.decoding.lm.ngram import NgramModel
from pianissimo.decoding.token import Hypothesis
from pianissimo.decoding.vocabulary import Vocabulary
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel

FRAMES = 36
DURATIONS = (0, 1, 2, 4)
EXACT = BeamOptions(beam=256, settle_seconds=1000.0, pause_seconds=1000.0, window=1e9)
THREE = Vocabulary(("▁a", "▁b", "c"))


def fusions() -> dict[str, Fusion]:
    pieces = NgramModel(count_ngrams([["▁a", "c"], ["▁b", "▁a", "c"], ["▁b", "c", "c"]], 3))
    words = NgramModel(count_ngrams([["ac"], ["b", "ac"], ["bcc", "a"]], 2))
    tokens = TokenLm(pieces, [pieces.ids.get(piece) for piece in THREE.pieces], 0.7)
    trie = PhraseTrie([((0, 2), 1.0), ((1, 0), 0.5), ((1,), 0.7)], THREE)
    return {
        "plain": Fusion(),
        "tokens": Fusion(tokens),
        "words": Fusion(WordLm(words, THREE, 0.5, 0.3)),
        "phrases": Fusion(None, trie),
        "both": Fusion(tokens, trie),
    }


def search_of(
    model: AsrModel, fusion: Fusion, options: BeamOptions
) -> tuple[BeamSearch, BeamState[TransducerHypothesis]]:
    search = BeamSearch(model, options, fusion.lm)
    return search, search.start(1, [fusion.trie])


@functools.cache
def tiny(seed: int, durations: tuple[int, ...] = ()) -> tuple[AsrModel, Tensor]:
    model = make_talker(0.5, vocab_size=3, seed=seed, max_symbols=2, durations=durations)
    return model, tensor(3, DIM, seed=seed)


@functools.cache
@torch.no_grad()
def alignments(
    seed: int, durations: tuple[int, ...]
) -> dict[tuple[int, ...], list[tuple[float, float]]]:
    """Every alignment of the frames, by its text: its acoustic score, and what the gate weighs."""
    model, encoded = tiny(seed, durations)
    predictor, joiner, blank = model.predictor, model.joiner, model.config.vocab_size
    assert predictor is not None
    assert joiner is not None
    totals: dict[tuple[int, ...], list[tuple[float, float]]] = defaultdict(list)

    @functools.cache
    def after(text: tuple[int, ...]) -> Any:
        if not text:
            return predictor.step(torch.tensor([blank]), predictor.start(1))
        return predictor.step(torch.tensor([text[-1]]), after(text[:-1])[1])

    @functools.cache
    def heard(t: int, text: tuple[int, ...]) -> tuple[list[float], list[float]]:
        """Log-probabilities of symbols and of durations."""
        logits = joiner(joiner.encoder(encoded[t]), joiner.predictor(after(text)[0][0]))
        symbols, lasting = logits[: blank + 1].log_softmax(-1), logits[blank + 1 :].log_softmax(-1)
        return symbols.tolist(), lasting.tolist()

    def walk(t: int, here: int, text: tuple[int, ...], score: float, gated: float) -> None:
        if t >= len(encoded):
            totals[text].append((score, gated))
            return
        scores, lasting = heard(t, text)
        none = scores[blank]
        if here == model.config.max_symbols:
            walk(t + 1, 0, text, score + none, gated + none)
            return
        likely = dict(zip(durations, lasting, strict=True))
        for frames, more in (likely or {1: 0.0}).items():
            walk(t + max(frames, 1), 0, text, score + none + more, gated + none)
        rest = math.log(max(1 - math.exp(none), 1e-6))
        for label in range(blank):
            for frames, more in (likely or {0: 0.0}).items():
                times = 0 if frames else here + 1
                total = score + scores[label] + more
                walk(t + frames, times, (*text, label), total, gated + rest)

    walk(0, 0, (), 0.0, 0.0)
    return totals


def brute_force(
    seed: int, fusion: Fusion, durations: tuple[int, ...]
) -> dict[tuple[int, ...], float]:
    """All alignments summed by their text, and what is added to each text, token by token."""
    result = {}
    for text, scores in alignments(seed, durations).items():
        added, state = 0.0, fusion.start()
        for token in text:
            more, state = fusion.step(state, token)
            added += more
        total = math.log(sum(math.exp(score + fusion.gate * gated) for score, gated in scores))
        result[text] = total + added + fusion.end(state)
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", fusions())
@pytest.mark.parametrize("durations", [(), (0, 1, 2)])
def test_a_wide_beam_finds_the_sum_over_all_alignments(
    durations: tuple[int, ...], name: str, seed: int
) -> None:
    (model, encoded), fusion = tiny(seed, durations), fusions()[name]
    search, state = search_of(model, fusion, EXACT)
    with torch.no_grad():
        said = search.decode(encoded[None], None, state)[0]
    ways = {(*said.tokens, *tokens): score for tokens, score in state.beams[0].alternatives()}
    expected = brute_force(seed, fusion, durations)
    assert next(iter(ways)) == max(expected, key=lambda text: expected[text])
    # 256 hypotheses cannot hold all 500 texts and more; those that are likely are exact.
    likely = sorted(expected, key=lambda text: -expected[text])[:20]
    assert [ways[text] for text in likely] == pytest.approx(
        [expected[text] for text in likely], abs=1e-3
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("bias", [0.0, 2.0, 4.5])
@pytest.mark.parametrize("durations", [(), DURATIONS, (1, 3)])
def test_a_beam_of_one_is_the_greedy_search(
    durations: tuple[int, ...], bias: float, seed: int
) -> None:
    model = make_talker(bias, seed=seed, max_symbols=3, durations=durations)
    encoded = tensor(FRAMES, DIM, seed=seed)
    greedy = GreedySearch(model)
    with torch.no_grad():
        expected = greedy.decode(encoded[None], None, greedy.start())[0]
    found = decode(BeamSearch(model, BeamOptions(1)), encoded, [7])
    assert len(found.tokens) > 2
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)
    assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-4)
    assert found.confidences == pytest.approx(expected.confidences, abs=1e-4)


@pytest.mark.parametrize("durations", [(), (0,)])
def test_a_model_that_never_stops_is_cut_off_at_each_frame(durations: tuple[int, ...]) -> None:
    model = make_talker(-50.0, max_symbols=2, durations=durations)
    found = decode(BeamSearch(model, BeamOptions(1)), tensor(9, DIM), [4])
    assert found.frames == [t for t in range(9) for _ in range(2)]


@torch.no_grad()
def decode(
    search: BeamSearch, encoded: Tensor, sizes: list[int], trie: PhraseTrie | None = None
) -> Hypothesis:
    state, found = search.start(1, [trie]), Hypothesis()
    for part in cut(len(encoded), sizes):
        found.extend(search.decode(encoded[None, part], None, state)[0])
    found.extend(state.flush()[0])
    return found


@pytest.mark.parametrize("settle_seconds", [0.4, 2.0])
@pytest.mark.parametrize("bias", [1.0, 3.0])
@pytest.mark.parametrize("durations", [(), DURATIONS])
def test_batches_in_chunks_equal_each_whole(
    durations: tuple[int, ...], bias: float, settle_seconds: float
) -> None:
    model = make_talker(bias, max_symbols=3, durations=durations)
    words = Vocabulary(tuple(f"▁{i}" for i in range(VOCABULARY)))
    tries = [None, PhraseTrie([((3, 4), 2.0), ((5,), 2.0)], words), None, None]
    search = BeamSearch(model, BeamOptions(4, settle_seconds))
    lengths = torch.tensor([25, FRAMES, 0, 1])
    encoded = tensor(4, FRAMES, DIM, seed=3)
    alone = [
        decode(search, row[:n], [FRAMES], trie)
        for row, n, trie in zip(encoded, lengths.tolist(), tries, strict=True)
    ]
    assert alone[1] != decode(search, encoded[1], [FRAMES])
    state, found = search.start(4, tries), [Hypothesis() for _ in range(4)]
    index = torch.tensor([3, 1, 0, 2])
    with torch.no_grad():
        for part in cut(FRAMES, [0, 1, 5, 20], 1):
            valid = (lengths - part.start).clamp(0, part.stop - part.start)
            taken = state.rows(index)
            for row, new in zip(
                index.tolist(),
                search.decode(encoded[index, part], valid[index], taken),
                strict=True,
            ):
                found[row].extend(new)
            state.write(index, taken)
        for row, new in enumerate(state.flush()):
            found[row].extend(new)
    for together, expected in zip(found, alone, strict=True):
        assert (together.tokens, together.frames) == (expected.tokens, expected.frames)
        assert together.frames == sorted(together.frames)


@pytest.mark.parametrize("durations", [(), DURATIONS])
def test_a_wider_beam_finds_likelier_texts(durations: tuple[int, ...]) -> None:
    scores = []
    for beam in (1, 2, 8, 32):
        model = make_talker(1.0, seed=4, durations=durations)
        search = BeamSearch(model, BeamOptions(beam, 1000.0, 1000.0))
        state = search.start()
        with torch.no_grad():
            search.decode(tensor(1, 20, DIM, seed=4), None, state)
        scores.append(max(h.score for h in state.beams[0].hypotheses))
    assert scores[0] < scores[1] < scores[2] <= scores[3] + 1e-3


def test_a_discarded_step_changes_nothing() -> None:
    search, encoded = BeamSearch(make_talker(1.0), BeamOptions(4)), tensor(1, FRAMES, DIM)
    state, index = search.start(2), torch.tensor([1])
    with torch.no_grad():
        search.decode(encoded[:, :20], None, state.rows(index))
        taken = state.rows(index)
        found = search.decode(encoded, None, taken)[0]
        found.extend(taken.flush()[0])
    expected = decode(search, encoded[0], [FRAMES])
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [BeamOptions(4), BeamOptions(4, rescoring=0.7)])
@pytest.mark.parametrize("durations", [(), DURATIONS])
@torch.no_grad()
def test_frames_searched_ahead_change_nothing(
    durations: tuple[int, ...], options: BeamOptions, seed: int
) -> None:
    """As where a text is locked: the frames of the tail come again, but are not searched again."""
    model = make_talker(1.0, seed=seed, durations=durations)
    search, encoded = BeamSearch(model, options), tensor(1, FRAMES, DIM, seed=seed)
    found = []
    for looks_ahead in (False, True):
        state, hypothesis = search.start(), Hypothesis()
        hypothesis.extend(search.decode(encoded[:, :15], None, state)[0])
        hypothesis.extend(search.decode(encoded[:, 15:20], None, state)[0])
        hypothesis.extend(state.flush()[0])
        if looks_ahead:
            state.frames -= 5
            state.ahead += 5
        rest = encoded[:, 15:] if looks_ahead else encoded[:, 20:]
        hypothesis.extend(search.decode(rest, None, state)[0])
        hypothesis.extend(state.flush()[0])
        found.append(hypothesis)
    assert found[0] == found[1]
    assert found[0].frames[-1] > 20


def test_models_without_a_transducer_are_refused() -> None:
    with pytest.raises(OptionError, match="no transducer"):
        BeamSearch(make_model(transducer=None))
