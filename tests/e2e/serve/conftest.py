"""A server shared by all tests that need no special one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Server, serving

import pianissimo
from pianissimo.recognizers.fastconformer import NativeRecognizer


@pytest.fixture(scope="session")
def tiny(tiny_model_folder: Path) -> NativeRecognizer:
    return pianissimo.load(tiny_model_folder, device="cpu")


@pytest.fixture(scope="session")
def server(tiny: NativeRecognizer) -> Iterator[Server]:
    with serving(tiny) as running:
        yield running


@pytest.fixture(scope="session")
def embedded() -> NativeRecognizer:
    return pianissimo.load("embedded-commands", device="cpu")


@pytest.fixture(scope="session")
def words_server(embedded: NativeRecognizer) -> Iterator[Server]:
    """The embedded model, where the words matter."""
    with serving(embedded) as running:
        yield running
