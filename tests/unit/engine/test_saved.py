"""Streams as bytes: what comes back, and what is left behind in memory."""

import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pianissimo.engine.saved import from_bytes, to_bytes
from pianissimo.errors import StateError


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed inside is freed because nobody knows it any more."""
    gc.disable()
    yield
    gc.enable()


def test_what_was_saved_comes_back() -> None:
    document = {"n": np.float32(0.5), "list": [1, {"samples": np.arange(3.0)}], "none": None}
    found, tensors = from_bytes(to_bytes(document, {"key": torch.ones(2, 2)}))
    assert found["n"] == 0.5 and found["none"] is None and found["list"][0] == 1
    assert np.array_equal(found["list"][1]["samples"], np.arange(3.0))
    assert torch.equal(tensors["key"], torch.ones(2, 2))


def test_a_name_without_its_array_is_an_error() -> None:
    with pytest.raises(StateError, match=r"lacks array\.7"):
        from_bytes(to_bytes({"samples": {"$array": "array.7"}}, {}))


def test_saving_keeps_nothing(no_collector: None) -> None:
    """A stream is saved whenever a connection breaks: its sound must not wait for a collection."""
    samples = np.zeros(16_000, np.float32)
    known = weakref.ref(samples)
    data = to_bytes({"samples": samples}, {})
    del samples
    assert known() is None
    found, _ = from_bytes(data)
    known = weakref.ref(found["samples"])
    del found
    assert known() is None
