"""Onsets of speech and the places where a fresh state begins, without a model."""

import pytest

from pianissimo.audio.features import FeatureConfig
from pianissimo.audio.vad import WINDOW_SAMPLES
from pianissimo.errors import OptionError
from pianissimo.streaming.endpoint import ONSET, OnsetRules
from pianissimo.streaming.grid import ChunkGrid
from pianissimo.streaming.onset import (
    GROUP_SAMPLES,
    MOST_BACK_SECONDS,
    OnsetMeter,
    chunks_before,
    fresh_start,
    known_windows,
)

QUIET = [0.1] * 40
"""1.28 s."""


@pytest.fixture(params=[1, 2, 7, 14])
def grid(request: pytest.FixtureRequest) -> ChunkGrid:
    return ChunkGrid(request.param, 8, FeatureConfig())


@pytest.mark.parametrize("size", [1, 8, 1000])
def test_speech_after_a_pause_is_an_onset(size: int) -> None:
    values = [*QUIET, 0.3, 0.9, *QUIET[:20], 0.9, *QUIET, 0.2, 0.9, 0.9]
    meter = OnsetMeter(ONSET)
    parts = [values[at : at + size] for at in range(0, len(values), size)]
    assert [onset for part in parts for onset in meter.push(part)] == [40, 104]
    assert meter.windows == len(values)


def test_speech_at_once_is_no_onset() -> None:
    assert OnsetMeter(ONSET).push([0.0] * 10 + [1.0] * 50) == []


@pytest.mark.parametrize("origin", [0, 1280, 76_800])
def test_an_onset_is_decided_before_the_chunk_that_knows_it(grid: ChunkGrid, origin: int) -> None:
    for onset in range(origin // WINDOW_SAMPLES + 1, origin // WINDOW_SAMPLES + 200):
        chunks = chunks_before(onset, origin, grid)
        assert onset < known_windows(origin + grid.needed(chunks))
        if chunks:
            assert onset >= known_windows(origin + grid.needed(chunks - 1))


def test_a_fresh_state_begins_at_a_frame_shortly_before(grid: ChunkGrid) -> None:
    rate = grid.features.sample_rate
    back = (MOST_BACK_SECONDS + ONSET.preroll_seconds) * rate
    for onset in range(100, 300):
        chunks = chunks_before(onset, 0, grid)
        start = fresh_start(onset, 0, chunks, 0, grid, ONSET)
        assert start is not None
        assert start % 1280 == 0
        done = chunks * grid.chunk_samples
        assert done - back < start <= done
        assert start <= onset * WINDOW_SAMPLES - ONSET.preroll_seconds * rate
        assert fresh_start(onset, start, 0, 0, grid, ONSET) is None  # it is fresh
        assert fresh_start(onset, 0, chunks, start, grid, ONSET) == start
        assert fresh_start(onset, 0, chunks, start + 1, grid, ONSET) is None


@pytest.mark.parametrize("rules", [{"preroll_seconds": -0.1}, {"quiet_seconds": 0.3}])
def test_rules_that_make_no_sense_are_refused(rules: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="preroll_seconds"):
        OnsetRules(**rules)


def test_a_group_is_what_the_detector_takes() -> None:
    assert known_windows(GROUP_SAMPLES - 1) == 0
    assert known_windows(GROUP_SAMPLES) == 8
