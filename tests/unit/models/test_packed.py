import numpy as np
import pytest
import torch
from tiny import make_encoder, tensor
from torch import nn

from pianissimo.errors import OptionError
from pianissimo.models.packed import (
    ROWS_AT_ONCE,
    Int8Linear,
    PackedLinear,
    PackedLSTM,
    activation_levels,
    packed,
)
from pianissimo.models.transducer import Predictor, TransducerConfig


def linear(bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(96, 48, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 96), (3, 5, 96), (2 * ROWS_AT_ONCE + 1, 96), (0, 96)])
def test_packed_float32_equals_the_plain_layer(bias: bool, shape: tuple[int, ...]) -> None:
    plain = linear(bias)
    x = tensor(*shape)
    torch.testing.assert_close(PackedLinear(plain)(x), plain(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_int8_is_the_exact_sum_of_the_rounded_numbers(bias: bool) -> None:
    plain = linear(bias)
    x = tensor(7, 96) * torch.logspace(-4, 3, 7)[:, None]
    weight, levels = plain.weight.numpy().astype(np.float64), activation_levels()
    scales = np.abs(weight).max(axis=1) / 127
    largest = np.abs(x.numpy()).max(axis=1, keepdims=True).astype(np.float64)
    rounded = np.rint(x.numpy() / largest * levels)
    expected = rounded @ np.rint(weight / scales[:, None]).T * scales * largest / levels
    expected += plain.bias.numpy() if bias else 0.0
    found = Int8Linear(plain)(x).numpy()
    # A product that lies on the edge between two levels may be rounded either way.
    assert np.abs(found - expected).max() <= 2e-2 * np.abs(expected).max()
    assert np.median(np.abs(found - expected) / np.abs(expected)) < 1e-5


def test_int8_stays_close_to_float32() -> None:
    plain = linear()
    x = tensor(200, 96)
    error = (Int8Linear(plain)(x) - plain(x)).norm() / plain(x).norm()
    assert error < 0.03


def test_a_loud_neighbour_changes_nothing() -> None:
    layer = Int8Linear(linear())
    quiet = tensor(1, 96, seed=1) * 1e-3
    loud = torch.cat([quiet, tensor(6, 96, seed=2) * 1e4])
    assert torch.equal(layer(loud)[:1], layer(quiet))
    assert layer(quiet).std() > 1e-4


def test_zeros_give_the_bias() -> None:
    plain = linear()
    assert torch.equal(Int8Linear(plain)(torch.zeros(2, 96))[1], plain.bias)


def test_the_activation_levels_do_not_overflow() -> None:
    """All numbers as large as they get: what processors that sum in 16 bits get wrong."""
    plain = nn.Linear(256, 16, bias=False)
    with torch.no_grad():
        plain.weight.fill_(1.0)
    torch.testing.assert_close(Int8Linear(plain)(torch.ones(3, 256)), torch.full((3, 16), 256.0))


@pytest.mark.parametrize(("precision", "kind"), [("float32", PackedLinear), ("int8", Int8Linear)])
def test_packing_copies_the_module_and_leaves_the_original(precision: str, kind: type) -> None:
    encoder = make_encoder()
    copy = packed(encoder, precision)
    linears = [m for m in encoder.modules() if type(m) is nn.Linear]
    replaced = [m for m in copy.modules() if type(m) is kind]
    positions = encoder.config.layers
    assert len(linears) == len(replaced) + positions
    assert copy.subsampling.weight is encoder.subsampling.weight
    mel, lengths = tensor(2, 100, encoder.config.n_mels), torch.tensor([100, 60])
    with torch.no_grad():
        expected, found = encoder(mel, lengths)[0], copy(mel, lengths)[0]
    distance = (found - expected).norm() / expected.norm()
    assert distance < (1e-5 if precision == "float32" else 0.1)
    assert (distance > 1e-4) == (precision == "int8")


def test_other_precisions_are_refused() -> None:
    with pytest.raises(OptionError, match="int4"):
        packed(linear(), "int4")  # type: ignore[arg-type]


# -- LSTM ------------------------------------------------------------------------------------------


def predictor(layers: int) -> Predictor:
    torch.manual_seed(layers)
    return Predictor(TransducerConfig(20, predictor_dim=24, predictor_layers=layers)).eval()


@pytest.mark.parametrize("layers", [1, 2])
@torch.no_grad()
def test_a_packed_lstm_goes_where_the_plain_one_goes(layers: int) -> None:
    plain, labels = predictor(layers), torch.randint(0, 21, (3, 9))
    copy, states = packed(plain, "float32"), [plain.start(3), plain.start(3)]
    assert isinstance(copy.lstm, PackedLSTM)
    assert isinstance(plain.lstm, nn.LSTM)
    for step in labels.T:
        found, states[1] = copy.step(step, states[1])
        expected, states[0] = plain.step(step, states[0])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(states[1].cell, states[0].cell, atol=1e-5, rtol=1e-5)
    x = tensor(3, 5, 24)
    whole, after = copy.lstm(x, (states[1].hidden, states[1].cell))
    expected, last = plain.lstm(x, (states[0].hidden, states[0].cell))
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after[0], last[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_int8_lstm_stays_close_and_knows_no_neighbours() -> None:
    plain = predictor(2)
    copy, labels = packed(plain, "int8"), torch.randint(0, 21, (4, 12))
    exact, rounded, alone = plain.start(4), copy.start(4), copy.start(1)
    for step in labels.T:
        expected, exact = plain.step(step, exact)
        found, rounded = copy.step(step, rounded)
        single, alone = copy.step(step[2:3], alone)
        assert torch.equal(found[2], single[0])
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_what_is_not_float32_on_the_cpu_is_left_alone() -> None:
    half = predictor(1).to(torch.bfloat16)
    assert packed(half, "float32") is half
