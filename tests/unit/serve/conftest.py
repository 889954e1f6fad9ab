import gc
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Only what nobody knows any more is freed."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
