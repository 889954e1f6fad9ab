"""Our diarization networks against the stored numbers of Transformers and NeMo."""

from pathlib import Path

import numpy as np
import pytest
import torch
from parity_inputs import mel
from torch import Tensor

from pianissimo.models.checkpoints.diarization import read_diarization
from pianissimo.models.speaker_cache import (
    CacheConfig,
    SpeakerNetwork,
    SpeakerStream,
    StepSizes,
    choose_frames,
)

GOLDEN = Path(__file__).resolve().parent / "golden_diarizers"
TOLERANCE = 1e-5


def arrays(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@torch.inference_mode()
def probabilities(network: SpeakerNetwork, sizes: StepSizes, frames: Tensor, cut: int) -> Tensor:
    stream = SpeakerStream(network, sizes)
    parts = [stream.push_mel(part) for part in frames.split(cut)]
    return torch.cat([*parts, stream.finish()])


def compare(network: SpeakerNetwork, golden: dict[str, Tensor], sizes: StepSizes, key: str) -> None:
    length = int(key.rpartition("/")[2])
    frames = torch.from_numpy(mel(length, network.features.config.n_mels, seed=length))
    for cut in (length, 13):
        found = probabilities(network, sizes, frames, cut)
        assert found.shape == golden[key].shape
        assert (found - golden[key]).abs().max() <= TOLERANCE


NEMOTRON = arrays("nemotron")
OFFLINE = [key for key in NEMOTRON if key.startswith("offline/")]
MODES = {9: 4, 6: 2, 3: 1}


@pytest.fixture(scope="module")
def nemotron() -> SpeakerNetwork:
    return read_diarization(GOLDEN / "nemotron")


@pytest.mark.parametrize("key", OFFLINE)
def test_nemotron_offline_equals_transformers(nemotron: SpeakerNetwork, key: str) -> None:
    compare(nemotron, NEMOTRON, nemotron.offline, key)


@pytest.mark.parametrize("chunk", MODES)
def test_nemotron_live_equals_transformers(nemotron: SpeakerNetwork, chunk: int) -> None:
    [sizes] = [each for each in nemotron.live if each.chunk == chunk]
    assert sizes.lookahead == MODES[chunk]
    compare(nemotron, NEMOTRON, sizes, f"live/{chunk}-{MODES[chunk]}/1003")


def test_nemotron_features_equal_those_of_the_processor(nemotron: SpeakerNetwork) -> None:
    found = nemotron.features.whole(NEMOTRON["samples"])
    assert (found - NEMOTRON["features"]).abs().max() <= 1e-4


@pytest.mark.parametrize("case", range(24))
def test_a_full_cache_keeps_the_frames_that_transformers_keeps(case: int) -> None:
    speakers, frames, silent = NEMOTRON["sizes"][case].tolist()
    kept = choose_frames(NEMOTRON[f"scores/{case}"], CacheConfig(speakers, frames, silent))
    assert kept.tolist() == NEMOTRON[f"chosen/{case}"].tolist()


SORTFORMER = arrays("sortformer")


@pytest.fixture(scope="module")
def sortformer() -> SpeakerNetwork:
    return read_diarization(GOLDEN / "sortformer.nemo")


@pytest.mark.parametrize("key", SORTFORMER)
def test_sortformer_equals_nemo(sortformer: SpeakerNetwork, key: str) -> None:
    chunk, lookahead, queue, moved = map(int, key.split("/")[1].split("-"))
    lookback = sortformer.offline.lookback
    assert lookback == 1
    compare(sortformer, SORTFORMER, StepSizes(chunk, lookahead, queue, moved, lookback), key)
