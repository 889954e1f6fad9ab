"""Moonshine Streaming against files that Transformers made: `make_golden_moonshine.py`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pianissimo.decoding.whisper import WhisperSearch
from pianissimo.models.checkpoints.moonshine import MoonshineParts, read_moonshine
from pianissimo.models.whisper import TextRules

GOLDEN = Path(__file__).parent / "golden_moonshine"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
MOST_TOKENS = 24


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[MoonshineParts, dict[str, np.ndarray]]:
    name: str = request.param
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return read_moonshine(GOLDEN / name), dict(arrays)


def lengths(arrays: dict[str, np.ndarray]) -> list[int]:
    return [int(name.split("_")[1]) for name in arrays if name.startswith("encoded_")]


def test_there_are_golden_files() -> None:
    assert NAMES == ["streaming", "streaming_tied"]


@torch.inference_mode()
def test_encoder_frames(case: tuple[MoonshineParts, dict[str, np.ndarray]]) -> None:
    parts, arrays = case
    for n in lengths(arrays):
        found = parts.network.encoder.encoded(torch.from_numpy(arrays["sound"][None, :n]))[0]
        expected = arrays[f"encoded_{n}"]
        assert found.shape == expected.shape, n
        assert np.abs(found.numpy() - expected).max() <= 1e-5, n


@torch.inference_mode()
def test_decoder_logits(case: tuple[MoonshineParts, dict[str, np.ndarray]]) -> None:
    parts, arrays = case
    decoder = parts.network.decoder
    for n in lengths(arrays):
        encoded = parts.network.encoder(torch.from_numpy(arrays["sound"][None, :n]))
        tokens = torch.from_numpy(arrays[f"tokens_{n}"])[None]
        hidden, _ = decoder.step(tokens, decoder.start(encoded, None, tokens.shape[1]))
        found = decoder.logits(hidden)[0].numpy()
        assert np.abs(found - arrays[f"logits_{n}"]).max() <= 1e-4, n
        # Token by token, with the cache.
        state, rows = decoder.start(encoded, None, tokens.shape[1]), []
        for token in tokens[0]:
            hidden, _ = decoder.step(token[None, None], state)
            rows.append(decoder.logits(hidden)[0, 0].numpy())
        assert np.abs(np.stack(rows) - arrays[f"logits_{n}"]).max() <= 1e-4, n


@torch.inference_mode()
def test_greedy_tokens(case: tuple[MoonshineParts, dict[str, np.ndarray]]) -> None:
    parts, arrays = case
    tokenizer = parts.tokenizer
    search = WhisperSearch(
        parts.network.decoder, TextRules(), end=tokenizer.end, no_speech=tokenizer.end
    )
    for n in lengths(arrays):
        encoded = parts.network.encoder(torch.from_numpy(arrays["sound"][None, :n]))
        begun = search.begin(encoded, [[tokenizer.start]], most_tokens=MOST_TOKENS)
        [text] = search.greedy(begun, [MOST_TOKENS])
        ended = [tokenizer.end] if text.ended else []
        assert [tokenizer.start, *text.tokens, *ended] == arrays[f"ids_{n}"].tolist(), n
