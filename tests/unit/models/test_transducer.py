import dataclasses

import pytest
import torch
from tiny import DIM, make_model, randomise, tensor

from pianissimo.models.transducer import Joiner, Predictor, PredictorState, TransducerConfig

CONFIG = TransducerConfig(12, predictor_dim=8, predictor_layers=2, joint_dim=6)


def make_predictor() -> Predictor:
    predictor = make_model(transducer=CONFIG).predictor
    assert predictor is not None
    return predictor


@torch.no_grad()
def test_feeding_labels_one_by_one_equals_all_prefixes_at_once() -> None:
    predictor = make_predictor()
    targets = torch.randint(0, 12, (3, 9), generator=torch.Generator().manual_seed(0))
    whole = predictor(targets)
    assert whole.shape == (3, 10, 8)
    out, state = predictor.step(torch.full((3,), CONFIG.blank), predictor.start(3))
    steps = [out]
    for label in targets.T:
        out, state = predictor.step(label, state)
        steps.append(out)
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_empty_target_has_one_prefix() -> None:
    predictor = make_predictor()
    found = predictor(torch.zeros(2, 0, dtype=torch.long))
    out, _ = predictor.step(torch.full((2,), 12), predictor.start(2))
    torch.testing.assert_close(found[:, 0], out)


@torch.no_grad()
def test_rows_of_a_batch_equal_each_alone() -> None:
    predictor = make_predictor()
    targets = torch.randint(0, 12, (4, 7), generator=torch.Generator().manual_seed(1))
    together = predictor(targets)
    for row in range(4):
        alone = predictor(targets[row : row + 1, : row + 2])
        torch.testing.assert_close(together[row, : row + 3], alone[0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_step_leaves_the_state_it_came_from_alone() -> None:
    predictor = make_predictor()
    _, state = predictor.step(torch.tensor([1, 2]), predictor.start(2))
    before = PredictorState(state.hidden.clone(), state.cell.clone())
    predictor.step(torch.tensor([3, 4]), state)
    assert torch.equal(state.hidden, before.hidden)
    assert torch.equal(state.cell, before.cell)


def test_the_blank_is_embedded_as_zero_and_stays_so_in_training() -> None:
    predictor = Predictor(CONFIG)
    assert predictor.embedding.weight.shape == (13, 8)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        predictor(torch.tensor([[0, 12, 5]])).square().sum().backward()
        optimizer.step()
    assert not predictor.embedding.weight[12].any()
    assert bool(predictor.embedding.weight[:12].any(dim=1).all())


@pytest.mark.parametrize("durations", [(), (0, 1, 2, 4)])
@torch.no_grad()
def test_the_joiner_scores_symbols_then_durations(durations: tuple[int, ...]) -> None:
    joiner = Joiner(DIM, dataclasses.replace(CONFIG, durations=durations)).eval()
    randomise(joiner)
    frames, prefixes = tensor(2, 5, 1, DIM), tensor(2, 1, 3, 8, seed=1)
    logits = joiner(joiner.encoder(frames), joiner.predictor(prefixes))
    assert logits.shape == (2, 5, 3, 13 + len(durations))
    hidden = joiner.encoder.weight @ frames[1, 4, 0] + joiner.encoder.bias
    hidden = hidden + joiner.predictor.weight @ prefixes[1, 0, 2] + joiner.predictor.bias
    expected = joiner.out.weight @ hidden.clamp(min=0) + joiner.out.bias
    torch.testing.assert_close(logits[1, 4, 2], expected, rtol=0, atol=1e-5)


def test_dropout_is_only_for_training() -> None:
    config = dataclasses.replace(CONFIG, dropout=0.5)
    predictor, joiner = Predictor(config).eval(), Joiner(DIM, config).eval()
    targets, frames, prefixes = torch.tensor([[1, 2, 3]]), tensor(4, 6), tensor(4, 6, seed=1)
    assert torch.equal(predictor(targets), predictor(targets))
    assert torch.equal(joiner(frames, prefixes), joiner(frames, prefixes))
    assert not torch.equal(joiner.train()(frames, prefixes), joiner(frames, prefixes))
