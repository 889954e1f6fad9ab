"""Our FastSpeech2 and HiFi-GAN against the stored numbers of Transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pianissimo.models.checkpoints.fastspeech2 import FastSpeech2Parts, read_fastspeech2

GOLDEN = Path(__file__).resolve().parent / "golden_fastspeech2"
VARIANTS = ("post_norm", "pre_norm")
MEL, WAVE = 5e-5, 1e-5  # with one thread, products sum in another order: 2.2e-5
CHUNKS = 1e-6


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> tuple[FastSpeech2Parts, dict[str, torch.Tensor]]:
    with np.load(GOLDEN / f"{request.param}.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    return read_fastspeech2(GOLDEN / request.param), arrays


Variant = tuple[FastSpeech2Parts, dict[str, torch.Tensor]]


def test_durations_mel_and_wave_equal_those_of_transformers(variant: Variant) -> None:
    parts, golden = variant
    mel, durations = parts.acoustic(golden["ids"])
    assert torch.equal(durations, golden["durations"])
    assert (mel - golden["mel"]).abs().max() <= MEL
    assert (parts.vocoder(golden["mel"]) - golden["wave"]).abs().max() <= WAVE
    assert (parts.vocoder(mel) - golden["wave"]).abs().max() <= WAVE


def test_half_the_speed_is_twice_the_speaking_speed(variant: Variant) -> None:
    parts, golden = variant
    mel, durations = parts.acoustic(golden["ids"], speed=0.5)
    assert torch.equal(durations, 2 * golden["durations"])
    assert (mel - golden["slow_mel"]).abs().max() <= MEL


@pytest.mark.parametrize(("first", "later"), [(1, 1), (7, 7), (16, 48), (48, 16)])
@pytest.mark.parametrize("frames", [1, 5, 12, 13, 80])
def test_chunks_joined_equal_the_whole(
    variant: Variant, first: int, later: int, frames: int
) -> None:
    parts, golden = variant
    mel = golden["mel"].repeat(9, 1)[:frames]
    whole = parts.vocoder(mel)
    chunks = list(parts.vocoder.chunks(mel, first, later))
    assert len(chunks) == 1 + max(0, -(-(frames - first) // later))
    assert whole.shape == (frames * parts.vocoder.config.hop,)
    assert (torch.cat(chunks) - whole).abs().max() <= CHUNKS
