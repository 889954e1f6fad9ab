import itertools

import pytest
import torch
from tiny import DIM, VOCABULARY, cut, make_model, tensor
from torch import Tensor

from pianissimo.decoding.confidence import Confidence
from pianissimo.decoding.ctc import CtcGreedySearch
from pianissimo.decoding.token import Hypothesis
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel

SEEDS = range(6)


def talkative(seed: int) -> AsrModel:
    """A model that repeats symbols and leaves blanks between some of them."""
    model = make_model(seed=seed)
    assert model.ctc is not None
    with torch.no_grad():
        model.ctc.out.bias[VOCABULARY] += 1.0
    return model


def sound(frames: int, seed: int, rows: int = 1) -> Tensor:
    """Encoder frames that last about two frames each, so that symbols repeat."""
    return tensor(rows, (frames + 1) // 2, DIM, seed=seed).repeat_interleave(2, dim=1)[:, :frames]


@torch.no_grad()
def naive(model: AsrModel, frames: Tensor) -> tuple[list[int], list[int], list[float]]:
    """Best symbol of each of (S, D) frames, runs merged, blanks left out."""
    assert model.ctc is not None
    log_probs = model.ctc.out(frames).log_softmax(-1)
    best = log_probs.argmax(-1).tolist()
    tokens, at, scores, t = [], [], [], 0
    for symbol, run in itertools.groupby(best):
        if symbol != VOCABULARY:
            tokens.append(symbol)
            at.append(t)
            scores.append(float(log_probs[t, symbol]))
        t += len(list(run))
    return tokens, at, scores


def whole(model: AsrModel, frames: Tensor) -> Hypothesis:
    search = CtcGreedySearch(model)
    with torch.no_grad():
        return search.decode(frames[None], None, search.start())[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_runs_are_merged_and_blanks_dropped(seed: int) -> None:
    model, frames = talkative(seed), sound(60, seed)[0]
    tokens, at, scores = naive(model, frames)
    found = whole(model, frames)
    assert 5 < len(tokens) < 60
    assert any(b - a > 1 for a, b in itertools.pairwise(at))
    assert (found.tokens, found.frames) == (tokens, at)
    assert found.log_probs == pytest.approx(scores, abs=1e-5)
    assert found.confidences == pytest.approx(torch.tensor(scores).exp().tolist(), abs=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("sizes", [[1], [0, 1, 2], [0, 3, 11, 30]])
def test_chunks_of_any_size_equal_the_whole(seed: int, sizes: list[int]) -> None:
    model, frames = talkative(seed), sound(60, seed)
    search = CtcGreedySearch(model)
    state, found = search.start(), Hypothesis()
    with torch.no_grad():
        for part in cut(60, sizes, seed):
            found.extend(search.decode(frames[:, part], None, state)[0])
    expected = whole(model, frames[0])
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_of_a_batch_in_chunks_equal_each_alone(seed: int) -> None:
    model, lengths = talkative(seed), torch.tensor([37, 60, 0, 1, 20])
    frames = sound(60, seed, rows=5)
    search = CtcGreedySearch(model)
    state, found = search.start(5), [Hypothesis() for _ in range(5)]
    with torch.no_grad():
        for part in cut(60, [0, 1, 5, 20], seed):
            valid = (lengths - part.start).clamp(0, part.stop - part.start)
            for row, new in enumerate(search.decode(frames[:, part], valid, state)):
                found[row].extend(new)
    for row, n in enumerate(lengths.tolist()):
        expected = whole(model, frames[row, :n])
        assert (found[row].tokens, found[row].frames) == (expected.tokens, expected.frames)


def test_a_pause_of_one_row_keeps_its_last_symbol() -> None:
    """A row that gets no frame in a chunk goes on where it stopped."""
    model, frames = talkative(0), sound(20, 0)
    search, odd = CtcGreedySearch(model), 11  # in the middle of a pair of equal frames
    state, found = search.start(), Hypothesis()
    with torch.no_grad():
        found.extend(search.decode(frames[:, :odd], None, state)[0])
        assert search.decode(frames, torch.tensor([0]), state)[0].tokens == []
        found.extend(search.decode(frames[:, odd:], None, state)[0])
    expected = whole(model, frames[0])
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)


@pytest.mark.parametrize("measure", ["probability", "max_prob", "gibbs", "tsallis", "renyi"])
def test_confidences_lie_between_zero_and_one(measure: str) -> None:
    model, frames = talkative(1), sound(60, 1)
    search = CtcGreedySearch(model, Confidence(measure))  # type: ignore[arg-type]
    with torch.no_grad():
        found = search.decode(frames, None, search.start())[0]
    assert found.tokens
    assert all(0 <= c <= 1 for c in found.confidences)


def test_a_model_without_the_head_is_refused() -> None:
    with pytest.raises(OptionError, match="no CTC head"):
        CtcGreedySearch(make_model(ctc=False))
