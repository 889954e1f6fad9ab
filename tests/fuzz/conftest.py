"""The server that is fuzzed: a tiny model, every interface open, little room."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import Share
from serving import Server, serving

import pianissimo
from pianissimo.recognizers.fastconformer import NativeRecognizer
from pianissimo.serve.settings import Settings


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    Share.tests = max(1, len(items))


@pytest.fixture(scope="session")
def fuzzed_model(tiny_model_folder: Path) -> NativeRecognizer:
    return pianissimo.load(tiny_model_folder, device="cpu")


@pytest.fixture(scope="session")
def fuzzed(fuzzed_model: NativeRecognizer) -> Iterator[Server]:
    options = Settings(
        wyoming_port=0,
        admin_key="admin",
        largest_upload_mb=1.0,
        longest_audio_seconds=60.0,
        resume_seconds=1.0,
        linger_seconds=0.0,
        idle_seconds=20.0,
    )
    with serving(fuzzed_model, options) as server:
        yield server
