"""Fixtures of the unit tests, and `tiny` on the import path for all of their folders."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import make_talker, noise

from pianissimo.models.asr import AsrModel
from pianissimo.models.checkpoints.model_folder import read_tokenizer
from pianissimo.text import WORD_START
from pianissimo.text.tokenizer import Tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors are quicker on one thread, and their sums come out the same every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model_folder: Path) -> Tokenizer:
    """A SentencePiece vocabulary of about forty pieces."""
    return read_tokenizer(tiny_model_folder)


@pytest.fixture(scope="session")
def talker(tiny_tokenizer: Tokenizer) -> AsrModel:
    """A streaming model that says several words a second to any sound; leave it unchanged."""
    pieces = tiny_tokenizer.vocab_size
    first = make_talker(0.0, vocab_size=pieces)
    with torch.no_grad():
        mel, lengths = first.features(torch.from_numpy(noise(160_000))[None])
        hears = first.encoder(mel, lengths)[0][0]
    model = make_talker(0.0, vocab_size=pieces, hears=hears, max_symbols=2, language="en")
    assert model.joiner is not None
    starts = [piece.startswith(WORD_START) for piece in tiny_tokenizer.pieces]
    with torch.no_grad():
        model.joiner.out.bias[:pieces][torch.tensor(starts)] += 2.0
        model.joiner.out.bias[sorted(tiny_tokenizer.special_ids)] = -1e3
    return model
