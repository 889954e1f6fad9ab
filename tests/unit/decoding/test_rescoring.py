import dataclasses
import itertools
import math

import pytest
import torch
from tiny import DIM, cut, make_model, make_talker, tensor
from torch import Tensor

from pianissimo.decoding import rescoring
from pianissimo.decoding.beam import BeamSearch, TransducerHypothesis
from pianissimo.decoding.beam_state import BeamOptions, BeamState
from pianissimo.decoding.rescoring import NEVER, Rescoring
from pianissimo.decoding.search import Decoding, make_search
from pianissimo.decoding.token import Hypothesis, Token
from pianissimo.errors import OptionError
from pianissimo.models.asr import AsrModel

WEIGHT = 0.7
EXACT = BeamOptions(beam=256, settle_seconds=1000.0, pause_seconds=1000.0, window=1e9)
RESCORED = dataclasses.replace(EXACT, rescoring=WEIGHT)


def ctc_sums(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """Every path of (S, V + 1) frames, summed by the text it spells."""
    sums: dict[tuple[int, ...], float] = {}
    blank = log_probs.shape[1] - 1
    for path in itertools.product(range(blank + 1), repeat=len(log_probs)):
        score = sum(log_probs[t, symbol].item() for t, symbol in enumerate(path))
        text = tuple(s for s, _ in itertools.groupby(path) if s != blank)
        sums[text] = math.log(math.exp(score) + math.exp(sums.get(text, -math.inf)))
    return sums


def settled(token: int, frame: int) -> Token:
    return Token(token, frame, -0.1, 0.9)


@torch.no_grad()
def searched(
    model: AsrModel, options: BeamOptions, encoded: Tensor
) -> tuple[BeamState[TransducerHypothesis], tuple[int, ...]]:
    search = BeamSearch(model, options)
    state = search.start()
    said = search.decode(encoded[None], None, state)[0]
    return state, tuple(said.tokens)


def test_the_score_of_a_text_is_the_sum_over_its_paths() -> None:
    log_probs = tensor(4, 4, seed=1).log_softmax(-1)
    sums = ctc_sums(log_probs)
    texts = list(sums)
    found = Rescoring(WEIGHT, log_probs).scores(texts)
    assert found == pytest.approx([WEIGHT * sums[text] for text in texts], abs=1e-4)
    # Two of a kind need a blank between them: five frames for three.
    assert Rescoring(WEIGHT, log_probs).scores([(1, 1, 1), (0, 1, 2)])[0] == WEIGHT * NEVER


def test_settled_tokens_belong_to_every_text_and_later_frames_are_not_scored() -> None:
    log_probs = tensor(6, 4, seed=2).log_softmax(-1)
    opinion = Rescoring(1.0, log_probs[:2]).extended(log_probs[2:], 2)
    opinion = opinion.settle([settled(2, 1)], 1, 2, 5.0)
    sums = ctc_sums(log_probs[:5])
    assert opinion.scores([(), (0,)], 4) == pytest.approx([sums[2,], sums[2, 0]], abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("durations", [(), (0, 1, 2)])
def test_the_best_text_of_both_heads_is_chosen(durations: tuple[int, ...], seed: int) -> None:
    model = make_talker(0.5, vocab_size=3, seed=seed, max_symbols=2, durations=durations)
    encoded = tensor(3, DIM, seed=seed)
    plain, said = searched(model, EXACT, encoded)
    totals = {(*said, *text): score for text, score in plain.beams[0].alternatives()}
    assert model.ctc is not None
    with torch.no_grad():
        sums = ctc_sums(model.ctc(encoded))
    likely = sorted(totals, key=lambda text: -totals[text])[:20]
    expected = {text: totals[text] + WEIGHT * sums.get(text, NEVER) for text in likely}
    rescored, said = searched(model, RESCORED, encoded)
    ways = {(*said, *text): score for text, score in rescored.beams[0].alternatives()}
    assert [ways[text] for text in likely] == pytest.approx(list(expected.values()), abs=1e-2)
    assert tuple(rescored.flush()[0].tokens) == next(iter(ways))[len(said) :]


def test_ctc_changes_the_text_and_is_reset_at_its_end() -> None:
    changed = 0
    for seed in range(6):
        model = make_talker(0.5, vocab_size=3, seed=seed, max_symbols=2)
        encoded = tensor(5, DIM, seed=seed)
        plain, said = searched(model, EXACT, encoded)
        rescored, also = searched(model, RESCORED, encoded)
        first, second = (*said, *plain.flush()[0].tokens), (*also, *rescored.flush()[0].tokens)
        changed += first != second
        opinion = rescored.beams[0].rescoring
        assert opinion is not None
        assert (opinion.first, len(opinion.log_probs), opinion.settled) == (5, 0, ())
    assert changed


def talk(search: BeamSearch, encoded: Tensor, sizes: list[int]) -> Hypothesis:
    state, found = search.start(), Hypothesis()
    with torch.no_grad():
        for part in cut(len(encoded), sizes):
            found.extend(search.decode(encoded[None, part], None, state)[0])
    found.extend(state.flush()[0])
    return found


@pytest.mark.parametrize("pause_seconds", [0.1, 0.8])
def test_batches_in_chunks_equal_each_whole(pause_seconds: float) -> None:
    model = make_talker(3.0, max_symbols=3)
    search = BeamSearch(model, BeamOptions(4, 0.8, pause_seconds, rescoring=3.0))
    plain = BeamSearch(model, BeamOptions(4, 0.8, pause_seconds))
    encoded, lengths = tensor(3, 60, DIM, seed=3), torch.tensor([60, 41, 0])
    rows = [row[:n] for row, n in zip(encoded, lengths.tolist(), strict=True)]
    alone = [talk(search, row, [60]) for row in rows]
    assert [h.tokens for h in alone] != [talk(plain, row, [60]).tokens for row in rows]
    state, found = search.start(3), [Hypothesis() for _ in range(3)]
    with torch.no_grad():
        for part in cut(60, [1, 5, 20], 1):
            valid = (lengths - part.start).clamp(0, part.stop - part.start)
            for row, new in enumerate(search.decode(encoded[:, part], valid, state)):
                found[row].extend(new)
    for row, new in enumerate(state.flush()):
        found[row].extend(new)
    for together, expected in zip(found, alone, strict=True):
        assert (together.tokens, together.frames) == (expected.tokens, expected.frames)


def test_a_pause_drops_earlier_frames() -> None:
    log_probs = tensor(30, 4).log_softmax(-1)
    before = Rescoring(1.0, log_probs)
    opinion = before.settle([settled(0, 3), settled(1, 9)], 12, 13, 5.5)
    assert opinion.first == 0
    assert opinion.settle([], 13, 14, 5.5) is opinion
    kept = opinion.settle([], 15, 16, 5.5)
    assert (kept.first, kept.settled) == (10, ())
    assert torch.equal(kept.log_probs, log_probs[10:])
    # A token that is not settled yet lies right behind the last settled one.
    assert opinion.settle([], 15, 12, 5.5) is opinion


@pytest.mark.parametrize("bias", [-1.0, 50.0])
def test_long_speech_without_a_pause_has_bounded_memory(
    monkeypatch: pytest.MonkeyPatch, bias: float
) -> None:
    """Of talk without end as little as of silence."""
    monkeypatch.setattr(rescoring, "LONGEST_FRAMES", 50)
    search = BeamSearch(make_talker(bias), BeamOptions(2, 0.8, rescoring=WEIGHT))
    state, encoded, said = search.start(), tensor(1, 300, DIM), 0
    with torch.no_grad():
        for part in encoded.split(10, dim=1):
            said += len(search.decode(part, None, state)[0].tokens)
            opinion = state.beams[0].rescoring
            assert opinion is not None
            assert len(opinion.log_probs) <= 60
            assert all(token.frame >= opinion.first for token in opinion.settled)
    assert (said > 100) == (bias < 0)


def test_rescoring_without_both_heads_is_refused() -> None:
    model = make_model(ctc=False)
    with pytest.raises(OptionError, match="CTC head"):
        make_search(model, None, Decoding(beam=4, rescoring=0.5))
    with pytest.raises(OptionError, match="not the CTC head"):
        make_search(make_model(), "ctc", Decoding(beam=4, rescoring=0.5))
    with pytest.raises(OptionError, match="beam"):
        Decoding(rescoring=0.5)
    with pytest.raises(OptionError, match="0 to 10"):
        Decoding(beam=4, rescoring=-1.0)
    with pytest.raises(OptionError, match="CTC head"):
        make_model(ctc=False, rescoring=0.5)
    with pytest.raises(OptionError, match="0 to 10"):
        make_model(rescoring=11.0)
