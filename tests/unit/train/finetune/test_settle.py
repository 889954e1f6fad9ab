"""What is chosen after training, by validations that look at the weights they are given."""

import pytest
import torch
from tiny import make_model

from pianissimo.models.asr import AsrModel
from pianissimo.train.early_stop import EarlyStop
from pianissimo.train.finetune.settle import MOST_DISCOUNT, Settled, discount_blank, settle

Scores = dict[str, float]


def blank_score(model: AsrModel) -> float:
    assert model.joiner is not None
    return float(model.joiner.out.bias[model.config.vocab_size].detach())


def progress(model: AsrModel) -> float:
    """How far a model is from the one of seed 0 to that of seed 1, by a weight of the encoder."""
    at, first, last = (
        m.encoder.layers[0].attention.qkv.weight for m in (model, make_model(), make_model(seed=1))
    )
    return float((at - first).detach().norm() / (last - first).detach().norm())


class Validation:
    """Errors of 0.9 for the original model and 0.1 for one that is `enough` of the way from it.

    More if the blank is not `surplus` lower than it was after training.
    """

    def __init__(self, trained: AsrModel, enough: float = 1.0, surplus: float = 0.0) -> None:
        self.enough, self.calls = enough, 0
        self.wanted = blank_score(trained) - surplus if trained.joiner is not None else None

    def __call__(self, model: AsrModel) -> Scores:
        self.calls += 1
        errors = 0.9 - 0.8 * min(1.0, progress(model) / self.enough) ** 2
        # On the way back the blank moves with everything else; that is not judged.
        if self.wanted is not None and progress(model) > 0.99:
            errors += 0.05 * abs(blank_score(model) - self.wanted)
        return {"wer all 80 ms": errors, "wer all 560 ms": errors + 0.01}


def stopped(trained: AsrModel, validation: Validation) -> EarlyStop:
    """As after a training whose last weights were the best."""
    stop = EarlyStop(4)
    stop.note(0, validation(make_model()), {})
    stop.note(10, validation(trained), {})
    assert stop.best_step == 10
    validation.calls = 0
    return stop


def settled(enough: float, surplus: float, share: float | None) -> tuple[AsrModel, Settled, int]:
    model = make_model(seed=1)
    validation = Validation(model, enough, surplus)
    stop = stopped(model, validation)
    done = settle(model, make_model(), share, validation, stop)
    return model, done, validation.calls


def test_a_discount_is_of_the_blank_alone() -> None:
    model, before = make_model(), make_model().state_dict()
    discount_blank(model, 0.5)
    blank = model.config.vocab_size
    for name, weight in model.state_dict().items():
        change = weight - before[name]
        if name == "joiner.out.bias":
            assert float(change[blank]) == pytest.approx(-0.5)
            change[blank] = 0.0
        assert not change.any(), name


@pytest.mark.parametrize(
    "surplus, discount", [(0.0, 0.0), (0.4, 0.5), (1.0, 1.0), (9.0, MOST_DISCOUNT), (-1.0, 0.0)]
)
def test_the_blank_is_lowered_while_errors_decrease(surplus: float, discount: float) -> None:
    model, done, _ = settled(1.0, surplus, 1.0)
    assert done == Settled(discount, 1.0)
    assert blank_score(model) == pytest.approx(blank_score(make_model(seed=1)) - discount)


@pytest.mark.parametrize("enough, share", [(1.0, 1.0), (0.9, 0.9), (0.8, 0.8), (0.5, 0.7)])
def test_weights_are_blended_as_far_as_the_gain_is_kept(enough: float, share: float) -> None:
    model, done, _ = settled(enough, 0.0, None)
    assert done.blend == share
    old, new = make_model().state_dict(), make_model(seed=1).state_dict()
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            torch.testing.assert_close(weight, old[name] + share * (new[name] - old[name]))


def test_a_given_share_is_used_without_a_search() -> None:
    model, done, calls = settled(1.0, 0.0, 0.3)
    assert done.blend == 0.3
    assert progress(model) == pytest.approx(0.3)
    assert calls == 1  # of a discount


def test_a_model_without_a_transducer_keeps_its_blank() -> None:
    model = make_model(seed=1, transducer=None)
    validation = Validation(model)
    stop = stopped(model, validation)
    before = model.ctc.out.bias.clone() if model.ctc is not None else None
    assert settle(model, make_model(transducer=None), 1.0, validation, stop) == Settled(0.0, 1.0)
    assert model.ctc is not None and before is not None
    assert torch.equal(model.ctc.out.bias, before)
    assert validation.calls == 0
