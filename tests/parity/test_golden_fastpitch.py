"""Our FastPitch and its HiFi-GAN against the stored numbers of NeMo."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pianissimo.models.checkpoints.fastpitch import read_fastpitch
from pianissimo.models.checkpoints.fastspeech2 import FastSpeech2Parts

GOLDEN = Path(__file__).resolve().parent / "golden_fastpitch"
MEL, WAVE, CHUNKS = 1e-4, 1e-4, 1e-6
Arrays = dict[str, npt.NDArray[np.generic]]


@pytest.fixture(scope="module")
def golden() -> Arrays:
    with np.load(GOLDEN / "golden.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def parts() -> FastSpeech2Parts:
    return read_fastpitch(GOLDEN)


def test_the_vocabulary_is_that_of_the_tokenizer(parts: FastSpeech2Parts, golden: Arrays) -> None:
    assert list(parts.vocabulary) == golden["vocabulary"].tolist()
    ids = [parts.vocabulary[token] for token in golden["tokens"].tolist()]
    assert ids == golden["ids"].tolist()
    assert parts.around == (" ", " ") == (golden["tokens"][0], golden["tokens"][-1])
    assert parts.sample_rate == 22_050


def test_durations_mel_and_wave_equal_those_of_nemo(
    parts: FastSpeech2Parts, golden: Arrays
) -> None:
    tensors = {name: torch.from_numpy(golden[name]) for name in ("ids", "mel", "wave", "slow_mel")}
    mel, durations = parts.acoustic(tensors["ids"])
    assert durations.tolist() == golden["durations"].tolist()
    assert (mel - tensors["mel"]).abs().max() <= MEL
    assert (parts.vocoder(tensors["mel"]) - tensors["wave"]).abs().max() <= WAVE
    assert (parts.vocoder(mel) - tensors["wave"]).abs().max() <= WAVE
    slow, _ = parts.acoustic(tensors["ids"], speed=0.5)
    assert slow.shape == tensors["slow_mel"].shape and len(slow) > 1.9 * len(mel)
    assert (slow - tensors["slow_mel"]).abs().max() <= MEL


def test_chunks_joined_equal_the_whole(parts: FastSpeech2Parts, golden: Arrays) -> None:
    mel = torch.from_numpy(golden["mel"])
    chunks = torch.cat([*parts.vocoder.chunks(mel, 7, 16)])
    assert (chunks - parts.vocoder(mel)).abs().max() <= CHUNKS
