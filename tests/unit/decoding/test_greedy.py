import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from tiny import DIM, VOCABULARY, cut, make_model, make_talker, tensor
from torch import Tensor

from pianissimo.decoding import greedy
from pianissimo.decoding.confidence import Confidence
from pianissimo.decoding.greedy import GreedySearch
from pianissimo.decoding.search import make_search
from pianissimo.decoding.token import Hypothesis
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel

SEEDS = range(2)
FRAMES = 36
# Added to the score of the blank: several labels a frame, about one, or one now and then.
BLANK_BIASES = {"chatty": 0.0, "fluent": 2.0, "quiet": 4.5}
DURATIONS = (0, 1, 2, 4)
SIZES = [[1], [0, 1, 3, 9, 20], [FRAMES]]


def talkative(
    blank_bias: float, seed: int, durations: tuple[int, ...] = (), max_symbols: int = 3
) -> AsrModel:
    return make_talker(blank_bias, seed=seed, durations=durations, max_symbols=max_symbols)


@dataclass
class Naive:
    """What the plain decoders below found; `crowded` counts how often max_symbols ended a frame."""

    tokens: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    crowded: int = 0


@torch.no_grad()
def naive(model: AsrModel, encoded: Tensor) -> Naive:
    """Graves 2012: one frame and one label at a time over (S, D) frames."""
    predictor, joiner = model.predictor, model.joiner
    assert predictor is not None
    assert joiner is not None
    found = Naive()
    out, state = predictor.step(torch.tensor([VOCABULARY]), predictor.start(1))
    for t in range(len(encoded)):
        for symbols in itertools.count():
            if symbols == model.config.max_symbols:
                found.crowded += 1
                break
            scores = joiner(joiner.encoder(encoded[t]), joiner.predictor(out[0]))
            label = int(scores.argmax())
            if label == VOCABULARY:
                break
            found.tokens.append(label)
            found.frames.append(t)
            found.log_probs.append(float(scores.log_softmax(-1)[label]))
            out, state = predictor.step(torch.tensor([label]), state)
    return found


@torch.no_grad()
def naive_durations(model: AsrModel, encoded: Tensor) -> Naive:
    """Xu et al. 2023: a symbol and how far to go after it; a blank goes one frame at least."""
    predictor, joiner = model.predictor, model.joiner
    assert predictor is not None
    assert joiner is not None
    found, t, here = Naive(), 0, 0
    out, state = predictor.step(torch.tensor([VOCABULARY]), predictor.start(1))
    while t < len(encoded):
        scores = joiner(joiner.encoder(encoded[t]), joiner.predictor(out[0]))
        symbols, jumps = scores[: VOCABULARY + 1], scores[VOCABULARY + 1 :]
        label, jump = int(symbols.argmax()), DURATIONS[int(jumps.argmax())]
        if label == VOCABULARY:
            t, here = t + max(jump, 1), 0
            continue
        found.tokens.append(label)
        found.frames.append(t)
        found.log_probs.append(float(symbols.log_softmax(-1)[label]))
        out, state = predictor.step(torch.tensor([label]), state)
        here = here + 1 if jump == 0 else 0
        if here == model.config.max_symbols:
            found.crowded += 1
            jump, here = 1, 0
        t += jump
    return found


def reference(model: AsrModel, encoded: Tensor) -> Naive:
    return (naive_durations if model.config.transducer.durations else naive)(model, encoded)  # type: ignore[union-attr]


@torch.no_grad()
def decode(model: AsrModel, encoded: Tensor, sizes: list[int], seed: int = 0) -> Hypothesis:
    search = GreedySearch(model)
    state, found = search.start(), Hypothesis()
    for part in cut(len(encoded), sizes, seed):
        found.extend(search.decode(encoded[None, part], None, state)[0])
    return found


def assert_same(found: Hypothesis, expected: Naive | Hypothesis) -> None:
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)
    assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("durations", [(), DURATIONS])
@pytest.mark.parametrize("bias", BLANK_BIASES)
def test_the_search_finds_what_one_label_at_a_time_finds(
    bias: str, durations: tuple[int, ...], seed: int
) -> None:
    model = talkative(BLANK_BIASES[bias], seed, durations)
    encoded = tensor(FRAMES, DIM, seed=seed)
    expected = reference(model, encoded)
    for sizes in SIZES:
        assert_same(decode(model, encoded, sizes, seed), expected)


@pytest.mark.parametrize("durations", [(), DURATIONS])
def test_the_models_above_speak_at_every_pace(durations: tuple[int, ...]) -> None:
    """So that the test above saw frames full, with several labels, with one, and long pauses."""
    runs = {
        bias: [
            reference(talkative(value, seed, durations), tensor(FRAMES, DIM, seed=seed))
            for seed in SEEDS
        ]
        for bias, value in BLANK_BIASES.items()
    }
    crowds = Counter(n for run in runs["chatty"] for n in Counter(run.frames).values())
    assert crowds[1] > 3
    assert crowds[2] + crowds[3] > 1
    assert durations or min(crowds[2], crowds[3]) > 1
    gaps = [b - a for run in runs["quiet"] for a, b in itertools.pairwise(run.frames)]
    assert max(gaps) > (4 if durations else greedy.WINDOW)
    assert all(run.tokens for of_bias in runs.values() for run in of_bias)


@pytest.mark.parametrize("max_symbols", [1, 2, 10])
@pytest.mark.parametrize("durations", [(), DURATIONS])
def test_a_model_that_never_stops_is_cut_off_at_each_frame(
    durations: tuple[int, ...], max_symbols: int
) -> None:
    model = talkative(-50.0, 0, durations, max_symbols)
    assert model.joiner is not None
    if durations:
        with torch.no_grad():
            model.joiner.out.bias[VOCABULARY + 1] += 50.0  # always a duration of zero
    encoded = tensor(12, DIM)
    for sizes in ([12], [1], [5]):
        found = decode(model, encoded, sizes)
        assert found.frames == [t for t in range(12) for _ in range(max_symbols)]
        assert_same(found, reference(model, encoded))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("durations", [(), DURATIONS])
@pytest.mark.parametrize("bias", BLANK_BIASES)
def test_rows_of_a_batch_in_chunks_equal_each_alone(
    bias: str, durations: tuple[int, ...], seed: int
) -> None:
    model = talkative(BLANK_BIASES[bias], seed, durations)
    lengths = torch.tensor([25, 0, FRAMES, 1, 20, 35])
    encoded = tensor(len(lengths), FRAMES, DIM, seed=seed)
    search = GreedySearch(model)
    alone = [decode(model, row[:n], [FRAMES]) for row, n in zip(encoded, lengths, strict=True)]
    for sizes in SIZES[1:]:
        state = search.start(len(lengths))
        found = [Hypothesis() for _ in lengths]
        for part in cut(FRAMES, sizes, seed):
            valid = (lengths - part.start).clamp(0, part.stop - part.start)
            with torch.no_grad():
                for row, new in enumerate(search.decode(encoded[:, part], valid, state)):
                    found[row].extend(new)
        for together, expected in zip(found, alone, strict=True):
            assert_same(together, expected)


@pytest.mark.parametrize("durations", [(), DURATIONS])
def test_a_row_without_frames_keeps_its_state(
    durations: tuple[int, ...],
) -> None:
    model = talkative(1.0, 0, durations)
    encoded = tensor(2, FRAMES, DIM)
    search = GreedySearch(model)
    state, found = search.start(2), [Hypothesis(), Hypothesis()]
    turns = [(0, [0, 9]), (0, [11, 0]), (9, [0, 7]), (11, [9, 0]), (16, [0, 20]), (20, [16, 0])]
    with torch.no_grad():
        for start, lengths in turns:
            part = encoded[:, start : start + max(lengths)]
            for row, new in enumerate(search.decode(part, torch.tensor(lengths), state)):
                found[row].extend(new)
    for row in range(2):
        assert_same(found[row], decode(model, encoded[row], [FRAMES]))


def test_durations_carry_over_several_short_chunks() -> None:
    """With every duration 4, each fourth frame is read, whatever the chunks."""
    model = talkative(-50.0, 0, DURATIONS)
    assert model.joiner is not None
    with torch.no_grad():
        model.joiner.out.bias[-1] += 50.0
    for sizes in ([1], [2], [3], [0, 1, 5]):
        assert decode(model, tensor(23, DIM), sizes).frames == [0, 4, 8, 12, 16, 20]


def test_the_window_of_the_search_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, encoded = talkative(2.0, 0), tensor(FRAMES, DIM)
    usual = decode(model, encoded, [FRAMES])
    for window in (1, 3, 100):
        monkeypatch.setattr(greedy, "WINDOW", window)
        assert_same(decode(model, encoded, [FRAMES]), usual)


def test_a_new_state_does_not_depend_on_an_old_one() -> None:
    model, encoded = talkative(1.0, 0), tensor(FRAMES, DIM)
    first = decode(model, encoded, [7])
    decode(model, tensor(FRAMES, DIM, seed=9), [7])
    assert_same(decode(model, encoded, [7]), first)


@pytest.mark.parametrize("measure", ["probability", "max_prob", "gibbs", "tsallis", "renyi"])
@pytest.mark.parametrize("norm", ["lin", "exp"])
@pytest.mark.parametrize("durations", [(), DURATIONS])
def test_confidences_lie_between_zero_and_one(
    measure: str, norm: str, durations: tuple[int, ...]
) -> None:
    model = talkative(1.0, 0, durations)
    search = GreedySearch(model, Confidence(measure, norm))  # type: ignore[arg-type]
    with torch.no_grad():
        found = search.decode(tensor(1, FRAMES, DIM), None, search.start())[0]
    assert len(found.confidences) == len(found.tokens) > 5
    assert all(0 <= c <= 1 for c in found.confidences)
    if measure == "probability":
        expected = torch.tensor(found.log_probs).exp().tolist()
        assert found.confidences == pytest.approx(expected, abs=1e-5)
    assert found.score == pytest.approx(sum(found.log_probs))


def test_no_frames_give_no_tokens() -> None:
    search = GreedySearch(talkative(0.0, 0))
    state = search.start(3)
    with torch.no_grad():
        assert search.decode(torch.zeros(3, 0, DIM), None, state) == [Hypothesis()] * 3


def test_the_head_is_the_requested_one_or_the_transducer() -> None:
    both = make_model()
    assert type(make_search(both)).__name__ == "GreedySearch"
    assert type(make_search(both, "transducer")).__name__ == "GreedySearch"
    assert type(make_search(both, "ctc")).__name__ == "CtcGreedySearch"
    assert type(make_search(make_model(transducer=None))).__name__ == "CtcGreedySearch"
    with pytest.raises(OptionError, match="no transducer"):
        make_search(make_model(transducer=None), "transducer")
    with pytest.raises(OptionError, match="no CTC head"):
        make_search(make_model(ctc=False), "ctc")
    with pytest.raises(OptionError, match="unknown head 'attention'"):
        make_search(both, "attention")  # type: ignore[arg-type]
